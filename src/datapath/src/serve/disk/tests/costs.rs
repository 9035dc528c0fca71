//! What it costs, counted on the simulated disk: writes and barriers of first writes, and the barriers that a snapshot makes
//! writes wait for.

use super::cases::fresh;
use super::chains::content;
use super::rig::{Rig, gated, id, leaf, make, part, world, write};
use crate::serve::disk::Change;
use crate::serve::work::{Outcome, Work};
use catena_blockio::sim::{Rng, SimDisk, SimWorld};
use catena_control::Told;
use catena_types::{BLOCK_BYTES, Bytes};
use std::fs::File;
use std::sync::Arc;

const PAGE: usize = 4096;
const BLOCKS: u64 = 64;

/// A disk of which nothing was written since its snapshot.
struct Large {
    world: Arc<SimWorld>,
    disks: Vec<Arc<SimDisk>>,
    _pending: File,
    rig: Rig,
}

impl Large {
    fn new(seed: u64) -> Self {
        let world = world();
        let disks = vec![SimDisk::automatic(&world), SimDisk::automatic(&world)];
        make(&disks[0], 0, None, Bytes(BLOCKS * BLOCK_BYTES));
        make(&disks[1], 1, Some(0), Bytes(BLOCKS * BLOCK_BYTES));
        let pending = tempfile::tempfile().unwrap();
        let mut rig = Rig::open(&disks, &pending, seed);
        assert!(matches!(rig.done(Work::Flush), Outcome::Done));
        Self { world, disks, _pending: pending, rig }
    }

    /// Writes and barriers so far.
    fn counts(&self) -> (u64, u64) {
        let counts = self.world.counts();
        (counts.writes, counts.flushes)
    }

    /// A write to a block that was never written, on its way.
    fn first_write(&mut self, block: u64) -> u64 {
        self.rig.submit(write(block * BLOCK_BYTES, &[7; PAGE], false))
    }
}

#[test]
fn first_writes_and_their_flush_cost_three_writes_each_and_two_barriers_in_all() {
    for count in [1, 2, 16, 64] {
        let mut large = Large::new(1);
        let before = large.counts();
        (0..count).for_each(|block| {
            large.first_write(block);
        });
        large.rig.settle();
        // The footer is moved once for 64 blocks.
        assert_eq!(large.counts(), (before.0 + count + 1, before.1), "data alone");
        assert!(matches!(large.rig.done(Work::Flush), Outcome::Done));
        let after = large.counts();
        let writes = after.0 - before.0;
        assert_eq!(
            writes,
            2 * count + 2,
            "data and bitmap of each, one sector of the block table, the footer"
        );
        assert!(count == 1 || writes <= 3 * count);
        assert_eq!(after.1 - before.1, 2, "behind the data, and behind the pointers");
        // Another sector of a block that is there.
        large.rig.write(PAGE as u64, &[8; PAGE]);
        assert!(matches!(large.rig.done(Work::Flush), Outcome::Done));
        assert_eq!(large.counts(), (after.0 + 2, after.1 + 2), "data and bitmap");
        // What is owned already.
        large.rig.write(PAGE as u64, &[9; PAGE]);
        assert!(matches!(large.rig.done(Work::Flush), Outcome::Done));
        assert_eq!(large.counts(), (after.0 + 3, after.1 + 3), "data");
    }
}

#[test]
fn flushed_batches_in_a_row_cost_one_barrier_each() {
    const BATCHES: u64 = 12;
    let mut large = Large::new(1);
    let before = large.counts();
    let mut flushes = Vec::new();
    for batch in 0..BATCHES {
        (0..4).for_each(|n| {
            large.first_write(4 * batch + n);
        });
        large.rig.settle_data();
        if batch > 0 {
            // The commit of the batch before ends after this one's data have landed.
            large.rig.end_plan();
        } else {
            large.rig.settle();
        }
        flushes.push(large.rig.submit(Work::Flush));
    }
    let answered = flushes.iter().filter(|&&flush| large.rig.outcome(flush).is_some()).count() as u64;
    assert!(answered >= BATCHES - 3, "{answered}");
    large.rig.settle();
    let after = large.counts();
    assert!(after.0 - before.0 <= 3 * 4 * BATCHES);
    assert_eq!(after.1 - before.1, BATCHES + 1, "and one behind the last pointers");
}

#[test]
fn without_flushes_what_is_noted_takes_a_barrier_a_second() {
    let mut large = Large::new(1);
    let before = large.counts();
    for second in 0..8 {
        (0..4).for_each(|n| {
            large.first_write(4 * second + n);
        });
        large.rig.settle();
        large.rig.wait();
        large.rig.settle();
    }
    assert_eq!(large.counts().1 - before.1, 8);
    large.rig.wait();
    large.rig.settle();
    assert_eq!((large.counts().1 - before.1, large.rig.disk.deadline()), (9, None));
}

#[test]
fn nothing_to_make_durable_takes_no_barrier() {
    let mut large = Large::new(1);
    let before = large.counts();
    assert!(matches!(large.rig.done(Work::Flush), Outcome::Done));
    assert_eq!(large.counts(), before);
}

