//! Copies and moves: whole, stopped, failed, and cut short by crashes at every call.

use super::{SECTORS, full_size, layers, model, read_all};
use crate::copy::copy_at;
use crate::moving::move_down_at;
use crate::survey::Pace;
use crate::testing::{Model, Put, TestLayer, assert_same, disk_of};
use crate::units::len;
use crate::{Error, Layer, Progress, copy, move_down};
use catena_blockio::Container;
use catena_blockio::sim::{Call, Errno, Fault, SimDisk, SimWorld};
use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, GuestOffset, SECTOR_BYTES};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// A batch for every block and a checkpoint for every batch.
const SMALL: Pace = Pace {
    batch_bytes: BLOCK_BYTES,
    batch_blocks: 1,
    batch_time: Duration::from_secs(3600),
    checkpoint_bytes: 1,
    checkpoint_time: Duration::from_secs(3600),
};

/// Stops before batch number `stop_at`, and notes what it is told.
struct Script {
    stop_at: usize,
    asked: usize,
    total: Bytes,
    checkpoints: Vec<(GuestOffset, Bytes)>,
}

impl Script {
    fn stopping_at(stop_at: usize) -> Self {
        Self { stop_at, asked: 0, total: Bytes(0), checkpoints: Vec::new() }
    }

    fn to_the_end() -> Self {
        Self::stopping_at(usize::MAX)
    }

    fn cursor(&self) -> GuestOffset {
        self.checkpoints.last().map_or(GuestOffset(0), |last| last.0)
    }
}

impl Progress for Script {
    fn planned(&mut self, total: Bytes) {
        self.total = total;
    }

    fn go_on(&mut self, _: Bytes) -> bool {
        self.asked += 1;
        self.asked <= self.stop_at
    }

    fn checkpoint(&mut self, cursor: GuestOffset, done: Bytes) -> Result<(), Error> {
        self.checkpoints.push((cursor, done));
        Ok(())
    }
}

/// The same layers as the machine finds them after a crash.
fn reopened(disks: &[Arc<SimDisk>], like: &[TestLayer]) -> Vec<TestLayer> {
    disks
        .iter()
        .zip(like)
        .map(|(disk, layer)| TestLayer::open(Arc::clone(disk), layer.virtual_size()))
        .collect()
}

fn owned_bytes(model: &Model) -> Bytes {
    Bytes(model.owned.iter().take(len(model.sectors)).flatten().count() as u64 * SECTOR_BYTES)
}

