//! The catalog as its owner uses it: what is committed is there after every way of ending, and nothing else.

mod common;

use catena_catalog::{Catalog, Change, Error};
use common::{disk, event, image_id, job, meta, vdi_id};
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
