//! The engine for every kernel: threads that wait, and reads of cached pages done on the spot.
//!
//! Invariants: those of [`Crew`]. The fallback where io_uring is absent or forbidden.

use super::crew::{Crew, Job};
use super::transfer::Transfer;
use super::{Completion, Engine, Op};
use std::io;
use std::os::fd::BorrowedFd;

/// The engine of threads.
pub(super) struct ThreadEngine {
    crew: Crew,
    batch: Vec<Job>,
    done: Vec<Completion>,
}

impl ThreadEngine {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { crew: Crew::new()?, batch: Vec::new(), done: Vec::new() })
    }
}

impl Engine for ThreadEngine {
    fn submit(&mut self, token: u64, op: Op) {
        match op.into_job(token) {
            Job::Transfer(transfer) => match transfer.copied().or_else(Transfer::cached) {
                Ok(completion) => self.done.push(completion),
                Err(transfer) => self.batch.push(Job::Transfer(transfer)),
            },
            call @ Job::Call { .. } => self.batch.push(call),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.crew.assign(&mut self.batch);
        Ok(())
    }

    fn completed(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
        self.crew.collect(into);
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.crew.signal()
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}
