//! I/O that nobody waits for: requests go in, completions come out, in any order.
//!
//! The owner is one event loop, which polls [`Engine::ready`] beside its sockets. What an engine holds at a time is bounded by
//! its owner, who counts the bytes that it submits.

use crate::buffer::AlignedBuf;
use crate::container::Container;
use catena_types::FileOffset;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Something to do.
pub enum Op {
    /// Fill `range` of the buffer from `at`; zeros past the end of the container.
    Read {
        /// From where.
        container: Arc<dyn Container>,
        /// Position in the container.
        at: FileOffset,
        /// The buffer, which comes back with the completion.
        buf: AlignedBuf,
        /// The bytes of it that are to be filled.
        range: Range<usize>,
    },
    /// Write `range` of the buffer to `at`.
    Write {
        /// To where.
        container: Arc<dyn Container>,
        /// Position in the container.
        at: FileOffset,
        /// The buffer, which comes back with the completion.
        buf: AlignedBuf,
        /// The bytes of it that are to be written.
        range: Range<usize>,
    },
    /// Anything else that waits: barriers, plans, opening an image.
    Call(Box<dyn FnOnce() -> io::Result<()> + Send>),
}

/// What became of it.
pub struct Completion {
    /// The number that it was submitted with.
    pub token: u64,
    /// How it ended.
    pub result: io::Result<()>,
    /// The buffer of a read or write.
    pub buf: Option<AlignedBuf>,
}

/// Does I/O elsewhere. All calls are made by one thread and none of them waits.
pub trait Engine {
    /// Takes an operation; it may begin at once or at [`kick`](Self::kick).
    fn submit(&mut self, token: u64, op: Op);

    /// Begins all that was submitted: called once for a batch.
    fn kick(&mut self) -> io::Result<()>;

    /// Takes the completions that there are.
    fn completed(&mut self, into: &mut Vec<Completion>);

    /// Readable while there may be completions.
    fn ready(&self) -> BorrowedFd<'_>;

    /// Its name, for people.
    fn name(&self) -> &'static str;
}
