//! Storing what was noted: a plan is made, carried out by whoever likes, and ended.
//!
//! The order is D1's. A block that is new gets its data and its whole bitmap, then a barrier, then its entry in the block
//! table. A sector that is new in an old block gets its data, then a barrier, then its bit. Both share the barrier. One plan is
//! under way at a time; what is noted meanwhile is for the next.

use crate::dirty::UnderWay;
use crate::error::{Error, Result};
use crate::image::{Image, Session};
use crate::space::{End, Space};
use catena_chain::{Plan, Step};
use catena_types::{BlockIndex, FileOffset};

impl Image {
    /// A barrier, then the pointers to everything noted so far. After an error the image takes no further change.
    pub(crate) fn commit_pointers(&mut self) -> Result<()> {
        let Some(plan) = self.begin_commit_plan()? else { return Ok(()) };
        let done = self.run(&plan, "storing what was written");
        self.end_plan(done.is_ok());
        done
    }

    /// Commits and makes the pointers durable too.
    pub(crate) fn flush_all(&mut self) -> Result<()> {
        self.commit_pointers()?;
        self.barrier()
    }

    /// Refuses to begin anything while a plan is being carried out.
    pub(crate) fn nothing_under_way(&mut self) -> Result<()> {
        match self.writer()?.under_way {
            None => Ok(()),
            Some(_) => Err(Error::OutOfRange("a plan for the image is being carried out".to_owned())),
        }
    }

    /// Refuses what may only be done with everything on disk.
    pub(crate) fn all_is_stored(&mut self) -> Result<()> {
        self.nothing_under_way()?;
        if self.writer()?.dirty.values().any(|dirty| !dirty.noted.is_empty()) {
            return Err(Error::OutOfRange("what was written is not committed yet".to_owned()));
        }
        Ok(())
    }

    /// Puts everything that is noted on its way. The plan ends with the pointers; the barrier that makes them durable is the
    /// caller's. `None` if nothing is noted.
    pub(crate) fn begin_commit_plan(&mut self) -> Result<Option<Plan>> {
        self.nothing_under_way()?;
        let mut plan = Plan::default();
        if self.writer()?.dirty.values().all(|dirty| dirty.noted.is_empty()) {
            if self.writer()?.footer_next.is_none() {
                return Ok(None);
            }
            self.move_footer(&mut plan)?;
            plan.push(Step::Barrier);
            self.start(UnderWay::Commit)?;
            return Ok(Some(plan));
        }
        for dirty in self.writer()?.dirty.values().filter(|dirty| dirty.fresh && !dirty.noted.is_empty()) {
            // Nothing on disk points at this bitmap yet, and what is noted from here on is not in it.
            plan.write(dirty.slot.bitmap_at(), dirty.noted.to_bitmap());
        }
        self.begin_change(&mut plan)?;
        // D1: data and new bitmaps before anything points at them. D4: the batmap is clear before the first bit changes.
        plan.push(Step::Barrier);
        let writer = self.writer()?;
        let mut linked = Vec::new();
        for (&block, dirty) in writer.dirty.iter_mut().filter(|(_, dirty)| !dirty.noted.is_empty()) {
            let is_new = dirty.fresh;
            // D3: the image's content and the bits whose data are behind the barrier.
            let bits = dirty.depart();
            if is_new {
                linked.push((block, dirty.slot));
            } else {
                plan.write(dirty.slot.bitmap_at(), bits.to_bitmap());
            }
        }
        linked.into_iter().for_each(|(block, slot)| self.bat.set(block, Some(slot)));
        self.bat.take_dirty(&mut plan);
        self.start(UnderWay::Commit)?;
        Ok(Some(plan))
    }

    /// Plans what must be durable before the first change of a session: a clear batmap (D4), and a footer at the end. A barrier
    /// must follow before a pointer changes.
    pub(crate) fn begin_change(&mut self, plan: &mut Plan) -> Result<()> {
        self.move_footer(plan)?;
        if self.writer()?.session == Session::Clean {
            if self.writer()?.footer_due && !self.writer()?.space.end.is_pinned() {
                // Before the batmap: in a file of XenServer's tools the footer may lie inside the last sector of the batmap.
                self.plan_footer(plan)?;
            }
            self.batmap.clear_on_disk(plan);
            self.writer()?.session = Session::Changing;
        }
        Ok(())
    }

