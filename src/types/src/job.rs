//! Journaled operations: what a job row says, so that a crash at any instruction is answered from it.
//!
//! ```text
//!            row written            [commit]               steps done
//!  queued ───────────────▶ running ───────────▶ committed ────────────▶ done
//!                             │                  (steps left)
//!                             └── failed, cancelled: what `makes` lists is removed
//! ```
//!
//! Before its commit a job is undone: every container in [`Effects::makes`] is removed; what cannot be removed at once stays
//! listed there in the row of the failed job, and is tried again. After it, what is left to do stands in
//! [`Effects::steps`]; each step may be repeated. Nothing else is ever deleted.

use crate::failure::Failure;
use crate::ids::{ImageId, VdiUuid};
use crate::sizes::{Bytes, FileOffset};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The number of a job within its SR.
pub type JobId = u64;

/// What kind of operation a job is, as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A new empty disk.
    Create,
    /// A snapshot of a disk.
    Snapshot,
    /// New disks from a disk or snapshot.
    Clone,
    /// A disk put back to a snapshot of it.
    Revert,
    /// A disk made larger.
    Resize,
    /// Names and free keys of a disk changed.
    Set,
    /// A disk's content copied into a new disk.
    Copy,
    /// A disk deleted.
    Destroy,
    /// A stream read into a new disk.
    Import,
    /// A disk written to a stream.
    Export,
    /// An existing directory taken over.
    Introduce,
    /// An inner merge.
    Merge,
    /// A leaf merge.
    LeafMerge,
    /// Removal of images that nothing needs.
    Garbage,
    /// A check of an SR.
    Check,
    /// Containers compared with the catalog.
    Scan,
    /// Images mended.
    Repair,
    /// Unused space given back.
    Trim,
    /// The storage made larger.
    Grow,
    /// A disk made accessible to a hypervisor.
    Attach,
    /// A disk taken away from a hypervisor.
    Detach,
    /// The container of a disk in use made larger, because it fills.
    Extend,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waiting to run; a failed merge waits here until its back-off ends.
    Queued,
    /// Running.
    Running,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to the job.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What a job works on. Only the keeper interprets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Work {
    /// A new empty disk.
    Create {
        /// The disk.
        vdi: VdiUuid,
    },
    /// A snapshot of `vdi`, and at the same instant of others.
    Snapshot {
        /// The disk.
        vdi: VdiUuid,
        /// The other disks.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<VdiUuid>,
    },
    /// Clones of `vdi`.
    Clone {
        /// The disk or snapshot.
        vdi: VdiUuid,
    },
    /// `vdi` is put back to what its snapshot holds.
    Revert {
        /// The disk.
        vdi: VdiUuid,
        /// The snapshot.
        snapshot: VdiUuid,
    },
    /// `vdi` is made larger.
    Resize {
        /// The disk.
        vdi: VdiUuid,
        /// Its leaf.
        image: ImageId,
        /// The size that it is to have.
        size: Bytes,
    },
    /// Names or free keys of `vdi` are changed.
    Set {
        /// The disk or snapshot.
        vdi: VdiUuid,
    },
    /// The content of an image becomes `vdi`.
    Copy {
        /// The new disk.
        vdi: VdiUuid,
        /// The image whose content it gets.
        image: ImageId,
    },
    /// `vdi` is deleted.
    Destroy {
        /// The disk.
        vdi: VdiUuid,
    },
    /// A stream becomes `vdi`.
    Import {
        /// The new disk.
        vdi: VdiUuid,
    },
    /// An image is written to a stream.
    Export {
        /// The image whose content is written.
        image: ImageId,
    },
    /// A directory is taken over.
    Introduce,
    /// What `from` owns is copied into its parent `into`; then the children of `from` hang from `into`.
    Merge {
        /// The image that goes away.
        from: ImageId,
        /// Its parent.
        into: ImageId,
        /// Everything that `from` owns below this guest offset is durable in `into`.
        cursor: u64,
    },
    /// What the leaf `from` owns is moved into its parent `into`; then its VDI points at `into`.
    LeafMerge {
        /// The disk.
        vdi: VdiUuid,
        /// The leaf that goes away.
        from: ImageId,
        /// Its parent.
        into: ImageId,
        /// The process that serves the disk moves it, and has both open for writing, or may have: until it has let go of the parent,
        /// a successor is given both (D8, D14).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        live: bool,
    },
    /// `image` is removed.
    Garbage {
        /// The image.
        image: ImageId,
    },
    /// All images are checked.
    Check,
    /// The containers are compared with the catalog.
    Scan,
    /// Images are checked, mended, and checked again.
    Repair,
    /// Unused space is given back: inside images, or of devices.
    Trim,
    /// The storage takes up what its devices have grown by.
    Grow {
        /// Devices that it gets too.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        devices: Vec<String>,
    },
    /// `vdi` gets a process that serves it.
    Attach {
        /// The disk or snapshot.
        vdi: VdiUuid,
    },
    /// The process that serves `vdi` is ended.
    Detach {
        /// The disk or snapshot.
        vdi: VdiUuid,
    },
    /// The container of an image grows that the process of `vdi` writes. The row goes when it has.
    Extend {
        /// The disk or snapshot.
        vdi: VdiUuid,
        /// The image.
        image: ImageId,
    },
}

