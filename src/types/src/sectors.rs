//! The set of sectors of one 2 MiB block that a layer owns.
//!
//! Stored in the bit order of VHD bitmaps (first sector = most significant bit of the first byte), so that a bitmap on
//! disk and a set in memory convert without shuffling. Used by `vhd`, `chain` and `datapath`.

use crate::sizes::BLOCK_SECTORS;
use std::ops::Range;

const WORDS: usize = BLOCK_SECTORS / 64;
const BITMAP_BYTES: usize = BLOCK_SECTORS / 8;

/// 4096 bits, one for each sector of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectorSet([u64; WORDS]);

impl Default for SectorSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl SectorSet {
    /// No sector.
    pub const fn empty() -> Self {
        Self([0; WORDS])
    }

    /// Every sector.
    pub const fn full() -> Self {
        Self([u64::MAX; WORDS])
    }

    /// The sectors of `range` (sector numbers inside the block, at most 4096).
    pub fn of(range: Range<usize>) -> Self {
        let mut set = Self::empty();
        set.insert(range);
        set
    }

    /// From a 512-byte VHD bitmap.
    pub fn from_bitmap(bitmap: &[u8; BITMAP_BYTES]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bitmap.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_be_bytes(eight);
        }
        Self(words)
    }

    /// As a 512-byte VHD bitmap.
    pub fn to_bitmap(&self) -> [u8; BITMAP_BYTES] {
        let mut bitmap = [0; BITMAP_BYTES];
        for (word, bytes) in self.0.iter().zip(bitmap.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        bitmap
    }

    /// Whether the sector is in the set.
    pub const fn contains(&self, sector: usize) -> bool {
        self.0[sector / 64] >> (63 - sector % 64) & 1 == 1
    }

    /// Adds the sectors of `range`.
    pub fn insert(&mut self, range: Range<usize>) {
        for_words(range, |word, mask| self.0[word] |= mask);
    }

    /// Takes the sectors of `range` out.
    pub fn remove(&mut self, range: Range<usize>) {
        for_words(range, |word, mask| self.0[word] &= !mask);
    }

    /// Whether no sector is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// Whether every sector is in the set.
    pub fn is_full(&self) -> bool {
        self.0.iter().all(|&word| word == u64::MAX)
    }

    /// How many sectors are in the set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The sectors in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// The sectors in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// The sectors of this set that are not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// The maximal runs of neighbouring sectors in the set, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.find(at, true)?;
            let end = self.find(start, false).unwrap_or(BLOCK_SECTORS);
            at = end;
            Some(start..end)
        })
    }

    /// The first sector at or after `from` that is in (`present`) or not in the set.
    pub fn find(&self, from: usize, present: bool) -> Option<usize> {
        let mut index = from / 64;
        let mut keep = u64::MAX >> (from % 64);
        while index < WORDS {
            let word = if present { self.0[index] } else { !self.0[index] } & keep;
            if word != 0 {
                return Some(index * 64 + word.leading_zeros() as usize);
            }
            keep = u64::MAX;
            index += 1;
        }
        None
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = [0; WORDS];
        for (word, (a, b)) in words.iter_mut().zip(self.0.iter().zip(&other.0)) {
            *word = op(*a, *b);
        }
        Self(words)
    }
}

/// Calls `apply` with each word that `range` touches and the mask of the bits it touches there.
fn for_words(range: Range<usize>, mut apply: impl FnMut(usize, u64)) {
    debug_assert!(range.end <= BLOCK_SECTORS);
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / 64 + 1) * 64);
        let mask = u64::MAX >> (at % 64) & (u64::MAX << (63 - (end - 1) % 64));
        apply(at / 64, mask);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0usize..4096, 0usize..300), 0..40)) {
            let (mut set, mut model) = (SectorSet::empty(), BTreeSet::new());
            for (add, start, length) in ops {
                let range = start..(start + length).min(BLOCK_SECTORS);
                if add {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(range.clone());
                    model.retain(|sector| !range.contains(sector));
                }
            }
            prop_assert_eq!(set.count(), model.len());
            prop_assert_eq!(set.runs().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..BLOCK_SECTORS).all(|sector| set.contains(sector) == model.contains(&sector)));
            prop_assert_eq!(SectorSet::from_bitmap(&set.to_bitmap()), set);
        }
    }

    #[test]
    fn the_first_sector_is_the_top_bit_of_the_first_byte() {
        let bitmap = SectorSet::of(0..1).to_bitmap();
        assert_eq!(bitmap[0], 0x80);
        assert!(bitmap[1..].iter().all(|&byte| byte == 0));
        assert!(SectorSet::of(0..4096).is_full());
    }
}
