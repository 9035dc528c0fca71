//! What a disk takes and what deleting it would free, from the tree and the sizes of its images. Pure; for lists and records.
//!
//! Costs the length of the chain and, at a branch, the way to the nearest other VDI.

use crate::plan::{is_sound, merge_frees};
use crate::tree::Tree;
use catena_types::{Bytes, ImageId, ImageRecord, VdiKind};

/// The space of one VDI, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VdiSpace {
    /// Images in its chain, the leaf included.
    pub depth: u64,
    /// In images that no other VDI reads through.
    pub own: Bytes,
    /// In the other images of its chain.
    pub shared: Bytes,
    /// Freed by deleting it, without any merge.
    pub reclaimable: Bytes,
    /// Freed by deleting it and the merge that this makes possible, at most.
    pub reclaimable_after_coalesce: Bytes,
}

/// The space of the VDI that points at `leaf`.
pub fn space_of(tree: &impl Tree, leaf: ImageId) -> VdiSpace {
    let mut space = VdiSpace::default();
    let (mut alone, mut removed) = (true, true);
    let mut above = None;
    for image in tree.chain(leaf) {
        let others = || tree.children(image.id).filter(move |child| Some(*child) != above);
        alone = alone && !others().any(|child| is_read(tree, child));
        *(if alone { &mut space.own.0 } else { &mut space.shared.0 }) += image.allocated.0;
        if removed {
            removed = is_sound(image)
                && others().next().is_none()
                && (above.is_none() || tree.vdi(image.id).is_none());
            if removed {
                space.reclaimable.0 += image.allocated.0;
            } else {
                let mut others = others();
                let last = others.next().filter(|_| others.next().is_none());
                let merged = last.and_then(|child| tree.image(child)).map(|child| freed(tree, child, image));
                space.reclaimable_after_coalesce.0 += merged.unwrap_or_default().0;
            }
        }
        space.depth += 1;
        above = Some(image.id);
    }
    space.reclaimable_after_coalesce.0 += space.reclaimable.0;
    space
}

/// Whether any VDI reads through the image.
fn is_read(tree: &impl Tree, image: ImageId) -> bool {
    let mut open = vec![image];
    let mut seen = 0;
    while let Some(next) = open.pop().filter(|_| seen <= tree.count()) {
        if tree.vdi(next).is_some() {
            return true;
        }
        seen += 1;
        open.extend(tree.children(next));
    }
    false
}

/// What merging `child` into `parent` frees at most, once nothing else hangs from the parent.
fn freed(tree: &impl Tree, child: &ImageRecord, parent: &ImageRecord) -> Bytes {
    let leaves = tree.children(child.id).next().is_none();
    let mergeable = match tree.vdi(child.id) {
        Some(vdi) => leaves && vdi.kind == VdiKind::Disk,
        None => !leaves,
    };
    let both = is_sound(child) && is_sound(parent) && !child.foreign && !parent.foreign;
    if mergeable && both { merge_frees(child, parent) } else { Bytes(0) }
}
