//! One sector of the block table in memory, in the smallest form that fits.
//!
//! A chain of thirty images of a large disk has many thousands of these, most with a few entries: blocks that were
//! written since a snapshot lie all over the disk. All 128 entries are kept, padding included, so that a sector is written back
//! as it was.

use crate::layout::{ENTRIES_PER_SECTOR, SECTOR};

/// The entry of a block that has no place.
pub(crate) const UNUSED: u32 = u32::MAX;
/// The most entries that are kept one by one: they take half of what all take.
const FEW: usize = 32;

/// The entries of a sector.
#[derive(Debug, Clone)]
pub(crate) enum Page {
    /// These and no others, ascending by number.
    Few(Box<[(u8, u32)]>),
    /// All of them.
    Many(Box<[u32; ENTRIES_PER_SECTOR]>),
}

impl Page {
    /// From the bytes of the sector.
    pub(crate) fn parse(raw: &[u8]) -> Self {
        // Most of a large table.
        const EMPTY: [u8; SECTOR] = [0xff; SECTOR];
        if raw == EMPTY {
            return Self::Few(Box::default());
        }
        let entry = |raw: &[u8]| raw.first_chunk().map_or(UNUSED, |raw| u32::from_be_bytes(*raw));
        Self::of(raw.chunks_exact(4).map(entry))
    }

    fn of(entries: impl Iterator<Item = u32> + Clone) -> Self {
        let used = (0..).zip(entries.clone()).filter(|(_, entry)| *entry != UNUSED);
        if used.clone().take(FEW + 1).count() <= FEW {
            return Self::Few(used.collect());
        }
        let mut all = Box::new([UNUSED; ENTRIES_PER_SECTOR]);
        all.iter_mut().zip(entries).for_each(|(place, entry)| *place = entry);
        Self::Many(all)
    }

    /// An entry, by its number in the sector.
    pub(crate) fn get(&self, number: usize) -> u32 {
        match self {
            Self::Few(few) => few
                .binary_search_by_key(&number, |(number, _)| usize::from(*number))
                .map_or(UNUSED, |found| few[found].1),
            Self::Many(all) => all[number],
        }
    }

    /// Changes an entry.
    pub(crate) fn set(&mut self, number: usize, entry: u32) {
        match self {
            Self::Many(all) => all[number] = entry,
            Self::Few(_) => {
                let mut all = self.all();
                all[number] = entry;
                *self = Self::of(all.into_iter());
            }
        }
    }

    /// The entries that are used, ascending.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let (few, many) = match self {
            Self::Few(few) => (&few[..], &[][..]),
            Self::Many(all) => (&[][..], &all[..]),
        };
        let few = few.iter().map(|&(number, entry)| (usize::from(number), entry));
        few.chain(many.iter().copied().enumerate().filter(|(_, entry)| *entry != UNUSED))
    }

    /// The bytes of the sector.
    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let mut raw = [0; SECTOR];
        for (raw, entry) in raw.chunks_exact_mut(4).zip(self.all()) {
            raw.copy_from_slice(&entry.to_be_bytes());
        }
        raw
    }

    fn all(&self) -> [u32; ENTRIES_PER_SECTOR] {
        let mut all = [UNUSED; ENTRIES_PER_SECTOR];
        self.used().for_each(|(number, entry)| all[number] = entry);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_the_same_in_every_form(changes in prop::collection::vec((0usize..128, prop_oneof![Just(UNUSED), any::<u32>()]), 0..300)) {
            let mut page = Page::parse(&[0xff; SECTOR]);
            let mut model = [UNUSED; ENTRIES_PER_SECTOR];
            for (number, entry) in changes {
                page.set(number, entry);
                model[number] = entry;
                prop_assert_eq!(page.get(number), entry);
            }
            let raw: Vec<u8> = model.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            prop_assert_eq!(&page.encode()[..], &raw[..]);
            let again = Page::parse(&raw);
            for page in [page, again] {
                prop_assert!((0..128).all(|number| page.get(number) == model[number]));
                let used: Vec<_> = model.into_iter().enumerate().filter(|(_, entry)| *entry != UNUSED).collect();
                prop_assert_eq!(page.used().collect::<Vec<_>>(), used);
            }
        }
    }

    #[test]
    fn few_entries_take_little() {
        let mut page = Page::parse(&[0xff; SECTOR]);
        for number in 0..FEW {
            page.set(3 * number, 7);
        }
        assert!(matches!(&page, Page::Few(few) if few.len() == FEW));
        page.set(1, 7);
        assert!(matches!(page, Page::Many(_)));
    }
}
