//! Taking over a directory of images that another manager wrote: what is there, and the rows that it becomes.
//!
//! Nothing is rewritten and nothing is ever removed. An image that belongs to no disk is kept as an orphan. Coalescing starts
//! paused, so not a byte of an adopted image changes before an administrator says so.

use crate::failures::from_trouble;
use crate::images::{container_name, new_image, unexpected};
use crate::labels;
use crate::operations::new_vdi;
use crate::owner::Owner;
use crate::published::{Published, SrFacts};
use crate::sizing::Sizes;
use crate::views::View;
use crate::worker::SmallWorker;
use catena_catalog::{Change, Meta, State};
use catena_coalesce::Moment;
use catena_control::{Answer, ImageReport, Request, Trouble, TroubleKind};
use catena_rpc::Finding;
use catena_sr_api::{Access, ContainerInfo, Error as StoreError, Labels, RawDisk, Sizing, Store, StoreStat};
use catena_types::{
    Bytes, Effects, EventRecord, Failure, Format, ImageId, ImageRecord, ImageState, JobId, JobRecord,
    JobState, Severity, SrUuid, VHD_MAX_SIZE, VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
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
    /// What containers are called as disks.
    disks: BTreeMap<String, String>,
}

/// A container and what it says of itself.
pub(crate) struct Found {
    /// The container.
    pub(crate) info: ContainerInfo,
    /// The part of its name that names its disk.
    pub(crate) disk: String,
    /// What is in it.
    pub(crate) report: Result<ImageReport, Trouble>,
}

/// Looks at every image of a store and says what it becomes. Changes nothing.
pub(crate) fn survey(store: &dyn Store, small: &mut SmallWorker, sr: SrUuid) -> Result<Adoption, Failure> {
    let mut adoption = adoption(inspect(store, small, sr)?, &store.told());
    adoption.leaves.iter_mut().for_each(|leaf| leaf.container = container_name(store, leaf));
    adoption.findings.extend(store.remarks().into_iter().map(|remark| Finding {
        severity: remark.severity,
        object: remark.object,
        problem: remark.problem,
        repair: String::new(),
    }));
    Ok(adoption)
}

/// What every image of a store says of itself. One that cannot be opened is found damaged, the others are looked at.
pub(crate) fn inspect(store: &dyn Store, small: &mut SmallWorker, sr: SrUuid) -> Result<Vec<Found>, Failure> {
    let mut containers = store.list()?;
    containers.retain(|info| store.may_be_image(&info.name));
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut found: Vec<Found> = Vec::with_capacity(containers.len());
    for batch in containers.chunks(BATCH) {
        let mut unopened: BTreeMap<usize, Trouble> = BTreeMap::new();
        let (mut fds, mut formats) = (Vec::new(), Vec::new());
        for (at, opened) in open_all(store, batch).into_iter().enumerate() {
            match opened {
                Ok(fd) => {
                    fds.push(fd);
                    let raw = store.raw_disk(&batch[at].name).is_some();
                    formats.push(if raw { Format::Raw } else { Format::Vhd });
                }
                Err(error) => {
                    let message = error.to_string();
                    unopened.insert(at, Trouble { kind: TroubleKind::Io, message });
                }
            }
        }
        let reports = match small.call(&Request::Inspect { formats }, fds) {
            Ok(Answer::Reports { reports }) if reports.len() + unopened.len() == batch.len() => reports,
            Ok(_) => return Err(unexpected()),
            Err(trouble) => return Err(from_trouble(&trouble)),
        };
        let mut reports = reports.into_iter();
        for (at, info) in batch.iter().enumerate() {
            let report = unopened.remove(&at).map(Err).or_else(|| reports.next()).ok_or_else(unexpected)?;
            let disk = store.disk_name(&info.name).to_owned();
            found.push(Found { info: info.clone(), disk, report });
        }
    }
    name_raw_disks(&mut found, |name| store.raw_disk(name));
    tracing::info!(%sr, images = found.len(), "a location was surveyed");
    Ok(found)
}

/// Opens containers at the cost of one where all can be opened.
fn open_all(store: &dyn Store, containers: &[ContainerInfo]) -> Vec<Result<OwnedFd, StoreError>> {
    let wanted: Vec<(&str, Access)> =
        containers.iter().map(|info| (info.name.as_str(), Access::ReadOnly)).collect();
    match store.activate_all(&wanted) {
        Ok(fds) => fds.into_iter().map(Ok).collect(),
        Err(_) => wanted.iter().map(|(name, access)| store.activate(name, *access)).collect(),
    }
}

