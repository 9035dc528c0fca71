//! Writing: a place for a block, then (after the caller has written the data) the pointers to them.
//!
//! The order is D1's. A block that is new gets its data and its whole bitmap, then a barrier, then its entry in the block
//! table. A sector that is new in an old block gets its data, then a barrier, then its bit. Both share the barrier.

use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::image::{Fresh, Image, Session};
use crate::layout::Slot;
use crate::space::{End, Space};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SectorSet};

impl Image {
    /// The position of the block's data, allocating if it has none.
    pub(crate) fn place_block(&mut self, block: BlockIndex) -> Result<FileOffset> {
        self.check_block(block)?;
        self.writer()?;
        if let Some(slot) = self.slot(block) {
            return Ok(slot.data_at());
        }
        let slot = self.allocate()?;
        self.writer()?.fresh.insert(block, Fresh { slot, bits: SectorSet::empty() });
        Ok(slot.data_at())
    }

    /// A free slot to which nothing on disk points. If this fails nothing is taken.
    pub(crate) fn allocate(&mut self) -> Result<Slot> {
        let slot = self.writer()?.space.next()?;
        self.extend_to(slot.end())?;
        if self.footer.kind == DiskKind::Dynamic {
            self.wipe(slot)?;
        }
        let writer = self.writer()?;
        writer.soiled = writer.soiled.max(slot.end());
        writer.space.take(slot);
        Ok(slot)
    }

    /// Moves the footer of a file behind so many new blocks at once: one by one, each new footer would lie where the next
    /// block is written. What is not used of it is cut off in the end.
    pub(crate) fn extend_for(&mut self, new_blocks: usize) -> Result<()> {
        let end = self.writer()?.space.end_after(new_blocks);
        end.map_or(Ok(()), |end| self.extend_to(end))
    }

    /// Moves the footer of a file to `end`, if it is before. The new one is written before anything is written over the old one:
    /// killed at any instant, the writer leaves a file that ends with a footer.
    pub(crate) fn extend_to(&mut self, end: FileOffset) -> Result<()> {
        let footer = self.footer.encode();
        let container = self.container.clone();
        let writer = self.writer()?;
        if matches!(writer.space.end, End::Moving(at) if at < end) {
            container.write_at(&footer, end).map_err(Error::io("extending the file"))?;
            writer.space.end = End::Moving(end);
            writer.footer_due = false;
        }
        Ok(())
    }

    /// Makes the data of a slot read as zero where they may not. Programs that ignore the bitmaps of a disk without parent
    /// read them all. Made durable by the barrier that every new block gets.
    fn wipe(&mut self, slot: Slot) -> Result<()> {
        let container = self.container.clone();
        if slot.data_at() < self.writer()?.soiled {
            container.punch(slot.data_at(), Bytes(BLOCK_BYTES)).map_err(Error::io("clearing a block"))?;
        }
        Ok(())
    }

