//! Direct I/O of one descriptor: switching it on, and the alignment it asks for.
//!
//! The smallest alignment that the file takes is looked for, since metadata are written in single 512-byte sectors and each
//! sector smaller than the unit costs a read. Called by [`Access`](crate::access) only.

use crate::buffer::AlignedBuf;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What a request must be a multiple of to go to the storage without a detour. Both are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Address of the memory, in bytes.
    pub(crate) memory: usize,
    /// Offset and length, in bytes.
    pub(crate) unit: usize,
}

impl Alignment {
    /// What every device and file system takes.
    const SAFE: Self = Self { memory: AlignedBuf::ALIGNMENT, unit: 4096 };
    /// What the common device takes.
    const SECTOR: Self = Self { memory: 512, unit: 512 };

    /// Whether the request needs no detour.
    pub(crate) fn fits(self, buf: &[u8], at: u64) -> bool {
        buf.as_ptr().addr().is_multiple_of(self.memory) && self.covers(at, buf.len())
    }

    /// Whether the range begins and ends at a unit.
    pub(crate) fn covers(self, at: u64, len: usize) -> bool {
        at.is_multiple_of(self.unit as u64) && len.is_multiple_of(self.unit)
    }
}

/// Whether `O_DIRECT` is set.
pub(crate) fn is_on(file: &File) -> io::Result<bool> {
    Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?).contains(OFlag::O_DIRECT))
}

/// Sets or clears `O_DIRECT`; `false` if the file system knows no direct I/O.
pub(crate) fn switch(file: &File, on: bool) -> io::Result<bool> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_DIRECT) == on {
        return Ok(true);
    }
    flags.set(OFlag::O_DIRECT, on);
    match fcntl(file, FcntlArg::F_SETFL(flags)) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Switches direct I/O on and finds its alignment. `None`: the file cannot be accessed directly and stays buffered.
pub(crate) fn enable(file: &File) -> io::Result<Option<Alignment>> {
    if !switch(file, true)? {
        return Ok(None);
    }
    let alignment = match reported(file) {
        Reported::Takes(alignment) => Some(alignment),
        Reported::Refuses => None,
        Reported::Unknown => probed(file)?,
    };
    if alignment.is_none() {
        switch(file, false)?;
    }
    Ok(alignment)
}

/// What the kernel says about direct I/O on a file.
enum Reported {
    /// Possible, so aligned.
    Takes(Alignment),
    /// Not possible, whatever the flag says.
    Refuses,
    /// A kernel before 6.1, or a file system that does not tell.
    Unknown,
}

fn reported(file: &File) -> Reported {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a terminated string, the descriptor is open, and the kernel writes one statx to `status`.
    let outcome = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, status.as_mut_ptr())
    };
    if outcome != 0 {
        return Reported::Unknown;
    }
    // SAFETY: zeroed when made, and a statx is valid in any state.
    let status = unsafe { status.assume_init() };
    if status.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Reported::Unknown;
    }
    match (status.stx_dio_mem_align as usize, status.stx_dio_offset_align as usize) {
        (0, _) | (_, 0) => Reported::Refuses,
        (memory, unit) if memory > AlignedBuf::ALIGNMENT || unit > AlignedBuf::ALIGNMENT => Reported::Refuses,
        (memory, unit) => Reported::Takes(Alignment { memory, unit: unit.max(512) }),
    }
}

/// Tries a sector, then a page. Only a read of data that exist is an answer: holes and the end of the file are served
/// without a look at the alignment, so a file without data gets the alignment that is always right.
fn probed(file: &File) -> io::Result<Option<Alignment>> {
    let Ok(data) = lseek(file, 0, Whence::SeekData) else { return Ok(Some(Alignment::SAFE)) };
    let page = u64::try_from(data).unwrap_or(0) & !4095;
    let mut buffer = AlignedBuf::zeroed(4096 + 512);
    // One sector into the page and into the memory: aligned to 512 and to nothing more.
    if taken(file.read_at(&mut buffer[512..1024], page + 512))? {
        return Ok(Some(Alignment::SECTOR));
    }
    Ok(taken(file.read_at(&mut buffer[..4096], page))?.then_some(Alignment::SAFE))
}

fn taken(outcome: io::Result<usize>) -> io::Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_needs_data_to_trust_a_sector() {
        let file = tempfile::tempfile().unwrap();
        switch(&file, true).unwrap();
        assert_eq!(probed(&file).unwrap(), Some(Alignment::SAFE));
        file.set_len(1 << 20).unwrap();
        assert_eq!(probed(&file).unwrap(), Some(Alignment::SAFE));
        switch(&file, false).unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        switch(&file, true).unwrap();
        let alignment = probed(&file).unwrap().unwrap();
        assert!(alignment == Alignment::SAFE || alignment == Alignment::SECTOR);
    }

    #[test]
    fn a_file_without_direct_io_stays_buffered() {
        let proc = File::open("/proc/self/status").unwrap();
        assert_eq!(enable(&proc).unwrap(), None);
        assert!(!OFlag::from_bits_retain(fcntl(&proc, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_DIRECT));
    }
}
