//! The documents of the wire, made from a published snapshot, and what the kernel says about I/O priority. Nothing here waits for
//! a disk; called by the reader thread and by the owner.

use crate::ioclass;
use crate::published::Published;
use crate::standstill::{Standstill, standstill};
use crate::tree::Rows;
use catena_coalesce::{Hold, Plan, Task, Tree, plan, reclaimable, space_of};
use catena_rpc::{CoalesceState, CoalesceStatus, Event, Job, MergePlan, Node, Reason, Sr, SrState, Vdi};
use catena_types::{
    Bytes, EventRecord, ImageId, ImageRecord, ImageState, JobId, JobKind, JobRecord, JobState, Policy,
    VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Zoned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A snapshot, to be asked for documents.
#[derive(Debug, Clone)]
pub(crate) struct View(pub(crate) Arc<Published>);

impl View {
    /// The tree of the snapshot.
    pub(crate) fn tree(&self) -> Rows<'_> {
        Rows(&self.0.state)
    }

    /// The SR.
    pub(crate) fn sr(&self) -> Sr {
        let Published { sr, state, stat, .. } = &*self.0;
        let io = ioclass::scheduling(sr.device);
        let virtual_size =
            |vdi: &Arc<VdiRecord>| state.images.get(&vdi.image).map_or(0, |image| image.virtual_size.0);
        Sr {
            uuid: sr.uuid,
            name_label: state.meta.name_label.clone(),
            kind: sr.kind.clone(),
            state: SrState::Attached,
            allocation: Policy::stored(&state.meta.other).allocation.word().to_owned(),
            location: sr.location.clone(),
            devices: sr.devices.clone(),
            physical_size: stat.total,
            physical_utilisation: stat.used,
            virtual_allocation: Bytes(state.vdis.values().map(virtual_size).sum()),
            free_space: stat.allocatable,
            vdi_count: state.vdis.len() as u64,
            image_count: state.images.len() as u64,
            reflink: sr.reflink,
            policy: Some(Policy::stored(&state.meta.other)),
            io_device: words(&io.devices),
            io_scheduler: words(&io.schedulers),
            io_class_honoured: io.honours_classes(),
            io_group: self.0.sr.group.as_ref().map(|group| group.kind().name().to_owned()),
            io_weight: self.0.sr.group.as_ref().and_then(|group| group.weight()),
            error: None,
        }
    }

    /// All VDIs, by name and then by age.
    pub(crate) fn vdis(&self) -> Vec<Vdi> {
        let mut rows: Vec<&Arc<VdiRecord>> = self.0.state.vdis.values().collect();
        rows.sort_by(|a, b| (&a.name_label, a.created, a.uuid).cmp(&(&b.name_label, b.created, b.uuid)));
        rows.into_iter().map(|vdi| self.vdi_with(vdi)).collect()
    }

    /// One VDI.
    pub(crate) fn vdi(&self, uuid: VdiUuid) -> Option<Vdi> {
        self.0.state.vdis.get(&uuid).map(|vdi| self.vdi_with(vdi))
    }

    fn vdi_with(&self, vdi: &VdiRecord) -> Vdi {
        let leaf = self.0.state.images.get(&vdi.image);
        let space = space_of(&self.tree(), vdi.image);
        Vdi {
            uuid: vdi.uuid,
            sr: self.0.sr.uuid,
            name_label: vdi.name_label.clone(),
            name_description: vdi.name_description.clone(),
            image: vdi.image,
            container: leaf.map(|image| image.container.clone()).unwrap_or_default(),
            format: leaf.map_or(catena_types::Format::Vhd, |image| image.format),
            virtual_size: leaf.map_or(Bytes(0), |image| image.virtual_size),
            own_bytes: space.own,
            shared_bytes: space.shared,
            reclaimable_bytes: space.reclaimable,
            reclaimable_after_coalesce_bytes: space.reclaimable_after_coalesce,
            depth: space.depth,
            is_a_snapshot: vdi.kind == VdiKind::Snapshot,
            snapshot_of: vdi.snapshot_of,
            created: vdi.created.to_string(),
            attached: self.0.state.attachments.get(&vdi.uuid).map(|row| row.mode.word().to_owned()),
            state: leaf.map_or(ImageState::Missing, |image| image.state),
            other_config: vdi.other_config.clone(),
            serving: None,
        }
    }

    /// The trees, or the one that holds `of`.
    pub(crate) fn roots(&self, of: Option<ImageId>) -> Vec<Node> {
        let tree = self.tree();
        let only = of.and_then(|image| tree.chain(image).last().map(|root| root.id));
        let mut roots: Vec<Node> = tree
            .roots()
            .filter(|root| of.is_none() || only == Some(root.id))
            .map(|root| self.node(&tree, root, 1))
            .collect();
        roots.sort_by(|a, b| a.container.cmp(&b.container));
        roots
    }

    fn node(&self, tree: &Rows<'_>, image: &ImageRecord, depth: u64) -> Node {
        let merging = self.merge_of(image.id);
        let vdi = tree.vdi(image.id).map(|vdi| Box::new(self.vdi_with(vdi)));
        let children = tree.children(image.id).filter_map(|child| tree.image(child));
        let mut children: Vec<Node> = children.map(|child| self.node(tree, child, depth + 1)).collect();
        let key = |node: &Node| node.vdi.as_ref().map(|vdi| (vdi.name_label.clone(), vdi.created.clone()));
        children.sort_by_key(key);
        Node {
            image: image.id,
            container: image.container.clone(),
            parent: image.parent,
            format: image.format,
            virtual_size: image.virtual_size,
            own_bytes: image.allocated,
            depth,
            hidden: vdi.is_none() && (image.state != ImageState::Orphan || image.hidden),
            state: if merging.is_some() { "merging".to_owned() } else { state_name(image.state) },
            progress_percent: merging,
            vdi,
            children,
        }
    }

    /// How far the running merge of the image is, in percent.
    fn merge_of(&self, image: ImageId) -> Option<u8> {
        let job = self.0.state.unfinished().find(|job| {
            job.state == JobState::Running
                && matches!(&job.work, Work::Merge { from, .. } | Work::LeafMerge { from, .. } if *from == image)
        })?;
        let live = self.0.live.get(&job.id)?;
        let total = live.progress.bytes_total.0.max(1);
        Some(u8::try_from((live.progress.bytes_done.0.saturating_mul(100) / total).min(100)).unwrap_or(100))
    }

    /// One job.
    pub(crate) fn job(&self, id: JobId) -> Option<Value> {
        let job = self.0.state.jobs.get(&id)?;
        serde_json::to_value(self.job_with(job)).ok()
    }

    /// All jobs, oldest first.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        self.0.state.jobs.values().map(|job| self.job_with(job)).collect()
    }

    fn job_with(&self, job: &JobRecord) -> Job {
        let live = self.0.live.get(&job.id);
        let (done, total) = live.map_or((job.bytes_done, job.bytes_total), |live| {
            (live.progress.bytes_done, live.progress.bytes_total)
        });
        let rate = live.map_or(Bytes(0), |live| live.rate);
        let (vdi, image) = subject(&job.work);
        Job {
            id: format!("{}-{}", self.0.sr.short(), job.id),
            kind: job.work.kind(),
            sr: self.0.sr.uuid,
            vdi,
            image,
            phase: job.phase.clone(),
            bytes_done: done,
            bytes_total: total,
            rate,
            eta_seconds: live.and_then(crate::published::Live::seconds_left),
            state: job.state,
            error: job.error.clone(),
            result: job.answer.clone().filter(|_| job.state == JobState::Done),
            created: job.created.to_string(),
            updated: live.map_or(job.updated, |live| live.updated).to_string(),
        }
    }

    /// The coalesce worker.
    pub(crate) fn coalesce_status(&self) -> CoalesceStatus {
        let tree = self.tree();
        let Plan { ready, held } = plan(&tree, &self.0.moment);
        let current = self.0.state.unfinished().find(|job| {
            matches!(job.work, Work::Merge { .. } | Work::LeafMerge { .. } | Work::Garbage { .. })
                && job.state == JobState::Running
        });
        let standstill = standstill(&self.0.state.meta, &Zoned::now());
        let begins = |task: &Task| standstill.is_none_or(|standstill| standstill.allows(*task));
        let idle = ready.is_empty() && held.is_empty();
        let (state, reason) = match (&current, standstill) {
            (Some(job), _) => (CoalesceState::Running, reason("running", &job.phase)),
            (None, _) if ready.iter().any(begins) => (CoalesceState::Running, reason("running", "starting")),
            (None, Some(Standstill::Window { .. })) if idle => held_state(&held),
            (None, Some(standstill)) => (standstill.state(), reason(standstill.code(), &standstill.text())),
            (None, None) => held_state(&held),
        };
        let all: Vec<Task> = ready.iter().copied().chain(held.iter().map(|held| held.task)).collect();
        let queue = all.iter().filter_map(|task| {
            let bytes = tree.image(task.image()).map_or(Bytes(0), |image| image.allocated);
            task.target().map(|into| MergePlan { image: task.image(), into, bytes })
        });
        CoalesceStatus {
            sr: self.0.sr.uuid,
            state,
            reason,
            paused_until: match standstill {
                Some(Standstill::Paused { until }) => until.map(|until| until.to_string()),
                _ => None,
            },
            io_class: current
                .and_then(|job| self.0.live.get(&job.id))
                .and_then(|live| ioclass::class_of(live.pid)),
            io_class_honoured: ioclass::scheduling(self.0.sr.device).honours_classes(),
            current: current.map(|job| self.job_with(job)),
            queue: queue.collect(),
            unmerged_images: all.len() as u64,
            reclaimable_bytes: reclaimable(&tree),
        }
    }
}

