//! The seam between a connection and the disk: what is asked of the disk, and what becomes of it.
//!
//! A connection has checked every range against the disk's size; the disk answers each request once, in any order. Neither
//! knows the other.

use catena_blockio::AlignedBuf;
pub(crate) use catena_nbd::Extent;
use std::ops::Range;

/// What is asked of the disk. Offsets and lengths in bytes, inside the disk, aligned to nothing.
#[derive(Debug)]
pub(crate) enum Work {
    /// Answered with [`Outcome::Data`].
    Read {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
    },
    /// Write the first `len` bytes of the buffer.
    Write {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
        /// The bytes, from the first on.
        data: AlignedBuf,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Everything that was answered before is durable.
    Flush,
    /// The bytes are not needed any more; what they read as afterwards is not said.
    Trim {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// The bytes read as zero afterwards.
    Zeroes {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
        /// Durable before it is answered.
        fua: bool,
        /// Keep the space.
        no_hole: bool,
        /// Refuse if it would take as long as writing.
        fast: bool,
    },
    /// The bytes are going to be read.
    Cache {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
    },
    /// Who owns what. Answered with [`Outcome::Extents`].
    Status {
        /// Where.
        at: u64,
        /// How much.
        len: u32,
        /// One extent is enough.
        one: bool,
    },
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The bytes of a read, in order.
    Data(Vec<Segment>),
    /// It is done.
    Done,
    /// Extents from the start of the range on, at least one, ascending and without gaps, none past the range.
    Extents(Vec<Extent>),
    /// It was not done, or not all of it.
    Failed(Trouble),
}

/// Bytes of a read.
#[derive(Debug)]
pub(crate) enum Segment {
    /// These of the buffer.
    Bytes {
        /// The buffer.
        buf: AlignedBuf,
        /// What of it.
        range: Range<usize>,
    },
    /// So many zeros, which nobody owns.
    Zeros(usize),
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The storage failed.
    Io,
    /// The storage is full.
    NoSpace,
    /// It cannot be done in the way that was asked for.
    NotSupported,
    /// The disk is served for reading only.
    ReadOnly,
    /// The disk is about to be closed.
    ShuttingDown,
}
