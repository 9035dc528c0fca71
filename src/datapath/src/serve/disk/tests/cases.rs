//! Single cases: storage that is full or fails, changes of the chain.

use super::chains::{SIZE, chain, content};
use super::random::sound;
use super::rig::{Rig, bytes, gated, id, image, leaf, make, part, world, write};
use crate::serve::disk::{Change, Part};
use crate::serve::work::{Extent, Outcome, Trouble, Work};
use catena_blockio::sim::{Call, Errno, Fault, Rng, SimDisk, SimWorld};
use catena_control::{News, Told};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset, GuestOffset, HeaderPatch, ImageId};
use catena_vhd::Mode;
use std::fs::File;
use std::sync::Arc;

const PAGE: usize = 4096;

pub(super) struct Fresh {
    pub(super) world: Arc<SimWorld>,
    disks: Vec<Arc<SimDisk>>,
    pending: File,
    pub(super) rig: Rig,
    content: Vec<u8>,
}

/// A chain of so many images with an empty leaf.
pub(super) fn fresh(count: usize, waits_when_full: bool) -> Fresh {
    let world = world();
    let disks = chain(&world, &mut Rng::new(5), count, true);
    let pending = tempfile::tempfile().unwrap();
    let content = content(&disks);
    let rig = Rig::open_with(&disks, &pending, 1, waits_when_full);
    Fresh { world, disks, pending, rig, content }
}

/// A sector that the chain owns below the leaf.
fn owned_below(content: &[u8]) -> u64 {
    content.chunks(512).position(|sector| sector.iter().all(|byte| *byte != 0)).unwrap() as u64 * 512
}

#[test]
fn what_is_noted_is_stored_after_a_second_or_when_it_is_much() {
    let Fresh { pending, mut rig, disks, .. } = fresh(2, true);
    assert_eq!(rig.disk.deadline(), None);
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    assert!(rig.disk.deadline().is_some());
    assert!(content(&disks)[..PAGE] != [1; PAGE], "noted, and not stored");
    rig.wait();
    rig.settle();
    assert!(content(&disks)[..PAGE] == [1; PAGE], "stored");
    rig.wait();
    rig.settle();
    assert_eq!(rig.disk.deadline(), None, "durable a second later");
    drop(rig);
    // Nothing is left for a successor.
    let again = Rig::open(&disks, &pending, 2);
    assert_eq!(again.disk.deadline(), None);
}

#[test]
fn where_the_storage_is_full_writes_wait_and_others_go_on() {
    let Fresh { world, mut rig, disks, .. } = fresh(2, true);
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    assert!(matches!(rig.done(Work::Flush), Outcome::Done));
    world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
    let waits = rig.submit(write(BLOCK_BYTES, &[2; PAGE], false));
    rig.settle();
    assert!(rig.outcome(waits).is_none());
    assert_eq!(rig.news, [News::StorageFull]);
    assert!(rig.read(0, 4096) == [1; PAGE], "reads go on");
    assert!(matches!(rig.done(Work::Flush), Outcome::Done), "so do flushes");
    rig.wait();
    rig.settle();
    assert!(rig.outcome(waits).is_none(), "tried again, and still full");
    assert_eq!(rig.news, [News::StorageFull], "said once");
    world.heal();
    rig.wait();
    rig.settle();
    assert!(matches!(rig.outcome(waits), Some(Outcome::Done)));
    assert_eq!(rig.news, [News::StorageFull, News::StorageFree]);
    assert!(rig.read(BLOCK_BYTES, 4096) == [2; PAGE]);
    // A commit that finds the storage full waits too.
    world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
    let waits = rig.submit(Work::Flush);
    rig.settle();
    assert!(rig.outcome(waits).is_none());
    world.heal();
    rig.wait();
    rig.settle();
    assert!(matches!(rig.outcome(waits), Some(Outcome::Done)));
    assert!(rig.disk.failure().is_none());
    assert!(content(&disks)[usize::try_from(BLOCK_BYTES).unwrap()..][..PAGE] == [2; PAGE]);
}

