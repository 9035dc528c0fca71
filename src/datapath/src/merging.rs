//! The two merges, on open images: the order of their steps is the chain crate's.
//!
//! The target has the size of the source already: a target that grows moves blocks, and others read it while a merge runs.

use crate::crash;
use crate::open::{Caching, Descriptors};
use crate::supervisor::Supervisor;
use crate::trouble::{from_chain, from_vhd, trouble};
use catena_chain::{Layer, copy};
use catena_control::{Answer, Answered, Handed, Trouble, TroubleKind};
use catena_types::GuestOffset;
use catena_vhd::{Image, Mode};

/// Inner merge: copies what `from` owns at or after the cursor into `into`.
pub(crate) fn merge(
    from: &Handed,
    into: &Handed,
    cursor: u64,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let source = fds.image(from, Mode::ReadOnly, Caching::Direct)?;
    let mut target = fds.image(into, Mode::ReadWrite, Caching::Direct)?;
    fits(&source, &target)?;
    let copied = copy(&source, &mut target, GuestOffset(cursor), supervisor);
    end(copied.map(drop), [target])
}

/// Leaf merge: moves what `from` owns into `into`.
pub(crate) fn move_down(
    from: &Handed,
    into: &Handed,
    give_back: bool,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let mut leaf = fds.image(from, Mode::ReadWrite, Caching::Direct)?;
    let mut parent = fds.image(into, Mode::ReadWrite, Caching::Direct)?;
    fits(&leaf, &parent)?;
    if !give_back {
        leaf.keep_space().map_err(|error| from_vhd(&error))?;
    }
    let moved = catena_chain::move_down(&mut leaf, &mut parent, supervisor);
    end(moved, [parent, leaf])
}

/// How large the containers must be for a merge.
pub(crate) fn room(from: &Handed, into: &Handed, fds: &mut Descriptors) -> Answered {
    let source = fds.image(from, Mode::ReadOnly, Caching::Buffered)?;
    let target = fds.image(into, Mode::ReadOnly, Caching::Buffered)?;
    Ok(Answer::Room { from: source.info().physical_end, into: target.room_for(&source) })
}

/// D6: a layer is clipped at its own size, so a smaller target would lose what lies past its end.
fn fits(source: &Image, target: &Image) -> Result<(), Trouble> {
    if target.virtual_size() < source.virtual_size() {
        return Err(trouble(TroubleKind::OutOfRange, "the image below is smaller than the one above it"));
    }
    Ok(())
}

/// Closes what was written, also after a stop or a failure, so that the images are as complete as they can be.
fn end<const N: usize>(outcome: Result<(), catena_chain::Error>, written: [Image; N]) -> Answered {
    if outcome.is_ok() {
        crash::MERGED.pass();
    }
    let closed = written.map(Image::close).into_iter().collect::<Result<Vec<()>, _>>();
    outcome.map_err(|error| from_chain(&error))?;
    closed.map_err(|error| from_vhd(&error))?;
    Ok(Answer::Done)
}
