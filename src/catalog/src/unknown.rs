//! D19: a whole new file in place of a catalog whose truth is in doubt, and the way back from an unknown outcome.
//!
//! The old catalog is two files, `catalog.db` and its WAL; the new one is a single file. SQLite would replay the old WAL
//! onto the new file, so a plain rename is not enough. The replacement goes by name:
//!
//! ```text
//!  step                                         a crash after it leaves
//!  1 copy everything to catalog.db.new, fsync   the old pair (the copy has no meaning)
//!  2 rename it to catalog.next, fsync dir       catalog.next: it alone counts, the old pair has no meaning
//!  3 remove the WAL, fsync dir                  catalog.next
//!  4 rename it to catalog.db, fsync dir         catalog.db, complete without a WAL
//! ```
//!
//! Steps 3 and 4 are repeated by whoever opens the catalog and finds `catalog.next`. The WAL is gone durably before the
//! new file gets the name that the WAL belongs to. If step 2 fails half way, either name may survive a crash; both hold
//! the same content, because nothing is changed until the replacement is complete.
//!
//! An open that finds a WAL in use does the same: its predecessor may have died after a failed COMMIT, and the page
//! cache shows what the disk may never have got. A catalog that was closed has a void WAL and needs none of this.

use crate::catalog::{Backing, Catalog};
use crate::error::{Error, Result};
use crate::reserve;
use crate::rows;
use crate::schema;
use crate::store::{self, DATABASE, Store};
use catena_types::CrashPoint;
use std::path::Path;

/// A new catalog that is not complete.
pub(crate) const PARTIAL: &str = "catalog.db.new";
/// A new catalog that is complete: from here on it is the catalog.
pub(crate) const NEXT: &str = "catalog.next";

const COPIED: CrashPoint = CrashPoint("catalog.replace.copied");
const NAMED: CrashPoint = CrashPoint("catalog.replace.named");
const WAL_REMOVED: CrashPoint = CrashPoint("catalog.replace.wal-removed");
const RENAMED: CrashPoint = CrashPoint("catalog.replace.renamed");

/// The places inside a replacement where a debug build can be told to die.
pub const CRASH_POINTS: &[CrashPoint] = &[COPIED, NAMED, WAL_REMOVED, RENAMED];

/// Step 1: the content of `store` into a new file, with the reserve's space where the file system is full.
fn copy(store: &Store, dir: &Path) -> Result<()> {
    let partial = dir.join(PARTIAL);
    match store.copy(&partial) {
        Err(Error::NoSpace { .. }) => reserve::release(dir).and_then(|()| store.copy(&partial))?,
        other => other?,
    }
    COPIED.pass();
    Ok(())
}

/// Step 2, for a new file that is complete and durable under its partial name. From its first instant, also if it fails,
/// the old files may not be changed any more.
pub(crate) fn publish(dir: &Path) -> Result<()> {
    store::rename(dir, PARTIAL, NEXT)?;
    NAMED.pass();
    Ok(())
}

/// Steps 3 and 4, if a replacement was begun; no connection is open. Also removes copies that were never completed.
pub(crate) fn finish(dir: &Path) -> Result<()> {
    if dir.join(NEXT).try_exists().map_err(Error::io("looking for a new catalog"))? {
        store::remove_if_there(&store::wal_of(&dir.join(DATABASE)))?;
        store::sync_dir(dir)?;
        WAL_REMOVED.pass();
        store::rename(dir, NEXT, DATABASE)?;
        RENAMED.pass();
    }
    store::remove_database(&dir.join(PARTIAL))
}

/// Opens the catalog of `dir` so that what it shows is what the disk has.
pub(crate) fn open_durably(dir: &Path) -> Result<Store> {
    finish(dir)?;
    let doubtful = store::wal_in_use(&store::wal_of(&dir.join(DATABASE)))?;
    let mut store = Store::open(dir)?;
    schema::version(store.conn())?;
    if doubtful {
        store = rewrite(store, dir)?;
    }
    schema::upgrade(store.conn())?;
    Ok(store)
}

/// Replaces the catalog by what `store` shows. On a full file system it is used as it is: the doubt is a theoretical one
/// unless the storage failed, and a full SR must still be able to delete.
fn rewrite(store: Store, dir: &Path) -> Result<Store> {
    match copy(&store, dir) {
        Ok(()) => {
            publish(dir)?;
            drop(store);
            finish(dir)?;
            Store::open(dir)
        }
        Err(error @ Error::NoSpace { .. }) => {
            tracing::warn!(%error, "the catalog was not closed and is used without being rewritten");
            store::remove_database(&dir.join(PARTIAL))?;
            Ok(store)
        }
        Err(error) => Err(error),
    }
}

impl Catalog {
    /// Closes the files, so that their file system can be mounted anew after its storage has failed. From here on as after
    /// [`Error::OutcomeUnknown`]: [`resolve_unknown`](Self::resolve_unknown) opens what is there then, which is what the storage has:
    /// nothing of what the system had in memory outlives a mount.
    pub fn let_go(&mut self) {
        self.doubt("the storage of the catalog has failed".to_owned());
        if let Backing::Doubtful { store, .. } = &mut self.backing {
            *store = None;
        }
    }

    /// Ends the doubt after [`Error::OutcomeUnknown`]: afterwards [`state`](Self::state) is what is durably in the
    /// catalog, and says whether the commit took effect. Does nothing where there is no doubt.
    ///
    /// # Errors
    /// Those of the file system; the doubt goes on, and the call can be repeated.
    pub fn resolve_unknown(&mut self) -> Result<()> {
        let Backing::Doubtful { store, .. } = &mut self.backing else { return Ok(()) };
        if let Some(old) = store {
            copy(old, &self.dir)?;
            publish(&self.dir)?;
            // Only now: until the new file counts, the old one is the catalog, and its lock is held.
            *store = None;
        }
        let store = open_durably(&self.dir)?;
        let (state, last_job) = rows::load(store.conn())?;
        self.state = state;
        self.last_job = self.last_job.max(last_job);
        self.backing = Backing::Sound(store);
        Ok(())
    }
}
