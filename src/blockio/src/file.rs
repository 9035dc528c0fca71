//! A container in a file of any file system.
//!
//! Invariant: the descriptor is this container's alone while it is written (D11), as rewriting a part of an alignment unit
//! is guarded inside one container only. Made by whoever is handed an image's descriptor.

use crate::access::Access;
use crate::container::{Container, Sizing};
use catena_types::{Bytes, FileOffset};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Bytes in a unit of `st_blocks`, on every file system.
const STAT_BLOCK_BYTES: u64 = 512;

/// A file, read and written through the page cache or directly.
pub struct FileContainer {
    access: Access,
}

impl FileContainer {
    /// Takes over an open file. `direct` asks for direct I/O; where the file system refuses it the container is buffered,
    /// see [`is_direct`](Self::is_direct). The mode is set on the open file description, whatever it was before.
    pub fn new(fd: OwnedFd, direct: bool) -> io::Result<Self> {
        Ok(Self { access: Access::new(File::from(fd), direct)? })
    }

    /// Whether reads and writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.access.is_direct()
    }

    #[cfg(test)]
    pub(crate) fn with_unit(file: File, unit: usize) -> io::Result<Self> {
        Ok(Self { access: Access::with_unit(file, unit)? })
    }
}

impl Container for FileContainer {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.access.read(buf, at.0)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.access.write(buf, at.0)
    }

    fn flush(&self) -> io::Result<()> {
        self.access.flush()
    }

    fn collect_writes(&self, on: bool) -> io::Result<()> {
        self.access.collect_writes(on)
    }

    fn expect_write(&self, at: FileOffset, len: Bytes) {
        self.access.fetch_edges(at.0, len.0);
    }

    fn size(&self) -> io::Result<Bytes> {
        self.access.size().map(Bytes)
    }

    fn set_size(&self, size: Bytes) -> io::Result<()> {
        let _alone = self.access.alone();
        self.access.file().set_len(size.0)
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        self.access.punch(at.0, len.0, self.access.size()?)
    }

    fn clone_range(
        &self,
        at: FileOffset,
        source: &dyn Container,
        source_at: FileOffset,
        len: Bytes,
    ) -> io::Result<bool> {
        let Some(source) = source.descriptor() else { return Ok(false) };
        if len.0 == 0 {
            // To the kernel a length of zero means everything up to the end.
            return Ok(true);
        }
        let range = libc::file_clone_range {
            src_fd: i64::from(source.as_raw_fd()),
            src_offset: source_at.0,
            src_length: len.0,
            dest_offset: at.0,
        };
        let _shared = self.access.beside_writers();
        share_blocks(self.access.fd(), &range)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.access.file().metadata()?.blocks() * STAT_BLOCK_BYTES))
    }

    fn sizing(&self) -> Sizing {
        Sizing::Automatic
    }

    fn alignment(&self) -> usize {
        self.access.alignment()
    }

    fn is_in_memory(&self) -> bool {
        self.access.is_in_memory()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.access.fd())
    }
}

/// `FICLONERANGE`; `false` where these two ranges cannot share.
fn share_blocks(target: BorrowedFd<'_>, range: &libc::file_clone_range) -> io::Result<bool> {
    loop {
        // SAFETY: both descriptors are open for as long as the caller borrows them, and the kernel only reads the struct.
        let outcome = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, range) };
        match Errno::result(outcome) {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            // Not supported, another file system, misaligned or past the source's end, not a file.
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}
