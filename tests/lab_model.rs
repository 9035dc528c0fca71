//! Random operations on a small SR of logical volumes, against a model, with deaths of processes; in the lab. The operations and the
//! model are those of `tests/model`; what volumes are there, how large each is and which are active is compared with lvm2's word.

#[path = "model/attended.rs"]
mod attended;
#[path = "model/dice.rs"]
mod dice;
#[path = "model/disk.rs"]
mod disk;
mod harness;
#[path = "model/operations.rs"]
mod operations;
#[path = "model/play.rs"]
mod play;
#[path = "model/storage.rs"]
mod storage;
#[path = "model/volumes.rs"]
mod volumes;
#[path = "model/world.rs"]
mod world;

use anyhow::Result;
use harness::lab;

/// So many steps, or so many in the long form.
fn steps(few: u64, many: u64) -> u64 {
    if harness::nightly() { many } else { few }
}

#[test]
fn volumes_of_disks_that_are_thin() -> Result<()> {
    lab::test(|| play::run("thin", steps(100, 1_500), |_| Ok(Box::new(volumes::Volumes::new(208, "thin")?))))
}

#[test]
fn volumes_of_disks_that_are_thick() -> Result<()> {
    lab::test(|| play::run("thick", steps(50, 500), |_| Ok(Box::new(volumes::Volumes::new(256, "thick")?))))
}

/// Room does not run out here: a write would wait for it.
#[test]
fn volumes_that_grow_as_they_fill() -> Result<()> {
    let volumes = |_: &harness::Agent| -> Result<Box<dyn storage::Storage>> {
        Ok(Box::new(volumes::Volumes::new(1024, "dynamic")?))
    };
    lab::test(|| play::run("dynamic", steps(15, 300), volumes))
}
