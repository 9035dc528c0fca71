//! What a keeper asks of a worker, and what it answers.
//!
//! Every request lists the images it concerns as [`Handed`]; their descriptors come in the same order, after a stream's
//! descriptor where the request has one. A worker verifies that a descriptor holds the image that it is said to hold
//! and opens no path, ever. One request at a time; while one runs the keeper may send [`Request::Stop`] and
//! [`Request::Pace`].

use catena_types::{Bytes, FileOffset, Format, HeaderPatch, ImageId, IoClass, Severity};
use serde::{Deserialize, Serialize};

/// An image behind a descriptor of the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Which image it must be.
    pub id: ImageId,
    /// How to read it: what the catalog says, never what the bytes suggest.
    pub format: Format,
    /// An adopted orphan, whose own id may be that of another image too: it may hold any image, and is only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any: bool,
}

/// The parent that an image's header is to name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent.
    pub id: ImageId,
    /// Its container's name, in the same directory.
    pub container: String,
    /// When that was last written, in seconds since 1970.
    pub modified: i64,
}

/// What the catalog says of an image that is checked or repaired; what it does not know is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Its parent, and the size of that.
    pub parent: Option<(Parent, Bytes)>,
    /// Whether it is a base copy.
    pub hidden: Option<bool>,
}

/// A new, empty image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateImage {
    /// Its id.
    pub id: ImageId,
    /// Its format.
    pub format: Format,
    /// Size of the virtual disk.
    pub virtual_size: Bytes,
    /// What it falls through to.
    pub parent: Option<Parent>,
    /// Its time of birth, in seconds since 1970.
    pub created: i64,
}

/// How a merge is to be paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The I/O class of the worker's threads.
    pub class: IoClass,
    /// The most bytes that are moved in a second; 0 is no limit.
    pub rate: Bytes,
}

/// How a stream to import is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportFormat {
    /// Found out from the content; what is not a known format is raw.
    Auto,
    /// The bytes of the disk.
    Raw,
    /// A VHD without a parent.
    Vhd,
}

/// How an export is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// The bytes of the disk.
    Raw,
    /// A dynamic VHD without a parent.
    Vhd,
    /// A fixed VHD: the bytes of the disk, up to a whole MiB, and a footer.
    VhdFixed,
}

