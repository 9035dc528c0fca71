//! What every connection works on: the disk, the engine under it, and the requests between them.

use super::disk::Disk;
use super::figures::Figures;
use super::limits::Limiter;
use super::underway::{Place, Table};
use super::work::{Outcome, Segment, Work};
use catena_blockio::{Completion, Engine, Op};
use std::io;
use std::time::Instant;

/// Owned by the event loop.
pub(crate) struct Core {
    /// The disk.
    pub(crate) disk: Disk,
    /// What does its I/O.
    pub(crate) engine: Box<dyn Engine>,
    /// Requests that were read and are not answered.
    pub(crate) under_way: Table,
    /// What was answered, and how long it took.
    pub(crate) figures: Figures,
    /// How much may be taken in a second.
    pub(crate) limiter: Limiter,
    /// The time, as of this turn of the loop.
    pub(crate) now: Instant,
    /// What was [called](Self::call) has ended.
    pub(crate) called: Option<io::Result<()>>,
    /// Kept for its memory.
    completions: Vec<Completion>,
}

/// The number of a call of ours; the disk's own count from 0.
const CALL: u64 = u64::MAX;

impl Core {
    /// With nothing under way.
    pub(crate) fn new(disk: Disk, engine: Box<dyn Engine>) -> Self {
        let now = Instant::now();
        Self {
            disk,
            engine,
            under_way: Table::default(),
            figures: Figures::default(),
            limiter: Limiter::new(now),
            now,
            called: None,
            completions: Vec::new(),
        }
    }

    /// Hands a request, or a part of one, to the disk.
    pub(crate) fn submit(&mut self, place: Place, work: Work) {
        let number = self.under_way.part(place);
        self.disk.submit(number, work, &mut *self.engine);
    }

    /// Does something that waits where it holds nobody up; one at a time.
    pub(crate) fn call(&mut self, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.engine.submit(CALL, Op::Call(Box::new(work)));
    }

    /// Begins all I/O that was submitted, and takes what is complete: also what became complete at once.
    pub(crate) fn pump(&mut self) -> io::Result<()> {
        loop {
            self.engine.kick()?;
            self.engine.completed(&mut self.completions);
            if self.completions.is_empty() {
                return Ok(());
            }
            for completion in self.completions.drain(..) {
                if completion.token == CALL {
                    self.called = Some(completion.result);
                } else {
                    self.disk.completed(completion, &mut *self.engine);
                }
            }
        }
    }

    /// Takes back the buffers of an answer that nobody wants.
    pub(crate) fn discard(&mut self, outcome: Outcome) {
        if let Outcome::Data(segments) = outcome {
            for segment in segments {
                if let Segment::Bytes { buf, .. } = segment {
                    self.disk.pool().give(buf);
                }
            }
        }
    }
}
