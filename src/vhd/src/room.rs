//! How large a container must be for what is to come into its image: asked before a merge, since a container of explicit size
//! does not grow by itself.

use crate::error::Result;
use crate::footer::FOOTER_BYTES;
use crate::grow::is_in_the_way;
use crate::image::Image;
use crate::layout::{GAP_SECTORS, SLOT_SECTORS, Slot};
use crate::space::{End, Space};
use catena_types::{BlockIndex, Bytes, FileOffset, SECTOR_BYTES};

/// From one bitmap to the next, in sectors.
const PITCH: u64 = SLOT_SECTORS + GAP_SECTORS;

impl Image {
    /// Bytes that the container of this image needs, the footer included, once the image has been brought to the size of `from`
    /// and has taken in all that `from` owns. Exact, unless there are holes between this image's blocks, which are filled first.
    pub fn room_for(&self, from: &Self) -> Bytes {
        let mut layout = self.layout;
        let blocks = from.footer.size.max(self.footer.size).blocks();
        let mut moving = 0;
        if blocks > layout.entries {
            // A longer table goes behind the metadata, and the blocks that lie there to the end.
            layout.table_at = FileOffset(layout.headers_end_sector() * SECTOR_BYTES);
            layout.entries = blocks;
            let in_the_way = |slot: Slot| is_in_the_way(slot, layout.headers_end_sector());
            moving = self.bat.used(BlockIndex(0)).filter(|(_, slot)| in_the_way(*slot)).count();
        }
        let is_new = |block: BlockIndex| self.bat.get(block).is_none();
        let coming = from.bat.used(BlockIndex(0)).filter(|(block, _)| is_new(*block)).count();
        let last = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).max();
        let headers_end = layout.headers_end_sector();
        let end = match (moving + coming) as u64 {
            0 => last.map_or(0, Slot::end_sector).max(headers_end),
            more => {
                let first = (last.map_or(0, Slot::next_free).max(headers_end) + 1).next_multiple_of(8) - 1;
                first + (more - 1) * PITCH + SLOT_SECTORS
            }
        };
        Bytes(end * SECTOR_BYTES + FOOTER_BYTES)
    }

    /// Bytes that the container must have for the next new block, if it has an explicit size and less than that.
    pub fn wanted_for_a_block(&mut self) -> Result<Option<Bytes>> {
        let space = &self.writer()?.space;
        match (space.end, space.end_after(1)) {
            (End::Pinned(footer), Some(end)) if end > footer => Ok(Some(Space::with_footer(end))),
            _ => Ok(None),
        }
    }
}