/// An event as clients see it.
pub(crate) fn event(event: &EventRecord) -> Event {
    let short: String = event.sr.to_string().chars().take(8).collect();
    Event {
        id: format!("{short}-{}", event.id),
        time: event.time.to_string(),
        kind: event.kind.clone(),
        severity: event.severity,
        sr: event.sr,
        vdi: event.vdi,
        job: event.job.map(|job| format!("{short}-{job}")),
        message: event.message.clone(),
    }
}

fn held_state(held: &[catena_coalesce::Held]) -> (CoalesceState, Reason) {
    let Some(first) = held.iter().find(|held| held.hold != Hold::Foreign).or_else(|| held.first()) else {
        return (CoalesceState::Idle, reason("no_work", "nothing to merge"));
    };
    let text = match first.hold {
        Hold::Lease => "a chain is being read by another job".to_owned(),
        Hold::Attached => "a disk of the chain is attached for reading, has no process now, or a base copy would have to grow under it"
            .to_owned(),
        Hold::Foreign => "what is left was written by another program and is never written to".to_owned(),
        Hold::Damaged => "an image is damaged or missing; `catena sr check` names it".to_owned(),
        Hold::Backoff => "a merge failed and is tried again later; `catena job list` says why".to_owned(),
        Hold::NoSpace(missing) => format!("{missing} more free space are needed"),
    };
    let state = match first.hold {
        Hold::Backoff => CoalesceState::Backoff,
        Hold::Foreign | Hold::Attached => CoalesceState::Idle,
        _ => CoalesceState::Blocked,
    };
    (state, reason(first.hold.code(), &text))
}

