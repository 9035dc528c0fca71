//! Job rows: how they begin, go on and end, who waits for them, and how they are cancelled.

use crate::crash::{self, Phase};
use crate::failures::{bad_request, from_trouble};
use crate::owner::{Call, Given, JobWaiter, Owner, Running};
use crate::priority::Priority;
use crate::published::Live;
use crate::steps::back_off;
use catena_catalog::Change;
use catena_control::{Progress, Trouble, TroubleKind};
use catena_rpc::{Id, JobParams, Text};
use catena_types::{Bytes, Effects, ErrorName, Failure, JobId, JobRecord, JobState, Made, Severity, Work};
use jiff::{Timestamp, Zoned};
use serde_json::Value;
use std::time::{Duration, Instant};

impl Owner {
    /// A job row that is not written yet.
    pub(crate) fn new_job(&mut self, work: Work, request_id: Option<String>) -> JobRecord {
        let now = Timestamp::now();
        JobRecord {
            id: self.catalog.next_job_id(),
            work,
            state: JobState::Running,
            committed: false,
            effects: Effects::default(),
            phase: "starting".to_owned(),
            bytes_done: Bytes(0),
            bytes_total: Bytes(0),
            error: None,
            attempts: 0,
            retry_at: None,
            request_id,
            answer: None,
            created: now,
            updated: now,
        }
    }

    /// Writes the row of a job that makes containers: before the first of them exists.
    pub(crate) fn begin(&mut self, job: &mut JobRecord, makes: Vec<Made>) -> Result<(), Failure> {
        job.effects.makes = makes;
        self.commit(vec![Change::PutJob(job.clone())]).inspect_err(|_| self.holds.release(job.id))?;
        crash::pass(job.work.kind(), Phase::Journaled);
        Ok(())
    }

    /// Undoes a job that has not committed: removes what it made, and records why. What cannot be removed now stays in the row
    /// of the failed job and is tried again.
    pub(crate) fn undo(&mut self, mut job: JobRecord, state: JobState, why: &Failure) {
        job.state = state;
        job.error = Some(why.clone());
        if why.retry {
            // Who is told to try again may do so with the same key.
            job.request_id = None;
        }
        self.remove_made(job);
    }

    /// Tries again to remove what jobs have made that ended badly, where the last try was long enough ago.
    pub(crate) fn retry_leftovers(&mut self) {
        let now = Timestamp::now();
        let due =
            |job: &&std::sync::Arc<JobRecord>| job.has_leftovers() && job.retry_at.is_none_or(|at| at <= now);
        let due: Vec<JobRecord> =
            self.catalog.state().unfinished().filter(due).map(|job| (**job).clone()).collect();
        for job in due {
            self.remove_made(job);
        }
    }

