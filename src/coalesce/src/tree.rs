//! The tree of an SR as relations between its rows: children, chains, depths.
//!
//! Who has the rows and their index implements the first methods; the rest follows. A parent that is not among the rows, and a
//! cycle (which only a damaged catalog holds), end a chain.

use catena_types::{CHAIN_LIMIT, ImageId, ImageRecord, VdiRecord};
use std::sync::Arc;

/// Relations between images and VDIs. Each of the first methods but `images` must be cheap however many images there are.
pub trait Tree {
    /// The image's row.
    fn image(&self, id: ImageId) -> Option<&Arc<ImageRecord>>;

    /// What hangs directly from the image, by id. Garbage hangs from nothing.
    fn children(&self, id: ImageId) -> impl Iterator<Item = ImageId>;

    /// The VDI that points at the image.
    fn vdi(&self, id: ImageId) -> Option<&Arc<VdiRecord>>;

    /// All images, by id.
    fn images(&self) -> impl Iterator<Item = &Arc<ImageRecord>>;

    /// How many images there are.
    fn count(&self) -> usize;

    /// The image's only child, if it has just one.
    fn only_child(&self, id: ImageId) -> Option<ImageId> {
        let mut children = self.children(id);
        children.next().filter(|_| children.next().is_none())
    }

    /// The image's parent, if it is among the rows.
    fn parent(&self, id: ImageId) -> Option<&Arc<ImageRecord>> {
        self.image(id)?.parent.and_then(|parent| self.image(parent))
    }

    /// The image and everything below it, leaf first. Adopted chains may be longer than the limit, so only a cycle ends early.
    fn chain(&self, leaf: ImageId) -> Vec<&Arc<ImageRecord>> {
        let mut chain: Vec<&Arc<ImageRecord>> = Vec::with_capacity(CHAIN_LIMIT);
        let mut next = self.image(leaf);
        while let Some(image) = next.filter(|_| chain.len() <= self.count()) {
            chain.push(image);
            next = image.parent.and_then(|parent| self.image(parent));
        }
        chain
    }

    /// Images in the chain, the image itself included.
    fn depth(&self, id: ImageId) -> usize {
        self.chain(id).len()
    }

    /// The depth of the deepest image at or above `id` (that is: among it and all that falls through to it).
    fn deepest(&self, id: ImageId) -> usize {
        let mut level = vec![id];
        let mut depth = self.depth(id);
        while depth <= self.count() {
            level = level.iter().flat_map(|image| self.children(*image)).collect();
            if level.is_empty() {
                break;
            }
            depth += 1;
        }
        depth
    }

    /// Images without a parent among the rows: where trees begin.
    fn roots(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.images().filter(|image| image.parent.is_none_or(|parent| self.image(parent).is_none()))
    }
}
