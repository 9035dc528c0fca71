//! The catalog in memory: what readers clone and what changes are applied to.
//!
//! Invariant: the indexes (`children`, `leaves`, `unfinished`, `requests`) and the sum `allocated` always agree with the tables;
//! only [`State`]'s own methods change any of them once the state is loaded. Records are shared, tables are copied in parts: a
//! clone costs a few reference counts, a change duplicates a few hundred pointers however large the SR is.

use crate::table::Sorted;
use catena_types::{
    AttachmentRecord, Bytes, EventRecord, ImageId, ImageRecord, ImageState, JobId, JobRecord, JobState,
    SrUuid, VdiRecord, VdiUuid,
};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The SR's own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The SR.
    pub sr: SrUuid,
    /// Its name.
    pub name_label: String,
    /// A longer description.
    pub name_description: String,
    /// When it was made or taken over.
    pub created: Timestamp,
    /// Whether an administrator stopped coalescing.
    pub coalesce_paused: bool,
    /// When a pause ends by itself.
    pub paused_until: Option<Timestamp>,
    /// Policy and free keys.
    pub other: BTreeMap<String, String>,
}

/// One change of the catalog. Those of one commit take effect together; their order matters only for events and for
/// several changes of one record (the last one wins).
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a commit has a handful of changes; a box would only cost words"
)]
pub enum Change {
    /// Adds an image or replaces it.
    PutImage(ImageRecord),
    /// Removes an image; nothing if there is none.
    RemoveImage(ImageId),
    /// Adds a VDI or replaces it.
    PutVdi(VdiRecord),
    /// Removes a VDI; nothing if there is none.
    RemoveVdi(VdiUuid),
    /// Adds the attachment of a VDI or replaces it.
    PutAttachment(AttachmentRecord),
    /// Removes the attachment of a VDI; nothing if there is none.
    RemoveAttachment(VdiUuid),
    /// Adds a job (numbered by [`next_job_id`](crate::Catalog::next_job_id)) or replaces it.
    PutJob(JobRecord),
    /// Removes a job; nothing if there is none.
    RemoveJob(JobId),
    /// Replaces the SR's own row.
    PutMeta(Meta),
    /// Records an event; its `id` is ignored, the commit returns the one it got.
    Event(EventRecord),
}

/// A table in memory, by key. Cloning it is cheap.
pub type Table<K, V> = Sorted<K, Arc<V>>;

/// Everything the catalog knows but the events.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The SR's own row.
    pub meta: Arc<Meta>,
    /// The nodes of the tree.
    pub images: Table<ImageId, ImageRecord>,
    /// The disks and snapshots.
    pub vdis: Table<VdiUuid, VdiRecord>,
    /// The VDIs that are being served.
    pub attachments: Table<VdiUuid, AttachmentRecord>,
    /// The jobs, those over included until they expire.
    pub jobs: Table<JobId, JobRecord>,
    /// The number of the last event; 0 before the first.
    pub last_event: u64,
    /// (parent, child) of every image that has a parent and is not garbage.
    children: Sorted<(ImageId, ImageId), ()>,
    /// (image, VDI) of every VDI.
    leaves: Sorted<(ImageId, VdiUuid), ()>,
    /// The jobs that have not ended well.
    unfinished: Sorted<JobId, ()>,
    /// The job of each client's key for retries.
    requests: Sorted<String, JobId>,
    /// What all images take.
    allocated: u64,
}

const FIRST: [u8; 16] = [0; 16];

impl State {
    /// A catalog with nothing but its own row.
    pub(crate) fn empty(meta: Meta) -> Self {
        Self {
            meta: Arc::new(meta),
            images: Table::default(),
            vdis: Table::default(),
            attachments: Table::default(),
            jobs: Table::default(),
            last_event: 0,
            children: Sorted::default(),
            leaves: Sorted::default(),
            unfinished: Sorted::default(),
            requests: Sorted::default(),
            allocated: 0,
        }
    }

    /// What a catalog of nothing but these changes would hold: for plans that are shown and not carried out.
    pub fn preview(meta: Meta, changes: &[Change]) -> Self {
        let mut state = Self::empty(meta);
        for change in changes {
            state.apply(change);
        }
        state
    }

