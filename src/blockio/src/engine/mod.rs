//! I/O that nobody waits for: requests go in, completions come out, in any order.
//!
//! The owner is one event loop, which polls [`Engine::ready`] beside its sockets. What an engine holds at a time is bounded by
//! its owner, who counts the bytes that it submits.
//!
//! ```text
//!            ┌── a short copy in memory ───────────────────▶ done at once
//!  submit ───┼── aligned, and there is a descriptor ───────▶ io_uring, where that is the engine
//!            └── all others; calls; what came back short ──▶ threads that wait
//! ```

mod crew;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;
mod uring;

use self::crew::Job;
use self::threads::ThreadEngine;
use self::transfer::{Direction, Transfer};
use self::uring::UringEngine;
use crate::buffer::AlignedBuf;
use crate::container::Container;
use catena_types::FileOffset;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// The best that this kernel has.
    #[default]
    Auto,
    /// A ring that the kernel works on.
    IoUring,
    /// Threads that wait.
    Threads,
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "threads" => Ok(Self::Threads),
            _ => Err(UnknownKind),
        }
    }
}

/// There is no such engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an engine is auto, io_uring or threads")]
pub struct UnknownKind;

/// Makes an engine. The thread that calls this is the one that may use it.
pub fn open(kind: Kind) -> io::Result<Box<dyn Engine>> {
    match kind {
        // A kernel without it, or one where it is forbidden.
        Kind::Auto => open(Kind::IoUring).or_else(|_| open(Kind::Threads)),
        Kind::IoUring => Ok(Box::new(UringEngine::new()?)),
        Kind::Threads => Ok(Box::new(ThreadEngine::new()?)),
    }
}

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

impl Op {
    fn into_job(self, token: u64) -> Job {
        let (direction, container, at, buf, range) = match self {
            Self::Read { container, at, buf, range } => (Direction::Read, container, at, buf, range),
            Self::Write { container, at, buf, range } => (Direction::Write, container, at, buf, range),
            Self::Call(call) => return Job::Call { token, call },
        };
        Job::Transfer(Transfer { token, direction, container, at, buf, range, done: 0 })
    }
}

/// What became of it.
#[derive(Debug)]
pub struct Completion {
    /// The number that it was submitted with.
    pub token: u64,
    /// How it ended.
    pub result: io::Result<()>,
    /// The buffer of a read or write.
    pub buf: Option<AlignedBuf>,
}

/// Does I/O elsewhere. All calls are made by one thread and none of them waits. When an engine is dropped, what the storage is
/// working on is waited for; the rest never begins.
pub trait Engine {
    /// Takes an operation; it may begin at once or at [`kick`](Self::kick).
    fn submit(&mut self, token: u64, op: Op);

    /// Begins all that was submitted: called once for a batch, and followed by [`completed`](Self::completed) before anybody waits:
    /// [`ready`](Self::ready) does not tell of what was done at once.
    fn kick(&mut self) -> io::Result<()>;

    /// Takes the completions that there are.
    fn completed(&mut self, into: &mut Vec<Completion>);

    /// Readable while there may be completions of what was not done at once; now and then though there are none.
    fn ready(&self) -> BorrowedFd<'_>;

    /// Its name, for people.
    fn name(&self) -> &'static str;
}
