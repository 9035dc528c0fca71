//! The coalesce worker of the SR: one task at a time, started by the owner whenever it has nothing else to do.
//!
//! The plan is made anew each time, so a VDI that is deleted, a snapshot that is taken or a pause that begins redirects the
//! worker by itself. A merge itself is in `merges`.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::operations::garbage;
use crate::owner::{Call, Given, Owner};
use crate::tree::Rows;
use catena_catalog::{Change, Meta};
use catena_coalesce::{Moment, Plan, Task, Tree, task_of};
use catena_rpc::CoalesceParams;
use catena_types::{
    CHAIN_LIMIT, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId, JobKind, JobRecord, JobState,
    Severity, Step, VdiUuid, Work,
};
use jiff::{SignedDuration, Timestamp};
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
    /// Its parent is only being made large enough.
    pub(crate) growing: bool,
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
        self.end_pause();
        self.watch_floor(None);
        self.tell_pace();
        self.settle_moves();
        if let Some(current) = self.current {
            if self.running.contains_key(&current.job) && !self.still_wanted(current.task) {
                self.stop_current();
            }
            return;
        }
        self.retry_leftovers();
        self.end_superseded();
        self.decide_resizes();
        if let Some(job) = self.steps_due() {
            return self.resume_steps(job);
        }
        self.retry_wanting();
        let ready = self.ready();
        self.fit_roomy(&ready);
        for task in &ready {
            match *task {
                Task::Remove { .. } => return self.start_garbage(&ready),
                task if self.start_merge(task) => return,
                // There is no room for it, as the next plan knows.
                _ => {}
            }
        }
    }

    /// What there is to do. Only what may have changed since the last plan is looked at.
    fn plan(&mut self) -> Plan {
        let moment = self.moment();
        self.candidates.plan(&Rows(self.catalog.state()), &moment)
    }

    /// What may begin now, in order: removals come first, and they alone where merges have to wait.
    fn ready(&mut self) -> Vec<Task> {
        let standstill = self.standstill();
        let mut ready = self.plan().ready;
        ready.retain(|task| standstill.is_none_or(|standstill| standstill.allows(*task)));
        ready
    }

    pub(crate) fn still_wanted(&self, task: Task) -> bool {
        let state = self.catalog.state();
        let tree = Rows(state);
        self.standstill().is_none()
            && tree.image(task.image()).and_then(|image| task_of(&tree, image)) == Some(task)
    }

    fn stop_current(&mut self) {
        if let Some(running) = self.current.and_then(|current| self.running.get(&current.job)) {
            running.long.stop();
        }
        self.settle_moves();
    }

    /// What the plan must know beyond the catalog.
    pub(crate) fn moment(&self) -> Moment {
        let now = Timestamp::now();
        let state = self.catalog.state();
        let mut moment = Moment {
            free: self.unpromised(self.board.stat().allocatable),
            reflink: self.sr.reflink,
            known_needs: self.is_sized().then(|| self.known_needs().collect()),
            ..Moment::default()
        };
        for running in self.running.values() {
            moment.leased.extend(&running.lease);
        }
        moment.attached = state.attachments.keys().copied().collect();
        moment.live = self.movable();
        moment.leased.extend(self.still_read());
        // D14: what a process may still write is nobody else's, until it has said that it has let go.
        let others = |open: &Task| self.current.is_none_or(|current| current.task != *open);
        for open in self.open_moves().into_iter().filter(others) {
            moment.leased.extend([Some(open.image()), open.target()].into_iter().flatten());
        }
        for job in state.unfinished() {
            if let Work::Resize { image, .. } = &job.work
                && !job.state.is_over()
            {
                // It would take in less than the disk, should that have grown.
                moment.backed_off.insert(*image);
            }
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
        let said = self.catalog.state().unfinished().find(due).map(|job| job.id);
        said.or_else(|| self.unsaid_due())
    }

    fn resume_steps(&mut self, id: JobId) {
        self.unsaid.remove(&id);
        let row = self.catalog.state().jobs.get(&id).filter(|row| !row.state.is_over());
        let Some(job) = row.map(|row| (**row).clone()) else { return };
        let job = JobRecord { state: JobState::Running, error: None, retry_at: None, ..job };
        let task = task_of_work(&job.work);
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            self.try_later(id);
            return tracing::error!(job = id, %failure, "a job could not be taken up again");
        }
        self.current = task.map(|task| Current { job: id, task, growing: false });
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
        self.current = Some(Current { job: id, task: Task::Remove { image: first }, growing: false });
        self.run_steps(id);
    }

    /// The worker is free again, if that was its job and nothing of it runs any more.
    pub(crate) fn merge_over(&mut self, id: JobId) {
        let removing = self.catalog.state().jobs.get(&id).is_some_and(|job| job.state == JobState::Running);
        if self.current.is_some_and(|current| current.job == id) && !removing {
            let images: Vec<ImageId> = self.current.into_iter().flat_map(Current::images).collect();
            if let Err(failure) = self.remeasure(&images) {
                tracing::warn!(%failure, "what the images of a merge take could not be recorded");
            }
            self.current = None;
            self.retry_wanting();
        }
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
            let plan = self.plan();
            let held = plan.held.iter().find(|held| chain.contains(&held.task.image()));
            let moves = plan.ready.iter().any(|task| chain.contains(&task.image()));
            let has_room = chain.len() < CHAIN_LIMIT;
            if let (Some(held), false, None) = (held, moves || has_room, self.current) {
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
        if let Some(standstill) = self.standstill().filter(|_| asked.wait) {
            return Err(standstill.failure());
        }
        let resting = self.catalog.state().unfinished().filter(|job| job.retry_at.is_some());
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
        if let Some(past) = until.filter(|until| *until <= Timestamp::now()) {
            return Err(crate::failures::bad_request(format!("until: {past} is over")));
        }
        let meta =
            Meta { coalesce_paused: pause, paused_until: until, ..(*self.catalog.state().meta).clone() };
        let kind = if pause { "coalesce.paused" } else { "coalesce.resumed" };
        let end = until.map(|until| format!(" until {until:.0}")).unwrap_or_default();
        let event = self.event(Severity::Info, kind, None, None, kind.replace('.', " ") + &end);
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
    pub(crate) fn nothing_to_run(&mut self) -> bool {
        self.current.is_none() && self.steps_due().is_none() && self.ready().is_empty()
    }
}

/// The task that a job's work is.
pub(crate) fn task_of_work(work: &Work) -> Option<Task> {
    match work {
        Work::Merge { from, into, .. } => Some(Task::Merge { from: *from, into: *into }),
        Work::LeafMerge { vdi, from, into, .. } => {
            Some(Task::LeafMerge { vdi: *vdi, from: *from, into: *into })
        }
        Work::Garbage { image } => Some(Task::Remove { image: *image }),
        _ => None,
    }
}