fn owns_nothing(layer: &TestLayer) -> bool {
    let mut blocks =
        std::iter::successors(layer.next_block(BlockIndex(0)), |block| layer.next_block(block.next()));
    blocks.all(|block| layer.ownership(block).unwrap().to_set().is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn a_copy_stopped_anywhere_goes_on_at_its_cursor(
        child in model(), source in full_size(), target in full_size(), root in model(),
        stop_at in 0usize..4, sharing in any::<bool>(),
    ) {
        let world = SimWorld::new();
        world.set_sharing(sharing);
        let models = [&child, &source, &target, &root];
        let expected = disk_of(&models);
        let mut all = layers(&world, &models);
        let mut first = Script::stopping_at(stop_at);
        let mut parent = all.remove(2);
        let stopped = copy_at(SMALL, &all[1], &mut parent, GuestOffset(0), &mut first);
        prop_assert!(stopped.is_ok() || matches!(stopped, Err(Error::Stopped)));
        assert_same(&read_all(&[&all[0], &all[1], &parent, &all[2]]), &expected, "after the stop");

        let mut second = Script::to_the_end();
        let outcome = copy(&all[1], &mut parent, first.cursor(), &mut second).unwrap();
        prop_assert_eq!(first.total, owned_bytes(&source));
        prop_assert_eq!(outcome.bytes, second.total);
        prop_assert_eq!(first.checkpoints.last().map_or(0, |last| last.1.0) + outcome.bytes.0, first.total.0);
        assert_same(&read_all(&[&all[0], &all[1], &parent, &all[2]]), &expected, "with the source");
        assert_same(&read_all(&[&all[0], &parent, &all[2]]), &expected, "without the source");

        // And so it is after a power cut.
        let survivor = TestLayer::open(parent.disk().after_power_cut(1), parent.virtual_size());
        assert_same(&read_all(&[&all[0], &survivor, &all[2]]), &expected, "after a power cut");
    }

    #[test]
    fn a_copy_from_inside_a_block_leaves_out_what_lies_before(source in full_size(), from in 0..SECTORS * SECTOR_BYTES) {
        let all = layers(&SimWorld::new(), &[&source, &Model::new(SECTORS, &[])]);
        let mut target = all[1].clone();
        copy(&all[0], &mut target, GuestOffset(from), &mut Script::to_the_end()).unwrap();
        let mut copied = source.clone();
        let before = len(from / SECTOR_BYTES).min(copied.owned.len());
        copied.owned[..before].fill(None);
        assert_same(&read_all(&[&target]), &disk_of(&[&copied]), "the target");
    }

    #[test]
    fn a_move_stopped_anywhere_goes_on_with_what_is_left(
        leaf in full_size(), parent in full_size(), root in model(), stop_at in 0usize..4, sharing in any::<bool>(),
    ) {
        let world = SimWorld::new();
        world.set_sharing(sharing);
        let models = [&leaf, &parent, &root];
        let expected = disk_of(&models);
        let mut all = layers(&world, &models);
        let (root, mut parent, mut leaf) = (all.remove(2), all.remove(1), all.remove(0));
        let mut first = Script::stopping_at(stop_at);
        let stopped = move_down_at(SMALL, &mut leaf, &mut parent, &mut first);
        prop_assert!(stopped.is_ok() || matches!(stopped, Err(Error::Stopped)));
        assert_same(&read_all(&[&leaf, &parent, &root]), &expected, "after the stop");

        let mut second = Script::to_the_end();
        move_down(&mut leaf, &mut parent, &mut second).unwrap();
        prop_assert_eq!(first.checkpoints.last().map_or(0, |last| last.1.0) + second.total.0, first.total.0);
        assert_same(&read_all(&[&parent, &root]), &expected, "without the leaf");
        let survivor = TestLayer::open(leaf.disk().after_power_cut(1), leaf.virtual_size());
        prop_assert!(owns_nothing(&leaf) && owns_nothing(&survivor));
        let survivor = TestLayer::open(parent.disk().after_power_cut(1), parent.virtual_size());
        assert_same(&read_all(&[&survivor, &root]), &expected, "after a power cut");
    }
}

/// Three blocks of each kind: whole, in pieces, and owned by one side only.
fn family() -> [Model; 3] {
    let put = |sectors, tag| Put { sectors, tag };
    let block = BLOCK_SECTORS as u64;
    let upper = [
        put(0..block, 1),
        put(block + 8..block + 16, 2),
        put(block + 301..block + 399, 3),
        put(2 * block..SECTORS, 4),
    ];
    let middle = [put(10..20, 5), put(block..2 * block - 9, 6)];
    [Model::new(SECTORS, &upper), Model::new(SECTORS, &middle), Model::new(SECTORS, &[put(0..SECTORS, 7)])]
}

/// Runs `job` with a crash at each of its calls, and hands `check` what each power cut or death leaves behind. Which
/// of several calls in flight is the n-th varies; every one of them is a crash that can be.
fn crash_everywhere<T>(
    job: impl Fn(&mut TestLayer, &mut TestLayer) -> (Result<(), Error>, T),
    check: impl Fn(Vec<TestLayer>, &T),
) {
    let models = family();
    for call in 0.. {
        let world = SimWorld::new();
        world.set_sharing(call % 2 == 0);
        let all = layers(&world, &[&models[0], &models[1], &models[2]]);
        let (mut upper, mut middle) = (all[0].clone(), all[1].clone());
        world.crash_at(world.calls() + call);
        let (result, told) = job(&mut upper, &mut middle);
        assert_eq!(result.is_err(), world.has_crashed(), "{result:?}");
        for seed in 0..2 {
            check(reopened(&world.after_power_cut(seed), &all), &told);
        }
        check(reopened(&world.after_process_kill(), &all), &told);
        if !world.has_crashed() {
            assert!(call > 10, "the job makes calls");
            return;
        }
    }
}

#[test]
fn a_copy_survives_a_crash_at_every_call() {
    let models = family();
    let expected = disk_of(&[&models[0], &models[1], &models[2]]);
    crash_everywhere(
        |source, target| {
            let mut script = Script::to_the_end();
            let result = copy_at(SMALL, source, target, GuestOffset(0), &mut script);
            (result.map(|_| ()), script.cursor())
        },
        |mut all, &cursor| {
            assert_same(&read_all(&[&all[0], &all[1], &all[2]]), &expected, "after the crash");
            let mut target = all.remove(1);
            copy(&all[0], &mut target, cursor, &mut Script::to_the_end()).unwrap();
            assert_same(&read_all(&[&target, &all[1]]), &expected, "taken up again");
        },
    );
}

#[test]
fn a_move_survives_a_crash_at_every_call() {
    let models = family();
    let expected = disk_of(&[&models[0], &models[1], &models[2]]);
    crash_everywhere(
        |leaf, parent| (move_down_at(SMALL, leaf, parent, &mut Script::to_the_end()), ()),
        |mut all, ()| {
            assert_same(&read_all(&[&all[0], &all[1], &all[2]]), &expected, "after the crash");
            let mut leaf = all.remove(0);
            move_down(&mut leaf, &mut all[0], &mut Script::to_the_end()).unwrap();
            let leaf = TestLayer::open(leaf.disk().after_power_cut(0), leaf.virtual_size());
            let parent = TestLayer::open(all[0].disk().after_power_cut(0), all[0].virtual_size());
            assert!(owns_nothing(&leaf));
            assert_same(&read_all(&[&parent, &all[1]]), &expected, "taken up again");
        },
    );
}

#[test]
fn a_failed_write_leaves_the_chain_as_it_was() {
    let models = family();
    let expected = disk_of(&[&models[0], &models[1], &models[2]]);
    let world = SimWorld::new();
    let all = layers(&world, &[&models[0], &models[1], &models[2]]);
    let (mut leaf, mut parent) = (all[0].clone(), all[1].clone());
    let writes = world.counts().of(Call::Write);
    world.fail(Fault::nth(writes + 1, Errno::ENOSPC).of(Call::Write).partial().forever());
    let error = move_down(&mut leaf, &mut parent, &mut Script::to_the_end()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32));
    world.heal();
    assert_same(&read_all(&[&leaf, &parent, &all[2]]), &expected, "after the error");
    move_down(&mut leaf, &mut parent, &mut Script::to_the_end()).unwrap();
    assert_same(&read_all(&[&parent, &all[2]]), &expected, "taken up again");
}

