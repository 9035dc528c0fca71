//! A bounded cache of sector bitmaps as they are on disk.
//!
//! Of blocks that are owned whole, as most are of a disk that has been in use for long, one bit is kept, and for ever. The others
//! are in two generations: what was not used since the last turn is dropped when the young one is full. No order to keep, and
//! at most so many bytes as two generations take.

use catena_types::{BlockIndex, SectorSet};
use std::collections::HashMap;

/// Bitmaps in a generation of an image that is only read: 256 KiB. What a chain of them owns is soon in its map.
const OF_READER: usize = 512;
/// The same for one that is written: 4 MiB. A write to a block of which the bitmap is not known waits for it.
const OF_WRITER: usize = 8192;

/// The cache of one image.
#[derive(Debug, Clone)]
pub(crate) struct Bitmaps {
    generation: usize,
    /// By block, 64 in a word: it is owned whole. Words that are missing are zero.
    full: Vec<u64>,
    young: HashMap<BlockIndex, SectorSet>,
    old: HashMap<BlockIndex, SectorSet>,
}

impl Bitmaps {
    /// For an image that is only read.
    pub(crate) fn of_reader() -> Self {
        Self { generation: OF_READER, full: Vec::new(), young: HashMap::new(), old: HashMap::new() }
    }

    /// For an image that is written.
    pub(crate) fn of_writer() -> Self {
        Self { generation: OF_WRITER, ..Self::of_reader() }
    }

    /// The bitmap of the block, if it is known.
    pub(crate) fn get(&mut self, block: BlockIndex) -> Option<SectorSet> {
        if self.full.get(block.index() / 64).is_some_and(|word| word >> (block.index() % 64) & 1 == 1) {
            return Some(SectorSet::full());
        }
        if let Some(set) = self.young.get(&block) {
            return Some(set.clone());
        }
        let set = self.old.remove(&block)?;
        self.put(block, set.clone());
        Some(set)
    }

    /// Remembers the bitmap that is on disk now. The block is one of the disk's.
    pub(crate) fn put(&mut self, block: BlockIndex, set: SectorSet) {
        self.forget(block);
        if set.is_full() {
            let (word, bit) = (block.index() / 64, block.index() % 64);
            self.full.resize(self.full.len().max(word + 1), 0);
            self.full[word] |= 1 << bit;
            return;
        }
        if self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block, set);
    }

    /// Forgets a block that lost its place.
    pub(crate) fn forget(&mut self, block: BlockIndex) {
        if let Some(word) = self.full.get_mut(block.index() / 64) {
            *word &= !(1 << (block.index() % 64));
        }
        self.young.remove(&block);
        self.old.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_never_stale() {
        let mut cache = Bitmaps::of_reader();
        for number in 0..10_000 {
            cache.put(BlockIndex(number), SectorSet::of(0..1));
            cache.put(BlockIndex(0), SectorSet::of(0..number as usize % 4096));
        }
        assert_eq!(cache.get(BlockIndex(0)), Some(SectorSet::of(0..9999 % 4096)));
        assert!(cache.young.len() + cache.old.len() <= 2 * OF_READER);
        assert_eq!(cache.get(BlockIndex(1)), None);
        cache.forget(BlockIndex(9999));
        assert_eq!(cache.get(BlockIndex(9999)), None);
    }

    #[test]
    fn blocks_that_are_owned_whole_are_never_dropped_and_may_change() {
        let mut cache = Bitmaps::of_reader();
        for number in 0..10_000 {
            cache.put(BlockIndex(number), SectorSet::full());
        }
        assert!((0..10_000).all(|number| cache.get(BlockIndex(number)) == Some(SectorSet::full())));
        assert!(cache.young.is_empty() && cache.old.is_empty());
        cache.put(BlockIndex(70), SectorSet::of(3..4));
        cache.forget(BlockIndex(71));
        assert_eq!(cache.get(BlockIndex(70)), Some(SectorSet::of(3..4)));
        assert_eq!((cache.get(BlockIndex(71)), cache.get(BlockIndex(20_000))), (None, None));
    }
}
