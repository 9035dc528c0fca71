//! An open image: what was read from it, and what a writer keeps in memory until it is on disk.
//!
//! Reading takes `&self` from several threads; changing takes `&mut self`, so there is one writer (D11 keeps it the only one
//! among processes). The state of a writer:
//!
//! ```text
//!           first change              seal
//!   Clean ───────────────▶ Changing ────────▶ Clean
//!                              │ barrier or give-up failed
//!                              ▼
//!                           Failed (reads go on, changes are refused until the image is opened again)
//! ```

use crate::bat::Bat;
use crate::batmap::Batmap;
use crate::bitmaps::Bitmaps;
use crate::error::{Error, Result};
use crate::footer::Footer;
use crate::header::Header;
use crate::layout::{Layout, SECTOR, Slot};
use crate::space::Space;
use catena_blockio::{Container, collecting};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// From so many bitmaps on they are written together.
const MANY_BITMAPS: usize = 8;

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reading. Images of other programs can be read too.
    ReadOnly,
    /// Reading and writing. Refused for images of other programs, fixed disks, and images with contradictions in their block table.
    ReadWrite,
}

/// Which of the two footers are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FooterState {
    /// Both, and equal. For fixed disks: the one they have.
    Both,
    /// None at the end: the writer was killed. The copy at offset 0 counts.
    EndMissing,
    /// None at offset 0. The one at the end counts.
    CopyDamaged,
    /// Two different ones: a change of the footer was interrupted. The one at the end counts.
    Differ,
}

/// How far a writer has come; see the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// Nothing was changed: batmap and footers are as they were found.
    Clean,
    /// The batmap on disk is durably clear (D4) and the footer stands at the end.
    Changing,
    /// What is on disk is unknown.
    Failed,
}

/// A placed block to which nothing on disk points yet.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) slot: Slot,
    pub(crate) bits: SectorSet,
}

/// What an image that is open for writing has besides.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) session: Session,
    pub(crate) space: Space,
    /// Bytes of the container that may hold something other than zeros; past them a file is a hole.
    pub(crate) soiled: FileOffset,
    /// Whether the footer must be written when the first change begins.
    pub(crate) footer_due: bool,
    /// New blocks, until their block-table entries are written.
    pub(crate) fresh: BTreeMap<BlockIndex, Fresh>,
    /// Sectors whose data are written and whose bits are not.
    pub(crate) pending: BTreeMap<BlockIndex, SectorSet>,
    /// Whether the space of what is given up goes back to the storage at once.
    pub(crate) returns_space: bool,
}

/// An open VHD image.
pub struct Image {
    pub(crate) container: Arc<dyn Container>,
    pub(crate) footer: Footer,
    pub(crate) footers: FooterState,
    /// `None` for a fixed disk.
    pub(crate) header: Option<Header>,
    pub(crate) layout: Layout,
    pub(crate) bat: Bat,
    pub(crate) batmap: Batmap,
    pub(crate) bitmaps: Mutex<Bitmaps>,
    /// For readers: the byte after which there are no data.
    pub(crate) data_end: FileOffset,
    pub(crate) writer: Option<Writer>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("id", &self.footer.id)
            .field("kind", &self.footer.kind)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// The writer's state, if the image may be changed.
    pub(crate) fn writer(&mut self) -> Result<&mut Writer> {
        match &mut self.writer {
            None => Err(Error::ReadOnly),
            Some(writer) if writer.session == Session::Failed => Err(Error::Failed),
            Some(writer) => Ok(writer),
        }
    }

    /// Makes everything written so far durable. If that fails nothing may be built on it: the system may have dropped what
    /// it could not write, and a second attempt would succeed without it.
    pub(crate) fn barrier(&mut self) -> Result<()> {
        let flushed = self.container.flush().map_err(Error::io("waiting for the storage"));
        if flushed.is_err()
            && let Some(writer) = &mut self.writer
        {
            writer.session = Session::Failed;
        }
        flushed
    }

