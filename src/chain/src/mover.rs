//! Moves the data of a batch of blocks from one layer into another: the engine under copies and moves.
//!
//! A batch has three phases. The calling thread asks the target for places; several threads move the data, which is all
//! the I/O that there is much of; the calling thread says what was written. Nothing here makes anything durable: that is
//! the caller's part, with the batch as its unit (D1).
//!
//! Fast ways: a block that is owned whole is cloned where the storage can share; neighbouring runs are read in one request,
//! since some bytes too many cost less than another request; in a block of which the target owns nothing, small gaps are
//! filled with zeros so that writes are joined too. In all other blocks only owned sectors are written. What goes to new
//! blocks is collected in memory and sent at the end of a batch: the file system finds room for small pieces together, and a
//! disk reads much and then writes much faster than both at once.

use crate::error::Error;
use crate::layer::{Extent, Layer, LayerMut, Ownership};
use crate::pool::{self, IN_FLIGHT};
use crate::survey::{Work, to_copy};
use crate::units::{BLOCK, PAGE, PAGE_SECTORS, SECTOR, sector_bytes, sectors_inside};
use catena_blockio::{AlignedBuf, Container, collecting};
use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, GuestOffset, SectorSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sectors that are read though not wanted, to save a request (64 KiB).
const READ_GAP: usize = 128;
/// Sectors that are written as zeros, to save a request (16 KiB).
const WRITE_GAP: usize = 32;
/// Bytes under way at once: two blocks are read while two are written, which keeps a disk busy. More only fills its queue, and
/// with it the time that a guest's request waits there; what is scattered has as many requests as there are threads.
const BYTES_IN_FLIGHT: usize = 4 * BLOCK;

/// Buffers, and what was learnt about the two containers.
pub(crate) struct Mover {
    buffers: Vec<AlignedBuf>,
    can_clone: AtomicBool,
}

/// Where the sectors of one block go.
struct Task {
    block: BlockIndex,
    /// All that the source owns there; `sectors` are those to copy.
    owned: SectorSet,
    sectors: SectorSet,
    source: Extent,
    target: FileOffset,
    /// The target owns nothing in this block yet.
    fresh: bool,
    /// Sectors of the block that lie inside the target's disk.
    inside: usize,
}

impl Mover {
    pub(crate) fn new() -> Self {
        let buffers = (0..IN_FLIGHT).map(|_| AlignedBuf::zeroed(BLOCK)).collect();
        Self { buffers, can_clone: AtomicBool::new(true) }
    }

    /// Copies what `source` owns of these blocks at or after `from`. Returns what it owned in each of them.
    pub(crate) fn run(
        &mut self,
        source: &dyn Layer,
        target: &mut dyn LayerMut,
        work: &[Work],
        from: GuestOffset,
    ) -> Result<Vec<(BlockIndex, SectorSet)>, Error> {
        let mut tasks = plan(source, target, work, from)?;
        target.expect(tasks.iter().filter(|task| task.fresh && !task.sectors.is_empty()).count())?;
        for task in tasks.iter_mut().filter(|task| !task.sectors.is_empty()) {
            task.target = target.place(task.block)?;
        }
        let (from_container, to_container) = (source.container(), target.container());
        let can_clone = &self.can_clone;
        let threads = threads_for(&tasks);
        // Blocks that are shared leave nothing to be collected.
        let shared = can_clone.load(Ordering::Relaxed) && bytes_of_each(&tasks) == BLOCK;
        collected(to_container, are_new(&tasks) && !shared, || {
            pool::map(&mut self.buffers[..threads], &tasks, |buffer, task| {
                if task.sectors.is_empty() || task.clone(from_container, to_container, can_clone)? {
                    return Ok(());
                }
                task.read(from_container, buffer)?;
                task.write(to_container, buffer)
            })
        })?;
        for task in tasks.iter().filter(|task| !task.sectors.is_empty()) {
            target.wrote(task.block, &task.sectors)?;
        }
        Ok(tasks.into_iter().map(|task| (task.block, task.owned)).collect())
    }
}

/// As many threads as keep [`BYTES_IN_FLIGHT`] under way, two at least.
fn threads_for(tasks: &[Task]) -> usize {
    (BYTES_IN_FLIGHT / bytes_of_each(tasks).max(1)).clamp(2, IN_FLIGHT)
}

/// Whether most of them go to blocks that the target does not have yet.
fn are_new(tasks: &[Task]) -> bool {
    tasks.iter().filter(|task| task.fresh).count() > tasks.len() / 2
}

/// Bytes to copy of a block, on average.
fn bytes_of_each(tasks: &[Task]) -> usize {
    let sectors: usize = tasks.iter().map(|task| task.sectors.count()).sum();
    sectors * SECTOR / tasks.len().max(1)
}

