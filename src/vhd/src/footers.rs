//! Changing what both footers say.
//!
//! The copy at offset 0 is durable before the one at the end is touched: at any instant one of them is whole. In a file the
//! one at the end counts, and on a device the copy: the change takes effect with that.

use crate::error::{Error, Result};
use crate::image::{FooterState, Image};
use catena_chain::{Plan, Step};
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

    /// The same as a plan, for an image that is in use. A footer that is on its way to the end may say what it said before, so this
    /// is refused until that stands there.
    pub(crate) fn plan_hidden(&mut self, hidden: bool) -> Result<Plan> {
        if self.footer_is_on_its_way()? {
            return Err(Error::OutOfRange("the footer is being moved".to_owned()));
        }
        self.footer.hidden = hidden;
        let mut plan = Plan::default();
        plan.write(FileOffset(0), self.footer.encode());
        plan.push(Step::Barrier);
        self.plan_footer(&mut plan)?;
        plan.push(Step::Barrier);
        Ok(plan)
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
