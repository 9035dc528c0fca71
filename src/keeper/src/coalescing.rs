//! The coalesce worker of the SR: one task at a time, started by the owner whenever it has nothing else to do.
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
//! since what is left is what the leaf owns. The plan is made anew each time, so a VDI that is deleted, a snapshot that is taken
//! or a pause that begins redirects the worker by itself.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::from_trouble;
use crate::hands::ready;
use crate::long::{LongJob, Script};
use crate::operations::garbage;
use crate::owner::{Call, Given, Owner, Running};
use crate::steps::back_off;
use catena_catalog::{Change, Meta};
use catena_coalesce::{Moment, Task, Tree, plan};
use catena_control::{IoClass, Progress, Request, Trouble, TroubleKind};
use catena_rpc::CoalesceParams;
use catena_sr_api::Access;
use catena_types::{
    ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId, JobKind, JobRecord, JobState, Severity,
    Step, VdiRecord, VdiUuid, Work,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// How long a merge that a client has cancelled rests.
pub(crate) const CANCELLED_REST: SignedDuration = SignedDuration::from_mins(10);

/// Images removed with one job.
const REMOVALS: usize = 64;

/// What the worker does now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Current {
    /// The job.
    pub(crate) job: JobId,
    /// The task as the plan had it.
    pub(crate) task: Task,
}

impl Current {
    /// The disk whose leaf is being merged.
    pub(crate) const fn leaf_merge_of(self) -> Option<VdiUuid> {
        match self.task {
            Task::LeafMerge { vdi, .. } => Some(vdi),
            _ => None,
        }
    }

    /// The images that it concerns.
    pub(crate) fn images(self) -> impl Iterator<Item = ImageId> {
        [Some(self.task.image()), self.task.target()].into_iter().flatten()
    }
}

impl Owner {
    /// Starts the next task, if the worker is free and may; stops a merge that has lost its reason.
    pub(crate) fn coalesce(&mut self) {
        if let Some(current) = self.current {
            if self.running.contains_key(&current.job) && !self.still_wanted(current.task) {
                self.stop_current();
            }
            return;
        }
        if let Some(job) = self.steps_due() {
            return self.resume_steps(job);
        }
        if crate::views::paused(self.catalog.state()) {
            return;
        }
        self.retry_wanting();
        let moment = self.moment();
        let state = self.catalog.state();
        let ready = plan(&Tree::new(&state.images, &state.vdis), &moment).ready;
        match ready.first().copied() {
            Some(Task::Remove { .. }) => self.start_garbage(&ready),
            Some(task) => self.start_merge(task),
            None => {}
        }
    }

    fn still_wanted(&self, task: Task) -> bool {
        let state = self.catalog.state();
        let all = plan(&Tree::new(&state.images, &state.vdis), &self.moment());
        !crate::views::paused(state)
            && (all.ready.contains(&task) || all.held.iter().any(|held| held.task == task))
    }

    fn stop_current(&self) {
        if let Some(running) = self.current.and_then(|current| self.running.get(&current.job)) {
            running.long.stop();
        }
    }

    /// What the plan must know beyond the catalog.
    pub(crate) fn moment(&self) -> Moment {
        let now = Timestamp::now();
        let state = self.catalog.state();
        let mut moment =
            Moment { free: self.board.stat().allocatable, reflink: self.sr.reflink, ..Moment::default() };
        for running in self.running.values() {
            moment.leased.extend(&running.lease);
        }
        for job in state.jobs.values() {
            let (Work::Merge { from, into, .. } | Work::LeafMerge { from, into, .. }) = &job.work else {
                continue;
            };
            if job.retry_at.is_some_and(|at| at > now) && !job.committed {
                moment.backed_off.insert(*from);
            } else if !job.state.is_over()
                && state.images.get(into).is_some_and(|row| row.state == ImageState::Mixed)
            {
                moment.begun.insert(*from);
            }
        }
        let leaf = |vdi: &VdiUuid| state.vdis.get(vdi).map(|row| row.image);
        moment.urgent = self.wanting.iter().filter_map(|(vdi, _)| leaf(vdi)).collect();
        moment
    }

    /// A committed job whose remaining steps may be tried now.
    fn steps_due(&self) -> Option<JobId> {
        let now = Timestamp::now();
        let due = |job: &&std::sync::Arc<JobRecord>| {
            job.committed && job.state == JobState::Queued && job.retry_at.is_none_or(|at| at <= now)
        };
        self.catalog.state().jobs.values().find(due).map(|job| job.id)
    }

