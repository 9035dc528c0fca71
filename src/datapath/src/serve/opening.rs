//! Images that a keeper hands over, opened as the disk wants them. Reads from the storage and waits for it: called before the loop
//! begins, and in a thread of the engine.
//!
//! All go past the page cache: what a guest reads it keeps in its own.

use super::disk::{Leaf, Part};
use crate::open::{Caching, Descriptors, open_image};
use catena_blockio::Container;
use catena_control::{Handed, Trouble};
use catena_vhd::{Image, Mode};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An image that is going to be written.
pub(crate) fn leaf(handed: &Handed, fd: OwnedFd) -> Result<Leaf, Trouble> {
    let (image, container) = open(handed, fd, Mode::ReadWrite)?;
    Ok(Leaf { id: handed.id, layer: Box::new(image), container })
}

/// An image that is only read.
pub(crate) fn part(handed: &Handed, fd: OwnedFd) -> Result<Part, Trouble> {
    let (image, container) = open(handed, fd, Mode::ReadOnly)?;
    Ok(Part { id: handed.id, layer: Arc::new(image), container })
}

/// Its bytes.
pub(crate) fn container(fd: OwnedFd) -> Result<Arc<dyn Container>, Trouble> {
    Descriptors::new(vec![fd]).container(Caching::Direct)
}

fn open(handed: &Handed, fd: OwnedFd, mode: Mode) -> Result<(Image, Arc<dyn Container>), Trouble> {
    let container = container(fd)?;
    Ok((open_image(Arc::clone(&container), handed, mode)?, container))
}
