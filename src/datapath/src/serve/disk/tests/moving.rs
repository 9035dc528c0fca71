//! Leaf merges of a disk that is served: single cases.

use super::chains::{BLOCKS, SIZE, chain, content, owned};
use super::rig::{Rig, bytes, gated, id, image, leaf, make, part, world, write};
use crate::serve::disk::Change;
use crate::serve::work::{Outcome, Work};
use catena_blockio::Container;
use catena_blockio::sim::{Call, Errno, Fault, Rng, SimDisk, SimWorld};
use catena_chain::Layer;
use catena_control::{News, Told};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes};
use catena_vhd::Mode;
use std::fs::File;
use std::sync::Arc;

const PAGE: usize = 4096;

pub(super) struct Merge {
    world: Arc<SimWorld>,
    disks: Vec<Arc<SimDisk>>,
    pending: File,
    rig: Rig,
    content: Vec<u8>,
}

/// A chain of so many images with something in each.
fn merge(count: usize) -> Merge {
    let world = world();
    let disks = chain(&world, &mut Rng::new(11), count, false);
    let pending = tempfile::tempfile().unwrap();
    let content = content(&disks);
    let rig = Rig::open(&disks, &pending, 3);
    Merge { world, disks, pending, rig, content }
}

/// The same with a leaf of which most is owned, which takes several windows.
fn large() -> Merge {
    let Merge { world, disks, pending, rig, .. } = merge(2);
    drop(rig);
    let container: Arc<dyn Container> = disks[1].clone();
    let mut leaf = image(&container, Mode::ReadWrite);
    for block in 0..BLOCKS {
        let at = catena_types::GuestOffset(block * BLOCK_BYTES + 8192);
        catena_chain::write(&mut leaf, None, at, &vec![100 + u8::try_from(block).unwrap(); 3 << 19]).unwrap();
    }
    leaf.close().unwrap();
    let content = content(&disks);
    let rig = Rig::open(&disks, &pending, 3);
    Merge { world, disks, pending, rig, content }
}

impl Merge {
    fn begin(&mut self, rate: u64) {
        let into = leaf(&self.disks[self.disks.len() - 2]);
        self.rig.ask(Change::MoveDown { generation: 1, into, rate: Bytes(rate) });
    }

    fn owned_by_leaf(&self) -> u64 {
        owned(&self.disks[self.disks.len() - 1..]).iter().filter(|owned| **owned).count() as u64 * 512
    }
}

/// What was told last of how far it is: bytes moved, and left.
fn moved(news: &[News]) -> Option<(u64, u64)> {
    news.iter().rev().find_map(|news| match news {
        News::Moved { done, left } => Some((done.0, left.0)),
        _ => None,
    })
}

fn owns_nothing(disk: &Arc<SimDisk>) -> bool {
    let container: Arc<dyn Container> = disk.clone();
    let image = image(&container, Mode::ReadOnly);
    (0..u32::try_from(BLOCKS).unwrap())
        .all(|block| image.ownership(BlockIndex(block)).unwrap().to_set().is_empty())
}

#[test]
fn a_leaf_is_emptied_into_the_image_below_it_and_dropped() {
    let mut merge = merge(3);
    let before = merge.owned_by_leaf();
    merge.begin(0);
    assert_eq!(merge.rig.told, [Ok(Told::Done)]);
    assert_eq!(merge.rig.disk.hello().moving_into, Some(id(1)));
    merge.rig.settle();
    assert_eq!(moved(&merge.rig.news), Some((before, 0)));
    assert!(owns_nothing(&merge.disks[2]));
    let after = merge.world.after_power_cut(1);
    assert!(owns_nothing(&after[2]) && content(&after[..2]) == merge.content, "durably");
    let rig = &mut merge.rig;
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
    rig.ask(Change::EndMove { generation: 1, complete: true });
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done), Ok(Told::Done)]);
    assert_eq!(rig.disk.hello().chain, [id(1), id(0)]);
    assert_eq!(rig.disk.hello().moving_into, None);
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
    assert!(matches!(rig.write(0, &[9; PAGE]), Outcome::Done));
    assert!(matches!(rig.done(Work::Flush), Outcome::Done));
    merge.content[..PAGE].fill(9);
    assert!(content(&merge.world.after_power_cut(2)[..2]) == merge.content);
    rig.ask(Change::Stop);
    rig.settle();
    assert_eq!(rig.told.len(), 3);
    assert!(rig.told.iter().all(Result::is_ok));
}

