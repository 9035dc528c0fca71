//! Loop devices and mounts for tests, taken down when dropped, on a panic too. They need root.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{NamedTempFile, TempDir};

/// Runs a tool; its standard output. A missing tool is an error that names the Debian package.
fn run(tool: &str, package: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(tool).args(arguments).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other(format!("{tool} is missing: install the package {package}"))
        }
        _ => error,
    })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{tool} {arguments:?} (as root?): {}", message.trim())))
    }
}

fn report(outcome: io::Result<String>) {
    if let Err(error) = outcome {
        eprintln!("cleaning up: {error}");
    }
}

/// A block device on a temporary file.
pub(crate) struct LoopDevice {
    path: String,
    _backing: NamedTempFile,
}

impl LoopDevice {
    /// Of `size` bytes, with logical sectors of `sector` bytes.
    pub(crate) fn new(size: u64, sector: u32) -> io::Result<Self> {
        let backing = NamedTempFile::new()?;
        backing.as_file().set_len(size)?;
        let file = backing.path().to_string_lossy();
        let sector = sector.to_string();
        let path = run("losetup", "mount", &["--find", "--show", "--sector-size", &sector, &file])?;
        Ok(Self { path, _backing: backing })
    }

    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        Ok(std::fs::File::options().read(true).write(true).open(&self.path)?.into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        report(run("losetup", "mount", &["--detach", &self.path]));
    }
}

/// An XFS with reflink on a loop device with sectors of 4096 bytes.
pub(super) struct Xfs {
    directory: TempDir,
    // After the directory: unmounted by then.
    _device: LoopDevice,
}

impl Xfs {
    pub(super) fn new() -> io::Result<Self> {
        let device = LoopDevice::new(320 << 20, 4096)?;
        let directory = TempDir::new()?;
        run("mkfs.xfs", "xfsprogs", &["-q", "-f", "-m", "reflink=1", &device.path])?;
        run("mount", "mount", &[&device.path, &directory.path().to_string_lossy()])?;
        Ok(Self { directory, _device: device })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A new file, open for reading and writing.
    pub(super) fn file(&self, name: &str) -> io::Result<OwnedFd> {
        let path: PathBuf = self.path().join(name);
        Ok(std::fs::File::options().read(true).write(true).create_new(true).open(path)?.into())
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        report(run("umount", "mount", &[&self.path().to_string_lossy()]));
    }
}

/// A small file system in memory.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        let directory = TempDir::new()?;
        let size = format!("size={size}");
        run("mount", "mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &directory.path().to_string_lossy()])?;
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        report(run("umount", "mount", &[&self.path().to_string_lossy()]));
    }
}

/// A file system in memory that knows neither direct I/O nor holes.
pub(super) struct Ramfs(TempDir);

impl Ramfs {
    pub(super) fn new() -> io::Result<Self> {
        let directory = TempDir::new()?;
        run("mount", "mount", &["-t", "ramfs", "ramfs", &directory.path().to_string_lossy()])?;
        Ok(Self(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Ramfs {
    fn drop(&mut self) {
        report(run("umount", "mount", &[&self.path().to_string_lossy()]));
    }
}
