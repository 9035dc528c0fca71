//! Images that other programs wrote: read them as they do, and create the same bytes.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_chain::{Layer, LayerMut};
use catena_types::{BlockIndex, Bytes, ImageId, SectorSet};
use catena_vhd::{CreateSpec, DiskKind, Error, FooterState, Image, Mode, ParentSpec, create};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::Arc;
use support::*;

fn hash(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn manifest(path: &str) -> serde_json::Value {
    serde_json::from_slice(&golden(path)).unwrap()
}

fn open(name: &str) -> Image {
    Image::open(golden_image(name), Mode::ReadOnly).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn chains_of_the_vendor_read_as_the_vendor_reads_them() {
    let manifest = manifest("manifest.json");
    for (folder, depth) in [("chain3", 3), ("chain30", 30)] {
        let layers: Vec<Image> = (0..depth).map(|n| open(&format!("{folder}/L{n}.vhd"))).collect();
        for top in 0..depth {
            let chain: Vec<&Image> = layers[..=top].iter().rev().collect();
            let expected = &manifest[folder][format!("L{top}.vhd")];
            assert_eq!(chain[0].virtual_size().0, expected["virtual_size"].as_u64().unwrap());
            let allocated = chain[0].info().allocated_blocks.to_string();
            assert_eq!(expected["query"].as_array().unwrap().last().unwrap(), allocated.as_str());
            assert_eq!(hash(&read_disk(&chain)), expected["sha256"].as_str().unwrap(), "{folder}/L{top}");
            let info = chain[0].info();
            assert_eq!(
                info.parent.as_ref().map(|parent| parent.id),
                chain.get(1).map(|below| below.info().id)
            );
            if let Some(parent) = info.parent {
                let name = format!("L{}.vhd", top - 1);
                assert_eq!((&parent.name, parent.locators.len()), (&name, 3));
                assert!(
                    parent.locators.iter().all(|path| *path == format!("./{name}")),
                    "{:?}",
                    parent.locators
                );
            }
            assert_eq!(errors(chain[0].container()), [], "{folder}/L{top}");
        }
    }
    assert!(open("chain3/L0.vhd").info().hidden && !open("chain3/L2.vhd").info().hidden);
}

#[test]
fn special_images_read_as_their_programs_read_them() {
    for (name, expected) in manifest("special/manifest.json").as_object().unwrap() {
        let image = open(&format!("special/{name}"));
        assert_eq!(image.virtual_size().0, expected["virtual_size"].as_u64().unwrap(), "{name}");
        let mut content = read_disk(&[&image]);
        if name == "qcrash.vhd" {
            // The vendor's tool takes the last 512 bytes of any file for a footer and reads zeros there. Here they are the end
            // of block 2, an owned sector with data, as the vendor's own repair of the same file shows.
            let last = 3 * 2 * 1024 * 1024 - 512;
            assert_eq!(content, read_disk(&[&open("special/qrepaired.vhd")]));
            assert!(content[last..last + 512].iter().all(|&byte| byte == b'B'));
            content[last..last + 512].fill(0);
        }
        assert_eq!(hash(&content), expected["sha256"].as_str().unwrap(), "{name}");
    }
    for name in ["v3", "v1024", "c1", "c5", "q1G-off", "q1G-on"] {
        assert_eq!(open(&format!("special/{name}.vhd")).next_block(BlockIndex(0)), None, "{name}");
    }
    assert_eq!(open("special/qcrash.vhd").info().footers, FooterState::EndMissing);
    assert_eq!(open("special/qemu-fixed.vhd").info().kind, DiskKind::Fixed);
}

#[test]
fn images_of_other_programs_are_not_written() {
    for name in ["qemu-data", "qemu-fixed", "q1G-off", "q1G-on"] {
        let refused = Image::open(golden_image(&format!("special/{name}.vhd")), Mode::ReadWrite);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{name}");
        assert!(open(&format!("special/{name}.vhd")).info().foreign);
    }
}

#[test]
fn a_file_without_its_footer_gets_one_with_the_first_change() {
    let disk = golden_image("special/qcrash.vhd");
    let before = read_disk(&[&open("special/qcrash.vhd")]);
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    put(&mut image, 40, 0..1, 0xee).unwrap();
    image.close().unwrap();
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    assert_eq!(image.info().footers, FooterState::Both);
    let after = read_disk(&[&image]);
    let at = 40 * 2 * 1024 * 1024;
    assert_eq!((&after[..at], &after[at + 512..]), (&before[..at], &before[at + 512..]));
    assert_eq!(errors(&*disk), []);
}

/// What the golden image says about itself, to create the same.
fn spec_of(image: &Image, presized: bool) -> CreateSpec {
    let info = image.info();
    CreateSpec {
        id: info.id,
        virtual_size: info.original_size,
        parent: info.parent.map(|parent| ParentSpec {
            id: parent.id,
            name: parent.name,
            timestamp: parent.timestamp,
        }),
        table_size: presized.then_some(info.table_size),
        fixed: false,
        hidden: false,
        timestamp: info.timestamp,
    }
}

#[test]
fn creating_gives_the_bytes_of_the_vendor() {
    for (name, presized) in [("v3", false), ("v1024", false), ("c1", false), ("c5", true)] {
        let path = format!("special/{name}.vhd");
        let disk = Memory::new();
        create(&*disk, &spec_of(&open(&path), presized)).unwrap();
        assert!(disk.all() == golden_image(&path).all(), "{name}");
    }
}

#[test]
fn creating_on_a_device_puts_the_footer_into_its_last_sector() {
    let vendor = golden_image("special/lv.img").all();
    let disk = Memory::device(vendor.len() as u64);
    create(&*disk, &spec_of(&open("special/lv.img"), true)).unwrap();
    let ours = disk.all();
    assert!(ours[..1536] == vendor[..1536], "footer copy and header");
    assert!(ours[vendor.len() - 512..] == vendor[vendor.len() - 512..], "footer");
    assert!(ours[0x1600..0x1a00] == vendor[0x1600..0x1a00], "batmap");
    assert!(ours[1536..0x1600].iter().all(|&byte| byte == 0xff), "block table");
    let small = Memory::device(6 * 512);
    assert!(matches!(create(&*small, &spec(4)), Err(Error::NoSpace { missing: Bytes(512) })));
}

#[test]
fn sizes_of_new_images_are_those_of_the_vendor() {
    let sizes = [
        (1, 3584, 5120),
        (100, 3584, 5120),
        (504, 4096, 5632),
        (1024, 5120, 6656),
        (8192, 19_456, 20_992),
        (10_240, 24_064, 25_600),
        (102_400, 214_016, 215_552),
        (130_048, 270_848, 272_384),
        (1_048_576, 2_165_248, 2_166_784),
        (2_088_960, 4_311_040, 4_312_576),
    ];
    for (mib, dynamic, child) in sizes {
        for (spec, size) in [(spec(mib), dynamic), (child_spec(mib), child)] {
            let (disk, image) = fresh(&spec);
            assert_eq!(disk.all().len(), size, "{mib} MiB");
            // A child keeps the size of its parent.
            let virtual_size = if spec.parent.is_some() { mib } else { mib.max(2) };
            assert_eq!(image.info().virtual_size, Bytes(virtual_size * MIB));
            assert_eq!(image.info().physical_end, Bytes(size as u64));
        }
    }
    for (mib, spec) in [(0, spec(0)), (2_088_961, spec(2_088_961))] {
        assert!(matches!(create(&*Memory::new(), &spec), Err(Error::OutOfRange(_))), "{mib} MiB");
    }
}

#[test]
fn the_first_blocks_lie_where_the_vendor_puts_them() {
    let (disk, mut image) = fresh(&spec(1024));
    for (block, sector) in [(5, 15u64), (0, 4119), (9, 8223)] {
        assert_eq!(image.place(BlockIndex(block)).unwrap().0, (sector + 1) * 512);
        image.wrote(BlockIndex(block), &SectorSet::of(0..1)).unwrap();
    }
    image.close().unwrap();
    assert_eq!(disk.all().len() as u64, (8223 + 4097 + 1) * 512);
    assert_eq!(disk.bytes(1536 + 4 * 5, 4), [0, 0, 0, 15]);
}

#[test]
fn a_fixed_image_is_data_and_a_footer() {
    let disk = Memory::new();
    create(&*disk, &CreateSpec { fixed: true, ..spec(4) }).unwrap();
    let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap();
    assert_eq!((image.info().kind, disk.all().len()), (DiskKind::Fixed, 4 * 1024 * 1024 + 512));
    assert_eq!(image.next_block(BlockIndex(1)), Some(BlockIndex(1)));
    assert_eq!(image.next_block(BlockIndex(2)), None);
    assert!(matches!(Image::open(disk, Mode::ReadWrite), Err(Error::Unsupported(_))));
}

#[test]
fn names_outside_ascii_are_stored_as_unicode() {
    let name = "größe 日本 🦀.vhd";
    let disk = Memory::new();
    create(&*disk, &CreateSpec { parent: Some(parent(name)), ..spec(4) }).unwrap();
    let info = Image::open(disk as Arc<_>, Mode::ReadOnly).unwrap().info().parent.unwrap();
    assert_eq!((info.id, info.name.as_str()), (PARENT, name));
    assert_eq!(info.locators, vec![format!("./{name}"); 3]);
    assert_ne!(info.id, ImageId::from_bytes([0; 16]));
}
