//! A container on a block device, such as a logical volume.
//!
//! Invariant: nothing here changes its size; the owner does that elsewhere, and a new size is seen at the next call. Made
//! by whoever is handed a device's descriptor, opened with `O_EXCL` by the one who writes (D11).

use crate::access::Access;
use crate::container::{Container, Sizing};
use catena_types::{Bytes, FileOffset};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// What a discard is rounded to, inwards: no device has larger sectors.
const PAGE: u64 = 4096;

/// The kernel's ioctls that tell the size of a device in bytes, and discard a range: first byte and length.
mod ioctl {
    nix::ioctl_read!(size_in_bytes, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

/// A block device, read and written through the page cache or directly.
pub struct BlockContainer {
    access: Access,
}

impl BlockContainer {
    /// Takes over an open block device; `ENOTTY` or the like if it is none. `direct` asks for direct I/O, see
    /// [`is_direct`](Self::is_direct). The mode is set on the open file description, whatever it was before.
    pub fn new(fd: OwnedFd, direct: bool) -> io::Result<Self> {
        let container = Self { access: Access::new(File::from(fd), direct)? };
        container.end()?;
        Ok(container)
    }

    /// Whether reads and writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.access.is_direct()
    }

    fn end(&self) -> io::Result<u64> {
        let mut size = 0;
        // SAFETY: the descriptor is open and the kernel writes one u64.
        unsafe { ioctl::size_in_bytes(self.access.file().as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }
}

impl Container for BlockContainer {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.access.read(buf, at.0)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        let size = self.end()?;
        match at.0.checked_add(buf.len() as u64) {
            Some(end) if end <= size => self.access.write(buf, at.0),
            _ => Err(Errno::ENOSPC.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.access.flush()
    }

    fn size(&self) -> io::Result<Bytes> {
        self.end().map(Bytes)
    }

    fn set_size(&self, _size: Bytes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        let end = self.end()?;
        // The kernel refuses a range that begins past the end of a device.
        self.access.punch(at.0, len.0.min(end.saturating_sub(at.0)), end)
    }

    fn release(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        // A discard, and not zeros: a device that cannot discard would have to write them.
        let start = at.0.next_multiple_of(PAGE);
        let end = at.0.saturating_add(len.0).min(self.end()?) / PAGE * PAGE;
        if start >= end {
            return Ok(());
        }
        let _shared = self.access.beside_writers();
        // SAFETY: the descriptor is open and the kernel reads the two numbers.
        match unsafe { ioctl::discard(self.access.file().as_raw_fd(), &[start, end - start]) } {
            Ok(_) | Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTTY) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn clone_range(
        &self,
        _at: FileOffset,
        _source: &dyn Container,
        _source_at: FileOffset,
        _len: Bytes,
    ) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        self.size()
    }

    fn sizing(&self) -> Sizing {
        Sizing::Explicit
    }

    fn alignment(&self) -> usize {
        self.access.alignment()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.access.fd())
    }
}
