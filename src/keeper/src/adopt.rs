//! Taking over a directory of images that another manager wrote: what is there, and the rows that it becomes.
//!
//! Nothing is rewritten and nothing is ever removed. An image that belongs to no disk is kept as an orphan. Coalescing starts
//! paused, so not a byte of an adopted image changes before an administrator says so.

use crate::failures::from_trouble;
use crate::images::{container_name, new_image, unexpected};
use crate::operations::new_vdi;
use crate::owner::Owner;
use crate::published::{Published, SrFacts};
use crate::views::View;
use crate::worker::SmallWorker;
use catena_catalog::{Change, Meta, State};
use catena_coalesce::Moment;
use catena_control::{Answer, ImageReport, Request, Trouble};
use catena_rpc::Finding;
use catena_sr_api::{Access, ContainerInfo, Store, StoreStat};
use catena_types::{
    Bytes, Effects, EventRecord, Failure, Format, ImageId, ImageRecord, ImageState, JobId, JobRecord,
    JobState, Severity, SrUuid, VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Containers inspected with one request.
const BATCH: usize = 64;

/// What a directory becomes.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// Rows of what is there.
    pub(crate) images: Vec<ImageRecord>,
    /// Empty leaves to be made: on visible images that have children, and on disks of other programs.
    leaves: Vec<ImageRecord>,
    /// The disks.
    pub(crate) vdis: Vec<VdiRecord>,
    /// What is remarkable.
    pub(crate) findings: Vec<Finding>,
}

/// A container and what it says of itself.
pub(crate) type Found = (ContainerInfo, Result<ImageReport, Trouble>);

/// Looks at every image of a store and says what it becomes. Changes nothing.
pub(crate) fn survey(store: &dyn Store, small: &mut SmallWorker, sr: SrUuid) -> Result<Adoption, Failure> {
    let mut adoption = inspect(store, small, sr).map(adoption)?;
    adoption.leaves.iter_mut().for_each(|leaf| leaf.container = container_name(store, leaf));
    Ok(adoption)
}

/// What every image of a store says of itself.
pub(crate) fn inspect(store: &dyn Store, small: &mut SmallWorker, sr: SrUuid) -> Result<Vec<Found>, Failure> {
    let mut containers = store.list()?;
    containers.retain(|info| store.may_be_image(&info.name));
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut found: Vec<Found> = Vec::with_capacity(containers.len());
    for batch in containers.chunks(BATCH) {
        let fds = batch
            .iter()
            .map(|info| store.activate(&info.name, Access::ReadOnly))
            .collect::<Result<Vec<_>, _>>()?;
        let request = Request::Inspect { format: Format::Vhd, count: fds.len() };
        match small.call(&request, fds).map_err(|trouble| from_trouble(&trouble))? {
            Answer::Reports { reports } if reports.len() == batch.len() => {
                found.extend(batch.iter().cloned().zip(reports));
            }
            _ => return Err(unexpected()),
        }
    }
    tracing::info!(%sr, images = found.len(), "a directory was surveyed");
    Ok(found)
}

/// The rows that images become. Pure.
fn adoption(found: Vec<Found>) -> Adoption {
    let mut adoption = Adoption::default();
    let mut known = BTreeSet::new();
    for (info, report) in found {
        let row = adoption.row(&info, report, &mut known);
        adoption.images.push(row);
    }
    adoption.orphans();
    adoption.disks();
    adoption
}

