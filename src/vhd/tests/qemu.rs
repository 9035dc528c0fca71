//! What qemu reads from our images is what we read. It ignores bitmaps, so sectors that nobody owns must be zero.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_chain::{Layer, LayerMut, LiveLayer, Plan};
use catena_types::{BlockIndex, FileOffset, SectorSet};
use catena_vhd::{Image, Mode};
use std::process::Command;
use support::*;

/// What qemu finds on the disk of an image.
fn qemu_reads(image: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("disk.vhd"), dir.path().join("disk.raw"));
    std::fs::write(&source, image).unwrap();
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .args([&source, &target])
        .status()
        .unwrap_or_else(|e| panic!("qemu-img does not start (package qemu-utils): {e}"));
    assert!(status.success());
    std::fs::read(&target).unwrap()
}

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

    let read = qemu_reads(&disk.all());
    let ours = read_disk(&[&Image::open(disk, Mode::ReadOnly).unwrap()]);
    assert!(read == ours);
}

#[test]
fn qemu_reads_a_served_image_that_nobody_closed_as_we_do() {
    let (disk, mut image) = fresh(&spec(20));
    let write = |image: &mut Image, block: u32, sectors: std::ops::Range<usize>, fill: u8| {
        let placed = LiveLayer::place(image, BlockIndex(block)).unwrap();
        placed.first.run(image.container()).unwrap();
        let at = FileOffset(placed.at.0 + sectors.start as u64 * 512);
        image.container().write_at(&vec![fill; sectors.len() * 512], at).unwrap();
        LiveLayer::wrote(image, BlockIndex(block), &SectorSet::of(sectors)).unwrap();
    };
    let carry_out = |image: &Image, plan: &Plan| plan.run(image.container()).unwrap();
    write(&mut image, 3, 0..4096, 1);
    write(&mut image, 5, 7..90, 2);
    let commit = image.begin_commit().unwrap().unwrap();
    carry_out(&image, &commit.plan);
    image.end_commit(commit, true).unwrap();
    let gone = [(BlockIndex(3), SectorSet::full()), (BlockIndex(5), SectorSet::of(20..60))];
    let give_up = image.begin_give_up(&gone).unwrap();
    carry_out(&image, &give_up.plan);
    image.end_give_up(give_up, true).unwrap();
    write(&mut image, 8, 1..2, 3);
    let commit = image.begin_commit().unwrap().unwrap();
    carry_out(&image, &commit.plan);
    drop(image);
    assert_eq!(errors(&*disk), []);
    assert!(qemu_reads(&disk.all()) == read_disk(&[&Image::open(disk, Mode::ReadOnly).unwrap()]));
}