#[test]
fn from_the_start_the_leaf_takes_over_nothing() {
    let mut merge = merge(3);
    let owned_before = owned(&merge.disks[2..]);
    // So slow that nothing is moved while we write.
    merge.begin(1);
    let foreign = owned_before.iter().position(|owned| !owned).unwrap() as u64 * 512;
    let own = owned_before.iter().position(|owned| *owned).unwrap() as u64 * 512;
    let rig = &mut merge.rig;
    rig.submit(write(foreign, &[5; 512], true));
    rig.submit(write(own, &[6; 512], true));
    // Over a border: a part of it goes here, a part there.
    let border = owned_before.windows(2).position(|pair| !pair[0] && pair[1]).unwrap() as u64 * 512;
    rig.submit(write(border, &[7; 1024], true));
    rig.settle();
    assert!(rig.read(foreign, 512) == [5; 512] || foreign == border);
    assert!(rig.read(border, 1024) == [7; 1024]);
    let now = owned(&merge.disks[2..]);
    assert!(
        now.iter().zip(&owned_before).all(|(now, before)| !now || *before),
        "the leaf owns more than before"
    );
    let below = owned(&merge.disks[1..2]);
    assert!(below[usize::try_from(border / 512).unwrap()], "it went to the image below");
    let whole = rig.read(0, u32::try_from(SIZE).unwrap());
    assert!(content(&merge.world.after_power_cut(3)) == whole, "a flush covers both");
}

#[test]
fn a_merge_that_is_ended_leaves_the_leaf_the_only_target() {
    for steps in 0..60 {
        let mut merge = merge(3);
        merge.begin(0);
        let rig = &mut merge.rig;
        let writes =
            [rig.submit(write(0, &[1; PAGE], false)), rig.submit(write(BLOCK_BYTES + 512, &[2; PAGE], true))];
        for _ in 0..steps {
            rig.step();
        }
        rig.ask(Change::EndMove { generation: 2, complete: false });
        rig.settle();
        assert_eq!(rig.told, [Ok(Told::Done), Ok(Told::Done)], "after {steps} steps");
        assert!(writes.into_iter().all(|write| matches!(rig.outcome(write), Some(Outcome::Done))));
        assert_eq!((rig.disk.hello().chain.len(), rig.disk.hello().moving_into), (3, None));
        let whole = rig.read(0, u32::try_from(SIZE).unwrap());
        let below = content(&merge.disks[..2]);
        assert!(matches!(rig.write(2 * BLOCK_BYTES, &[3; PAGE]), Outcome::Done));
        assert!(matches!(rig.done(Work::Flush), Outcome::Done));
        assert!(content(&merge.disks[..2]) == below, "nothing is written there any more");
        assert!(rig.read(0, 4096) == whole[..PAGE]);
        // What was written is in one of the two, and nothing else has changed.
        merge.content[..PAGE].fill(1);
        let at = usize::try_from(BLOCK_BYTES).unwrap() + 512;
        merge.content[at..at + PAGE].fill(2);
        assert!(whole == merge.content);
        // A snapshot can be made again, and another merge.
        rig.ask(Change::Quiesce { generation: 3 });
        rig.settle();
        assert!(matches!(rig.told[2], Ok(Told::Quiesced { .. })));
        rig.ask(Change::Resume { generation: 3, swap: false });
        merge.begin(0);
        merge.rig.settle();
        assert_eq!(moved(&merge.rig.news).unwrap().1, 0);
    }
}