/// Does `work`, with what it writes collected and sent if that is asked for: the time of a batch holds all of its I/O.
fn collected<R>(
    to: &dyn Container,
    wanted: bool,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    if !wanted {
        return work();
    }
    let context = || Error::io("writing to the target of a merge");
    let result = collecting(to, work).map_err(context())??;
    to.flush().map_err(context())?;
    Ok(result)
}

/// Reads what both sides say about the blocks.
fn plan(
    source: &dyn Layer,
    target: &dyn Layer,
    work: &[Work],
    from: GuestOffset,
) -> Result<Vec<Task>, Error> {
    pool::map(&mut [(); IN_FLIGHT], work, |(), &Work { block, .. }| {
        let owned = source.ownership(block)?.to_set();
        let Some(extent) = source.locate(block) else {
            return Err(Error::Damaged { block, problem: "sectors are owned and have no place".to_owned() });
        };
        Ok(Task {
            block,
            sectors: to_copy(source, block, from, &owned),
            owned,
            source: extent,
            target: FileOffset(0),
            fresh: target.ownership(block)? == Ownership::Nothing,
            inside: sectors_inside(target.virtual_size(), block),
        })
    })
}

impl Task {
    /// Lets the target share the source's storage of a whole block, where that can be.
    fn clone(&self, from: &dyn Container, to: &dyn Container, can: &AtomicBool) -> Result<bool, Error> {
        let aligned = self.source.at.0.is_multiple_of(PAGE) && self.target.0.is_multiple_of(PAGE);
        let whole = self.sectors.is_full() && u64::from(self.source.len) == BLOCK_BYTES;
        if !aligned || !whole || !can.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let done = to
            .clone_range(self.target, from, self.source.at, Bytes(BLOCK_BYTES))
            .map_err(Error::io("sharing a block between images"))?;
        can.fetch_and(done, Ordering::Relaxed);
        Ok(done)
    }

    /// Reads what is to be copied to its place in `buffer`, a block in size.
    fn read(&self, from: &dyn Container, buffer: &mut [u8]) -> Result<(), Error> {
        let present = self.source.len as usize / SECTOR;
        for span in joined(&self.sectors, READ_GAP, present.min(BLOCK_SECTORS)) {
            let bytes = sector_bytes(&span);
            let at = FileOffset(self.source.at.0 + bytes.start as u64);
            from.read_at(&mut buffer[bytes], at).map_err(Error::io("reading from the source of a merge"))?;
        }
        // What the container does not have reads as zero.
        buffer[(present * SECTOR).min(BLOCK)..].fill(0);
        Ok(())
    }

    /// Writes it.
    fn write(&self, to: &dyn Container, buffer: &mut [u8]) -> Result<(), Error> {
        let spans: Vec<Range<usize>> = if self.fresh {
            joined(&self.sectors, WRITE_GAP, self.inside)
        } else {
            self.sectors.runs().collect()
        };
        let mut gaps = SectorSet::empty();
        for span in &spans {
            gaps.insert(span.clone());
        }
        for gap in gaps.minus(&self.sectors).runs() {
            buffer[sector_bytes(&gap)].fill(0);
        }
        for span in spans {
            let bytes = sector_bytes(&span);
            let at = FileOffset(self.target.0 + bytes.start as u64);
            to.write_at(&buffer[bytes], at).map_err(Error::io("writing to the target of a merge"))?;
        }
        Ok(())
    }
}

/// The runs of the set below `end`, grown to whole pages and joined where at most `gap` sectors lie between them.
fn joined(set: &SectorSet, gap: usize, end: usize) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for run in set.runs().take_while(|run| run.start < end) {
        let start = run.start / PAGE_SECTORS * PAGE_SECTORS;
        let stop = run.end.next_multiple_of(PAGE_SECTORS).min(end);
        match spans.last_mut() {
            Some(last) if start <= last.end + gap => last.end = stop,
            _ => spans.push(start..stop),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn joined_spans_cover_the_set_and_little_more(
            runs in prop::collection::vec((0usize..4096, 1usize..40), 0..60), gap in 0usize..200, end in 0usize..=4096,
        ) {
            let mut set = SectorSet::empty();
            for (start, length) in runs {
                set.insert(start..(start + length).min(BLOCK_SECTORS));
            }
            let spans = joined(&set, gap, end);
            let mut covered = SectorSet::empty();
            for span in &spans {
                prop_assert!(span.start < span.end && span.end <= end && span.start % PAGE_SECTORS == 0);
                covered.insert(span.clone());
            }
            set.remove(end..BLOCK_SECTORS);
            prop_assert!(set.minus(&covered).is_empty());
            for pair in spans.windows(2) {
                prop_assert!(pair[1].start > pair[0].end + gap);
            }
            for gap_run in covered.minus(&set).runs() {
                prop_assert!(gap_run.len() < gap + 2 * PAGE_SECTORS);
            }
        }
    }
}
