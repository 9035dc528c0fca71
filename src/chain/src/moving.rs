//! Leaf merge of a disk that nobody has open: empties a leaf into its parent.
//!
//! Invariant: [leaf, parent] reads the same at every instant and after a crash at any instant, so there is no cursor: what
//! is left to do is what the leaf owns. A batch is copied, made durable in the parent, and then given up by the
//! leaf (D2). Called by the mover with the parent's other readers gone (D15).

use crate::copy::fits;
use crate::error::Error;
use crate::layer::LayerMut;
use crate::mover::Mover;
use crate::progress::Progress;
use crate::survey::{Pace, Survey, bytes_of};
use catena_types::{Bytes, GuestOffset};

/// Moves all that `leaf` owns into `parent`; when it returns `Ok`, the leaf durably owns nothing.
///
/// The parent must be at least as large as the leaf ([`Error::OutOfRange`]). After [`Error::Stopped`] or any other error
/// the same call goes on where this one ended.
pub fn move_down(
    leaf: &mut dyn LayerMut,
    parent: &mut dyn LayerMut,
    control: &mut dyn Progress,
) -> Result<(), Error> {
    move_down_at(Pace::NORMAL, leaf, parent, control)
}

/// [`move_down`] at a given pace.
pub(crate) fn move_down_at(
    pace: Pace,
    leaf: &mut dyn LayerMut,
    parent: &mut dyn LayerMut,
    control: &mut dyn Progress,
) -> Result<(), Error> {
    fits(leaf, parent)?;
    // D2: sectors that an earlier, killed move gave up may be clear in the system's cache only.
    leaf.flush()?;
    let mut survey = Survey::of(leaf, GuestOffset(0), pace)?;
    control.planned(survey.total());
    let mut mover = Mover::new();
    let mut done = Bytes(0);
    while let Some(batch) = survey.next_batch(control.allowance()) {
        let upcoming = bytes_of(batch);
        if !control.go_on(upcoming) {
            return Err(Error::Stopped);
        }
        let reached = batch.last().map_or(GuestOffset(0), |work| work.block.next().start());
        let moved = mover.run(leaf, parent, batch, GuestOffset(0))?;
        // D1, D2: a power cut between the two finds the sectors in the parent before the leaf lets go of them.
        parent.flush()?;
        leaf.give_up(&moved)?;
        done.0 += upcoming.0;
        control.checkpoint(reached, done)?;
    }
    Ok(())
}
