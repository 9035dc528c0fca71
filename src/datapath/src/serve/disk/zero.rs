//! Trimming and zeroing: what can be given up and what must be written (D10).
//!
//! A sector that the leaf does not own reads as what is below. So sectors are given up only where nothing below owns them, and
//! then read as zero; elsewhere a trim does nothing, and zeroes are written. What is below does not change, so what is known of it
//! is durable. While a leaf merge is open only the lower of the two written images gives up, what the leaf does not own: of the
//! leaf's sectors, a copy may be on its way there. A long range is done window by window.

use super::Disk;
use super::moving::Moving;
use super::task::{Beneath, Edge, Kind, Poll, Survey, Task, by_block, index};
use super::write::{Piece, ZEROS, edges};
use crate::serve::work::Trouble;
use catena_blockio::{AlignedBuf, Engine};
use catena_chain::Slot;
use catena_types::{BLOCK_BYTES, BlockIndex, SECTOR_BYTES, SectorSet};
use std::ops::Range;

/// Bytes of a window.
const WINDOW: u64 = 16 * BLOCK_BYTES;
const SECTOR: usize = 512;

/// What is to be done in a window.
#[derive(Default)]
struct Found {
    give_up: Vec<(BlockIndex, SectorSet)>,
    give_up_of: Option<Slot>,
    zeros: Vec<Piece>,
    /// A sector that is zeroed in part is owned by somebody.
    edge_owned: bool,
}

impl Task {
    /// Makes the edges of a zeroing: the sectors that it covers in part.
    pub(super) fn lay_out_zeroes(&mut self) {
        let first = self.range.start / SECTOR_BYTES;
        let found: Vec<Edge> = edges(&self.range, |sector| if sector == first { 0 } else { SECTOR });
        if found.is_empty() {
            return;
        }
        self.buf = Some(AlignedBuf::zeroed(2 * SECTOR));
        for edge in found {
            let bytes = edge.sector * SECTOR_BYTES..(edge.sector + 1) * SECTOR_BYTES;
            for (block, sectors) in by_block(bytes) {
                self.pieces.push_back(Piece::new(block, sectors, Some(edge.to)));
            }
            self.edges.push_back(edge);
        }
    }

    /// The next window, in bytes; `None` at the end.
    fn window(&self) -> Option<Range<u64>> {
        let end = (self.cursor / BLOCK_BYTES * BLOCK_BYTES + WINDOW).min(self.range.end);
        (self.cursor < end).then_some(self.cursor..end)
    }
}

impl Disk {
    /// Finds out whether zeroing takes no writing of data, and starts over if so.
    pub(super) fn check_fast(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        while let Some(window) = task.window() {
            let found = match self.look_at_window(index, task, &window, engine) {
                Ok(found) => found,
                Err(poll) => return poll,
            };
            if found.edge_owned || !found.zeros.is_empty() {
                return Poll::Failed(Trouble::NotSupported);
            }
            task.cursor = window.end;
        }
        task.cursor = task.range.start;
        Poll::Ready
    }

    /// Finds out what is to be done in the next window; `Ready` with nothing to do at the end of the range.
    pub(super) fn plan_window(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        let Some(window) = task.window() else { return Poll::Ready };
        match self.look_at_window(index, task, &window, engine) {
            Ok(found) => {
                (task.give_up, task.give_up_of) = (found.give_up, found.give_up_of);
                task.pieces.extend(found.zeros);
                task.cursor = window.end;
                Poll::Ready
            }
            Err(poll) => poll,
        }
    }

    /// Whether all windows have been done.
    pub(super) const fn windows_are_over(task: &Task) -> bool {
        task.cursor >= task.range.end
    }

    /// The image whose sectors may be given up: the lowest of those that are written.
    fn gives_up(&self) -> Option<Slot> {
        self.writes_into().or(self.layers.leaf_slot())
    }

    /// Whether that image is the one, and nothing is being copied from it.
    pub(super) fn may_give_up(&self, slot: Slot) -> bool {
        self.gives_up() == Some(slot) && !self.moving.as_ref().is_some_and(Moving::is_leaving)
    }

    fn look_at_window(
        &mut self,
        index: usize,
        task: &mut Task,
        window: &Range<u64>,
        engine: &mut dyn Engine,
    ) -> Result<Found, Poll> {
        let mut top = task.survey.take().unwrap_or_else(|| Survey::of(window.clone()));
        let mut beneath = task.beneath.take().unwrap_or_else(|| Beneath::of(window.clone()));
        let Some(lowest) = self.gives_up() else { return Err(Poll::Failed(Trouble::ReadOnly)) };
        let mut poll = self.survey(index, task, &mut top, engine);
        if poll == Poll::Ready {
            poll = self.survey_beneath(index, task, lowest, &mut beneath, engine);
        }
        if poll != Poll::Ready {
            (task.survey, task.beneath) = (Some(top), Some(beneath));
            return Err(poll);
        }
        // A window that is dropped may still be copying from the leaf what it would give up: on a device that would bring what others
        // have left there into the image below.
        let keeps = self.moving.as_ref().is_some_and(Moving::is_leaving);
        let mut found = Found { give_up_of: Some(lowest), ..Found::default() };
        for (block, touched) in by_block(window.clone()) {
            let owned = top.owned_by(block, |owner| owner.is_some());
            let by_lowest = top.owned_by(block, |owner| owner == Some(lowest));
            let by_others = beneath.found.get(&block).cloned().unwrap_or_default();
            let inner = inner(block, &task.range, &touched);
            found.edge_owned |= !owned.minus(&inner).is_empty();
            let own = if keeps { SectorSet::empty() } else { by_lowest.minus(&by_others) };
            found.add(task.kind, block, &inner, &owned, &own);
        }
        Ok(found)
    }
}

impl Found {
    /// `own`: what the image that gives up owns, none above it and none below.
    fn add(&mut self, kind: Kind, block: BlockIndex, inner: &SectorSet, owned: &SectorSet, own: &SectorSet) {
        let keep = matches!(kind, Kind::Zeroes { no_hole: true });
        let give_up = if keep { SectorSet::empty() } else { inner.intersection(own) };
        if matches!(kind, Kind::Zeroes { .. }) {
            let zeros = if keep { inner.clone() } else { inner.intersection(owned).minus(&give_up) };
            for run in zeros.runs() {
                let starts = run.clone().step_by(ZEROS);
                let piece = |start: usize| Piece::new(block, start..run.end.min(start + ZEROS), None);
                self.zeros.extend(starts.map(piece));
            }
        }
        if !give_up.is_empty() {
            self.give_up.push((block, give_up));
        }
    }
}

/// The sectors of the block that the range covers whole, of those that it touches.
fn inner(block: BlockIndex, range: &Range<u64>, touched: &Range<usize>) -> SectorSet {
    let start = range.start.saturating_sub(block.start().0).div_ceil(SECTOR_BYTES);
    let end = (range.end - block.start().0).min(BLOCK_BYTES) / SECTOR_BYTES;
    let whole = index(start).max(touched.start)..index(end).min(touched.end);
    if whole.is_empty() { SectorSet::empty() } else { SectorSet::of(whole) }
}
