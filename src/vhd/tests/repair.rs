//! Damage to metadata, and its repair: nothing that a block owns is lost, and a crash in the middle is mended by the next repair.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::sim::{SimDisk, SimWorld};
use catena_blockio::{Container, Sizing};
use catena_chain::Layer;
use catena_types::{Bytes, FileOffset};
use catena_vhd::{
    CheckOptions, Error, FooterState, Image, Mode, RepairOptions, apply_patch, check, create, plan_repair,
};
use proptest::prelude::*;
use std::sync::Arc;
use support::*;

/// Positions in a child of 16 MiB: tables for 8 blocks, then three locators.
const HEADER: u64 = 512;
const TABLE: u64 = 1536;
const BATMAP: u64 = 2048;
const MAP: u64 = 2560;
const LOCATOR: u64 = 3072;

fn wanted() -> RepairOptions {
    RepairOptions { parent: Some(parent("base.vhd")), hidden: Some(false), deep: true }
}

/// An image of 16 MiB with full, partial and no blocks; its last block is in the third place.
fn filled(disk: Arc<dyn Container>, child: bool) {
    create(&*disk, &if child { child_spec(16) } else { spec(16) }).unwrap();
    let mut image = Image::open(disk, Mode::ReadWrite).unwrap();
    put(&mut image, 1, 0..4096, 1).unwrap();
    put(&mut image, 6, 3..700, 2).unwrap();
    put(&mut image, 3, 0..9, 3).unwrap();
    image.close().unwrap();
}

fn content(disk: &Arc<dyn Container>) -> Vec<Vec<u8>> {
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    (0..image.virtual_size().blocks()).map(|block| read_block(&[&image], block)).collect()
}

fn problems(disk: &dyn Container) -> Vec<&'static str> {
    let options = CheckOptions { parent: Some((PARENT, Bytes(16 << 20))), now: Some(1 << 20), deep: true };
    let mut found: Vec<&str> =
        check(disk, &options).unwrap().into_iter().map(|problem| problem.check).collect();
    found.dedup();
    found
}

/// Repairs, and returns which rules it says were broken.
fn repair(disk: &dyn Container) -> Result<Vec<&'static str>, Error> {
    let plan = plan_repair(disk, &wanted())?;
    plan.apply(disk)?;
    apply_patch(disk, &plan.header)?;
    Ok(plan.fixes.iter().map(|fix| fix.check).collect())
}

/// A kind of damage that can be repaired, and the rule that finds it.
type Damage = (&'static str, fn(&dyn Container));

fn end(disk: &dyn Container) -> u64 {
    disk.size().unwrap().0
}

fn write(disk: &dyn Container, at: u64, bytes: &[u8]) {
    disk.write_at(bytes, FileOffset(at)).unwrap();
}

fn flip(disk: &dyn Container, at: u64) {
    let mut byte = [0];
    disk.read_at(&mut byte, FileOffset(at)).unwrap();
    write(disk, at, &[!byte[0]]);
}

/// What a child can suffer.
const DAMAGES: &[Damage] = &[
    ("footer_end", |disk| write(disk, end(disk) - 512, &[0xC7; 512])),
    ("footer_end", |disk| flip(disk, end(disk) - 500)),
    ("footer_end", |disk| disk.set_size(Bytes(end(disk) - 512)).unwrap()),
    ("footer_end", |disk| disk.set_size(Bytes(end(disk) - 100)).unwrap()),
    ("footer_end", |disk| write(disk, end(disk), b"garbage behind the footer")),
    ("footer_end", |disk| write(disk, end(disk), &[0x5a; 4096])),
    ("footer_copy", |disk| write(disk, 0, &[0; 512])),
    ("footer_copy", |disk| flip(disk, 300)),
    ("header_checksum", |disk| flip(disk, HEADER + 300)),
    ("header_checksum", |disk| flip(disk, HEADER + 21)),
    ("header_cookie", |disk| write(disk, HEADER, &[0; 1024])),
    ("header_cookie", |disk| write(disk, HEADER, &[0xff; 512])),
    ("batmap", |disk| write(disk, BATMAP, &[0; 512])),
    ("batmap", |disk| flip(disk, BATMAP + 15)),
    ("batmap_checksum", |disk| flip(disk, MAP)),
    ("batmap_unallocated", |disk| write(disk, BATMAP + 24, &mark_of(0xC0))),
    ("batmap_stale", |disk| {
        let bitmap = first_bitmap(disk);
        flip(disk, bitmap + 77);
    }),
    ("batmap_unallocated", |disk| {
        // The batmap also names a block without place, and the bitmap of block 1 is lost: only the batmap still says what it owns.
        let bitmap = first_bitmap(disk);
        write(disk, bitmap, &[0; 512]);
        write(disk, BATMAP + 24, &mark_of(0xC0));
    }),
    ("locator_name", |disk| write(disk, LOCATOR + 9, b"x")),
    ("locator_text", |disk| write(disk, LOCATOR, &[0xff; 512])),
    ("parent_id", |disk| {
        let mut other = parent("other.vhd");
        other.id = catena_types::ImageId::from_bytes([5; 16]);
        let container: Arc<Memory> = Memory::new();
        write(&*container, 0, &all(disk));
        let image = Image::open(container, Mode::ReadOnly).unwrap();
        apply_patch(disk, &image.plan_reparent(&other).unwrap()).unwrap();
    }),
];

/// Where the bitmap of block 1 is, which owns all its sectors.
fn first_bitmap(disk: &dyn Container) -> u64 {
    let mut entry = [0; 4];
    disk.read_at(&mut entry, FileOffset(TABLE + 4)).unwrap();
    u64::from(u32::from_be_bytes(entry)) * 512
}

/// The checksum of a map that begins with this byte, the rest of the header, and the map.
fn mark_of(first: u8) -> Vec<u8> {
    let mut raw = (!u32::from(first)).to_be_bytes().to_vec();
    raw.resize(512 - 24, 0);
    raw.push(first);
    raw
}

fn all(disk: &dyn Container) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(end(disk)).unwrap()];
    disk.read_at(&mut bytes, FileOffset(0)).unwrap();
    bytes
}

