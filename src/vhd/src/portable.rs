//! A VHD for other programs, written from front to back: a dynamic one, or the footer of a fixed one.
//!
//! ```text
//! copy of the footer | header | block table | (gap) bitmap, data | gap, bitmap, data | ... | footer
//! ```
//! No batmap, no locators, and all sectors of a block that is there are marked: of others some readers take what the file
//! happens to hold. The data of blocks are aligned to 4 KiB, as everywhere here. Whoever writes puts the
//! [head](Portable::head) first where all blocks are known, or last where the target can be written anywhere.

use crate::bat::empty_table;
use crate::bytes::put_u32;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, Footer, RawFooter};
use crate::header::Header;
use crate::layout::{GAP_SECTORS, Layout, SECTOR, SLOT_SECTORS, Slot};
use catena_types::{BlockIndex, Bytes, ImageId, SECTOR_BYTES, VHD_MAX_SIZE};

/// The gap before a bitmap, and the bitmap of a block that is there.
const LEAD: usize = 8 * SECTOR;
const _: () = assert!(LEAD as u64 == (GAP_SECTORS + 1) * SECTOR_BYTES, "the gap of the layout");
/// Sectors from one bitmap to the next.
const STRIDE: u64 = SLOT_SECTORS + GAP_SECTORS;

/// A dynamic VHD for other programs.
#[derive(Debug)]
pub struct Portable {
    footer: RawFooter,
    header: Header,
    layout: Layout,
    /// The place of the first block that is there; the others follow.
    first: Slot,
}

impl Portable {
    /// Of a disk of `size`, which is kept to the byte; `timestamp` is in the format's time.
    ///
    /// # Errors
    /// `OutOfRange` for a size that the format cannot hold.
    pub fn new(id: ImageId, size: Bytes, timestamp: u32) -> Result<Self> {
        let layout = Layout { batmap: false, ..Layout::new(size.blocks()) };
        let first = Slot::at_or_after(layout.headers_end_sector()).filter(|_| fits(size));
        Ok(Self {
            footer: Footer::portable(DiskKind::Dynamic, id, size, timestamp).encode(),
            header: Header::new(layout.table_at, layout.entries),
            layout,
            first: first.ok_or_else(|| too_large(size))?,
        })
    }

    /// How long the head is, if there is a block at all.
    pub const fn head_len(&self) -> u64 {
        self.first.bitmap_at().0
    }

    /// Everything before the bitmap of the first block, or before the footer if there are no blocks. `blocks` are those that are
    /// there, in the order in which they are written.
    ///
    /// # Errors
    /// `OutOfRange` for a block that the disk does not have, or too many of them.
    pub fn head(&self, blocks: &[BlockIndex]) -> Result<Vec<u8>> {
        let mut table = empty_table(&self.layout);
        for (number, block) in (0..).zip(blocks) {
            let sector = u32::try_from(u64::from(self.first.0) + number * STRIDE).ok();
            let entry = block.index() * 4;
            if entry >= 4 * self.layout.entries as usize || sector.is_none_or(|sector| sector == u32::MAX) {
                return Err(Error::OutOfRange(format!("block {} has no place in this VHD", block.0)));
            }
            put_u32(&mut table, entry, sector.unwrap_or(u32::MAX));
        }
        let mut head = self.footer.to_vec();
        head.extend_from_slice(self.header.raw());
        head.extend(table);
        if !blocks.is_empty() {
            head.resize(usize::try_from(self.head_len()).unwrap_or(usize::MAX), 0);
        }
        Ok(head)
    }

    /// What comes before the 2 MiB of data of the block that is the n-th one in the file, counted from 0: a gap (there is none
    /// before the first, whose head has it) and its bitmap.
    pub fn lead(&self, number: usize) -> Vec<u8> {
        let mut lead = vec![0; LEAD];
        lead[LEAD - SECTOR..].fill(0xff);
        if number == 0 { lead.split_off(LEAD - SECTOR) } else { lead }
    }

    /// What comes after the last block.
    pub const fn footer(&self) -> &[u8; 512] {
        &self.footer
    }
}

/// The footer that ends a fixed VHD of `size`, a multiple of 512: after all bytes of the disk nothing else comes.
///
/// # Errors
/// `OutOfRange` for a size that the format cannot hold.
pub fn fixed_footer(id: ImageId, size: Bytes, timestamp: u32) -> Result<[u8; 512]> {
    if !fits(size) {
        return Err(too_large(size));
    }
    Ok(Footer::portable(DiskKind::Fixed, id, size, timestamp).encode())
}

fn fits(size: Bytes) -> bool {
    size.0 != 0 && size <= VHD_MAX_SIZE && size.0.is_multiple_of(SECTOR_BYTES)
}

fn too_large(size: Bytes) -> Error {
    Error::OutOfRange(format!("a VHD has whole sectors, up to {VHD_MAX_SIZE}, not {} bytes", size.0))
}
