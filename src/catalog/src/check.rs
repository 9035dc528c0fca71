//! The invariants of the tree, checked on what a commit would leave before anything is written.
//!
//! A guard against programming errors above, not a judge of images: it looks only at the images and VDIs that the
//! changes name. Pure; called by the commit.

use crate::state::{Change, State};
use catena_types::{CHAIN_LIMIT, ImageId, ImageRecord, ImageState, VdiRecord, VdiUuid};

/// An invariant that a commit would have broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A VDI must point at an image of the catalog.
    #[error("vdi {vdi} points at image {image}, which does not exist")]
    VdiWithoutImage {
        /// The VDI.
        vdi: VdiUuid,
        /// The image it names.
        image: ImageId,
    },
    /// A VDI points at a leaf.
    #[error("image {image} has the vdi {vdi} and a child")]
    VdiOnParent {
        /// The VDI.
        vdi: VdiUuid,
        /// The image it points at.
        image: ImageId,
    },
    /// Two VDIs on one image would write over each other.
    #[error("several vdis point at image {0}")]
    ImageShared(ImageId),
    /// Only images that are not in use may name a parent that is not in the catalog.
    #[error("image {image} has the parent {parent}, which does not exist")]
    ParentMissing {
        /// The image.
        image: ImageId,
        /// The parent it names.
        parent: ImageId,
    },
    /// An image falls through to itself.
    #[error("image {0} is its own ancestor")]
    Cycle(ImageId),
    /// A new image may not make a chain longer than the limit.
    #[error("the chain of the new image {image} would have {length} images")]
    ChainTooLong {
        /// The new image.
        image: ImageId,
        /// Images in its chain, itself included.
        length: usize,
    },
    /// An image is removed while another falls through to it.
    #[error("image {image} is removed while {child} falls through to it")]
    ParentRemoved {
        /// The image to be removed.
        image: ImageId,
        /// One of its children.
        child: ImageId,
    },
    /// An image is removed while a VDI points at it.
    #[error("image {image} is removed while vdi {vdi} points at it")]
    LeafRemoved {
        /// The image to be removed.
        image: ImageId,
        /// Its VDI.
        vdi: VdiUuid,
    },
    /// A number beyond what the catalog can hold (2^63 - 1).
    #[error("{0} is too large for the catalog")]
    NumberTooLarge(u64),
    /// A part of a record that has no written form.
    #[error("cannot be written: {0}")]
    Unwritable(String),
}

/// What `changes` touched in `next`; `before` tells which images are new.
pub(crate) fn check(before: &State, next: &State, changes: &[Change]) -> Result<(), Violation> {
    for change in changes {
        match change {
            Change::PutImage(image) => check_image(before, next, image.id)?,
            Change::RemoveImage(id) => check_removed(next, *id)?,
            Change::PutVdi(vdi) => next.vdis.get(&vdi.uuid).map_or(Ok(()), |vdi| check_vdi(next, vdi))?,
            Change::RemoveVdi(_)
            | Change::PutJob(_)
            | Change::RemoveJob(_)
            | Change::PutMeta(_)
            | Change::Event(_) => {}
        }
    }
    Ok(())
}

fn check_vdi(next: &State, vdi: &VdiRecord) -> Result<(), Violation> {
    let image = vdi.image;
    if !next.images.contains_key(&image) {
        return Err(Violation::VdiWithoutImage { vdi: vdi.uuid, image });
    }
    if next.vdis_of(image).count() > 1 {
        return Err(Violation::ImageShared(image));
    }
    if next.children(image).next().is_some() {
        return Err(Violation::VdiOnParent { vdi: vdi.uuid, image });
    }
    Ok(())
}

fn check_image(before: &State, next: &State, id: ImageId) -> Result<(), Violation> {
    let Some(image) = next.images.get(&id) else { return check_removed(next, id) };
    let Some(parent) = image.parent else { return Ok(()) };
    if may_hang_loose(image) && !next.images.contains_key(&parent) {
        return Ok(());
    }
    if !next.images.contains_key(&parent) {
        return Err(Violation::ParentMissing { image: id, parent });
    }
    if image.state != ImageState::Garbage
        && let Some(vdi) = next.vdi_of(parent)
    {
        return Err(Violation::VdiOnParent { vdi: vdi.uuid, image: parent });
    }
    let length = chain_length(next, id)?;
    let new = !before.images.contains_key(&id);
    if new && !may_hang_loose(image) && length > CHAIN_LIMIT {
        return Err(Violation::ChainTooLong { image: id, length });
    }
    Ok(())
}

fn check_removed(next: &State, id: ImageId) -> Result<(), Violation> {
    if next.images.contains_key(&id) {
        return Ok(());
    }
    if let Some(child) = next.children(id).find(|child| !may_hang_loose(child)) {
        return Err(Violation::ParentRemoved { image: id, child: child.id });
    }
    next.vdi_of(id).map_or(Ok(()), |vdi| Err(Violation::LeafRemoved { image: id, vdi: vdi.uuid }))
}

/// Whether nobody reads the image, so that its parent need not be there.
fn may_hang_loose(image: &ImageRecord) -> bool {
    match image.state {
        ImageState::Orphan | ImageState::Corrupt | ImageState::Missing | ImageState::Garbage => true,
        ImageState::Ok | ImageState::Mixed => false,
    }
}

/// Images from `id` to its root. A cycle among the changed images is met from each of its members, so one that does
/// not lead back to `id` may be left at the number of all images.
fn chain_length(next: &State, id: ImageId) -> Result<usize, Violation> {
    let length = next.chain(id).take(next.images.len() + 1).count();
    if length > next.images.len() { Err(Violation::Cycle(id)) } else { Ok(length) }
}
