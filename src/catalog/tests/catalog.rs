//! The catalog as its owner uses it: what is committed is there after every way of ending, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use catena_catalog::{Catalog, Change, Error, Violation};
use catena_types::Bytes;
use common::{at, disk, event, image, image_id, job, meta, vdi, vdi_id};
use jiff::SignedDuration;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

#[test]
fn what_is_committed_is_there_after_close_and_after_a_drop() {
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    catalog.commit(disk(1).to_vec()).unwrap();
    catalog.close().unwrap();

    let mut catalog = Catalog::open(dir.path()).unwrap();
    let id = catalog.next_job_id();
    let ids = catalog.commit(vec![Change::PutJob(job(id)), Change::Event(event(5, "made"))]).unwrap();
    assert_eq!(ids, [1]);
    let before = catalog.state().clone();
    drop(catalog);

    let mut catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(*catalog.state(), before);
    assert!(
        catalog.state().images.contains_key(&image_id(1)) && catalog.state().vdis.contains_key(&vdi_id(1))
    );
    assert_eq!(catalog.events(None, None, 10).unwrap()[0].message, "made");
    assert_eq!(catalog.next_job_id(), id + 1);
    assert!(!dir.path().join("catalog.db-shm").exists(), "EXCLUSIVE came after the first access");
}

#[test]
fn a_catalog_is_made_once_and_opened_once() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(Catalog::open(dir.path()), Err(Error::Missing(_))));
    let catalog = Catalog::create(dir.path(), meta()).unwrap();
    assert!(matches!(Catalog::create(dir.path(), meta()), Err(Error::Exists(_))));
    catalog.close().unwrap();
    assert!(matches!(Catalog::create(dir.path(), meta()), Err(Error::Exists(_))));
}

/// A version of the schema written over that of a closed catalog.
fn set_version(dir: &Path, version: u32) {
    let conn = rusqlite::Connection::open(dir.join("catalog.db")).unwrap();
    conn.pragma_update(None, "user_version", version).unwrap();
}

/// One column of a closed catalog, changed behind its back.
fn tamper(dir: &Path, sql: &str) {
    let conn = rusqlite::Connection::open(dir.join("catalog.db")).unwrap();
    conn.pragma_update(None, "foreign_keys", false).unwrap();
    assert!(conn.execute(sql, []).unwrap() > 0);
}

fn closed_with_everything() -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    let mut changes = disk(1).to_vec();
    changes.extend([Change::PutJob(job(1)), Change::Event(event(1, "made"))]);
    catalog.commit(changes).unwrap();
    catalog.close().unwrap();
    dir
}

#[test]
fn a_newer_catalog_is_refused_and_left_alone() {
    let dir = closed_with_everything();
    set_version(dir.path(), 99);
    let before = fs::read(dir.path().join("catalog.db")).unwrap();
    assert!(matches!(Catalog::open(dir.path()), Err(Error::Newer { found: 99, known: 2 })));
    assert_eq!(fs::read(dir.path().join("catalog.db")).unwrap(), before);
}

#[test]
fn values_that_this_program_does_not_write_are_damage() {
    for sql in [
        "UPDATE image SET state = 'shiny'",
        "UPDATE image SET format = 'qcow9'",
        "UPDATE image SET id = 'nonsense'",
        "UPDATE image SET parent = ''",
        "UPDATE vdi SET image = '01010101-0000-0000-0000-000000000000'",
        "UPDATE vdi SET kind = 'floppy'",
        "UPDATE vdi SET created = 'yesterday'",
        "UPDATE vdi SET other_config = '[]'",
        "UPDATE job SET work = '{\"kind\":\"dance\"}'",
        "UPDATE job SET effects = 'null'",
        "UPDATE job SET answer = '{'",
        "UPDATE meta SET sr = 'x'",
        "DELETE FROM meta",
        "PRAGMA application_id = 1",
    ] {
        let dir = closed_with_everything();
        if sql.starts_with("PRAGMA") {
            rusqlite::Connection::open(dir.path().join("catalog.db")).unwrap().execute_batch(sql).unwrap();
        } else {
            tamper(dir.path(), sql);
        }
        let result = Catalog::open(dir.path());
        assert!(matches!(result, Err(Error::Damaged(_))), "{sql}: {result:?}");
    }
}