#[test]
fn flushes_that_come_during_a_commit_share_the_next_and_its_barrier_is_behind_the_first() {
    let mut found = fresh(2, true);
    let rig = &mut found.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    let before = found.world.counts().flushes;
    let first = rig.submit(Work::Flush);
    rig.step();
    assert!(rig.outcome(first).is_none());
    let second = rig.submit(write(PAGE as u64, &[2; PAGE], true));
    let third = rig.submit(Work::Flush);
    rig.settle_data();
    rig.settle();
    assert!([first, second, third].into_iter().all(|n| matches!(rig.outcome(n), Some(Outcome::Done))));
    assert_eq!(found.world.counts().flushes - before, 3);
}

/// Something that a guest does, often to a block that was never written.
fn traffic(rig: &mut Rig, rng: &mut Rng) {
    let at = rng.below(BLOCKS) * BLOCK_BYTES + rng.below(4) * PAGE as u64;
    let fill = u8::try_from(1 + rng.below(255)).unwrap();
    match rng.below(4) {
        0 => rig.submit(Work::Flush),
        1 => rig.submit(write(at, &[fill; PAGE], true)),
        _ => rig.submit(write(at, &[fill; PAGE], false)),
    };
}

#[test]
fn writes_that_a_snapshot_holds_back_wait_for_one_barrier() {
    let mut sealed = 0;
    for seed in 0..30 {
        let mut large = Large::new(seed);
        let mut rng = Rng::new(seed);
        for _ in 0..rng.below(60) {
            traffic(&mut large.rig, &mut rng);
            (0..rng.below(4)).for_each(|_| large.rig.step());
        }
        let new = SimDisk::automatic(&large.world);
        make(&new, 2, Some(1), Bytes(BLOCKS * BLOCK_BYTES));
        let old_leaf = gated(&large.disks[1]);
        large.rig.ask(Change::Prepare { generation: 1, leaf: leaf(&new), old_leaf });
        large.rig.ask(Change::Quiesce { generation: 1 });
        while !large.rig.disk.holds_back() {
            traffic(&mut large.rig, &mut rng);
            if !large.rig.disk.holds_back() {
                large.rig.step();
            }
        }
        let held_at = large.counts().1;
        let held = large.rig.submit(write(0, &[1; PAGE], false));
        while !matches!(large.rig.told.last(), Some(Ok(Told::Quiesced { .. }))) {
            large.rig.step();
        }
        let barriers = large.counts().1 - held_at;
        assert!(barriers <= 1, "seed {seed}: {barriers} barriers");
        let frozen = content(&large.disks);
        large.rig.ask(Change::Resume { generation: 1, swap: true });
        let sealing = large.rig.told.len() < 3;
        sealed += u32::from(sealing);
        large.rig.settle_all_but(usize::from(sealing));
        assert!(matches!(large.rig.outcome(held), Some(Outcome::Done)), "seed {seed}");
        assert_eq!(large.counts().1 - held_at, barriers, "seed {seed}: without another");
        let flush = large.rig.submit(Work::Flush);
        while large.rig.told.len() < 3 {
            assert!(large.rig.outcome(flush).is_none(), "seed {seed}: flushed before the old leaf was");
            large.rig.step();
        }
        // The keeper may say now that the snapshot is there.
        let after = large.world.after_power_cut(seed);
        assert!(content(&after[..2]) == frozen, "seed {seed}");
        large.rig.settle();
        assert!(matches!(large.rig.outcome(flush), Some(Outcome::Done)));
    }
    assert!(sealed > 0, "no barrier came behind a resume: nothing was shown of it");
}

#[test]
fn a_write_does_not_wait_for_the_flush_of_an_earlier_one() {
    let mut large = Large::new(1);
    assert!(matches!(large.rig.write(0, &[1; PAGE]), Outcome::Done));
    let earlier = large.rig.submit(write(0, &[2; PAGE], true));
    large.rig.settle_data();
    let later = large.rig.submit(write(0, &[3; PAGE], false));
    large.rig.settle_data();
    assert!(matches!(large.rig.outcome(later), Some(Outcome::Done)));
    assert!(large.rig.outcome(earlier).is_none());
    large.rig.settle();
    assert!(matches!(large.rig.outcome(earlier), Some(Outcome::Done)));
}

#[test]
fn a_request_that_waits_for_a_commit_is_in_nobodys_way() {
    let mut large = Large::new(1);
    let rig = &mut large.rig;
    assert!(matches!(rig.write(0, &[1; PAGE]), Outcome::Done));
    // Its first and its last sector are read before they are written, through the chain as it is then.
    let flushed = rig.submit(write(100, &[2; PAGE], true));
    rig.settle_data();
    rig.ask(Change::Relink { generation: 1, below: vec![(id(0), Some(part(&large.disks[0])))] });
    assert_eq!(rig.told, [Ok(Told::Done)], "whoever has a merged image open is waited for, and it has not");
    rig.ask(Change::Quiesce { generation: 2 });
    rig.settle();
    assert!(matches!(rig.told.last(), Some(Ok(Told::Quiesced { .. }))));
    rig.ask(Change::Resume { generation: 2, swap: false });
    rig.settle();
    assert!(matches!(rig.outcome(flushed), Some(Outcome::Done)));
}
