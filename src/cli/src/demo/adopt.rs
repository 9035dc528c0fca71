//! Taking over a directory of images that XenServer wrote, and, later, merging them.

use super::stage::text;
use super::{Demo, archive};
use crate::output::tree::flatten;
use anyhow::{Context, Result, ensure};

/// The name of the SR that is taken over.
pub(super) const SR: &str = "xen";

/// The disk of the adopted chain.
pub(super) struct Adopted {
    leaf: String,
    sha256: String,
}

impl Demo {
    /// Step: introduce three images of XenServer's and read all of them back.
    pub(super) fn adopt(&mut self) -> Result<Adopted> {
        self.stage.title("A directory of XenServer's VHDs is looked at, then taken over");
        let dir = self.stage.make_dir(SR)?;
        let expected = archive::unpack(&dir)?;
        let location = text(&dir)?;
        self.stage.run(&["sr", "introduce", "--type", "file", "--location", location, "--dry-run"])?;
        self.stage.run(&["sr", "introduce", "--type", "file", "--location", location, "--name", SR])?;
        self.stage.run(&["vdi", "tree", SR])?;
        let mut leaf = None;
        let roots = self.roots(SR)?;
        for node in flatten(&roots) {
            let wanted = &expected.get(&node.container).context("an image that was not there before")?.sha256;
            let name = node.vdi.as_ref().map_or_else(|| node.image.to_string(), |vdi| vdi.uuid.to_string());
            self.stage.verify(&node.container, &name, wanted)?;
            if node.vdi.is_some() {
                leaf = Some(Adopted { leaf: name, sha256: wanted.clone() });
            }
        }
        ensure!(flatten(&roots).len() == expected.len(), "not every image was found");
        self.note_space("as taken over", SR)?;
        leaf.context("the chain has no disk")
    }

    /// Step: let the worker merge the adopted chain; the disk reads as before.
    pub(super) fn merge_what_was_adopted(&mut self, adopted: &Adopted) -> Result<()> {
        self.stage.title("The chain of XenServer's images is merged when an administrator says so");
        self.stage.run(&["coalesce", "status", SR])?;
        self.stage.run(&["coalesce", "resume", SR])?;
        self.stage.run(&["coalesce", "run", SR, "--wait"])?;
        self.stage.run(&["vdi", "tree", SR])?;
        let roots = self.roots(SR)?;
        ensure!(flatten(&roots).iter().all(|node| !node.hidden), "base copies are left in {SR}");
        self.stage.verify("the disk after the merge", &adopted.leaf, &adopted.sha256)?;
        self.note_space("merged", SR)
    }
}
