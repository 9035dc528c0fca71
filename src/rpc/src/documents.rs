//! The documents of the wire: what lists and records look like to scripts. More fields are welcome, none is renamed.

use catena_types::{
    Bytes, Failure, Format, ImageId, ImageState, IoClass, JobKind, JobState, Policy, Severity, SrUuid,
    VdiUuid,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether an SR is usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SrState {
    /// Its keeper runs.
    Attached,
    /// Known, not attached.
    Detached,
    /// Should be attached and is not: see `error`.
    Failed,
}

/// An SR.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sr {
    /// Its id.
    pub uuid: SrUuid,
    /// Its name.
    pub name_label: String,
    /// The back end: `file`, `lvm`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Attached, detached or failed.
    pub state: SrState,
    /// `thin`, `thick` or `dynamic`.
    pub allocation: String,
    /// Where it is: its directory, or its devices joined by commas.
    pub location: String,
    /// Its devices, where it lies on devices.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Size of the storage in bytes; 0 while not attached, as are the figures below.
    pub physical_size: Bytes,
    /// Bytes that the SR takes.
    pub physical_utilisation: Bytes,
    /// Sum of the virtual sizes of its VDIs.
    pub virtual_allocation: Bytes,
    /// Bytes that can still be taken.
    pub free_space: Bytes,
    /// How many VDIs it has.
    pub vdi_count: u64,
    /// How many images it has.
    pub image_count: u64,
    /// Whether clones share blocks where the storage can (reflink).
    pub reflink: bool,
    /// How its coalesce worker behaves; null while not attached, as is what follows.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// The disks that it is on, such as `sda`; null where there are none, as with a network file system.
    #[serde(default)]
    pub io_device: Option<String>,
    /// What schedules their requests.
    #[serde(default)]
    pub io_scheduler: Option<String>,
    /// Whether that scheduler heeds I/O classes; where it does not, `coalesce.rate` is what spares guests.
    #[serde(default)]
    pub io_class_honoured: Option<bool>,
    /// Which hierarchy of control groups has one for its merges, `v2` or `v1`; null if the system gives none.
    #[serde(default)]
    pub io_group: Option<String>,
    /// Its weight as the kernel has it.
    #[serde(default)]
    pub io_weight: Option<u64>,
    /// Why it is failed.
    #[serde(default)]
    pub error: Option<Failure>,
}

/// A VDI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vdi {
    /// Its id.
    pub uuid: VdiUuid,
    /// Its SR.
    pub sr: SrUuid,
    /// Its name.
    pub name_label: String,
    /// A longer description.
    pub name_description: String,
    /// The image it points at.
    pub image: ImageId,
    /// The container of that image.
    pub container: String,
    /// The format of that image.
    pub format: Format,
    /// Size in bytes.
    pub virtual_size: Bytes,
    /// Bytes that only this VDI takes: those of the images that no other VDI reads through.
    pub own_bytes: Bytes,
    /// Bytes of the images that it shares.
    pub shared_bytes: Bytes,
    /// Bytes that come free when it is deleted, without any merge.
    #[serde(default)]
    pub reclaimable_bytes: Bytes,
    /// Bytes that come free when it is deleted and the merges are done that this makes possible: at most so many, since what
    /// two images both hold is known only when they are merged.
    #[serde(default)]
    pub reclaimable_after_coalesce_bytes: Bytes,
    /// Images in its chain, its own included.
    pub depth: u64,
    /// Whether it is a snapshot.
    pub is_a_snapshot: bool,
    /// Of which disk.
    pub snapshot_of: Option<VdiUuid>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// `ro`, `rw`, or null while detached.
    pub attached: Option<String>,
    /// State of its image.
    pub state: ImageState,
    /// Free keys and values.
    pub other_config: BTreeMap<String, String>,
    /// Figures of its process; null while detached, in lists, and where the process does not answer at once.
    #[serde(default)]
    pub serving: Option<ServedDisk>,
}

