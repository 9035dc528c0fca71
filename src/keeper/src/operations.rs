//! Operations on detached VDIs that are answered at once: create, snapshot, clone, destroy. Each is a job with one commit.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::bad_request;
use crate::images::{checked_size, new_image};
use crate::lookup::{no_such_vdi, vdi_uuid};
use crate::owner::{Call, Given, Owner};
use crate::sizing::{self, Role, Target};
use crate::tree::Rows;
use catena_catalog::Change;
use catena_coalesce::can_shorten;
use catena_control::Pause;
use catena_rpc::{VdiCloneParams, VdiCreateParams, VdiParams, VdiSnapshotParams};
use catena_types::{
    AttachMode, Bytes, CHAIN_LIMIT, CHAIN_WARNING, ErrorName, Failure, ImageId, ImageRecord, ImageState,
    JobRecord, JobState, Severity, Step, VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The most clones of one request.
const CLONE_LIMIT: u32 = 1000;

/// The most disks of one snapshot.
const SNAPSHOT_LIMIT: usize = 255;

/// The row of a VDI that is to be made.
pub(crate) fn new_vdi(uuid: VdiUuid, image: ImageId, name_label: String, kind: VdiKind) -> VdiRecord {
    VdiRecord {
        uuid,
        image,
        name_label,
        name_description: String::new(),
        kind,
        snapshot_of: None,
        created: Timestamp::now(),
        other_config: BTreeMap::new(),
    }
}

impl Owner {
    /// `VDI.create`: a new empty disk.
    pub(crate) fn vdi_create(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiCreateParams = params(&call.request)?;
        let size = checked_size(asked.virtual_size)?;
        let uuid = VdiUuid::random();
        let mut job = self.new_job(Work::Create { vdi: uuid }, asked.request_id);
        let mut images = [new_image(None, size)];
        let target = sizing::target(Role::Disk, false, self.allocation());
        self.size_new(&mut images[0], target)?;
        let vdi = VdiRecord {
            name_description: asked.name_description,
            ..new_vdi(uuid, images[0].id, asked.name_label, VdiKind::Disk)
        };
        self.make(&mut job, &mut images, std::slice::from_ref(&vdi))?;
        let [image] = images;
        let event = self.event(
            Severity::Info,
            "vdi.created",
            Some(uuid),
            Some(&job),
            format!("disk of {size} created"),
        );
        let changes = vec![Change::PutImage(image), Change::PutVdi(vdi), event];
        self.conclude(job, changes, Vec::new(), json!({"uuid": uuid}))
    }

    /// `VDI.snapshot`: leaf L becomes a base copy under two new leaves, A for the disk and S for the snapshot. Several disks
    /// have one job and one commit: all snapshots are there, or none.
    pub(crate) fn vdi_snapshot(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiSnapshotParams = params(&call.request)?;
        let disks = self.disks(asked.vdi.names())?;
        let mut later = None;
        for (disk, leaf) in &disks {
            let room = self.room_above(disk, leaf, asked.wait)?;
            later = later.or(room);
        }
        if let Some(again) = later {
            return Ok(again);
        }
        let mut uuids = disks.iter().map(|(disk, _)| disk.uuid);
        let first = uuids.next().ok_or_else(|| bad_request("no VDI is named"))?;
        let mut job = self.new_job(Work::Snapshot { vdi: first, others: uuids.collect() }, asked.request_id);
        let child = |leaf: &ImageRecord| new_image(Some(leaf.id), leaf.virtual_size);
        let mut images: Vec<ImageRecord> =
            disks.iter().flat_map(|(_, leaf)| [child(leaf), child(leaf)]).collect();
        self.size_pairs(&disks, &mut images)?;
        let (mut vdis, mut taken) = (Vec::new(), Vec::new());
        for ((disk, _), pair) in disks.iter().zip(images.chunks_exact(2)) {
            let uuid = VdiUuid::random();
            let label = asked.name_label.as_ref().unwrap_or(&disk.name_label).clone();
            let snapshot = new_vdi(uuid, pair[1].id, label, VdiKind::Snapshot);
            vdis.push(VdiRecord { snapshot_of: Some(disk.uuid), ..snapshot });
            vdis.push(VdiRecord { image: pair[0].id, ..disk.clone() });
            taken.push(uuid);
        }
        self.make(&mut job, &mut images, &vdis)?;
        let own = disks.iter().zip(images.chunks_exact(2));
        let leaves: Vec<_> = own.map(|((disk, _), pair)| (disk.uuid, pair[0].clone())).collect();
        let mut changes: Vec<Change> = vdis.into_iter().map(Change::PutVdi).collect();
        for ((disk, _), uuid) in disks.iter().zip(&taken) {
            let text = format!("snapshot {uuid} taken");
            changes.push(self.event(Severity::Info, "vdi.snapshot", Some(disk.uuid), Some(&job), text));
        }
        changes.extend(images.into_iter().map(Change::PutImage));
        self.become_bases(job, disks, changes, json!({"vdis": taken}), &leaves)
    }

    /// The sizes of the containers of two new leaves for each disk: its own, and that of its snapshot.
    fn size_pairs(
        &mut self,
        disks: &[(VdiRecord, ImageRecord)],
        images: &mut [ImageRecord],
    ) -> Result<(), Failure> {
        let (mut own, mut others) = (Vec::new(), 0);
        for ((disk, _), pair) in disks.iter().zip(images.chunks_exact_mut(2)) {
            let [leaf, snapshot] = pair else { continue };
            self.size_new(snapshot, Target::Fitted)?;
            others += snapshot.allocated.0;
            own.push((disk, leaf));
        }
        let bases: Vec<&ImageRecord> = disks.iter().map(|(_, base)| base).collect();
        self.size_leaves(&mut own, &bases, Bytes(others))
    }

    /// The disks of these names, each once.
    fn disks(&self, names: &[String]) -> Result<Vec<(VdiRecord, ImageRecord)>, Failure> {
        if names.is_empty() || names.len() > SNAPSHOT_LIMIT {
            return Err(bad_request(format!("between 1 and {SNAPSHOT_LIMIT} disks at once")));
        }
        let disks = names.iter().map(|name| self.disk(name)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = BTreeSet::new();
        match disks.iter().find(|(disk, _)| !seen.insert(disk.uuid)) {
            Some((disk, _)) => Err(bad_request(format!("'{}' is named twice", disk.name_label))),
            None => Ok(disks),
        }
    }

    /// `VDI.clone`: new disks beside the origin, all on one base. A leaf that owns nothing is not made a base: the clones hang
    /// from its parent, so that many clones of one template share one base at depth 2.
    pub(crate) fn vdi_clone(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiCloneParams = params(&call.request)?;
        let count = asked.count.unwrap_or(1);
        if count == 0 || count > CLONE_LIMIT {
            return Err(Failure::new(
                ErrorName::BadRequest,
                format!("between 1 and {CLONE_LIMIT} clones at once"),
            ));
        }
        let (origin, leaf) = self.disk(&asked.vdi)?;
        let bare = self.is_bare_disk(&origin, &leaf)?;
        if !bare && let Some(again) = self.room_above(&origin, &leaf, asked.wait)? {
            return Ok(again);
        }
        let base = if bare { leaf.parent } else { Some(leaf.id) };
        let mut job = self.new_job(Work::Clone { vdi: origin.uuid }, asked.request_id);
        let mut images: Vec<ImageRecord> = (0..count).map(|_| new_image(base, leaf.virtual_size)).collect();
        let target = sizing::target(Role::Disk, false, self.allocation());
        images.iter_mut().try_for_each(|image| self.size_new(image, target))?;
        let label = asked.name_label.unwrap_or_else(|| origin.name_label.clone());
        let mut vdis: Vec<VdiRecord> = images
            .iter()
            .zip(1..)
            .map(|(image, n)| {
                let name = if count == 1 { label.clone() } else { format!("{label} {n}") };
                new_vdi(VdiUuid::random(), image.id, name, VdiKind::Disk)
            })
            .collect();
        let answer = json!({"vdis": vdis.iter().map(|vdi| vdi.uuid).collect::<Vec<_>>()});
        if !bare {
            let mut own = new_image(base, leaf.virtual_size);
            let others = Bytes(images.iter().map(|image| image.allocated.0).sum());
            self.size_leaves(&mut [(&origin, &mut own)], &[&leaf], others)?;
            vdis.push(VdiRecord { image: own.id, ..origin.clone() });
            images.push(own);
        }
        self.make(&mut job, &mut images, &vdis)?;
        let own = images.last().filter(|_| !bare);
        let leaves: Vec<_> = own.map(|own| (origin.uuid, own.clone())).into_iter().collect();
        let mut changes: Vec<Change> = images.into_iter().map(Change::PutImage).collect();
        changes.extend(vdis.into_iter().map(Change::PutVdi));
        changes.push(self.event(
            Severity::Info,
            "vdi.cloned",
            Some(origin.uuid),
            Some(&job),
            format!("{count} clones made"),
        ));
        if bare {
            self.conclude(job, changes, Vec::new(), answer)
        } else {
            self.become_bases(job, vec![(origin, leaf)], changes, answer, &leaves)
        }
    }

    /// Whether a clone of the leaf may hang from the leaf's parent: the leaf owns nothing, and the parent reads right alone.
    pub(crate) fn is_bare(&mut self, leaf: &ImageRecord) -> Result<bool, Failure> {
        Ok(self.reads_right_below(leaf) && !leaf.foreign && self.owns_nothing(leaf.id)?)
    }

    /// Whether the image has a parent that reads right alone, or none.
    pub(crate) fn reads_right_below(&self, image: &ImageRecord) -> bool {
        let whole = |parent| self.image(parent).is_ok_and(|row| row.state == ImageState::Ok);
        image.parent.is_none_or(whole)
    }

    /// `VDI.destroy`: the VDI is gone with the commit; its image is garbage, which the worker removes.
    pub(crate) fn vdi_destroy(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiParams = params(&call.request)?;
        let uuid = vdi_uuid(&asked.vdi)?;
        let vdi = self.catalog.state().vdis.get(&uuid).cloned().ok_or_else(|| no_such_vdi(&asked.vdi))?;
        self.refuse_attached(uuid, &[AttachMode::ReadOnly, AttachMode::ReadWrite])?;
        let leaf = self.image(vdi.image)?.clone();
        let mut job = self.new_job(Work::Destroy { vdi: uuid }, asked.request_id);
        job.state = JobState::Done;
        job.phase = "done".to_owned();
        job.committed = true;
        job.answer = Some(json!({}));
        let text = format!("'{}' deleted", vdi.name_label);
        let event = self.event(Severity::Info, "vdi.destroyed", Some(uuid), Some(&job), text);
        let mut changes = self.discarded(&leaf);
        changes.extend([Change::RemoveVdi(uuid), Change::PutJob(job), event]);
        self.commit(changes)?;
        crash::pass(catena_types::JobKind::Destroy, Phase::Committed);
        Ok(Given::Answer(json!({})))
    }

    /// The changes by which a leaf that has lost its VDI becomes garbage. A merge of it that was begun has no purpose any more.
    pub(crate) fn discarded(&self, leaf: &ImageRecord) -> Vec<Change> {
        let of_leaf = |job: &JobRecord| {
            matches!(&job.work, Work::LeafMerge { from, .. } if *from == leaf.id)
                && !job.committed
                && !job.state.is_over()
        };
        let merges = self.catalog.state().unfinished().filter(|job| of_leaf(job));
        let ended = merges.map(|job| JobRecord {
            state: JobState::Cancelled,
            retry_at: None,
            updated: Timestamp::now(),
            ..(**job).clone()
        });
        ended.map(Change::PutJob).chain([Change::PutImage(garbage(leaf))]).collect()
    }

    /// The VDI of that uuid and its leaf, fit to be built upon.
    pub(crate) fn disk(&self, name: &str) -> Result<(VdiRecord, ImageRecord), Failure> {
        let uuid = vdi_uuid(name)?;
        let vdi = self.catalog.state().vdis.get(&uuid).ok_or_else(|| no_such_vdi(name))?;
        let leaf = self.image(vdi.image)?;
        self.refuse_while_resizing(uuid)?;
        self.check_usable(uuid, leaf.id)?;
        Ok(((**vdi).clone(), leaf.clone()))
    }

    /// Refuses a VDI with a damaged or missing image anywhere in its chain.
    pub(crate) fn check_usable(&self, vdi: VdiUuid, leaf: ImageId) -> Result<(), Failure> {
        let broken = |image: &ImageState| {
            matches!(image, ImageState::Corrupt | ImageState::Missing | ImageState::Garbage)
        };
        match self.catalog.state().chain(leaf).find(|image| broken(&image.state)) {
            None => Ok(()),
            Some(image) => Err(Failure::new(
                ErrorName::VdiUnavailable,
                format!("image {} of this chain is {:?}", image.container, image.state).to_lowercase(),
            )
            .hint("`catena sr check` says more")
            .object("vdi", vdi)
            .object("image", image.id)),
        }
    }

    /// Whether one more image fits on top of the leaf: `None` if it does; otherwise the refusal, or the word that the call waits
    /// for merges where the client wants to wait and they can help.
    pub(crate) fn room_above(
        &self,
        vdi: &VdiRecord,
        leaf: &ImageRecord,
        wait: bool,
    ) -> Result<Option<Given>, Failure> {
        let state = self.catalog.state();
        let depth = state.chain(leaf.id).count();
        if depth < CHAIN_LIMIT {
            return Ok(None);
        }
        let helps = can_shorten(&Rows(state), leaf.id);
        let standstill = self.standstill();
        if wait && helps && standstill.is_none() {
            return Ok(Some(Given::Again(vdi.uuid)));
        }
        let hint = match (helps, standstill) {
            (true, Some(standstill)) => {
                format!("merges can shorten the chain; coalescing is {}", standstill.text())
            }
            (true, None) => {
                "merges can shorten the chain: wait for `catena coalesce run --wait`, or repeat with --wait"
                    .to_owned()
            }
            (false, _) => "delete snapshots of this disk, or import an export of it as a new disk".to_owned(),
        };
        let message =
            format!("the chain of '{}' has {depth} images, and {CHAIN_LIMIT} is the limit", vdi.name_label);
        Err(Failure::new(ErrorName::ChainTooLong, message)
            .hint(hint)
            .object("vdi", vdi.uuid)
            .object("depth", depth))
    }

    /// Concludes a job that puts leaves on top of the leaves of these VDIs, which become hidden base copies: sealed on disk
    /// after the commit. The `leaves` are those that the VDIs get: one that a guest writes is held back until it writes to its new
    /// leaf; one that is only read goes on with what it has, which reads the same, and is told afterwards.
    pub(crate) fn become_bases(
        &mut self,
        job: JobRecord,
        bases: Vec<(VdiRecord, ImageRecord)>,
        mut changes: Vec<Change>,
        answer: Value,
        leaves: &[(VdiUuid, ImageRecord)],
    ) -> Result<Given, Failure> {
        let mut steps = Vec::new();
        for (vdi, leaf) in bases {
            let depth = self.catalog.state().chain(leaf.id).count() + 1;
            if depth >= CHAIN_WARNING {
                let text = format!("the chain of '{}' has {depth} images of {CHAIN_LIMIT}", vdi.name_label);
                changes.push(self.event(Severity::Warning, "chain.long", Some(vdi.uuid), Some(&job), text));
            }
            // A foreign image is never written to: its own hidden flag stays as it is.
            if !leaf.foreign {
                steps.push(Step::SetHidden { image: leaf.id, hidden: true });
            }
            if !leaf.foreign {
                steps.extend(self.deflating(leaf.id));
            }
            changes.push(Change::PutImage(ImageRecord { hidden: true, ..leaf }));
        }
        for (vdi, leaf) in leaves {
            steps.extend(self.or_undo(&job, |owner| owner.inflating(leaf, *vdi))?);
        }
        let pause = self.or_undo(&job, |owner| owner.pause(leaves))?;
        crash::pass(job.work.kind(), Phase::Paused);
        let given = self.conclude_paused(job, changes, steps, answer, pause)?;
        self.relink_served();
        Ok(given)
    }

    /// The commit of a job, then its steps. The client gets its answer even if a step has to be tried again: the change has
    /// taken effect.
    pub(crate) fn conclude(
        &mut self,
        job: JobRecord,
        changes: Vec<Change>,
        steps: Vec<Step>,
        answer: Value,
    ) -> Result<Given, Failure> {
        self.conclude_paused(job, changes, steps, answer, Pause::default())
    }

    /// The same, with writes held back until the commit has decided.
    fn conclude_paused(
        &mut self,
        mut job: JobRecord,
        mut changes: Vec<Change>,
        steps: Vec<Step>,
        answer: Value,
        pause: Pause,
    ) -> Result<Given, Failure> {
        let undone = job.clone();
        let kind = job.work.kind();
        job.committed = true;
        job.answer = Some(answer.clone());
        job.effects = catena_types::Effects { steps, ..Default::default() };
        job.updated = Timestamp::now();
        // With nothing left to do, the commit is also the end of the job.
        if job.effects.steps.is_empty() {
            job.state = JobState::Done;
            job.phase = "done".to_owned();
        }
        let id = job.id;
        let over = job.state.is_over();
        changes.push(Change::PutJob(job));
        let committed = self.still_paused(&pause).and_then(|()| self.commit(changes));
        if committed.is_ok() {
            crash::pass(kind, Phase::Committed);
        }
        // Before anything is undone, and before the old leaves are sealed: they are given up here (D12).
        self.settle(id, pause);
        self.or_undo(&undone, |_| committed)?;
        if !over {
            self.run_steps(id);
        }
        crash::pass(kind, Phase::Done);
        Ok(Given::Answer(answer))
    }
}

/// The row of an image that nothing needs any more: out of the tree, so that its parent is free to be merged or removed.
pub(crate) fn garbage(image: &ImageRecord) -> ImageRecord {
    ImageRecord { state: ImageState::Garbage, parent: None, hidden: true, ..image.clone() }
}
