//! Writing: a place for a block, and the note that something was written there.
//!
//! A file grows by moving its footer ahead. The new footer is written before anything is written past the old one: killed at any
//! instant, the writer leaves a file that ends with a footer. A footer always follows a whole slot, where the gap is, so one
//! that is written late lies over nothing.

use crate::dirty::Dirty;
use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::image::Image;
use crate::layout::Slot;
use crate::space::End;
use catena_chain::{Plan, Step};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SectorSet};

impl Image {
    /// The slot of the block, a new one if it has none; then the plan says what is to be done before it is written to. A file
    /// that must grow makes room for `stride` blocks.
    pub(crate) fn place_block(&mut self, block: BlockIndex, stride: usize) -> Result<(Slot, Plan)> {
        self.check_block(block)?;
        self.writer()?;
        if let Some(slot) = self.slot(block) {
            // Whoever asks again has waited until what he was told first was done.
            self.footer_stands(block)?;
            return Ok((slot, Plan::default()));
        }
        let (slot, first) = self.allocate(stride)?;
        let writer = self.writer()?;
        let told = writer.footer_due && !writer.space.end.is_pinned();
        let footer_at = told.then(|| writer.space.end.footer_at());
        writer.dirty.insert(block, Dirty { footer_at, ..Dirty::fresh(slot) });
        Ok((slot, first))
    }

    /// The same, ready to be written to when this returns. If it fails nothing is taken.
    pub(crate) fn place_now(&mut self, block: BlockIndex) -> Result<FileOffset> {
        let (slot, first) = self.place_block(block, 1)?;
        if !first.is_empty() {
            let done = first.run(&*self.container).map_err(Error::io("making room for a block"));
            if let Err(error) = done {
                self.unplace_block(block)?;
                return Err(error);
            }
            self.writer()?.frees_are_durable |= first.steps().contains(&Step::Barrier);
            self.footer_stands(block)?;
        }
        Ok(slot.data_at())
    }

    /// Takes a place back at which nothing was written.
    pub(crate) fn unplace_block(&mut self, block: BlockIndex) -> Result<()> {
        let writer = self.writer()?;
        if let Some(dirty) = writer.dirty.get(&block).filter(|dirty| dirty.fresh && dirty.noted.is_empty()) {
            writer.space.release(dirty.slot);
            writer.dirty.remove(&block);
        }
        Ok(())
    }

    /// Takes a free slot to which nothing on disk points, and plans what must be done before it is written to.
    pub(crate) fn allocate(&mut self, stride: usize) -> Result<(Slot, Plan)> {
        let kind = self.footer.kind;
        let room = stride.min(self.bat.blocks() as usize);
        let writer = self.writer()?;
        let slot = writer.space.next()?;
        if matches!(writer.space.end, End::Moving(at) if at < slot.end()) {
            writer.space.end =
                End::Moving(writer.space.end_after(room).unwrap_or(slot.end()).max(slot.end()));
            writer.footer_due = true;
        }
        let mut plan = Plan::default();
        if slot.data_at() < writer.soiled && !writer.frees_are_durable {
            // D2: what was there before is durably gone.
            plan.push(Step::Barrier);
        }
        if kind == DiskKind::Dynamic && slot.data_at() < writer.soiled {
            // Programs that ignore the bitmaps of a disk without parent read all data. Made durable by the barrier that
            // every new block gets.
            plan.push(Step::Punch { at: slot.data_at(), len: Bytes(BLOCK_BYTES) });
        }
        writer.soiled = writer.soiled.max(slot.end());
        writer.space.take(slot);
        // That of a device is written by the next commit; until then there is its copy.
        if writer.footer_due && !writer.space.end.is_pinned() {
            self.plan_footer(&mut plan)?;
        }
        Ok((slot, plan))
    }

    /// The same, with all that was planned done.
    pub(crate) fn allocate_now(&mut self) -> Result<Slot> {
        let (slot, first) = self.allocate(1)?;
        if let Err(error) = first.run(&*self.container) {
            self.writer()?.space.release(slot);
            return Err(Error::io("making room for a block")(error));
        }
        let writer = self.writer()?;
        writer.footer_due &= writer.space.end.is_pinned();
        writer.frees_are_durable |= first.steps().contains(&Step::Barrier);
        Ok(slot)
    }

    /// Plans to write the footer to its place at the end.
    pub(crate) fn plan_footer(&mut self, plan: &mut Plan) -> Result<()> {
        let at = self.writer()?.space.end.footer_at();
        plan.write(at, self.footer.encode());
        Ok(())
    }

    /// Writes the footer to its place at the end.
    pub(crate) fn write_end_footer(&mut self) -> Result<()> {
        let at = self.writer()?.space.end.footer_at();
        self.container.write_at(&self.footer.encode(), at).map_err(Error::io("writing the footer"))?;
        self.writer()?.footer_due = false;
        Ok(())
    }

    /// Moves the footer of a file behind so many new blocks at once: one by one, each new footer would lie where the next
    /// block is written. What is not used of it is cut off in the end.
    pub(crate) fn extend_for(&mut self, new_blocks: usize) -> Result<()> {
        let end = self.writer()?.space.end_after(new_blocks);
        end.map_or(Ok(()), |end| self.extend_to(end))
    }

    /// Moves the footer of a file to `end`, if it is before.
    pub(crate) fn extend_to(&mut self, end: FileOffset) -> Result<()> {
        let writer = self.writer()?;
        if matches!(writer.space.end, End::Moving(at) if at < end) {
            writer.space.end = End::Moving(end);
            writer.footer_due = true;
            self.write_end_footer()?;
        }
        Ok(())
    }

    /// Notes sectors whose data the caller has written.
    pub(crate) fn note_written(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<()> {
        let Some(slot) = self.slot(block) else {
            return Err(Error::OutOfRange(format!("block {} has no place", block.0)));
        };
        if !self.writer()?.dirty.contains_key(&block) {
            let stored = self.stored_bits(block, slot)?;
            if sectors.minus(&stored).is_empty() {
                return Ok(());
            }
            self.writer()?.dirty.insert(block, Dirty::stored(slot, stored));
        }
        if let Some(dirty) = self.writer()?.dirty.get_mut(&block) {
            dirty.note(sectors);
        }
        self.footer_stands(block)
    }

    /// What had to be done before the block was written to has been done. Others were told to write the footer too, until now.
    fn footer_stands(&mut self, block: BlockIndex) -> Result<()> {
        let writer = self.writer()?;
        let told = writer.dirty.get_mut(&block).and_then(|dirty| dirty.footer_at.take());
        if told == Some(writer.space.end.footer_at()) {
            writer.footer_due = false;
        }
        Ok(())
    }
}
