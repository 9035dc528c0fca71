//! Trimming: unused space comes back, and a crash anywhere leaves each block as it was or given up, never in part.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::Container;
use catena_blockio::sim::{SimDisk, SimWorld};
use catena_types::FileOffset;
use catena_vhd::{Error, Image, Mode, create};
use std::sync::Arc;
use support::*;

/// Where the table of blocks is.
const TABLE: u64 = 1536;
/// The blocks that have lost their places: one between others, and the last one.
const LOST: [u32; 2] = [1, 3];

/// A disk of four blocks, of which two have lost their places. That is not durable: only a process that was killed knew.
fn given_up(disk: &Arc<SimDisk>) -> Vec<u8> {
    create(&**disk, &spec(8)).unwrap();
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    for (block, fill) in (0..4).zip(1..) {
        // Not all of it, or the batmap would name the block.
        put(&mut image, block, 1..4096, fill).unwrap();
    }
    image.close().unwrap();
    let before = content(disk);
    for block in LOST {
        disk.write_at(&[0xff; 4], FileOffset(TABLE + u64::from(block) * 4)).unwrap();
    }
    before
}

fn content(disk: &Arc<SimDisk>) -> Vec<u8> {
    read_disk(&[&Image::open(disk.clone(), Mode::ReadOnly).unwrap()])
}

fn trim(disk: &Arc<SimDisk>) -> Result<(), Error> {
    Image::open(disk.clone(), Mode::ReadWrite)?.trim()
}

#[test]
fn unused_space_comes_back_and_nothing_else() {
    let disk = SimDisk::automatic(&SimWorld::new());
    given_up(&disk);
    let (before, taken) = (content(&disk), disk.allocated().unwrap());
    trim(&disk).unwrap();
    assert!(content(&disk) == before);
    assert_eq!(errors(&*disk), []);
    let freed = taken.0 - disk.allocated().unwrap().0;
    assert!(freed > 2 * (2 * MIB - 8192), "{freed} bytes came back");
    trim(&disk).unwrap();
    assert_eq!(disk.allocated().unwrap().0, taken.0 - freed, "there is nothing left to come back");
}

#[test]
fn a_crash_leaves_each_block_whole_or_given_up() {
    for crash in 0.. {
        let world = SimWorld::new();
        let disk = SimDisk::automatic(&world);
        let before = given_up(&disk);
        world.crash_at(world.calls() + crash);
        let done = trim(&disk).is_ok();
        for seed in 0..12 {
            let survivor = disk.after_power_cut(seed);
            let context = format!("crash at call {crash}, power cut with seed {seed}");
            assert_eq!(errors(&*survivor), [], "{context}");
            let now = content(&survivor);
            let pairs = before.chunks(2 << 20).zip(now.chunks(2 << 20));
            for (block, (before, now)) in (0..).zip(pairs) {
                let lost = LOST.contains(&block) && now.iter().all(|&byte| byte == 0);
                assert!(lost || before == now, "{context}: block {block}");
            }
            trim(&survivor).unwrap();
            assert!(content(&survivor) == now, "{context}: the next trim");
        }
        if done {
            assert!(crash > 5, "a trim does something");
            return;
        }
    }
}
