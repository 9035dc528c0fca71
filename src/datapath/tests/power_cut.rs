//! Both merges on real images, with the power cut at every single call to the storage: the chain reads the same at every
//! instant, the merge can be taken up again, and at its end the shorter chain reads the same.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use catena_blockio::Container;
use catena_blockio::sim::{Rng, SimDisk, SimWorld, seeds};
use catena_chain::{Chain, Error, Layer, Progress, copy, move_down, write};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, GuestOffset, ImageId, Severity};
use catena_vhd::{CheckOptions, CreateSpec, Image, Mode, ParentSpec, check, create};
use std::sync::Arc;

/// Blocks of the disk.
const BLOCKS: u64 = 3;
/// Power cuts tried at each call.
const CUTS: u64 = 3;

const fn id(n: u8) -> ImageId {
    ImageId::from_bytes([n + 1; 16])
}

/// Remembers the cursor as a keeper does, and stops after so many checkpoints.
struct Keeper {
    cursor: GuestOffset,
    left: usize,
}

impl Keeper {
    const fn new() -> Self {
        Self { cursor: GuestOffset(0), left: usize::MAX }
    }
}

impl Progress for Keeper {
    fn planned(&mut self, _total: Bytes) {}

    fn go_on(&mut self, _upcoming: Bytes) -> bool {
        self.left > 0
    }

    fn checkpoint(&mut self, cursor: GuestOffset, _done: Bytes) -> Result<(), Error> {
        self.cursor = cursor;
        self.left = self.left.saturating_sub(1);
        Ok(())
    }
}

/// Three layers, root first, with random writes in each; flushed and closed.
fn chain_of_three(world: &Arc<SimWorld>, rng: &mut Rng) -> Vec<Arc<SimDisk>> {
    let disks: Vec<_> = (0..3).map(|_| SimDisk::automatic(world)).collect();
    fill_chain(&disks, rng);
    disks
}

/// The same on these.
fn fill_chain(disks: &[Arc<SimDisk>], rng: &mut Rng) {
    for (n, disk) in (0..3_u8).zip(disks) {
        let parent =
            n.checked_sub(1).map(|p| ParentSpec { id: id(p), name: format!("{p}.vhd"), timestamp: 0 });
        let spec = CreateSpec {
            id: id(n),
            virtual_size: Bytes(BLOCKS * BLOCK_BYTES),
            parent,
            table_size: None,
            fixed: false,
            hidden: false,
            timestamp: 1,
        };
        create(&**disk, &spec).unwrap();
        let mut image = open(disk, Mode::ReadWrite);
        for _ in 0..4 {
            let sector = rng.below(BLOCKS * 4096 - 300);
            let bytes = vec![
                u8::try_from(rng.below(255)).unwrap() + 1;
                usize::try_from(512 * (1 + rng.below(299))).unwrap()
            ];
            write(&mut image, None, GuestOffset(sector * 512), &bytes).unwrap();
        }
        image.close().unwrap();
    }
}

fn open(disk: &Arc<SimDisk>, mode: Mode) -> Image {
    Image::open(Arc::clone(disk) as Arc<dyn Container>, mode).unwrap()
}

/// What the layers (root first) read as.
fn read(disks: &[Arc<SimDisk>]) -> Vec<u8> {
    let layers =
        disks.iter().rev().map(|disk| Arc::new(open(disk, Mode::ReadOnly)) as Arc<dyn Layer>).collect();
    let chain = Chain::new(layers).unwrap();
    let mut bytes = vec![0; usize::try_from(chain.virtual_size().0).unwrap()];
    chain.read(GuestOffset(0), &mut bytes).unwrap();
    bytes
}