#[test]
fn a_snapshot_while_a_merge_is_open_is_refused() {
    let mut merge = large();
    merge.begin(1);
    let new = SimDisk::automatic(&merge.world);
    make(&new, 2, Some(1), Bytes(SIZE));
    let old_leaf = gated(&merge.disks[1]);
    let rig = &mut merge.rig;
    rig.settle();
    rig.ask(Change::Prepare { generation: 2, leaf: leaf(&new), old_leaf });
    rig.ask(Change::Quiesce { generation: 2 });
    rig.ask(Change::Relink { generation: 2, below: vec![(id(0), Some(part(&merge.disks[0])))] });
    rig.ask(Change::EndMove { generation: 2, complete: true });
    let refused: Vec<bool> = rig.told.iter().map(Result::is_err).collect();
    assert_eq!(refused, [false, true, true, true, true]);
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done), "nothing is held back");
    rig.ask(Change::Relink { generation: 3, below: vec![(id(0), None)] });
    assert_eq!(rig.told[5], Ok(Told::Done), "an adopting keeper finds it as it is");
}

#[test]
fn only_the_image_below_the_leaf_can_be_merged_into() {
    let mut merge = merge(3);
    let rig = &mut merge.rig;
    rig.ask(Change::MoveDown { generation: 1, into: leaf(&merge.disks[0]), rate: Bytes(0) });
    rig.ask(Change::MoveOn { generation: 1, rate: Bytes(0) });
    assert!(rig.told.iter().all(Result::is_err));
    rig.ask(Change::EndMove { generation: 1, complete: false });
    assert_eq!(rig.told[2], Ok(Told::Done), "none is open");
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
}

#[test]
fn the_rate_is_kept_and_can_be_changed() {
    let mut merge = large();
    let before = merge.owned_by_leaf();
    merge.begin(1);
    merge.rig.settle();
    let left = merge.owned_by_leaf();
    let done = before - left;
    assert!(done > 0 && left > 0, "one window, then it waits: {done} of {before}");
    assert!(merge.rig.disk.deadline().is_some());
    merge.rig.wait();
    merge.rig.settle();
    assert_eq!(merge.owned_by_leaf(), left);
    merge.rig.news.clear();
    merge.rig.ask(Change::MoveOn { generation: 2, rate: Bytes(0) });
    assert_eq!(moved(&merge.rig.news), Some((done, left)), "whoever asks is told how far it is");
    merge.rig.settle();
    assert_eq!(moved(&merge.rig.news), Some((before, 0)));
    merge.rig.news.clear();
    merge.rig.ask(Change::MoveOn { generation: 3, rate: Bytes(0) });
    assert_eq!(moved(&merge.rig.news), Some((before, 0)), "also when it is over");
}

/// A disk that has grown by so much that the first blocks of the images below it would have to move if they grew.
fn outgrown(world: &Arc<SimWorld>) -> Vec<Arc<SimDisk>> {
    let disks: Vec<_> = (0..3).map(|_| SimDisk::automatic(world)).collect();
    let small = Bytes(BLOCK_BYTES);
    for (n, size) in [(0, small), (1, small), (2, Bytes(8000 << 20))] {
        make(&disks[n], n, n.checked_sub(1), size);
        let container: Arc<dyn Container> = disks[n].clone();
        let mut image = image(&container, Mode::ReadWrite);
        let fill = [u8::try_from(n).unwrap() + 1; PAGE];
        catena_chain::write(&mut image, None, catena_types::GuestOffset(n as u64 * 8192), &fill).unwrap();
        image.close().unwrap();
    }
    disks
}

#[test]
fn who_takes_over_while_the_image_below_is_made_larger_serves_all_of_the_disk() {
    for steps in 0.. {
        let world = world();
        let disks = outgrown(&world);
        let pending = tempfile::tempfile().unwrap();
        let mut rig = Rig::open(&disks, &pending, 1);
        let expected = rig.read(0, 32768);
        rig.ask(Change::MoveDown { generation: 1, into: leaf(&disks[1]), rate: Bytes(0) });
        for _ in 0..steps {
            rig.step();
        }
        let over = rig.lab.is_idle();
        let killed = world.after_process_kill();
        let mut successor = Rig::open_moving(&killed, &pending, 2);
        if successor.disk.hello().moving_into.is_none() {
            let into = leaf(&killed[1]);
            successor.ask(Change::MoveDown { generation: 2, into, rate: Bytes(0) });
        } else {
            successor.ask(Change::MoveOn { generation: 2, rate: Bytes(0) });
        }
        let far = (8000 << 20) - PAGE as u64;
        assert!(matches!(successor.write(far, &[9; PAGE]), Outcome::Done), "killed after {steps}");
        successor.settle();
        assert_eq!(moved(&successor.news).map(|(_, left)| left), Some(0), "killed after {steps}");
        successor.ask(Change::EndMove { generation: 2, complete: true });
        successor.settle();
        assert!(successor.told.iter().all(Result::is_ok), "killed after {steps}: {:?}", successor.told);
        assert_eq!(successor.disk.size(), Bytes(8000 << 20), "killed after {steps}");
        assert!(successor.read(0, 32768) == expected, "killed after {steps}");
        assert!(successor.read(far, 4096) == [9; PAGE], "killed after {steps}");
        if over {
            assert!(steps > 10, "something was done");
            return;
        }
    }
}

