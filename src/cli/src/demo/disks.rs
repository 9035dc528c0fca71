//! A new SR, a disk made of an image, and forty clones of it.

use super::stage::text;
use super::{Demo, hash};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// The name of the new SR.
pub(super) const SR: &str = "disks";

const IMAGE_BYTES: u64 = 64 << 20;
const CLONES: usize = 40;

/// The template that clones are made of.
pub(super) struct Golden {
    uuid: String,
    sha256: String,
}

impl Demo {
    /// Step: create an SR, an empty disk, and a disk from an image.
    pub(super) fn make_disks(&mut self) -> Result<Golden> {
        self.stage.title("A new SR, an empty disk, and a disk from a raw image of 64 MiB");
        let location = self.stage.make_dir(SR)?;
        self.stage.run(&["sr", "create", "--type", "file", "--name", SR, "--location", text(&location)?])?;
        self.stage.run(&["vdi", "create", "--sr", SR, "--size", "1GiB", "--name", "blank"])?;
        let image = self.stage.scratch("golden.raw");
        let file = File::create_new(&image).context("cannot create the image")?;
        file.set_len(IMAGE_BYTES)?;
        for part in 0..6_u64 {
            // Unaligned on purpose, with holes between.
            file.write_all_at(&hash::pattern(part + 1, 300 << 10), part * (11 << 20) + 1000)?;
        }
        let sha256 = hash::of_file(&image)?;
        let uuid = self.stage.run(&["vdi", "import", text(&image)?, "--sr", SR])?.trim().to_owned();
        fs::remove_file(&image)?;
        self.stage.verify("the imported disk", &uuid, &sha256)?;
        self.stage.run(&["vdi", "list", "--sr", SR])?;
        self.note_space("one image imported", SR)?;
        Ok(Golden { uuid, sha256 })
    }

    /// Step: forty disks that share one base.
    pub(super) fn clone_forty_times(&mut self, golden: &Golden) -> Result<()> {
        self.stage.title("Forty clones share the blocks of one base copy");
        let count = CLONES.to_string();
        let printed = self.stage.run(&["vdi", "clone", "golden", "--count", &count, "--name", "desk"])?;
        let clones: Vec<&str> = printed.lines().collect();
        ensure!(clones.len() == CLONES, "{} clones instead of {CLONES}", clones.len());
        self.stage.run(&["vdi", "tree", &golden.uuid])?;
        self.stage.run(&["sr", "stat", SR])?;
        for name in [clones[0], clones[CLONES - 1]] {
            let depth = self.stage.number(&["vdi", "show", name], "depth")?;
            ensure!(depth == 2, "a clone has {depth} images in its chain instead of 2");
            self.stage.verify("a clone", name, &golden.sha256)?;
        }
        self.note_space("forty clones", SR)
    }
}