#[test]
fn where_writes_are_not_to_wait_for_space_they_fail() {
    let Fresh { world, mut rig, .. } = fresh(2, false);
    world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
    assert!(matches!(rig.write(0, &[2; PAGE]), Outcome::Failed(Trouble::NoSpace)));
    world.heal();
    assert!(matches!(rig.write(0, &[2; PAGE]), Outcome::Done));
    assert!(rig.read(0, 4096) == [2; PAGE]);
}

#[test]
fn a_write_that_fails_changes_nothing_and_a_commit_that_fails_ends_all_writing() {
    let Fresh { world, mut rig, pending, content: before, .. } = fresh(2, true);
    world.fail(Fault::nth(0, Errno::EIO).of(Call::Write).forever());
    assert!(matches!(rig.write(0, &[2; PAGE]), Outcome::Failed(Trouble::Io)));
    world.heal();
    assert!(rig.read(0, 4096) == before[..PAGE]);
    assert!(matches!(rig.write(0, &[3; PAGE]), Outcome::Done));
    world.fail(Fault::nth(0, Errno::EIO).of(Call::Flush).forever());
    assert!(matches!(rig.done(Work::Flush), Outcome::Failed(Trouble::Io)));
    let said = rig.disk.hello().failed;
    assert!(matches!(&rig.news[..], [News::StorageFailed { message }] if said.as_ref() == Some(message)));
    world.heal();
    assert!(matches!(rig.write(PAGE as u64, &[4; PAGE]), Outcome::Failed(Trouble::Io)));
    assert!(matches!(rig.done(Work::Flush), Outcome::Failed(Trouble::Io)));
    assert!(rig.read(0, 4096) == [3; PAGE], "reads go on");
    drop(rig);
    // Opened anew it stores what was answered.
    let disks = world.after_process_kill();
    let mut again = Rig::open(&disks, &pending, 2);
    assert!(again.read(0, 4096) == [3; PAGE]);
    assert!(matches!(again.write(PAGE as u64, &[4; PAGE]), Outcome::Done));
}

#[test]
fn a_read_that_fails_is_that_read_alone() {
    let Fresh { world, mut rig, content, .. } = fresh(3, true);
    let at = owned_below(&content);
    world.fail(Fault::nth(0, Errno::EIO).of(Call::Read).forever());
    assert!(matches!(rig.done(Work::Read { at, len: 512 }), Outcome::Failed(Trouble::Io)));
    world.heal();
    assert!(rig.read(at, 512) == content[usize::try_from(at).unwrap()..][..512]);
}

#[test]
fn an_image_that_cannot_be_read_breaks_nothing_that_lies_above_it() {
    let worlds = [world(), world()];
    let disks = worlds.each_ref().map(SimDisk::automatic);
    (0..2).for_each(|n| make(&disks[n], n, n.checked_sub(1), Bytes(SIZE)));
    let mut base = image(&gated(&disks[0]), Mode::ReadWrite);
    catena_chain::write(&mut base, None, GuestOffset(0), &[1; 2 * PAGE]).unwrap();
    base.close().unwrap();
    let mut rig = Rig::open(&disks, &tempfile::tempfile().unwrap(), 1);
    worlds[0].fail(Fault::nth(0, Errno::EIO).of(Call::Read).forever());
    assert!(matches!(rig.write(PAGE as u64, &[2; PAGE]), Outcome::Done));
    assert!(rig.read(PAGE as u64, 4096) == [2; PAGE], "what the leaf owns");
    for len in [512, 8192] {
        assert!(matches!(rig.done(Work::Read { at: 0, len }), Outcome::Failed(Trouble::Io)));
    }
    worlds[0].heal();
    assert!(rig.read(0, 8192) == [[1; PAGE], [2; PAGE]].concat());
}

#[test]
fn zeroing_is_fast_only_where_nothing_is_below() {
    let Fresh { mut rig, content, .. } = fresh(2, true);
    let at = owned_below(&content);
    let zeroes = |at, fast| Work::Zeroes { at, len: 512, fua: false, no_hole: false, fast };
    assert!(matches!(rig.done(zeroes(at, true)), Outcome::Failed(Trouble::NotSupported)));
    assert!(rig.read(at, 512) == content[usize::try_from(at).unwrap()..][..512], "nothing was changed");
    assert!(matches!(rig.done(zeroes(at, false)), Outcome::Done));
    assert!(rig.read(at, 512) == [0; 512]);
    let hole =
        content.chunks(512).position(|sector| sector.iter().all(|byte| *byte == 0)).unwrap() as u64 * 512;
    assert!(matches!(rig.write(hole, &[1; 512]), Outcome::Done));
    assert!(matches!(rig.done(zeroes(hole, true)), Outcome::Done));
    assert!(rig.read(hole, 512) == [0; 512]);
    let Outcome::Extents(extents) = rig.done(Work::Status { at: hole, len: 512, one: false }) else {
        panic!()
    };
    assert_eq!(extents, [Extent { len: 512, hole: true, zero: true, depth: 0 }]);
}

