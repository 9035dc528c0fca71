//! Damaged and hostile images: an error or a correct answer, never a panic, never memory without bound.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::Container;
use catena_chain::{Layer, LayerMut};
use catena_types::{BlockIndex, Bytes, FileOffset, ImageId, SectorSet, Severity};
use catena_vhd::{CheckOptions, CreateSpec, Error, FooterState, Image, Mode, ParentSpec, check};
use proptest::prelude::*;
use std::sync::Arc;
use support::*;

/// A small image with three blocks, one of them full, and a parent.
fn sample() -> Arc<Memory> {
    let (disk, mut image) = fresh(&child_spec(16));
    put(&mut image, 0, 0..4096, 1).unwrap();
    put(&mut image, 3, 5..9, 2).unwrap();
    put(&mut image, 7, 0..1, 3).unwrap();
    image.close().unwrap();
    disk
}

fn poke(disk: &Memory, at: u64, bytes: &[u8]) {
    disk.write_at(bytes, FileOffset(at)).unwrap();
}

/// Writes the checksum of a structure anew, so that only the field itself is wrong.
fn reseal(disk: &Memory, at: u64, len: usize, field: usize) {
    let mut raw = disk.bytes(at, len);
    raw[field..field + 4].fill(0);
    let sum = !raw.iter().fold(0u32, |sum, &byte| sum + u32::from(byte));
    poke(disk, at + field as u64, &sum.to_be_bytes());
}

