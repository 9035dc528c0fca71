//! Giving sectors up (D2): the batmap is clear, then the bits, then the block-table entries, then the space, each
//! durable before the next. A batch of any size takes the same few barriers.
//!
//! A block of which nothing is left loses its entry alone. Its bits stay in a slot that nothing names: the next block there
//! brings a bitmap of its own, durable before its entry (D1), and gets the slot only when the old entry is durably gone.

use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::image::{Image, Session};
use crate::layout::{SLOT_SECTORS, Slot};
use catena_types::{BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// What is left of one block.
#[derive(Debug)]
struct Change {
    block: BlockIndex,
    slot: Slot,
    before: SectorSet,
    after: SectorSet,
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
        let changes = self.changes(sectors)?;
        if changes.is_empty() {
            return Ok(());
        }
        if self.begin_change()? {
            self.barrier()?;
        }
        self.writer()?.session = Session::Changing;
        let result = self.take_away(&changes);
        if result.is_err()
            && let Some(writer) = &mut self.writer
        {
            writer.session = Session::Failed;
        }
        result
    }

    fn changes(&self, sectors: &[(BlockIndex, SectorSet)]) -> Result<Vec<Change>> {
        let mut wanted: BTreeMap<BlockIndex, SectorSet> = BTreeMap::new();
        for (block, set) in sectors {
            let all = wanted.entry(*block).or_default();
            *all = all.union(set);
        }
        let mut changes = Vec::new();
        for (block, set) in wanted {
            let Some(slot) = self.bat.get(block) else { continue };
            let before = self.stored_bits(block, slot)?;
            let after = before.minus(&set);
            if after != before || after.is_empty() {
                changes.push(Change { block, slot, before, after });
            }
        }
        Ok(changes)
    }

    fn take_away(&mut self, changes: &[Change]) -> Result<()> {
        let (emptied, shrunk): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.after.is_empty());
        let bits: Vec<_> =
            shrunk.iter().map(|change| (change.block, change.slot, change.after.clone())).collect();
        self.store_all_bits(&bits)?;
        for change in &emptied {
            self.bat.set(change.block, None);
            self.batmap.mark(change.block, false);
            self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner).forget(change.block);
        }
        self.bat.write_dirty(&*self.container)?;
        // D2: nothing durable names the slots of the emptied from here on, so they may be punched and used again.
        self.barrier()?;
        let returns_space = self.writer()?.returns_space;
        for change in &emptied {
            if returns_space {
                self.return_space(change.slot.bitmap_at(), SLOT_SECTORS * SECTOR_BYTES);
            }
            self.writer()?.space.release(change.slot);
        }
        if self.footer.kind == DiskKind::Dynamic {
            self.zero_dropped(changes)?;
        }
        Ok(())
    }

    /// The space is already free to be used again; a storage that cannot take it back now loses nothing.
    pub(crate) fn return_space(&self, at: FileOffset, len: u64) {
        if let Err(error) = self.container.punch(at, Bytes(len)) {
            tracing::warn!(%error, at = at.0, "freed space could not be given back");
        }
    }

    /// Sectors without a bit must read as zero in a disk without parent: other programs look at the data alone.
    fn zero_dropped(&self, changes: &[Change]) -> Result<()> {
        for change in changes.iter().filter(|change| !change.after.is_empty()) {
            for run in change.before.minus(&change.after).runs() {
                let at = FileOffset(change.slot.data_at().0 + run.start as u64 * SECTOR_BYTES);
                let len = Bytes(run.len() as u64 * SECTOR_BYTES);
                self.container.punch(at, len).map_err(Error::io("clearing sectors"))?;
            }
        }
        Ok(())
    }
}
