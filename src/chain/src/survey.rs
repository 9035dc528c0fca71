//! What there is to do: the blocks of which a layer owns something, cut into batches.
//!
//! Holds 8 bytes for each such block (8 MiB for a full disk of 2 TiB); the sets of sectors are read again, a batch at a time.
//! Used by copies and moves, during which nobody else changes what the layer owns.

use crate::error::Error;
use crate::layer::Layer;
use crate::pool;
use crate::units::{SECTOR, sectors_inside};
use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, GuestOffset, SECTOR_BYTES, SectorSet};
use std::time::{Duration, Instant};

/// How much is moved at once, and how often it is made durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The most bytes in a batch, at least a block.
    pub(crate) batch_bytes: u64,
    /// The most blocks in a batch, whose sets of sectors are in memory.
    pub(crate) batch_blocks: usize,
    /// How long a batch should take: often enough to stop, seldom enough to keep a disk busy.
    pub(crate) batch_time: Duration,
    /// A copy makes a checkpoint after so many bytes, or so much time, whichever comes first.
    pub(crate) checkpoint_bytes: u64,
    pub(crate) checkpoint_time: Duration,
}

impl Pace {
    /// The pace of real disks.
    pub(crate) const NORMAL: Self = Self {
        batch_bytes: 1 << 30,
        batch_blocks: 512,
        batch_time: Duration::from_millis(500),
        checkpoint_bytes: 1 << 30,
        checkpoint_time: Duration::from_secs(1),
    };
}

/// A block with something to move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) block: BlockIndex,
    /// Sectors to copy; 0 where what is owned lies past the end of the disk.
    pub(crate) sectors: u32,
}

/// The work that is left, in the order of the disk.
#[derive(Debug)]
pub(crate) struct Survey {
    work: Vec<Work>,
    done: usize,
    pace: Pace,
    /// Bytes in the next batch.
    limit: u64,
    /// The last batch was as large as it could be, so how long it took says something.
    free: bool,
    begun: Instant,
}

impl Survey {
    /// Of what `source` owns at or after `from`.
    pub(crate) fn of(source: &dyn Layer, from: GuestOffset, pace: Pace) -> Result<Self, Error> {
        let first = from.split().0;
        let blocks: Vec<BlockIndex> =
            std::iter::successors(source.next_block(first), |block| source.next_block(block.next()))
                .collect();
        let counted = pool::map(&mut [(); pool::IN_FLIGHT], &blocks, |(), &block| {
            let owned = source.ownership(block)?.to_set();
            let sectors = u32::try_from(to_copy(source, block, from, &owned).count()).unwrap_or(u32::MAX);
            Ok((!owned.is_empty()).then_some(Work { block, sectors }))
        })?;
        Ok(Self::new(counted.into_iter().flatten().collect(), pace))
    }

    fn new(work: Vec<Work>, pace: Pace) -> Self {
        let limit = (pace.batch_bytes / 32).max(BLOCK_BYTES);
        Self { work, done: 0, pace, limit, free: false, begun: Instant::now() }
    }

    /// Bytes to copy, all in all.
    pub(crate) fn total(&self) -> Bytes {
        bytes_of(&self.work)
    }

    /// The next batch, at least one block, if need be more than `allowance`. Sized by how long the one before it took, unless
    /// that was kept small.
    pub(crate) fn next_batch(&mut self, allowance: Bytes) -> Option<&[Work]> {
        if self.free {
            self.limit = adapted(self.pace, self.limit, self.begun.elapsed());
        }
        self.begun = Instant::now();
        self.free = allowance.0 >= self.limit;
        let limit = self.limit.min(allowance.0);
        let left = &self.work[self.done..];
        let mut bytes = 0;
        let fitting = left.iter().take(self.pace.batch_blocks).take_while(|work| {
            bytes += u64::from(work.sectors) * SECTOR_BYTES;
            bytes <= limit
        });
        let batch = &left[..fitting.count().clamp(1.min(left.len()), left.len())];
        self.done += batch.len();
        (!batch.is_empty()).then_some(batch)
    }
}

/// Twice as much after a quick batch, half as much after a slow one, never less than a block.
fn adapted(pace: Pace, limit: u64, took: Duration) -> u64 {
    if took < pace.batch_time / 2 {
        (limit * 2).min(pace.batch_bytes)
    } else if took > pace.batch_time * 2 {
        (limit / 2).max(BLOCK_BYTES)
    } else {
        limit
    }
}

/// Bytes to copy in these blocks.
pub(crate) fn bytes_of(work: &[Work]) -> Bytes {
    Bytes(work.iter().map(|work| u64::from(work.sectors) * SECTOR_BYTES).sum())
}

/// Which of the owned sectors of the block are to be copied: those at or after `from` (the rest of a sector that it cuts
/// included), and before the end of the disk.
pub(crate) fn to_copy(
    layer: &dyn Layer,
    block: BlockIndex,
    from: GuestOffset,
    owned: &SectorSet,
) -> SectorSet {
    let mut set = owned.clone();
    // D6: nobody sees what lies past the layer's own end.
    set.remove(sectors_inside(layer.virtual_size(), block)..BLOCK_SECTORS);
    let before = from.0.saturating_sub(block.start().0).min(BLOCK_BYTES);
    set.remove(0..crate::units::len(before) / SECTOR);
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace::NORMAL;

    #[test]
    fn batches_are_bounded_in_bytes_and_blocks_and_leave_nothing_out() {
        for sectors in [vec![4096; 100], vec![1; 2000], vec![0, 4096, 0], vec![]] {
            let work =
                sectors.iter().zip(0..).map(|(&sectors, block)| Work { block: BlockIndex(block), sectors });
            let mut survey = Survey::new(work.collect(), PACE);
            let mut seen = Vec::new();
            while let Some(batch) = survey.next_batch(Bytes(u64::MAX)) {
                assert!(bytes_of(batch).0 <= PACE.batch_bytes && batch.len() <= PACE.batch_blocks);
                seen.extend(batch.iter().map(|work| work.block.index()));
            }
            assert_eq!(seen, (0..sectors.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_allowance_keeps_batches_small_and_leaves_the_limit_alone() {
        let work = (0..100).map(|block| Work { block: BlockIndex(block), sectors: 4096 });
        let mut survey = Survey::new(work.collect(), PACE);
        let limit = survey.limit;
        for allowance in [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES - 1] {
            let batch = survey.next_batch(Bytes(allowance)).unwrap();
            assert_eq!(batch.len() as u64, (allowance / BLOCK_BYTES).max(1));
            assert_eq!(survey.limit, limit);
        }
        assert_eq!(bytes_of(survey.next_batch(Bytes(u64::MAX)).unwrap()).0, limit);
    }

    #[test]
    fn a_slow_storage_gets_small_batches_down_to_one_block() {
        let after = |limit, took| (0..20).fold(limit, |limit, _| adapted(PACE, limit, took));
        assert_eq!(after(PACE.batch_bytes, Duration::from_secs(60)), BLOCK_BYTES);
        assert_eq!(after(BLOCK_BYTES, Duration::ZERO), PACE.batch_bytes);
    }
}