    /// The same, durably done.
    pub(crate) fn begin_change_now(&mut self) -> Result<()> {
        let mut plan = Plan::default();
        self.begin_change(&mut plan)?;
        if !plan.is_empty() {
            plan.push(Step::Barrier);
            self.run(&plan, "clearing the batmap")?;
            self.footer_has_moved();
        }
        Ok(())
    }

    /// Remembers what is being carried out. Gives its number.
    pub(crate) fn start(&mut self, what: UnderWay) -> Result<u64> {
        let writer = self.writer()?;
        writer.plans += 1;
        writer.under_way = Some((writer.plans, what));
        Ok(writer.plans)
    }

    /// Takes up what a plan has done.
    pub(crate) fn end_plan(&mut self, succeeded: bool) {
        let Some(writer) = &mut self.writer else { return };
        let ended = writer.under_way.take();
        if !succeeded {
            writer.session = Session::Failed;
            return;
        }
        // Both others have a barrier.
        writer.frees_are_durable |= !matches!(ended, Some((_, UnderWay::Nothing)));
        self.footer_has_moved();
        let Some(writer) = &mut self.writer else { return };
        if let Some((_, UnderWay::GiveUp { shrunk, emptied })) = ended {
            for (block, left) in shrunk {
                writer.dirty.entry(block).and_modify(|dirty| dirty.stored = left);
            }
            // D2: nothing durable names these slots any more.
            emptied.into_iter().for_each(|slot| writer.space.release(slot));
        }
        self.settle();
    }

    /// Lets go of blocks of which everything is on disk now.
    fn settle(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let mut bitmaps = self.bitmaps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writer.dirty.retain(|&block, dirty| {
            dirty.arrive();
            let stays = dirty.fresh || !dirty.noted.is_empty();
            if !stays {
                self.batmap.mark(block, dirty.stored.is_full());
                bitmaps.put(block, dirty.stored.clone());
            }
            stays
        });
    }

    /// Plans to end the changes so far, everything being durable: the batmap on disk, a file cut after its last block.
    pub(crate) fn plan_seal(&mut self) -> Result<Plan> {
        self.nothing_under_way()?;
        let mut plan = Plan::default();
        self.release_unwritten()?;
        if self.writer()?.session == Session::Clean {
            return Ok(plan);
        }
        // D4: every block that is marked is durably full by now, so any part of this write is true.
        self.batmap.write_back(&mut plan);
        self.plan_cut(&mut plan)?;
        plan.push(Step::Barrier);
        self.writer()?.session = Session::Clean;
        Ok(plan)
    }

    /// Ends the changes so far: everything durable, then the batmap on disk, a file cut after its last block. The image
    /// stays open, and the next change begins anew. Done when a leaf becomes a base copy.
    ///
    /// # Errors
    /// Those of the storage. The image is sound in any case; at worst its batmap stays clear.
    pub fn seal(&mut self) -> Result<()> {
        self.flush_all()?;
        let plan = self.plan_seal()?;
        self.run(&plan, "sealing the image")
    }

    /// Takes back the places of blocks to which nothing was written, after a commit.
    pub(crate) fn release_unwritten(&mut self) -> Result<()> {
        let writer = self.writer()?;
        let unused: Vec<(BlockIndex, _)> = writer
            .dirty
            .iter()
            .filter(|(_, dirty)| dirty.fresh)
            .map(|(&block, dirty)| (block, dirty.slot))
            .collect();
        for (block, slot) in unused {
            writer.dirty.remove(&block);
            writer.space.release(slot);
        }
        Ok(())
    }

    /// Plans to give back what a file has after its last block, unless its space is to be kept. The footer is durable at its
    /// new place before the file is cut.
    pub(crate) fn plan_cut(&mut self, plan: &mut Plan) -> Result<()> {
        let last = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).max();
        self.release_unwritten()?;
        let writer = self.writer()?;
        if !writer.returns_space {
            return Ok(());
        }
        let target = writer.space.trim(last);
        if matches!(writer.space.end, End::Moving(at) if at > target) {
            let size = Space::with_footer(target);
            writer.space.end = End::Moving(target);
            writer.soiled = FileOffset(writer.soiled.0.min(size.0));
            writer.footer_due = false;
            self.plan_footer(plan)?;
            plan.push(Step::Barrier);
            plan.push(Step::SetSize(size));
        }
        Ok(())
    }

    /// Seals and lets go. Dropping an image instead is safe too: its batmap stays clear.
    ///
    /// # Errors
    /// As for [`seal`](Self::seal).
    pub fn close(mut self) -> Result<()> {
        if self.writer.is_some() { self.seal() } else { Ok(()) }
    }
}
