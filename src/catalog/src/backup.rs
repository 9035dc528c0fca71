//! What is done when the owner is idle: old rows expire, the WAL is emptied, `catalog.bak` is renewed.
//!
//! `catalog.bak` is a whole catalog, checked and durable before it gets its name; a crash leaves the old one or the new
//! one (D21 says what it is good for). Times are passed in, so that a test decides what time it is.

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::rows;
use crate::state::Change;
use crate::store::{self, Store};
use jiff::{SignedDuration, Timestamp};
use std::path::Path;

/// The checked copy, and its name until it is complete.
const BACKUP: &str = "catalog.bak";
const PARTIAL: &str = "catalog.bak.new";
/// The least time between two copies.
const BACKUP_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// How long events are kept, and how many at most.
const EVENT_AGE: SignedDuration = SignedDuration::from_hours(30 * 24);
const EVENT_LIMIT: u64 = 100_000;
/// Events removed in one transaction: they fit into the WAL.
const EVENT_BATCH: u32 = 1000;
/// How long the answer of a finished job is kept for a repeated request.
const ANSWER_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Jobs removed in one transaction.
const JOB_BATCH: usize = 64;

/// When the last copy was made and whether one is due.
#[derive(Debug)]
pub(crate) struct BackupDue {
    pub(crate) changed: bool,
    tried: Option<Timestamp>,
}

impl BackupDue {
    /// How old the copy is that an open finds is not known.
    pub(crate) const fn at_open() -> Self {
        Self { changed: true, tried: None }
    }

    /// A clock that went backwards makes a copy due rather than never.
    fn is_due(&self, now: Timestamp) -> bool {
        self.changed
            && self.tried.is_none_or(|tried| now < tried || now.duration_since(tried) >= BACKUP_INTERVAL)
    }
}

/// Writes `catalog.bak` anew.
pub(crate) fn write(store: &Store, dir: &Path) -> Result<()> {
    let partial = dir.join(PARTIAL);
    match store.copy(&partial) {
        Ok(()) => store::rename(dir, PARTIAL, BACKUP),
        Err(error) => {
            store::remove_database(&partial)?;
            Err(error)
        }
    }
}

impl Catalog {
    /// To be called when the owner has nothing else to do, in no pause: expires old events and finished jobs, empties
    /// the WAL, and renews `catalog.bak` where something changed and the last copy is older than a minute. Does a
    /// bounded part of the work at each call.
    ///
    /// # Errors
    /// Those of a commit; [`Error::NoSpace`] where only the copy could not be made.
    pub fn idle(&mut self) -> Result<()> {
        self.idle_at(Timestamp::now())
    }

    pub(crate) fn idle_at(&mut self, now: Timestamp) -> Result<()> {
        self.expire(now)?;
        self.store()?.checkpoint()?;
        if self.backup.is_due(now) {
            // Also after a failure: a full file system is not asked again at every idle moment.
            self.backup.tried = Some(now);
            write(self.store()?, &self.dir)?;
            self.backup.changed = false;
        }
        Ok(())
    }

    fn expire(&mut self, now: Timestamp) -> Result<()> {
        let (Ok(old_job), Ok(old_event)) = (now.checked_sub(ANSWER_AGE), now.checked_sub(EVENT_AGE)) else {
            return Ok(());
        };
        let over = self.state.jobs.values().filter(|job| job.state.is_over() && job.updated < old_job);
        let changes: Vec<_> = over.take(JOB_BATCH).map(|job| Change::RemoveJob(job.id)).collect();
        if !changes.is_empty() {
            self.commit(changes)?;
        }
        let beyond = self.state.last_event.saturating_sub(EVENT_LIMIT);
        if rows::has_expired_events(self.store()?.conn(), old_event, beyond)? {
            self.write(usize::try_from(EVENT_BATCH).unwrap_or(1) / 8, |conn| {
                rows::expire_events(conn, old_event, beyond, EVENT_BATCH)
            })?;
        }
        Ok(())
    }

    /// Ends the work with the catalog: the WAL is emptied and void, `catalog.bak` is renewed if anything changed.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] while there is doubt; the files are then left as they are for the next open.
    pub fn close(self) -> Result<()> {
        let changed = self.backup.changed;
        let (store, dir) = self.into_store()?;
        let copied = if changed { write(&store, &dir) } else { Ok(()) };
        if let Err(error @ Error::NoSpace { .. }) = &copied {
            tracing::warn!(%error, "the copy of the catalog was not renewed");
        }
        store.close(&dir)?;
        match copied {
            Err(Error::NoSpace { .. }) => Ok(()),
            other => other,
        }
    }
}