    /// The bits of a block at `slot` as they are on disk.
    pub(crate) fn stored_bits(&self, block: BlockIndex, slot: Slot) -> Result<SectorSet> {
        if self.batmap.contains(block) {
            return Ok(SectorSet::full());
        }
        if let Some(set) = self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner).get(block) {
            return Ok(set);
        }
        // Read without the lock, so that several bitmaps are under way at once; nobody changes them meanwhile, which would need
        // the image for itself.
        let mut raw = [0; SECTOR];
        let context = || format!("reading the bitmap of block {}", block.0);
        self.container.read_at(&mut raw, slot.bitmap_at()).map_err(|e| Error::io(context())(e))?;
        let set = SectorSet::from_bitmap(&raw);
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner).put(block, set.clone());
        Ok(set)
    }

    /// Writes the bits of a block at `slot`; on success they are what [`stored_bits`](Self::stored_bits) returns.
    pub(crate) fn store_bits(&mut self, block: BlockIndex, slot: Slot, bits: &SectorSet) -> Result<()> {
        let context = || format!("writing the bitmap of block {}", block.0);
        self.container.write_at(&bits.to_bitmap(), slot.bitmap_at()).map_err(|e| Error::io(context())(e))?;
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner).put(block, bits.clone());
        self.batmap.mark(block, bits.is_full());
        Ok(())
    }

    /// The same for several blocks, together where there are many.
    pub(crate) fn store_all_bits(&mut self, all: &[(BlockIndex, Slot, SectorSet)]) -> Result<()> {
        let container = self.container.clone();
        let mut store =
            || all.iter().try_for_each(|(block, slot, bits)| self.store_bits(*block, *slot, bits));
        if all.len() < MANY_BITMAPS {
            return store();
        }
        for (_, slot, _) in all {
            container.expect_write(slot.bitmap_at(), Bytes(SECTOR_BYTES));
        }
        collecting(&*container, store).map_err(Error::io("writing bitmaps"))?
    }

    /// The place of a block, whether on disk or not yet.
    pub(crate) fn slot(&self, block: BlockIndex) -> Option<Slot> {
        let fresh = self.writer.as_ref().and_then(|writer| writer.fresh.get(&block));
        fresh.map(|fresh| fresh.slot).or_else(|| self.bat.get(block))
    }

    /// Whether a place that the block table names can be one. A writer has looked at all of them when it opened the image.
    pub(crate) fn check_slot(&self, slot: Slot) -> Result<()> {
        if self.writer.is_some() {
            return Ok(());
        }
        if u64::from(slot.0) < self.layout.headers_end_sector() {
            return Err(Error::damaged(
                "block_over_headers",
                slot.bitmap_at(),
                "a block lies over the metadata",
            ));
        }
        if slot.data_at() > self.data_end {
            return Err(Error::damaged(
                "block_outside",
                slot.bitmap_at(),
                "a block lies past the end of the container",
            ));
        }
        Ok(())
    }

    /// A file that has lost the footer at its end may have lost data with it: what a block owns and the file does not have is
    /// not zeros. With the footer in place the last block of another program's file may be short.
    pub(crate) fn check_cut(&self, block: BlockIndex, slot: Slot, bits: &SectorSet) -> Result<()> {
        // A writer has refused such a file when it opened it.
        let intact = self.writer.is_some() || self.footers != FooterState::EndMissing;
        if intact || slot.end() <= self.data_end {
            return Ok(());
        }
        let last = bits.runs().map(|run| run.end as u64 * SECTOR_BYTES).max().unwrap_or(0);
        if slot.data_at().0 + last.min(self.block_len(block)) > self.data_end.0 {
            let detail = "data of a block lie past the end of the container, which has lost its footer";
            return Err(Error::damaged("block_cut", slot.bitmap_at(), detail));
        }
        Ok(())
    }

    /// Bytes of a block that belong to the disk, rounded up to sectors.
    pub(crate) fn block_len(&self, block: BlockIndex) -> u64 {
        let left = self.footer.size.0.saturating_sub(block.start().0);
        left.min(BLOCK_BYTES).next_multiple_of(SECTOR_BYTES)
    }

    /// The byte after the last block or, without blocks, after the metadata; the footer excluded.
    pub(crate) fn used_end(&self) -> FileOffset {
        if self.header.is_none() {
            return FileOffset(self.footer.size.0);
        }
        let fresh = self.writer.iter().flat_map(|writer| writer.fresh.values().map(|fresh| fresh.slot));
        let last = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).chain(fresh).max();
        FileOffset(last.map_or(0, |slot| slot.end().0).max(self.layout.headers_end_sector() * SECTOR_BYTES))
    }

    /// Refuses a block that the disk does not have.
    pub(crate) fn check_block(&self, block: BlockIndex) -> Result<()> {
        if block.0 < self.bat.blocks() {
            return Ok(());
        }
        let size: Bytes = self.footer.size;
        Err(Error::OutOfRange(format!("block {} lies past the end of the disk ({size})", block.0)))
    }
}
