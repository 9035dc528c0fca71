//! The rows of a catalog, as every crate above it sees them.

use crate::ids::{ImageId, SrUuid, VdiUuid};
use crate::sizes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format of an image: what the catalog says, never what the bytes suggest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A virtual hard disk: dynamic, differencing or fixed.
    Vhd,
    /// The bytes of the disk and nothing else: what another manager keeps as a plain volume or file. Has no id of its own, and is
    /// only read.
    Raw,
}

impl Format {
    /// The extension of a container that this format is stored in.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Raw => "raw",
        }
    }
}

/// What is known about an image beyond its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// In use, in order.
    Ok,
    /// A merge into it was begun and is not finished: only its child reads right.
    Mixed,
    /// To be removed; nothing needs it.
    Garbage,
    /// Adopted with its SR, belongs to no disk, kept until an administrator says otherwise.
    Orphan,
    /// Unreadable or damaged.
    Corrupt,
    /// Its container is gone.
    Missing,
}

/// A node of the tree of one SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image's id; for VHD the footer's unique id.
    pub id: ImageId,
    /// The image it falls through to, as the catalog has it.
    pub parent: Option<ImageId>,
    /// How the bytes are to be read.
    pub format: Format,
    /// The container's name at the back end.
    pub container: String,
    /// Size of the virtual disk at this image.
    pub virtual_size: Bytes,
    /// Bytes that its container takes on the storage.
    pub allocated: Bytes,
    /// Its state.
    pub state: ImageState,
    /// Hidden on disk: no VDI is to be made of it.
    pub hidden: bool,
    /// Written by a program other than us or XenServer, or without a format of its own: never written to.
    pub foreign: bool,
}

impl ImageRecord {
    /// The id by which the header of a child names this image: none for one that has no id of its own.
    pub const fn id_in_headers(&self) -> ImageId {
        match self.format {
            Format::Vhd => self.id,
            Format::Raw => ImageId::NONE,
        }
    }
}

/// Whether a VDI is a disk or the snapshot of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VdiKind {
    /// A disk.
    Disk,
    /// A snapshot of a disk.
    Snapshot,
}

/// What a user sees: a disk or a snapshot, and the image it points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiRecord {
    /// Its id.
    pub uuid: VdiUuid,
    /// The leaf it points at.
    pub image: ImageId,
    /// Its name.
    pub name_label: String,
    /// A longer description.
    pub name_description: String,
    /// Disk or snapshot.
    pub kind: VdiKind,
    /// The disk that a snapshot was taken of (it may be gone).
    pub snapshot_of: Option<VdiUuid>,
    /// When it was made.
    pub created: Timestamp,
    /// Free keys and values of its users.
    pub other_config: BTreeMap<String, String>,
}

/// What an attached VDI may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachMode {
    /// Reading, by any number of users.
    #[serde(rename = "ro")]
    ReadOnly,
    /// Reading and writing, by one user.
    #[serde(rename = "rw")]
    ReadWrite,
}

impl AttachMode {
    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
        }
    }
}

/// A VDI that is, or is about to be, served by a process of its own. The row is there before the process is started and goes
/// when the process has ended, so no process is ever unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The VDI.
    pub vdi: VdiUuid,
    /// What for.
    pub mode: AttachMode,
    /// How many detachments end it: more than one only where it is read alone.
    pub count: u32,
    /// The boot of the host in which the process was started: in another one there is no such process.
    pub boot: String,
    /// When it was attached.
    pub since: Timestamp,
}

/// How bad an event or a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    Error,
}

/// Something that happened, for watchers and the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its number within the SR; 0 until the catalog has given one.
    pub id: u64,
    /// When.
    pub time: Timestamp,
    /// What: `vdi.created`, `merge.done`, `chain.warning`, ...
    pub kind: String,
    /// How bad.
    pub severity: Severity,
    /// The SR.
    pub sr: SrUuid,
    /// The VDI concerned.
    pub vdi: Option<VdiUuid>,
    /// The job concerned.
    pub job: Option<crate::job::JobId>,
    /// For people.
    pub message: String,
}
