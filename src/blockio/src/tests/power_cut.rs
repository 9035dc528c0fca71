//! What the simulated disk keeps and loses: the semantics that every crash test of the project rests on.

use super::model::{Op, cases, ops};
use crate::Container;
use crate::sim::{Call, Errno, Fault, SimDisk, SimWorld, is_crash};
use catena_types::{Bytes, FileOffset};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

const SEEDS: std::ops::Range<u64> = 0..300;

fn sectors(disk: &SimDisk, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * 512];
    disk.read_at(&mut bytes, FileOffset(0)).unwrap();
    for sector in bytes.chunks(512) {
        assert!(sector.iter().all(|&byte| byte == sector[0]), "torn inside a sector");
    }
    bytes.into_iter().step_by(512).collect()
}

fn outcomes(disk: &SimDisk, count: usize) -> BTreeSet<Vec<u8>> {
    SEEDS.map(|seed| sectors(&disk.after_power_cut(seed), count)).collect()
}

fn sized_disk(world: &Arc<SimWorld>, explicit: bool, len: u64) -> Arc<SimDisk> {
    if explicit { SimDisk::explicit(world, Bytes(len)) } else { SimDisk::automatic(world) }
}

#[test]
fn the_flushed_survives_and_the_rest_in_any_subset_torn_at_sectors() {
    for explicit in [false, true] {
        let disk = sized_disk(&SimWorld::new(), explicit, 2048);
        disk.write_at(&[1; 2048], FileOffset(0)).unwrap();
        disk.flush().unwrap();
        assert_eq!(outcomes(&disk, 4), BTreeSet::from([vec![1; 4]]));
        disk.write_at(&[2; 1024], FileOffset(0)).unwrap();
        disk.write_at(&[3; 512], FileOffset(1024)).unwrap();
        let every: BTreeSet<Vec<u8>> =
            (0..8).map(|bits| vec![1 + (bits & 1), 1 + (bits >> 1 & 1), 1 + 2 * (bits >> 2), 1]).collect();
        assert_eq!(outcomes(&disk, 4), every);
        assert_eq!(sectors(&disk, 4), [2, 2, 3, 1], "a cut leaves the disk it was asked of alone");
    }
}

#[test]
fn a_part_of_a_sector_never_survives_alone() {
    let disk = SimDisk::explicit(&SimWorld::new(), Bytes(1024));
    disk.write_at(&[2; 600], FileOffset(300)).unwrap();
    for seed in SEEDS {
        let mut bytes = [0; 1024];
        disk.after_power_cut(seed).read_at(&mut bytes, FileOffset(0)).unwrap();
        for part in [&bytes[300..512], &bytes[512..900]] {
            assert!(part.iter().all(|&byte| byte == part[0]));
        }
        assert!(bytes[..300].iter().chain(&bytes[900..]).all(|&byte| byte == 0));
    }
}

#[test]
fn of_two_writes_of_a_sector_either_may_survive() {
    let disk = SimDisk::explicit(&SimWorld::new(), Bytes(512));
    disk.write_at(&[1; 512], FileOffset(0)).unwrap();
    disk.write_at(&[2; 512], FileOffset(0)).unwrap();
    assert_eq!(outcomes(&disk, 1), BTreeSet::from([vec![0], vec![1], vec![2]]));
}

