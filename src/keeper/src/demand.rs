//! Containers of disks in use that grow while their guests fill them (`allocation=dynamic`).
//!
//! ```text
//!  watermark ─▶ the process says how large its image's container should be ─▶ granted ─▶ [commit] job names the container
//!      ▲                    │ no space: it is told so, its writes wait, and it is granted when there is some
//!      │                    ▼                                                             the container grows, in a thread
//!   taken up, resized, another policy                     [commit] the row goes ◀─ it is told the size ◀─┘
//! ```
//!
//! The process of a disk knows how much room its images have, and asks before there is none; nothing of that is written down, since
//! one that is told its watermark anew asks anew. So a crash of the keeper, of the process or of both costs a question. The job's row
//! is for what grew and was not told: recovery tells the process, or moves the footer where there is none, and cuts what is too large.
//!
//! Guests never get the last of the storage: snapshots and merges need a little, and merges give space back. A command of lvm2 takes
//! half a second, so nobody waits for it here. Called by `adoption`, and by the owner after all that may have freed space.

use crate::adoption::BREATH;
use crate::crash::{self, Phase};
use crate::owner::{Mail, Owner};
use crate::sizing::{self, Target};
use catena_catalog::Change;
use catena_control::Ask;
use catena_types::{
    BLOCK_BYTES, Bytes, Failure, ImageId, ImageRecord, ImageState, JobId, JobKind, JobRecord, JobState,
    Resized, Severity, VdiUuid, Work,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After a container could not be made larger, though there was space.
const REST: Duration = Duration::from_secs(10);
/// What guests leave of the storage: such a part of it, and no more than so many bytes.
const RESERVE: (u64, Bytes) = (64, Bytes(1 << 30));

/// A container that is to be larger.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// The size that was asked for.
    size: Bytes,
    /// Who makes it larger.
    job: Option<JobId>,
    /// The process knows that it has to wait.
    is_refused: bool,
    /// It could not be made larger; not tried before this.
    rests_until: Option<Instant>,
    /// Why, where an event has said so.
    failure: Option<String>,
}

impl Owner {
    /// Tells the process of a disk how much room it is to keep. One that cannot be told is taken up anew.
    pub(crate) fn tell_watermark(&mut self, vdi: VdiUuid) {
        let Some(ask) = self.watermark(vdi) else { return };
        let Some(served) = self.serving.disks.get_mut(&vdi).filter(|served| !served.is_stopping()) else {
            return;
        };
        if let Some(Err(failure)) = served.link.as_mut().map(|link| link.tell(&ask)) {
            tracing::warn!(%vdi, %failure, "a datapath is not told how much room to keep");
            served.lose(BREATH);
        }
    }

    /// Tells all of them.
    pub(crate) fn tell_watermarks(&mut self) {
        for vdi in Vec::from_iter(self.serving.disks.keys().copied()) {
            self.tell_watermark(vdi);
        }
    }

    /// The room that a disk is to have which is written: for what it writes while its container grows, or for all of it, where that has
    /// not been made large enough.
    fn watermark(&self, vdi: VdiUuid) -> Option<Ask> {
        let row = self.catalog.state().vdis.get(&vdi).filter(|_| self.is_sized() && self.is_written(vdi))?;
        let size = self.image(row.image).ok()?.virtual_size;
        if self.leaf_target(row) == Target::Full {
            return Some(Ask::Watermark { room: Bytes(size.0.saturating_mul(2)), chunk: Bytes(BLOCK_BYTES) });
        }
        let chunk = self.policy().chunk_of(size);
        Some(Ask::Watermark { room: Bytes(chunk.0 / 2), chunk })
    }

    /// The process of a disk says that one of its images should have a container of this size.
    pub(crate) fn wants_room(&mut self, vdi: VdiUuid, image: ImageId, size: Bytes) {
        if self.is_sized() && self.writer_of(image) == Some(vdi) {
            let demand = self.demands.entry(image).or_default();
            (demand.size, demand.is_refused) = (self.store.round(size), false);
            self.meet(image);
        }
    }

    /// Grants what was refused, where there is space now.
    pub(crate) fn meet_demands(&mut self) {
        let open = self.demands.iter().filter(|(_, demand)| demand.job.is_none());
        for image in Vec::from_iter(open.map(|(image, _)| *image)) {
            self.meet(image);
        }
    }

    /// When one that could not be met is tried again.
    pub(crate) fn demand_deadline(&self) -> Option<Instant> {
        self.demands
            .values()
            .filter(|demand| demand.job.is_none())
            .filter_map(|demand| demand.rests_until)
            .min()
    }