/// Names in one field; `None` without any.
fn words(names: &BTreeSet<String>) -> Option<String> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(" "))
}

fn reason(code: &str, text: &str) -> Reason {
    Reason { code: code.to_owned(), text: text.to_owned() }
}

fn state_name(state: ImageState) -> String {
    wire_name(state)
}

/// A kind of job, as scripts see it.
pub(crate) fn kind_name(kind: JobKind) -> String {
    wire_name(kind)
}

fn wire_name(word: impl serde::Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The VDI and the image that a job is about.
fn subject(work: &Work) -> (Option<VdiUuid>, Option<ImageId>) {
    match work {
        Work::Create { vdi }
        | Work::Snapshot { vdi, .. }
        | Work::Clone { vdi }
        | Work::Revert { vdi, .. }
        | Work::Set { vdi }
        | Work::Destroy { vdi }
        | Work::Import { vdi }
        | Work::Attach { vdi }
        | Work::Detach { vdi } => (Some(*vdi), None),
        Work::LeafMerge { vdi, from, .. } => (Some(*vdi), Some(*from)),
        Work::Copy { vdi, image } | Work::Resize { vdi, image, .. } | Work::Extend { vdi, image } => {
            (Some(*vdi), Some(*image))
        }
        Work::Merge { from, .. } => (None, Some(*from)),
        Work::Export { image } | Work::Garbage { image } => (None, Some(*image)),
        Work::Introduce | Work::Check | Work::Scan | Work::Repair | Work::Trim | Work::Grow { .. } => {
            (None, None)
        }
    }
}