#[test]
fn sizes_and_punches_are_volatile() {
    let disk = SimDisk::automatic(&SimWorld::new());
    disk.write_at(&[1; 1024], FileOffset(0)).unwrap();
    disk.flush().unwrap();
    disk.punch(FileOffset(0), Bytes(1024)).unwrap();
    let every: BTreeSet<Vec<u8>> = [[0, 0], [0, 1], [1, 0], [1, 1]].map(Vec::from).into();
    assert_eq!(outcomes(&disk, 2), every);
    disk.flush().unwrap();
    assert_eq!(outcomes(&disk, 2), BTreeSet::from([vec![0, 0]]));

    disk.set_size(Bytes(4096)).unwrap();
    disk.write_at(&[1; 1024], FileOffset(4096)).unwrap();
    let sizes: BTreeSet<u64> = SEEDS.map(|seed| disk.after_power_cut(seed).size().unwrap().0).collect();
    assert_eq!(sizes, BTreeSet::from([1024, 4096, 4608, 5120]));
    disk.flush().unwrap();
    disk.set_size(Bytes(512)).unwrap();
    let sizes: BTreeSet<u64> = SEEDS.map(|seed| disk.after_power_cut(seed).size().unwrap().0).collect();
    assert_eq!(sizes, BTreeSet::from([512, 5120]));
}

#[test]
fn a_file_may_have_grown_before_its_data_are_there() {
    let disk = SimDisk::automatic(&SimWorld::new());
    disk.write_at(&[1; 512], FileOffset(0)).unwrap();
    let seen =
        SEEDS.map(|seed| disk.after_power_cut(seed)).map(|cut| (cut.size().unwrap().0, sectors(&cut, 1)));
    assert_eq!(seen.collect::<BTreeSet<_>>(), [(0, vec![0]), (512, vec![0]), (512, vec![1])].into());
}

#[test]
fn a_killed_process_leaves_everything_and_what_was_volatile_stays_so() {
    let disk = SimDisk::explicit(&SimWorld::new(), Bytes(512));
    disk.write_at(&[1; 512], FileOffset(0)).unwrap();
    let heir = disk.after_process_kill();
    assert_eq!(sectors(&heir, 1), [1]);
    assert_eq!(outcomes(&heir, 1), BTreeSet::from([vec![0], vec![1]]));
    heir.flush().unwrap();
    assert_eq!(outcomes(&heir, 1), BTreeSet::from([vec![1]]));
    assert_eq!(outcomes(&disk, 1), BTreeSet::from([vec![0], vec![1]]), "the heir's flush is not this disk's");
}

#[test]
fn a_crash_stops_every_disk_of_the_world_at_that_call() {
    let world = SimWorld::new();
    let (one, two) = (SimDisk::explicit(&world, Bytes(512)), SimDisk::explicit(&world, Bytes(512)));
    one.write_at(&[1; 512], FileOffset(0)).unwrap();
    one.flush().unwrap();
    two.write_at(&[1; 512], FileOffset(0)).unwrap();
    world.crash_at(world.calls());
    assert!(is_crash(&two.write_at(&[2; 512], FileOffset(0)).unwrap_err()));
    assert!(world.has_crashed());
    assert!(is_crash(&one.read_at(&mut [0], FileOffset(0)).unwrap_err()));
    assert!(is_crash(&two.flush().unwrap_err()));
    assert!(is_crash(&one.size().unwrap_err()));
    assert_eq!(world.counts().writes, 3);
    assert_eq!((two.counts().writes, two.counts().flushes, one.counts().flushes), (2, 0, 1));
    let mut seen = BTreeSet::new();
    drop((one, two)); // What they held is the world's to tell.
    for seed in SEEDS {
        let disks = world.after_power_cut(seed);
        assert_eq!(sectors(&disks[0], 1), [1]);
        seen.insert(sectors(&disks[1], 1));
        assert!(Arc::ptr_eq(disks[0].world(), disks[1].world()));
    }
    assert_eq!(seen, BTreeSet::from([vec![0], vec![1], vec![2]]), "the write under way may have landed");
    assert_eq!(sectors(&world.after_process_kill()[1], 1), [2]);
}

#[test]
fn a_flush_under_way_at_the_crash_promises_nothing() {
    let world = SimWorld::new();
    let disk = SimDisk::explicit(&world, Bytes(512));
    disk.write_at(&[1; 512], FileOffset(0)).unwrap();
    world.crash_at(1);
    assert!(is_crash(&disk.flush().unwrap_err()));
    assert_eq!(outcomes(&disk, 1), BTreeSet::from([vec![0], vec![1]]));
}