#[test]
fn an_image_that_is_smaller_is_made_larger_first() {
    let world = world();
    let disks = outgrown(&world);
    let pending = tempfile::tempfile().unwrap();
    let mut rig = Rig::open(&disks, &pending, 1);
    let expected = rig.read(0, 32768);
    let far = 7000 << 20;
    let reading = rig.submit(Work::Read { at: 0, len: 32768 });
    rig.ask(Change::MoveDown { generation: 1, into: leaf(&disks[1]), rate: Bytes(0) });
    let mut reads = vec![reading];
    let writing = rig.submit(write(far, &[9; PAGE], false));
    while rig.disk.is_growing() {
        reads.push(rig.submit(Work::Read { at: 0, len: 32768 }));
        rig.step();
    }
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done)]);
    assert!(reads.len() > 3 && matches!(rig.outcome(writing), Some(Outcome::Done)));
    for read in reads {
        assert!(bytes(rig.outcome(read).unwrap()) == expected);
    }
    assert_eq!(moved(&rig.news).unwrap().1, 0);
    rig.ask(Change::EndMove { generation: 1, complete: true });
    rig.settle();
    assert_eq!(rig.disk.size(), Bytes(8000 << 20));
    assert!(rig.read(0, 32768) == expected && rig.read(far, 4096) == [9; PAGE]);
    assert!(rig.read(BLOCK_BYTES, 4096) == [0; PAGE]);
}

#[test]
fn a_writer_that_comes_back_to_every_window_is_held_back_in_the_end() {
    // With two, one of them waits behind the other when a window asks for the block, and writes before the window has it.
    [1, 2].into_iter().for_each(writer_that_comes_back);
}

/// One write to each block whenever a copy has begun; or so many all the time, again as soon as one was answered.
fn writer_that_comes_back(depth: usize) {
    let mut merge = large();
    let before = merge.owned_by_leaf();
    let places: Vec<u64> = (0..BLOCKS).map(|block| block * BLOCK_BYTES).collect();
    let mut writes: Vec<(Vec<u64>, u8)> = vec![(vec![0; depth], 0); places.len()];
    let counted = merge.world.counts().bytes_written;
    merge.begin(0);
    let rig = &mut merge.rig;
    let (mut guest, mut held) = (0, 0);
    let mut seen = 0;
    while moved(&rig.news).is_none_or(|(_, left)| left > 0) {
        let copied = rig.disk.moving.as_ref().map_or(0, |moving| moving.copied);
        let copies = std::mem::replace(&mut seen, copied) != copied;
        for (&at, (numbers, tag)) in places.iter().zip(&mut writes) {
            for number in numbers {
                if (depth > 1 || copies) && (*number == 0 || rig.outcome(*number).is_some()) {
                    *tag = tag.wrapping_add(1);
                    *number = rig.submit(write(at, &vec![*tag; 2 << 20], false));
                    guest += BLOCK_BYTES;
                }
            }
        }
        rig.step();
        held += 1;
        assert!(held < 5_000, "it does not end: {:?}", moved(&rig.news));
    }
    rig.settle();
    for (&at, (_, tag)) in places.iter().zip(&writes) {
        assert!(rig.read(at, 2 << 20) == vec![*tag; 2 << 20]);
    }
    assert_eq!(moved(&rig.news), Some((before, 0)));
    // The metadata of a few blocks aside.
    let copied = merge.world.counts().bytes_written - counted - guest;
    assert!(copied <= 2 * before + (1 << 18), "{copied} bytes for {before}");
    assert!(
        depth > 1 || copied > before + before / 4,
        "the writer disturbed nothing: {copied} bytes for {before}"
    );
}

