//! The catalog as its owner uses it: open, read, commit.
//!
//! Only the owner thread of a keeper has a [`Catalog`]. States:
//!
//! ```text
//!          COMMIT: I/O error            new file written, copied, renamed
//!  Sound ─────────────────────▶ Doubtful ─────────────────────────────────▶ Sound
//!                                  │ ▲
//!                                  └─┘ the storage still fails
//! ```

use crate::backup::BackupDue;
use crate::check;
use crate::error::{Error, Result};
use crate::reserve;
use crate::rows;
use crate::schema;
use crate::state::{Change, Meta, State};
use crate::store::{self, DATABASE, Store};
use crate::unknown;
use catena_types::{EventRecord, JobId};
use jiff::Timestamp;
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// The open catalog of one SR.
#[derive(Debug)]
pub struct Catalog {
    pub(crate) dir: PathBuf,
    pub(crate) backing: Backing,
    pub(crate) state: State,
    pub(crate) last_job: JobId,
    pub(crate) backup: BackupDue,
    interrupted: bool,
}

/// Whether the file can be trusted.
#[derive(Debug)]
pub(crate) enum Backing {
    /// It holds what `state` says.
    Sound(Store),
    /// D19: the outcome of the last commit is not known. No store once its replacement has begun.
    Doubtful { store: Option<Store>, reason: String },
}

impl Catalog {
    /// Makes the catalog of a new SR in `dir` (the `.catena` directory, which exists) and opens it. A crash leaves none or
    /// a complete one.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one.
    pub fn create(dir: &Path, meta: Meta) -> Result<Self> {
        for name in [DATABASE, unknown::NEXT] {
            let path = dir.join(name);
            if path.try_exists().map_err(Error::io("looking for a catalog"))? {
                return Err(Error::Exists(path));
            }
        }
        let first = State::empty(meta);
        store::build(&dir.join(unknown::PARTIAL), |conn| {
            schema::initialise(conn)?;
            rows::put_meta(conn, &first.meta)
        })?;
        unknown::publish(dir)?;
        let catalog = Self::open(dir)?;
        reserve::hold(dir)?;
        Ok(catalog)
    }

    /// Opens the catalog in `dir`, finishing what a crash interrupted.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Newer`], [`Error::Locked`], [`Error::Damaged`]: nothing was changed then.
    pub fn open(dir: &Path) -> Result<Self> {
        let interrupted = store::wal_in_use(&store::wal_of(&dir.join(DATABASE)))?;
        let store = unknown::open_durably(dir)?;
        let (state, last_job) = rows::load(store.conn())?;
        Ok(Self {
            interrupted,
            dir: dir.to_owned(),
            backing: Backing::Sound(store),
            state,
            last_job,
            backup: BackupDue::at_open(),
        })
    }

    /// Whether nothing is missing of the catalog in `dir` that could make it look sound and old: its WAL has the size that it is always
    /// given, or a complete successor is there. Asked where the file system was repaired. Not so also where the WAL was never as large,
    /// or was removed by hand.
    pub fn is_whole(dir: &Path) -> Result<bool> {
        let next = dir.join(unknown::NEXT).try_exists().map_err(Error::io("looking for a new catalog"))?;
        Ok(next || store::has_full_wal(dir)?)
    }

    /// Whether the predecessor of this owner did not close the catalog.
    pub const fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether the outcome of the last commit is unknown (D19).
    pub const fn is_doubtful(&self) -> bool {
        matches!(self.backing, Backing::Doubtful { .. })
    }

    /// What is committed. While an outcome is unknown: what was committed before it.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Makes all changes in one durable transaction, or none. Returns the numbers of the events among them, in order.
    ///
    /// # Errors
    /// [`Error::Violation`] and every other: nothing has changed. [`Error::OutcomeUnknown`]: see
    /// [`resolve_unknown`](Self::resolve_unknown).
    pub fn commit(&mut self, changes: Vec<Change>) -> Result<Vec<u64>> {
        self.store()?;
        let mut next = self.state.clone();
        for change in &changes {
            next.apply(change);
        }
        check::check(&self.state, &next, &changes)?;
        let first_event = self.state.last_event + 1;
        self.write(changes.len(), |conn| {
            let mut event = first_event;
            for change in &changes {
                rows::write(conn, change, event)?;
                event += u64::from(matches!(change, Change::Event(_)));
            }
            Ok(())
        })?;
        for change in changes {
            if let Change::PutJob(job) = change {
                self.last_job = self.last_job.max(job.id);
            }
        }
        self.state = next;
        Ok((first_event..=self.state.last_event).collect())
    }

    /// One transaction, with room in the WAL for it.
    pub(crate) fn write<T>(
        &mut self,
        changes: usize,
        write: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<()> {
        self.make_room(changes)?;
        let written = self.store()?.transaction(|conn| write(conn).map(drop));
        if let Err(Error::OutcomeUnknown { reason }) = &written {
            self.doubt(reason.clone());
        }
        self.backup.changed |= written.is_ok();
        written
    }

    /// D22: makes sure that a commit of so many changes will not need a checkpoint. To be called before a pause;
    /// every commit does it by itself.
    ///
    /// # Errors
    /// Those of the file system; nothing has changed.
    pub fn make_room(&self, changes: usize) -> Result<()> {
        let store = self.store()?;
        match store.make_room(changes) {
            Err(Error::NoSpace { .. }) => {
                reserve::release(&self.dir)?;
                store.make_room(changes)
            }
            other => other,
        }
    }

    /// A number for a new job: never given before to a job that was committed, also not before a restart.
    pub const fn next_job_id(&mut self) -> JobId {
        self.last_job += 1;
        self.last_job
    }

    /// Events, oldest first, at most `limit`: those with a number above `after_id` and not older than `since`.
    ///
    /// # Errors
    /// Those of reading.
    pub fn events(
        &self,
        since: Option<Timestamp>,
        after_id: Option<u64>,
        limit: usize,
    ) -> Result<Vec<EventRecord>> {
        rows::events(self.store()?.conn(), since, after_id.unwrap_or(0), limit)
    }

    pub(crate) fn store(&self) -> Result<&Store> {
        match &self.backing {
            Backing::Sound(store) => Ok(store),
            Backing::Doubtful { reason, .. } => Err(Error::OutcomeUnknown { reason: reason.clone() }),
        }
    }

    pub(crate) fn into_store(self) -> Result<(Store, PathBuf)> {
        match self.backing {
            Backing::Sound(store) => Ok((store, self.dir)),
            Backing::Doubtful { reason, .. } => Err(Error::OutcomeUnknown { reason }),
        }
    }

    pub(crate) fn doubt(&mut self, reason: String) {
        let nothing = Backing::Doubtful { store: None, reason: reason.clone() };
        if let Backing::Sound(store) = std::mem::replace(&mut self.backing, nothing) {
            self.backing = Backing::Doubtful { store: Some(store), reason };
        }
    }
}
