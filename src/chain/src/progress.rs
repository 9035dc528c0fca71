//! What a long job tells, and asks, whoever runs it.

use crate::error::Error;
use catena_types::{Bytes, GuestOffset};

/// The other end of a copy or a move. All calls come from the thread that started the job.
pub trait Progress {
    /// Called once, before anything is moved: how much there is to do.
    fn planned(&mut self, total: Bytes);

    /// The most that the next batch may hold, to keep to a rate smoothly; a batch has one block (2 MiB) at least.
    fn allowance(&mut self) -> Bytes {
        Bytes(u64::MAX)
    }

    /// Asked before `upcoming` bytes (at most 256 MiB) are moved. `false` stops the job. May block, to keep to a rate: the
    /// longer it takes, the less is asked for the next time.
    fn go_on(&mut self, upcoming: Bytes) -> bool;

    /// What has been done is durable. For a copy all that the source owns before `cursor` is in the target, and a copy that
    /// starts there goes on; for a move `cursor` only says how far it is. `done` counts from the start of this job.
    fn checkpoint(&mut self, cursor: GuestOffset, done: Bytes) -> Result<(), Error>;
}