impl Adoption {
    pub(crate) fn row(
        &mut self,
        info: &ContainerInfo,
        report: Result<ImageReport, Trouble>,
        known: &mut BTreeSet<ImageId>,
    ) -> ImageRecord {
        let unread = ImageRecord {
            id: ImageId::random(),
            parent: None,
            format: Format::Vhd,
            container: info.name.clone(),
            virtual_size: Bytes(0),
            allocated: info.allocated,
            state: ImageState::Orphan,
            hidden: false,
            foreign: false,
        };
        let report = match report {
            Ok(report) => report,
            Err(trouble) => {
                self.find(Severity::Error, &info.name, format!("unreadable, kept as an orphan: {trouble}"));
                return unread;
            }
        };
        for remark in &report.remarks {
            self.find(Severity::Warning, &info.name, remark.clone());
        }
        let row = ImageRecord {
            id: report.id,
            parent: report.parent,
            virtual_size: report.virtual_size,
            hidden: report.hidden,
            foreign: report.foreign,
            state: ImageState::Ok,
            ..unread.clone()
        };
        if known.insert(report.id) {
            return row;
        }
        self.find(
            Severity::Error,
            &info.name,
            format!("another image has its id {} too: kept as an orphan", report.id),
        );
        ImageRecord { id: unread.id, state: ImageState::Orphan, ..row }
    }

    /// Marks what belongs to no disk: images whose chain has no beginning, and hidden images that nothing hangs from.
    pub(crate) fn orphans(&mut self) {
        let rows: BTreeMap<ImageId, (Option<ImageId>, ImageState)> =
            self.images.iter().map(|row| (row.id, (row.parent, row.state))).collect();
        let broken = |from: ImageId| {
            let mut next = Some(from);
            for _ in 0..=rows.len() {
                match next.map(|id| rows.get(&id)) {
                    None => return false,
                    Some(None | Some((_, ImageState::Orphan))) => return true,
                    Some(Some((parent, _))) => next = *parent,
                }
            }
            true
        };
        let parents: BTreeSet<ImageId> = self.images.iter().filter_map(|row| row.parent).collect();
        let mut findings = Vec::new();
        for row in self.images.iter_mut().filter(|row| row.state != ImageState::Orphan) {
            if broken(row.id) {
                row.state = ImageState::Orphan;
                findings.push((
                    Severity::Error,
                    row.container.clone(),
                    "its chain is incomplete: kept as an orphan",
                ));
            } else if row.hidden && !parents.contains(&row.id) {
                row.state = ImageState::Orphan;
                findings.push((
                    Severity::Info,
                    row.container.clone(),
                    "hidden and without children: kept as an orphan",
                ));
            }
        }
        for (severity, name, text) in findings {
            self.find(severity, &name, text.to_owned());
        }
    }

    /// Makes a disk of every visible image. One that others hang from, and one that we must never write to, gets an empty child
    /// that carries its disk.
    fn disks(&mut self) {
        let parents: BTreeSet<ImageId> = self.images.iter().filter_map(|row| row.parent).collect();
        let mut taken = BTreeSet::new();
        let mut bases = Vec::new();
        for row in self.images.iter().filter(|row| row.state == ImageState::Ok && !row.hidden) {
            let stem = row.container.rsplit_once('.').map_or(row.container.as_str(), |(stem, _)| stem);
            let uuid = stem
                .parse::<VdiUuid>()
                .ok()
                .filter(|uuid| taken.insert(*uuid))
                .unwrap_or_else(VdiUuid::random);
            let mut leaf = row.id;
            if parents.contains(&row.id) || row.foreign {
                let child = new_image(Some(row.id), row.virtual_size);
                leaf = child.id;
                self.leaves.push(child);
                bases.push((row.id, row.container.clone(), row.foreign));
            }
            self.vdis.push(new_vdi(uuid, leaf, stem.to_owned(), VdiKind::Disk));
        }
        for (id, name, foreign) in bases {
            let why = if foreign {
                "written by another program, never written to"
            } else {
                "visible, and others hang from it"
            };
            self.find(Severity::Info, &name, format!("{why}: becomes a base copy under a new empty image"));
            for row in self.images.iter_mut().filter(|row| row.id == id) {
                row.hidden = true;
            }
        }
    }

    pub(crate) fn find(&mut self, severity: Severity, object: &str, problem: String) {
        self.findings.push(Finding { severity, object: object.to_owned(), problem, repair: String::new() });
    }

