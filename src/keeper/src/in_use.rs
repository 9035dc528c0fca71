//! Which containers are in use: all others need not be ready, and what is only read need not be writable.
//!
//! Containers are made ready by who hands them out, and let go here, after each thing that the owner has done. In use is what the
//! processes of disks have open or are to have, and what running jobs work on. Nothing is counted, so nothing leaks, and what a
//! crash has left is let go when the SR is opened. A container that is let go too early does no harm: it is open, and stays. That is
//! tried again, since no message comes from who closes it.

use crate::owner::Owner;
use catena_sr_api::Access;
use catena_types::{AttachMode, ImageId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long containers that are still open are left alone after the first try, and after many: each try is a command.
const RESTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Containers that nobody uses any more and that somebody has open: processes that end, and programs of others.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    containers: BTreeSet<String>,
    /// How long they rest between two tries.
    rest: Duration,
    /// When they are tried next.
    until: Option<Instant>,
}

impl Lingering {
    /// When something is to be let go that could not be before.
    pub(crate) const fn deadline(&self) -> Option<Instant> {
        self.until
    }

    fn rests(&self) -> bool {
        self.until.is_some_and(|at| at > Instant::now())
    }

    /// These were found open by a try that left the known ones alone, or was about all.
    fn found(&mut self, open: Vec<String>, known_rest: bool) {
        if known_rest && open.is_empty() {
            return;
        }
        if !known_rest {
            self.containers.clear();
        }
        self.containers.extend(open);
        if self.containers.is_empty() {
            *self = Self::default();
        } else {
            self.try_later(if known_rest { RESTS.0 } else { self.rest * 2 });
        }
    }

    fn try_later(&mut self, rest: Duration) {
        self.rest = rest.clamp(RESTS.0, RESTS.1);
        self.until = Some(Instant::now() + self.rest);
    }
}

impl Owner {
    /// Lets go of the containers that nobody uses any more, and of the right to write those that are only read.
    pub(crate) fn keep_active(&mut self) {
        if !self.is_sized() {
            return;
        }
        let mut used = self.in_use();
        let known_rest = self.lingering.rests();
        for container in self.lingering.containers.iter().filter(|_| known_rest) {
            used.entry(container.clone()).or_insert(Access::ReadWrite);
        }
        let wanted: Vec<(&str, Access)> =
            used.iter().map(|(name, access)| (name.as_str(), *access)).collect();
        match self.store.keep_active(&wanted) {
            Ok(open) => self.lingering.found(open, known_rest),
            Err(error) => {
                tracing::warn!(sr = %self.sr.uuid, %error, "containers that nobody uses could not be let go");
                self.lingering.try_later(self.lingering.rest * 2);
            }
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
