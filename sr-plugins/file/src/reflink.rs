//! What the file system under an SR can do, found out by trying it.
//!
//! Used by the store once, when the SR is opened by its owner; the two scratch files lie in `.catena` for that moment. A full file
//! system has no room for them, and just then merges that share blocks are needed: it is asked with requests that change nothing.

use crate::directory::Directory;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::libc;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// The names of the scratch files.
pub(crate) const SCRATCH: [&str; 2] = ["try-from", "try-to"];

/// Bytes that are shared and punched; a multiple of the block size of every file system with reflink.
const LENGTH: u32 = 64 << 10;

mod ioctl {
    nix::ioctl_write_ptr!(clone_range, 0x94, 13, nix::libc::file_clone_range);
}

/// What can be done with ranges of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    /// Two files can share blocks.
    pub(crate) clone_range: bool,
    /// Blocks of a file can be given back.
    pub(crate) punch: bool,
}

/// Tries on scratch files in `.catena`; where there is no room for them, on `file` there, which does not change. What fails,
/// for whatever other reason, counts as not possible.
pub(crate) fn try_out(home: &Directory, file: &str) -> Tried {
    let tried = on_scratch_files(home);
    for name in SCRATCH {
        let _ = home.remove(name);
    }
    match tried {
        Ok(tried) => tried,
        Err(Errno::ENOSPC | Errno::EDQUOT) => without_space(home, file),
        Err(_) => Tried::default(),
    }
}

fn on_scratch_files(home: &Directory) -> Result<Tried, Errno> {
    let scratch = |name| {
        let _ = home.remove(name);
        home.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL).map(File::from)
    };
    let (from, to) = (scratch(SCRATCH[0])?, scratch(SCRATCH[1])?);
    let error = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    from.write_all_at(&[1; LENGTH as usize], 0).map_err(error)?;
    // Where the last block is taken this says so; else it is said after the sharing was refused.
    from.sync_all().map_err(error)?;
    let clone_range = match clone(&from, &to, LENGTH.into()) {
        Err(Errno::ENOSPC) => return Err(Errno::ENOSPC),
        cloned => cloned.is_ok(),
    };
    Ok(Tried { clone_range, punch: punch(&from, 0) })
}

/// A range cannot be shared with itself: who knows sharing finds the range wrong, who does not says so. And there is nothing to
/// punch behind the end.
fn without_space(home: &Directory, file: &str) -> Tried {
    const BEHIND: libc::off_t = 1 << 30;
    match home.open_file(file, OFlag::O_RDWR).map(File::from) {
        Ok(file) => {
            Tried { clone_range: clone(&file, &file, 0) == Err(Errno::EINVAL), punch: punch(&file, BEHIND) }
        }
        Err(_) => Tried::default(),
    }
}

/// Shares so many bytes from the start, all if 0.
fn clone(from: &File, to: &File, length: u64) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: 0,
        src_length: length,
        dest_offset: 0,
    };
    // SAFETY: the request reads one `file_clone_range`, which lives until the call returns; both descriptors are open.
    unsafe { ioctl::clone_range(to.as_raw_fd(), &raw const range) }.map(drop)
}

fn punch(file: &File, offset: libc::off_t) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset, LENGTH.into()).is_ok()
}