/// How a disk is served, counted from the start of its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServedDisk {
    /// The disk.
    pub vdi: VdiUuid,
    /// Its process.
    pub pid: u32,
    /// What carries out its I/O: `io_uring` or `threads`.
    pub engine: String,
    /// Connections that are open now.
    pub connections: u64,
    /// Requests that are under way now.
    pub queue_depth: u64,
    /// How often writes were held back for a change of its chain.
    pub pauses: u64,
    /// The longest time that they were, in microseconds.
    pub longest_pause_us: u64,
    /// Requests that read.
    pub read: ServedRequests,
    /// Requests that wrote, zeroed or discarded.
    pub write: ServedRequests,
    /// Requests that flushed.
    pub flush: ServedRequests,
    /// Why nothing is written any more, where the storage has failed; otherwise null.
    #[serde(default)]
    pub failed: Option<String>,
    /// Why its volume is not made larger, though its guest fills it and waits, or soon will; otherwise null.
    #[serde(default)]
    pub lacks_room: Option<String>,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServedRequests {
    /// How many were answered.
    pub count: u64,
    /// Their bytes.
    pub bytes: Bytes,
    /// How many of them failed.
    pub failed: u64,
    /// Half of them took less than so many microseconds (a power of two); 0 without any.
    pub p50_us: u64,
    /// Of a hundred, 99 took less than so many microseconds (a power of two); 0 without any.
    pub p99_us: u64,
}

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// The image.
    pub image: ImageId,
    /// Its container.
    pub container: String,
    /// Its parent.
    pub parent: Option<ImageId>,
    /// Its format.
    pub format: Format,
    /// Size of the virtual disk at this image.
    pub virtual_size: Bytes,
    /// Bytes of this image alone.
    pub own_bytes: Bytes,
    /// 1 for a root.
    pub depth: u64,
    /// Has no VDI: a base copy.
    pub hidden: bool,
    /// `ok`, `merging`, `mixed`, `garbage`, `orphan`, `corrupt`, `missing`.
    pub state: String,
    /// How far a merge of it into its parent is, 0 to 100.
    #[serde(default)]
    pub progress_percent: Option<u8>,
    /// The VDI that points at it.
    pub vdi: Option<Box<Vdi>>,
    /// What hangs from it.
    pub children: Vec<Node>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its id: the first eight digits of the SR's uuid, a hyphen, a number.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// Where.
    pub sr: SrUuid,
    /// The VDI concerned.
    #[serde(default)]
    pub vdi: Option<VdiUuid>,
    /// The image concerned.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// What it is doing.
    pub phase: String,
    /// Bytes handled.
    pub bytes_done: Bytes,
    /// Bytes to handle.
    pub bytes_total: Bytes,
    /// Bytes a second, lately.
    pub rate: Bytes,
    /// Seconds to go at that rate.
    pub eta_seconds: Option<u64>,
    /// How far it is.
    pub state: JobState,
    /// Why it failed.
    pub error: Option<Failure>,
    /// What it came to, once done: `{"uuid"}`, `{"bytes"}`, a check's report, ...
    #[serde(default)]
    pub result: Option<serde_json::Value>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it last changed, RFC 3339.
    pub updated: String,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its id: the first eight digits of the SR's uuid, a hyphen, a number that grows.
    pub id: String,
    /// When, RFC 3339.
    pub time: String,
    /// What.
    pub kind: String,
    /// How bad.
    pub severity: Severity,
    /// The SR.
    pub sr: SrUuid,
    /// The VDI.
    pub vdi: Option<VdiUuid>,
    /// The job's id.
    pub job: Option<String>,
    /// For people.
    pub message: String,
}

/// What the coalesce worker of an SR is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CoalesceState {
    /// Nothing to do.
    Idle,
    /// A merge or a removal runs.
    Running,
    /// An administrator paused it.
    Paused,
    /// What is left has failed and waits.
    Backoff,
    /// What is left cannot be done now.
    Blocked,
}

/// Why the worker is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// `no_work`, `paused`, `window`, `no_space`, `lease`, `foreign_image`, `failed`, `chain_attached`, ...
    pub code: String,
    /// For people.
    pub text: String,
}

/// A merge that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MergePlan {
    /// The image that goes away.
    pub image: ImageId,
    /// Its parent.
    pub into: ImageId,
    /// Bytes to copy, as far as known.
    pub bytes: Bytes,
}

/// The worker of one SR, for `coalesce status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CoalesceStatus {
    /// The SR.
    pub sr: SrUuid,
    /// What it is doing.
    pub state: CoalesceState,
    /// Why.
    pub reason: Reason,
    /// When a pause ends by itself, RFC 3339.
    #[serde(default)]
    pub paused_until: Option<String>,
    /// The I/O class of the running merge as the kernel has it: `idle`, `best-effort:0` to `:7`; null without a merge, and while
    /// its threads change from one to another.
    #[serde(default)]
    pub io_class: Option<IoClass>,
    /// Whether the scheduler of the SR's disks heeds it.
    #[serde(default)]
    pub io_class_honoured: Option<bool>,
    /// The job that runs.
    pub current: Option<Job>,
    /// What waits, in order.
    pub queue: Vec<MergePlan>,
    /// Images that merges or removal would make go away.
    pub unmerged_images: u64,
    /// Bytes that would come free.
    pub reclaimable_bytes: Bytes,
}

/// A thing a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What is concerned: a container's name, `catalog`, ...
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// What would mend it.
    pub repair: String,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckReport {
    /// What was found.
    pub findings: Vec<Finding>,
    /// No finding of severity error.
    pub clean: bool,
    /// With `repair`: what was found before it; `findings` is what was found after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings_before: Option<Vec<Finding>>,
    /// With `repair`: what was mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Vec<Repaired>>,
}

/// A thing that a repair has mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Repaired {
    /// The container.
    pub object: String,
    /// What was wrong.
    pub problem: String,
    /// What was done about it.
    pub repair: String,
    /// The file with the bytes that were written over.
    pub saved: String,
}

/// What a trim came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrimReport {
    /// Bytes that came free.
    pub freed: Bytes,
    /// Images that were trimmed.
    pub images: u64,
    /// Images, or devices, that were not.
    pub skipped: Vec<TrimSkipped>,
    /// Free bytes that devices were told are not in use any more (discard). Only of an SR that lies on devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discarded: Option<Bytes>,
}

/// What was not trimmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrimSkipped {
    /// The container of an image, or a device.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// What became of a storage that was to grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GrowReport {
    /// The size that it has now: of the volume group, or of the file system.
    pub physical_size: Bytes,
    /// How much larger that is than before.
    pub grown_by: Bytes,
    /// Bytes that disks can still take.
    pub free_space: Bytes,
    /// All its devices; none where it has a directory.
    pub devices: Vec<String>,
}
