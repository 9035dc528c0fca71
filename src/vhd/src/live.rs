//! The image as a layer that is written while it is read: each method does bookkeeping and makes a plan.
//!
//! The owner is the event loop of a disk that is served. Only what the trait says reads or waits.

use crate::bat::Entry;
use crate::dirty::{Dirty, UnderWay};
use crate::footer::DiskKind;
use crate::giveup::Emptied;
use crate::image::{Image, Mode};
use catena_blockio::Container;
use catena_chain::{
    Commit, Error, Extent, Grown, Growth, Known, LiveLayer, Noted, Ownership, Placed, Plan, Recall, Room,
    Step,
};
use catena_types::{BlockIndex, Bytes, FileOffset, SectorSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Blocks for which a file makes room at once: most new blocks then need nothing done before they are written to.
const STRIDE: usize = 64;

/// Bytes of a bitmap.
const SECTOR_LEN: u32 = 512;

impl Recall for Image {
    fn known(&self, block: BlockIndex) -> Result<Known, Error> {
        if self.footer.kind == DiskKind::Fixed {
            let inside = block.start().0 < self.footer.size.0;
            return Ok(if inside { Known::Everything } else { Known::Nothing });
        }
        if let Some(dirty) = self.dirty(block) {
            return Ok(known_set(dirty.owned()));
        }
        let slot = match self.bat.entry(block) {
            Entry::In(piece) => return Ok(Known::At(piece)),
            Entry::Known(None) => return Ok(Known::Nothing),
            Entry::Known(Some(slot)) => slot,
        };
        let looked_at = || {
            self.check_slot(slot)?;
            match self.remembered_bits(block) {
                None => Ok(Known::At(Extent { at: slot.bitmap_at(), len: SECTOR_LEN })),
                Some(bits) => self.check_cut(block, slot, &bits).map(|()| known_set(bits)),
            }
        };
        looked_at().map_err(|error: crate::Error| error.of_block(block))
    }

    fn learn(&self, block: BlockIndex, at: FileOffset, raw: &[u8]) -> Result<(), Error> {
        // A block whose bits are known, dirty or remembered, is not asked for; one without a place has none.
        let Known::At(wanted) = self.known(block)? else { return Ok(()) };
        if wanted.at != at {
            // The piece of the table where its place stands is known by now.
            return Ok(());
        }
        match (self.bat.entry(block), raw.first_chunk()) {
            (Entry::Known(_), Some(bitmap)) => self.bitmaps().put(block, SectorSet::from_bitmap(bitmap)),
            _ => self.bat.learn(block, raw).map_err(|error| error.of_block(block))?,
        }
        Ok(())
    }
}

fn known_set(set: SectorSet) -> Known {
    match Ownership::from_set(set) {
        Ownership::Nothing => Known::Nothing,
        Ownership::Everything => Known::Everything,
        Ownership::Sectors(set) => Known::Sectors(set),
    }
}

impl LiveLayer for Image {
    fn place(&mut self, block: BlockIndex) -> Result<Placed, Error> {
        let (slot, first) = self.place_block(block, STRIDE).map_err(|error| error.of_block(block))?;
        Ok(Placed { at: slot.data_at(), first })
    }

    fn unplace(&mut self, block: BlockIndex) -> Result<(), Error> {
        Ok(self.unplace_block(block)?)
    }

    fn wrote(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<(), Error> {
        self.note_written(block, sectors).map_err(|error| error.of_block(block))
    }

    fn noted(&self) -> Vec<Noted> {
        let dirty = self.writer.iter().flat_map(|writer| &writer.dirty);
        let unstored = dirty.map(|(&block, dirty)| Noted {
            block,
            place: dirty.slot.data_at(),
            new: dirty.fresh || dirty.linking,
            sectors: dirty.unstored(),
        });
        unstored.filter(|noted| !noted.sectors.is_empty()).collect()
    }

    fn restore(&mut self, noted: &[Noted]) -> Result<(), Error> {
        noted
            .iter()
            .try_for_each(|noted| self.restore_block(noted).map_err(|error| error.of_block(noted.block)))
    }

    fn begin_commit(&mut self) -> Result<Option<Commit>, Error> {
        let mut commit = self.begin_store()?;
        if let Some(commit) = &mut commit
            && !commit.plan.ends_with_barrier()
        {
            commit.plan.push(Step::Barrier);
        }
        Ok(commit)
    }

    fn begin_store(&mut self) -> Result<Option<Commit>, Error> {
        if self.writer()?.under_way.is_some() {
            return Ok(None);
        }
        let plan = match self.begin_commit_plan()? {
            Some(plan) => plan,
            None => Plan::barrier(),
        };
        self.numbered(plan).map(Some)
    }

    fn end_commit(&mut self, commit: Commit, succeeded: bool) -> Result<(), Error> {
        self.end(&commit, succeeded)
    }

    fn begin_give_up(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<Commit, Error> {
        for (block, set) in sectors {
            self.check_block(*block)?;
            let unstored = self.dirty(*block).map(Dirty::unstored).unwrap_or_default();
            if !unstored.intersection(set).is_empty() {
                return Err(Error::OutOfRange(format!("block {} is not committed yet", block.0)));
            }
        }
        let plan = self.begin_give_up_plan(sectors, Emptied::LoseItIfWhole)?;
        self.numbered(plan)
    }

    fn end_give_up(&mut self, commit: Commit, succeeded: bool) -> Result<(), Error> {
        self.end(&commit, succeeded)
    }

    fn close(&mut self) -> Result<Plan, Error> {
        self.all_is_stored()?;
        Ok(self.plan_seal()?)
    }

    fn patch(&mut self, writes: &[(FileOffset, Vec<u8>)]) -> Result<Plan, Error> {
        Ok(self.plan_patch(writes)?)
    }

    fn set_hidden(&mut self, hidden: bool) -> Result<Plan, Error> {
        Ok(self.plan_hidden(hidden)?)
    }

    fn grow(&mut self, size: Bytes) -> Result<Growth, Error> {
        self.all_is_stored()?;
        let container = self.container.clone();
        Ok(Box::new(move || {
            let mut image = Self::open(container, Mode::ReadWrite)?;
            let outcome = image.grow(size).map_err(Error::from);
            Ok(Grown { layer: Box::new(image), outcome })
        }))
    }

    fn room(&self) -> Option<Room> {
        self.room_left()
    }

    fn enlarged(&mut self) -> Result<(), Error> {
        Ok(self.note_enlarged()?)
    }

    fn end_writing(&mut self, container: Arc<dyn Container>) -> Result<(), Error> {
        self.all_is_stored()?;
        self.release_unwritten()?;
        // Blocks were looked at when they were placed; whoever seals the image meanwhile cuts off none of them.
        self.data_end.fetch_max(self.used_end().0, Ordering::Relaxed);
        self.container = container;
        self.writer = None;
        Ok(())
    }
}

impl Image {
    /// The plan that was made, with the number that it got; one for nothing gets one too.
    fn numbered(&mut self, plan: Plan) -> Result<Commit, Error> {
        let number = match &self.writer()?.under_way {
            Some((number, _)) => *number,
            None => self.start(UnderWay::Commit)?,
        };
        Ok(Commit { plan, number })
    }

    fn end(&mut self, commit: &Commit, succeeded: bool) -> Result<(), Error> {
        let under_way = self.writer()?.under_way.as_ref().map(|(number, _)| *number);
        if under_way != Some(commit.number) {
            return Err(Error::OutOfRange("this plan is not being carried out".to_owned()));
        }
        self.end_plan(succeeded);
        Ok(())
    }
}
