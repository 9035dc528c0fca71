//! D19 under a storage that fails: every write and sync of a commit, of a checkpoint and of the way out fails once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod faulty;

use catena_catalog::{Catalog, Change, Error};
use common::{disk, event, meta, vdi_id};
use faulty::Faults;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory in memory: here storage fails on demand only, and syncs cost nothing.
fn memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

/// A catalog with one disk.
fn catalog(dir: &Path) -> Catalog {
    let mut catalog = Catalog::create(dir, meta()).unwrap();
    catalog.commit(disk(1).to_vec()).unwrap();
    catalog
}

fn second_disk() -> Vec<Change> {
    let mut changes = disk(2).to_vec();
    changes.push(Change::Event(event(1, "second")));
    changes
}

/// Nothing but the way out works while there is doubt, and readers see what was certain before.
fn assert_doubt(catalog: &mut Catalog) {
    let unknown = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    };
    unknown(catalog.commit(disk(3).to_vec()).map(drop));
    unknown(catalog.events(None, None, 1).map(drop));
    unknown(catalog.make_room(1));
    unknown(catalog.idle());
    assert!(!catalog.state().vdis.contains_key(&vdi_id(2)));
}

/// The second disk and its event are both there or both not; the catalog works, also after a restart.
fn assert_sound(mut catalog: Catalog, dir: &Path) {
    let committed = catalog.state().vdis.contains_key(&vdi_id(2));
    assert_eq!(catalog.events(None, None, 9).unwrap().len(), usize::from(committed));
    assert!(catalog.state().vdis.contains_key(&vdi_id(1)));
    catalog.commit(disk(3).to_vec()).unwrap();
    let state = catalog.state().clone();
    drop(catalog);
    let catalog = Catalog::open(dir).unwrap();
    assert_eq!(*catalog.state(), state);
    assert_eq!(catalog.events(None, None, 9).unwrap().len(), usize::from(committed));
}

/// Writes and syncs of the commit of the second disk; the last is the sync that makes it durable.
fn calls_of_a_commit(faults: &Faults, dir: &Path) -> i64 {
    let home = home(dir, "count");
    let mut catalog = catalog(&home);
    let calls = faults.count(|| drop(catalog.commit(second_disk()).unwrap()));
    assert!(calls > 3, "a commit writes frames and syncs them");
    calls
}

/// A catalog in doubt: the sync of its commit failed, and was carried out nevertheless where `perform` says so.
fn doubtful(faults: &Faults, dir: &Path, calls: i64, perform: bool) -> Catalog {
    let mut catalog = catalog(dir);
    faults.arm(calls - 1, perform);
    let result = catalog.commit(second_disk());
    assert!(faults.disarm());
    assert!(faulty::struck_a_sync(), "a commit ends with a sync (synchronous=FULL)");
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    catalog
}

fn home(dir: &Path, name: &str) -> PathBuf {
    let home = dir.join(name);
    fs::create_dir(&home).unwrap();
    home
}

#[test]
fn every_failed_call_of_a_commit_leaves_a_way_on() {
    let faults = Faults::take();
    let dir = memory();
    let calls = calls_of_a_commit(&faults, dir.path());
    for (perform, fault) in (0..calls).flat_map(|fault| [(false, fault), (true, fault)]) {
        let home = home(dir.path(), &format!("{perform}-{fault}"));
        let mut catalog = catalog(&home);
        faults.arm(fault, perform);
        let result = catalog.commit(second_disk());
        assert!(faults.disarm());
        assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "call {fault}: {result:?}");
        assert_doubt(&mut catalog);
        catalog.resolve_unknown().unwrap();
        assert_sound(catalog, &home);
    }
}

/// Why D19 is needed: the process sees the old state, its successor the new one.
#[test]
fn a_failed_commit_may_be_there_for_the_next_process() {
    let faults = Faults::take();
    let dir = memory();
    let calls = calls_of_a_commit(&faults, dir.path());
    let home = home(dir.path(), "doubt");
    let catalog = doubtful(&faults, &home, calls, true);
    assert!(!catalog.state().vdis.contains_key(&vdi_id(2)));
    drop(catalog);
    let catalog = Catalog::open(&home).unwrap();
    assert!(catalog.state().vdis.contains_key(&vdi_id(2)));
    // The page cache may have shown it: now it is in a new file that needs no WAL.
    let alone = self::home(dir.path(), "alone");
    fs::copy(home.join("catalog.db"), alone.join("catalog.db")).unwrap();
    assert_eq!(Catalog::open(&alone).unwrap().state(), catalog.state());
    assert_sound(catalog, &home);
}

#[test]
fn the_way_out_can_fail_at_every_call_and_be_repeated() {
    let faults = Faults::take();
    let dir = memory();
    let calls = calls_of_a_commit(&faults, dir.path());
    let mut clean = doubtful(&faults, &home(dir.path(), "clean"), calls, true);
    let steps = faults.count(|| clean.resolve_unknown().unwrap());
    assert!(steps > 5);
    for fault in 0..steps {
        let home = home(dir.path(), &format!("way-out-{fault}"));
        let mut catalog = doubtful(&faults, &home, calls, fault % 2 == 0);
        faults.arm(fault, false);
        let result = catalog.resolve_unknown();
        assert!(faults.disarm());
        if result.is_err() {
            assert_doubt(&mut catalog);
            catalog.resolve_unknown().unwrap();
        }
        assert_sound(catalog, &home);
    }
}

#[test]
fn a_process_that_dies_in_doubt_leaves_one_catalog() {
    let faults = Faults::take();
    let dir = memory();
    let calls = calls_of_a_commit(&faults, dir.path());
    let steps = {
        let mut clean = doubtful(&faults, &home(dir.path(), "clean"), calls, true);
        faults.count(|| clean.resolve_unknown().unwrap())
    };
    for fault in 0..steps {
        let home = home(dir.path(), &format!("died-{fault}"));
        let mut catalog = doubtful(&faults, &home, calls, fault % 2 == 0);
        faults.arm(fault, false);
        let _ = catalog.resolve_unknown();
        faults.disarm();
        drop(catalog);
        assert_sound(Catalog::open(&home).unwrap(), &home);
    }
}

#[test]
fn a_failed_checkpoint_or_copy_leaves_no_doubt() {
    let faults = Faults::take();
    let dir = memory();
    let mut clean = catalog(&home(dir.path(), "clean"));
    clean.commit(second_disk()).unwrap();
    let calls = faults.count(|| clean.idle().unwrap());
    assert!(calls > 5);
    for fault in 0..calls {
        let home = home(dir.path(), &format!("idle-{fault}"));
        let mut catalog = catalog(&home);
        catalog.commit(second_disk()).unwrap();
        faults.arm(fault, false);
        let result = catalog.idle();
        assert!(faults.disarm());
        assert!(!matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
        assert!(catalog.state().vdis.contains_key(&vdi_id(2)));
        catalog.idle().unwrap();
        assert_sound(catalog, &home);
    }
}