    fn meet(&mut self, image: ImageId) {
        let Some(vdi) = self.writer_of(image) else {
            self.demands.remove(&image);
            return;
        };
        let Some(demand) = self.demands.get_mut(&image).filter(|demand| demand.job.is_none()) else { return };
        demand.rests_until = demand.rests_until.filter(|at| *at > Instant::now());
        let (size, rests) = (demand.size, demand.rests_until.is_some());
        let begun = self.image(image).cloned().and_then(|row| {
            let has = sizing::length(&*self.store, &row)?;
            if has >= size {
                self.demands.remove(&image);
                self.tell_size(vdi, image, has);
                return Ok(());
            }
            let free = if rests { Bytes(0) } else { self.free_for(vdi, image)? };
            match grant(has, size, free, self.store.round(Bytes(1))) {
                Some(to) => self.extend(vdi, &row, has, to),
                None => {
                    self.refuse(vdi, image, has);
                    Ok(())
                }
            }
        });
        if let Err(failure) = begun {
            let demand = self.demands.entry(image).or_default();
            (demand.size, demand.is_refused, demand.job) = (size, false, None);
            self.not_grown(vdi, image, &failure);
        }
    }

    /// A container could not be made larger though there was space, and its guest may wait for that: said once, and tried again.
    fn not_grown(&mut self, vdi: VdiUuid, image: ImageId, failure: &Failure) {
        tracing::error!(%vdi, %image, %failure, "a container of a disk in use is not made larger");
        let demand = self.demands.entry(image).or_default();
        demand.rests_until = Some(Instant::now() + REST);
        if demand.failure.is_some() {
            return;
        }
        let text = format!("the volume cannot be made larger, which is tried again: {failure}");
        let event = self.event(Severity::Error, "vdi.growth_failed", Some(vdi), None, text);
        match self.commit(vec![event]) {
            Ok(()) => self.demands.entry(image).or_default().failure = Some(failure.message.clone()),
            // Said the next time.
            Err(failure) => tracing::error!(%vdi, %failure, "an event could not be recorded"),
        }
    }

    /// Why a disk's container is not made larger, though it should be.
    pub(crate) fn lacks_room(&self, vdi: VdiUuid) -> Option<String> {
        let asked = self.demands.iter().filter(|(image, _)| self.writer_of(**image) == Some(vdi));
        let full = |demand: &Demand| demand.is_refused.then(|| "the storage is full".to_owned());
        asked.map(|(_, demand)| demand).find_map(|demand| demand.failure.clone().or_else(|| full(demand)))
    }

    /// The process is told that it has to do with what it has: who finds no room then waits, and an event says so.
    fn refuse(&mut self, vdi: VdiUuid, image: ImageId, has: Bytes) {
        let demand = self.demands.entry(image).or_default();
        if !std::mem::replace(&mut demand.is_refused, true) {
            self.tell_size(vdi, image, has);
        }
    }

    /// What guests may fill.
    pub(crate) fn to_fill(&self) -> Result<Bytes, Failure> {
        let space = self.store.space()?;
        Ok(Bytes(self.unpromised(space.allocatable).0.saturating_sub(reserve(space.total).0)))
    }

    /// What the image may take; what a merge moves its leaf into may take the last, since that comes back.
    fn free_for(&self, vdi: VdiUuid, image: ImageId) -> Result<Bytes, Failure> {
        let is_leaf = self.catalog.state().vdis.get(&vdi).is_some_and(|row| row.image == image);
        if is_leaf { self.to_fill() } else { Ok(self.unpromised(self.store.space()?.allocatable)) }
    }

    /// Has the container made larger in a thread. The row names it before.
    fn extend(&mut self, vdi: VdiUuid, image: &ImageRecord, before: Bytes, to: Bytes) -> Result<(), Failure> {
        let mut job = self.new_job(Work::Extend { vdi, image: image.id }, None);
        "growing".clone_into(&mut job.phase);
        job.effects.sizes = vec![Resized { image: image.id, container: image.container.clone(), before }];
        let id = job.id;
        self.hold_space(id, &image.container, Bytes(to.0 - before.0))?;
        self.commit(vec![Change::PutJob(job)]).inspect_err(|_| self.holds.release(id))?;
        crash::pass(JobKind::Extend, Phase::Journaled);
        self.demands.entry(image.id).or_default().job = Some(id);
        let (store, mailbox, container) =
            (Arc::clone(&self.store), self.mailbox.clone(), image.container.clone());
        std::thread::spawn(move || {
            let grown = store.grow(&container, to).map_err(Failure::from);
            crash::pass(JobKind::Extend, Phase::Grown);
            // Without an owner the keeper is ending; the row says what may have grown.
            let _ = mailbox.send(Mail::Extended(id, grown));
        });
        Ok(())
    }

