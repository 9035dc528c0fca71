//! Images on devices: single cases of room that is asked for, given and refused.

use super::chains::{BLOCKS, On, SIZE, chain_on, content, device_for, shows_nothing_stale};
use super::random::sound;
use super::rig::{Rig, id, image, leaf, make, world, write};
use crate::serve::disk::Change;
use crate::serve::work::{Outcome, Trouble, Work};
use catena_blockio::Container;
use catena_blockio::sim::{Rng, SimDisk, SimWorld};
use catena_control::{News, Told};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset};
use catena_vhd::Mode;
use std::fs::File;
use std::sync::Arc;

const PAGE: usize = 4096;

struct Small {
    world: Arc<SimWorld>,
    disks: Vec<Arc<SimDisk>>,
    pending: File,
    rig: Rig,
}

/// An empty leaf, with room for so many blocks, on a root with something in it.
fn small(blocks: u64, waits_when_full: bool) -> Small {
    let world = world();
    let mut disks = chain_on(On::Devices, &world, &mut Rng::new(5), 1, false);
    disks.push(SimDisk::used(&world, device_for(blocks)));
    make(&disks[1], 1, Some(0), Bytes(SIZE));
    let pending = tempfile::tempfile().unwrap();
    let rig = Rig::open_with(&disks, &pending, 1, waits_when_full);
    Small { world, disks, pending, rig }
}

fn block(n: u64) -> Work {
    write(n * BLOCK_BYTES, &[u8::try_from(n).unwrap() + 1; PAGE], false)
}

impl Small {
    fn watch(&mut self) {
        self.rig.ask(Change::Watermark { room: Bytes(BLOCK_BYTES), chunk: Bytes(4 << 20) });
    }

    /// The device of the leaf has room for so many blocks now, and the image is told.
    fn enlarge(&mut self, blocks: u64) {
        self.disks[1].enlarge(device_for(blocks));
        self.rig.ask(Change::Enlarged { image: id(1), size: device_for(blocks) });
        self.rig.settle();
    }
}

#[test]
fn room_is_asked_for_before_it_is_needed_and_a_write_waits_for_it_without_a_word() {
    let mut small = small(1, true);
    small.watch();
    assert_eq!(small.rig.news, [], "there is room for one");
    assert!(matches!(small.rig.done(block(0)), Outcome::Done));
    let size = device_for(BLOCKS).0.min(device_for(1).0 + (4 << 20));
    let asked = |news: &News| matches!(news, News::Grow { image, size: wanted } if *image == id(1) && wanted.0 <= size);
    assert!(small.rig.news.len() == 1 && small.rig.news.iter().all(asked), "{:?}", small.rig.news);
    let waits = [1, 2].map(|n| small.rig.submit(block(n)));
    small.rig.settle();
    small.rig.wait();
    assert!(waits.iter().all(|&request| small.rig.outcome(request).is_none()));
    assert_eq!(small.rig.news.len(), 1, "nothing else is said");
    small.enlarge(BLOCKS);
    assert!(waits.into_iter().all(|request| matches!(small.rig.outcome(request), Some(Outcome::Done))));
    assert_eq!((small.rig.news.len(), small.rig.told.len()), (1, 2), "a full device asks for no more");
    assert!(matches!(small.rig.done(Work::Flush), Outcome::Done));
    let survivors = small.world.after_power_cut(3);
    sound(&survivors, "at the end");
    let found = content(&survivors);
    assert!((0..3).all(|n| found[n * (2 << 20)..][..PAGE] == [u8::try_from(n).unwrap() + 1; PAGE]));
}

#[test]
fn who_is_refused_a_larger_device_waits_for_space_or_fails() {
    for waits in [true, false] {
        let mut small = small(0, waits);
        small.watch();
        let request = small.rig.submit(block(0));
        small.rig.settle();
        assert!(small.rig.outcome(request).is_none(), "it is awaited, whatever becomes of others");
        small.enlarge(0);
        small.rig.wait();
        let outcome = small.rig.outcome(request);
        if !waits {
            assert!(matches!(outcome, Some(Outcome::Failed(Trouble::NoSpace))), "{outcome:?}");
            continue;
        }
        assert!(outcome.is_none());
        assert_eq!(small.rig.news[1..], [News::StorageFull], "asked for once");
        small.enlarge(BLOCKS);
        assert!(matches!(small.rig.outcome(request), Some(Outcome::Done)));
        assert_eq!(small.rig.news[1..], [News::StorageFull, News::StorageFree]);
    }
}

#[test]
fn where_nobody_asks_a_full_device_is_a_full_storage() {
    let mut small = small(1, true);
    assert!(matches!(small.rig.done(block(0)), Outcome::Done));
    let waits = small.rig.submit(block(1));
    small.rig.settle();
    assert_eq!(small.rig.news, [News::StorageFull]);
    assert!(matches!(small.rig.done(block(0)), Outcome::Done), "what has a place can be written");
    assert!(matches!(small.rig.done(Work::Flush), Outcome::Done));
    let end = small.disks[1].size().unwrap().0 - 512;
    let mut footer = [0; 512];
    small.disks[1].read_at(&mut footer, FileOffset(end)).unwrap();
    assert!(footer.starts_with(b"conectix"));
    small.enlarge(2);
    assert!(matches!(small.rig.outcome(waits), Some(Outcome::Done)));
}

