//! One merge from its start to its commit: inner or leaf, with a mover process of its own. The leaf of a disk that a guest writes
//! is moved by that disk's process instead (`live_merge`).
//!
//! ```text
//!              start                 end                     steps done
//!   (plan) ──────────▶ copying ──────────────▶ committed ─────────────────▶ (plan)
//!                         │ stopped, failed                     │ failed
//!                         ▼                                     ▼
//!                       queued, with its cursor               queued, tried again
//! ```
//!
//! A merge that was stopped or has failed keeps its row: the cursor of an inner merge is not lost, and a leaf merge needs none,
//! since what is left is what the leaf owns.

use crate::coalescing::{CANCELLED_REST, Current, task_of_work};
use crate::crash::{self, Phase};
use crate::failures::from_trouble;
use crate::hands::ready;
use crate::long::{LongJob, Script};
use crate::merge_room::{Room, is_lack};
use crate::operations::garbage;
use crate::owner::{Owner, Running};
use crate::priority::Priority;
use crate::sizing;
use crate::steps::back_off;
use crate::tree::Rows;
use catena_catalog::Change;
use catena_coalesce::{Task, Tree, is_read, need, task_of};
use catena_control::{Pace, Progress, Request, Trouble, TroubleKind};
use catena_sr_api::Access;
use catena_types::{
    Bytes, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId, JobRecord, JobState, Severity, Step,
    VdiRecord, Work,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

impl Owner {
    /// Begins a merge: its row, then the room for it, then its mover. False if there is no room.
    pub(crate) fn start_merge(&mut self, task: Task) -> bool {
        let room = match self.room_of(task) {
            Err(failure) if is_lack(&failure) => return false,
            other => other,
        };
        let Some(mut job) = self.merge_job(task) else { return true };
        let Some(into) = task.target().and_then(|id| self.catalog.state().images.get(&id).cloned()) else {
            return true;
        };
        let growing = !matches!(room, Ok(None));
        if let Work::LeafMerge { live: row, .. } = &mut job.work {
            // The process gets the parent when that has its size.
            *row = self.is_served(task) && !growing;
        }
        job.state = JobState::Running;
        job.phase = if growing { "growing" } else { phase_of(&job) }.to_owned();
        job.error = None;
        job.retry_at = None;
        job.updated = Timestamp::now();
        job.effects.sizes = room.iter().flatten().flat_map(Room::changes).collect();
        let id = job.id;
        let mixed = ImageRecord { state: ImageState::Mixed, ..(*into).clone() };
        let text =
            format!("{} begins to be merged into {}", self.container_of(task.image()), mixed.container);
        let event = self.event(Severity::Info, "merge.started", None, Some(&job), text);
        let mut changes = vec![Change::PutJob(job.clone()), Change::PutImage(mixed), event];
        changes.extend(self.rewound(into.id));
        if let Err(failure) = self.commit(changes) {
            tracing::error!(sr = %self.sr.uuid, %failure, "a merge could not begin");
            return true;
        }
        crash::pass(job.work.kind(), Phase::Journaled);
        self.current = Some(Current { job: id, task, growing });
        match room {
            Ok(None) => self.begin_merge(job),
            Ok(Some(room)) => {
                if let Err(failure) = self.make_room(&job, room) {
                    self.merge_failed(job, failure);
                }
            }
            Err(failure) => self.merge_failed(job, failure),
        }
        true
    }

    /// The containers have room: the mover begins, or the process of the disk.
    pub(crate) fn begin_merge(&mut self, job: JobRecord) {
        if job.is_open_move() {
            return self.start_move(job);
        }
        match self.fit_target(&job) {
            Ok(true) => {}
            Ok(false) => return self.merge_stopped(job, false),
            Err(failure) => return self.merge_failed(job, failure),
        }
        let policy = self.policy();
        let priority = Priority::new(&policy);
        match self.start_mover(&job, priority.pace(&policy)) {
            Ok(long) => {
                self.priority = Some(priority);
                if let Some(group) = &self.sr.group {
                    long.join(group, policy.weight);
                }
                self.track(&job, Running { long, lease: BTreeSet::new(), cancelled: false });
            }
            Err(failure) => self.merge_failed(job, failure),
        }
    }

    /// D6: a layer is clipped at its own size, so the image below is brought to the size of the one above before it takes anything in.
    /// For that its first blocks may move, which whoever has it open would look for where they were: it is done here, where nobody
    /// begins to read meanwhile, and not at all (false) while somebody reads.
    fn fit_target(&mut self, job: &JobRecord) -> Result<bool, Failure> {
        let Some(task) = task_of_work(&job.work) else { return Ok(true) };
        let Some(into) = task.target() else { return Ok(true) };
        let (above, below) = (self.image(task.image())?.clone(), self.image(into)?.clone());
        let size = self.report_of(&above)?.virtual_size;
        let has = self.report_of(&below)?.virtual_size;
        if has >= size {
            return Ok(true);
        }
        // A merge that was ended has made a base copy larger than its row says; the plan goes by the rows.
        let differs = |(row, size): &(ImageRecord, Bytes)| row.hidden && row.virtual_size != *size;
        let rows = [(above, size), (below.clone(), has)].into_iter().filter(differs);
        let changes: Vec<Change> =
            rows.map(|(row, virtual_size)| Change::PutImage(ImageRecord { virtual_size, ..row })).collect();
        if !changes.is_empty() {
            self.commit(changes)?;
        }
        if is_read(&Rows(self.catalog.state()), &self.moment(), task) {
            return Ok(false);
        }
        self.grow(&below, size).map(|()| true)
    }

    /// Interrupted merges of `image`, which is about to take in something: that may lie before their cursors, so they begin anew.
    /// In the transaction that lets the first byte in: no crash leaves a cursor behind what came later.
    fn rewound(&self, image: ImageId) -> Vec<Change> {
        let mut changes = Vec::new();
        for job in self.catalog.state().unfinished() {
            if let Work::Merge { from, into, cursor: 1.. } = &job.work
                && *from == image
                && !job.committed
            {
                let work = Work::Merge { from: *from, into: *into, cursor: 0 };
                changes.push(Change::PutJob(JobRecord { work, ..(**job).clone() }));
            }
        }
        changes
    }

    /// Ends merges that wait and will never go on, since their image is gone or something else is to become of it: who waits for
    /// their jobs is told so.
    pub(crate) fn end_superseded(&mut self) {
        let state = self.catalog.state();
        let tree = Rows(state);
        let superseded = |job: &&Arc<JobRecord>| {
            let waits = job.state == JobState::Queued && !job.committed;
            task_of_work(&job.work).filter(|_| waits).is_some_and(|task| match tree.image(task.image()) {
                None => true,
                Some(image) => task_of(&tree, image).is_some_and(|now| now != task),
            })
        };
        let end = |job: &Arc<JobRecord>| {
            let (state, phase, updated) = (JobState::Cancelled, "superseded".to_owned(), Timestamp::now());
            JobRecord { state, phase, updated, retry_at: None, ..(**job).clone() }
        };
        let ended: Vec<JobRecord> = state.unfinished().filter(superseded).map(end).collect();
        ended.iter().for_each(|job| self.leave_room(job));
        let changes: Vec<Change> = ended.into_iter().map(Change::PutJob).collect();
        if !changes.is_empty()
            && let Err(failure) = self.commit(changes)
        {
            tracing::error!(%failure, "merges that have lost their reason could not be ended");
        }
    }

    fn container_of(&self, image: ImageId) -> String {
        self.catalog.state().images.get(&image).map(|row| row.container.clone()).unwrap_or_default()
    }

    /// The row of this very merge if it waits; otherwise a new one, which goes on at the cursor of one that was cancelled: what
    /// `into` has taken in since then is still there, because nobody else writes to it.
    fn merge_job(&mut self, task: Task) -> Option<JobRecord> {
        let same = |job: &&Arc<JobRecord>| task_of_work(&job.work) == Some(task) && !job.committed;
        let last = self.catalog.state().unfinished().rev().find(same).cloned();
        if let Some(job) = last.as_ref().filter(|job| !job.state.is_over()) {
            return Some((**job).clone());
        }
        let work = last.map(|job| job.work.clone()).or(match task {
            Task::Merge { from, into } => Some(Work::Merge { from, into, cursor: 0 }),
            Task::LeafMerge { vdi, from, into } => Some(Work::LeafMerge { vdi, from, into, live: false }),
            Task::Remove { .. } => None,
        })?;
        Some(self.new_job(work, None))
    }

    fn start_mover(&mut self, job: &JobRecord, pace: Pace) -> Result<LongJob, Failure> {
        let task = task_of_work(&job.work);
        let sized = self.is_sized();
        let mut need = task.map_or(Bytes(0), |task| need(&Rows(self.catalog.state()), &self.moment(), task));
        let rests = task.filter(|task| sized && self.fits_at_rest(*task)).and_then(Task::target);
        let rests = rests.map(|into| self.image(into).cloned()).transpose()?;
        let (request, fds) = match &job.work {
            Work::Merge { from, into, cursor } => {
                let from = ready(&*self.store, self.image(*from)?, Access::ReadOnly)?;
                let into = ready(&*self.store, self.image(*into)?, Access::ReadWrite)?;
                let request = Request::Merge { from: from.handed, into: into.handed, cursor: *cursor, pace };
                (request, vec![from.fd, into.fd])
            }
            Work::LeafMerge { from, into, .. } => {
                let owned = self.image(*from)?.allocated.0;
                let give_back = !sized && self.moment().free.0 < owned.saturating_mul(2);
                if !sized && !give_back && !self.sr.reflink {
                    need = Bytes(owned);
                }
                let from = ready(&*self.store, self.image(*from)?, Access::ReadWrite)?;
                let into = ready(&*self.store, self.image(*into)?, Access::ReadWrite)?;
                let request = Request::MoveDown { from: from.handed, into: into.handed, give_back, pace };
                (request, vec![from.fd, into.fd])
            }
            _ => return Err(Failure::new(ErrorName::Unsupported, "not a merge")),
        };
        // Where sizes are sized the parent has what it needs.
        if let Some(into) = task.and_then(Task::target).filter(|_| !sized) {
            self.hold_space(job.id, &self.container_of(into), need)?;
        }
        let store = Arc::clone(&self.store);
        let script: Script = Box::new(move |session| {
            session.call(&request, fds)?;
            if let Some(into) = rests {
                // What an earlier try left too large. A merge that is done is not undone by that.
                let mut call = |request: &Request, fds: Vec<OwnedFd>| session.call(request, fds);
                if let Err(failure) = sizing::deflate(&*store, &into, &mut call) {
                    tracing::warn!(container = into.container, %failure, "a container stays too large");
                }
            }
            Ok(Value::Null)
        });
        LongJob::start(job.id, &self.mailbox, script).map_err(|trouble| from_trouble(&trouble))
    }

    /// The mover says what is durable: that is recorded, so that a crash costs seconds of work.
    pub(crate) fn merge_progressed(&mut self, id: JobId, progress: Progress) {
        let Some(mut job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        if let Work::Merge { cursor, .. } = &mut job.work {
            if *cursor >= progress.cursor {
                return;
            }
            *cursor = progress.cursor;
        }
        job.bytes_done = progress.bytes_done;
        job.bytes_total = progress.bytes_total;
        job.updated = Timestamp::now();
        let images: Vec<ImageId> = self.current.into_iter().flat_map(Current::images).collect();
        let mut changes = self.measurements(&images);
        changes.push(Change::PutJob(job));
        if let Err(failure) = self.commit(changes) {
            tracing::error!(job = id, %failure, "the progress of a merge could not be recorded");
        }
    }

    /// The mover has ended, or who made room for it.
    pub(crate) fn merge_ended(&mut self, id: JobId, end: Result<Value, Trouble>, cancelled: bool) {
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else {
            return self.merge_over(id);
        };
        if let Some(Current { task, growing: true, .. }) = self.current {
            return self.room_made(job, task, end, cancelled);
        }
        match end {
            Ok(_) => {
                crash::pass(job.work.kind(), Phase::Made);
                match self.commit_merge(job.clone()) {
                    Ok(()) => {
                        self.relink_served();
                        self.run_steps(id);
                    }
                    Err(failure) => return self.merge_failed(job, failure),
                }
                if self.catalog.state().jobs.get(&id).is_none_or(|row| row.state != JobState::Running) {
                    self.merge_over(id);
                }
            }
            Err(trouble) if trouble.kind == TroubleKind::Stopped => self.merge_stopped(job, cancelled),
            Err(trouble) => self.merge_failed(job, from_trouble(&trouble)),
        }
    }

    /// **The commit of a merge.** From here on `from` is read by nobody: its bytes are durable in `into`. It is garbage, which
    /// the worker removes in a job of its own: on some storages that takes longer than the merge.
    pub(crate) fn commit_merge(&mut self, mut job: JobRecord) -> Result<(), Failure> {
        let state = self.catalog.state();
        let row = |id: &ImageId| self.image(*id).cloned();
        let mut changes = Vec::new();
        match &job.work {
            Work::Merge { from, into, .. } => {
                let (gone, target) = (row(from)?, row(into)?);
                let children: Vec<ImageRecord> =
                    state.children(*from).map(|child| (**child).clone()).collect();
                let images = children.iter().map(|child| child.id).collect();
                job.effects.steps = vec![Step::Reparent { images, patches: Vec::new() }];
                changes.push(Change::PutImage(self.merged(&target, &gone)));
                let moved = |child| Change::PutImage(ImageRecord { parent: Some(*into), ..child });
                changes.extend(children.into_iter().map(moved));
                changes.push(Change::PutImage(garbage(&gone)));
                let text = format!("{} merged into {}", gone.container, target.container);
                changes.push(self.event(Severity::Info, "merge.done", None, Some(&job), text));
            }
            Work::LeafMerge { vdi, from, into, .. } => {
                let (gone, target) = (row(from)?, row(into)?);
                let owner = state.vdis.get(vdi).map(|row| (**row).clone());
                let owner = owner.ok_or_else(|| crate::lookup::no_such_vdi(&vdi.to_string()))?;
                job.effects.steps = vec![Step::SetHidden { image: *into, hidden: false }];
                let target_row = ImageRecord { hidden: false, ..self.merged(&target, &gone) };
                changes.push(Change::PutImage(target_row));
                changes.push(Change::PutVdi(VdiRecord { image: *into, ..owner }));
                changes.push(Change::PutImage(garbage(&gone)));
                let text = format!("leaf {} merged into {}", gone.container, target.container);
                changes.push(self.event(Severity::Info, "merge.done", Some(*vdi), Some(&job), text));
            }
            _ => return Err(Failure::new(ErrorName::Unsupported, "not a merge")),
        }
        job.committed = true;
        job.phase = "finishing".to_owned();
        job.answer = Some(json!({}));
        job.updated = Timestamp::now();
        let kind = job.work.kind();
        changes.push(Change::PutJob(job));
        self.commit(changes)?;
        crash::pass(kind, Phase::Committed);
        Ok(())
    }

    /// The row of a target that has taken in everything.
    fn merged(&self, target: &ImageRecord, gone: &ImageRecord) -> ImageRecord {
        let virtual_size = target.virtual_size.max(gone.virtual_size);
        ImageRecord { state: ImageState::Ok, virtual_size, ..self.measured(target) }
    }

    pub(crate) fn merge_stopped(&mut self, mut job: JobRecord, cancelled: bool) {
        let id = job.id;
        job.state = if cancelled { JobState::Cancelled } else { JobState::Queued };
        job.phase = "waiting".to_owned();
        job.retry_at = cancelled.then(|| Timestamp::now() + CANCELLED_REST);
        job.updated = Timestamp::now();
        self.leave_room(&job);
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "a stopped merge could not be recorded");
        }
        self.merge_over(id);
    }

    /// A merge that failed rests and is remembered; other chains go on.
    pub(crate) fn merge_failed(&mut self, mut job: JobRecord, failure: Failure) {
        let id = job.id;
        job.attempts += 1;
        job.state = JobState::Queued;
        job.phase = "waiting".to_owned();
        job.retry_at = Some(Timestamp::now() + back_off(job.attempts));
        job.updated = Timestamp::now();
        let event = self.event(Severity::Error, "merge.failed", None, Some(&job), failure.message.clone());
        job.error = Some(failure);
        self.leave_room(&job);
        if let Err(failure) = self.commit(vec![Change::PutJob(job), event]) {
            tracing::error!(job = id, %failure, "a failed merge could not be recorded");
        }
        self.merge_over(id);
    }
}

/// What a merge does, for people.
pub(crate) const fn phase_of(job: &JobRecord) -> &'static str {
    if job.is_open_move() { "moving" } else { "copying" }
}