    /// Notes sectors whose data the caller has written.
    pub(crate) fn note_written(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<()> {
        if let Some(fresh) = self.writer()?.fresh.get_mut(&block) {
            fresh.bits = fresh.bits.union(sectors);
            return Ok(());
        }
        let Some(slot) = self.bat.get(block) else {
            return Err(Error::OutOfRange(format!("block {} has no place", block.0)));
        };
        let new = sectors.minus(&self.stored_bits(block, slot)?);
        if !new.is_empty() {
            let pending = self.writer()?.pending.entry(block).or_default();
            *pending = pending.union(&new);
        }
        Ok(())
    }

    /// A barrier, then the pointers to everything noted so far. May be repeated after an error other than `Failed`.
    pub(crate) fn commit_pointers(&mut self) -> Result<()> {
        let new = self.fresh_bits();
        if new.is_empty() && self.writer()?.pending.is_empty() && !self.bat.is_dirty() {
            return Ok(());
        }
        // Nothing points at these bitmaps yet.
        self.store_all_bits(&new)?;
        self.begin_change()?;
        // D1: data and new bitmaps before anything points at them. D4: the batmap is clear before the first bit changes.
        self.barrier()?;
        self.writer()?.session = Session::Changing;
        for (block, slot, _) in new {
            self.writer()?.fresh.remove(&block);
            self.bat.set(block, Some(slot));
        }
        self.store_all_bits(&self.pending_bits()?)?;
        self.writer()?.pending.clear();
        self.bat.write_dirty(&*self.container)
    }

    /// The bitmaps of the new blocks to which something was written.
    fn fresh_bits(&self) -> Vec<(BlockIndex, Slot, SectorSet)> {
        let fresh = self.writer.iter().flat_map(|writer| &writer.fresh);
        fresh
            .filter(|(_, fresh)| !fresh.bits.is_empty())
            .map(|(&block, fresh)| (block, fresh.slot, fresh.bits.clone()))
            .collect()
    }

    /// D3: the bitmaps to be written of old blocks, each the image's content and the bits whose barrier is complete.
    fn pending_bits(&self) -> Result<Vec<(BlockIndex, Slot, SectorSet)>> {
        let pending = self.writer.iter().flat_map(|writer| &writer.pending);
        pending
            .filter_map(|(&block, bits)| Some((block, self.bat.get(block)?, bits)))
            .map(|(block, slot, bits)| Ok((block, slot, self.stored_bits(block, slot)?.union(bits))))
            .collect()
    }

    /// What must be durable before the first change of a session: a clear batmap (D4), and a footer at the end. The caller
    /// waits for a barrier if this returns `true`, and in any case before it changes a pointer.
    pub(crate) fn begin_change(&mut self) -> Result<bool> {
        if self.writer()?.session == Session::Changing {
            return Ok(false);
        }
        let mut written = false;
        if self.writer()?.footer_due {
            // Before the batmap: in a file of XenServer's tools the footer may lie inside the last sector of the batmap.
            self.write_end_footer()?;
            written = true;
        }
        Ok(self.batmap.clear_on_disk(&*self.container)? || written)
    }

    /// Writes the footer to its place at the end.
    pub(crate) fn write_end_footer(&mut self) -> Result<()> {
        let at = self.writer()?.space.end.footer_at();
        self.container.write_at(&self.footer.encode(), at).map_err(Error::io("writing the footer"))?;
        self.writer()?.footer_due = false;
        Ok(())
    }

    /// Commits and makes the pointers durable too.
    pub(crate) fn flush_all(&mut self) -> Result<()> {
        self.commit_pointers()?;
        self.barrier()
    }

    /// Ends the changes so far: everything durable, then the batmap on disk, a file cut after its last block. The image
    /// stays open, and the next change begins anew. Done when a leaf becomes a base copy.
    ///
    /// # Errors
    /// Those of the storage. The image is sound in any case; at worst its batmap stays clear.
    pub fn seal(&mut self) -> Result<()> {
        self.flush_all()?;
        if self.writer()?.session == Session::Clean {
            return Ok(());
        }
        // D4: every block that is marked is durably full by now, so any part of this write is true.
        self.batmap.write_back(&*self.container)?;
        self.cut_file()?;
        self.barrier()?;
        self.writer()?.session = Session::Clean;
        Ok(())
    }

    /// Takes back the places of blocks to which nothing was written, after a commit.
    pub(crate) fn release_unwritten(&mut self) -> Result<()> {
        let writer = self.writer()?;
        for (_, unused) in std::mem::take(&mut writer.fresh) {
            writer.space.release(unused.slot);
        }
        Ok(())
    }

    /// Gives back what a file has after its last block, unless its space is to be kept. The footer is durable at its new place before the file is cut.
    pub(crate) fn cut_file(&mut self) -> Result<()> {
        let last = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).max();
        self.release_unwritten()?;
        let writer = self.writer()?;
        if !writer.returns_space {
            return Ok(());
        }
        let target = writer.space.trim(last);
        if matches!(writer.space.end, End::Moving(at) if at > target) {
            self.container
                .write_at(&self.footer.encode(), target)
                .map_err(Error::io("writing the footer"))?;
            self.barrier()?;
            let size = Space::with_footer(target);
            self.container.set_size(size).map_err(Error::io("cutting the file"))?;
            let writer = self.writer()?;
            writer.space.end = End::Moving(target);
            writer.soiled = FileOffset(writer.soiled.0.min(size.0));
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
