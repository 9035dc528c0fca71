//! What a keeper asks of the process that serves a disk, and what it answers.
//!
//! The keeper connects to the process's control socket (sequenced packets, one connection at a time counts: the newest), says
//! [`Ask::Hello`] and finds out what it is serving; so a keeper that was started anew adopts it. Every question has one
//! [`Said::Answer`], in order; [`Said::News`] come in between at any time.
//!
//! The chain changes in two steps, each with a generation that the keeper counts up:
//!
//! ```text
//!             prepare(g)            quiesce(g)               resume(g, swap)
//!   serving ─────────────▶ prepared ───────────▶ quiesced ───────────────────▶ serving [new leaf, old chain]
//!      ▲                                            │ resume(g, keep)
//!      └────────────────────────────────────────────┘
//!      ▲   relink(g, chain)  : the same data through other images (an inner merge is over); nobody is held up
//!      └── move_down .. end  : a leaf merge, see [`Ask::MoveDown`]
//! ```
//!
//! Only the keeper ends a quiesce (D20): if it dies the process stays quiesced until the next one has asked the catalog.

use crate::messages::{Handed, Trouble};
use catena_types::{Bytes, HeaderPatch, ImageId, IoClass, VdiUuid};
use serde::{Deserialize, Serialize};

/// The size of a disk's `pending` file in bytes: made with it, all of it allocated, and zeroes (D7).
pub const PENDING_BYTES: u64 = 4096 + 1024 * 576;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    /// Who are you, and what are you serving? Answered with [`Told::Hello`].
    Hello,
    /// Open the image that is to be the next leaf; it must be empty, and as large as the disk. Replaces what was prepared
    /// before. Descriptors: the image, read-write and locked; the present leaf, read-only, through which it is read once it is
    /// under the new one (D12).
    Prepare {
        /// Counted up by the keeper.
        generation: u64,
        /// The image.
        leaf: Handed,
    },
    /// Hold writes and flushes back, let those under way end, write everything to the leaf. Reads go on. Answered with
    /// [`Told::Quiesced`] when all of it is true; what was flushed is durable then, and all of it when the resume is answered.
    Quiesce {
        /// Of the preparation.
        generation: u64,
    },
    /// Go on, in the way that the catalog says. Also answered where nothing is quiesced.
    Resume {
        /// Of the preparation.
        generation: u64,
        /// True: with the prepared leaf on top of the chain, the old leaf only being read from now on, durable and its writable
        /// descriptor closed when this is answered. False: as before, what was prepared is forgotten.
        swap: bool,
    },
    /// Serve the same data through these images from now on; answered when no read of an image that is not named any more is
    /// under way. The leaf stays what it is. Descriptors: those that are marked, in their order, read-only.
    Relink {
        /// Counted up by the keeper.
        generation: u64,
        /// The chain, leaf first, and whether an image comes with a descriptor: it is then opened anew, since it has changed.
        chain: Vec<(Handed, bool)>,
    },
    /// Write planned bytes to the leaf (D12), durably. The header in memory is changed with it.
    Patch {
        /// The patches, all of them of the leaf.
        patches: Vec<HeaderPatch>,
    },
    /// Mark the leaf hidden or visible (D12), durably. Refused while the leaf is just growing: ask again.
    SetHidden {
        /// Which.
        hidden: bool,
    },
    /// Make the disk larger, while it is quiesced: reads that come meanwhile wait. New connections see the new size. Durable when
    /// answered.
    Grow {
        /// The size that it is to have.
        size: Bytes,
    },
    /// Leaf merge: empty the leaf into the next image of the chain, which becomes a second image that is written (D14). Answered
    /// when it has begun; [`News::Moved`] tells how far it is. Descriptor: that image, read-write and locked. Where it is open
    /// already, there is none, and only the rate changes; how far it is is told again.
    MoveDown {
        /// Counted up by the keeper.
        generation: u64,
        /// The image.
        into: Handed,
        /// The most bytes that are moved in a second; 0 is no limit.
        rate: Bytes,
    },
    /// End the leaf merge. `complete`: the leaf owns nothing, and is dropped from the chain; otherwise as D14 says, and the
    /// leaf is the only image that is written again.
    EndMove {
        /// Of the merge.
        generation: u64,
        /// Whether the catalog says that it is over.
        complete: bool,
    },
    /// Keep room in the images that are written, where their containers are of explicit size: when new blocks have less than `room`
    /// bytes left, a container is asked for that is larger by a multiple of `chunk` ([`News::Grow`]). No `room`, as at first: none
    /// is asked for. What was asked for before is asked for again.
    Watermark {
        /// How much, in bytes.
        room: Bytes,
        /// In which steps containers grow, in bytes.
        chunk: Bytes,
    },
    /// The container of an image that is written has this size now, or more; also said, with the size that it has, when it could not be
    /// made larger: writes that wait for that then wait for the storage, or fail, as they would otherwise. Answered when the image
    /// makes use of it, durably; what is asked meanwhile waits.
    Enlarged {
        /// The image.
        image: ImageId,
        /// The size of its container.
        size: Bytes,
    },
    /// How the disk's requests are to be limited.
    Limit(Limits),
    /// Answered with [`Told::Stats`].
    Stats,
    /// Flush, close the connections and the images, answer, end.
    Stop,
}

