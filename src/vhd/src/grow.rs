//! Growing the virtual disk.
//!
//! Within the block table only footers change. Beyond it a longer table and batmap are written into free space behind the
//! metadata, for which the first few blocks move to the end, and the header's first sector switches to them: the table's
//! place and length and the checksum lie in that one sector, so the switch happens or does not. The old tables stay as
//! unused space. At every instant the image is whole, at its old size until the footer at the end is written.

use crate::bat::{Bat, empty_table};
use crate::create::disk_size;
use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::header::Header;
use crate::image::Image;
use crate::layout::{GAP_SECTORS, Layout, SECTOR, Slot};
use catena_chain::{Plan, Step};
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};

impl Image {
    /// Raises the virtual size, durably. Sectors past the old end are unowned afterwards (D6); what deeper layers own there is
    /// the caller's business. No data may be read or written meanwhile: blocks may move.
    ///
    /// # Errors
    /// `OutOfRange` for a size that is smaller or too large, `NoSpace` where a container of explicit size must grow first.
    pub fn grow(&mut self, size: Bytes) -> Result<()> {
        let size = disk_size(size, self.footer.kind == DiskKind::Differencing)?;
        self.writer()?;
        if size < self.footer.size {
            return Err(Error::OutOfRange(format!(
                "the disk cannot shrink from {} to {size}",
                self.footer.size
            )));
        }
        if size == self.footer.size {
            return Ok(());
        }
        self.clear_past_end()?;
        if size.blocks() > self.layout.entries {
            self.extend_table(size)?;
        }
        self.extend_blocks(size)?;
        let before = std::mem::replace(&mut self.footer.size, size);
        self.write_footers().inspect_err(|_| self.footer.size = before)?;
        self.batmap.resize(size);
        Ok(())
    }

    /// D6: a disk of another program's size may end within a block, whose other sectors would come to light.
    fn clear_past_end(&mut self) -> Result<()> {
        let (block, inside) = catena_types::GuestOffset(self.footer.size.0).split();
        let first = usize::try_from(inside.div_ceil(SECTOR_BYTES)).unwrap_or(0);
        if inside != 0 && first < BLOCK_SECTORS {
            self.give_up_sectors(&[(block, SectorSet::of(first..BLOCK_SECTORS))])?;
        }
        self.flush_all()?;
        self.release_unwritten()
    }

    /// Takes more entries of the table into use. What stands there is not trusted.
    fn extend_blocks(&mut self, size: Bytes) -> Result<()> {
        let old = self.bat.blocks();
        let mut bat = Bat::load(&*self.container, &self.layout, size.blocks())?;
        let stray: Vec<BlockIndex> = bat.used(BlockIndex(old)).map(|(block, _)| block).collect();
        for block in &stray {
            bat.set(*block, None);
        }
        let mut plan = Plan::default();
        bat.take_dirty(&mut plan);
        if !plan.is_empty() {
            plan.push(Step::Barrier);
            self.run(&plan, "clearing entries of the block table")?;
        }
        self.bat = bat;
        Ok(())
    }

    /// Gives the image a table for `size`.
    fn extend_table(&mut self, size: Bytes) -> Result<()> {
        let Some(header) = self.header.clone() else {
            return Err(Error::Unsupported("growing a fixed disk".into()));
        };
        let table_at = FileOffset(self.layout.headers_end_sector() * SECTOR_BYTES);
        let layout = Layout { table_at, entries: size.blocks(), ..self.layout };
        self.make_room(&layout)?;
        let bytes = self.new_tables(&layout, size);
        self.container.write_at(&bytes, table_at).map_err(Error::io("writing a longer block table"))?;
        // The new tables are durable before the header points at them (D1).
        self.barrier()?;
        self.switch(header.with_table(table_at, layout.entries), layout).inspect_err(|_| self.fail())
    }

    /// Makes the header point at the new tables. Which of them count is unknown if this fails.
    fn switch(&mut self, header: Header, layout: Layout) -> Result<()> {
        let sector = &header.raw()[..SECTOR];
        self.container
            .write_at(sector, layout.header_at)
            .map_err(Error::io("switching to a longer block table"))?;
        self.barrier()?;
        self.batmap = self.batmap.moved_to(&layout, self.footer.size);
        self.bat = Bat::load(&*self.container, &layout, self.footer.size.blocks())?;
        (self.header, self.layout) = (Some(header), layout);
        Ok(())
    }

    /// Moves the blocks that lie where the new tables go, and keeps their space from being used again.
    fn make_room(&mut self, layout: &Layout) -> Result<()> {
        let end = layout.headers_end_sector();
        let moving: Vec<(BlockIndex, Slot)> =
            self.bat.used(BlockIndex(0)).filter(|&(_, slot)| is_in_the_way(slot, end)).collect();
        // On a device there must be room for all of them, or nothing is begun.
        let mut space = self.writer()?.space.clone();
        space.reserve_headers(end)?;
        space.must_hold(moving.len() as u64)?;
        self.begin_change_now()?;
        self.writer()?.space = space;
        self.extend_to(FileOffset(end * SECTOR_BYTES))?;
        for &(block, slot) in &moving {
            let to = self.allocate_now()?;
            self.copy_slot(slot, to)?;
            self.bat.set(block, Some(to));
        }
        if !moving.is_empty() {
            // D1: the copies are durable before the table names them, and it names them before the old ones are written over.
            let mut plan = Plan::default();
            plan.push(Step::Barrier);
            self.bat.take_dirty(&mut plan);
            plan.push(Step::Barrier);
            self.run(&plan, "moving blocks")?;
        }
        Ok(())
    }

    fn copy_slot(&self, from: Slot, to: Slot) -> Result<()> {
        let mut data = vec![0; SECTOR + BLOCK_SECTORS * SECTOR];
        self.container.read_at(&mut data, from.bitmap_at()).map_err(Error::io("moving a block"))?;
        self.container.write_at(&data, to.bitmap_at()).map_err(Error::io("moving a block"))
    }

    /// The new table with all entries, and an empty batmap.
    fn new_tables(&self, layout: &Layout, size: Bytes) -> Vec<u8> {
        let mut bytes = empty_table(layout);
        for (block, slot) in self.bat.used(BlockIndex(0)) {
            bytes[block.index() * 4..block.index() * 4 + 4].copy_from_slice(&slot.0.to_be_bytes());
        }
        if layout.batmap {
            bytes.extend(self.batmap.moved_to(layout, size).to_clear_bytes());
        }
        bytes
    }
}

/// Whether a block must make room for metadata that end at sector `end`. One that begins right after them may stay: the
/// first block of an image needs no gap before its bitmap.
pub(crate) fn is_in_the_way(slot: Slot, end: u64) -> bool {
    u64::from(slot.0) < end + GAP_SECTORS && Slot::at_or_after(end) != Some(slot)
}