#[test]
fn extents_say_how_deep_their_owner_is() {
    let Fresh { mut rig, content, .. } = fresh(2, true);
    let at = owned_below(&content);
    assert!(matches!(rig.write(at, &[1; 512]), Outcome::Done));
    let Outcome::Extents(extents) = rig.done(Work::Status { at, len: 1024, one: false }) else { panic!() };
    assert_eq!(extents[0], Extent { len: 512, hole: false, zero: false, depth: 1 });
    assert_eq!(extents[1].depth, 2);
    let Outcome::Extents(extents) = rig.done(Work::Status { at: 0, len: 4 << 20, one: true }) else {
        panic!()
    };
    assert_eq!(extents.len(), 1);
}

#[test]
fn a_block_is_not_given_up_while_a_write_is_on_its_way_there() {
    let Fresh { mut rig, .. } = fresh(1, true);
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    assert!(matches!(rig.done(Work::Flush), Outcome::Done));
    let writing = rig.submit(write(PAGE as u64, &[2; PAGE], false));
    let trimming = rig.submit(Work::Trim { at: 0, len: 4096, fua: false });
    rig.settle_plans();
    let elsewhere = rig.submit(write(BLOCK_BYTES, &[3; PAGE], false));
    rig.settle();
    for request in [writing, trimming, elsewhere] {
        assert!(matches!(rig.outcome(request), Some(Outcome::Done)));
    }
    assert!(rig.read(0, 8192) == [[0; PAGE], [2; PAGE]].concat());
    assert!(rig.read(BLOCK_BYTES, 4096) == [3; PAGE]);
}

/// A new leaf for the chain.
fn next_leaf(fresh: &Fresh) -> Arc<SimDisk> {
    let n = fresh.disks.len();
    let disk = SimDisk::automatic(&fresh.world);
    make(&disk, n, Some(n - 1), Bytes(SIZE));
    disk
}

#[test]
fn a_snapshot_holds_writes_back_and_lets_reads_go_on() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    let old_leaf = gated(&fresh.disks[1]);
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
    assert_eq!(rig.disk.hello().prepared, Some(id(2)));
    rig.ask(Change::Quiesce { generation: 1 });
    rig.hold();
    let held = rig.submit(write(0, &[2; PAGE], false));
    let flush = rig.submit(Work::Flush);
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done), Ok(Told::Quiesced { leaf_is_empty: false })]);
    assert!(rig.outcome(held).is_none() && rig.outcome(flush).is_none());
    assert_eq!(rig.disk.hello().quiesced, Some(1));
    assert!(rig.read(0, 4096) == [1; PAGE], "reads go on");
    let frozen = content(&fresh.disks);
    assert!(frozen[..PAGE] == [1; PAGE], "what was answered is in the old leaf");
    rig.ask(Change::Resume { generation: 1, swap: true });
    rig.settle();
    assert_eq!(rig.told[2..], [Ok(Told::Done)]);
    assert!(
        matches!(rig.outcome(held), Some(Outcome::Done)) && matches!(rig.outcome(flush), Some(Outcome::Done))
    );
    assert!(rig.read(0, 4096) == [2; PAGE]);
    let hello = rig.disk.hello();
    assert_eq!((hello.chain, hello.prepared, hello.quiesced), (vec![id(2), id(1), id(0)], None, None));
    assert!(content(&fresh.disks) == frozen, "nothing is written to the old leaf any more");
    // What is noted now is the new leaf's.
    assert!(matches!(rig.write(PAGE as u64, &[3; PAGE]), Outcome::Done));
    let disks: Vec<_> = fresh.disks.iter().chain([&new]).cloned().collect();
    let mut again = Rig::open(&disks, &fresh.pending, 2);
    assert!(again.read(PAGE as u64, 4096) == [3; PAGE]);
}