/// A request to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    /// What are these files? Descriptors: one each, read-only. Nothing is known of them yet, so they are not [`Handed`].
    Inspect {
        /// How each is to be read.
        formats: Vec<Format>,
    },
    /// Write new images. Descriptors: one each, read-write, empty containers.
    Create {
        /// The images.
        images: Vec<CreateImage>,
    },
    /// Mark an image hidden or visible. Descriptor: the image, read-write.
    SetHidden {
        /// The image.
        image: Handed,
        /// Hidden or visible.
        hidden: bool,
    },
    /// Make an image's virtual disk larger. Descriptor: the image, read-write.
    Grow {
        /// The image.
        image: Handed,
        /// The size that it is to have.
        size: Bytes,
    },
    /// How large must a container of explicit size be for an image with such a disk? No descriptors.
    Sizes {
        /// Its format.
        format: Format,
        /// Size of the virtual disk.
        virtual_size: Bytes,
    },
    /// Bring an image to its container's size, which is explicit: after the container has grown, or before it is cut to `size`. May be
    /// repeated. Descriptor: the image, read-write.
    Fit {
        /// The image.
        image: Handed,
        /// What it had when that was last done: where the footer was.
        before: Bytes,
        /// What it has, or is to have; whole sectors.
        size: Bytes,
    },
    /// Which bytes make these headers name these parents? Changes nothing. Descriptors: the images, read-only.
    PlanReparent {
        /// The images and their parents to be.
        images: Vec<(Handed, Parent)>,
    },
    /// Write planned bytes; the headers may be torn. Descriptors: one a patch, read-write. Answered with
    /// [`Answer::Patched`].
    ApplyPatches {
        /// The patches.
        patches: Vec<HeaderPatch>,
    },
    /// Check images. Descriptors: the images, read-only.
    Check {
        /// The images, and what the catalog says of each.
        images: Vec<(Handed, Expected)>,
    },
    /// What would mend this image? Puts the bytes that would be written over into a file, durably. Descriptors: the image, with
    /// the writer's lock; the file.
    PlanRepair {
        /// The image.
        image: Handed,
        /// What the catalog says of it.
        expected: Expected,
    },
    /// Mend the image, all but its header (D5). May be repeated. Descriptor: the image, read-write.
    Repair {
        /// The image.
        image: Handed,
        /// What the catalog says of it.
        expected: Expected,
    },
    /// Give the unused space inside an image back. May be repeated. Descriptor: the image, read-write.
    Trim {
        /// The image.
        image: Handed,
    },
    /// Read a range of a disk into a stream. Descriptors: the stream, then the chain, leaf first.
    Read {
        /// The chain.
        chain: Vec<Handed>,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: Bytes,
    },
    /// Write a range of a disk from a stream; durable when answered. Descriptors: the stream, then the chain, leaf first,
    /// the leaf read-write.
    Write {
        /// The chain.
        chain: Vec<Handed>,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: Bytes,
    },
    /// Inner merge: copy what `from` owns at or after the cursor into `into`, which is as large. Reports progress.
    /// Descriptors: `from` read-only, `into` read-write.
    Merge {
        /// The child.
        from: Handed,
        /// Its parent.
        into: Handed,
        /// All below it is there already.
        cursor: u64,
        /// Priority.
        pace: Pace,
    },
    /// Leaf merge: move what `from` owns into `into`, which is as large. Reports progress. Descriptors: both
    /// read-write.
    MoveDown {
        /// The leaf.
        from: Handed,
        /// Its parent.
        into: Handed,
        /// Give the space of what was moved back at once, because the storage is short of it; otherwise it comes back when the
        /// leaf is removed, which is quicker.
        give_back: bool,
        /// Priority.
        pace: Pace,
    },
    /// How large must containers be for `into` to take in all that `from` owns? Changes nothing. Descriptors: the two, read-only.
    Room {
        /// The child.
        from: Handed,
        /// Its parent.
        into: Handed,
    },
    /// Read a stream into a new image. Reports progress, and may ask for a larger container ([`Reply::Wants`]). Descriptors: the
    /// stream, the new container read-write.
    Import {
        /// What the stream holds.
        format: ImportFormat,
        /// The new image; its size is that of the stream's disk.
        id: ImageId,
        /// The format it gets.
        image_format: Format,
        /// Its time of birth, in seconds since 1970.
        created: i64,
    },
    /// Copy a disk into a new image without a parent. Reports progress, and may ask for a larger container ([`Reply::Wants`]).
    /// Descriptors: the chain, leaf first, then the new container read-write.
    Copy {
        /// The chain.
        chain: Vec<Handed>,
        /// The new image.
        id: ImageId,
        /// The format it gets.
        image_format: Format,
        /// Its time of birth, in seconds since 1970.
        created: i64,
    },
    /// Write a disk to a stream. Reports progress. Descriptors: the stream, then the chain, leaf first.
    Export {
        /// The chain.
        chain: Vec<Handed>,
        /// What to write.
        format: ExportFormat,
    },
    /// The running merge is to be paced otherwise from its next batch on. No descriptors, no answer of its own.
    Pace(Pace),
    /// To [`Reply::Wants`]: the size that the container has now. One that is smaller than what was asked for says that there is no
    /// space. No descriptors, no answer of its own.
    Enlarged {
        /// In bytes.
        size: Bytes,
    },
    /// Stop the running job at the next checkpoint. No descriptors, no answer of its own.
    Stop,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// Its id; [`ImageId::NONE`] where the format has none.
    pub id: ImageId,
    /// How it was read.
    pub format: Format,
    /// The parent that it names; [`ImageId::NONE`] for one that is known by its name only.
    pub parent: Option<ImageId>,
    /// Names of the parent's container, as the header and its locators have it, most telling first.
    pub parent_names: Vec<String>,
    /// Size of its virtual disk.
    pub virtual_size: Bytes,
    /// Hidden flag.
    pub hidden: bool,
    /// Written by neither us nor XenServer, or without a format of its own.
    pub foreign: bool,
    /// Whether it has a place for any block: if not, it owns nothing.
    pub owns_blocks: bool,
    /// The least bytes that its container must have: up to the end of its last block, and what follows that.
    pub needs: Bytes,
    /// Remarks, such as a missing copy of the footer; empty if all is well.
    pub remarks: Vec<String>,
}