#[test]
fn a_target_that_is_too_small_is_refused_before_anything_is_written() {
    let world = SimWorld::new();
    let all = layers(&world, &[&Model::new(100, &[Put { sectors: 0..100, tag: 1 }]), &Model::new(99, &[])]);
    let (mut leaf, mut parent) = (all[0].clone(), all[1].clone());
    let before = world.calls();
    let refused = copy(&leaf, &mut parent, GuestOffset(0), &mut Script::to_the_end());
    assert!(matches!(refused, Err(Error::OutOfRange(_))));
    let refused = move_down(&mut leaf, &mut parent, &mut Script::to_the_end());
    assert!(matches!(refused, Err(Error::OutOfRange(_))));
    assert_eq!(world.calls(), before);
}

#[test]
fn a_move_drops_what_lies_past_the_end_without_copying_it() {
    let leaf = Model::new(10, &[Put { sectors: 5..15, tag: 1 }, Put { sectors: 5000..5001, tag: 2 }]);
    let all = layers(&SimWorld::new(), &[&leaf, &Model::new(SECTORS, &[])]);
    let (mut leaf, mut parent) = (all[0].clone(), all[1].clone());
    let mut script = Script::to_the_end();
    move_down(&mut leaf, &mut parent, &mut script).unwrap();
    assert!(owns_nothing(&leaf));
    assert_eq!(script.total, Bytes(5 * SECTOR_BYTES));
    assert_eq!(parent.ownership(BlockIndex(0)).unwrap().to_set().runs().collect::<Vec<_>>(), vec![5..10; 1]);
    assert_eq!(parent.next_block(BlockIndex(1)), None);
}

