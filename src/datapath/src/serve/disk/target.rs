//! An image that is written, with what is on its way to it: the leaf and, while a leaf merge is open, the image below it.
//!
//! What one of them has to do with the other is that a flush covers both (D9); each has its own commits, one at a time.

use super::commit::Commits;
use super::widen::Wish;
use super::write::Growth;
use catena_chain::Slot;
use catena_types::{BlockIndex, ImageId};
use std::collections::HashSet;

/// An image that is written.
pub(super) struct Target {
    /// Its place in the chain.
    pub(super) slot: Slot,
    /// Which it is, as `pending` names it.
    pub(super) image: ImageId,
    /// What it needs before more of it is used.
    pub(super) growth: Option<Growth>,
    /// Blocks that got a place and have no entry stored.
    pub(super) new_blocks: HashSet<BlockIndex>,
    /// What makes it last.
    pub(super) commits: Commits,
    /// Whether its device should be larger.
    pub(super) wish: Wish,
}

/// Those of a disk: none while it is served for reading only, and never more than two.
#[derive(Default)]
pub(super) struct Targets {
    list: Vec<Target>,
}

impl Targets {
    /// Another image is written from now on; nothing is on its way to it.
    pub(super) fn add(&mut self, slot: Slot, image: ImageId) {
        let (new_blocks, commits) = (HashSet::new(), Commits::default());
        self.list.push(Target { slot, image, growth: None, new_blocks, commits, wish: Wish::Content });
    }

    /// It is not written any more. What waits for it is the caller's business.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Target> {
        let index = self.list.iter().position(|target| target.slot == slot)?;
        Some(self.list.remove(index))
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Target> {
        self.list.iter().find(|target| target.slot == slot)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Target> {
        self.list.iter_mut().find(|target| target.slot == slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Target> {
        self.list.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        self.list.iter_mut()
    }

    /// Their places, as of now.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let slots = [0, 1].map(|index| self.list.get(index).map(|target| target.slot));
        slots.into_iter().flatten()
    }
}
