//! D21: what is left of a catalog that is lost or damaged, and a new one in its place.
//!
//! ```text
//!  step                                              a crash after it leaves
//!  1 look: a copy of catalog.bak is opened elsewhere everything as it was
//!  2 the new catalog is made, under a partial name   everything as it was (the partial file has no meaning)
//!  3 catalog.db gets another name, fsync dir         no catalog
//!  4 its WAL gets another name, fsync dir            no catalog
//!  5 the partial file becomes the catalog            the new catalog
//! ```
//!
//! Where a crash leaves no catalog, the same is begun again. The database goes before its WAL: without its WAL it might look
//! sound, and old. Nothing is removed: what was there keeps its bytes under a name that ends in `.damaged-N`. Called by the
//! keeper, and only when [`Catalog::open`] said [`Error::Missing`] or [`Error::Damaged`].

use crate::backup::BACKUP;
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::reserve;
use crate::rows;
use crate::schema;
use crate::state::{Change, Meta, State};
use crate::store::{self, DATABASE};
use crate::unknown;
use catena_types::{CrashPoint, Effects, ErrorName, Failure, JobId, JobRecord, JobState, Work};
use rusqlite::Connection;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// After each of the renames of steps 3 and 4.
const ASIDE: CrashPoint = CrashPoint("catalog.salvage.aside");

/// The places where a debug build can be told to die while what is damaged is set aside.
pub const SALVAGE_POINTS: &[CrashPoint] = &[ASIDE];

/// What is left of a catalog.
#[derive(Debug)]
pub struct Remains {
    /// What is in `catalog.bak`: the catalog as it was once. None if there is no such file, or not a sound one.
    pub copy: Option<State>,
    /// Why there is a `catalog.bak` that cannot be used.
    pub unusable: Option<String>,
    last_job: JobId,
}

/// A directory of our own for files that are opened to be looked at; goes when dropped.
struct Desk(PathBuf);

impl Desk {
    fn set_up() -> Result<Self> {
        const DOING: &str = "making a directory to look at a catalog in";
        for number in 0.. {
            let path = std::env::temp_dir().join(format!("catena-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(DOING)(error)),
            }
        }
        Err(Error::io(DOING)(io::ErrorKind::AlreadyExists.into()))
    }

    /// Opens copies of these files, which have these names here.
    fn open(&self, files: &[(PathBuf, &str)]) -> Result<(State, JobId)> {
        for (from, name) in files {
            match fs::copy(from, self.0.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("copying a catalog")(error));
                }
                _ => {}
            }
        }
        let catalog = Catalog::open(&self.0)?;
        Ok((catalog.state, catalog.last_job))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a temporary directory is left");
        }
    }
}

impl Catalog {
    /// What the catalog in `dir` says, without changing anything there: a copy is opened. Of a catalog that its owner is
    /// writing to at this moment the copy may be torn.
    ///
    /// # Errors
    /// Those of [`Catalog::open`].
    pub fn look(dir: &Path) -> Result<State> {
        let wal = store::wal_of(Path::new(DATABASE));
        let names = [DATABASE, wal.to_str().unwrap_or_default(), unknown::NEXT];
        let desk = Desk::set_up()?;
        desk.open(&names.map(|name| (dir.join(name), name))).map(|(state, _)| state)
    }
}

impl Remains {
    /// What is left in `dir`. Changes nothing there.
    ///
    /// # Errors
    /// [`Error::Newer`] if the copy is from a newer program; those of the file system.
    pub fn find(dir: &Path) -> Result<Self> {
        let backup = dir.join(BACKUP);
        let nothing = |unusable| Self { copy: None, unusable, last_job: 0 };
        if !backup.try_exists().map_err(Error::io("looking for a copy of the catalog"))? {
            return Ok(nothing(None));
        }
        match Desk::set_up()?.open(&[(backup, DATABASE)]) {
            Ok((state, last_job)) => Ok(Self { copy: Some(state), unusable: None, last_job }),
            Err(Error::Damaged(why)) => Ok(nothing(Some(why))),
            Err(other) => Err(other),
        }
    }

    /// A number for a job of the new catalog.
    pub const fn next_job_id(&self) -> JobId {
        self.last_job + 1
    }

