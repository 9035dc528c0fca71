//! A small file system in a file of its own, to be filled: mounted through a loop device, unmounted when dropped.

use super::peer;
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::{Statvfs, statvfs};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use tempfile::TempDir;

/// A file system.
pub(crate) struct Small(TempDir);

impl Small {
    /// An ext4 of so many bytes, all of them for everybody.
    pub(crate) fn ext4(size: u64) -> Result<Self> {
        Self::new(size, "e2fsprogs", "mkfs.ext4", &["-q", "-m", "0", "-b", "4096"])
    }

    /// An XFS of so many bytes (320 MiB at least) that shares blocks.
    pub(crate) fn xfs(size: u64) -> Result<Self> {
        Self::new(size, "xfsprogs", "mkfs.xfs", &["-q", "-m", "reflink=1"])
    }

    fn new(size: u64, package: &str, tool: &str, options: &[&str]) -> Result<Self> {
        let small = Self(tempfile::tempdir()?);
        let (image, point) = (small.0.path().join("image"), small.point());
        File::create(&image)?.set_len(size)?;
        fs::create_dir(&point)?;
        let (image, point) = (image.to_string_lossy().into_owned(), point.to_string_lossy().into_owned());
        peer(package, tool, &[options, &[&image]].concat())?;
        peer("mount", "mount", &["-o", "loop", &image, &point])?;
        Ok(small)
    }

    /// Where it is mounted.
    pub(crate) fn point(&self) -> PathBuf {
        self.0.path().join("point")
    }

    /// What the file system says of itself.
    pub(crate) fn figures(&self) -> Result<Statvfs> {
        statvfs(&self.point()).context("the figures of a file system")
    }

    /// Takes all that is left, to the last block.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        for length in [1 << 20, 4096] {
            let piece = vec![0xff; length];
            let error = loop {
                if let Err(error) = ballast.write_all(&piece).and_then(|()| ballast.sync_all()) {
                    break error;
                }
            };
            ensure!(error.kind() == ErrorKind::StorageFull, "filling: {error}");
        }
        Ok(())
    }

    /// Gives back what `fill` has taken.
    pub(crate) fn relieve(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.point().join("ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Its loop device goes with it.
        if let Err(error) = umount2(&self.point(), MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.point().display());
        }
    }
}
