//! An open image: what was read from it, and what a writer keeps in memory until it is on disk.
//!
//! Reading takes `&self` from several threads; changing takes `&mut self`, so there is one writer (D11 keeps it the only one
//! among processes). The state of a writer:
//!
//! ```text
//!           first change              seal
//!   Clean ───────────────▶ Changing ────────▶ Clean
//!                              │ a barrier or a plan failed
//!                              ▼
//!                           Failed (reads go on, changes are refused until the image is opened again)
//! ```
//!
//! What becomes of a block that is written stands in `dirty`.

use crate::bat::Bat;
use crate::batmap::Batmap;
use crate::bitmaps::Bitmaps;
use crate::dirty::{Dirty, UnderWay};
use crate::error::{Error, Result};
use crate::footer::{FOOTER_BYTES, Footer};
use crate::header::Header;
use crate::layout::{Layout, SECTOR, Slot};
use crate::space::Space;
use catena_blockio::Container;
use catena_chain::Plan;
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reading. Images of other programs can be read too.
    ReadOnly,
    /// The same for who looks at parts of a large chain: the block table is read piece by piece, when it is asked for.
    Recall,
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
    /// Two different ones: a change of the footer was interrupted, or a device was made larger. The one at the end of a file counts, and
    /// the copy on a device.
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

/// What an image that is open for writing has besides.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) session: Session,
    pub(crate) space: Space,
    /// Bytes of the container that may hold something other than zeros; past them a file is a hole.
    pub(crate) soiled: FileOffset,
    /// Whether the footer may be missing at the end.
    pub(crate) footer_due: bool,
    /// On a device: where the next plan writes the footer, since the device was made larger, and where the one does that is
    /// under way; see [`enlarge`](crate::enlarge).
    pub(crate) footer_next: Option<FileOffset>,
    pub(crate) footer_moves: Option<FileOffset>,
    /// The blocks of which something is in memory only.
    pub(crate) dirty: BTreeMap<BlockIndex, Dirty>,
    /// The plan that is being carried out, and its number.
    pub(crate) under_way: Option<(u64, UnderWay)>,
    /// Whether a slot that the block table does not name is durably not named: a writer that was killed may have taken its name
    /// away in the system's memory only.
    pub(crate) frees_are_durable: bool,
    /// Plans so far.
    pub(crate) plans: u64,
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
    /// For readers: the byte after which there were no data when it was last looked at.
    pub(crate) data_end: AtomicU64,
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

    /// Carries a plan out. If that fails nothing may be built on it: what is on disk is unknown.
    pub(crate) fn run(&mut self, plan: &Plan, context: &str) -> Result<()> {
        plan.run(&*self.container).map_err(Error::io(context)).inspect_err(|_| self.fail())
    }

    /// Refuses all further changes.
    pub(crate) fn fail(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.session = Session::Failed;
        }
    }

    /// Makes everything written so far durable. If that fails nothing may be built on it: the system may have dropped what
    /// it could not write, and a second attempt would succeed without it.
    pub(crate) fn barrier(&mut self) -> Result<()> {
        self.container.flush().map_err(Error::io("waiting for the storage")).inspect_err(|_| self.fail())
    }

    /// The bits of a block as they are on disk, if that is known without reading. Not for dirty blocks.
    pub(crate) fn remembered_bits(&self, block: BlockIndex) -> Option<SectorSet> {
        if self.batmap.contains(block) {
            return Some(SectorSet::full());
        }
        self.bitmaps().get(block)
    }

    /// The cache of bitmaps. A panic elsewhere leaves it whole.
    pub(crate) fn bitmaps(&self) -> MutexGuard<'_, Bitmaps> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bits of a block at `slot` as they are on disk. Not for dirty blocks, of which they are in memory.
    pub(crate) fn stored_bits(&self, block: BlockIndex, slot: Slot) -> Result<SectorSet> {
        if let Some(set) = self.remembered_bits(block) {
            return Ok(set);
        }
        // Read without the lock, so that several bitmaps are under way at once; nobody changes them meanwhile, which would need
        // the image for itself.
        let mut raw = [0; SECTOR];
        let context = || format!("reading the bitmap of block {}", block.0);
        self.container.read_at(&mut raw, slot.bitmap_at()).map_err(|e| Error::io(context())(e))?;
        let set = SectorSet::from_bitmap(&raw);
        self.bitmaps().put(block, set.clone());
        Ok(set)
    }

    /// What of the block is in memory only.
    pub(crate) fn dirty(&self, block: BlockIndex) -> Option<&Dirty> {
        self.writer.as_ref()?.dirty.get(&block)
    }

    /// The place of a block, whether on disk or not yet.
    pub(crate) fn slot(&self, block: BlockIndex) -> Option<Slot> {
        self.dirty(block).map(|dirty| dirty.slot).or_else(|| self.bat.get(block))
    }

    /// For readers: the byte after which there are no data.
    pub(crate) fn data_end(&self) -> FileOffset {
        FileOffset(self.data_end.load(Ordering::Relaxed))
    }

    /// What a merge has appended to an image since it was opened is hidden by the images above it (no quiesce); but it is there, in
    /// a block table that is read piece by piece, and not damage.
    fn look_at_end_again(&self) -> Result<FileOffset> {
        let size = self.container.size().map_err(Error::io("asking for the size of the container"))?;
        self.data_end.fetch_max(size.0.saturating_sub(FOOTER_BYTES), Ordering::Relaxed);
        Ok(self.data_end())
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
        if slot.data_at() > self.data_end() && slot.data_at() > self.look_at_end_again()? {
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
        if intact || slot.end() <= self.data_end() {
            return Ok(());
        }
        let last = bits.runs().map(|run| run.end as u64 * SECTOR_BYTES).max().unwrap_or(0);
        if slot.data_at().0 + last.min(self.block_len(block)) > self.data_end().0 {
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
        let dirty = self.writer.iter().flat_map(|writer| writer.dirty.values().map(|dirty| dirty.slot));
        let last = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).chain(dirty).max();
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
