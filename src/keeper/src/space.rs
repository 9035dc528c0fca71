//! What the SR's images take and what is free: kept right with every change, and promised to nobody twice.
//!
//! Invariants: a row says what its container takes whenever the image was written and the change is published, that of an image
//! which a guest writes what it took a minute ago; the figures of the SR are the sum of the rows, of its metadata and of what lies
//! beside them. Invariant 10: what an operation will still take is held from its first step to its end, so no other is promised
//! the same bytes.

use crate::holds::Claim;
use crate::owner::Owner;
use catena_catalog::Change;
use catena_sr_api::StoreStat;
use catena_types::{AttachMode, Bytes, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Rows changed with one commit when all are measured.
const BATCH: usize = 64;

impl Owner {
    /// Refuses unless so many bytes can be taken at once, beside what others are promised.
    pub(crate) fn need_space(&self, bytes: Bytes) -> Result<(), Failure> {
        let space = self.store.space()?;
        let free = self.unpromised(space.allocatable);
        if bytes <= free {
            return Ok(());
        }
        let missing = Bytes(bytes.0 - free.0);
        let promised = Bytes(space.allocatable.0 - free.0);
        let beside =
            if promised.0 > 0 { format!(", {promised} promised to running jobs") } else { String::new() };
        Err(Failure::new(
            ErrorName::NoSpace,
            format!("{missing} are missing on the SR: {bytes} needed, {free} free{beside}"),
        )
        .hint("delete what is not needed, or make the storage larger")
        .object("bytes_missing", missing.0))
    }

    /// The same, and the bytes are held for the job until it ends. What `container` grows by counts as taken.
    pub(crate) fn hold_space(&mut self, job: JobId, container: &str, bytes: Bytes) -> Result<(), Failure> {
        let before = self.taken(container);
        self.hold_claim(job, Claim { container: container.to_owned(), before, bytes, gift: None })
    }

    /// The same for a job that gives something back for it.
    pub(crate) fn hold_claim(&mut self, job: JobId, claim: Claim) -> Result<(), Failure> {
        self.need_space(claim.left(|container| self.taken(container)))?;
        self.holds.hold(job, claim);
        Ok(())
    }

    /// Whether a job may let the container grow by so many bytes: they are what is left of its promise, or are promised to it now.
    pub(crate) fn promise_more(&mut self, job: JobId, container: &str, bytes: Bytes) -> bool {
        let left = self.holds.of(job).filter(|claim| claim.container == container);
        let left = left.map_or(Bytes(0), |claim| claim.left(|container| self.taken(container)));
        if bytes <= left {
            return true;
        }
        if self.need_space(Bytes(bytes.0 - left.0)).is_err() {
            return false;
        }
        let before = self.taken(container);
        self.holds.hold(job, Claim { container: container.to_owned(), before, bytes, gift: None });
        true
    }

    /// Of so many free bytes those that no job is promised.
    pub(crate) fn unpromised(&self, free: Bytes) -> Bytes {
        Bytes(free.0.saturating_sub(self.holds.outstanding(|container| self.taken(container)).0))
    }

    /// What a container takes now.
    pub(crate) fn taken(&self, container: &str) -> Bytes {
        self.store.info(container).map_or(Bytes(0), |info| info.allocated)
    }

    /// The image's row with what its container takes now.
    pub(crate) fn measured(&self, image: &ImageRecord) -> ImageRecord {
        let allocated = self.store.info(&image.container).map_or(image.allocated, |info| info.allocated);
        ImageRecord { allocated, ..image.clone() }
    }

    /// Records what the images' containers take now, if that has changed.
    pub(crate) fn remeasure(&mut self, ids: &[ImageId]) -> Result<(), Failure> {
        let changes = self.measurements(ids);
        if changes.is_empty() { Ok(()) } else { self.commit(changes) }
    }

    /// Records what the images take that guests write, unless that was done so short a time ago.
    pub(crate) fn measure_served(&mut self, age: Duration) {
        if self.served_measured.elapsed() < age {
            return;
        }
        self.served_measured = Instant::now();
        let state = self.catalog.state();
        let written = state.attachments.values().filter(|row| row.mode == AttachMode::ReadWrite);
        let leaves: Vec<ImageId> =
            written.filter_map(|row| state.vdis.get(&row.vdi)).map(|vdi| vdi.image).collect();
        if let Err(failure) = self.remeasure(&leaves) {
            tracing::warn!(sr = %self.sr.uuid, %failure, "what served disks take could not be recorded");
        }
    }

    /// Adds to the changes what the images take that were written since the last commit.
    pub(crate) fn measure_stale(&mut self, changes: &mut Vec<Change>) {
        let mut stale = std::mem::take(&mut self.stale);
        for change in &mut *changes {
            if let Change::PutImage(row) = change
                && stale.remove(&row.id)
            {
                *row = self.measured(row);
            }
        }
        // Before the others, of which one may remove the image.
        changes.splice(0..0, self.measurements(&Vec::from_iter(stale)));
    }

    /// The changes that make the rows of these images say what their containers take now.
    pub(crate) fn measurements(&self, ids: &[ImageId]) -> Vec<Change> {
        let rows = ids.iter().filter_map(|id| self.catalog.state().images.get(id));
        let changed = rows.map(|row| (row, self.measured(row))).filter(|(row, now)| ***row != *now);
        changed.map(|(_, now)| Change::PutImage(now)).collect()
    }

    /// Measures every container: when the SR is opened, since a crash may have left rows behind, and when a client asks for
    /// figures of this moment.
    pub(crate) fn measure_all(&mut self) -> Result<(), Failure> {
        let mut found: BTreeMap<String, Bytes> =
            self.store.list()?.into_iter().map(|info| (info.name, info.allocated)).collect();
        let mut changes = Vec::new();
        for row in self.catalog.state().images.values() {
            let now = found.remove(&row.container).unwrap_or_else(|| gone(row));
            if now != row.allocated {
                changes.push(Change::PutImage(ImageRecord { allocated: now, ..(**row).clone() }));
            }
        }
        // What a running job makes gets its row with the commit.
        for made in self.catalog.state().unfinished().flat_map(|job| &job.effects.makes) {
            found.remove(&made.container);
        }
        self.beside = Bytes(found.values().map(|bytes| bytes.0).sum());
        self.stat_due.set(true);
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(BATCH));
            self.commit(std::mem::replace(&mut changes, rest))?;
        }
        Ok(())
    }

    /// Asks the storage for its figures, if anything has changed since.
    pub(crate) fn refresh_stat(&self) {
        if !self.stat_due.replace(false) {
            return;
        }
        match self.store.space() {
            Ok(space) => {
                let used = space.metadata.0 + self.beside.0 + self.catalog.state().allocated().0;
                let allocatable = space.allocatable;
                self.board.set_stat(StoreStat { total: space.total, used: Bytes(used), allocatable });
            }
            Err(error) => tracing::warn!(sr = %self.sr.uuid, %error, "the storage gives no figures"),
        }
    }
}

/// What an image takes whose container is not there: nothing, unless it is only being made.
const fn gone(row: &ImageRecord) -> Bytes {
    match row.state {
        ImageState::Missing | ImageState::Garbage => Bytes(0),
        _ => row.allocated,
    }
}
