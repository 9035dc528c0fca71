//! What qemu reads from our images is what we read. It ignores bitmaps, so sectors that nobody owns must be zero.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_chain::LayerMut;
use catena_types::{BlockIndex, SectorSet};
use catena_vhd::{Image, Mode};
use std::process::Command;
use support::*;

#[test]
fn qemu_reads_a_dynamic_image_as_we_do() {
    let (disk, mut image) = fresh(&spec(20));
    put(&mut image, 1, 0..4096, 1).unwrap();
    put(&mut image, 4, 3..5, 2).unwrap();
    image.flush().unwrap();
    // Given up in part and as a whole; the freed slot is used again by a block that owns less.
    image.give_up(&[(BlockIndex(1), SectorSet::full()), (BlockIndex(4), SectorSet::of(4..5))]).unwrap();
    put(&mut image, 7, 9..10, 3).unwrap();
    put(&mut image, 0, 4095..4096, 4).unwrap();
    image.flush().unwrap();
    image.grow(catena_types::Bytes(700 * MIB)).unwrap();
    put(&mut image, 349, 1..2, 5).unwrap();
    image.close().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("disk.vhd"), dir.path().join("disk.raw"));
    std::fs::write(&source, disk.all()).unwrap();
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .args([&source, &target])
        .status()
        .unwrap_or_else(|e| panic!("qemu-img does not start (package qemu-utils): {e}"));
    assert!(status.success());
    let ours = read_disk(&[&Image::open(disk, Mode::ReadOnly).unwrap()]);
    assert!(std::fs::read(&target).unwrap() == ours);
}
