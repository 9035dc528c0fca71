//! The tree of an SR as relations between its rows: children, chains, depths.
//!
//! Built anew from a catalog's rows when it is asked for; O(images). A parent that the catalog does not have, and a cycle
//! (which only a damaged catalog holds), end a chain.

use catena_types::{CHAIN_LIMIT, ImageId, ImageRecord, VdiRecord, VdiUuid};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Relations between images and VDIs.
#[derive(Debug)]
pub struct Tree<'a> {
    images: &'a BTreeMap<ImageId, Arc<ImageRecord>>,
    children: HashMap<ImageId, Vec<ImageId>>,
    vdi_of: HashMap<ImageId, &'a Arc<VdiRecord>>,
}

impl<'a> Tree<'a> {
    /// Of these rows.
    pub fn new(
        images: &'a BTreeMap<ImageId, Arc<ImageRecord>>,
        vdis: &'a BTreeMap<VdiUuid, Arc<VdiRecord>>,
    ) -> Self {
        let mut children: HashMap<ImageId, Vec<ImageId>> = HashMap::new();
        for image in images.values() {
            if let Some(parent) = image.parent {
                children.entry(parent).or_default().push(image.id);
            }
        }
        let vdi_of = vdis.values().map(|vdi| (vdi.image, vdi)).collect();
        Self { images, children, vdi_of }
    }

    /// The image's row.
    pub fn image(&self, id: ImageId) -> Option<&'a Arc<ImageRecord>> {
        self.images.get(&id)
    }

    /// All images, by id.
    pub fn images(&self) -> impl Iterator<Item = &'a Arc<ImageRecord>> {
        self.images.values()
    }

    /// What hangs directly from the image, by id.
    pub fn children(&self, id: ImageId) -> &[ImageId] {
        self.children.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The VDI that points at the image.
    pub fn vdi(&self, id: ImageId) -> Option<&'a Arc<VdiRecord>> {
        self.vdi_of.get(&id).copied()
    }

    /// The image's parent, if the catalog has it.
    pub fn parent(&self, id: ImageId) -> Option<&'a Arc<ImageRecord>> {
        self.images.get(&id)?.parent.and_then(|parent| self.images.get(&parent))
    }

    /// The image and everything below it, leaf first. Adopted chains may be longer than the limit, so only a cycle ends early.
    pub fn chain(&self, leaf: ImageId) -> Vec<&'a Arc<ImageRecord>> {
        let mut chain: Vec<&Arc<ImageRecord>> = Vec::with_capacity(CHAIN_LIMIT);
        let mut next = self.images.get(&leaf);
        while let Some(image) = next {
            if chain.len() > self.images.len() {
                break;
            }
            chain.push(image);
            next = image.parent.and_then(|parent| self.images.get(&parent));
        }
        chain
    }

    /// Images in the chain, the image itself included.
    pub fn depth(&self, id: ImageId) -> usize {
        self.chain(id).len()
    }

    /// The depth of the deepest image at or above `id` (that is: among it and all that falls through to it).
    pub fn deepest(&self, id: ImageId) -> usize {
        let mut level = vec![id];
        let mut depth = self.depth(id);
        while depth <= self.images.len() {
            level = level.iter().flat_map(|image| self.children(*image)).copied().collect();
            if level.is_empty() {
                break;
            }
            depth += 1;
        }
        depth
    }

    /// Images without a parent in the catalog: where trees begin.
    pub fn roots(&self) -> impl Iterator<Item = &'a Arc<ImageRecord>> {
        self.images
            .values()
            .filter(|image| image.parent.is_none_or(|parent| !self.images.contains_key(&parent)))
    }
}
