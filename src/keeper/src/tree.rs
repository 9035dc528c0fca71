//! The catalog's rows and their index, as the planner of merges wants to see them.

use catena_catalog::State;
use catena_coalesce::Tree;
use catena_types::{ImageId, ImageRecord, VdiRecord};
use std::sync::Arc;

/// The tree of a state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a>(pub(crate) &'a State);

impl Tree for Rows<'_> {
    fn image(&self, id: ImageId) -> Option<&Arc<ImageRecord>> {
        self.0.images.get(&id)
    }

    fn children(&self, id: ImageId) -> impl Iterator<Item = ImageId> {
        self.0.children(id).map(|image| image.id)
    }

    fn vdi(&self, id: ImageId) -> Option<&Arc<VdiRecord>> {
        self.0.vdi_of(id)
    }

    fn images(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.0.images.values()
    }

    fn count(&self) -> usize {
        self.0.images.len()
    }
}