#[test]
fn what_is_said_of_another_image_or_of_a_device_that_is_not_larger_is_refused() {
    let mut small = small(1, true);
    small.rig.ask(Change::Enlarged { image: id(0), size: device_for(BLOCKS) });
    small.rig.ask(Change::Enlarged { image: id(1), size: device_for(BLOCKS) });
    small.rig.ask(Change::Watermark { room: Bytes(1), chunk: Bytes(0) });
    small.rig.settle();
    assert!(small.rig.told.len() == 3 && small.rig.told.iter().all(Result::is_err), "{:?}", small.rig.told);
    assert!(small.rig.disk.takes_questions());
    small.enlarge(1);
    assert_eq!(small.rig.told.last(), Some(&Ok(Told::Done)), "the size that it has");
}

/// In the part that is new stands an older footer of this very image, where the device ends then.
fn haunt(disk: &SimDisk, size: Bytes) {
    let mut footer = [0; 512];
    disk.read_at(&mut footer, FileOffset(0)).unwrap();
    footer[85] = 1;
    let sum =
        footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at)).map(|(_, byte)| u32::from(*byte));
    let sum = !sum.sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    disk.write_at(&footer, FileOffset(size.0 - 512)).unwrap();
    disk.flush().unwrap();
}

#[test]
fn a_device_is_made_use_of_with_the_power_cut_or_the_process_killed_at_every_step() {
    for cut in 0.. {
        let mut small = small(1, true);
        assert!(matches!(small.rig.done(block(0)), Outcome::Done));
        assert!(matches!(small.rig.done(Work::Flush), Outcome::Done));
        let requests = [1, 2].map(|n| (n, small.rig.submit(block(n))));
        for _ in 0..3 {
            small.rig.step();
        }
        small.disks[1].enlarge(device_for(BLOCKS));
        haunt(&small.disks[1], device_for(BLOCKS));
        small.rig.ask(Change::Enlarged { image: id(1), size: device_for(BLOCKS) });
        let mut steps = 0;
        while steps < cut && !small.rig.lab.is_idle() {
            small.rig.step();
            steps += 1;
        }
        let mut answered = vec![0];
        answered.extend(
            requests.iter().filter(|(_, request)| small.rig.outcome(*request).is_some()).map(|(n, _)| *n),
        );
        let holds = |found: &[u8], blocks: &[u64], what: &str| {
            for &n in blocks {
                let page = &found[usize::try_from(n * BLOCK_BYTES).unwrap()..][..PAGE];
                assert!(page == [u8::try_from(n).unwrap() + 1; PAGE], "cut after {cut}: block {n} {what}");
            }
        };
        for seed in 0..4 {
            let survivors = small.world.after_power_cut(seed);
            sound(&survivors, &format!("cut after {cut}"));
            shows_nothing_stale(&survivors, &format!("cut after {cut}"));
            let leaf: Arc<dyn Container> = survivors[1].clone();
            let info = image(&leaf, Mode::ReadOnly).info();
            assert!(!info.hidden, "cut after {cut}: the old footer counts");
            holds(&content(&survivors), &[0], "was flushed");
        }
        let killed = small.world.after_process_kill();
        let mut successor = Rig::open(&killed, &small.pending, 7);
        let whole = successor.read(0, u32::try_from(SIZE).unwrap());
        holds(&whole, &answered, "was answered");
        assert!(matches!(successor.done(block(2)), Outcome::Done), "cut after {cut}: there is room");
        assert!(matches!(successor.done(Work::Flush), Outcome::Done));
        drop(successor);
        sound(&killed, &format!("killed after {cut}"));
        if steps < cut {
            assert!(cut > 4, "something was done");
            return;
        }
    }
}

#[test]
fn a_leaf_merge_into_an_image_without_room_ends_with_nothing_lost() {
    let world = world();
    let mut disks = chain_on(On::Devices, &world, &mut Rng::new(5), 1, false);
    let middle = SimDisk::used(&world, device_for(1));
    make(&middle, 1, Some(0), Bytes(SIZE));
    let top = SimDisk::used(&world, device_for(BLOCKS));
    make(&top, 2, Some(1), Bytes(SIZE));
    disks.extend([middle, top]);
    let pending = tempfile::tempfile().unwrap();
    let mut rig = Rig::open(&disks, &pending, 3);
    for n in 0..BLOCKS {
        assert!(matches!(rig.done(block(n)), Outcome::Done));
    }
    let before = rig.read(0, u32::try_from(SIZE).unwrap());
    rig.ask(Change::MoveDown { generation: 1, into: leaf(&disks[1]), rate: Bytes(0) });
    rig.settle();
    let failed = |news: &News| matches!(news, News::MoveFailed { message } if message.contains("no room"));
    assert!(rig.news.iter().any(failed), "{:?}", rig.news);
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == before);
    rig.ask(Change::EndMove { generation: 2, complete: false });
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done), Ok(Told::Done)]);
    assert!(matches!(rig.done(Work::Flush), Outcome::Done));
    let survivors = world.after_power_cut(1);
    sound(&survivors, "ended");
    assert!(content(&survivors) == before);
    // With room it is done.
    rig.news.clear();
    disks[1].enlarge(device_for(BLOCKS));
    rig.ask(Change::MoveDown { generation: 3, into: leaf(&disks[1]), rate: Bytes(0) });
    rig.settle();
    assert!(matches!(rig.news.last(), Some(News::Moved { left: Bytes(0), .. })), "{:?}", rig.news);
    assert!(content(&world.after_power_cut(2)[..2]) == before);
}
