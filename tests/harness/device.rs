//! A block device with an image on it, as a logical volume is one: a loop device on a file, detached when dropped.

use super::{peer, text};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::NamedTempFile;

/// Bytes that a block takes, with its bitmap and what aligns it.
const BLOCK: u64 = 4104 << 9;
/// What stood on the device before.
const STALE: u8 = 0xAA;

/// A device that holds an image.
pub(crate) struct Device {
    path: PathBuf,
    backing: NamedTempFile,
    size: u64,
}

impl Device {
    /// On which others have left their bytes, with room for so many blocks; and on it the image of a file, its footer at the end.
    pub(crate) fn holding(file: &Path, blocks: u64) -> Result<Self> {
        let image = fs::read(file)?;
        let (body, footer) = image.split_at(image.len() - 512);
        let size = size_for(blocks);
        ensure!(size > image.len() as u64, "the image has {} bytes, and the device {size}", image.len());
        let backing = NamedTempFile::new()?;
        backing.as_file().write_all_at(&vec![STALE; usize::try_from(size)?], 0)?;
        let path = peer("mount", "losetup", &["--find", "--show", &text(backing.path())])?;
        let device = Self { path: path.trim().into(), backing, size };
        let node = File::options().write(true).open(&device.path)?;
        node.write_all_at(body, 0)?;
        node.write_all_at(footer, size - 512)?;
        node.sync_all()?;
        Ok(device)
    }

    /// Its node.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it larger, with more of what others have left; its size then.
    pub(crate) fn enlarge(&mut self, blocks: u64) -> Result<u64> {
        let more = size_for(blocks).checked_sub(self.size).context("a device that becomes smaller")?;
        self.backing.as_file().write_all_at(&vec![STALE; usize::try_from(more)?], self.size)?;
        peer("mount", "losetup", &["--set-capacity", &text(&self.path)])?;
        self.size += more;
        Ok(self.size)
    }
}

fn size_for(blocks: u64) -> u64 {
    8192 + blocks * BLOCK + 1024
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}