#[test]
fn a_short_source_block_is_copied_with_zeros_past_its_end() {
    let put = |sectors, tag| Put { sectors, tag };
    let all = layers(
        &SimWorld::new(),
        &[&Model::new(8192, &[put(0..8192, 1)]), &Model::new(8192, &[put(0..8192, 2)])],
    );
    let (mut source, mut target) = (all[0].clone(), all[1].clone());
    source.short.insert(BlockIndex(1), 100 * 512);
    // Block by block, so that the second finds the first one's data in the buffer.
    copy_at(SMALL, &source, &mut target, GuestOffset(0), &mut Script::to_the_end()).unwrap();
    let expected = Model::new(8192, &[put(0..4196, 1), put(4196..8192, 0)]);
    assert_same(&read_all(&[&target]), &disk_of(&[&expected]), "the target");
}

#[test]
fn a_gap_is_filled_with_zeros_and_not_with_what_lies_there_in_the_source() {
    let source = Model::new(4096, &[Put { sectors: 0..8, tag: 1 }, Put { sectors: 24..32, tag: 1 }]);
    let all = layers(&SimWorld::new(), &[&source, &Model::new(4096, &[])]);
    let (source, mut target) = (all[0].clone(), all[1].clone());
    let at_gap = |layer: &TestLayer| FileOffset(layer.locate(BlockIndex(0)).unwrap().at.0 + 8 * SECTOR_BYTES);
    source.disk().write_at(&[0xee; 16 * 512], at_gap(&source)).unwrap();
    copy(&source, &mut target, GuestOffset(0), &mut Script::to_the_end()).unwrap();
    let mut gap = [1; 16 * 512];
    target.disk().read_at(&mut gap, at_gap(&target)).unwrap();
    assert_eq!(gap, [0; 16 * 512]);
}

/// Copies `source` over `target`; what the calls on both cost.
fn cost(source: &Model, target: &Model, sharing: bool) -> catena_blockio::sim::Counts {
    let world = SimWorld::new();
    world.set_sharing(sharing);
    let all = layers(&world, &[source, target]);
    let before = (all[0].disk().counts(), all[1].disk().counts());
    let mut parent = all[1].clone();
    copy(&all[0], &mut parent, GuestOffset(0), &mut Script::to_the_end()).unwrap();
    let (from, to) = (all[0].disk().counts(), all[1].disk().counts());
    assert_same(&read_all(&[&parent]), &disk_of(&[source, target]), "the target");
    catena_blockio::sim::Counts {
        reads: from.reads - before.0.reads,
        writes: to.writes - before.1.writes,
        clones: to.clones - before.1.clones,
        ..to
    }
}

#[test]
fn whole_blocks_are_shared_where_the_storage_can() {
    let whole = Model::new(12288, &[Put { sectors: 0..12288, tag: 1 }]);
    let empty = Model::new(12288, &[]);
    // Per new block: a bitmap and an entry of the table.
    let shared = cost(&whole, &empty, true);
    assert_eq!((shared.clones, shared.reads, shared.writes), (3, 0, 6));
    let copied = cost(&whole, &empty, false);
    assert_eq!((copied.reads, copied.writes), (3, 9));
}

#[test]
fn scattered_pages_cost_few_reads_and_into_a_new_block_few_writes() {
    // 100 pages, 12 KiB apart.
    let puts: Vec<Put> = (0..100).map(|n| Put { sectors: n * 32..n * 32 + 8, tag: 1 }).collect();
    let source = Model::new(4096, &puts);
    let fresh = cost(&source, &Model::new(4096, &[]), false);
    assert_eq!((fresh.reads, fresh.writes), (1, 3));
    // Over data only the pages themselves may be written; then the bitmap of the old block.
    let over = cost(&source, &Model::new(4096, &[Put { sectors: 0..4096, tag: 2 }]), false);
    assert_eq!((over.reads, over.writes), (1, 100));
}