fn sound(disk: &Arc<SimDisk>) {
    let problems = check(&**disk, &CheckOptions::default()).unwrap();
    let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Copies layer 1 into layer 0.
fn inner(disks: &[Arc<SimDisk>], keeper: &mut Keeper) -> Result<(), Error> {
    let source = Image::open(Arc::clone(&disks[1]) as Arc<dyn Container>, Mode::ReadOnly)?;
    let mut target = Image::open(Arc::clone(&disks[0]) as Arc<dyn Container>, Mode::ReadWrite)?;
    copy(&source, &mut target, keeper.cursor, keeper)?;
    Ok(target.close()?)
}

/// Moves layer 2 into layer 1.
fn leaf(disks: &[Arc<SimDisk>], keeper: &mut Keeper) -> Result<(), Error> {
    let mut source = Image::open(Arc::clone(&disks[2]) as Arc<dyn Container>, Mode::ReadWrite)?;
    let mut target = Image::open(Arc::clone(&disks[1]) as Arc<dyn Container>, Mode::ReadWrite)?;
    move_down(&mut source, &mut target, keeper)?;
    target.close()?;
    Ok(source.close()?)
}

fn owns_nothing(disk: &Arc<SimDisk>) -> bool {
    let image = open(disk, Mode::ReadOnly);
    (0..u32::try_from(BLOCKS).unwrap())
        .all(|block| image.ownership(BlockIndex(block)).unwrap().to_set().is_empty())
}

type Merge = fn(&[Arc<SimDisk>], &mut Keeper) -> Result<(), Error>;

/// Cuts the power at every call of the merge, several times each; after each cut the whole chain reads as before, the merge is
/// finished, and then also the chain without the merged layer does. Returns how many states were tried.
fn cut_everywhere(seed: u64, merge: Merge, merged: usize) -> u64 {
    let build = || {
        let world = SimWorld::new();
        let disks = chain_of_three(&world, &mut Rng::new(seed));
        (world, disks)
    };
    let (world, disks) = build();
    let expected = read(&disks);
    let first = world.calls();
    merge(&disks, &mut Keeper::new()).unwrap();
    let calls = world.calls() - first;
    let mut states = 0;
    for n in 0..calls {
        let (world, disks) = build();
        world.crash_at(world.calls() + n);
        let mut keeper = Keeper::new();
        let crashed = merge(&disks, &mut keeper).is_err();
        assert!(crashed || n + 1 == calls, "call {n} of {calls} was not made again");
        let after = (0..CUTS)
            .map(|cut| world.after_power_cut(seed ^ (n << 8) ^ cut))
            .chain([world.after_process_kill()]);
        for survivors in after {
            survivors.iter().for_each(sound);
            assert!(
                read(&survivors) == expected,
                "seed {seed}, call {n}: the chain reads differently after a crash"
            );
            let mut again = Keeper { cursor: keeper.cursor, left: usize::MAX };
            merge(&survivors, &mut again).unwrap();
            survivors.iter().for_each(sound);
            let mut shorter = survivors.clone();
            let gone = shorter.remove(merged);
            assert!(merged != 2 || owns_nothing(&gone), "the leaf still owns sectors");
            assert!(read(&shorter) == expected, "seed {seed}, call {n}: the shorter chain reads differently");
            states += 1;
        }
    }
    states
}

#[test]
fn an_inner_merge_survives_a_power_cut_at_every_call() {
    let states: u64 = seeds("inner merge", 2).into_iter().map(|seed| cut_everywhere(seed, inner, 1)).sum();
    println!("{states} states");
    assert!(states > 0);
}

#[test]
fn a_leaf_merge_survives_a_power_cut_at_every_call() {
    let states: u64 = seeds("leaf merge", 2).into_iter().map(|seed| cut_everywhere(seed, leaf, 2)).sum();
    println!("{states} states");
    assert!(states > 0);
}

#[test]
fn a_leaf_merge_can_be_stopped_between_any_two_windows() {
    let world = SimWorld::new();
    let disks = chain_of_three(&world, &mut Rng::new(7));
    let expected = read(&disks);
    let stopped = leaf(&disks, &mut Keeper { cursor: GuestOffset(0), left: 0 });
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(read(&disks) == expected);
    leaf(&disks, &mut Keeper::new()).unwrap();
    assert!(read(&disks[..2]) == expected);
}

/// A device that others have used, with room for so many blocks.
fn device(world: &Arc<SimWorld>, blocks: u64) -> Arc<SimDisk> {
    SimDisk::used(world, Bytes(8192 + blocks * (4104 << 9) + 1024))
}

#[test]
fn a_merge_into_a_device_without_room_is_refused_with_nothing_lost() {
    for (merge, merged, into) in [(inner as Merge, 1, 0), (leaf as Merge, 2, 1)] {
        for seed in seeds("a merge without room", 4) {
            let world = SimWorld::new();
            let disks: Vec<_> = (0..3).map(|_| device(&world, BLOCKS)).collect();
            let mut rng = Rng::new(seed);
            fill_chain(&disks, &mut rng);
            let expected = read(&disks);
            // The target's device ends right behind what it has.
            let needs = open(&disks[into], Mode::ReadOnly).info().physical_end;
            let (small, mut rest) = (SimDisk::used(&world, needs), disks.clone());
            let mut bytes = vec![0; usize::try_from(needs.0).unwrap()];
            disks[into].read_at(&mut bytes, FileOffset(0)).unwrap();
            let footer = bytes[..512].to_vec();
            small.write_at(&bytes, FileOffset(0)).unwrap();
            small.write_at(&footer, FileOffset(needs.0 - 512)).unwrap();
            small.flush().unwrap();
            rest[into] = small;
            let outcome = merge(&rest, &mut Keeper::new());
            let survivors: Vec<_> = rest.iter().map(|disk| disk.after_power_cut(seed)).collect();
            survivors.iter().for_each(sound);
            assert!(read(&survivors) == expected, "seed {seed}");
            match outcome {
                Ok(()) => {
                    let mut shorter = survivors;
                    shorter.remove(merged);
                    assert!(read(&shorter) == expected, "seed {seed}: there was room after all");
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(28), "seed {seed}: {error}"),
            }
            let mut end = [0; 512];
            rest[into].read_at(&mut end, FileOffset(needs.0 - 512)).unwrap();
            assert!(end == footer[..], "seed {seed}: the footer was written over");
        }
    }
}