/// A thing that a check found in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Which image (index into the request).
    pub index: usize,
    /// What is wrong.
    pub text: String,
    /// What a repair would do about it; empty if nothing.
    pub repair: String,
}

/// One thing that a repair mends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// The rule that is broken, with which the text of its problem begins.
    pub check: String,
    /// What is done about it.
    pub what: String,
}

/// What a stream turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSource {
    /// Size of the new disk.
    pub virtual_size: Bytes,
}

/// How far a long job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything below this guest offset is durable.
    pub cursor: u64,
    /// Bytes handled.
    pub bytes_done: Bytes,
    /// Bytes to handle.
    pub bytes_total: Bytes,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// Done; there is nothing to tell.
    Done,
    /// To `Inspect`: a report or what is wrong, for each.
    Reports {
        /// In the order of the request.
        reports: Vec<Result<ImageReport, Trouble>>,
    },
    /// To `Sizes`.
    Sizes {
        /// For an image without blocks.
        empty: Bytes,
        /// For one that can take every block of its disk.
        full: Bytes,
    },
    /// To `PlanReparent`.
    Patches {
        /// In the order of the request.
        patches: Vec<HeaderPatch>,
    },
    /// To `Check`.
    Problems {
        /// All that was found.
        problems: Vec<Problem>,
    },
    /// To `PlanRepair`.
    RepairPlan {
        /// What would be mended; empty if there is nothing to mend, or nothing can be.
        fixes: Vec<Fix>,
        /// The ranges whose bytes were put into the file, one after another.
        saved: Vec<(FileOffset, Bytes)>,
    },
    /// To `Repair`: the header that is still to be written, if it was damaged.
    Repaired {
        /// The patch; without writes if the header is in order.
        header: HeaderPatch,
    },
    /// To `ApplyPatches`.
    Patched {
        /// Images that have got another block table since their patch was planned; nothing was written to them.
        stale: Vec<ImageId>,
    },
    /// To `Trim`.
    Trimmed {
        /// Bytes that came free.
        freed: Bytes,
    },
    /// To `Room`, in bytes.
    Room {
        /// What `from` uses of its container as it is.
        from: Bytes,
        /// What `into` must have once all of `from` is in it.
        into: Bytes,
    },
    /// To `Import` and `Copy`.
    Imported {
        /// What came in.
        source: ImportSource,
    },
    /// To `Read`, `Write` and `Export`: bytes moved.
    Moved {
        /// How many.
        bytes: Bytes,
    },
}

/// The class of a worker's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// The storage failed.
    Io,
    /// The storage is full.
    NoSpace,
    /// The client's stream failed.
    Stream,
    /// An image is damaged.
    Damaged,
    /// A format or feature that is not supported.
    Unsupported,
    /// A stream that must not be opened.
    Unsafe,
    /// The range lies outside the disk, or a size is out of range.
    OutOfRange,
    /// Stopped on request.
    Stopped,
    /// The descriptor holds another image than was said.
    WrongImage,
    /// The worker cannot do its part (protocol, resources).
    Internal,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    /// The class.
    pub kind: TroubleKind,
    /// One line.
    pub message: String,
}

/// The end of a request.
pub type Answered = Result<Answer, Trouble>;

/// A message from a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "tell")]
pub enum Reply {
    /// A long job goes on.
    Progress(Progress),
    /// What a long job fills has an explicit size, which is too small: it goes on with [`Request::Enlarged`].
    Wants {
        /// Bytes that the container must have at least.
        size: Bytes,
    },
    /// The request is over.
    End {
        /// How.
        outcome: Answered,
    },
}
