//! Reading a stream that only flows: ahead, without ever blocking where a stop of the job would not be heard.
//!
//! What was read and not taken is kept, so that the beginning can be looked at first. [`Inflow::body`] holds the last 512 bytes
//! of the stream back: they may be the footer of a VHD, and that is known only when the stream ends.

use crate::supervisor::Supervisor;
use crate::trouble::stream_error;
use catena_chain::Error;
use nix::poll::PollFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

/// The most that one read asks for: twice what a pipe holds.
const READ_BYTES: usize = 128 << 10;
/// Bytes that may be a footer.
const TAIL: usize = 512;

/// A flowing stream and what was read ahead of it.
pub(crate) struct Inflow {
    file: File,
    /// Bytes from the stream, up to `filled`; those before `taken` are of no more use.
    ahead: Vec<u8>,
    taken: usize,
    filled: usize,
    /// Position in the stream of the next byte to be taken.
    at: u64,
    ended: bool,
    /// How many bytes may still be read: what comes after them is not ours.
    left: u64,
    patience: Option<Duration>,
}

impl Inflow {
    /// All of a stream from its present position on.
    pub(crate) const fn new(file: File) -> Self {
        Self {
            file,
            ahead: Vec::new(),
            taken: 0,
            filled: 0,
            at: 0,
            ended: false,
            left: u64::MAX,
            patience: None,
        }
    }

    /// The next `length` bytes of a stream. Without a byte for `patience` it counts as broken.
    pub(crate) fn part(file: File, length: u64, patience: Option<Duration>) -> Self {
        Self { left: length, patience, ..Self::new(file) }
    }

    /// Bytes taken so far.
    pub(crate) const fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes, without taking them: at least `count` unless the stream ends before.
    pub(crate) fn peek(&mut self, count: usize, supervisor: &mut Supervisor<'_>) -> Result<&[u8], Error> {
        while self.filled - self.taken < count && !self.ended {
            self.more(supervisor)?;
        }
        Ok(&self.ahead[self.taken..self.filled])
    }

    /// Takes what comes next, at most `count` bytes; fewer, or none, only where the stream ends.
    pub(crate) fn next(&mut self, count: usize, supervisor: &mut Supervisor<'_>) -> Result<&[u8], Error> {
        let there = self.peek(count, supervisor)?.len().min(count);
        self.take(there);
        Ok(&self.ahead[self.taken - there..self.taken])
    }

    /// Fills `buf` with what comes next, but for the last 512 bytes of the stream; returns how much it was.
    pub(crate) fn body(&mut self, buf: &mut [u8], supervisor: &mut Supervisor<'_>) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buf.len() {
            let there = self.peek(TAIL + 1, supervisor)?;
            let part = there.len().saturating_sub(TAIL).min(buf.len() - filled);
            if part == 0 {
                break;
            }
            buf[filled..filled + part].copy_from_slice(&there[..part]);
            self.take(part);
            filled += part;
        }
        Ok(filled)
    }

    /// Passes over `count` bytes, but for the last 512 of the stream; returns how many it were.
    pub(crate) fn skip(&mut self, count: u64, supervisor: &mut Supervisor<'_>) -> Result<u64, Error> {
        let mut skipped = 0;
        while skipped < count {
            let there = self.peek(TAIL + 1, supervisor)?.len().saturating_sub(TAIL);
            let part = there.min(usize::try_from(count - skipped).unwrap_or(usize::MAX));
            if part == 0 {
                break;
            }
            self.take(part);
            skipped += part as u64;
        }
        Ok(skipped)
    }

    /// What was held back, at most 512 bytes, once the [body](Self::body) is at its end.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.ahead[self.taken..self.filled]
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        self.at += count as u64;
    }

    /// Reads once.
    fn more(&mut self, supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        supervisor.ready(self.file.as_fd(), PollFlags::POLLIN, self.patience)?;
        let wanted = usize::try_from(self.left).unwrap_or(READ_BYTES).min(READ_BYTES);
        if self.ahead.len() - self.filled < wanted {
            self.ahead.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
            self.ahead.resize(self.ahead.len().max(self.filled + wanted), 0);
        }
        match self.file.read(&mut self.ahead[self.filled..self.filled + wanted]) {
            Ok(count) => {
                self.filled += count;
                self.left -= count as u64;
                self.ended = count == 0 || self.left == 0;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(stream_error("reading from the stream")(error)),
        }
        Ok(())
    }
}
