//! Taking over from a writer that died: what it had noted, and acknowledged, without storing it (D7, D8).

use crate::dirty::Dirty;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layout::Slot;
use crate::space::End;
use catena_chain::Noted;
use catena_types::SECTOR_BYTES;

impl Image {
    /// Notes what was noted. The writer may have stored a part of it, and what it tells of a block may come in pieces.
    pub(crate) fn restore_block(&mut self, noted: &Noted) -> Result<()> {
        self.check_block(noted.block)?;
        let strange = || Error::damaged("noted_place", noted.place, "a block was noted that lies elsewhere");
        let sector = noted.place.0.saturating_sub(SECTOR_BYTES) / SECTOR_BYTES;
        let slot = u32::try_from(sector).ok().map(Slot).filter(|slot| slot.data_at() == noted.place);
        let slot = slot.ok_or_else(strange)?;
        match self.slot(noted.block) {
            Some(known) if known == slot => {}
            None if noted.new => {
                let writer = self.writer()?;
                writer.space.claim(slot)?;
                writer.soiled = writer.soiled.max(slot.end());
                writer.dirty.insert(noted.block, Dirty::fresh(slot));
                if matches!(writer.space.end, End::Moving(at) if at < slot.end()) {
                    writer.space.end = End::Moving(slot.end());
                    writer.footer_due = true;
                }
            }
            _ => return Err(strange()),
        }
        self.note_written(noted.block, &noted.sectors)
    }
}