#[test]
fn a_failed_flush_leaves_everything_volatile_until_the_disk_is_opened_again() {
    let world = SimWorld::new();
    let disk = SimDisk::explicit(&world, Bytes(512));
    disk.write_at(&[1; 512], FileOffset(0)).unwrap();
    world.fail(Fault::nth(0, Errno::EIO).of(Call::Flush));
    for _ in 0..2 {
        assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    }
    assert_eq!(outcomes(&disk, 1), BTreeSet::from([vec![0], vec![1]]));
    disk.after_process_kill().flush().unwrap();
}

#[test]
fn a_failing_call_changes_nothing_or_only_its_first_half() {
    let world = SimWorld::new();
    let disk = SimDisk::explicit(&world, Bytes(2048));
    world.fail(Fault::nth(0, Errno::EIO));
    assert_eq!(disk.write_at(&[1; 2048], FileOffset(0)).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    assert_eq!(sectors(&disk, 1), [0]);
    world.fail(Fault::nth(1, Errno::ENOSPC).of(Call::Write).partial());
    assert_eq!(disk.write_at(&[1; 2048], FileOffset(0)).unwrap_err().raw_os_error(), Some(nix::libc::ENOSPC));
    assert_eq!(sectors(&disk, 4), [1, 1, 0, 0]);
    world.fail(Fault::nth(0, Errno::EIO).forever());
    world.crash_at(100);
    assert!(disk.write_at(&[3; 2048], FileOffset(0)).is_err());
    world.heal();
    disk.write_at(&[4; 2048], FileOffset(0)).unwrap();
    assert_eq!(sectors(&disk, 4), [4; 4]);
}

#[test]
fn a_disk_of_many_gibibytes_with_few_writes_is_small() {
    let disk = SimDisk::automatic(&SimWorld::new());
    disk.write_at(&[1; 512], FileOffset(2 << 40)).unwrap();
    disk.punch(FileOffset(0), Bytes(1 << 40)).unwrap();
    assert_eq!(disk.allocated().unwrap(), Bytes(4096));
    assert_eq!(disk.after_process_kill().size().unwrap(), Bytes((2 << 40) + 512));
    disk.punch(FileOffset(0), Bytes(4 << 40)).unwrap();
    assert_eq!(disk.allocated().unwrap(), Bytes(4096), "the file does not end with a page");
}

fn apply(disk: &dyn Container, op: &Op) {
    match *op {
        Op::Write { at, len, fill, .. } => {
            let data = vec![fill; usize::try_from(len).unwrap()];
            disk.write_at(&data, FileOffset(at)).unwrap();
        }
        Op::Punch { at, len } => disk.punch(FileOffset(at), Bytes(len)).unwrap(),
        Op::SetSize(size) => disk.set_size(Bytes(size)).unwrap(),
        Op::Flush => disk.flush().unwrap(),
        Op::Read { .. } => {}
    }
}

fn whole(disk: &SimDisk) -> (u64, Vec<u8>) {
    let mut bytes = vec![0; 60_000];
    disk.read_at(&mut bytes, FileOffset(0)).unwrap();
    (disk.size().unwrap().0, bytes)
}

#[test]
fn after_a_flush_every_cut_gives_what_was_read_and_a_seed_always_the_same() {
    proptest!(cases(64), |(ops in ops(), more in ops(), seed: u64)| {
        let disk = SimDisk::automatic(&SimWorld::new());
        ops.iter().for_each(|op| apply(&*disk, op));
        disk.flush().unwrap();
        prop_assert!(whole(&disk.after_power_cut(seed)) == whole(&disk));
        more.iter().for_each(|op| apply(&*disk, op));
        prop_assert!(whole(&disk.after_power_cut(seed)) == whole(&disk.after_power_cut(seed)));
        prop_assert!(whole(&disk.after_process_kill()) == whole(&disk));
    });
}
