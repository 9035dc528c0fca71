//! Changing what both footers say.
//!
//! The copy at offset 0 is durable before the one at the end is touched: at any instant one of them is whole, and as the
//! one at the end counts, the change takes effect with it.

use crate::error::{Error, Result};
use crate::image::{FooterState, Image};
use catena_types::FileOffset;

impl Image {
    /// Marks the image hidden (a base copy) or visible, durably.
    ///
    /// # Errors
    /// Those of the storage; the image is then still sound, and marked or not.
    pub fn set_hidden(&mut self, hidden: bool) -> Result<()> {
        self.writer()?;
        let before = self.footer.hidden;
        self.footer.hidden = hidden;
        self.write_footers().inspect_err(|_| self.footer.hidden = before)
    }

    /// Writes both footers as they are in memory.
    pub(crate) fn write_footers(&mut self) -> Result<()> {
        let raw = self.footer.encode();
        self.container.write_at(&raw, FileOffset(0)).map_err(Error::io("writing the footer's copy"))?;
        self.barrier()?;
        self.write_end_footer()?;
        self.barrier()?;
        self.footers = FooterState::Both;
        Ok(())
    }
}