    /// The container has grown, or could not.
    pub(crate) fn extended(&mut self, id: JobId, result: &Result<(), Failure>) {
        let Some(mut job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        let Work::Extend { vdi, image } = job.work else { return };
        match result {
            // What is missing yet is asked for again by who knows.
            Ok(()) => {
                self.demands.remove(&image);
            }
            Err(failure) => {
                let demand = self.demands.entry(image).or_default();
                (demand.is_refused, demand.job) = (true, None);
                self.not_grown(vdi, image, failure);
            }
        }
        let row = self.catalog.state().images.get(&image).cloned();
        let is_there =
            |row: &Arc<ImageRecord>| !matches!(row.state, ImageState::Garbage | ImageState::Missing);
        match (self.writer_of(image), row.filter(is_there)) {
            (Some(vdi), Some(row)) => {
                match sizing::length(&*self.store, &row) {
                    Ok(has) => self.tell_size(vdi, image, has),
                    Err(failure) => tracing::error!(%vdi, %failure, "a container in use is gone"),
                }
                crash::pass(JobKind::Extend, Phase::Made);
            }
            // It was detached meanwhile, or has another leaf. What a merge writes gets its size in the end.
            (None, Some(_))
                if !self.current.is_some_and(|current| current.images().any(|one| one == image)) =>
            {
                if let Err(failure) = self.settle_sizes(&mut job) {
                    return self.undo(job, JobState::Failed, &failure);
                }
            }
            _ => {}
        }
        if let Err(failure) = self.forget_extension(&job) {
            tracing::error!(job = id, %failure, "the end of a growth could not be recorded");
        }
    }

    /// Whether nothing is left to do of a growth that was interrupted: who takes up a disk without a process finds what its container
    /// has, and makes use of it.
    pub(crate) fn is_extended(&self, job: &JobRecord) -> bool {
        let Work::Extend { image, .. } = job.work else { return false };
        job.effects.sizes.is_empty() || self.writer_of(image).is_some()
    }

    /// The row of a growth goes: whoever writes the image knows, or nobody does and it is cut.
    pub(crate) fn forget_extension(&mut self, job: &JobRecord) -> Result<(), Failure> {
        self.holds.release(job.id);
        let Work::Extend { image, .. } = job.work else { return Ok(()) };
        if self.writer_of(image).is_none() {
            self.roomy.insert(image, Instant::now());
        }
        let mut changes = self.measurements(&[image]);
        changes.push(Change::RemoveJob(job.id));
        self.commit(changes)
    }

    /// D12: the process makes use of what the container has. Nobody waits for that: one that does not hear it dies or is taken up
    /// anew, and then asks anew; until the footer has moved the copy at the beginning counts.
    fn tell_size(&mut self, vdi: VdiUuid, image: ImageId, size: Bytes) {
        let Some(served) = self.serving.disks.get_mut(&vdi).filter(|served| !served.is_stopping()) else {
            return;
        };
        if let Some(Err(failure)) = served.link.as_mut().map(|link| link.tell(&Ask::Enlarged { image, size }))
        {
            tracing::warn!(%vdi, %failure, "a datapath is not told what its container has");
            served.lose(BREATH);
        }
    }
}

/// What is kept of a storage of that size.
fn reserve(total: Bytes) -> Bytes {
    Bytes(total.0 / RESERVE.0).min(RESERVE.1)
}

/// The size that a container gets which has so much and is to have `wanted`, where so much is `free` for it in whole `units`: less than
/// it is to have rather than nothing.
fn grant(has: Bytes, wanted: Bytes, free: Bytes, unit: Bytes) -> Option<Bytes> {
    let unit = unit.0.max(1);
    let most = has.0.saturating_add(free.0 / unit * unit);
    Some(wanted.min(Bytes(most))).filter(|size| *size > has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_what_it_is_to_have_or_what_there_is() {
        for (has, wanted, free, granted) in [
            (8, 264, 1000, Some(264)),
            (8, 264, 256, Some(264)),
            (8, 264, 255, Some(260)),
            (8, 264, 7, Some(12)),
            (8, 264, 3, None),
            (8, 264, 0, None),
            (8, 8, 100, None),
            (264, 8, 100, None),
        ] {
            let granted = granted.map(Bytes);
            assert_eq!(
                grant(Bytes(has), Bytes(wanted), Bytes(free), Bytes(4)),
                granted,
                "{has} {wanted} {free}"
            );
        }
        assert_eq!(grant(Bytes(1), Bytes(u64::MAX), Bytes(u64::MAX), Bytes(0)), Some(Bytes(u64::MAX)));
    }

    #[test]
    fn a_small_part_of_the_storage_is_kept() {
        assert_eq!(reserve(Bytes(6400 << 20)), Bytes(100 << 20));
        assert_eq!(reserve(Bytes(1 << 50)), Bytes(1 << 30));
    }
}
