//! `SR.check`, `SR.scan`, and what else concerns the SR as a whole.
//!
//! A check compares three things: what the catalog says, what the containers are, and what the images say of themselves. It
//! changes nothing. Merges stand still while it runs, since it leases every image.

use crate::dispatch::params;
use crate::failures::{bad_request, from_catalog};
use crate::hands::ready;
use crate::long::Session;
use crate::owner::{Call, Given, Owner};
use catena_catalog::State;
use catena_control::{
    Answer, Expected, ImageReport, Parent, Problem, Progress, Request, Trouble, TroubleKind,
};
use catena_rpc::{CheckReport, EventListParams, Finding, SrCheckParams, SrParams};
use catena_sr_api::{Access, Store};
use catena_types::{
    AttachMode, Bytes, ErrorName, Failure, Format, ImageId, ImageRecord, ImageState, Severity, Step, Work,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Images checked with one request.
const BATCH: usize = 32;
/// What a repair does about a wrong parent.
const REPARENTED: &str = "the catalog's parent is written to it";

impl Owner {
    /// `SR.check`: a job whose result is the report.
    pub(crate) fn sr_check(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: SrCheckParams = params(&call.request)?;
        self.store.check_marker()?;
        if asked.repair {
            return self.sr_repair(asked.request_id);
        }
        let mut job = self.new_job(Work::Check, asked.request_id);
        job.phase = "checking".to_owned();
        self.begin(&mut job, Vec::new())?;
        let checker = self.checker();
        self.start_on_all(&job, Box::new(move |session| checker.run(session)))
    }

    /// A check of the SR as the catalog has it now.
    pub(crate) fn checker(&self) -> Checker {
        let state = self.catalog.state().clone();
        let writers = state.attachments.values().filter(|row| row.mode == AttachMode::ReadWrite);
        let written = writers.filter_map(|row| state.vdis.get(&row.vdi).map(|vdi| vdi.image)).collect();
        Checker { store: Arc::clone(&self.store), state, written }
    }

    /// `SR.scan`: compares containers with the catalog and refreshes the figures. Rows of containers that are gone are marked
    /// missing, and those that are back are marked in order again; nothing is forgotten. Labels that were lost, as by a copy of the
    /// files, are written again.
    pub(crate) fn sr_scan(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: SrParams = params(&call.request)?;
        self.store.check_marker()?;
        self.relabel_all();
        let present: BTreeMap<String, Bytes> =
            self.store.list()?.into_iter().map(|info| (info.name, info.allocated)).collect();
        let mut changes = Vec::new();
        for row in self.catalog.state().images.values() {
            let mut now = (**row).clone();
            match (present.get(&row.container), row.state) {
                (None, ImageState::Ok | ImageState::Mixed) => now.state = ImageState::Missing,
                (Some(_), ImageState::Missing) => now.state = ImageState::Ok,
                _ => {}
            }
            now.allocated = present.get(&row.container).copied().unwrap_or(row.allocated);
            if now != **row {
                changes.push(catena_catalog::Change::PutImage(now));
            }
        }
        let mut job = self.new_job(Work::Scan, asked.request_id);
        let known: BTreeSet<&String> =
            self.catalog.state().images.values().map(|row| &row.container).collect();
        let foreign: Vec<&String> = present.keys().filter(|name| !known.contains(name)).collect();
        job.committed = true;
        job.answer = Some(json!({"changed": changes.len(), "foreign": foreign}));
        let id = job.id;
        self.finish(job, changes)?;
        self.job_document(id).map(Given::Answer)
    }

    /// `SR.stat`: the record with figures of this moment.
    pub(crate) fn sr_stat(&mut self) -> Result<Given, Failure> {
        self.measure_all()?;
        self.publish();
        Ok(Given::Answer(serde_json::to_value(self.board.read().sr()).unwrap_or_default()))
    }

    /// `SR.destroy`: only an SR without VDIs. What is garbage goes with it; orphans and foreign files stay.
    pub(crate) fn sr_destroy(&mut self) -> Result<Given, Failure> {
        let state = self.catalog.state();
        if !state.vdis.is_empty() {
            let message = format!("the SR still has {} VDIs", state.vdis.len());
            return Err(
                Failure::new(ErrorName::SrNotEmpty, message).hint("`catena vdi destroy` removes them")
            );
        }
        self.running.clear();
        let orphan = |row: &&Arc<ImageRecord>| row.state == ImageState::Orphan;
        let ours: Vec<String> =
            state.images.values().filter(|row| !orphan(row)).map(|row| row.container.clone()).collect();
        for container in ours {
            self.store.remove(&container)?;
        }
        self.destroyed = true;
        Ok(Given::Farewell(json!({})))
    }

    /// `Event.list`.
    pub(crate) fn event_list(&self, call: &Call) -> Result<Given, Failure> {
        let asked: EventListParams = params(&call.request)?;
        let since = asked.since.map(|text| text.parse()).transpose();
        let since = since.map_err(|error| bad_request(format!("since: {error}")))?;
        let limit = usize::try_from(asked.limit.unwrap_or(1000).min(10_000)).unwrap_or(1000);
        let events = self.catalog.events(since, None, limit).map_err(|error| from_catalog(&error))?;
        let events: Vec<_> = events.iter().map(crate::views::event).collect();
        Ok(Given::Answer(json!({"events": events})))
    }
}

/// What a check works on: a snapshot of the catalog, and the store.
pub(crate) struct Checker {
    pub(crate) store: Arc<dyn Store>,
    state: State,
    /// Leaves that attached disks write to, which are not in order until those are detached. There is nothing else that they write:
    /// a merge of such a leaf into its parent was closed before the check (`dispatch`), and none begins while every image is leased.
    written: BTreeSet<ImageId>,
}

impl Checker {
    /// All of it, as the answer of a job.
    pub(crate) fn run(&self, session: &mut Session<'_>) -> Result<Value, Trouble> {
        Ok(serde_json::to_value(self.report(session)?).unwrap_or_default())
    }

    /// The images that are to be in order.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.state.images.values().filter(|row| {
            !self.written.contains(&row.id)
                && !matches!(row.state, ImageState::Garbage | ImageState::Missing | ImageState::Orphan)
        })
    }

    /// All of it.
    pub(crate) fn report(&self, session: &mut Session<'_>) -> Result<CheckReport, Trouble> {
        let mut findings = self.containers()?;
        let images: Vec<&Arc<ImageRecord>> = self.images().collect();
        let total = images.iter().map(|row| row.allocated.0).sum();
        let mut done = 0;
        for batch in images.chunks(BATCH) {
            self.batch(session, batch, &mut findings)?;
            done += batch.iter().map(|row| row.allocated.0).sum::<u64>();
            session.progress(Progress { cursor: 0, bytes_done: Bytes(done), bytes_total: Bytes(total) });
        }
        findings.sort_by(|a, b| (b.severity, &a.object).cmp(&(a.severity, &b.object)));
        let clean = findings.iter().all(|finding| finding.severity != Severity::Error);
        Ok(CheckReport { findings, clean, findings_before: None, repaired: None })
    }

    /// Containers against rows.
    fn containers(&self) -> Result<Vec<Finding>, Trouble> {
        let io = |error: catena_sr_api::Error| Trouble { kind: TroubleKind::Io, message: error.to_string() };
        let present: BTreeSet<String> =
            self.store.list().map_err(io)?.into_iter().map(|info| info.name).collect();
        let mut findings = Vec::new();
        let mut known = BTreeSet::new();
        for row in self.state.images.values() {
            known.insert(row.container.as_str());
            if row.state == ImageState::Orphan {
                let text = "adopted, belongs to no disk, kept";
                findings.push(finding(
                    Severity::Info,
                    &row.container,
                    text,
                    "remove it by hand if it is not needed",
                ));
            } else if !present.contains(&row.container) && row.state != ImageState::Garbage {
                let repair = "bring it back, then `catena sr scan`";
                findings.push(finding(Severity::Error, &row.container, "the container is gone", repair));
            }
        }
        for job in self.state.unfinished() {
            known.extend(job.effects.makes.iter().map(|made| made.container.as_str()));
        }
        for name in present.iter().filter(|name| !known.contains(name.as_str())) {
            findings.push(finding(Severity::Info, name, "the catalog does not know it", "never touched"));
        }
        for vdi in self.state.vdis.values().filter(|vdi| !self.state.images.contains_key(&vdi.image)) {
            findings.push(finding(Severity::Error, &vdi.name_label, "its image is not in the catalog", ""));
        }
        Ok(findings)
    }

    fn batch(
        &self,
        session: &mut Session<'_>,
        batch: &[&Arc<ImageRecord>],
        findings: &mut Vec<Finding>,
    ) -> Result<(), Trouble> {
        let wanted: Vec<(&str, Access)> =
            batch.iter().map(|row| (row.container.as_str(), Access::ReadOnly)).collect();
        // At the cost of one, where all can be made ready; those of which one cannot are tried again below.
        let _ready = self.store.activate_all(&wanted);
        let (mut images, mut rows, mut fds, mut again) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in batch {
            let (Ok(one), Ok(two)) =
                (ready(&*self.store, row, Access::ReadOnly), ready(&*self.store, row, Access::ReadOnly))
            else {
                continue;
            };
            images.push((one.handed, self.expected(row)));
            rows.push(*row);
            fds.push(one.fd);
            again.push(two.fd);
        }
        let inspect = Request::Inspect { formats: rows.iter().map(|row| row.format).collect() };
        if let Answer::Reports { reports } = session.call(&inspect, again)? {
            for (row, report) in rows.iter().zip(reports) {
                self.against_catalog(row, report, findings);
            }
        }
        if let Answer::Problems { problems } = session.call(&Request::Check { images }, fds)? {
            for Problem { severity, index, text, repair } in problems {
                let name = rows.get(index).map_or("", |row| row.container.as_str());
                findings.push(finding(severity, name, &text, &by_repair(&repair)));
            }
        }
        Ok(())
    }

    /// What the catalog says of an image. What an open job has still to write into its header is left out: it is not there yet,
    /// and rightly so.
    pub(crate) fn expected(&self, row: &ImageRecord) -> Expected {
        let open = self.state.unfinished().filter(|job| job.committed && !job.state.is_over());
        let mut steps = open.flat_map(|job| &job.effects.steps);
        let awaited = steps.any(|step| match step {
            Step::Reparent { images, .. } => images.contains(&row.id),
            Step::SetHidden { image, .. } => *image == row.id,
            Step::Remove { .. } | Step::Deflate { .. } | Step::Inflate { .. } => false,
        });
        if awaited {
            return Expected::default();
        }
        let parent = row.parent.and_then(|id| self.state.images.get(&id)).map(|parent| {
            let modified = self.store.info(&parent.container).map_or(0, |info| info.modified);
            (
                Parent { id: parent.id_in_headers(), container: parent.container.clone(), modified },
                parent.virtual_size,
            )
        });
        Expected { parent, hidden: Some(row.hidden) }
    }

    /// What an image says of itself against its row. The catalog decides; what differs is only untidy, except a wrong identity.
    fn against_catalog(
        &self,
        row: &ImageRecord,
        report: Result<ImageReport, Trouble>,
        findings: &mut Vec<Finding>,
    ) {
        let report = match report {
            Ok(report) => report,
            Err(trouble) => {
                return findings.push(finding(Severity::Error, &row.container, &trouble.message, ""));
            }
        };
        let pending = self.state.unfinished().any(|job| job.committed && !job.state.is_over());
        let mut say = |severity, text: String, repair: &str| {
            // What a job has still to do it will do; an image of another program is never written.
            let repair = if pending || row.foreign { "" } else { repair };
            findings.push(finding(severity, &row.container, &text, &by_repair(repair)));
        };
        if report.id != row.id_in_headers() {
            say(Severity::Error, format!("holds image {}, the catalog says {}", report.id, row.id), "");
        }
        let untidy = if pending || row.foreign { Severity::Info } else { Severity::Warning };
        let named =
            row.parent.map(|id| self.state.images.get(&id).map_or(id, |parent| parent.id_in_headers()));
        if report.parent != named {
            let repair = if report.parent.is_some() && row.parent.is_some() { REPARENTED } else { "" };
            say(untidy, "its header names another parent than the catalog".to_owned(), repair);
        }
        if report.hidden != row.hidden && row.format != Format::Raw {
            say(
                Severity::Info,
                format!("its hidden flag is {}, the catalog says {}", report.hidden, row.hidden),
                "the hidden flag is set as the catalog says",
            );
        }
        if report.virtual_size != row.virtual_size && row.state != ImageState::Mixed {
            let text = format!(
                "its disk has {} bytes, the catalog says {}",
                report.virtual_size.0, row.virtual_size.0
            );
            say(Severity::Error, text, "");
        }
    }
}

/// What is said of a problem that `--repair` mends in this way.
fn by_repair(what: &str) -> String {
    if what.is_empty() { String::new() } else { format!("--repair: {what}") }
}

fn finding(severity: Severity, object: &str, problem: &str, repair: &str) -> Finding {
    Finding { severity, object: object.to_owned(), problem: problem.to_owned(), repair: repair.to_owned() }
}
