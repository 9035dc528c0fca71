//! libvhdi as a judge: its program serves an image and its parents as raw files.

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An image that libvhdi serves as raw files; unmounted when dropped.
pub(crate) struct Mounted {
    point: PathBuf,
    program: Child,
}

impl Mounted {
    /// Mounts an image.
    pub(crate) fn new(image: &Path, point: PathBuf) -> Result<Self> {
        ensure!(
            Path::new("/dev/fuse").exists(),
            "/dev/fuse is missing: vhdimount needs the kernel's fuse module"
        );
        fs::create_dir(&point)?;
        let mut command = Command::new("vhdimount");
        // In the foreground (-v), so that its end can be awaited.
        command
            .arg("-v")
            .arg(image)
            .arg(&point)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let program =
            command.spawn().context("vhdimount cannot be run: install the Debian package libvhdi-utils")?;
        let mut mounted = Self { point, program };
        let end = Instant::now() + Duration::from_secs(30);
        while !mounted.layer(1).exists() {
            if let Some(status) = mounted.program.try_wait()? {
                anyhow::bail!("vhdimount ended with {status}");
            }
            ensure!(Instant::now() < end, "vhdimount does not show the image");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(mounted)
    }

    /// The raw view of the chain up to a level; 1 is the root.
    pub(crate) fn layer(&self, level: usize) -> PathBuf {
        self.point.join(format!("vhdi{level}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached even when a reader is left; the program ends with its mount, and is ended where there was none.
        if umount2(&self.point, MntFlags::MNT_DETACH).is_err() {
            let _ = self.program.kill();
        }
        let _ = self.program.wait();
    }
}
