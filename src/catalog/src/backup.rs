//! What is done when the owner is idle: old rows expire, the WAL is emptied, `catalog.bak` is renewed.
//!
//! `catalog.bak` is a whole catalog, checked and durable before it gets its name; a crash leaves the old one or the new
//! one (D21 says what it is good for). Times are passed in, so that a test decides what time it is.

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::rows;
use crate::state::Change;
use crate::store::{self, Store};
use catena_types::JobRecord;
use jiff::{SignedDuration, Timestamp};
use std::path::Path;

/// The checked copy, and its name until it is complete.
pub(crate) const BACKUP: &str = "catalog.bak";
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
        // What a failed job has not been able to remove is known from its row alone.
        let expired = |job: &JobRecord| job.state.is_over() && !job.has_leftovers() && job.updated < old_job;
        let over = self.state.jobs.values().filter(|job| expired(job));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at, disk, event, job, meta};
    use catena_types::{JobRecord, JobState};
    use std::fs;
    use tempfile::TempDir;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn vdis_in_backup(dir: &Path) -> usize {
        let home = TempDir::new().unwrap();
        fs::copy(dir.join(BACKUP), home.path().join(store::DATABASE)).unwrap();
        Catalog::open(home.path()).unwrap().state().vdis.len()
    }

    #[test]
    fn the_copy_follows_changes_at_most_once_a_minute() {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        catalog.commit(disk(1).to_vec()).unwrap();
        catalog.idle_at(at(0)).unwrap();
        assert_eq!(vdis_in_backup(dir.path()), 1);
        catalog.commit(disk(2).to_vec()).unwrap();
        catalog.idle_at(at(59)).unwrap();
        assert_eq!(vdis_in_backup(dir.path()), 1);
        catalog.idle_at(at(60)).unwrap();
        assert_eq!(vdis_in_backup(dir.path()), 2);
        fs::remove_file(dir.path().join(BACKUP)).unwrap();
        catalog.idle_at(at(600)).unwrap();
        assert!(!dir.path().join(BACKUP).exists(), "nothing changed, nothing is copied");
        catalog.commit(disk(3).to_vec()).unwrap();
        catalog.idle_at(at(30)).unwrap();
        assert_eq!(vdis_in_backup(dir.path()), 3, "the clock went backwards");
        catalog.commit(disk(4).to_vec()).unwrap();
        catalog.close().unwrap();
        assert_eq!(vdis_in_backup(dir.path()), 4);
        assert!(!dir.path().join(PARTIAL).exists());
        let wal = store::wal_of(&dir.path().join(store::DATABASE));
        assert!(!store::wal_in_use(&wal).unwrap(), "a catalog that was closed needs no WAL");
    }

    #[test]
    fn idle_empties_the_wal_and_keeps_its_size() {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        catalog.commit(disk(1).to_vec()).unwrap();
        assert!(catalog.store().unwrap().frames().unwrap() > 0);
        catalog.idle_at(at(0)).unwrap();
        assert_eq!(catalog.store().unwrap().frames().unwrap(), 0);
        let wal = store::wal_of(&dir.path().join(store::DATABASE));
        assert_eq!(fs::metadata(wal).unwrap().len(), store::WAL_BYTES);
    }

    #[test]
    fn answers_expire_after_a_day_and_their_numbers_do_not_come_back() {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        let row = |id, state, second| Change::PutJob(JobRecord { state, updated: at(second), ..job(id) });
        catalog
            .commit(vec![
                row(1, JobState::Running, 0),
                row(2, JobState::Done, DAY),
                row(3, JobState::Failed, 0),
                row(4, JobState::Done, 0),
            ])
            .unwrap();
        catalog.idle_at(at(DAY + HOUR)).unwrap();
        assert_eq!(catalog.state().jobs.keys().copied().collect::<Vec<_>>(), [1, 2]);
        drop(catalog);
        let mut catalog = Catalog::open(dir.path()).unwrap();
        assert_eq!(catalog.state().jobs.len(), 2);
        assert_eq!(catalog.next_job_id(), 5);
    }

    #[test]
    fn events_expire_by_age_and_by_number_and_keep_counting() {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        let old = (0..1500).map(|_| Change::Event(event(0, "old"))).collect();
        catalog.commit(old).unwrap();
        catalog.commit(vec![Change::Event(event(DAY, "young"))]).unwrap();
        let left = |catalog: &Catalog| catalog.events(None, None, usize::MAX).unwrap().len();
        catalog.idle_at(at(30 * DAY)).unwrap();
        assert_eq!(left(&catalog), 1501, "30 days are kept");
        catalog.idle_at(at(30 * DAY + 1)).unwrap();
        assert_eq!(left(&catalog), 501, "a bounded part at a time");
        catalog.idle_at(at(30 * DAY + 1)).unwrap();
        assert_eq!(left(&catalog), 1);
        catalog.idle_at(at(31 * DAY)).unwrap();
        assert_eq!(left(&catalog), 1);
        catalog.idle_at(at(32 * DAY)).unwrap();
        assert_eq!(left(&catalog), 0);
        drop(catalog);
        let mut catalog = Catalog::open(dir.path()).unwrap();
        assert_eq!(catalog.commit(vec![Change::Event(event(0, "next"))]).unwrap(), [1502]);

        let many = (0..EVENT_LIMIT).map(|_| Change::Event(event(90 * DAY, "many"))).collect();
        catalog.commit(many).unwrap();
        catalog.idle_at(at(90 * DAY)).unwrap();
        assert_eq!(left(&catalog) as u64, EVENT_LIMIT);
    }
}
