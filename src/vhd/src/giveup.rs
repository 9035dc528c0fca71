//! Giving sectors up (D2): the batmap is clear, then the bits and the block-table entries, then the space, each
//! durable before the next. A batch of any size takes the same few barriers.
//!
//! A block of which nothing is left loses its entry alone. Its bits stay in a slot that nothing names: the next block there
//! brings a bitmap of its own, durable before its entry (D1), and gets the slot only when the old entry is durably gone.

use crate::dirty::{Dirty, UnderWay};
use crate::error::Result;
use crate::footer::DiskKind;
use crate::image::Image;
use crate::layout::{SLOT_SECTORS, Slot};
use catena_chain::{Plan, Step};
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;

/// What a storage can take back at least.
const PAGE: u64 = 4096;

/// What is left of one block.
#[derive(Debug)]
struct Change {
    block: BlockIndex,
    slot: Slot,
    before: SectorSet,
    after: SectorSet,
    /// It loses its place.
    empties: bool,
}

/// What becomes of blocks of which nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// They lose their place.
    LoseTheirPlace,
    /// Only those that are given up as a whole: in the others a write may be under way, of which nobody has told yet.
    LoseItIfWhole,
}

impl Image {
    /// Leaves the space of what is given up from now on with the container, where it can be used again: for an image that is
    /// soon removed as a whole, which gives everything back at once and much faster than piece by piece.
    ///
    /// # Errors
    /// `ReadOnly`.
    pub fn keep_space(&mut self) -> Result<()> {
        self.writer()?.returns_space = false;
        Ok(())
    }

    /// The sectors are durably unowned when this returns. If it fails the image refuses further changes: which of
    /// them are still owned is then unknown, and a write to one must not rely on either.
    pub(crate) fn give_up_sectors(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<()> {
        for (block, _) in sectors {
            self.check_block(*block)?;
        }
        self.commit_pointers()?;
        let plan = self.begin_give_up_plan(sectors, Emptied::LoseTheirPlace)?;
        let done = self.run(&plan, "giving sectors up");
        self.end_plan(done.is_ok());
        done
    }

    /// Plans to give the sectors up, of which nothing is noted. The plan of nothing is empty; it too has to be ended.
    pub(crate) fn begin_give_up_plan(
        &mut self,
        sectors: &[(BlockIndex, SectorSet)],
        emptied: Emptied,
    ) -> Result<Plan> {
        self.nothing_under_way()?;
        let changes = self.changes(sectors, emptied)?;
        let mut plan = Plan::default();
        if changes.is_empty() {
            self.start(UnderWay::Nothing)?;
            return Ok(plan);
        }
        self.begin_change(&mut plan)?;
        if !plan.is_empty() {
            plan.push(Step::Barrier);
        }
        let (mut shrunk, mut emptied) = (Vec::new(), Vec::new());
        for change in &changes {
            if change.empties {
                self.bat.set(change.block, None);
                self.batmap.mark(change.block, false);
                self.bitmaps().forget(change.block);
                emptied.push(change.slot);
            } else {
                plan.write(change.slot.bitmap_at(), change.after.to_bitmap());
                let dirty = || Dirty::stored(change.slot, change.before.clone());
                self.writer()?.dirty.entry(change.block).or_insert_with(dirty);
                shrunk.push((change.block, change.after.clone()));
            }
        }
        self.bat.take_dirty(&mut plan);
        // D2: nothing durable names the slots of the emptied from here on, so they may be punched and used again.
        plan.push(Step::Barrier);
        self.plan_return(&changes, &mut plan)?;
        self.start(UnderWay::GiveUp { shrunk, emptied })?;
        Ok(plan)
    }

    fn changes(&mut self, sectors: &[(BlockIndex, SectorSet)], emptied: Emptied) -> Result<Vec<Change>> {
        let mut wanted: BTreeMap<BlockIndex, SectorSet> = BTreeMap::new();
        for (block, set) in sectors {
            let all = wanted.entry(*block).or_default();
            *all = all.union(set);
        }
        let mut changes = Vec::new();
        for (block, set) in wanted {
            // A fresh block has nothing stored that could be given up.
            let Some(slot) = self.bat.get(block) else { continue };
            let (before, noted) = match self.dirty(block) {
                Some(dirty) => (dirty.stored.clone(), !dirty.noted.is_empty()),
                None => (self.stored_bits(block, slot)?, false),
            };
            let after = before.minus(&set);
            let whole = SectorSet::of(
                0..usize::try_from(self.block_len(block) / SECTOR_BYTES).unwrap_or(BLOCK_SECTORS),
            );
            let may = emptied == Emptied::LoseTheirPlace || whole.minus(&set).is_empty();
            let empties = after.is_empty() && !noted && may;
            if after != before || empties {
                changes.push(Change { block, slot, before, after, empties });
            }
        }
        Ok(changes)
    }

    /// Plans to give the space back, after every barrier. What cannot be given back is free to be used again all the same.
    fn plan_return(&mut self, changes: &[Change], plan: &mut Plan) -> Result<()> {
        if self.writer()?.returns_space {
            for change in changes.iter().filter(|change| change.empties) {
                plan.push(Step::Release { at: change.slot.bitmap_at(), len: SLOT_BYTES });
            }
        }
        for change in changes.iter().filter(|change| !change.empties) {
            for run in change.before.minus(&change.after).runs() {
                let data = change.slot.data_at().0;
                let at = FileOffset(data + run.start as u64 * SECTOR_BYTES);
                let end = data + run.end as u64 * SECTOR_BYTES;
                let (page, end_page) = (at.0.next_multiple_of(PAGE), end / PAGE * PAGE);
                if self.footer.kind == DiskKind::Dynamic {
                    // Sectors without a bit must read as zero in a disk without parent: other programs look at the data alone.
                    plan.push(Step::Punch { at, len: Bytes(end - at.0) });
                } else if self.writer()?.returns_space && page < end_page {
                    plan.push(Step::Release { at: FileOffset(page), len: Bytes(end_page - page) });
                }
            }
        }
        Ok(())
    }
}

/// Bytes of a slot.
pub(crate) const SLOT_BYTES: Bytes = Bytes(SLOT_SECTORS * SECTOR_BYTES);