    pub(crate) fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let images = self.images.iter().chain(&self.leaves).cloned().map(Change::PutImage);
        images.chain(self.vdis.iter().cloned().map(Change::PutVdi))
    }
}

/// What a dry run answers.
pub(crate) fn document(adoption: &Adoption, sr: SrFacts, meta: Meta) -> Value {
    let stat = StoreStat { total: Bytes(0), used: Bytes(0), allocatable: Bytes(0) };
    let state = State::preview(meta, &adoption.changes().collect::<Vec<_>>());
    let view =
        View(Arc::new(Published { sr, state, live: BTreeMap::new(), moment: Moment::default(), stat }));
    json!({"images": view.roots(None), "findings": adoption.findings})
}

/// What a dry run answers for an SR whose catalog is in order.
pub(crate) fn as_it_is(sr: SrFacts, state: State) -> Value {
    let stat = StoreStat { total: Bytes(0), used: Bytes(0), allocatable: Bytes(0) };
    let view =
        View(Arc::new(Published { sr, state, live: BTreeMap::new(), moment: Moment::default(), stat }));
    let finding = Finding {
        severity: Severity::Info,
        object: "catalog".to_owned(),
        problem: "this is an SR of ours and its catalog is in order".to_owned(),
        repair: String::new(),
    };
    json!({"images": view.roots(None), "findings": [finding]})
}

/// The row of the introduction that makes a catalog anew: it is over when that catalog is there.
pub(crate) fn introduced(
    id: JobId,
    request_id: Option<String>,
    sr: SrUuid,
    adoption: &Adoption,
) -> JobRecord {
    let now = Timestamp::now();
    JobRecord {
        id,
        work: Work::Introduce,
        state: JobState::Done,
        committed: true,
        effects: Effects::default(),
        phase: "done".to_owned(),
        bytes_done: Bytes(0),
        bytes_total: Bytes(0),
        error: None,
        attempts: 0,
        retry_at: None,
        request_id,
        answer: Some(json!({"uuid": sr, "findings": adoption.findings})),
        created: now,
        updated: now,
    }
}

/// What watchers are told of it.
pub(crate) fn made_anew(sr: SrUuid, job: JobId, adoption: &Adoption) -> EventRecord {
    let (images, disks) = (adoption.images.len(), adoption.vdis.len());
    EventRecord {
        id: 0,
        time: Timestamp::now(),
        kind: "sr.rebuilt".to_owned(),
        severity: Severity::Warning,
        sr,
        vdi: None,
        job: Some(job),
        message: format!(
            "the catalog was made anew: {images} images and {disks} disks; coalescing is paused"
        ),
    }
}

impl Owner {
    /// Writes the rows of an adoption in one commit, after the empty leaves it needs were made.
    pub(crate) fn adopt(&mut self, mut job: JobRecord, mut adoption: Adoption) -> Result<(), Failure> {
        let names: BTreeMap<ImageId, String> =
            adoption.images.iter().map(|row| (row.id, row.container.clone())).collect();
        let mut leaves = std::mem::take(&mut adoption.leaves);
        self.make_on(&mut job, &mut leaves, &names)?;
        adoption.leaves = leaves;
        let mut changes: Vec<Change> = adoption.changes().collect();
        for finding in adoption.findings.iter().filter(|finding| finding.severity == Severity::Error) {
            let text = format!("{}: {}", finding.object, finding.problem);
            changes.push(self.event(finding.severity, "sr.finding", None, Some(&job), text));
        }
        let text = format!("{} images and {} disks taken over", adoption.images.len(), adoption.vdis.len());
        changes.push(self.event(Severity::Info, "sr.introduced", None, Some(&job), text));
        job.committed = true;
        job.answer = Some(json!({"uuid": self.sr.uuid, "findings": adoption.findings}));
        let undone = JobRecord { committed: false, ..job.clone() };
        self.or_undo(&undone, |owner| owner.finish(job, changes))
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