impl JobRecord {
    /// Whether the job has ended badly and what it made is still to be removed, or brought to its size.
    pub fn has_leftovers(&self) -> bool {
        let left = !self.effects.makes.is_empty() || !self.effects.sizes.is_empty();
        self.state.is_over() && !self.committed && left
    }

    /// Whether a process may have the two images of this leaf merge open for writing.
    pub const fn is_open_move(&self) -> bool {
        matches!(self.work, Work::LeafMerge { live: true, .. }) && !self.committed
    }
}

impl Work {
    /// The kind that clients see.
    pub const fn kind(&self) -> JobKind {
        match self {
            Self::Create { .. } => JobKind::Create,
            Self::Snapshot { .. } => JobKind::Snapshot,
            Self::Clone { .. } => JobKind::Clone,
            Self::Revert { .. } => JobKind::Revert,
            Self::Resize { .. } => JobKind::Resize,
            Self::Set { .. } => JobKind::Set,
            Self::Copy { .. } => JobKind::Copy,
            Self::Destroy { .. } => JobKind::Destroy,
            Self::Import { .. } => JobKind::Import,
            Self::Export { .. } => JobKind::Export,
            Self::Introduce => JobKind::Introduce,
            Self::Merge { .. } => JobKind::Merge,
            Self::LeafMerge { .. } => JobKind::LeafMerge,
            Self::Garbage { .. } => JobKind::Garbage,
            Self::Check => JobKind::Check,
            Self::Scan => JobKind::Scan,
            Self::Repair => JobKind::Repair,
            Self::Trim => JobKind::Trim,
            Self::Grow { .. } => JobKind::Grow,
            Self::Attach { .. } => JobKind::Attach,
            Self::Detach { .. } => JobKind::Detach,
            Self::Extend { .. } => JobKind::Extend,
        }
    }
}

/// A container that a job makes before its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The image in it.
    pub image: ImageId,
    /// Its name.
    pub container: String,
}

/// One write of a header patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchWrite {
    /// Where, in the container.
    pub at: FileOffset,
    /// What, as hexadecimal digits.
    pub hex: String,
}

/// The bytes that are about to be written over the header of an image, which has no second copy. D5: they stand in the
/// job row before the first of them is written, so that a torn header can always be written whole again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderPatch {
    /// The image.
    pub image: ImageId,
    /// The writes, in order.
    pub writes: Vec<PatchWrite>,
}

/// A thing left to do after the commit. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Mark the image hidden (or not) on disk.
    SetHidden {
        /// The image.
        image: ImageId,
        /// Hidden or visible.
        hidden: bool,
    },
    /// Make the headers of these images name the parent that the catalog names.
    Reparent {
        /// The images.
        images: Vec<ImageId>,
        /// The bytes, once they are planned; empty before.
        patches: Vec<HeaderPatch>,
    },
    /// Cut the container of an image, which is of explicit size, to what the image needs, unless it is to take every block now.
    Deflate {
        /// The image.
        image: ImageId,
    },
    /// Make the container of an image large enough for every block, if it is to take them.
    Inflate {
        /// The image.
        image: ImageId,
    },
    /// Remove the container and then the row of a garbage image.
    Remove {
        /// The image.
        image: ImageId,
        /// Its container.
        container: String,
    },
}

/// A container of explicit size that a job makes larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// The image in it.
    pub image: ImageId,
    /// Its name.
    pub container: String,
    /// What it had before.
    pub before: Bytes,
}

/// What a job does to the storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effects {
    /// Containers it makes before its commit, to be removed if that never comes.
    pub makes: Vec<Made>,
    /// What is left to do after its commit, in order.
    pub steps: Vec<Step>,
    /// Containers that may have grown while their images do not know: written before the first of them grows, gone when all are
    /// brought to their size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Resized>,
}

/// A row of the job table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// What it works on.
    pub work: Work,
    /// How far it is.
    pub state: JobState,
    /// Whether its change of the tree has taken effect.
    pub committed: bool,
    /// What it does to the storage.
    pub effects: Effects,
    /// For people: what it is doing now.
    pub phase: String,
    /// Bytes handled.
    pub bytes_done: Bytes,
    /// Bytes to handle.
    pub bytes_total: Bytes,
    /// Why it failed.
    pub error: Option<Failure>,
    /// How often it was tried and failed.
    pub attempts: u32,
    /// A failed merge is tried again at this time.
    pub retry_at: Option<Timestamp>,
    /// The client's key for retries.
    pub request_id: Option<String>,
    /// The answer that was or will be given, as the client gets it.
    pub answer: Option<serde_json::Value>,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}