#[test]
fn a_damaged_file_is_reported_and_its_copy_opens() {
    let dir = closed_with_everything();
    let path = dir.path().join("catalog.db");
    let whole = fs::read(&path).unwrap();
    for page in 0..whole.len() / 4096 {
        let mut bytes = whole.clone();
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
        fs::write(&path, &bytes).unwrap();
        let result = Catalog::open(dir.path());
        assert!(matches!(result, Err(Error::Damaged(_))), "page {page}: {result:?}");
    }
    fs::write(&path, &whole[..4096]).unwrap();
    assert!(matches!(Catalog::open(dir.path()), Err(Error::Damaged(_))));

    fs::copy(dir.path().join("catalog.bak"), &path).unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.state().vdis.len(), 1);
    assert_eq!(catalog.events(None, None, 9).unwrap().len(), 1);
}

#[test]
fn a_second_owner_is_refused() {
    const ROLE: &str = "CATENA_CATALOG_TEST_SECOND";
    if let Some(home) = std::env::var_os(ROLE) {
        assert!(matches!(Catalog::open(Path::new(&home)), Err(Error::Locked)));
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    catalog.commit(disk(1).to_vec()).unwrap();
    let mut second = Command::new(std::env::current_exe().unwrap());
    let second =
        second.args(["--exact", "a_second_owner_is_refused"]).env(ROLE, dir.path()).output().unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stdout));
    catalog.commit(disk(2).to_vec()).unwrap();
    drop(catalog);
    assert_eq!(Catalog::open(dir.path()).unwrap().state().vdis.len(), 2);
}

#[test]
fn events_are_read_by_number_and_by_time() {
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    let events = (0..10).map(|second| Change::Event(event(second, &second.to_string())));
    assert_eq!(catalog.commit(events.collect()).unwrap(), (1..=10).collect::<Vec<_>>());
    let read = |since, after, limit| -> Vec<u64> {
        catalog.events(since, after, limit).unwrap().into_iter().map(|event| event.id).collect()
    };
    assert_eq!(read(None, None, 3), [1, 2, 3]);
    assert_eq!(read(None, Some(8), 9), [9, 10]);
    assert_eq!(read(Some(at(7)), None, 9), [8, 9, 10]);
    // A fraction of a second sorts after the whole second.
    assert_eq!(read(Some(at(7) + SignedDuration::from_nanos(1)), Some(2), 9), [9, 10]);
}

#[test]
fn a_number_beyond_the_columns_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    let before = catalog.state().clone();
    let mut too_large = image(1, None);
    too_large.virtual_size = Bytes(1 << 63);
    let changes = vec![Change::PutImage(image(2, None)), Change::PutImage(too_large)];
    let result = catalog.commit(changes);
    assert!(matches!(result, Err(Error::Violation(Violation::NumberTooLarge(_)))), "{result:?}");
    assert_eq!(*catalog.state(), before);
    drop(catalog);
    assert_eq!(*Catalog::open(dir.path()).unwrap().state(), before);
}

#[test]
fn a_commit_copies_neither_rows_nor_tables_it_does_not_touch() {
    let dir = TempDir::new().unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    catalog.commit((0..10_000).flat_map(disk).collect()).unwrap();
    catalog.commit(vec![Change::PutJob(job(1))]).unwrap();
    let before = catalog.state().clone();
    assert!(before.images.is_same(&catalog.state().images), "a clone shares the tables");

    let mut renamed = vdi(77, 77);
    renamed.name_label = "renamed".into();
    catalog.commit(vec![Change::PutVdi(renamed)]).unwrap();
    let after = catalog.state();
    assert!(before.images.is_same(&after.images) && before.jobs.is_same(&after.jobs));
    let copied = before.vdis.values().zip(after.vdis.values()).filter(|(old, new)| !Arc::ptr_eq(old, new));
    assert_eq!(copied.count(), 1);
    assert_eq!(before.vdis.get(&vdi_id(77)).unwrap().name_label, "disk 77", "a reader's copy stays as it is");
    drop(catalog);
    assert_eq!(Catalog::open(dir.path()).unwrap().state().vdis.len(), 10_000);
}