#[test]
fn each_damage_is_found_and_mended() {
    for (number, (rule, damage)) in DAMAGES.iter().enumerate() {
        let disk: Arc<dyn Container> = Memory::new();
        filled(disk.clone(), true);
        let before = content(&disk);
        assert_eq!(problems(&*disk), [""; 0]);
        damage(&*disk);
        assert!(problems(&*disk).contains(rule), "damage {number}: {:?}", problems(&*disk));
        let fixed = repair(&*disk).unwrap_or_else(|error| panic!("damage {number}: {error}"));
        assert!(fixed.contains(rule), "damage {number}: {fixed:?}");
        assert_eq!(problems(&*disk), [""; 0], "damage {number}");
        assert!(content(&disk) == before, "damage {number}");
        assert_eq!(repair(&*disk).unwrap(), [""; 0], "damage {number}: nothing is left to do");
        let info = Image::open(disk, Mode::ReadWrite).unwrap().info();
        let parent = info.parent.unwrap();
        assert_eq!((info.footers, parent.id, parent.locators.len()), (FooterState::Both, PARENT, 3));
        assert!(parent.locators.iter().all(|path| path == "./base.vhd"), "damage {number}: {parent:?}");
    }
}

#[test]
fn a_crash_in_a_repair_is_mended_by_the_next() {
    for (number, (_, damage)) in DAMAGES.iter().enumerate() {
        for crash in 0.. {
            let world = SimWorld::new();
            let disk = SimDisk::automatic(&world);
            filled(disk.clone(), true);
            let before = content(&(disk.clone() as Arc<dyn Container>));
            damage(&*disk);
            disk.flush().unwrap();
            world.crash_at(world.calls() + crash);
            let plan = plan_repair(&*disk, &wanted()).ok();
            // When all else is in place the caller puts the header's bytes into its journal (D5), and only then writes them.
            let journal = plan.filter(|plan| plan.apply(&*disk).is_ok()).map(|plan| plan.header);
            let done = journal.as_ref().is_some_and(|header| apply_patch(&*disk, header).is_ok());
            let successors = (0..3).map(|seed| disk.after_power_cut(seed));
            for survivor in successors.chain([disk.after_process_kill()]) {
                let context = format!("damage {number}, crash at call {crash}");
                if let Some(header) = &journal {
                    apply_patch(&*survivor, header).unwrap();
                }
                repair(&*survivor).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(problems(&*survivor), [""; 0], "{context}");
                assert!(content(&(survivor as Arc<dyn Container>)) == before, "{context}");
            }
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_crashed_image_of_the_vendor_becomes_what_its_own_repair_makes_of_it() {
    let disk: Arc<dyn Container> = golden_image("special/qcrash.vhd");
    assert_eq!(problems(&*disk)[0], "footer_end");
    let options = RepairOptions::default();
    let plan = plan_repair(&*disk, &options).unwrap();
    assert_eq!(plan.fixes.iter().map(|fix| fix.check).collect::<Vec<_>>(), ["footer_end"]);
    assert_eq!(plan.touched().collect::<Vec<_>>(), [(FileOffset(end(&*disk)), 512)]);
    plan.apply(&*disk).unwrap();
    assert_eq!(errors(&*disk), []);
    assert!(content(&disk) == content(&(golden_image("special/qrepaired.vhd") as Arc<dyn Container>)));
}

#[test]
fn what_would_lose_data_is_refused_and_nothing_is_written() {
    let damages: [Damage; 7] = [
        ("footer_cookie", |disk| {
            write(disk, 0, &[0; 512]);
            write(disk, end(disk) - 512, &[0; 512]);
        }),
        // The second block's place is the first one's.
        ("block_overlap", |disk| {
            let mut entry = [0; 4];
            disk.read_at(&mut entry, FileOffset(TABLE + 4)).unwrap();
            write(disk, TABLE + 24, &entry);
        }),
        ("block_overlap", |disk| write(disk, TABLE, &[0, 0, 0, 1])),
        ("block_over_footer", |disk| write(disk, TABLE, &[0x70, 0, 0, 7])),
        ("block_over_footer", |disk| disk.set_size(Bytes(3 << 20)).unwrap()),
        // Neither header nor batmap says where the table is.
        ("header_cookie", |disk| write(disk, HEADER, &[0; 2048])),
        // The header can be rebuilt, but a block is said to be where the parent's name would be.
        ("locator_place", |disk| {
            write(disk, HEADER, &[0; 8]);
            write(disk, TABLE, &[0; 4]);
        }),
    ];
    for (rule, damage) in damages {
        let disk: Arc<dyn Container> = Memory::new();
        filled(disk.clone(), true);
        damage(&*disk);
        let before = all(&*disk);
        match plan_repair(&*disk, &wanted()) {
            Err(Error::Damaged { check, .. }) => assert_eq!(check, rule),
            other => panic!("{rule}: {other:?}"),
        }
        assert!(all(&*disk) == before, "{rule}");
    }
    for name in ["qemu-data", "qemu-fixed", "q1G-off", "q1G-on"] {
        let refused = plan_repair(&*golden_image(&format!("special/{name}.vhd")), &wanted());
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{name}");
    }
}

#[test]
fn a_block_cut_by_the_end_is_kept_if_what_it_owns_is_there() {
    let disk: Arc<dyn Container> = Memory::new();
    filled(disk.clone(), true);
    let before = content(&disk);
    // The last block, number 3, owns its first 9 sectors only.
    disk.set_size(Bytes(end(&*disk) - (1 << 20))).unwrap();
    assert!(problems(&*disk).contains(&"block_over_footer"));
    assert_eq!(repair(&*disk).unwrap(), ["block_over_footer", "footer_end"]);
    assert_eq!(problems(&*disk), [""; 0]);
    assert!(content(&disk) == before);
}

#[test]
fn a_block_that_owns_nothing_gives_way() {
    let disk: Arc<dyn Container> = Memory::new();
    filled(disk.clone(), true);
    let before = content(&disk);
    // The unowned end of block 6 reads as an empty bitmap: block 0 is said to lie there.
    let mut entry = [0; 4];
    disk.read_at(&mut entry, FileOffset(TABLE + 24)).unwrap();
    write(&*disk, TABLE, &(u32::from_be_bytes(entry) + 2000).to_be_bytes());
    assert!(problems(&*disk).contains(&"block_overlap"));
    assert_eq!(repair(&*disk).unwrap(), ["block_overlap"]);
    assert_eq!(problems(&*disk), [""; 0]);
    assert!(content(&disk) == before);
}

#[test]
fn the_catalog_decides_about_flag_and_parent() {
    let (disk, _) = fresh(&spec(16));
    let hidden = RepairOptions { hidden: Some(true), ..RepairOptions::default() };
    let plan = plan_repair(&*disk, &hidden).unwrap();
    plan.apply(&*disk).unwrap();
    assert!(Image::open(disk.clone(), Mode::ReadOnly).unwrap().info().hidden);
    assert_eq!(plan_repair(&*disk, &hidden).unwrap().fixes, []);
    // A disk without parent that names one is told to forget it.
    let (other, image) = fresh(&child_spec(16));
    write(&*disk, HEADER, &other.bytes(HEADER, 1024));
    drop(image);
    assert!(problems(&*disk).contains(&"header_parent"));
    assert!(repair(&*disk).unwrap().contains(&"header_parent"));
    assert_eq!(problems(&*disk), [""; 0]);
}

#[test]
fn the_footer_of_a_volume_stays_in_its_last_sector() {
    let disk: Arc<dyn Container> = Memory::device(20 << 20);
    filled(disk.clone(), false);
    let before = content(&disk);
    write(&*disk, (20 << 20) - 512, &[0; 512]);
    assert_eq!(problems(&*disk), ["footer_end"]);
    repair(&*disk).unwrap();
    assert_eq!(problems(&*disk), [""; 0]);
    assert!(content(&disk) == before);
}

/// Where a random damage goes.
#[derive(Debug, Clone)]
enum Hit {
    /// Bytes at a position before the first block.
    Metadata(u64, Vec<u8>),
    /// The entry of a block.
    Entry(u32, u32),
    /// Bytes so far before the end.
    End(u64, Vec<u8>),
    /// The file is longer, or shorter by less than a footer.
    Size(i64),
}

fn hit() -> impl Strategy<Value = Hit> {
    let bytes = prop::collection::vec(any::<u8>(), 1..600);
    let outside_table = prop_oneof![0..TABLE - 600, TABLE + 32..4000u64];
    prop_oneof![
        4 => (outside_table, bytes.clone()).prop_map(|(at, bytes)| Hit::Metadata(at, bytes)),
        1 => (0u32..8, prop_oneof![any::<u32>(), 0u32..13_000]).prop_map(|(n, at)| Hit::Entry(n, at)),
        2 => (1u64..513, bytes).prop_map(|(at, bytes)| Hit::End(at, bytes)),
        1 => (-512i64..5000).prop_map(Hit::Size),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_damage_is_mended_or_refused(
        hits in prop::collection::vec(hit(), 1..4),
        child in any::<bool>(),
        device in any::<bool>(),
    ) {
        let sizing = if device { Sizing::Explicit } else { Sizing::Automatic };
        let disk: Arc<dyn Container> =
            if device { Memory::device(20 << 20) } else { Memory::new() };
        filled(disk.clone(), child);
        let before = content(&disk);
        let mut lost = Vec::new();
        for hit in &hits {
            let size = end(&*disk);
            match hit {
                Hit::Metadata(at, bytes) => {
                    // Before the bitmap of the first block.
                    let end: u64 = if child { 7680 } else { 3584 };
                    let len = bytes.len().min(usize::try_from(end.saturating_sub(*at)).unwrap());
                    write(&*disk, *at, &bytes[..len]);
                }
                Hit::Entry(block, value) => {
                    write(&*disk, TABLE + u64::from(*block) * 4, &value.to_be_bytes());
                    lost.push(*block);
                }
                Hit::End(back, bytes) => {
                    let len = bytes.len().min(usize::try_from(*back).unwrap());
                    write(&*disk, size - back, &bytes[..len]);
                }
                Hit::Size(by) if sizing == Sizing::Automatic => {
                    disk.set_size(Bytes(size.saturating_add_signed(*by))).unwrap();
                }
                Hit::Size(_) => {}
            }
        }
        let damaged = all(&*disk);
        let found = problems(&*disk);
        match repair(&*disk) {
            Err(Error::Damaged { check, .. }) => {
                prop_assert!(!found.is_empty(), "refused for {check}, and not found");
                prop_assert!(all(&*disk) == damaged, "refused, and written");
            }
            Err(other) => prop_assert!(matches!(other, Error::Unsupported(_)), "{other}"),
            Ok(_) => {
                prop_assert_eq!(errors(&*disk), []);
                let after = content(&disk);
                for (number, (before, after)) in before.iter().zip(&after).enumerate() {
                    let hit = lost.iter().any(|&block| block as usize == number);
                    prop_assert!(hit || before == after, "block {number} after {found:?}");
                }
            }
        }
    }
}
