//! `SR.grow`: the storage of an SR takes up what its devices have grown by, and gets more devices.
//!
//! ```text
//!  job row ─▶ the storage is made larger, in a thread ─▶ [commit]: job done ─▶ what waits for space goes on
//! ```
//! Nothing that is in the SR changes, so disks in use and merges go on meanwhile. The storage becomes larger in a step of its own: a
//! crash leaves the SR as it was, or larger; the job has failed then, and the same may be asked again.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::owner::{Call, Given, Mail, Owner};
use catena_catalog::Change;
use catena_rpc::{GrowReport, SrGrowParams};
use catena_sr_api::Store;
use catena_types::{Bytes, ErrorName, Failure, JobId, JobRecord, JobState, Severity, Work};
use jiff::Timestamp;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

impl Owner {
    /// `SR.grow`. Commands of the storage take their time, and a new device may hang: the owner does not wait.
    pub(crate) fn sr_grow(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: SrGrowParams = params(&call.request)?;
        let mut job = self.new_job(Work::Grow { devices: asked.devices.clone() }, asked.request_id);
        job.phase = "growing".to_owned();
        self.begin(&mut job, Vec::new())?;
        let (store, mailbox, id) = (Arc::clone(&self.store), self.mailbox.clone(), job.id);
        let known = self.sr.devices.clone();
        std::thread::spawn(move || {
            let result = grow(&*store, known, &asked.devices);
            // Without an owner the keeper is ending; recovery ends the job.
            let _ = mailbox.send(Mail::Grown(id, result));
        });
        self.job_document(job.id).map(Given::Answer)
    }

    /// The storage is larger, or not.
    pub(crate) fn storage_grown(&mut self, id: JobId, result: Result<GrowReport, Failure>) {
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        let done = result.and_then(|report| {
            crash::pass(job.work.kind(), Phase::Made);
            self.sr.devices.clone_from(&report.devices);
            let text = format!("{} more, {} in all", report.grown_by, report.physical_size);
            let event = self.event(Severity::Info, "sr.grown", None, Some(&job), text);
            let answer = serde_json::to_value(report).ok();
            self.finish(JobRecord { answer, ..job.clone() }, vec![event])
        });
        if let Err(failure) = done {
            tracing::warn!(job = id, %failure, "the storage did not grow");
            self.undo(job, JobState::Failed, &failure);
        }
        // A part of it may have been done.
        self.space_changed();
    }

    /// There may be more space than a moment ago: what has failed for want of it is tried again now. Merges that wait for room see the
    /// figures themselves.
    pub(crate) fn space_changed(&mut self) {
        self.stat_due.set(true);
        let short = |job: &&Arc<JobRecord>| {
            job.state == JobState::Queued
                && job.retry_at.is_some()
                && job.error.as_ref().is_some_and(|error| error.name == ErrorName::NoSpace)
        };
        let now = Timestamp::now();
        let waiting = self.catalog.state().unfinished().filter(short);
        let changes: Vec<Change> =
            waiting.map(|job| Change::PutJob(JobRecord { retry_at: Some(now), ..(**job).clone() })).collect();
        if let Err(failure) = if changes.is_empty() { Ok(()) } else { self.commit(changes) } {
            tracing::warn!(sr = %self.sr.uuid, %failure, "what waits for space rests as long as it was to");
        }
    }
}

/// Makes the storage larger. `known` are its devices as they were named, and the report has those that are new too, so named.
fn grow(store: &dyn Store, known: Vec<String>, devices: &[String]) -> Result<GrowReport, Failure> {
    let before = store.space()?.total;
    let named: Vec<&str> = devices.iter().map(String::as_str).collect();
    store.enlarge(&named)?;
    let space = store.space()?;
    Ok(GrowReport {
        physical_size: space.total,
        grown_by: Bytes(space.total.0.saturating_sub(before.0)),
        free_space: space.allocatable,
        devices: joined(known, devices),
    })
}

/// The devices, each by one name: another name of a device that is there already (a link) is left out.
fn joined(mut known: Vec<String>, new: &[String]) -> Vec<String> {
    let node = |path: &String| fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    for path in new {
        if !known.iter().any(|one| node(one) == node(path)) {
            known.push(path.clone());
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("a"), "").unwrap();
        fs::write(path("b"), "").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        let devices =
            joined(vec![path("a"), path("gone")], &[path("link"), path("b"), path("gone"), path("b")]);
        assert_eq!(devices, [path("a"), path("gone"), path("b")]);
    }
}
