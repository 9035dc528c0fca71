//! Containers that get another size: at every call of an inflate and a deflate a power cut leaves an image that opens and reads
//! the same, whatever lay behind its old end.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::sim::{SimDisk, SimWorld};
use catena_blockio::{Container, Sizing};
use catena_types::{Bytes, FileOffset};
use catena_vhd::{ContainerSizes, CreateSpec, Error, FooterState, Image, Mode, create, table_size_on};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use support::model::{Model, Step, use_again};
use support::{MIB, child_spec, spec};

const SEEDS: u64 = 3;
const EXTENT: u64 = 4 * MIB;
/// What the storage below has: more than any volume on it.
const STORAGE: Bytes = Bytes(28 * MIB);

/// A logical volume: the first bytes of a disk that has more.
struct Volume {
    disk: Arc<SimDisk>,
    size: Bytes,
}

impl Volume {
    fn of(disk: &Arc<SimDisk>, size: Bytes) -> Arc<dyn Container> {
        Arc::new(Self { disk: Arc::clone(disk), size: size.round_up(EXTENT) })
    }
}

impl Container for Volume {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let there = usize::try_from(self.size.0.saturating_sub(at.0)).unwrap().min(buf.len());
        let (inside, outside) = buf.split_at_mut(there);
        outside.fill(0);
        self.disk.read_at(inside, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        if at.0 + buf.len() as u64 > self.size.0 {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.disk.write_at(buf, at)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn size(&self) -> io::Result<Bytes> {
        Ok(self.size)
    }

    fn set_size(&self, _: Bytes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        self.disk.punch(at, len)
    }

    fn clone_range(&self, _: FileOffset, _: &dyn Container, _: FileOffset, _: Bytes) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        Ok(self.size)
    }

    fn sizing(&self) -> Sizing {
        Sizing::Explicit
    }

    fn alignment(&self) -> usize {
        1
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An image on a volume, on storage that was full of something else.
struct Scene {
    world: Arc<SimWorld>,
    disk: Arc<SimDisk>,
    model: Model,
    spec: CreateSpec,
}

fn scene(spec: &CreateSpec, size: Bytes, steps: &[Step]) -> Scene {
    let world = SimWorld::new();
    let disk = SimDisk::explicit(&world, STORAGE);
    disk.write_at(&vec![0xAA; usize::try_from(STORAGE.0).unwrap()], FileOffset(0)).unwrap();
    let volume = Volume::of(&disk, size);
    let spec = CreateSpec { table_size: table_size_on(&*volume), ..spec.clone() };
    create(&*volume, &spec).unwrap();
    let mut image = Image::open(volume, Mode::ReadWrite).unwrap();
    let mut model = Model::new(spec.virtual_size.0);
    steps.iter().for_each(|step| model.run(&mut image, step).unwrap());
    image.close().unwrap();
    disk.flush().unwrap();
    Scene { world, disk, model: model.settled(), spec }
}

impl Scene {
    /// Where an older footer of this image stands, with another flag and another time, in the last sector that the volume will have.
    fn haunt(&self, size: Bytes) {
        let at = size.round_up(EXTENT).0 - 512;
        let old = CreateSpec { hidden: true, timestamp: 99, ..self.spec.clone() };
        let ghost = support::Memory::device(8 * MIB);
        create(&*ghost, &old).unwrap();
        self.disk.write_at(&ghost.bytes(8 * MIB - 512, 512), FileOffset(at)).unwrap();
        self.disk.flush().unwrap();
    }
}

fn fit(container: Arc<dyn Container>, before: Bytes, size: Bytes) -> Result<(), Error> {
    let mut image = Image::open_to_fit(container, before)?;
    image.fit(size.round_up(EXTENT))?;
    image.close()
}

/// What a power cut leaves of a volume of this size, in some ways.
fn survivors(disk: &Arc<SimDisk>, size: Bytes) -> impl Iterator<Item = Arc<dyn Container>> {
    (0..SEEDS).map(move |seed| Volume::of(&disk.after_power_cut(seed), size))
}

fn small() -> Vec<Step> {
    vec![Step::Write(2, 10..20, 1), Step::Write(0, 0..4096, 2), Step::Hide(true), Step::Hide(false)]
}

fn sizes(spec: &CreateSpec) -> (Bytes, Bytes) {
    let sizes = ContainerSizes::of(spec.virtual_size);
    (Bytes(sizes.empty.0 + 2 * (2 * MIB + 4096)), sizes.full)
}

#[test]
fn sizes_are_those_of_xenserver() {
    let extents = |bytes: Bytes| bytes.round_up(EXTENT).0 / MIB;
    for (gib, mib) in [(1, 1032), (10, 10_268), (100, 102_608), (1024, 1_050_632)] {
        assert_eq!(extents(ContainerSizes::of(Bytes(gib << 30)).full), mib, "{gib} GiB");
    }
    assert_eq!(ContainerSizes::of(Bytes(2040 << 30)).full.round_up(EXTENT).0, 2_194_719_899_648);
    let empty = ContainerSizes::of(Bytes(10 << 30)).empty;
    assert_eq!((empty.0, extents(empty)), (4_329_472, 8));
}

#[test]
fn an_inflate_can_be_cut_short_anywhere() {
    for spec in [spec(16), child_spec(16)] {
        let (little, full) = sizes(&spec);
        for crash in 0.. {
            let Scene { world, disk, model, .. } = {
                let scene = scene(&spec, little, &small());
                scene.haunt(full);
                scene
            };
            world.crash_at(world.calls() + crash);
            let outcome = fit(Volume::of(&disk, full), little.round_up(EXTENT), full);
            let context = format!("crash at call {crash} of an inflate");
            for survivor in survivors(&disk, full) {
                model.verify(&survivor, &context);
                fit(Arc::clone(&survivor), little.round_up(EXTENT), full).unwrap();
                model.verify(&survivor, &context);
                let found = Image::open(Arc::clone(&survivor), Mode::ReadOnly).unwrap().info();
                assert_eq!((found.footers, found.timestamp), (FooterState::Both, 1), "{context}");
                use_again(&model, &survivor, &context);
            }
            if outcome.is_ok() {
                assert!(crash > 5);
                break;
            }
        }
    }
}

#[test]
fn a_deflate_can_be_cut_short_anywhere_and_needs_nothing_then() {
    for spec in [spec(16), child_spec(16)] {
        let (little, full) = sizes(&spec);
        for crash in 0.. {
            let Scene { world, disk, model, .. } = scene(&spec, full, &small());
            let needs = Image::open(Volume::of(&disk, full), Mode::ReadOnly).unwrap().info().physical_end;
            assert!(needs <= little, "{needs:?}");
            world.crash_at(world.calls() + crash);
            let outcome = fit(Volume::of(&disk, full), full, needs);
            let context = format!("crash at call {crash} of a deflate");
            for survivor in survivors(&disk, full) {
                model.verify(&survivor, &context);
                use_again(&model, &survivor, &context);
            }
            if outcome.is_ok() {
                for survivor in survivors(&disk, needs) {
                    model.verify(&survivor, "cut");
                    let found = Image::open(Arc::clone(&survivor), Mode::ReadOnly).unwrap().info();
                    assert_eq!(found.footers, FooterState::Both);
                    fit(survivor, full, needs).unwrap();
                }
                break;
            }
        }
    }
}

#[test]
fn an_inflated_image_takes_every_block_and_a_deflated_one_not_one_more() {
    let spec = child_spec(16);
    let (_, full) = sizes(&spec);
    let mut scene = scene(&spec, ContainerSizes::of(spec.virtual_size).empty, &[]);
    let needs = ContainerSizes::of(spec.virtual_size).empty;
    fit(Volume::of(&scene.disk, full), needs, full).unwrap();
    let mut image = Image::open(Volume::of(&scene.disk, full), Mode::ReadWrite).unwrap();
    for block in 0..8 {
        scene.model.run(&mut image, &Step::Write(block, 4090..4096, 7)).unwrap();
    }
    let needs = image.info().physical_end;
    assert!(needs <= full && full.0 - needs.0 < 4096, "{needs:?} of {full:?}");
    image.close().unwrap();
    let mut image = Image::open_to_fit(Volume::of(&scene.disk, full), full).unwrap();
    let calls = scene.world.counts().writes;
    let too_little = Bytes(needs.0 - 512);
    assert!(matches!(image.fit(too_little), Err(Error::NoSpace { missing: Bytes(512) })));
    assert!(matches!(image.fit(Bytes(STORAGE.0)), Err(Error::NoSpace { .. })), "larger than its volume");
    assert_eq!(scene.world.counts().writes, calls, "nothing was changed");
    scene.model.settled().verify(&Volume::of(&scene.disk, full), "after two refusals");
}

#[test]
fn a_damaged_copy_costs_nothing_where_the_old_end_is_known() {
    let spec = spec(16);
    let (little, full) = sizes(&spec);
    let Scene { disk, model, .. } = scene(&spec, little, &small());
    disk.write_at(&[0; 512], FileOffset(0)).unwrap();
    fit(Volume::of(&disk, full), little.round_up(EXTENT), full).unwrap();
    model.verify(&Volume::of(&disk, full), "with a copy that was damaged");
    let found = Image::open(Volume::of(&disk, full), Mode::ReadOnly).unwrap().info();
    assert_eq!(found.footers, FooterState::Both);
}

#[test]
fn a_file_has_no_size_to_be_brought_to() {
    let (disk, image) = support::fresh(&spec(16));
    drop(image);
    assert!(matches!(Image::open_to_fit(disk, Bytes(0)), Err(Error::Unsupported(_))));
}