    /// The images whose parent is `parent`. Garbage is not counted: nothing reads it.
    pub fn children(&self, parent: ImageId) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.children
            .from((parent, ImageId::from_bytes(FIRST)))
            .take_while(move |((of, _), ())| *of == parent)
            .filter_map(|((_, child), ())| self.images.get(child))
    }

    /// The VDI that points at `image`.
    pub fn vdi_of(&self, image: ImageId) -> Option<&Arc<VdiRecord>> {
        self.vdis_of(image).next()
    }

    /// All VDIs that point at `image`: at most one in a state that was committed.
    pub(crate) fn vdis_of(&self, image: ImageId) -> impl Iterator<Item = &Arc<VdiRecord>> {
        self.leaves
            .from((image, VdiUuid::from_bytes(FIRST)))
            .take_while(move |((of, _), ())| *of == image)
            .filter_map(|((_, vdi), ())| self.vdis.get(vdi))
    }

    /// The jobs that have not ended well, oldest first: those that wait or run, and those that failed or were cancelled. Those
    /// that are done are many, and there is nothing to decide about them.
    pub fn unfinished(&self) -> impl DoubleEndedIterator<Item = &Arc<JobRecord>> {
        self.unfinished.keys().filter_map(|id| self.jobs.get(id))
    }

    /// The job that a request with this key began.
    pub fn job_of_request(&self, key: &str) -> Option<&Arc<JobRecord>> {
        self.requests.get(&key.to_owned()).and_then(|id| self.jobs.get(id))
    }

    /// What all images together take, as far as their rows know.
    pub const fn allocated(&self) -> Bytes {
        Bytes(self.allocated)
    }

    /// The image and what it falls through to, leaf first. Ends at the root or where a parent is not in the catalog;
    /// empty if the image itself is not.
    pub fn chain(&self, leaf: ImageId) -> impl Iterator<Item = &Arc<ImageRecord>> {
        std::iter::successors(self.images.get(&leaf), |image| {
            image.parent.and_then(|parent| self.images.get(&parent))
        })
    }

    /// Applies one change. Events only count up; who calls numbers them in the same order.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::PutImage(image) => self.put_image(image),
            Change::RemoveImage(id) => self.remove_image(*id),
            Change::PutVdi(vdi) => self.put_vdi(vdi),
            Change::RemoveVdi(uuid) => self.remove_vdi(*uuid),
            Change::PutAttachment(row) => drop(self.attachments.insert(row.vdi, Arc::new(row.clone()))),
            Change::RemoveAttachment(vdi) => drop(self.attachments.remove(vdi)),
            Change::PutJob(job) => self.put_job(job),
            Change::RemoveJob(id) => self.remove_job(*id),
            Change::PutMeta(meta) => self.meta = Arc::new(meta.clone()),
            Change::Event(_) => self.last_event += 1,
        }
    }

    fn put_image(&mut self, image: &ImageRecord) {
        let edge = edge(image);
        let old = self.images.insert(image.id, Arc::new(image.clone()));
        self.allocated += image.allocated.0;
        self.allocated -= old.as_ref().map_or(0, |old| old.allocated.0);
        let old_edge = old.and_then(|old| self::edge(&old));
        if old_edge == edge {
            return;
        }
        if let Some(old_edge) = old_edge {
            self.children.remove(&old_edge);
        }
        if let Some(edge) = edge {
            self.children.insert(edge, ());
        }
    }

    fn remove_image(&mut self, id: ImageId) {
        let Some(old) = self.images.remove(&id) else { return };
        self.allocated -= old.allocated.0;
        if let Some(edge) = edge(&old) {
            self.children.remove(&edge);
        }
    }

    fn put_vdi(&mut self, vdi: &VdiRecord) {
        let (uuid, image) = (vdi.uuid, vdi.image);
        let old_image = self.vdis.insert(uuid, Arc::new(vdi.clone())).map(|old| old.image);
        if old_image == Some(image) {
            return;
        }
        if let Some(old_image) = old_image {
            self.leaves.remove(&(old_image, uuid));
        }
        self.leaves.insert((image, uuid), ());
    }

    fn remove_vdi(&mut self, uuid: VdiUuid) {
        if let Some(old) = self.vdis.remove(&uuid) {
            self.leaves.remove(&(old.image, uuid));
        }
    }

    fn put_job(&mut self, job: &JobRecord) {
        self.remove_job(job.id);
        self.jobs.insert(job.id, Arc::new(job.clone()));
        if job.state != JobState::Done {
            self.unfinished.insert(job.id, ());
        }
        if let Some(key) = &job.request_id {
            self.requests.insert(key.clone(), job.id);
        }
    }

    fn remove_job(&mut self, id: JobId) {
        let Some(old) = self.jobs.remove(&id) else { return };
        self.unfinished.remove(&id);
        if let Some(key) = &old.request_id
            && self.requests.get(key) == Some(&id)
        {
            self.requests.remove(key);
        }
    }
}

fn edge(image: &ImageRecord) -> Option<(ImageId, ImageId)> {
    match image.state {
        ImageState::Garbage => None,
        _ => image.parent.map(|parent| (parent, image.id)),
    }
}