#[test]
fn what_was_written_before_a_snapshot_is_flushed_by_a_successor_that_finds_it_under_a_new_leaf() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf: gated(&fresh.disks[1]) });
    rig.ask(Change::Quiesce { generation: 1 });
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done), "while writes are not held back yet");
    assert_eq!(rig.told.last(), Some(&Ok(Told::Quiesced { leaf_is_empty: false })));
    rig.ask(Change::Resume { generation: 1, swap: true });
    assert_eq!(rig.told.len(), 2, "the old leaf is not durable yet");
    // The process dies here.
    let disks = fresh.world.after_process_kill();
    let mut successor = Rig::open(&disks, &fresh.pending, 2);
    assert!(matches!(successor.done(Work::Flush), Outcome::Done));
    for seed in 0..20 {
        let after = disks[0].world().after_power_cut(seed);
        assert!(content(&after)[..PAGE] == [1; PAGE], "seed {seed}");
    }
}

#[test]
fn a_stop_leaves_images_that_are_sound_at_every_step() {
    const BLOCK: usize = 2 << 20;
    let Fresh { mut rig, world, .. } = fresh(1, true);
    // D4: that it is full is not to be said on the disk before it has its place there.
    assert!(matches!(rig.write(BLOCK_BYTES, &[1; BLOCK]), Outcome::Done));
    rig.ask(Change::Stop);
    while !rig.lab.is_idle() {
        rig.step();
        for seed in 0..8 {
            sound(&world.after_power_cut(seed << 32 | rig.lab.steps), "stopping");
        }
    }
    assert_eq!(rig.told, [Ok(Told::Done)]);
    assert!(content(&world.after_power_cut(1))[BLOCK..2 * BLOCK].iter().all(|byte| *byte == 1), "durable");
}

#[test]
fn a_change_that_is_given_up_leaves_everything_as_it_was() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    let old_leaf = gated(&fresh.disks[1]);
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
    rig.ask(Change::Quiesce { generation: 1 });
    rig.hold();
    let held = rig.submit(write(0, &[2; PAGE], false));
    rig.settle();
    assert_eq!(rig.told[1], Ok(Told::Quiesced { leaf_is_empty: true }));
    rig.ask(Change::Resume { generation: 1, swap: false });
    rig.settle();
    assert!(matches!(rig.outcome(held), Some(Outcome::Done)));
    assert_eq!(rig.disk.hello().chain, [id(1), id(0)]);
    rig.ask(Change::Resume { generation: 2, swap: true });
    assert_eq!(rig.told.last(), Some(&Ok(Told::Done)), "nothing is held back");
    assert_eq!(rig.disk.hello().chain, [id(1), id(0)], "nothing was prepared any more");
    // A second hold while the first is on, and a swap of what was not prepared.
    rig.ask(Change::Quiesce { generation: 3 });
    rig.settle();
    rig.ask(Change::Quiesce { generation: 4 });
    assert!(rig.told.last().unwrap().is_err());
    rig.ask(Change::Resume { generation: 3, swap: true });
    assert!(rig.told.last().unwrap().is_err());
    assert!(rig.disk.hello().quiesced.is_some(), "still held");
    rig.ask(Change::Resume { generation: 3, swap: false });
    assert!(matches!(rig.write(0, &[4; PAGE]), Outcome::Done));
}

#[test]
fn a_commit_for_a_quiesce_that_was_given_up_does_not_do_for_the_next() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    rig.ask(Change::Quiesce { generation: 1 });
    rig.ask(Change::Resume { generation: 1, swap: false });
    assert!(rig.told[0].is_err() && rig.told[1] == Ok(Told::Done), "its commit was still on its way");
    let between = rig.submit(write(PAGE as u64, &[2; PAGE], false));
    rig.settle_data();
    assert!(matches!(rig.outcome(between), Some(Outcome::Done)));
    rig.ask(Change::Prepare { generation: 2, leaf: leaf(&new), old_leaf: gated(&fresh.disks[1]) });
    rig.ask(Change::Quiesce { generation: 2 });
    rig.settle();
    assert_eq!(rig.told.last(), Some(&Ok(Told::Quiesced { leaf_is_empty: false })));
    assert!(content(&fresh.disks)[..2 * PAGE] == [[1; PAGE], [2; PAGE]].concat(), "all that was answered");
}