/// Limits of one disk; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests in a second, on average.
    pub iops: u64,
    /// Bytes in a second, on average.
    pub bytes: u64,
    /// Requests that may come at once after a pause; 0: a tenth of a second's.
    pub iops_burst: u64,
    /// Bytes that may come at once after a pause; 0: a tenth of a second's.
    pub bytes_burst: u64,
    /// The I/O class of the process; none: as it was started.
    pub class: Option<IoClass>,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// To the oldest question that has none yet.
    Answer(Result<Told, Trouble>),
    /// Unasked.
    News(News),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "told")]
pub enum Told {
    /// It is done.
    Done,
    /// Everything is on the leaf, and writes are held back.
    Quiesced {
        /// Whether the leaf owns nothing (operations.md, clone).
        leaf_is_empty: bool,
    },
    /// What is being served.
    Hello(Hello),
    /// Figures.
    Stats(Box<Stats>),
}

/// What a process is serving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The disk.
    pub vdi: VdiUuid,
    /// The process.
    pub pid: u32,
    /// Whether it serves for reading only.
    pub read_only: bool,
    /// The last generation that it has heard of.
    pub generation: u64,
    /// The images, leaf first.
    pub chain: Vec<ImageId>,
    /// The image of an open preparation.
    pub prepared: Option<ImageId>,
    /// Writes are being held back for this generation.
    pub quiesced: Option<u64>,
    /// A leaf merge is open into this image.
    pub moving_into: Option<ImageId>,
    /// Why nothing is written any more: the storage has failed.
    #[serde(default)]
    pub failed: Option<String>,
    /// Size of the disk, which is that of its leaf; none from a process of an earlier version.
    #[serde(default)]
    pub size: Option<Bytes>,
}

/// What happened unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "news")]
pub enum News {
    /// The storage is full and writes are waiting.
    StorageFull,
    /// They go on.
    StorageFree,
    /// The storage failed; the client was told.
    StorageFailed {
        /// What, in words.
        message: String,
    },
    /// How far a leaf merge is.
    Moved {
        /// Bytes moved.
        done: Bytes,
        /// Bytes that the leaf still owns; 0: durably none.
        left: Bytes,
    },
    /// Little room is left in the container of an image that is written. Said once, until [`Ask::Enlarged`] or [`Ask::Watermark`];
    /// writes that find no room wait meanwhile, without a word about it.
    Grow {
        /// The image.
        image: ImageId,
        /// The size that its container should have; never more than what its disk can fill.
        size: Bytes,
    },
    /// A leaf merge goes no further by itself, and stays open until the keeper ends it.
    MoveFailed {
        /// Why, in words.
        message: String,
    },
}

/// Figures of one served disk, all since its process began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests that read, and what they took.
    pub read: Served,
    /// Requests that wrote, zeroed or discarded.
    pub write: Served,
    /// Requests that flushed.
    pub flush: Served,
    /// Requests that are being served now.
    pub queue_depth: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// How often writes were held back for a change of the chain, and the longest time in microseconds.
    pub pauses: u64,
    /// The longest of them, in microseconds.
    pub longest_pause_us: u64,
    /// `io_uring` or `threads`.
    pub engine: String,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// How many were answered.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many took less than 2^n microseconds and not less than half of that, for n from 0 on.
    pub latency: Vec<u64>,
}
