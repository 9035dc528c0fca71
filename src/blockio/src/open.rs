//! From a descriptor to the container that fits it.

use crate::container::Container;
use crate::device::BlockContainer;
use crate::file::FileContainer;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

/// The container on an open file or block device, with direct I/O if asked for and possible. Anything else that a descriptor
/// may be is `InvalidInput`.
pub fn open_container(fd: OwnedFd, direct: bool) -> io::Result<Arc<dyn Container>> {
    let file = File::from(fd);
    let kind = file.metadata()?.file_type();
    let fd = OwnedFd::from(file);
    if kind.is_file() {
        Ok(Arc::new(FileContainer::new(fd, direct)?))
    } else if kind.is_block_device() {
        Ok(Arc::new(BlockContainer::new(fd, direct)?))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"))
    }
}