    /// Makes a new catalog in place of the lost one and opens it: with the events and the finished jobs of the copy where there is
    /// one, the SR's row `meta`, and otherwise nothing but `changes`. What the copy says of images, disks and unfinished jobs is
    /// void (D21).
    ///
    /// # Errors
    /// Those of the file system; a crash or an error leaves the lost catalog or none, and the call can be repeated.
    pub fn replace(&self, dir: &Path, meta: &Meta, changes: Vec<Change>) -> Result<Catalog> {
        let mut all = vec![Change::PutMeta(meta.clone())];
        all.extend(self.copy.iter().flat_map(void));
        all.extend(changes);
        match self.build(dir, meta, &all) {
            Err(Error::NoSpace { .. }) => {
                reserve::release(dir).and_then(|()| self.build(dir, meta, &all))?;
            }
            other => other?,
        }
        set_aside(dir, self.unusable.is_some())?;
        unknown::publish(dir)?;
        let catalog = Catalog::open(dir)?;
        reserve::hold(dir)?;
        Ok(catalog)
    }

    fn build(&self, dir: &Path, meta: &Meta, changes: &[Change]) -> Result<()> {
        let partial = dir.join(unknown::PARTIAL);
        let first_event = self.copy.as_ref().map_or(0, |copy| copy.last_event) + 1;
        let write = |conn: &Connection| {
            let mut event = first_event;
            for change in changes {
                rows::write(conn, change, event)?;
                event += u64::from(matches!(change, Change::Event(_)));
            }
            Ok(())
        };
        if self.copy.is_none() {
            return store::build(&partial, |conn| {
                schema::initialise(conn)?;
                rows::put_meta(conn, meta)?;
                write(conn)
            });
        }
        store::build_on(&dir.join(BACKUP), &partial, |conn| schema::upgrade(conn).and_then(|()| write(conn)))
    }
}

/// The changes that make what a copy says of images, disks and unfinished jobs void.
fn void(copy: &State) -> Vec<Change> {
    let mut changes: Vec<Change> =
        copy.attachments.keys().map(|vdi| Change::RemoveAttachment(*vdi)).collect();
    changes.extend(copy.vdis.keys().map(|uuid| Change::RemoveVdi(*uuid)));
    changes.extend(copy.images.keys().map(|id| Change::RemoveImage(*id)));
    for job in copy.unfinished() {
        // How far a merge had come is void even where it was cancelled or had failed: what it merges may have taken in more since.
        let mut work = job.work.clone();
        if let Work::Merge { cursor, .. } = &mut work {
            *cursor = 0;
        }
        if job.state.is_over() {
            if work != job.work {
                changes.push(Change::PutJob(JobRecord { work, ..(**job).clone() }));
            }
            continue;
        }
        let why = Failure::new(ErrorName::Metadata, "the catalog was lost while the job was under way");
        changes.push(Change::PutJob(JobRecord {
            work,
            state: JobState::Failed,
            effects: Effects::default(),
            error: Some(why),
            retry_at: None,
            // Whether it took effect is not known: who repeats the request is to look.
            ..(**job).clone()
        }));
    }
    changes
}

/// Gives what is damaged other names, durably.
fn set_aside(dir: &Path, backup_too: bool) -> Result<()> {
    let wal = store::wal_of(Path::new(DATABASE));
    let wal = wal.to_str().unwrap_or_default();
    let names = [Some(DATABASE), Some(wal), backup_too.then_some(BACKUP)];
    let exists = |path: PathBuf| path.try_exists().map_err(Error::io("looking for a damaged catalog"));
    let mut number = 1;
    while exists(dir.join(damaged(DATABASE, number)))? || exists(dir.join(damaged(wal, number)))? {
        number += 1;
    }
    for name in names.into_iter().flatten() {
        if exists(dir.join(name))? {
            store::rename(dir, name, &damaged(name, number))?;
            ASIDE.pass();
        }
    }
    Ok(())
}

