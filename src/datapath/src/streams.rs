//! What a client's descriptor is to a worker: something with positions, or something that only flows.
//!
//! Positions need a regular file or a block device that is at its beginning. Everything else flows: pipes, sockets, and files in
//! the middle of which the client's shell left them, or to which it appends; what is before the position is not ours then.

use crate::trouble::from_io;
use catena_blockio::{Container, open_container};
use catena_control::Trouble;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

/// A stream that is read.
pub(crate) enum Incoming {
    /// Can be read anywhere; the file is the same, for asking where its holes are, and for its position.
    Placed(Arc<dyn Container>, File),
    /// Can be read on.
    Flowing(File),
}

/// A stream that is written.
pub(crate) enum Outgoing {
    /// An empty file; the other one is the same, for its position.
    NewFile(Arc<dyn Container>, File),
    /// A block device, and the same for its position.
    Device(Arc<dyn Container>, File),
    /// Can be written on.
    Flowing(File),
}

impl Incoming {
    /// What the descriptor is.
    pub(crate) fn of(fd: OwnedFd) -> Result<Self, Trouble> {
        let file = File::from(fd);
        let kind = file.metadata().map_err(from_io("looking at the stream"))?.file_type();
        if !(kind.is_file() || kind.is_block_device()) || position(&file) != Some(0) {
            return Ok(Self::Flowing(file));
        }
        let container = container(&file)?;
        Ok(Self::Placed(container, file))
    }
}

impl Outgoing {
    /// What the descriptor is.
    pub(crate) fn of(fd: OwnedFd) -> Result<Self, Trouble> {
        let file = File::from(fd);
        let metadata = file.metadata().map_err(from_io("looking at the stream"))?;
        let kind = metadata.file_type();
        let placed = position(&file) == Some(0) && !appends(&file);
        if placed && kind.is_block_device() {
            Ok(Self::Device(container(&file)?, file))
        } else if placed && kind.is_file() && metadata.len() == 0 {
            Ok(Self::NewFile(container(&file)?, file))
        } else {
            Ok(Self::Flowing(file))
        }
    }
}

fn container(file: &File) -> Result<Arc<dyn Container>, Trouble> {
    let fd = file.try_clone().map_err(from_io("opening the stream"))?;
    open_container(fd.into(), false).map_err(from_io("opening the stream"))
}

/// Where a file stands; `None` for what has no position.
fn position(file: &File) -> Option<i64> {
    lseek(file, 0, Whence::SeekCur).ok()
}

fn appends(file: &File) -> bool {
    fcntl(file, FcntlArg::F_GETFL).is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_APPEND))
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or_default()
}
