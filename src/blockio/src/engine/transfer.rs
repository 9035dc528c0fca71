//! One read or write under way, and the ways to carry it out that need no ring.
//!
//! Invariant: `done` bytes of the range have been moved; whoever moves more goes on from there. A transfer owns its buffer
//! and its container until it has ended. Used by both engines.

use super::Completion;
use crate::buffer::AlignedBuf;
use crate::container::Container;
use catena_types::FileOffset;
use nix::errno::Errno;
use nix::libc;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// A longer one is not done in the event loop even if it only copies memory: others can be served meanwhile.
const AT_ONCE_BYTES: usize = 128 << 10;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A read or write.
pub(super) struct Transfer {
    pub(super) token: u64,
    pub(super) direction: Direction,
    pub(super) container: Arc<dyn Container>,
    pub(super) at: FileOffset,
    pub(super) buf: AlignedBuf,
    pub(super) range: Range<usize>,
    pub(super) done: usize,
}

impl Transfer {
    /// The part of the buffer that is left to do.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.buf[self.range.clone()][self.done..]
    }

    /// Where in the container that is.
    pub(super) fn rest_at(&self) -> FileOffset {
        FileOffset(self.at.0.saturating_add(self.done as u64))
    }

    /// Does what is left, however long that takes.
    pub(super) fn wait(mut self) -> Completion {
        let at = self.rest_at();
        let container = Arc::clone(&self.container);
        let result = match self.direction {
            Direction::Read => container.read_at(self.rest(), at),
            Direction::Write => container.write_at(self.rest(), at),
        };
        self.end(result)
    }

    /// Is over.
    pub(super) fn end(self, result: io::Result<()>) -> Completion {
        Completion { token: self.token, result, buf: Some(self.buf) }
    }

    /// Does it here and now where that is no more than a copy in memory: on a file system that is in memory.
    pub(super) fn copied(self) -> Result<Completion, Self> {
        if self.range.len() <= AT_ONCE_BYTES && self.container.is_in_memory() {
            Ok(self.wait())
        } else {
            Err(self)
        }
    }

    /// Whether it keeps the processor busy for long, with the page cache for its storage: then it is better done beside the event
    /// loop, on another processor, than in it.
    pub(super) fn is_long_copy(&self) -> bool {
        self.range.len() > AT_ONCE_BYTES && (self.container.is_in_memory() || self.container.alignment() == 1)
    }

    /// Reads here and now what is in the page cache. To hand a request to a thread costs more than to copy a page, and a
    /// read that would wait is refused at once.
    pub(super) fn cached(mut self) -> Result<Completion, Self> {
        let buffered = self.direction == Direction::Read && self.container.alignment() == 1;
        if !buffered || self.range.len() > AT_ONCE_BYTES {
            return Err(self);
        }
        let Some(fd) = self.bare() else { return Err(self) };
        // An error is found again by whoever waits, who tells it.
        self.done += read_without_waiting(fd, self.rest_at(), self.rest()).unwrap_or(0);
        if self.rest().is_empty() { Ok(self.end(Ok(()))) } else { Err(self) }
    }

    /// The descriptor, if what is left can go through it as it is: memory, offset and length are aligned.
    ///
    /// That goes past the container's lock, which keeps two writers of one unit apart where at least one owns only a part of
    /// it. Here whole units are written, by the one owner of the container, who has no two writes of one byte under way.
    /// The unit at the end of a file, which is written through the page cache, is written by plans only.
    pub(super) fn bare(&mut self) -> Option<RawFd> {
        let unit = self.container.alignment();
        let at = self.rest_at().0;
        let rest = self.rest();
        let aligned = at.is_multiple_of(unit as u64)
            && rest.len().is_multiple_of(unit)
            && rest.as_ptr().addr().is_multiple_of(unit);
        // The kernel's offsets are signed, and -1 is its word for a position of its own.
        let possible = at.checked_add(rest.len() as u64).is_some_and(|end| i64::try_from(end).is_ok());
        if aligned && possible { Some(self.container.descriptor()?.as_raw_fd()) } else { None }
    }
}

/// Bytes that were read; an error where any of them would have to be waited for.
fn read_without_waiting(fd: RawFd, at: FileOffset, buf: &mut [u8]) -> io::Result<usize> {
    let Ok(offset) = i64::try_from(at.0) else { return Err(Errno::EINVAL.into()) };
    let memory = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the container keeps the descriptor open, and the one piece of memory is borrowed for the length of the call.
    let count = unsafe { libc::preadv2(fd, &raw const memory, 1, offset, libc::RWF_NOWAIT) };
    Ok(usize::try_from(Errno::result(count)?).unwrap_or(0))
}
