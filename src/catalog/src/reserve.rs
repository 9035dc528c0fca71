//! Space held back on the SR, which recovery may give up so that a full SR can still delete.
//!
//! The file has no content worth keeping; it is written, not just made long, so that it owns its blocks.

use crate::catalog::Catalog;
use crate::error::Result;
use crate::store;
use std::path::Path;

const RESERVE: &str = "reserve";
/// Bytes held back.
pub(crate) const RESERVE_BYTES: u64 = 1 << 20;

/// Gives the space back to the file system.
pub(crate) fn release(dir: &Path) -> Result<()> {
    store::remove_if_there(&dir.join(RESERVE))?;
    // Some file systems free the blocks only when the removal is durable.
    store::sync_dir(dir)
}

/// Takes the space again, as far as there is any. Whether all of it is held.
pub(crate) fn hold(dir: &Path) -> Result<bool> {
    let held = store::extend_with_zeros(&dir.join(RESERVE), RESERVE_BYTES)? >= RESERVE_BYTES;
    store::sync_dir(dir)?;
    Ok(held)
}

impl Catalog {
    /// Gives the reserved space (1 MiB) back to the file system, for work that frees more than it takes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn release_reserve(&self) -> Result<()> {
        release(&self.dir)
    }

    /// Reserves the space again, as far as there is any. Returns whether all of it is held.
    ///
    /// # Errors
    /// Those of the file system, a full one excepted.
    pub fn restore_reserve(&self) -> Result<bool> {
        hold(&self.dir)
    }
}
