//! Images that a keeper hands over, opened as the disk wants them. Reads from the storage and waits for it: called before the loop
//! begins, and in a thread of the engine.
//!
//! All go past the page cache: what a guest reads it keeps in its own.

use super::disk::{Leaf, Part};
use crate::open::{Caching, Descriptors, open_image, open_raw};
use crate::trouble::trouble;
use catena_blockio::Container;
use catena_chain::Recall;
use catena_control::{Handed, Trouble, TroubleKind};
use catena_types::Format;
use catena_vhd::Mode;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// So many images are opened at a time.
const LANES: usize = 4;

/// An image that is going to be written.
pub(crate) fn leaf(handed: &Handed, fd: OwnedFd) -> Result<Leaf, Trouble> {
    let container = container(fd)?;
    let image = open_image(Arc::clone(&container), handed, Mode::ReadWrite)?;
    Ok(Leaf { id: handed.id, layer: Box::new(image), container })
}

/// An image that is only read.
pub(crate) fn part(handed: &Handed, fd: OwnedFd) -> Result<Part, Trouble> {
    let container = container(fd)?;
    let layer: Arc<dyn Recall> = match handed.format {
        Format::Vhd => Arc::new(open_image(Arc::clone(&container), handed, Mode::Recall)?),
        Format::Raw => Arc::new(open_raw(Arc::clone(&container), handed)?),
    };
    Ok(Part { id: handed.id, layer, container })
}

/// All of a chain, in their order. Several at a time: to open an image is to wait for a few reads. The block tables are read when
/// they are asked for; a long chain of a large disk has more than a hundred megabytes of them.
pub(crate) fn parts(images: Vec<(Handed, OwnedFd)>) -> Result<Vec<Part>, Trouble> {
    let in_a_lane = images.len().div_ceil(LANES).max(1);
    let mut images = images.into_iter();
    let open =
        |lane: Vec<(Handed, OwnedFd)>| lane.into_iter().map(|(handed, fd)| part(&handed, fd)).collect();
    std::thread::scope(|scope| {
        let next =
            || Some(images.by_ref().take(in_a_lane).collect::<Vec<_>>()).filter(|lane| !lane.is_empty());
        let lanes: Vec<_> = std::iter::from_fn(next).map(|lane| scope.spawn(move || open(lane))).collect();
        let panicked = || vec![Err(trouble(TroubleKind::Internal, "opening an image panicked"))];
        lanes.into_iter().flat_map(|lane| lane.join().unwrap_or_else(|_| panicked())).collect()
    })
}

/// Its bytes.
pub(crate) fn container(fd: OwnedFd) -> Result<Arc<dyn Container>, Trouble> {
    Descriptors::new(vec![fd]).container(Caching::Direct)
}