#[test]
fn writes_that_wait_for_space_do_not_keep_a_snapshot_from_being_made() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    fresh.world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
    let waits = rig.submit(write(0, &[2; PAGE], false));
    rig.settle();
    let behind = rig.submit(write(0, &[3; 512], false));
    let old_leaf = gated(&fresh.disks[1]);
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
    rig.ask(Change::Quiesce { generation: 1 });
    rig.settle();
    assert_eq!(rig.told[1], Ok(Told::Quiesced { leaf_is_empty: true }));
    fresh.world.heal();
    rig.wait();
    rig.settle();
    assert!(rig.outcome(waits).is_none(), "nothing is written while it is quiesced");
    rig.ask(Change::Resume { generation: 1, swap: true });
    rig.settle();
    assert!(
        matches!(rig.outcome(waits), Some(Outcome::Done))
            && matches!(rig.outcome(behind), Some(Outcome::Done))
    );
    assert!(rig.read(0, 1024) == [[3; 512], [2; 512]].concat());
    assert!(content(&fresh.disks) == fresh.content, "it went to the new leaf");
}

#[test]
fn a_write_that_waits_for_a_read_does_not_begin_while_writes_are_held_back() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    let at = owned_below(&fresh.content);
    let reading = rig.submit(Work::Read { at, len: 512 });
    let behind = rig.submit(write(at, &[2; 512], false));
    let old_leaf = gated(&fresh.disks[1]);
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
    rig.ask(Change::Quiesce { generation: 1 });
    rig.settle_plans();
    assert_eq!(rig.told.len(), 2, "quiesced before the read has ended");
    rig.settle();
    assert!(rig.outcome(reading).is_some() && rig.outcome(behind).is_none());
    rig.ask(Change::Resume { generation: 1, swap: true });
    rig.settle();
    assert!(matches!(rig.outcome(behind), Some(Outcome::Done)));
    assert!(content(&fresh.disks) == fresh.content, "it went to the new leaf");
}

#[test]
fn a_merged_image_is_let_go_when_the_last_read_of_it_has_ended() {
    let mut fresh = fresh(3, true);
    let at = owned_below(&fresh.content);
    let whole = fresh.content.clone();
    let rig = &mut fresh.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    // The root with all that is in it: what it is after the merge of image 1 into it.
    let merged = SimDisk::automatic(&fresh.world);
    make(&merged, 0, None, Bytes(SIZE));
    let container: Arc<dyn catena_blockio::Container> = merged.clone();
    let mut image = image(&container, Mode::ReadWrite);
    catena_chain::write(&mut image, None, GuestOffset(0), &whole).unwrap();
    image.close().unwrap();

    let reading = rig.submit(Work::Read { at, len: 512 });
    rig.ask(Change::Relink { generation: 1, below: vec![(id(0), Some(part(&merged)))] });
    assert!(rig.told.is_empty(), "a read of the old images is under way");
    let later = rig.submit(Work::Read { at, len: 512 });
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done)]);
    for read in [reading, later] {
        assert!(bytes(rig.outcome(read).unwrap()) == whole[usize::try_from(at).unwrap()..][..512]);
    }
    assert_eq!(rig.disk.hello().chain, [id(2), id(0)]);
    let mut expected = whole;
    expected[..PAGE].fill(1);
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == expected);
    rig.ask(Change::Relink { generation: 2, below: vec![(id(7), None::<Part>)] });
    assert!(rig.told.last().unwrap().is_err(), "an image that nobody has");
    assert_eq!(rig.disk.hello().chain, [id(2), id(0)]);
}