/// Everything that a reader and a writer do.
fn exercise(disk: &Arc<Memory>) {
    for deep in [false, true] {
        check(&**disk, &CheckOptions { deep, now: Some(3), parent: Some((PARENT, Bytes(1))) }).unwrap();
    }
    for mode in [Mode::ReadOnly, Mode::Recall, Mode::ReadWrite] {
        let Ok(mut image) = Image::open(disk.clone(), mode) else { continue };
        image.info();
        let mut block = image.next_block(BlockIndex(0));
        for _ in 0..20 {
            let Some(found) = block else { break };
            let _ = image.ownership(found).map(|owned| owned.to_set().count());
            let _ = image.locate(found);
            block = image.next_block(found.next());
        }
        let _ = image.plan_reparent(&parent("x.vhd"));
        if mode == Mode::ReadWrite {
            let _ = put(&mut image, 1, 0..2, 7);
            let _ = image.give_up(&[(BlockIndex(0), SectorSet::full())]);
            let _ = image.set_hidden(true);
            let _ = image.grow(Bytes(600 * MIB));
            let _ = image.close();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_flipped_bytes_are_survived(
        flips in prop::collection::vec((0u64..4608, any::<u8>()), 1..6),
        reseal_footers in any::<bool>(),
        reseal_header in any::<bool>(),
    ) {
        let disk = sample();
        let end = disk.all().len() as u64 - 512;
        for (at, value) in flips {
            poke(&disk, at, &[value]);
            if at < 512 {
                poke(&disk, end + at, &[value]);
            }
        }
        if reseal_footers {
            reseal(&disk, 0, 512, 64);
            reseal(&disk, end, 512, 64);
        }
        if reseal_header {
            reseal(&disk, 512, 1024, 36);
        }
        exercise(&disk);
    }
}

fn finds(disk: &Memory, name: &str) -> bool {
    let options = CheckOptions { deep: true, now: Some(1 << 20), parent: Some((PARENT, Bytes(MIB))) };
    check(disk, &options).unwrap().iter().any(|problem| problem.check == name)
}

#[test]
fn each_rule_is_shown_to_fail() {
    let sound = sample();
    assert_eq!(check(&*sound, &CheckOptions { deep: true, ..Default::default() }).unwrap(), []);
    let end = sound.all().len() as u64 - 512;
    let entry = |block: u64| 1536 + 4 * block;
    // Name of the rule, position, bytes, and where a checksum must be made right again.
    type Case<'a> = (&'a str, u64, &'a [u8], Option<(u64, usize, usize)>);
    let header = Some((512, 1024, 36));
    let footer = Some((end, 512, 64));
    let cases: &[Case<'_>] = &[
        ("footer_end", end, &[0; 512], None),
        ("footer_copy", 0, &[0; 512], None),
        ("footers_differ", end + 85, &[1], footer),
        ("footer_features", end + 11, &[7], footer),
        ("footer_geometry", end + 56, &[0xff; 4], footer),
        ("footer_flags", end + 84, &[2], footer),
        ("footer_reserved", end + 200, &[1], footer),
        ("footer_id", end + 68, &[0; 16], footer),
        ("footer_timestamp", end + 24, &[0xff; 4], footer),
        ("unsupported", end + 12, &[0, 2, 0, 0], footer),
        ("header_cookie", 512, b"x", header),
        ("header_checksum", 512 + 700, b"x", None),
        ("header_version", 512 + 24, &[9], header),
        ("header_table_offset", 512 + 16, &[0; 8], header),
        ("header_reserved", 512 + 800, &[1], header),
        ("alignment", 512 + 23, &[1], header),
        ("table_short", 512 + 28, &[0, 0, 0, 7], header),
        ("table_outside", 512 + 28, &[0, 0x1f, 0, 0], header),
        ("parent_id", 512 + 40, &[8], header),
        ("parent_timestamp", 512 + 56, &[0xff; 4], header),
        ("parent_name", 512 + 64, &[0, 0], header),
        ("locator_code", 512 + 576, b"abcd", header),
        ("locator_unique", 512 + 576, b"W2ku", header),
        ("locator_place", 512 + 576 + 8, &[0; 4], header),
        ("locator_missing", 512 + 576, &[0; 72], header),
        ("locator_name", 3072 + 9, b"q", None),
        ("batmap", 2048, b"x", None),
        ("batmap_checksum", 2560, &[0xff], None),
        ("batmap_unallocated", 2560, &[0xc0], Some((2560, 0, 0))),
        ("block_over_headers", entry(0), &[0, 0, 0, 8], None),
        ("block_over_footer", entry(0), &[0, 0xff, 0, 8], None),
        ("block_overlap", entry(1), &[0, 0, 0, 0x0f], None),
        ("batmap_stale", 15 * 512 + 3, &[0x7f], None),
    ];
    for (name, at, bytes, seal) in cases {
        let disk = sound.copy();
        poke(&disk, *at, bytes);
        match seal {
            Some((_, 0, 0)) => {
                let sum = !disk.bytes(2560, 512).iter().map(|&byte| u32::from(byte)).sum::<u32>();
                poke(&disk, 2048 + 24, &sum.to_be_bytes());
            }
            Some((at, len, field)) => reseal(&disk, *at, *len, *field),
            None => {}
        }
        assert!(
            !finds(&sound, name) && finds(&disk, name),
            "{name}: {:?}",
            check(&*disk, &CheckOptions::default())
        );
    }
}

#[test]
fn vendor_bug_wrong_parent_is_detectable() {
    let disk = sample();
    let other = CheckOptions { parent: Some((ImageId::random(), Bytes(16 * MIB))), ..Default::default() };
    let found = check(&*disk, &other).unwrap();
    assert!(found.iter().any(|problem| problem.check == "parent_id" && problem.severity == Severity::Error));
    let larger = CheckOptions { parent: Some((PARENT, Bytes(17 * MIB))), ..Default::default() };
    assert_eq!(check(&*disk, &larger).unwrap()[0].check, "parent_size");
}

#[test]
fn contradictions_are_errors_where_they_are_touched() {
    let disk = sample();
    poke(&disk, 1536 + 4 * 3, &[0, 0xff, 0, 0]);
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    assert!(image.ownership(BlockIndex(0)).is_ok());
    let error = image.ownership(BlockIndex(3)).unwrap_err();
    assert!(matches!(error, catena_chain::Error::Damaged { block: BlockIndex(3), .. }), "{error}");
    assert!(
        matches!(Image::open(disk, Mode::ReadWrite), Err(Error::Damaged { .. })),
        "nothing is built on damage"
    );
}

#[test]
fn a_huge_table_in_a_small_file_is_refused_before_memory_is_taken() {
    let disk = sample();
    let end = disk.all().len() as u64 - 512;
    poke(&disk, 512 + 28, &[0xff; 4]);
    reseal(&disk, 512, 1024, 36);
    for at in [0, end] {
        poke(&disk, at + 48, &[0, 0x10, 0, 0, 0, 0, 0, 0]);
        reseal(&disk, at, 512, 64);
    }
    assert!(matches!(Image::open(disk, Mode::ReadOnly), Err(Error::Unsupported(_))));
}

#[test]
fn footers_are_looked_for_in_three_places() {
    let disk = sample();
    let all = disk.all();
    let old = Arc::new(Memory::from_bytes(&all[..all.len() - 1], catena_blockio::Sizing::Automatic));
    poke(&old, 0, &[0; 512]);
    assert_eq!(Image::open(old, Mode::ReadOnly).unwrap().info().footers, FooterState::CopyDamaged);
    poke(&disk, all.len() as u64 - 512, &[0xc7; 512]);
    assert_eq!(Image::open(disk.clone(), Mode::ReadOnly).unwrap().info().footers, FooterState::EndMissing);
    poke(&disk, 0, &[0xc7; 512]);
    assert!(matches!(Image::open(disk, Mode::ReadOnly), Err(Error::Damaged { check: "footer_cookie", .. })));
}

#[test]
fn what_a_cut_file_has_lost_is_not_read_as_zeros() {
    let (disk, mut image) = fresh(&spec(16));
    put(&mut image, 0, 0..4096, 1).unwrap();
    put(&mut image, 3, 5..9, 2).unwrap();
    image.close().unwrap();
    let all = disk.all();
    let end = all.len() - 512;
    // The last block owns the sectors up to its ninth; what follows it in the file may go with the footer.
    let owned = end - (4096 - 9) * 512;
    for (length, lost) in [(end, false), (owned, false), (owned - 1, true), (owned - 4 * 512, true)] {
        let cut = Arc::new(Memory::from_bytes(&all[..length], catena_blockio::Sizing::Automatic));
        let reader = Image::open(cut.clone(), Mode::ReadOnly).unwrap();
        assert_eq!(reader.info().footers, FooterState::EndMissing);
        assert!(reader.ownership(BlockIndex(0)).is_ok(), "{length}");
        assert_eq!(reader.ownership(BlockIndex(3)).is_err(), lost, "{length}");
        let whole = length == end;
        let before = cut.all();
        assert_eq!(Image::open(cut.clone(), Mode::ReadWrite).is_ok(), whole, "{length}");
        assert!(cut.all() == before);
    }
}

#[test]
fn vendor_bug_batmap_and_footer_overlap_at_8194_mib() {
    let (disk, mut image) = fresh(&spec(8194));
    assert_eq!(disk.all().len(), 1536 + 33 * 512 + 512 + 1024 + 512, "the whole batmap is there");
    put(&mut image, 4095, 0..4096, 1).unwrap();
    put(&mut image, 4096, 0..4096, 2).unwrap();
    image.close().unwrap();
    assert_eq!(errors(&*disk), []);
    let map = 1536 + 33 * 512 + 512;
    assert_eq!(
        disk.bytes(map + 511, 2),
        [0x01, 0],
        "block 4096 is not covered by the checksum and not marked"
    );
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    assert!(image.ownership(BlockIndex(4096)).unwrap().to_set().is_full());

    // As the vendor writes it: the footer lies inside the last sector of the batmap.
    let (broken, _) = fresh(&spec(8194));
    let footer = broken.bytes(0, 512);
    broken.set_size(Bytes(map + 512)).unwrap();
    poke(&broken, map + 512, &footer);
    let mut image = Image::open(broken.clone(), Mode::ReadWrite).unwrap();
    put(&mut image, 0, 0..4096, 9).unwrap();
    image.close().unwrap();
    assert_eq!(errors(&*broken), []);
    assert_eq!(read_block(&[&Image::open(broken, Mode::ReadOnly).unwrap()], 0), vec![9; 2 << 20]);
}

#[test]
fn vendor_bug_block_over_the_footer_of_a_volume() {
    let disk = Memory::device((7 + 4097) * 512 + 2 * 512);
    catena_vhd::create(&*disk, &spec(4)).unwrap();
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    put(&mut image, 0, 0..1, 1).unwrap();
    image.flush().unwrap();
    let before = disk.all();
    let error = image.place(BlockIndex(1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    image.flush().unwrap();
    assert!(disk.all() == before, "nothing was written");
    assert_eq!(errors(&*disk), []);
}

#[test]
fn vendor_bug_old_contents_of_a_volume_do_not_show_through() {
    let disk = Memory::device(16 << 20);
    poke(&disk, 0, &vec![0xdd; 16 << 20]);
    catena_vhd::create(&*disk, &spec(4)).unwrap();
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    put(&mut image, 1, 7..9, 1).unwrap();
    image.close().unwrap();
    let deep = CheckOptions { deep: true, ..Default::default() };
    assert_eq!(check(&*disk, &deep).unwrap(), []);
    let data = disk.bytes(8 * 512, 2 << 20);
    assert!(data[..7 * 512].iter().chain(&data[9 * 512..]).all(|&byte| byte == 0));
}

#[test]
fn an_enlarged_volume_gets_its_footer_with_the_first_change() {
    let small = Memory::device(4 << 20);
    catena_vhd::create(&*small, &spec(8)).unwrap();
    let large = Memory::device(16 << 20);
    poke(&large, 0, &small.all());
    let mut image = Image::open(large.clone(), Mode::ReadWrite).unwrap();
    assert_eq!(image.info().footers, FooterState::EndMissing);
    put(&mut image, 2, 0..1, 1).unwrap();
    image.flush().unwrap();
    drop(image);
    assert_eq!(Image::open(large, Mode::ReadOnly).unwrap().info().footers, FooterState::Both);
}

#[test]
fn a_large_disk_opens_quickly_and_small() {
    let (disk, image) = fresh(&CreateSpec { parent: None::<ParentSpec>, ..spec(2_088_960) });
    assert_eq!(image.next_block(BlockIndex(0)), None);
    assert!(disk.allocated().unwrap() < Bytes(5 << 20));
}