fn damaged(name: &str, number: u32) -> String {
    format!("{name}.damaged-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at, disk, event, image, job, meta, vdi};
    use tempfile::TempDir;

    /// A catalog with one disk in its copy and in itself, and a second one only in itself.
    fn lost() -> TempDir {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        let done = JobRecord { id: 1, state: JobState::Done, updated: at(50), ..job(1) };
        let mut changes = disk(1).to_vec();
        changes.extend([Change::PutJob(done), Change::PutJob(job(2)), Change::Event(event(1, "once"))]);
        catalog.commit(changes).unwrap();
        catalog.idle_at(at(60)).unwrap();
        catalog.commit(disk(2).to_vec()).unwrap();
        drop(catalog);
        dir
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_copy_gives_history_and_the_images_give_the_tree() {
        let dir = lost();
        let path = dir.path().join(DATABASE);
        fs::write(&path, "garbage").unwrap();
        assert!(matches!(Catalog::open(dir.path()), Err(Error::Damaged(_))));
        let before = names(&dir);
        assert!(matches!(Catalog::look(dir.path()), Err(Error::Damaged(_))));
        let remains = Remains::find(dir.path()).unwrap();
        assert_eq!(remains.copy.as_ref().unwrap().vdis.len(), 1);
        assert_eq!(remains.next_job_id(), 3);
        assert_eq!(names(&dir), before, "looking changes nothing");

        let changes =
            vec![Change::PutImage(image(7, None)), Change::PutVdi(vdi(8, 7)), Change::Event(event(9, "new"))];
        let catalog = remains.replace(dir.path(), &meta(), changes).unwrap();
        let state = catalog.state();
        assert_eq!((state.images.len(), state.vdis.len()), (1, 1));
        let (done, void) = (state.jobs.get(&1).unwrap(), state.jobs.get(&2).unwrap());
        assert!(done.error.is_none() && done.state == JobState::Done);
        assert_eq!((void.state, &void.effects), (JobState::Failed, &Effects::default()));
        let events = catalog.events(None, None, 9).unwrap();
        assert_eq!(events.iter().map(|event| event.message.as_str()).collect::<Vec<_>>(), ["once", "new"]);
        let kept = fs::read(dir.path().join("catalog.db.damaged-1")).unwrap();
        assert!(kept == b"garbage", "{} bytes", kept.len());
        assert!(dir.path().join("catalog.db-wal.damaged-1").exists());
        catalog.close().unwrap();
        assert_eq!(Catalog::look(dir.path()).unwrap().images.len(), 1);
    }

    #[test]
    fn no_merge_goes_on_where_a_copy_says_that_it_was() {
        let dir = TempDir::new().unwrap();
        let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
        let merge = |cursor| Work::Merge { from: image(2, Some(1)).id, into: image(1, None).id, cursor };
        for (id, state) in
            (1..).zip([JobState::Running, JobState::Queued, JobState::Failed, JobState::Cancelled])
        {
            catalog.commit(vec![Change::PutJob(JobRecord { state, work: merge(7), ..job(id) })]).unwrap();
        }
        catalog.idle_at(at(60)).unwrap();
        drop(catalog);
        fs::write(dir.path().join(DATABASE), "garbage").unwrap();
        let remains = Remains::find(dir.path()).unwrap();
        assert_eq!(remains.copy.as_ref().unwrap().jobs.len(), 4);
        let catalog = remains.replace(dir.path(), &meta(), Vec::new()).unwrap();
        let jobs: Vec<_> = catalog.state().jobs.values().map(|job| (job.work.clone(), job.state)).collect();
        let [failed, cancelled] = [JobState::Failed, JobState::Cancelled].map(|state| (merge(0), state));
        assert_eq!(jobs, [failed.clone(), failed.clone(), failed, cancelled]);
    }

    #[test]
    fn without_a_usable_copy_the_new_catalog_has_only_what_it_is_given() {
        let dir = lost();
        fs::write(dir.path().join(BACKUP), "rubbish").unwrap();
        fs::remove_file(dir.path().join(DATABASE)).unwrap();
        let remains = Remains::find(dir.path()).unwrap();
        assert!(remains.copy.is_none() && remains.unusable.is_some());
        let catalog = remains.replace(dir.path(), &meta(), disk(3).to_vec()).unwrap();
        assert_eq!((catalog.state().vdis.len(), catalog.state().jobs.len()), (1, 0));
        assert_eq!(fs::read(dir.path().join("catalog.bak.damaged-1")).unwrap(), b"rubbish");
        drop(catalog);
        // It is lost again: what was set aside before stays.
        fs::write(dir.path().join(DATABASE), "garbage").unwrap();
        let remains = Remains::find(dir.path()).unwrap();
        assert!(remains.copy.is_none() && remains.unusable.is_none());
        remains.replace(dir.path(), &meta(), Vec::new()).unwrap();
        assert!(dir.path().join("catalog.db.damaged-2").exists());
        assert!(dir.path().join("catalog.db-wal.damaged-1").exists());
    }

    #[test]
    fn a_crash_between_the_names_is_answered_by_beginning_again() {
        for step in 0..3 {
            let dir = lost();
            fs::write(dir.path().join(DATABASE), "garbage").unwrap();
            let remains = Remains::find(dir.path()).unwrap();
            remains.build(dir.path(), &meta(), &[]).unwrap();
            let steps = [(DATABASE, "catalog.db.damaged-1"), ("catalog.db-wal", "catalog.db-wal.damaged-1")];
            for (from, to) in &steps[..step] {
                store::rename(dir.path(), from, to).unwrap();
            }
            let opened = Catalog::open(dir.path());
            assert!(matches!(opened, Err(Error::Damaged(_) | Error::Missing(_))), "step {step}: {opened:?}");
            let remains = Remains::find(dir.path()).unwrap();
            let catalog = remains.replace(dir.path(), &meta(), disk(5).to_vec()).unwrap();
            assert_eq!(catalog.state().vdis.len(), 1);
        }
    }
}