    fn remove_made(&mut self, mut job: JobRecord) {
        if let Err(failure) = self.take_back(&mut job) {
            tracing::error!(job = job.id, %failure, "what a job made could not be removed and is tried again");
            job.attempts += 1;
            job.retry_at = Some(Timestamp::now() + back_off(job.attempts));
        } else {
            job.effects = Effects::default();
            job.retry_at = None;
        }
        job.updated = Timestamp::now();
        let id = job.id;
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "the end of a job could not be recorded");
        }
    }

    /// What the job made goes, and what it made larger is cut again.
    fn take_back(&mut self, job: &mut JobRecord) -> Result<(), Failure> {
        let made: Vec<&str> = job.effects.makes.iter().map(|made| made.container.as_str()).collect();
        self.store.remove_all(&made)?;
        let grown = job.effects.sizes.clone();
        self.settle_sizes(job)?;
        let cut = grown.iter().try_for_each(|resized| self.deflate(resized.image));
        // The row has to name them until all are cut.
        cut.inspect_err(|_| job.effects.sizes = grown)
    }

    /// Runs `make`; if it fails, the job is undone and the failure goes on.
    pub(crate) fn or_undo<T>(
        &mut self,
        job: &JobRecord,
        make: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        make(self).inspect_err(|failure| {
            // D19: where it is not known whether the job has committed, nothing is undone.
            let known = !self.catalog.is_doubtful();
            if known && self.catalog.state().jobs.get(&job.id).is_none_or(|row| !row.committed) {
                self.undo(job.clone(), JobState::Failed, failure);
            }
        })
    }

    /// Remembers a job that runs in a process of its own.
    pub(crate) fn track(&mut self, job: &JobRecord, running: Running) {
        self.live.insert(job.id, Live::new(running.long.pid()));
        self.running.insert(job.id, running);
    }

    /// A long job goes on: what it says is durable is recorded for a merge.
    pub(crate) fn progressed(&mut self, job: JobId, progress: Progress) {
        self.goes_on(job, progress);
        if self.current.as_ref().is_some_and(|current| current.job == job) {
            self.watch_floor(Some(progress.bytes_done));
            self.merge_progressed(job, progress);
        }
    }

    /// How far a job is, for those who look.
    pub(crate) fn goes_on(&mut self, job: JobId, progress: Progress) {
        if let Some(live) = self.live.get_mut(&job) {
            live.update(progress);
            if let Some(news) = live.news() {
                self.tell_progress(job, &news);
            }
        }
    }

    /// Tells watchers how far a job is. Not recorded: what matters of it is in the job's row.
    fn tell_progress(&self, id: JobId, news: &str) {
        let Some(job) = self.catalog.state().jobs.get(&id) else { return };
        let kind = crate::views::kind_name(job.work.kind());
        if let Change::Event(event) =
            self.event(Severity::Info, "job.progress", None, Some(job), format!("{kind}: {news}"))
        {
            self.notify(&event);
        }
    }

    /// A long job is over, and so is its process.
    pub(crate) fn long_ended(&mut self, job: JobId, end: Result<Value, Trouble>) {
        let cancelled = self.running.remove(&job).is_some_and(|running| running.cancelled);
        let merge = self.current.as_ref().is_some_and(|current| current.job == job);
        if merge {
            self.priority = None;
            self.merge_ended(job, end, cancelled);
        } else if let Some(row) = self.catalog.state().jobs.get(&job).map(|row| (**row).clone()) {
            let end = end.map_err(|trouble| match trouble.kind {
                TroubleKind::Stopped if cancelled => {
                    Failure::new(ErrorName::TryAgain, "the job was cancelled")
                }
                _ => from_trouble(&trouble),
            });
            let state = if cancelled { JobState::Cancelled } else { JobState::Failed };
            self.stream_ended(row, end, state);
        }
        // A repair goes on with its second check, a merge that has got its room in the process of its disk.
        let moves = self.catalog.state().jobs.get(&job).is_some_and(|row| row.is_open_move());
        if !self.running.contains_key(&job) && !moves {
            self.live.remove(&job);
        }
        for call in std::mem::take(&mut self.parked) {
            self.handle(call);
        }
    }

    /// Records the good end of a job.
    pub(crate) fn finish(&mut self, mut job: JobRecord, mut changes: Vec<Change>) -> Result<(), Failure> {
        let kind = job.work.kind();
        job.state = JobState::Done;
        job.phase = "done".to_owned();
        job.effects = Effects::default();
        job.error = None;
        job.retry_at = None;
        job.bytes_done = job.bytes_total;
        job.updated = Timestamp::now();
        changes.push(Change::PutJob(job));
        self.commit(changes)?;
        crash::pass(kind, Phase::Done);
        Ok(())
    }

    /// The answer that an earlier call with the same `request_id` got, or how that call stands.
    pub(crate) fn remembered(&mut self, call: &Call) -> Option<Result<Given, Failure>> {
        let key = call.request.params.get("request_id")?.as_str()?;
        let job = self.catalog.state().job_of_request(key)?;
        let (id, state) = (job.id, job.state);
        match (&job.answer, &job.error, state) {
            (_, Some(failure), JobState::Failed | JobState::Cancelled) => Some(Err(failure.clone())),
            _ if crate::dispatch::answers_with_a_job(&call.request.method) => {
                Some(self.job_document(id).map(Given::Answer))
            }
            (Some(answer), _, _) if job.committed => Some(Ok(Given::Answer(answer.clone()))),
            _ => Some(Err(Failure::new(
                ErrorName::TryAgain,
                "the first call with this request_id is still running",
            ))),
        }
    }

    /// A job as clients see it.
    pub(crate) fn job_document(&self, id: JobId) -> Result<Value, Failure> {
        self.publish();
        self.board.read().job(id).ok_or_else(|| no_such_job(id))
    }

    /// `Job.wait`.
    pub(crate) fn job_wait(&mut self, call: &Call) -> Result<Given, Failure> {
        let params: JobParams = crate::dispatch::params(&call.request)?;
        let id = self.job_id(&params.job)?;
        let job = self.catalog.state().jobs.get(&id).ok_or_else(|| no_such_job(id))?;
        if job.state.is_over() {
            return self.job_document(id).map(Given::Answer);
        }
        let deadline =
            params.timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.min(86_400)));
        self.job_waiters.push(JobWaiter { id: call.request.id.clone(), job: id, deadline });
        Ok(Given::Later)
    }

    /// `Job.cancel`: a job that runs is stopped, and undone when it has; one that waits is ended here.
    pub(crate) fn job_cancel(&mut self, call: &Call) -> Result<Given, Failure> {
        let params: JobParams = crate::dispatch::params(&call.request)?;
        let id = self.job_id(&params.job)?;
        let mut job =
            self.catalog.state().jobs.get(&id).map(|row| (**row).clone()).ok_or_else(|| no_such_job(id))?;
        if let Some(running) = self.running.get_mut(&id) {
            running.cancelled = true;
            running.long.stop();
        } else if let (true, Work::LeafMerge { vdi, .. }) = (job.is_open_move(), &job.work) {
            self.close_move(*vdi, true)?;
        } else if (job.committed
            || matches!(job.work, Work::Resize { .. } | Work::Grow { .. } | Work::Extend { .. }))
            && !job.state.is_over()
        {
            return Err(Failure::new(
                ErrorName::VdiUnavailable,
                "the job has taken effect, or may have, and only has to be finished",
            )
            .hint("`catena job wait` waits for its end"));
        } else if !job.state.is_over() {
            job.state = JobState::Cancelled;
            job.retry_at = Some(Timestamp::now() + crate::coalescing::CANCELLED_REST);
            self.commit(vec![Change::PutJob(job)])?;
        }
        self.job_document(id).map(Given::Answer)
    }

    /// Answers those who wait for a job that is over, or whose patience is.
    pub(crate) fn answer_waiters(&mut self) {
        self.publish();
        let now = Instant::now();
        let waiters = std::mem::take(&mut self.job_waiters);
        for waiter in waiters {
            let over = self.catalog.state().jobs.get(&waiter.job).is_none_or(|job| job.state.is_over());
            if over || waiter.deadline.is_some_and(|at| at <= now) {
                let document = self.board.read().job(waiter.job).ok_or_else(|| no_such_job(waiter.job));
                self.answer(waiter.id, document.map(Into::into));
            } else {
                self.job_waiters.push(waiter);
            }
        }
        if !self.run_waiters.is_empty() && self.nothing_to_run() {
            let status = Text::of(&self.board.read().coalesce_status());
            let waiters: Vec<Id> = self.run_waiters.drain(..).collect();
            for id in waiters {
                self.answer(id, Ok(status.clone()));
            }
        }
    }

    /// How long the owner may sleep without mail: until a waiter's patience ends, a back-off, a pause, or the hours of the
    /// policy, or until the running merge must be looked at. What was over when the owner `looked` was dealt with.
    pub(crate) fn next_deadline(&self, looked: &Zoned) -> Option<Duration> {
        let (instant, now) = (Instant::now(), Timestamp::now());
        let state = self.catalog.state();
        let waiters = self.job_waiters.iter().filter_map(|waiter| waiter.deadline);
        let awake = waiters.chain(self.priority.as_ref().and_then(Priority::deadline));
        let awake = awake.chain(self.serving.deadline()).chain(self.ailing).chain(self.demand_deadline());
        let awake = awake.chain(self.lingering.deadline());
        let awake = awake.map(|at| at.saturating_duration_since(instant));
        let rests = state.unfinished().filter_map(|job| job.retry_at);
        let rests = rests.chain(state.meta.paused_until).chain(self.policy().window.next_change(looked));
        let rests = rests.chain(self.unsaid.values().copied());
        let rests = rests.filter(|at| *at > looked.timestamp());
        awake.chain(rests.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default())).min()
    }

    /// The number in a job id such as `3f2a91bc-17`.
    pub(crate) fn job_id(&self, text: &str) -> Result<JobId, Failure> {
        let (sr, number) =
            text.rsplit_once('-').ok_or_else(|| bad_request(format!("'{text}' is not a job's id")))?;
        if !self.sr.uuid.to_string().starts_with(sr) {
            return Err(Failure::new(ErrorName::VdiMissing, format!("there is no job {text} in this SR")));
        }
        number.parse().map_err(|_| bad_request(format!("'{text}' is not a job's id")))
    }
}

fn no_such_job(id: JobId) -> Failure {
    Failure::new(ErrorName::VdiMissing, format!("there is no job {id}")).hint("`catena job list` names them")
}
