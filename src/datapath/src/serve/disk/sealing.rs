//! The barrier behind the last pointers of a leaf that was replaced.
//!
//! A quiesce ends with the pointers written, so that writes wait for one barrier only; the other one comes while the new leaf is
//! written already. Until it has come nothing is committed, so that no flush is answered that the old leaf is part of (D9), and
//! the resume is not answered, so that nobody is told of the snapshot. A power cut in between leaves of the old leaf what was
//! flushed, and perhaps more: what the disk itself would have been after a power cut at the instant of the snapshot. After a
//! kill everything is there, and the successor begins with the barrier.

use super::{Disk, Waiting};
use crate::trouble::from_io;
use catena_blockio::{Container, Engine, Op};
use catena_chain::Slot;
use std::io;
use std::sync::Arc;

impl Disk {
    /// Makes an image durable that is not written any more, if there is something to be made durable.
    pub(super) fn seal(
        &mut self,
        slot: Slot,
        container: Arc<dyn Container>,
        question: u64,
        epoch: u64,
        engine: &mut dyn Engine,
    ) {
        let written = self.targets.get_mut(slot).and_then(|target| target.commits.take_written());
        if written.is_some() {
            self.sealing = written;
            let flush = Op::Call(Box::new(move || container.flush()));
            self.start(Waiting::Sealed { question, epoch }, flush, engine);
        }
    }

    /// It is durable, or not.
    pub(super) fn sealed(&mut self, question: u64, epoch: u64, result: io::Result<()>) {
        match result {
            Ok(()) => {
                let covers = self.sealing.take().unwrap_or_default();
                self.covered(covers);
                self.retire(question, epoch);
            }
            Err(error) => {
                self.fail(&format!("the former leaf cannot be made durable: {error}"));
                self.answer(question, Err(from_io("making the former leaf durable")(error)));
            }
        }
    }
}
