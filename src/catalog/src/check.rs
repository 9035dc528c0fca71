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
    /// A VDI that is being served has to be there.
    #[error("vdi {0} is attached and does not exist")]
    AttachedWithoutVdi(VdiUuid),
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
            Change::RemoveVdi(vdi) => check_attached(next, *vdi)?,
            Change::PutAttachment(row) => check_attached(next, row.vdi)?,
            Change::RemoveAttachment(_)
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

fn check_attached(next: &State, vdi: VdiUuid) -> Result<(), Violation> {
    match next.attachments.contains_key(&vdi) && !next.vdis.contains_key(&vdi) {
        true => Err(Violation::AttachedWithoutVdi(vdi)),
        false => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{attachment, disk, image, image_id, meta, vdi, vdi_id};

    /// What `changes` to a catalog that holds `before` are answered.
    fn answer(before: &[Change], changes: &[Change]) -> Result<(), Violation> {
        let before = State::preview(meta(), before);
        let mut next = before.clone();
        changes.iter().for_each(|change| next.apply(change));
        check(&before, &next, changes)
    }

    fn child(number: u32, parent: u32, state: ImageState) -> Change {
        Change::PutImage(ImageRecord { state, ..image(number, Some(parent)) })
    }

    #[test]
    fn a_vdi_needs_an_image_of_its_own_without_a_child() {
        let missing = Violation::VdiWithoutImage { vdi: vdi_id(1), image: image_id(9) };
        assert_eq!(answer(&[], &[Change::PutVdi(vdi(1, 9))]), Err(missing));
        assert_eq!(answer(&disk(1), &[Change::PutVdi(vdi(2, 1))]), Err(Violation::ImageShared(image_id(1))));
        let on_parent = Err(Violation::VdiOnParent { vdi: vdi_id(1), image: image_id(1) });
        assert_eq!(answer(&disk(1), &[child(2, 1, ImageState::Ok)]), on_parent);
        assert_eq!(answer(&disk(1), &[child(2, 1, ImageState::Garbage)]), Ok(()));
        // The commit of a snapshot: the order inside it does not matter.
        let moved = [Change::PutVdi(vdi(1, 2)), child(2, 1, ImageState::Ok)];
        assert_eq!(answer(&disk(1), &moved), Ok(()));
    }

    #[test]
    fn only_a_vdi_that_is_there_is_attached() {
        let attached = [disk(1).to_vec(), vec![Change::PutAttachment(attachment(1))]].concat();
        let gone = Err(Violation::AttachedWithoutVdi(vdi_id(1)));
        assert_eq!(answer(&[], &attached), Ok(()));
        assert_eq!(answer(&[], &[Change::PutAttachment(attachment(1))]), gone);
        assert_eq!(answer(&attached, &[Change::RemoveVdi(vdi_id(1))]), gone);
        let both = [Change::RemoveVdi(vdi_id(1)), Change::RemoveAttachment(vdi_id(1))];
        assert_eq!(answer(&attached, &both), Ok(()));
    }

    #[test]
    fn only_what_nobody_reads_may_hang_loose() {
        let missing = Err(Violation::ParentMissing { image: image_id(2), parent: image_id(1) });
        for state in [ImageState::Ok, ImageState::Mixed] {
            assert_eq!(answer(&[], &[child(2, 1, state)]), missing);
        }
        for state in [ImageState::Orphan, ImageState::Corrupt, ImageState::Missing, ImageState::Garbage] {
            assert_eq!(answer(&[], &[child(2, 1, state)]), Ok(()));
        }
    }

    #[test]
    fn what_is_needed_is_not_removed() {
        let remove = [Change::RemoveImage(image_id(1))];
        let tree = [Change::PutImage(image(1, None)), child(2, 1, ImageState::Ok)];
        let needed = Violation::ParentRemoved { image: image_id(1), child: image_id(2) };
        assert_eq!(answer(&tree, &remove), Err(needed));
        assert_eq!(
            answer(&disk(1), &remove),
            Err(Violation::LeafRemoved { image: image_id(1), vdi: vdi_id(1) })
        );
        assert_eq!(answer(&disk(1), &[Change::RemoveVdi(vdi_id(1)), remove[0].clone()]), Ok(()));
    }

    #[test]
    fn no_image_is_its_own_ancestor() {
        let tree =
            [Change::PutImage(image(1, None)), child(2, 1, ImageState::Ok), child(3, 2, ImageState::Ok)];
        assert!(matches!(answer(&tree, &[child(1, 3, ImageState::Ok)]), Err(Violation::Cycle(_))));
        assert!(matches!(answer(&tree, &[child(1, 1, ImageState::Ok)]), Err(Violation::Cycle(_))));
    }

    #[test]
    fn a_new_image_fits_into_the_limit() {
        let limit = u32::try_from(CHAIN_LIMIT).unwrap();
        let mut chain = vec![Change::PutImage(image(1, None))];
        chain.extend((2..=limit).map(|number| child(number, number - 1, ImageState::Ok)));
        assert_eq!(answer(&[], &chain), Ok(()));
        let one_more = child(limit + 1, limit, ImageState::Ok);
        let length = CHAIN_LIMIT + 1;
        let refused = Err(Violation::ChainTooLong { image: image_id(limit + 1), length });
        assert_eq!(answer(&chain, std::slice::from_ref(&one_more)), refused);
        // One that is there already may be written again.
        chain.push(one_more.clone());
        assert_eq!(answer(&chain, &[one_more]), Ok(()));
    }
}
