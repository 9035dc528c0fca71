//! A full file system: what D22, the WAL of full size and the reserve are for. Needs the right to mount a tmpfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use catena_catalog::{Catalog, Change, Error};
use common::{disk, image_id, meta, vdi, vdi_id};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// A file system of 8 MiB, unmounted at the end.
struct Small(TempDir);

impl Small {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.path().join("ballast")
    }

    fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for size in [64 << 10, 4096] {
            while file.write_all(&vec![0xff; size]).is_ok() {}
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

fn with_disks(dir: &Path, count: u32) -> Catalog {
    let mut catalog = Catalog::create(dir, meta()).unwrap();
    for number in 0..count {
        catalog.commit(disk(number).to_vec()).unwrap();
    }
    catalog
}

fn delete(number: u32) -> Vec<Change> {
    vec![Change::RemoveVdi(vdi_id(number)), Change::RemoveImage(image_id(number))]
}

#[test]
fn a_full_sr_can_delete() {
    let small = Small::new();
    let mut catalog = with_disks(small.path(), 40);
    small.fill();
    for number in 0..40 {
        catalog.commit(delete(number)).unwrap();
    }
    assert!(catalog.state().vdis.is_empty());
    drop(catalog);
    assert!(Catalog::open(small.path()).unwrap().state().images.is_empty());
}

#[test]
fn the_wal_is_used_again_on_a_full_file_system() {
    let small = Small::new();
    let mut catalog = with_disks(small.path(), 100);
    small.fill();
    for round in 0..600 {
        let mut changed = vdi(round % 100, round % 100);
        changed.name_label = format!("round {round}");
        catalog.commit(vec![Change::PutVdi(changed)]).unwrap();
    }
    assert_eq!(fs::metadata(small.path().join("catalog.db-wal")).unwrap().len(), 4 << 20);
    assert!(!small.path().join("reserve").exists(), "the checkpoint had the space of the reserve");
    fs::remove_file(small.ballast()).unwrap();
    assert!(catalog.restore_reserve().unwrap());
}

/// The control: without a WAL of full size the same delete is refused, and nothing is in doubt.
#[test]
fn without_the_wal_a_full_sr_refuses_and_recovers() {
    let small = Small::new();
    with_disks(small.path(), 3).close().unwrap();
    for file in ["catalog.db-wal", "reserve"] {
        fs::remove_file(small.path().join(file)).unwrap();
    }
    small.fill();
    let mut catalog = Catalog::open(small.path()).unwrap();
    let before = catalog.state().clone();
    assert!(matches!(catalog.commit(delete(1)), Err(Error::NoSpace { .. })));
    assert_eq!(*catalog.state(), before);
    fs::remove_file(small.ballast()).unwrap();
    catalog.commit(delete(1)).unwrap();
    assert_eq!(catalog.state().vdis.len(), 2);
}

/// What was not closed is rewritten at open; a full file system must not keep an SR from being attached.
#[test]
fn a_full_sr_opens_after_a_crash() {
    let small = Small::new();
    drop(with_disks(small.path(), 40));
    fs::remove_file(small.path().join("reserve")).unwrap();
    small.fill();
    let mut catalog = Catalog::open(small.path()).unwrap();
    assert_eq!(catalog.state().vdis.len(), 40);
    catalog.commit(delete(7)).unwrap();
    drop(catalog);
    assert_eq!(Catalog::open(small.path()).unwrap().state().vdis.len(), 39);
}
