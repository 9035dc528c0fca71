//! A bounded cache of sector bitmaps as they are on disk.
//!
//! Two generations: what was not used since the last turn is dropped when the young one is full. No order to keep, and
//! at most `2 * GENERATION` bitmaps (2 MiB of bits) per image.

use catena_types::{BlockIndex, SectorSet};
use std::collections::HashMap;

/// Bitmaps in one generation.
const GENERATION: usize = 2048;

/// The cache of one image.
#[derive(Debug, Default, Clone)]
pub(crate) struct Bitmaps {
    young: HashMap<BlockIndex, SectorSet>,
    old: HashMap<BlockIndex, SectorSet>,
}

impl Bitmaps {
    /// The bitmap of the block, if it is known.
    pub(crate) fn get(&mut self, block: BlockIndex) -> Option<SectorSet> {
        if let Some(set) = self.young.get(&block) {
            return Some(set.clone());
        }
        let set = self.old.remove(&block)?;
        self.put(block, set.clone());
        Some(set)
    }

    /// Remembers the bitmap that is on disk now.
    pub(crate) fn put(&mut self, block: BlockIndex, set: SectorSet) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&block) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&block);
        self.young.insert(block, set);
    }

    /// Forgets a block that lost its place.
    pub(crate) fn forget(&mut self, block: BlockIndex) {
        self.young.remove(&block);
        self.old.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_never_stale() {
        let mut cache = Bitmaps::default();
        for number in 0..10_000 {
            cache.put(BlockIndex(number), SectorSet::of(0..1));
            cache.put(BlockIndex(0), SectorSet::of(0..number as usize % 4096));
        }
        assert_eq!(cache.get(BlockIndex(0)), Some(SectorSet::of(0..9999 % 4096)));
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION);
        assert_eq!(cache.get(BlockIndex(1)), None);
        cache.forget(BlockIndex(9999));
        assert_eq!(cache.get(BlockIndex(9999)), None);
    }
}
