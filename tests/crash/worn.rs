//! An SR on volumes that lives through many deaths, one after another: what was interrupted at one point goes on to the next.
//!
//! Processes are told where to die by a file (`CATENA_CRASH_AT=@FILE`), so one agent and one SR do for all of a test. In the end
//! everything is looked at.

use super::stage::{SIZE, Stage};
use anyhow::Result;

/// The size of the disk of the lab, in MiB.
const ROOM: u64 = 2048;

impl Stage {
    /// Two disks with two blocks and a bit.
    pub(crate) fn worn() -> Result<Self> {
        let mut stage = Self::on_volumes(ROOM)?;
        [stage.a, stage.b] = [stage.disk("a", SIZE)?, stage.disk("b", SIZE)?];
        for disk in [stage.a.clone(), stage.b.clone()] {
            stage.write(&disk, 1000, 5 << 20)?;
        }
        Ok(stage)
    }

    /// Everything is in order, and goes without a trace.
    pub(crate) fn end(mut self) -> Result<()> {
        self.verify()?;
        for vdi in self.content.keys().cloned().collect::<Vec<_>>() {
            self.destroy(&vdi)?;
        }
        self.coalesce()?;
        self.verify_tidy()?;
        self.agent.stop()
    }

    /// One base copy of the one disk can be merged into another.
    pub(crate) fn add_inner_merge(&mut self) -> Result<()> {
        let a = self.a.clone();
        let oldest = self.snapshot(&a)?;
        self.write(&a, 3 << 20, 2 << 20)?;
        self.snapshot(&a)?;
        self.destroy(&oldest)
    }

    /// The leaf of the other disk can be merged into its base copy.
    pub(crate) fn add_leaf_merge(&mut self) -> Result<()> {
        let b = self.b.clone();
        let before = self.snapshot(&b)?;
        self.write(&b, 1 << 20, 4 << 20)?;
        self.destroy(&before)
    }
}