#[test]
fn what_was_found_of_a_range_before_a_merge_is_found_again_after_it() {
    let world = world();
    let disks: Vec<_> = (0..4).map(|_| SimDisk::automatic(&world)).collect();
    for (n, parent) in [(0, None), (1, Some(0)), (2, Some(1)), (3, None)] {
        // The last is the root after the merge.
        make(&disks[n], if n == 3 { 0 } else { n }, parent, Bytes(SIZE));
        if n % 2 == 1 {
            let container: Arc<dyn catena_blockio::Container> = disks[n].clone();
            let mut image = image(&container, Mode::ReadWrite);
            let at = GuestOffset(BLOCK_BYTES - 4096);
            catena_chain::write(&mut image, None, at, &[7; 2 * PAGE]).unwrap();
            image.close().unwrap();
        }
    }
    let pending = tempfile::tempfile().unwrap();
    let mut rig = Rig::open(&disks[..3], &pending, 1);
    assert!(rig.read(BLOCK_BYTES - 512, 512) == [7; 512], "of the first block all is known now");
    let reading = rig.submit(Work::Read { at: BLOCK_BYTES - 4096, len: 8192 });
    let asking = rig.submit(Work::Status { at: BLOCK_BYTES - 4096, len: 8192, one: false });
    rig.ask(Change::Relink { generation: 1, below: vec![(id(0), Some(part(&disks[3])))] });
    rig.settle();
    assert!(bytes(rig.outcome(reading).unwrap()) == [7; 2 * PAGE]);
    let Some(Outcome::Extents(extents)) = rig.outcome(asking) else { panic!() };
    assert_eq!(extents, [Extent { len: 8192, hole: false, zero: false, depth: 2 }]);
}

#[test]
fn the_leaf_is_patched_by_the_one_who_has_it_open() {
    let Fresh { mut rig, world, disks, .. } = fresh(2, true);
    let patch = |image: ImageId| {
        let writes = vec![catena_types::PatchWrite { at: FileOffset(1 << 20), hex: "00ff".to_owned() }];
        Change::Patch { patches: vec![HeaderPatch { image, writes }] }
    };
    let before = world.counts().writes;
    rig.ask(patch(id(0)));
    assert!(rig.told.pop().unwrap().is_err(), "not the leaf");
    rig.ask(patch(id(1)));
    assert!(rig.told.pop().unwrap().is_err(), "not a header");
    assert_eq!(world.counts().writes, before);
    // D12: so is its hidden flag.
    rig.ask(Change::SetHidden { hidden: true });
    rig.settle();
    assert_eq!(rig.told.pop(), Some(Ok(Told::Done)));
    assert!(image(&gated(&disks[1]), Mode::ReadOnly).info().hidden);
}

#[test]
fn after_a_stop_nothing_is_taken_and_what_was_held_fails() {
    let Fresh { mut rig, .. } = fresh(2, true);
    rig.ask(Change::Quiesce { generation: 1 });
    rig.settle();
    let held = rig.submit(write(0, &[1; PAGE], false));
    rig.ask(Change::Stop);
    rig.settle();
    assert!(matches!(rig.outcome(held), Some(Outcome::Failed(Trouble::ShuttingDown))));
    assert_eq!(rig.told.len(), 2);
    assert_eq!(rig.told[1], Ok(Told::Done));
    assert!(matches!(rig.done(Work::Read { at: 0, len: 1 }), Outcome::Failed(Trouble::ShuttingDown)));
}

#[test]
fn a_quiesce_that_cannot_make_all_durable_says_so_and_nothing_waits_for_ever() {
    let mut fresh = fresh(2, true);
    let new = next_leaf(&fresh);
    let rig = &mut fresh.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    let old_leaf = gated(&fresh.disks[1]);
    rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
    rig.ask(Change::Quiesce { generation: 1 });
    rig.hold();
    fresh.world.fail(Fault::nth(0, Errno::EIO).of(Call::Flush).forever());
    let held = [rig.submit(write(0, &[2; PAGE], true)), rig.submit(Work::Flush)];
    rig.settle();
    assert!(matches!(rig.told[..], [Ok(Told::Done), Err(_)]));
    rig.ask(Change::Resume { generation: 1, swap: true });
    assert!(rig.told.last().unwrap().is_err());
    rig.ask(Change::Resume { generation: 1, swap: false });
    rig.settle();
    for request in held {
        assert!(matches!(rig.outcome(request), Some(Outcome::Failed(Trouble::Io))));
    }
    assert!(rig.read(0, 4096) == [1; PAGE]);
    rig.ask(Change::Stop);
    rig.settle();
    assert!(rig.told.last().unwrap().is_err());
}

