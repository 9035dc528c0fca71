//! A device that its owner makes larger while the image on it is open for writing.
//!
//! ```text
//!   footer at the old end ──the next plan: footer at the new end, barrier──▶ blocks may lie past the old end, and over the old footer
//! ```
//!
//! From when the device is larger until the plan has ended nothing, or an old footer, stands at its end, and the copy at offset 0
//! counts. The footer moves with a commit or a give-up, of which one is under way at a time: so no plan that writes it at the old end
//! is left when a block is placed there. Called by whoever serves the image.

use crate::error::{Error, Result};
use crate::footer::FOOTER_BYTES;
use crate::image::Image;
use crate::layout::{GAP_SECTORS, SLOT_SECTORS, Slot};
use crate::space::End;
use catena_chain::{Plan, Room};
use catena_types::{Bytes, FileOffset, SECTOR_BYTES};

impl Image {
    /// The room on a device; `None` for a file, which takes what it needs.
    pub(crate) fn room_left(&self) -> Option<Room> {
        let space = &self.writer.as_ref()?.space;
        let End::Pinned(footer_at) = space.end else { return None };
        let first = Slot::at_or_after(self.layout.headers_end_sector())?;
        let all = u64::from(self.bat.blocks()) * (SLOT_SECTORS + GAP_SECTORS);
        let last = u64::from(first.0) + all.saturating_sub(GAP_SECTORS);
        Some(Room {
            blocks: space.slots_left(),
            size: Bytes(footer_at.0 + FOOTER_BYTES),
            most: Bytes(last * SECTOR_BYTES + FOOTER_BYTES),
        })
    }

    /// Has the next plan move the footer to the end that the device has now.
    pub(crate) fn note_enlarged(&mut self) -> Result<()> {
        let size = self.container.size().map_err(Error::io("asking for the size of the container"))?;
        let writer = self.writer()?;
        let End::Pinned(before) = writer.space.end else { return Ok(()) };
        let end = FileOffset((size.0 / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(FOOTER_BYTES));
        if end < before {
            return Err(Error::OutOfRange(format!("the container has only {size}, less than before")));
        }
        if end > before {
            writer.footer_next = Some(end);
        }
        Ok(())
    }

    /// Plans to write the footer of a device where it is missing, or is to be from now on. A barrier must follow.
    pub(crate) fn move_footer(&mut self, plan: &mut Plan) -> Result<()> {
        let footer = self.footer.encode();
        let writer = self.writer()?;
        let End::Pinned(present) = writer.space.end else { return Ok(()) };
        let missing = writer.footer_due.then_some(present);
        if let Some(at) = writer.footer_next.take().or(missing) {
            plan.write(at, footer);
            writer.footer_moves = Some(at);
        }
        Ok(())
    }

    /// The plan that writes it is over.
    pub(crate) fn footer_has_moved(&mut self) {
        if let Some(writer) = &mut self.writer
            && let Some(at) = writer.footer_moves.take()
        {
            (writer.space.end, writer.footer_due) = (End::Pinned(at), false);
        }
    }

    /// Whether a footer is on its way to the end that says what was true when it was sent.
    pub(crate) fn footer_is_on_its_way(&mut self) -> Result<bool> {
        let writer = self.writer()?;
        let to_new_end = writer.footer_next.is_some() || writer.footer_moves.is_some();
        Ok(to_new_end || writer.footer_due && !writer.space.end.is_pinned())
    }
}
