//! What the file system under an SR can do, found out by trying it.
//!
//! Used by the store once, when the SR is opened by its owner; the two scratch files lie in `.catena` for that moment.

use crate::directory::Directory;
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

/// Tries on scratch files in `.catena`. What fails, for whatever reason, counts as not possible.
pub(crate) fn try_out(home: &Directory) -> Tried {
    let files = SCRATCH.map(|name| {
        let _ = home.remove(name);
        home.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL).map(File::from)
    });
    let tried = match &files {
        [Ok(from), Ok(to)] if from.write_all_at(&[1; LENGTH as usize], 0).is_ok() => {
            Tried { clone_range: clone(from, to), punch: punch(from) }
        }
        _ => Tried::default(),
    };
    for name in SCRATCH {
        let _ = home.remove(name);
    }
    tried
}

fn clone(from: &File, to: &File) -> bool {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: 0,
        src_length: LENGTH.into(),
        dest_offset: 0,
    };
    // SAFETY: the request reads one `file_clone_range`, which lives until the call returns; both descriptors are open.
    unsafe { ioctl::clone_range(to.as_raw_fd(), &raw const range) }.is_ok()
}

fn punch(file: &File) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, 0, LENGTH.into()).is_ok()
}
