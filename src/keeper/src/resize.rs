//! `VDI.resize`: a disk is made larger. Only its leaf grows; what lies below reads as zero past its own end (D6).
//!
//! ```text
//!  detached:  job(size) ──▶ a worker makes the leaf larger ───────────────────────────▶ [commit] size of the image
//!  written:   job(size) ──▶ quiesce ──▶ its process makes it larger (D12) ──▶ resume ──▶ [commit] size of the image
//! ```
//!
//! Growing an image ends with the write of its footer, so a crash leaves it at the old size or at the new one, and its own header
//! says which: recovery asks it, and so does a resize whose worker or process has died. Where it cannot be asked, the job stays
//! open and nothing is built on the disk until it can.
//!
//! The leaf decides, not the catalog, so a guest need not wait for the commit: what it may write past the old end meanwhile is on
//! a leaf that has the size for it, and whoever comes after a crash commits that size.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::from_trouble;
use crate::hands::ready;
use crate::images::{checked_size, empty_bytes, unexpected};
use crate::owner::{Call, Given, Owner};
use crate::serving::{PATIENCE, silent};
use crate::steps::back_off;
use catena_catalog::Change;
use catena_control::{Ask, Request};
use catena_rpc::VdiResizeParams;
use catena_sr_api::Access;
use catena_types::{
    AttachMode, BLOCK_BYTES, Bytes, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobKind, JobRecord,
    JobState, Severity, VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

impl Owner {
    /// `VDI.resize`.
    pub(crate) fn vdi_resize(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiResizeParams = params(&call.request)?;
        let size = checked_size(asked.virtual_size)?;
        let (disk, leaf) = self.disk(&asked.vdi)?;
        self.refuse_attached(disk.uuid, &[AttachMode::ReadOnly])?;
        self.refuse_while_ending(disk.uuid)?;
        self.may_grow(&disk, &leaf, size)?;
        if size == leaf.virtual_size {
            return Ok(Given::Answer(json!({"virtual_size": size})));
        }
        let mut job = self.new_job(Work::Resize { vdi: disk.uuid, image: leaf.id, size }, asked.request_id);
        job.phase = "growing".to_owned();
        if !self.is_sized() {
            self.hold_space(job.id, &leaf.container, growth(&self.measured(&leaf), size))?;
        }
        self.begin(&mut job, Vec::new())?;
        if let Err(failure) = self.inflate_for_growth(&mut job, &leaf, size) {
            self.undo(job, JobState::Failed, &failure);
            return Err(failure);
        }
        let written = self.is_written(disk.uuid);
        let mut asked = !written;
        let grown = match written {
            true => self.grow_served(disk.uuid, size, &mut asked),
            false => self.grow(&leaf, size),
        };
        if let Err(failure) = grown {
            // Where nobody was asked to, nothing has grown.
            let has_grown = if asked { self.has_grown(leaf.id, size) } else { Ok(false) };
            match has_grown {
                Ok(true) => {}
                Ok(false) => {
                    self.undo(job, JobState::Failed, &failure);
                    return Err(failure);
                }
                Err(unknown) => {
                    self.put_off(job, &unknown);
                    return Err(undecided(disk.uuid));
                }
            }
        }
        self.grown(job)?;
        Ok(Given::Answer(json!({"virtual_size": size})))
    }

    fn may_grow(&self, disk: &VdiRecord, leaf: &ImageRecord, size: Bytes) -> Result<(), Failure> {
        let refuse = |name, message: String| Err(Failure::new(name, message).object("vdi", disk.uuid));
        if disk.kind == VdiKind::Snapshot {
            return refuse(ErrorName::ResizeFailed, format!("'{}' is a snapshot", disk.name_label))
                .map_err(|failure| failure.hint("clone it, and resize the clone"));
        }
        if size < leaf.virtual_size {
            let message = format!("a disk of {} cannot shrink to {size}", leaf.virtual_size);
            return refuse(ErrorName::VdiSize, message);
        }
        if leaf.foreign {
            return refuse(ErrorName::Unsupported, "its image was written by another program".to_owned());
        }
        if self.catalog.state().chain(leaf.id).any(|image| image.virtual_size > leaf.virtual_size) {
            // D6: what that image owns past the disk's end would come to light.
            return refuse(ErrorName::ResizeFailed, "an image below is larger than the disk".to_owned())
                .map_err(|failure| failure.hint("`catena vdi copy` makes a disk that can grow"));
        }
        if self.running.values().any(|running| running.lease.contains(&leaf.id)) {
            return refuse(ErrorName::VdiInUse, "another job reads this disk as it is now".to_owned())
                .map_err(|failure| failure.hint("`catena job list` names it").retry());
        }
        Ok(())
    }

    /// Has a worker make an image larger that nobody reads or writes, and waits for it.
    pub(crate) fn grow(&mut self, image: &ImageRecord, size: Bytes) -> Result<(), Failure> {
        let one = ready(&*self.store, image, Access::ReadWrite)?;
        let request = Request::Grow { image: one.handed, size };
        self.small.call(&request, vec![one.fd]).map(drop).map_err(|trouble| from_trouble(&trouble))
    }

    /// The process that has the leaf open for writing makes it larger, while writes are held back; reads wait where blocks move.
    /// `asked` is set when it is asked to.
    fn grow_served(&mut self, vdi: VdiUuid, size: Bytes, asked: &mut bool) -> Result<(), Failure> {
        self.while_paused(vdi, |_, link| {
            crash::pass(JobKind::Resize, Phase::Paused);
            *asked = true;
            link.ask(&Ask::Grow { size }, Vec::new())?;
            crash::pass(JobKind::Resize, Phase::Paused);
            Ok(())
        })
    }

    /// **The commit**: the leaf has the new size.
    fn grown(&mut self, job: JobRecord) -> Result<(), Failure> {
        crash::pass(JobKind::Resize, Phase::Made);
        let Work::Resize { vdi, image, size } = job.work else { return Ok(()) };
        let row = self.image(image)?.clone();
        let text = format!("disk of {} has now {size}", row.virtual_size);
        let event = self.event(Severity::Info, "vdi.resized", Some(vdi), Some(&job), text);
        let image = self.measured(&ImageRecord { virtual_size: size, ..row });
        let answer = Some(json!({"virtual_size": size}));
        let done = JobRecord { committed: true, answer, ..job.clone() };
        self.finish(done, vec![Change::PutImage(image), event])
            .inspect_err(|failure| self.put_off(job, failure))?;
        self.tell_watermark(vdi);
        Ok(())
    }

    /// Decides resizes of which it is not known whether they have happened, where the last try was long enough ago.
    pub(crate) fn decide_resizes(&mut self) {
        let now = Timestamp::now();
        let due = |job: &&Arc<JobRecord>| is_open(job) && job.retry_at.is_none_or(|at| at <= now);
        let due: Vec<JobRecord> =
            self.catalog.state().unfinished().filter(due).map(|job| (**job).clone()).collect();
        for job in due {
            self.recover_resize(job);
        }
    }

    /// A resize that was interrupted: it has happened, or it has not.
    pub(crate) fn recover_resize(&mut self, job: JobRecord) {
        let Work::Resize { image, size, .. } = job.work else { return };
        match self.has_grown(image, size) {
            Ok(true) => {
                let id = job.id;
                if let Err(failure) = self.grown(job) {
                    tracing::error!(job = id, %failure, "a resize that has happened could not be recorded");
                }
            }
            Ok(false) => self.undo_interrupted(job),
            Err(failure) => self.put_off(job, &failure),
        }
    }

    /// Keeps the job until it can be known whether it has happened.
    fn put_off(&mut self, mut job: JobRecord, why: &Failure) {
        tracing::error!(job = job.id, %why, "it is not known yet whether a disk was resized");
        job.state = JobState::Queued;
        job.attempts += 1;
        job.retry_at = Some(Timestamp::now() + back_off(job.attempts));
        let id = job.id;
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "a job could not be put off");
        }
    }

    /// Refuses while it is not known which size the disk has.
    pub(crate) fn refuse_while_resizing(&self, disk: VdiUuid) -> Result<(), Failure> {
        let of_disk = |job: &JobRecord| matches!(job.work, Work::Resize { vdi, .. } if vdi == disk);
        match self.catalog.state().unfinished().any(|job| of_disk(job) && is_open(job)) {
            true => Err(undecided(disk)),
            false => Ok(()),
        }
    }

    /// Whether the image itself says that it has the size, once nobody writes to it any more (D11). Of one that is no longer
    /// needed it does not matter.
    fn has_grown(&mut self, id: ImageId, size: Bytes) -> Result<bool, Failure> {
        let Some(row) = self.catalog.state().images.get(&id).cloned() else { return Ok(false) };
        if matches!(row.state, ImageState::Garbage | ImageState::Missing) {
            return Ok(false);
        }
        if let Some(vdi) = self.writer_of(id) {
            return Ok(self.size_served(vdi)? == size);
        }
        drop(ready(&*self.store, &row, Access::ReadWrite)?);
        Ok(self.report_of(&row)?.virtual_size == size)
    }

    /// The size of the disk as the process has it that serves it; one that has died is replaced, and its successor asked.
    fn size_served(&mut self, vdi: VdiUuid) -> Result<Bytes, Failure> {
        if self.serving.disks.get(&vdi).is_none_or(|served| served.link.is_none()) {
            self.find_or_replace(vdi)?;
        }
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        served.link(vdi)?.hello(PATIENCE)?.size.ok_or_else(unexpected)
    }
}

fn is_open(job: &JobRecord) -> bool {
    matches!(job.work, Work::Resize { .. }) && !job.state.is_over()
}

fn undecided(disk: VdiUuid) -> Failure {
    Failure::new(
        ErrorName::TryAgain,
        "a resize of this disk was interrupted, and its image cannot be asked now",
    )
    .hint("try again in a moment; `catena job list` says when it is decided")
    .object("vdi", disk)
    .retry()
}

/// What growing takes at most: longer tables, and the blocks that make room for them.
fn growth(leaf: &ImageRecord, size: Bytes) -> Bytes {
    let tables = empty_bytes(size);
    let moved = (tables.0 / BLOCK_BYTES + 2) * BLOCK_BYTES;
    Bytes(tables.0 + moved.min(leaf.allocated.0))
}
