//! `VDI.attach` and `VDI.detach`: a disk gets a process that serves it, and loses it again.
//!
//! ```text
//!  attach:  [commit] job and attachment ─▶ directory, record, process ─▶ [commit] job done
//!  detach:  process stopped, all of it durable ─▶ [commit] attachment gone, job done ─▶ directory gone
//! ```
//!
//! A process takes its time to flush and end: the call waits for that, everybody else goes on.
//!
//! The attachment is there whenever a process may be: a crash in an attach is undone from its job, which nobody was answered;
//! one in a detach leaves an attached disk, whose process is found or replaced. Called by `dispatch` and `recover`.

use crate::adoption::{Serving, end_now, local, not_attached};
use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::lookup::{no_such_vdi, vdi_uuid};
use crate::owner::{Call, Given, Owner};
use crate::serving::{PATIENCE, Served, silent};
use catena_catalog::Change;
use catena_rpc::{Attached, VdiAttachParams, VdiParams};
use catena_types::{
    AttachMode, AttachmentRecord, Effects, ErrorName, Failure, ImageRecord, JobKind, JobRecord, JobState,
    Severity, VdiUuid, Work,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a process may take to flush and end.
const STOP: Duration = Duration::from_secs(30);

impl Owner {
    /// `VDI.attach`, answered with [`Attached`].
    pub(crate) fn vdi_attach(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiAttachParams = params(&call.request)?;
        let (vdi, leaf) = self.disk(&asked.vdi)?;
        let uuid = vdi.uuid;
        let mode = if asked.read_only { AttachMode::ReadOnly } else { AttachMode::ReadWrite };
        let count = self.count_with_one_more(uuid, mode)?;
        if mode == AttachMode::ReadWrite && leaf.foreign {
            let what = "its image was written by another program and is never written to";
            return Err(Failure::new(ErrorName::Unsupported, what)
                .hint("`catena vdi clone` makes a disk that can be written; --read-only needs none")
                .object("vdi", uuid));
        }
        if !self.serving.dir.is_short_enough(uuid) {
            let text = "the path of the agent's run directory is too long for a socket";
            return Err(Failure::new(ErrorName::Unsupported, text).hint("use a shorter --root or run_dir"));
        }
        if mode == AttachMode::ReadWrite {
            self.leave_to_readers(&vdi, leaf.id)?;
            // It may be another one by now.
            let leaf = self.leaf_of(uuid)?;
            self.may_inflate(&leaf)?;
        }
        let attachment = AttachmentRecord {
            vdi: uuid,
            mode,
            count,
            boot: self.serving.boot.clone(),
            since: Timestamp::now(),
        };
        let mut job = self.new_job(Work::Attach { vdi: uuid }, asked.request_id);
        let answer = Attached { vdi: uuid, mode: mode.word().to_owned(), uri: self.serving.dir.uri(uuid) };
        let answer = serde_json::to_value(answer).unwrap_or_default();
        if count > 1 {
            self.attached(job, vec![Change::PutAttachment(attachment)], &answer)?;
            return Ok(Given::Answer(answer));
        }
        // Before the first effect: no process is ever unknown.
        self.commit(vec![Change::PutJob(job.clone()), Change::PutAttachment(attachment)])?;
        crash::pass(JobKind::Attach, Phase::Journaled);
        let served = Served { chain: Some(Vec::new()), ..Served::unknown() };
        self.serving.disks.insert(uuid, served);
        let made = self.serving.dir.make(uuid).map_err(|error| local(uuid, "its directory", &error));
        let sized = made.and_then(|()| self.inflate_leaf(&mut job, uuid));
        let started = sized.and_then(|()| self.start_serving(uuid));
        crash::pass(JobKind::Attach, Phase::Made);
        let outcome = started.and_then(|()| self.attached(job.clone(), Vec::new(), &answer));
        if let Err(failure) = outcome {
            self.undo_attach(job, &failure);
            return Err(failure);
        }
        crash::pass(JobKind::Attach, Phase::Done);
        Ok(Given::Answer(answer))
    }

    fn leaf_of(&self, vdi: VdiUuid) -> Result<ImageRecord, Failure> {
        let row = self.catalog.state().vdis.get(&vdi).ok_or_else(|| no_such_vdi(&vdi.to_string()))?;
        self.image(row.image).cloned()
    }

    /// Explicit sizing: what a guest writes takes every block.
    fn inflate_leaf(&mut self, job: &mut JobRecord, vdi: VdiUuid) -> Result<(), Failure> {
        if !self.is_written(vdi) {
            return Ok(());
        }
        let leaf = self.leaf_of(vdi)?;
        self.inflate_for_writing(job, &leaf)
    }

    fn attached(&mut self, job: JobRecord, mut changes: Vec<Change>, answer: &Value) -> Result<(), Failure> {
        let (Work::Attach { vdi } | Work::Detach { vdi }) = job.work else { return Ok(()) };
        let text = format!("attached ({})", answer["mode"].as_str().unwrap_or_default());
        changes.push(self.event(Severity::Info, "vdi.attached", Some(vdi), Some(&job), text));
        changes.push(Change::PutJob(done(job, answer.clone())));
        self.commit(changes)
    }

    /// How many attachments the VDI has with one more of this kind: one that is written has no other.
    fn count_with_one_more(&self, vdi: VdiUuid, mode: AttachMode) -> Result<u32, Failure> {
        match self.catalog.state().attachments.get(&vdi) {
            None => Ok(1),
            Some(row) if (row.mode, mode) == (AttachMode::ReadOnly, AttachMode::ReadOnly) => {
                let is_served = |served: &Served| served.link.is_some() && !served.is_stopping();
                if !self.serving.disks.get(&vdi).is_some_and(is_served) {
                    return Err(silent(vdi));
                }
                Ok(row.count.saturating_add(1))
            }
            Some(row) => Err(in_use(vdi, row.mode)),
        }
    }

    /// Undoes an attach that nobody was answered: its process goes, then its row.
    pub(crate) fn undo_attach(&mut self, job: JobRecord, why: &Failure) {
        let Work::Attach { vdi } = job.work else { return };
        let served = self.serving.disks.get(&vdi);
        let runs = served.is_some_and(|served| served.link.is_some() || served.chain.is_none());
        if runs && let Err(failure) = self.stop_serving(vdi) {
            return tracing::error!(%vdi, %failure, "an attach could not be undone; the disk stays attached");
        }
        let over = JobRecord {
            state: JobState::Failed,
            error: Some(why.clone()),
            request_id: job.request_id.clone().filter(|_| !why.retry),
            updated: Timestamp::now(),
            effects: Effects { sizes: self.inflated(vdi, &job), ..Effects::default() },
            ..job
        };
        let changes = vec![Change::RemoveAttachment(vdi), Change::PutJob(over)];
        match self.commit(changes) {
            Ok(()) => {
                self.forget_served(vdi);
                self.retry_leftovers();
            }
            Err(failure) => tracing::error!(%vdi, %failure, "the end of an attach could not be recorded"),
        }
    }

    /// `VDI.detach`, answered with [`catena_rpc::Done`].
    pub(crate) fn vdi_detach(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiParams = params(&call.request)?;
        let uuid = vdi_uuid(&asked.vdi)?;
        let state = self.catalog.state();
        let vdi = state.vdis.get(&uuid).ok_or_else(|| no_such_vdi(&asked.vdi))?;
        let leaf = vdi.image;
        let row = state.attachments.get(&uuid).ok_or_else(|| not_attached(uuid))?;
        let row = (**row).clone();
        if row.count == 1 && !self.is_told_to_stop(uuid)? {
            return Ok(Given::AfterStop(uuid));
        }
        let job = self.new_job(Work::Detach { vdi: uuid }, asked.request_id);
        let mut changes = Vec::new();
        if row.count > 1 {
            let text = format!("one of {} readers detached", row.count);
            changes.push(Change::PutAttachment(AttachmentRecord { count: row.count - 1, ..row }));
            changes.push(self.event(Severity::Info, "vdi.detached", Some(uuid), Some(&job), text));
            changes.push(Change::PutJob(done(job, json!({}))));
            self.commit(changes)?;
            return Ok(Given::Answer(json!({})));
        }
        self.stop_serving(uuid).inspect_err(|_| self.lose_served(uuid, Duration::ZERO))?;
        crash::pass(JobKind::Detach, Phase::Made);
        if row.mode == AttachMode::ReadWrite {
            self.stale.insert(leaf);
            self.stale.extend(self.image(leaf).ok().and_then(|row| row.parent));
        }
        changes.push(Change::RemoveAttachment(uuid));
        changes.extend(self.without_move(uuid));
        changes.push(self.event(Severity::Info, "vdi.detached", Some(uuid), Some(&job), "detached"));
        let id = job.id;
        let job = JobRecord { committed: true, answer: Some(json!({})), ..job };
        // Before the row of the attachment goes: it says whether a guest has written.
        let steps = if row.mode == AttachMode::ReadWrite { self.deflating(leaf) } else { Vec::new() };
        let over = steps.is_empty();
        let job = match over {
            true => done(job, json!({})),
            false => JobRecord { effects: Effects { steps, ..Effects::default() }, ..job },
        };
        changes.push(Change::PutJob(job));
        if let Err(failure) = self.commit(changes) {
            self.lose_served(uuid, Duration::ZERO);
            return Err(failure);
        }
        crash::pass(JobKind::Detach, Phase::Committed);
        self.forget_served(uuid);
        if let Some(merge) = self.current.filter(|current| current.leaf_merge_of() == Some(uuid)) {
            self.live.remove(&merge.job);
            self.merge_over(merge.job);
        }
        if !over {
            self.run_steps(id);
        }
        Ok(Given::Answer(json!({})))
    }

    /// Tells the disk's process to stop, as soon as there is one that can be told. True when waiting longer is of no use: it has gone,
    /// or its time is over.
    fn is_told_to_stop(&mut self, vdi: VdiUuid) -> Result<bool, Failure> {
        let now = Instant::now();
        let is_undecided = self.serving.is_undecided(vdi);
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return Ok(true) };
        // It stands while somebody waits: who begins to wait after a failure has all of his time.
        let by = served.stop_by.take().unwrap_or(now + STOP);
        if now >= by {
            return Ok(true);
        }
        if served.link.is_none() && served.knock.is_none() && !is_undecided {
            if self.has_lost_its_record(vdi)? {
                return Ok(true);
            }
            let found = self.find_or_replace(vdi);
            if self.serving.disks.get(&vdi).is_none_or(|served| served.knock.is_none()) {
                // There is nothing that could still answer.
                found?;
            }
        }
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        let pid = served.pid;
        let is_over = match &mut served.link {
            Some(link) if link.is_told_to_stop() => link.is_gone(),
            // D20: nobody of an undecided set is told anything.
            Some(link) if !is_undecided => link.stop(pid).is_err(),
            _ => false,
        };
        served.stop_by = (!is_over).then_some(by);
        Ok(is_over)
    }

    /// Whether neither a process nor its record of acknowledged writes is left: then nobody can end what was begun. Images are
    /// in order without that, as after a power cut, and who detaches says that no client is left who would rely on more (D8).
    fn has_lost_its_record(&mut self, vdi: VdiUuid) -> Result<bool, Failure> {
        if self.knock(vdi)? {
            return Ok(false);
        }
        let pending = self.serving.dir.pending(vdi).map_err(|error| local(vdi, "its record", &error))?;
        Ok(pending.is_none())
    }

    /// Goes on with those who wait for the end of a process, where there is something to do.
    pub(crate) fn go_on_detaching(&mut self) {
        let now = Instant::now();
        let Serving { disks, stopping, .. } = &mut self.serving;
        let due = |(vdi, _): &mut (VdiUuid, Call)| disks.get(vdi).is_none_or(|served| served.ends(now));
        let due: Vec<_> = stopping.extract_if(.., due).collect();
        for (_, call) in due {
            self.handle(call);
        }
    }

    /// Ends the disk's process; all that it has acknowledged is on the images then. One that is dead has a successor for as long as
    /// it takes to make that true, and so has one that hangs (D8).
    fn stop_serving(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let is_unknown = |served: &Served| served.link.is_none() && served.knock.is_none();
        if self.serving.disks.get(&vdi).is_none_or(is_unknown) {
            if self.has_lost_its_record(vdi)? {
                let text = "its datapath has died, and the record of what that had acknowledged is gone: what was not flushed may be lost";
                let event = self.event(Severity::Error, "vdi.record_lost", Some(vdi), None, text);
                return self.commit(vec![event]);
            }
            self.find_or_replace(vdi)?;
        }
        let why = match self.stop_process(vdi) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if !self.has_gone(vdi, Duration::ZERO) {
            // Also one that this keeper has never heard of: it may have hung when the last one died.
            let Some(pid) = self.serving.dir.process(vdi) else { return Err(why) };
            let text =
                format!("the datapath does not stop and is killed; another ends what it has begun: {why}");
            let event = self.event(Severity::Error, "vdi.datapath_hangs", Some(vdi), None, text);
            self.commit(vec![event])?;
            end_now(pid);
            if !self.has_gone(vdi, PATIENCE) {
                return Err(silent(vdi));
            }
        }
        self.lose_served(vdi, Duration::ZERO);
        self.find_or_replace(vdi)?;
        self.stop_process(vdi)
    }

    /// Whether the process has closed its connection, or does so in time.
    fn has_gone(&self, vdi: VdiUuid, patience: Duration) -> bool {
        let served = self.serving.disks.get(&vdi);
        let link = served.and_then(|served| served.link.as_ref().or(served.knock.as_ref()));
        link.is_none_or(|link| link.ends_within(patience))
    }

    /// Asks the process to end, and waits for it; no longer, where it was asked before.
    fn stop_process(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| not_attached(vdi))?;
        let pid = served.pid;
        let link = served.link(vdi)?;
        let patience = if link.is_told_to_stop() { Duration::ZERO } else { STOP };
        if !link.is_told_to_stop() {
            link.stop(pid)?;
        }
        link.answer(patience)?;
        if link.ends_within(PATIENCE) { Ok(()) } else { Err(silent(vdi)) }
    }

    fn forget_served(&mut self, vdi: VdiUuid) {
        self.serving.disks.remove(&vdi);
        if let Err(error) = self.serving.dir.remove(vdi) {
            tracing::warn!(%vdi, %error, "the directory of a served disk was not removed");
        }
    }

    /// Whether the VDI is attached for writing.
    pub(crate) fn is_written(&self, vdi: VdiUuid) -> bool {
        let row = self.catalog.state().attachments.get(&vdi);
        row.is_some_and(|row| row.mode == AttachMode::ReadWrite)
    }

    /// Refuses what cannot be done to a VDI that is attached in one of these ways.
    pub(crate) fn refuse_attached(&self, vdi: VdiUuid, modes: &[AttachMode]) -> Result<(), Failure> {
        match self.catalog.state().attachments.get(&vdi) {
            Some(row) if modes.contains(&row.mode) => Err(in_use(vdi, row.mode)),
            _ => Ok(()),
        }
    }

    /// `SR.detach`: refused while disks are attached.
    pub(crate) fn sr_detach(&self) -> Result<Given, Failure> {
        match self.catalog.state().attachments.values().next() {
            None => Ok(Given::Farewell(json!({}))),
            Some(row) => {
                let count = self.catalog.state().attachments.values().count();
                let message = format!("{count} of the SR's disks are attached");
                Err(Failure::new(ErrorName::SrInUse, message)
                    .hint("`catena vdi list` says which; `catena vdi detach` ends it")
                    .object("sr", self.sr.uuid)
                    .object("vdi", row.vdi))
            }
        }
    }
}

/// A job that has had all its effect.
fn done(job: JobRecord, answer: Value) -> JobRecord {
    JobRecord {
        state: JobState::Done,
        phase: "done".to_owned(),
        committed: true,
        answer: Some(answer),
        updated: Timestamp::now(),
        ..job
    }
}

fn in_use(vdi: VdiUuid, mode: AttachMode) -> Failure {
    let (how, hint) = match mode {
        AttachMode::ReadOnly => ("for reading", "`catena vdi detach` ends it"),
        AttachMode::ReadWrite => {
            ("for writing", "`catena vdi detach` ends it; a snapshot can be read meanwhile")
        }
    };
    Failure::new(ErrorName::VdiInUse, format!("the disk is attached {how}")).hint(hint).object("vdi", vdi)
}
