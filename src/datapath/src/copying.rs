//! A disk's chain becomes a new image without a parent: all that it holds, and no more.

use crate::intake::Intake;
use crate::open::{Caching, Descriptors};
use crate::supervisor::Supervisor;
use crate::trouble::from_chain;
use catena_chain::{Chain, stream};
use catena_control::{Answer, Answered, Handed, ImportSource, Trouble};
use catena_types::{BLOCK_BYTES, Bytes, GuestOffset, ImageId};

/// Copies a chain into the image of the descriptor after the chain's.
pub(crate) fn copy(
    chain: &[Handed],
    id: ImageId,
    created: i64,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let chain = fds.chain(chain, Caching::Direct)?;
    let intake = Intake::new(id, created, Some(chain.virtual_size()), fds)?;
    let virtual_size = fill(&chain, intake, supervisor)?;
    supervisor.all_done();
    Ok(Answer::Imported { source: ImportSource { virtual_size } })
}

/// Everything of the chain goes into the image; returns the size of the disk.
pub(crate) fn fill(
    chain: &Chain,
    mut intake: Intake,
    supervisor: &mut Supervisor<'_>,
) -> Result<Bytes, Trouble> {
    let size = chain.virtual_size();
    supervisor.total(size);
    let whole = GuestOffset(0)..GuestOffset(size.0);
    let copied = stream(chain, whole, Bytes(BLOCK_BYTES), |at, piece| intake.take(at, piece, supervisor));
    copied.map_err(|error| from_chain(&error))?;
    intake.close(size)
}
