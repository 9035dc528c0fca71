//! Giving back what an image has and does not use: the slots of blocks that lost their place, and what is behind the last block: of
//! a file it is cut off, of a device, up to the footer, discarded.

use crate::error::Result;
use crate::giveup::SLOT_BYTES;
use crate::image::Image;
use catena_chain::{Plan, Step};

impl Image {
    /// Gives unused space back to the storage. Changes neither what is owned nor the batmap, so it may be stopped and repeated.
    ///
    /// # Errors
    /// Those of the storage, and of an image that is not open for writing.
    pub fn trim(&mut self) -> Result<()> {
        // D2: a slot that nothing names may have lost its name only in the page cache of a process that was killed. Punched
        // before that is durable, a power cut would bring back the name of a block without its data.
        self.flush_all()?;
        if self.writer()?.footer_due {
            self.write_end_footer()?;
            self.barrier()?;
        }
        let mut plan = Plan::default();
        for slot in self.writer()?.space.free() {
            plan.push(Step::Release { at: slot.bitmap_at(), len: SLOT_BYTES });
        }
        if let Some((at, len)) = self.writer()?.space.behind_all() {
            plan.push(Step::Release { at, len });
        }
        self.plan_cut(&mut plan)?;
        plan.push(Step::Barrier);
        self.run(&plan, "giving space back")
    }
}