#[test]
fn where_the_storage_is_full_a_merge_waits_and_can_be_ended() {
    let mut merge = merge(2);
    merge.world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
    merge.begin(0);
    merge.rig.settle();
    merge.rig.wait();
    merge.rig.settle();
    assert!(moved(&merge.rig.news).is_none_or(|(_, left)| left > 0));
    assert!(merge.rig.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
    merge.world.heal();
    merge.rig.wait();
    merge.rig.settle();
    assert_eq!(moved(&merge.rig.news).unwrap().1, 0);
}

#[test]
fn a_leaf_that_cannot_be_read_ends_the_merge_by_itself() {
    let mut merge = large();
    merge.begin(1);
    merge.rig.settle();
    merge.world.fail(Fault::nth(0, Errno::EIO).of(Call::Read).forever());
    merge.rig.ask(Change::MoveOn { generation: 2, rate: Bytes(0) });
    merge.rig.settle();
    assert!(matches!(merge.rig.news.last(), Some(News::MoveFailed { .. })), "{:?}", merge.rig.news);
    merge.world.heal();
    assert!(matches!(merge.rig.write(0, &[1; PAGE]), Outcome::Done), "the disk goes on");
    merge.rig.ask(Change::EndMove { generation: 3, complete: false });
    merge.rig.settle();
    assert!(merge.rig.told.iter().all(Result::is_ok));
    merge.content[..PAGE].fill(1);
    assert!(merge.rig.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
}

#[test]
fn a_stop_closes_both_images_and_a_successor_goes_on() {
    for steps in [0, 5, 20, 40] {
        let mut merge = merge(3);
        merge.begin(0);
        merge.rig.submit(write(0, &[1; PAGE], false));
        for _ in 0..steps {
            merge.rig.step();
        }
        merge.rig.ask(Change::Stop);
        merge.rig.settle();
        assert_eq!(merge.rig.told, [Ok(Told::Done), Ok(Told::Done)], "after {steps}");
        let after = merge.world.after_power_cut(4);
        merge.content[..PAGE].fill(1);
        assert!(content(&after) == merge.content);
        drop(merge.rig);
        let mut again = Rig::open_moving(&merge.disks, &merge.pending, 9);
        assert_eq!(again.disk.hello().moving_into, Some(id(1)));
        again.wait();
        again.settle();
        assert_eq!(moved(&again.news), None, "nobody has said at which rate");
        again.ask(Change::MoveOn { generation: 1, rate: Bytes(0) });
        again.settle();
        assert_eq!(moved(&again.news).unwrap().1, 0);
        assert!(again.read(0, u32::try_from(SIZE).unwrap()) == merge.content);
        again.ask(Change::EndMove { generation: 2, complete: false });
        again.settle();
        assert_eq!(again.told, [Ok(Told::Done), Ok(Told::Done)]);
        assert!(content(&merge.disks[..2]) == merge.content);
    }
}

#[test]
fn what_is_trimmed_while_a_merge_is_open_reads_as_before_or_as_zeros_and_zeroes_read_as_zeros() {
    let mut merge = merge(3);
    merge.begin(0);
    let rig = &mut merge.rig;
    for _ in 0..30 {
        rig.step();
    }
    let len = u32::try_from(SIZE).unwrap();
    assert!(matches!(rig.done(Work::Trim { at: 0, len, fua: true }), Outcome::Done));
    let trimmed = rig.read(0, len);
    for (now, before) in trimmed.chunks(512).zip(merge.content.chunks(512)) {
        assert!(now == before || now.iter().all(|byte| *byte == 0));
    }
    rig.settle();
    assert!(rig.read(0, len) == trimmed);
    assert!(matches!(
        rig.done(Work::Zeroes { at: 0, len, fua: true, no_hole: false, fast: false }),
        Outcome::Done
    ));
    assert!(rig.read(0, len).iter().all(|byte| *byte == 0));
    rig.settle();
    assert!(content(&merge.world.after_power_cut(5)).iter().all(|byte| *byte == 0));
}
