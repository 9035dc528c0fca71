//! Which containers are in use: all others need not be ready, and what is only read need not be writable.
//!
//! Containers are made ready by who hands them out, and let go here, after each thing that the owner has done. In use is what the
//! processes of disks have open or are to have, and what running jobs work on. Nothing is counted, so nothing leaks, and what a
//! crash has left is let go when the SR is opened. A container that is let go too early does no harm: it is open, and stays.

use crate::owner::Owner;
use catena_sr_api::Access;
use catena_types::{AttachMode, ImageId};
use std::collections::BTreeMap;

impl Owner {
    /// Lets go of the containers that nobody uses any more, and of the right to write those that are only read.
    pub(crate) fn keep_active(&self) {
        if !self.is_sized() {
            return;
        }
        let used = self.in_use();
        let wanted: Vec<(&str, Access)> =
            used.iter().map(|(name, access)| (name.as_str(), *access)).collect();
        if let Err(error) = self.store.keep_active(&wanted) {
            tracing::warn!(sr = %self.sr.uuid, %error, "containers that nobody uses could not be let go");
        }
    }

    /// The containers that processes and jobs have open, or are about to.
    fn in_use(&self) -> BTreeMap<String, Access> {
        let state = self.catalog.state();
        let mut used: BTreeMap<ImageId, bool> = BTreeMap::new();
        for row in state.attachments.values() {
            let served = self.serving.disks.get(&row.vdi).and_then(|served| served.chain.clone());
            let catalog = state.vdis.get(&row.vdi).map(|vdi| state.chain(vdi.image).map(|image| image.id));
            for chain in [served.unwrap_or_default(), catalog.into_iter().flatten().collect()] {
                for (at, image) in chain.into_iter().enumerate() {
                    *used.entry(image).or_default() |= at == 0 && row.mode == AttachMode::ReadWrite;
                }
            }
        }
        let moves = self.open_moves();
        let tasks = moves.iter().copied().chain(self.current.map(|current| current.task));
        for task in tasks {
            used.insert(task.image(), true);
            used.extend(task.target().map(|into| (into, true)));
        }
        for image in self.running.values().flat_map(|running| &running.lease) {
            used.entry(*image).or_default();
        }
        let access = |written| if written { Access::ReadWrite } else { Access::ReadOnly };
        let rows = used.into_iter().filter_map(|(id, written)| Some((state.images.get(&id)?, written)));
        let mut names: BTreeMap<String, Access> =
            rows.map(|(row, written)| (row.container.clone(), access(written))).collect();
        for job in self.running.keys().filter_map(|id| state.jobs.get(id)) {
            names.extend(job.effects.makes.iter().map(|made| (made.container.clone(), Access::ReadWrite)));
        }
        names
    }
}