    fn resume_steps(&mut self, id: JobId) {
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        let job = JobRecord { state: JobState::Running, error: None, retry_at: None, ..job };
        let task = task_of(&job.work);
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            return tracing::error!(job = id, %failure, "a job could not be taken up again");
        }
        self.current = task.map(|task| Current { job: id, task });
        self.run_steps(id);
        self.merge_over(id);
    }

    /// Removes what nothing needs: the rows first say so, in one job that lists every container, then the containers go.
    fn start_garbage(&mut self, ready: &[Task]) {
        let images = ready.iter().take(REMOVALS).filter_map(|task| match task {
            Task::Remove { image } => self.catalog.state().images.get(image).map(|row| (**row).clone()),
            _ => None,
        });
        let images: Vec<ImageRecord> = images.collect();
        let Some(first) = images.first().map(|image| image.id) else { return };
        let mut job = self.new_job(Work::Garbage { image: first }, None);
        job.committed = true;
        job.phase = "removing".to_owned();
        let step = |image: &ImageRecord| Step::Remove { image: image.id, container: image.container.clone() };
        job.effects.steps = images.iter().map(step).collect();
        let id = job.id;
        let mut changes: Vec<Change> = images.iter().map(|image| Change::PutImage(garbage(image))).collect();
        changes.push(Change::PutJob(job));
        if let Err(failure) = self.commit(changes) {
            return tracing::error!(sr = %self.sr.uuid, %failure, "a removal could not begin");
        }
        crash::pass(JobKind::Garbage, Phase::Journaled);
        self.current = Some(Current { job: id, task: Task::Remove { image: first } });
        self.run_steps(id);
    }

    fn start_merge(&mut self, task: Task) {
        let Some(mut job) = self.merge_job(task) else { return };
        let Some(into) = task.target().and_then(|id| self.catalog.state().images.get(&id).cloned()) else {
            return;
        };
        job.state = JobState::Running;
        job.phase = "copying".to_owned();
        job.error = None;
        job.retry_at = None;
        job.updated = Timestamp::now();
        let id = job.id;
        let mixed = ImageRecord { state: ImageState::Mixed, ..(*into).clone() };
        if let Err(failure) = self.commit(vec![Change::PutJob(job.clone()), Change::PutImage(mixed)]) {
            return tracing::error!(sr = %self.sr.uuid, %failure, "a merge could not begin");
        }
        crash::pass(job.work.kind(), Phase::Journaled);
        self.current = Some(Current { job: id, task });
        match self.start_mover(&job) {
            Ok(long) => self.track(&job, Running { long, lease: BTreeSet::new(), cancelled: false }),
            Err(failure) => self.merge_failed(job, failure),
        }
    }

    /// The row of this very merge if it waits; otherwise a new one, which goes on at the cursor of one that was cancelled: what
    /// `into` has taken in since then is still there, because nobody else writes to it.
    fn merge_job(&mut self, task: Task) -> Option<JobRecord> {
        let same = |job: &&std::sync::Arc<JobRecord>| task_of(&job.work) == Some(task) && !job.committed;
        let last = self.catalog.state().jobs.values().rev().find(same).cloned();
        if let Some(job) = last.as_ref().filter(|job| !job.state.is_over()) {
            return Some((**job).clone());
        }
        let work = last.map(|job| job.work.clone()).or(match task {
            Task::Merge { from, into } => Some(Work::Merge { from, into, cursor: 0 }),
            Task::LeafMerge { vdi, from, into } => Some(Work::LeafMerge { vdi, from, into }),
            Task::Remove { .. } => None,
        })?;
        Some(self.new_job(work, None))
    }

    fn start_mover(&mut self, job: &JobRecord) -> Result<LongJob, Failure> {
        let class = IoClass::Idle;
        let (request, fds) = match &job.work {
            Work::Merge { from, into, cursor } => {
                let from = ready(&*self.store, self.image(*from)?, Access::ReadOnly)?;
                let into = ready(&*self.store, self.image(*into)?, Access::ReadWrite)?;
                let request = Request::Merge { from: from.handed, into: into.handed, cursor: *cursor, class };
                (request, vec![from.fd, into.fd])
            }
            Work::LeafMerge { from, into, .. } => {
                let from = ready(&*self.store, self.image(*from)?, Access::ReadWrite)?;
                let into = ready(&*self.store, self.image(*into)?, Access::ReadWrite)?;
                (Request::MoveDown { from: from.handed, into: into.handed, class }, vec![from.fd, into.fd])
            }
            _ => return Err(Failure::new(ErrorName::Unsupported, "not a merge")),
        };
        let script: Script = Box::new(move |session| session.call(&request, fds).map(|_| Value::Null));
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
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "the progress of a merge could not be recorded");
        }
    }

    /// The mover has ended.
    pub(crate) fn merge_ended(&mut self, id: JobId, end: Result<Value, Trouble>, cancelled: bool) {
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else {
            return self.merge_over(id);
        };
        match end {
            Ok(_) => {
                crash::pass(job.work.kind(), Phase::Made);
                match self.commit_merge(job.clone()) {
                    Ok(()) => self.run_steps(id),
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

    /// **The commit of a merge.** From here on `from` is read by nobody: its bytes are durable in `into`.
    fn commit_merge(&mut self, mut job: JobRecord) -> Result<(), Failure> {
        let state = self.catalog.state();
        let row = |id: &ImageId| self.image(*id).cloned();
        let mut changes = Vec::new();
        match &job.work {
            Work::Merge { from, into, .. } => {
                let (gone, target) = (row(from)?, row(into)?);
                let children: Vec<ImageRecord> =
                    state.children(*from).map(|child| (**child).clone()).collect();
                job.effects.steps = vec![
                    Step::Reparent {
                        images: children.iter().map(|child| child.id).collect(),
                        patches: Vec::new(),
                    },
                    remove(&gone),
                ];
                changes.push(Change::PutImage(self.merged(&target, &gone)));
                let moved = |child| Change::PutImage(ImageRecord { parent: Some(*into), ..child });
                changes.extend(children.into_iter().map(moved));
                changes.push(Change::PutImage(garbage(&gone)));
                let text = format!("{} merged into {}", gone.container, target.container);
                changes.push(self.event(Severity::Info, "merge.done", None, Some(&job), text));
            }
            Work::LeafMerge { vdi, from, into } => {
                let (gone, target) = (row(from)?, row(into)?);
                let owner = state.vdis.get(vdi).map(|row| (**row).clone());
                let owner = owner.ok_or_else(|| crate::lookup::no_such_vdi(&vdi.to_string()))?;
                job.effects.steps = vec![Step::SetHidden { image: *into, hidden: false }, remove(&gone)];
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

    fn merge_stopped(&mut self, mut job: JobRecord, cancelled: bool) {
        let id = job.id;
        job.state = if cancelled { JobState::Cancelled } else { JobState::Queued };
        job.phase = "waiting".to_owned();
        job.retry_at = cancelled.then(|| Timestamp::now() + CANCELLED_REST);
        job.updated = Timestamp::now();
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "a stopped merge could not be recorded");
        }
        self.merge_over(id);
    }

    /// A merge that failed rests and is remembered; other chains go on.
    fn merge_failed(&mut self, mut job: JobRecord, failure: Failure) {
        let id = job.id;
        job.attempts += 1;
        job.state = JobState::Queued;
        job.phase = "waiting".to_owned();
        job.retry_at = Some(Timestamp::now() + back_off(job.attempts));
        job.updated = Timestamp::now();
        let event = self.event(Severity::Error, "merge.failed", None, Some(&job), failure.message.clone());
        job.error = Some(failure);
        if let Err(failure) = self.commit(vec![Change::PutJob(job), event]) {
            tracing::error!(job = id, %failure, "a failed merge could not be recorded");
        }
        self.merge_over(id);
    }

    /// The worker is free again, if that was its job and nothing of it runs any more.
    pub(crate) fn merge_over(&mut self, id: JobId) {
        let removing = self.catalog.state().jobs.get(&id).is_some_and(|job| job.state == JobState::Running);
        if self.current.is_some_and(|current| current.job == id) && !removing {
            for image in self.current.into_iter().flat_map(Current::images) {
                if self.catalog.state().images.contains_key(&image)
                    && let Err(failure) = self.remeasure(image)
                {
                    tracing::warn!(%image, %failure, "what an image takes could not be recorded");
                }
            }
            self.current = None;
            self.retry_wanting();
        }
    }

    /// Keeps a call that waits for its chain to get shorter, or refuses it if nothing is about to make it so.
    pub(crate) fn want(&mut self, call: Call) {
        let vdi = call
            .request
            .params
            .get("vdi")
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<VdiUuid>().ok());
        let Some(vdi) = vdi else { return };
        self.wanting.push((vdi, call));
    }

    /// Tries the waiting calls again; where every merge of the chain is held, waiting is over.
    fn retry_wanting(&mut self) {
        for (vdi, call) in std::mem::take(&mut self.wanting) {
            let state = self.catalog.state();
            let chain: BTreeSet<ImageId> = state
                .vdis
                .get(&vdi)
                .map(|row| state.chain(row.image).map(|image| image.id).collect())
                .unwrap_or_default();
            let plan = plan(&Tree::new(&state.images, &state.vdis), &self.moment());
            let held = plan.held.iter().find(|held| chain.contains(&held.task.image()));
            let moves = plan.ready.iter().any(|task| chain.contains(&task.image()));
            if let (Some(held), false, None) = (held, moves, self.current) {
                let message =
                    format!("the merge that would shorten the chain cannot run now ({})", held.hold.code());
                let failure =
                    Failure::new(ErrorName::ChainTooLong, message).hint("`catena coalesce status` says more");
                self.answer(call.request.id, Err(failure));
            } else {
                self.handle(call);
            }
        }
    }

    /// `Coalesce.run`: what failed or was cancelled is tried at once.
    pub(crate) fn coalesce_run(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: CoalesceParams = params(&call.request)?;
        if asked.wait && crate::views::paused(self.catalog.state()) {
            let failure = Failure::new(ErrorName::TryAgain, "coalescing of this SR is paused");
            return Err(failure.hint("`catena coalesce resume` goes on"));
        }
        let resting = self.catalog.state().jobs.values().filter(|job| job.retry_at.is_some());
        let awake = resting.map(|job| Change::PutJob(JobRecord { retry_at: None, ..(**job).clone() }));
        let changes: Vec<Change> = awake.collect();
        if !changes.is_empty() {
            self.commit(changes)?;
        }
        if asked.wait {
            self.run_waiters.push(call.request.id.clone());
            return Ok(Given::Later);
        }
        self.coalesce();
        self.coalesce_document()
    }

    /// `Coalesce.pause` and `resume`.
    pub(crate) fn coalesce_pause(&mut self, call: &Call, pause: bool) -> Result<Given, Failure> {
        let asked: CoalesceParams = params(&call.request)?;
        let until = asked.until.filter(|_| pause).map(|text| text.parse::<Timestamp>());
        let until =
            until.transpose().map_err(|error| crate::failures::bad_request(format!("until: {error}")))?;
        let meta =
            Meta { coalesce_paused: pause, paused_until: until, ..(*self.catalog.state().meta).clone() };
        let kind = if pause { "coalesce.paused" } else { "coalesce.resumed" };
        let event = self.event(Severity::Info, kind, None, None, kind.replace('.', " "));
        self.commit(vec![Change::PutMeta(meta), event])?;
        if pause {
            self.stop_current();
        }
        self.coalesce_document()
    }

    fn coalesce_document(&self) -> Result<Given, Failure> {
        self.publish();
        Ok(Given::Answer(serde_json::to_value(self.board.read().coalesce_status()).unwrap_or_default()))
    }

    /// Whether the worker has come to an end of what it can do now.
    pub(crate) fn nothing_to_run(&self) -> bool {
        let state = self.catalog.state();
        let idle = || plan(&Tree::new(&state.images, &state.vdis), &self.moment()).ready.is_empty();
        self.current.is_none() && self.steps_due().is_none() && (crate::views::paused(state) || idle())
    }
}

fn remove(image: &ImageRecord) -> Step {
    Step::Remove { image: image.id, container: image.container.clone() }
}

/// The task that a job's work is.
fn task_of(work: &Work) -> Option<Task> {
    match work {
        Work::Merge { from, into, .. } => Some(Task::Merge { from: *from, into: *into }),
        Work::LeafMerge { vdi, from, into } => Some(Task::LeafMerge { vdi: *vdi, from: *from, into: *into }),
        Work::Garbage { image } => Some(Task::Remove { image: *image }),
        _ => None,
    }
}