#[test]
fn a_stop_ends_a_quiesce_that_is_on_its_way() {
    let Fresh { mut rig, disks, .. } = fresh(2, true);
    let writing = rig.submit(write(0, &[1; PAGE], false));
    rig.ask(Change::Quiesce { generation: 1 });
    rig.hold();
    let held = rig.submit(write(0, &[2; PAGE], false));
    rig.ask(Change::Stop);
    rig.settle();
    assert!(matches!(rig.outcome(writing), Some(Outcome::Done)));
    assert!(matches!(rig.outcome(held), Some(Outcome::Failed(Trouble::ShuttingDown))));
    assert!(matches!(rig.told[..], [Err(_), Ok(Told::Done)]));
    assert!(content(&disks)[..PAGE] == [1; PAGE]);
    rig.ask(Change::Stop);
    assert!(rig.told.last().unwrap().is_err(), "once");
}

#[test]
fn a_disk_that_is_only_read_refuses_changes_and_changes_nothing() {
    let Fresh { world, disks, rig, content, .. } = fresh(3, true);
    drop(rig);
    let before = world.counts();
    let mut rig = Rig::open_read_only(&disks);
    assert!(rig.disk.hello().read_only);
    assert!(rig.read(0, u32::try_from(SIZE).unwrap()) == content);
    assert!(matches!(rig.write(0, &[1; 512]), Outcome::Failed(Trouble::ReadOnly)));
    let trim = Work::Trim { at: 0, len: 512, fua: true };
    assert!(matches!(rig.done(trim), Outcome::Failed(Trouble::ReadOnly)));
    assert!(matches!(rig.done(Work::Flush), Outcome::Done));
    rig.ask(Change::Stop);
    rig.settle();
    assert_eq!(rig.told, [Ok(Told::Done)]);
    let after = world.counts();
    assert_eq!((after.writes, after.flushes), (before.writes, before.flushes));
}

#[test]
fn no_more_is_taken_than_a_bound_and_what_is_answered_makes_room() {
    let Fresh { mut rig, .. } = fresh(1, true);
    for n in 0..32 {
        assert!(rig.disk.can_take(), "{n}");
        rig.disk.submit(1000 + n, Work::Read { at: 0, len: 2 << 20 }, &mut rig.lab);
    }
    assert!(!rig.disk.can_take());
    rig.settle();
    rig.wait();
    assert!(rig.disk.can_take());
}

#[test]
fn a_disk_grows_while_it_is_quiesced_and_reads_wait_for_that() {
    let mut fresh = fresh(2, true);
    let rig = &mut fresh.rig;
    let before = rig.disk.size();
    let larger = Bytes(before.0 + (6000 << 20));
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    rig.ask(Change::Grow { size: larger });
    assert!(rig.told.pop().unwrap().is_err(), "writes are not held back");
    rig.ask(Change::Quiesce { generation: 1 });
    rig.settle();
    rig.ask(Change::Grow { size: Bytes(before.0 - (2 << 20)) });
    assert!(rig.told.pop().unwrap().is_err(), "it cannot shrink");
    let mut reads = vec![rig.submit(Work::Read { at: 0, len: 4096 })];
    rig.ask(Change::Grow { size: larger });
    let held = rig.submit(write(before.0, &[2; PAGE], true));
    while rig.disk.is_growing() {
        reads.push(rig.submit(Work::Read { at: 0, len: 4096 }));
        rig.step();
    }
    rig.settle();
    assert!(reads.len() > 5);
    assert_eq!((rig.told.pop(), rig.disk.size()), (Some(Ok(Told::Done)), larger));
    for read in reads {
        assert!(bytes(rig.outcome(read).unwrap()) == [1; PAGE], "its block has moved meanwhile");
    }
    assert!(rig.read(0, 4096) == [1; PAGE] && rig.outcome(held).is_none());
    rig.ask(Change::Resume { generation: 1, swap: false });
    rig.settle();
    assert!(matches!(rig.outcome(held), Some(Outcome::Done)));
    let mut again = Rig::open(&fresh.disks, &fresh.pending, 2);
    assert!(again.read(0, 4096) == [1; PAGE] && again.read(before.0, 4096) == [2; PAGE]);
    assert!(again.read(larger.0 - 4096, 4096) == [0; PAGE]);
}
