//! Inner merge: copies an immutable layer into its parent, with a cursor.
//!
//! Invariants: the cursor covers only what is durable in the target (D1), so that a copy that is taken up at the last
//! checkpoint after a crash leaves nothing out; what is copied twice is copied equal, since the source does not change.
//! Memory: 16 MiB of buffers and 8 bytes for each block that the source owns. Called by the mover for a hidden image
//! and its parent: [child, source, target] reads the same at every instant.

use crate::error::Error;
use crate::layer::{Layer, LayerMut};
use crate::mover::Mover;
use crate::progress::Progress;
use crate::survey::{Pace, Survey, bytes_of};
use catena_types::{Bytes, GuestOffset};
use std::time::Instant;

/// What a finished copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOutcome {
    /// Where it ended: the end of the source.
    pub cursor: GuestOffset,
    /// Bytes that the source owned at or after the cursor it started from; all of them are in the target.
    pub bytes: Bytes,
}

/// Copies all that `source` owns at or after `cursor` into `target` and makes it durable.
///
/// The target must be at least as large as the source ([`Error::OutOfRange`]). With [`Error::Stopped`] the last checkpoint
/// covers everything that was copied; with any other error the target is as valid as before, and the copy can be
/// taken up again at the last checkpoint.
pub fn copy(
    source: &dyn Layer,
    target: &mut dyn LayerMut,
    cursor: GuestOffset,
    control: &mut dyn Progress,
) -> Result<CopyOutcome, Error> {
    copy_at(Pace::NORMAL, source, target, cursor, control)
}

/// [`copy`] at a given pace.
pub(crate) fn copy_at(
    pace: Pace,
    source: &dyn Layer,
    target: &mut dyn LayerMut,
    cursor: GuestOffset,
    control: &mut dyn Progress,
) -> Result<CopyOutcome, Error> {
    fits(source, target)?;
    let mut survey = Survey::of(source, cursor, pace)?;
    let bytes = survey.total();
    control.planned(bytes);
    let mut mover = Mover::new();
    let mut run = Run { cursor, done: Bytes(0), durable: Bytes(0), last: Instant::now() };
    while let Some(batch) = survey.next_batch(control.allowance()) {
        let upcoming = bytes_of(batch);
        if !control.go_on(upcoming) {
            run.checkpoint(target, control)?;
            return Err(Error::Stopped);
        }
        mover.run(source, target, batch, cursor)?;
        run.done.0 += upcoming.0;
        run.cursor = batch.last().map_or(run.cursor, |work| work.block.next().start());
        if run.is_due(pace) {
            run.checkpoint(target, control)?;
        }
    }
    run.cursor = run.cursor.max(GuestOffset(source.virtual_size().0));
    run.checkpoint(target, control)?;
    Ok(CopyOutcome { cursor: run.cursor, bytes })
}

/// How far a copy is, and how much of that is durable.
struct Run {
    cursor: GuestOffset,
    done: Bytes,
    durable: Bytes,
    last: Instant,
}

impl Run {
    fn is_due(&self, pace: Pace) -> bool {
        self.done.0 - self.durable.0 >= pace.checkpoint_bytes || self.last.elapsed() >= pace.checkpoint_time
    }

    fn checkpoint(&mut self, target: &mut dyn LayerMut, control: &mut dyn Progress) -> Result<(), Error> {
        // D1: a power cut after the cursor was recorded must find in the target what it covers.
        target.flush()?;
        self.durable = self.done;
        self.last = Instant::now();
        control.checkpoint(self.cursor, self.done)
    }
}

/// Refuses a target that cannot hold what the source owns (D6: it would be clipped).
pub(crate) fn fits(source: &dyn Layer, target: &dyn Layer) -> Result<(), Error> {
    let (from, to) = (source.virtual_size(), target.virtual_size());
    if to < from {
        return Err(Error::OutOfRange(format!(
            "a disk of {} bytes does not fit into one of {}",
            from.0, to.0
        )));
    }
    Ok(())
}
