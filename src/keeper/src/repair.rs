//! `SR.check` with `repair`: a check, the mending of what can be mended without loss, and a check again. And `SR.trim`.
//!
//! ```text
//!  check ─▶ save what is written over, mend (image by image) ─▶ [commit]: new headers are in the row (D5) ─▶ headers ─▶ check
//! ```
//! Before the commit a crash leaves images that the next repair mends, and the job has failed. After it the headers are written
//! again by recovery, and the last check is made. While the first half runs nothing else touches a disk of the SR, since
//! the catalog as it was decides what headers and flags must say.

use crate::check::Checker;
use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::{from_trouble, to_trouble};
use crate::hands::ready;
use crate::images::unexpected;
use crate::long::{LongJob, Script, Session};
use crate::owner::{Call, Given, Owner, Running};
use crate::saved::Saves;
use catena_catalog::Change;
use catena_control::{Answer, Fix, Progress, Request, Trouble, TroubleKind};
use catena_rpc::{CheckReport, Finding, Repaired, SrParams, TrimReport, TrimSkipped};
use catena_sr_api::{Access, Discarded, Error, Store};
use catena_types::{
    Bytes, ErrorName, Failure, HeaderPatch, ImageId, ImageRecord, ImageState, JobRecord, Severity, Step, Work,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the first half of a repair has come to.
#[derive(Debug, Serialize, Deserialize)]
struct Mended {
    before: Vec<Finding>,
    repaired: Vec<Repaired>,
    headers: Vec<HeaderPatch>,
}

impl Owner {
    /// `SR.check` with `repair`: a job whose result is the report of the second check, with what was mended.
    pub(crate) fn sr_repair(&mut self, request_id: Option<String>) -> Result<Given, Failure> {
        self.refuse_while_read()?;
        let mut job = self.new_job(Work::Repair, request_id);
        job.phase = "repairing".to_owned();
        self.begin(&mut job, Vec::new())?;
        let checker = self.checker();
        let saves = Saves::new(self.store.catalog_dir(), &job);
        let script: Script = Box::new(move |session| mend(&checker, &saves, session));
        self.start_on_all(&job, script)
    }

    /// `SR.trim`: a job that gives back what images have and do not use; on devices, what no image has.
    pub(crate) fn sr_trim(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: SrParams = params(&call.request)?;
        self.store.check_marker()?;
        if self.is_sized() {
            return self.discard_free(asked.request_id);
        }
        self.refuse_while_read()?;
        let mut job = self.new_job(Work::Trim, asked.request_id);
        job.phase = "trimming".to_owned();
        self.begin(&mut job, Vec::new())?;
        let state = self.catalog.state();
        let merged: BTreeSet<ImageId> =
            state.unfinished().filter(|job| !job.state.is_over()).flat_map(|job| merging(job)).collect();
        let ours = |row: &&Arc<ImageRecord>| row.state == ImageState::Ok && !row.foreign;
        let rows = state.images.values().filter(ours).filter(|row| !merged.contains(&row.id));
        let rows: Vec<Arc<ImageRecord>> = rows.cloned().collect();
        let store = Arc::clone(&self.store);
        let script: Script = Box::new(move |session| trim(&*store, &rows, session));
        self.start_on_all(&job, script)
    }

    /// `SR.trim` of a storage whose containers are sized: no image is touched, so disks in use and merges go on, and none is leased.
    fn discard_free(&mut self, request_id: Option<String>) -> Result<Given, Failure> {
        let mut job = self.new_job(Work::Trim, request_id);
        job.phase = "trimming".to_owned();
        self.begin(&mut job, Vec::new())?;
        let store = Arc::clone(&self.store);
        let script: Script = Box::new(move |session| discard(&*store, session));
        self.start_leasing(&job, BTreeSet::new(), script)
    }

    /// Starts the long part of a job that leases every image.
    pub(crate) fn start_on_all(&mut self, job: &JobRecord, script: Script) -> Result<Given, Failure> {
        let lease = self.catalog.state().images.keys().copied().collect();
        self.start_leasing(job, lease, script)
    }

    fn start_leasing(
        &mut self,
        job: &JobRecord,
        lease: BTreeSet<ImageId>,
        script: Script,
    ) -> Result<Given, Failure> {
        let long = self.or_undo(job, |owner| {
            LongJob::start(job.id, &owner.mailbox, script).map_err(|trouble| from_trouble(&trouble))
        })?;
        self.track(job, Running { long, lease, cancelled: false });
        self.job_document(job.id).map(Given::Answer)
    }

    /// Refuses to write to images all over the SR while others read or write them.
    fn refuse_while_read(&self) -> Result<(), Failure> {
        if let Some(row) = self.catalog.state().attachments.values().next() {
            return Err(Failure::new(ErrorName::SrInUse, "disks of the SR are attached")
                .hint("`catena vdi list` says which; `catena vdi detach` ends it")
                .object("vdi", row.vdi));
        }
        if self.running.values().all(|running| running.lease.is_empty()) {
            return Ok(());
        }
        let failure = Failure::new(ErrorName::TryAgain, "another job reads images of this SR");
        Err(failure.hint("`catena job list` names it; try again when it is done").retry())
    }

    /// Whether images are being mended, so that calls which touch disks must wait.
    pub(crate) fn is_mending(&self) -> bool {
        let jobs = &self.catalog.state().jobs;
        self.running
            .keys()
            .any(|id| jobs.get(id).is_some_and(|job| job.work == Work::Repair && !job.committed))
    }

    /// One half of a repair has ended well: the first is committed and its headers are written, the second is recorded.
    pub(crate) fn repair_went_on(&mut self, job: JobRecord, value: Value) -> Result<(), Failure> {
        if job.committed { self.repaired(job, value) } else { self.mended(job, value) }
    }

    fn mended(&mut self, mut job: JobRecord, value: Value) -> Result<(), Failure> {
        let Mended { before, repaired, headers } = serde_json::from_value(value).map_err(|_| unexpected())?;
        let images: Vec<ImageId> = headers.iter().map(|patch| patch.image).collect();
        // D5: an older patch of the same header must never be written over the new one.
        let mut changes = self.without_older_patches(job.id, &images);
        if !images.is_empty() {
            job.effects.steps = vec![Step::Reparent { images, patches: headers }];
        }
        job.committed = true;
        job.phase = "checking again".to_owned();
        let report = CheckReport {
            findings: before.clone(),
            clean: false,
            findings_before: Some(before),
            repaired: Some(repaired),
        };
        job.answer = serde_json::to_value(report).ok();
        let (id, kind) = (job.id, job.work.kind());
        changes.push(Change::PutJob(job));
        self.commit(changes)?;
        crash::pass(kind, Phase::Committed);
        self.run_steps(id);
        Ok(())
    }

    /// The second half of a repair: what is there now?
    pub(crate) fn check_again(&mut self, job: &JobRecord) -> Result<(), Failure> {
        let checker = self.checker();
        let script: Script = Box::new(move |session| checker.run(session));
        self.start_on_all(job, script).map(drop)
    }

    fn repaired(&mut self, mut job: JobRecord, value: Value) -> Result<(), Failure> {
        let now: CheckReport = serde_json::from_value(value).map_err(|_| unexpected())?;
        let first: Option<CheckReport> =
            job.answer.take().and_then(|report| serde_json::from_value(report).ok());
        let first = first.ok_or_else(unexpected)?;
        let mut changes = self.judged(&now.findings);
        let count = first.repaired.as_ref().map_or(0, Vec::len);
        let severity = if now.clean { Severity::Info } else { Severity::Error };
        let text =
            format!("{count} repairs; {}", if now.clean { "all is in order" } else { "some damage is left" });
        changes.push(self.event(severity, "sr.repaired", None, Some(&job), text));
        let report = CheckReport { findings: now.findings, clean: now.clean, ..first };
        job.answer = serde_json::to_value(report).ok();
        self.finish(job, changes)
    }

    /// Marks images that are still damaged, which blocks their chains only, and those that are in order again.
    fn judged(&self, findings: &[Finding]) -> Vec<Change> {
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
        let damaged: BTreeSet<&str> = errors.map(|finding| finding.object.as_str()).collect();
        let rows = self.catalog.state().images.values();
        let change = |row: &Arc<ImageRecord>| {
            // That a container is gone is no damage; `sr scan` says so, and when it is back.
            self.store.info(&row.container).ok()?;
            let state = match (row.state, damaged.contains(row.container.as_str())) {
                (ImageState::Ok, true) => ImageState::Corrupt,
                (ImageState::Corrupt, false) => ImageState::Ok,
                _ => return None,
            };
            Some(Change::PutImage(ImageRecord { state, ..(**row).clone() }))
        };
        rows.filter_map(change).collect()
    }

    /// A trim has ended well: what images take now is recorded.
    pub(crate) fn trimmed(&mut self, mut job: JobRecord, value: Value) -> Result<(), Failure> {
        let rows = self.catalog.state().images.values();
        let now = rows.map(|row| (row, self.measured(row))).filter(|(row, now)| ***row != *now);
        let changes = now.map(|(_, now)| Change::PutImage(now)).collect();
        job.answer = Some(value);
        self.finish(job, changes)
    }
}

/// The images of a merge.
fn merging(job: &JobRecord) -> Vec<ImageId> {
    match job.work {
        Work::Merge { from, into, .. } | Work::LeafMerge { from, into, .. } => vec![from, into],
        _ => Vec::new(),
    }
}

/// The first half of a repair.
fn mend(checker: &Checker, saves: &Saves, session: &mut Session<'_>) -> Result<Value, Trouble> {
    let before = checker.report(session)?.findings;
    let (mut repaired, mut headers) = (Vec::new(), Vec::new());
    let found: BTreeSet<&str> = before.iter().map(|finding| finding.object.as_str()).collect();
    for row in checker.images().filter(|row| !row.foreign && found.contains(row.container.as_str())) {
        // With the writer's lock: what is planned and saved is no longer changed by a worker of an earlier repair that was killed.
        let Ok(image) = ready(&*checker.store, row, Access::ReadWrite) else { continue };
        let expected = checker.expected(row);
        let request = Request::PlanRepair { image: image.handed, expected: expected.clone() };
        let file = saves.file(row)?;
        let Answer::RepairPlan { fixes, saved } = session.call(&request, vec![image.fd, file])? else {
            return Err(surprise());
        };
        if fixes.is_empty() {
            saves.discard(row)?;
            continue;
        }
        let length = checker.store.info(&row.container).map_err(|error| refused(&error.into()))?.length;
        let place = saves.complete(row, length, &fixes, &saved)?;
        let image = ready(&*checker.store, row, Access::ReadWrite).map_err(|failure| refused(&failure))?;
        let request = Request::Repair { image: image.handed, expected };
        let Answer::Repaired { header } = session.call(&request, vec![image.fd])? else {
            return Err(surprise());
        };
        headers.extend(Some(header).filter(|header| !header.writes.is_empty()));
        repaired.extend(fixes.iter().map(|fix| as_document(fix, row, &before, &place)));
    }
    serde_json::to_value(Mended { before, repaired, headers }).map_err(|_| surprise())
}

fn as_document(fix: &Fix, row: &ImageRecord, before: &[Finding], saved: &str) -> Repaired {
    let same =
        |finding: &&Finding| finding.object == row.container && finding.problem.starts_with(&fix.check);
    Repaired {
        object: row.container.clone(),
        problem: before
            .iter()
            .find(same)
            .map_or_else(|| fix.check.clone(), |finding| finding.problem.clone()),
        repair: fix.what.clone(),
        saved: saved.to_owned(),
    }
}

fn trim(store: &dyn Store, rows: &[Arc<ImageRecord>], session: &mut Session<'_>) -> Result<Value, Trouble> {
    let mut report = TrimReport { freed: Bytes(0), images: 0, skipped: Vec::new(), discarded: None };
    let total = Bytes(rows.iter().map(|row| row.allocated.0).sum());
    let mut done = Bytes(0);
    for row in rows {
        let outcome = ready(store, row, Access::ReadWrite)
            .map_err(|failure| refused(&failure))
            .and_then(|image| session.call(&Request::Trim { image: image.handed }, vec![image.fd]));
        match outcome {
            Ok(Answer::Trimmed { freed }) => {
                report.freed.0 += freed.0;
                report.images += 1;
            }
            Ok(_) => return Err(surprise()),
            Err(trouble) if matches!(trouble.kind, TroubleKind::Io | TroubleKind::Internal) => {
                return Err(trouble);
            }
            Err(Trouble { message, .. }) => {
                report.skipped.push(TrimSkipped { object: row.container.clone(), reason: message });
            }
        }
        done.0 += row.allocated.0;
        session.progress(Progress { cursor: 0, bytes_done: done, bytes_total: total });
    }
    serde_json::to_value(report).map_err(|_| surprise())
}

/// Tells the devices which space is free.
fn discard(store: &dyn Store, session: &Session<'_>) -> Result<Value, Trouble> {
    let discarded = store.discard_free(&mut |bytes_done, bytes_total| {
        session.progress(Progress { cursor: 0, bytes_done, bytes_total });
        session.is_wanted()
    });
    if !session.is_wanted() {
        return Err(Trouble { kind: TroubleKind::Stopped, message: "the job was stopped".to_owned() });
    }
    let Discarded { bytes, unable } = discarded.map_err(|error| match error {
        Error::Unsupported(why) => Trouble { kind: TroubleKind::Unsupported, message: why },
        error => to_trouble(&error.into()),
    })?;
    let unable = unable.into_iter();
    let skipped =
        unable.map(|object| TrimSkipped { object, reason: "it cannot discard".to_owned() }).collect();
    let report = TrimReport { freed: bytes, images: 0, skipped, discarded: Some(bytes) };
    serde_json::to_value(report).map_err(|_| surprise())
}

fn refused(failure: &Failure) -> Trouble {
    Trouble { kind: TroubleKind::Unsupported, message: failure.to_string() }
}

fn surprise() -> Trouble {
    Trouble {
        kind: TroubleKind::Internal,
        message: "the datapath worker gave an unexpected answer".to_owned(),
    }
}
