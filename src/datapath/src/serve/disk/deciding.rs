//! What a leaf merge decides, without the disk around it: a leaf L is emptied into the image P below it while it is written.
//!
//! ```text
//!   guest's write   to what L owns ──▶ L, and a window that has copied it lets it be         elsewhere ──▶ P
//!   window          copied to P ──▶ P's data durable ──▶ P's bits durable ──▶ L's bits durably clear, but of what was written since
//! ```
//!
//! Invariants: [L, P] reads right at every instant and after every crash, so a merge can be ended at any of them; L owns less and
//! less (D7: nothing is noted of it); at most twice the bytes are copied that L owned at first. [`Moving`](super::moving)
//! carries out.

use catena_chain::Known;
use catena_types::{BLOCK_SECTORS, BlockIndex, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;
use std::ops::Range;

/// The most blocks of a window: so many are locked while its sectors change hands.
const WINDOW_BLOCKS: usize = 32;
/// The most sectors: 2 MiB.
const WINDOW_SECTORS: usize = BLOCK_SECTORS;

/// One of the two images that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// The leaf, which takes over nothing any more.
    Leaf,
    /// The image below it.
    Into,
}

/// Where a write of these sectors of a block goes, of which the leaf owns what is `known`: the image, and how many of the sectors
/// go there before others go elsewhere.
pub(super) fn goes_to(known: &Known, sectors: &Range<usize>) -> (To, usize) {
    let all = sectors.len();
    match known {
        Known::Everything => (To::Leaf, all),
        Known::Nothing | Known::At(_) => (To::Into, all),
        Known::Sectors(owned) => {
            let owns = owned.contains(sectors.start);
            let changes = owned.find(sectors.start, !owns).unwrap_or(BLOCK_SECTORS);
            (if owns { To::Leaf } else { To::Into }, changes.min(sectors.end) - sectors.start)
        }
    }
}

/// What of a block may be copied, of which the leaf owns that. Where writes are not held back, not what is just being written:
/// half of it could be copied.
pub(super) fn may_be_copied(owned: &SectorSet, being_written: &SectorSet, held_back: bool) -> SectorSet {
    if held_back { owned.clone() } else { owned.minus(being_written) }
}

/// Whether a window may be copied without holding writes back, in bytes: what is left could have to be copied again.
pub(super) const fn may_be_disturbed(copied: u64, window: u64, left: u64, owned_at_first: u64) -> bool {
    copied + window + left <= 2 * owned_at_first
}

/// What the leaf may give up of a block of a window, once P's data and bits are durable and nobody writes there or reads it. What
/// was written since the copy was begun is newer than the copy.
pub(super) fn may_be_given_up(copied: &SectorSet, written_since: &SectorSet) -> SectorSet {
    copied.minus(written_since)
}

/// What the leaf owns, block by block, while it owns less and less.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Left {
    /// Sectors of each block that are left.
    blocks: BTreeMap<BlockIndex, u16>,
    sectors: u64,
    /// Where the next window begins.
    next: BlockIndex,
}

impl Left {
    /// The leaf was found to own so many sectors of the block.
    pub(super) fn add(&mut self, block: BlockIndex, sectors: usize) {
        if let Ok(count) = u16::try_from(sectors)
            && count > 0
        {
            self.blocks.insert(block, count);
            self.sectors += u64::from(count);
        }
    }

    /// It has durably given up so many of them.
    pub(super) fn take(&mut self, block: BlockIndex, sectors: usize) {
        let Some(count) = self.blocks.get_mut(&block) else { return };
        let gone = u16::try_from(sectors).unwrap_or(u16::MAX).min(*count);
        *count -= gone;
        self.sectors -= u64::from(gone);
        if *count == 0 {
            self.blocks.remove(&block);
        }
    }

    /// Bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }

    /// The blocks of the next window, round and round; none: the merge is over.
    pub(super) fn window(&mut self) -> Vec<BlockIndex> {
        if self.blocks.range(self.next..).next().is_none() {
            self.next = BlockIndex(0);
        }
        let (mut window, mut sectors) = (Vec::new(), 0);
        for (&block, &count) in self.blocks.range(self.next..).take(WINDOW_BLOCKS) {
            sectors += usize::from(count);
            if sectors > WINDOW_SECTORS && !window.is_empty() {
                break;
            }
            window.push(block);
        }
        self.next = window.last().map_or(BlockIndex(0), |last| last.next());
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_blockio::sim::Rng;

    #[test]
    fn a_write_is_cut_where_the_leaf_owns_and_does_not() {
        let mut owned = SectorSet::of(8..16);
        owned.insert(4000..4096);
        let known = Known::Sectors(Box::new(owned));
        for (sectors, to, length) in [
            (0..8, To::Into, 8),
            (0..20, To::Into, 8),
            (8..20, To::Leaf, 8),
            (12..13, To::Leaf, 1),
            (16..20, To::Into, 4),
            (16..4096, To::Into, 3984),
            (4000..4096, To::Leaf, 96),
        ] {
            assert_eq!(goes_to(&known, &sectors), (to, length), "{sectors:?}");
        }
        assert_eq!(goes_to(&Known::Everything, &(3..9)), (To::Leaf, 6));
        assert_eq!(goes_to(&Known::Nothing, &(3..9)), (To::Into, 6));
    }

    #[test]
    fn windows_go_round_and_are_no_larger_than_they_may_be() {
        let mut left = Left::default();
        let counts: Vec<(u32, usize)> = vec![(0, 4096), (1, 10), (2, 4080), (3, 20), (9, 1), (10, 0)];
        counts.iter().for_each(|&(block, count)| left.add(BlockIndex(block), count));
        let mut windows = Vec::new();
        for _ in 0..4 {
            windows.push(left.window().iter().map(|block| block.0).collect::<Vec<_>>());
        }
        assert_eq!(windows, [vec![0], vec![1, 2], vec![3, 9], vec![0]]);
        left.take(BlockIndex(0), 4095);
        assert_eq!(left.bytes(), (1 + 10 + 4080 + 20 + 1) * 512);
        assert_eq!(left.window()[0], BlockIndex(1));
        counts.iter().for_each(|&(block, count)| left.take(BlockIndex(block), count));
        assert!(left.window().is_empty() && left.bytes() == 0);
    }

    /// Whatever is written in between, and however little of a window gets through.
    #[test]
    fn a_merge_ends_and_copies_no_more_than_twice_what_there_was() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let mut left = Left::default();
            (0..rng.below(40)).for_each(|block| {
                left.add(
                    BlockIndex(u32::try_from(block).unwrap()),
                    usize::try_from(1 + rng.below(4096)).unwrap(),
                );
            });
            let (owned, mut copied, hostile) = (left.bytes(), 0, rng.coin());
            let mut windows = 0;
            loop {
                let blocks = left.window();
                if blocks.is_empty() {
                    break;
                }
                let sectors: Vec<usize> =
                    blocks.iter().map(|block| usize::from(left.blocks[block])).collect();
                let bytes = sectors.iter().sum::<usize>() as u64 * 512;
                let free = may_be_disturbed(copied, bytes, left.bytes(), owned);
                copied += bytes;
                for (&block, sectors) in blocks.iter().zip(sectors) {
                    let most = sectors as u64;
                    let through = if !free {
                        most
                    } else if hostile {
                        0
                    } else {
                        rng.below(most + 1)
                    };
                    left.take(block, usize::try_from(through).unwrap());
                }
                windows += 1;
                assert!(windows < 1000 && copied <= 2 * owned, "{copied} of {owned}");
            }
        }
    }
}