/// Gives raw disks the ids that only their names say, and makes them the parents of the images that name them.
fn name_raw_disks(found: &mut [Found], raw_disk: impl Fn(&str) -> Option<RawDisk>) {
    let mut raws: BTreeMap<String, ImageId> = BTreeMap::new();
    for one in &mut *found {
        let Ok(report) = &mut one.report else { continue };
        if let (Format::Raw, Some(disk)) = (report.format, raw_disk(&one.info.name)) {
            (report.id, report.hidden) = (disk.id, disk.hidden);
            raws.insert(one.info.name.clone(), disk.id);
        }
    }
    let named = |name: &String| {
        let last = name.rsplit(['/', '\\']).next()?;
        // The node of a volume is called `GROUP-VOLUME`, with each dash of the two names doubled.
        let volume = last.replace("--", "-");
        let is_named = |container: &&String| {
            last == container.as_str()
                || volume.strip_suffix(container.as_str()).is_some_and(|group| group.ends_with('-'))
        };
        raws.keys().find(is_named).and_then(|container| raws.get(container)).copied()
    };
    let reports = found.iter_mut().filter_map(|one| one.report.as_mut().ok());
    for report in reports.filter(|report| report.parent == Some(ImageId::NONE)) {
        report.parent = report.parent_names.iter().find_map(named).or(report.parent);
    }
    let parents: BTreeSet<ImageId> =
        found.iter().filter_map(|one| one.report.as_ref().ok()?.parent).collect();
    for report in found.iter_mut().filter_map(|one| one.report.as_mut().ok()) {
        // Nothing on it could say so; to XenServer's tools too it is hidden when something hangs from it.
        report.hidden |= report.format == Format::Raw && parents.contains(&report.id);
    }
}

/// The rows that images become. Pure.
fn adoption(found: Vec<Found>, told: &BTreeMap<String, Labels>) -> Adoption {
    let mut adoption = Adoption::default();
    let mut known = BTreeSet::new();
    for one in found {
        let row = adoption.row(one, &mut known);
        adoption.images.push(row);
    }
    adoption.orphans();
    adoption.disks(told);
    adoption
}

impl Adoption {
    pub(crate) fn row(&mut self, found: Found, known: &mut BTreeSet<ImageId>) -> ImageRecord {
        let Found { info, disk, report } = found;
        self.disks.insert(info.name.clone(), disk);
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
            format: report.format,
            parent: report.parent,
            virtual_size: report.virtual_size,
            hidden: report.hidden,
            foreign: report.foreign,
            state: ImageState::Ok,
            ..unread.clone()
        };
        if row.format == Format::Raw && row.virtual_size > VHD_MAX_SIZE {
            let size = row.virtual_size;
            self.find(
                Severity::Error,
                &info.name,
                format!("a raw disk of {size}, too large for an image on top of it: kept as an orphan"),
            );
            return ImageRecord { state: ImageState::Orphan, ..row };
        }
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

    /// Makes a disk of every visible image, with the names that its manager has given it where they are known. One that others
    /// hang from, and one that we must never write to, gets an empty child that carries its disk.
    fn disks(&mut self, told: &BTreeMap<String, Labels>) {
        let parents: BTreeSet<ImageId> = self.images.iter().filter_map(|row| row.parent).collect();
        let mut taken = BTreeSet::new();
        let mut bases = Vec::new();
        for row in self.images.iter().filter(|row| row.state == ImageState::Ok && !row.hidden) {
            let name = self.disk_name(&row.container);
            let uuid = name
                .parse::<VdiUuid>()
                .ok()
                .filter(|uuid| taken.insert(*uuid))
                .unwrap_or_else(VdiUuid::random);
            let mut leaf = row.id;
            if parents.contains(&row.id) || row.foreign {
                let child = new_image(Some(row.id), row.virtual_size);
                leaf = child.id;
                self.leaves.push(child);
                bases.push(row.clone());
            }
            let named = told.get(&row.container).map(|labels| labels::described(labels, uuid, leaf));
            self.vdis.push(named.unwrap_or_else(|| new_vdi(uuid, leaf, name, VdiKind::Disk)));
        }
        for base in bases {
            let why = match (base.format, base.foreign) {
                (Format::Raw, _) => "a raw disk, never written to",
                (Format::Vhd, true) => "written by another program, never written to",
                (Format::Vhd, false) => "visible, and others hang from it",
            };
            let text = format!("{why}: becomes a base copy under a new empty image");
            self.find(Severity::Info, &base.container, text);
            for row in self.images.iter_mut().filter(|row| row.id == base.id) {
                row.hidden = true;
            }
        }
    }

    /// What a container is called as a disk.
    pub(crate) fn disk_name(&self, container: &str) -> String {
        self.disks.get(container).map_or(container, String::as_str).to_owned()
    }

    /// Says where there is no room for the empty images that are to be made.
    pub(crate) fn has_room(&mut self, store: &dyn Store, small: &mut SmallWorker) -> Result<(), Failure> {
        if store.capabilities().sizing == Sizing::Automatic {
            return Ok(());
        }
        let mut needed = 0;
        for leaf in &self.leaves {
            needed += Sizes::of(store, leaf, &mut |request, fds| small.call(request, fds))?.empty.0;
        }
        let short = needed.saturating_sub(store.stat()?.allocatable.0);
        if short > 0 {
            let text = format!("{} are missing for the empty images that are to be made", Bytes(short));
            self.find(Severity::Error, "space", text);
        }
        Ok(())
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
        let rows: BTreeMap<ImageId, ImageRecord> =
            adoption.images.iter().map(|row| (row.id, row.clone())).collect();
        let mut leaves = std::mem::take(&mut adoption.leaves);
        self.make_on(&mut job, &mut leaves, &rows)?;
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
