//! Crashes at every call to the storage, and every call failing once: what was flushed is there, the rest is old or new.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::sim::{Call, Errno, Fault, SimDisk, SimWorld};
use catena_blockio::{Container, Sizing};
use catena_chain::LayerMut;
use catena_types::{BlockIndex, Bytes, SectorSet};
use catena_vhd::{CreateSpec, Error, FooterState, Image, Mode, apply_patch, create, is_stale};
use proptest::prelude::*;
use std::sync::Arc;
use support::model::{Model, Step, use_again};
use support::{child_spec, parent, spec};

const SEEDS: u64 = 4;

/// A world with one sound image after some steps, all durable.
struct Scene {
    world: Arc<SimWorld>,
    disk: Arc<SimDisk>,
    image: Image,
    model: Model,
}

fn scene(spec: &CreateSpec, sizing: Sizing, before: &[Step]) -> Scene {
    let world = SimWorld::new();
    let disk = match sizing {
        Sizing::Automatic => SimDisk::automatic(&world),
        Sizing::Explicit => SimDisk::used(&world, Bytes(64 << 20)),
    };
    create(&*disk, spec).unwrap();
    let mut model = Model::new(spec.virtual_size.0);
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    before.iter().for_each(|step| model.run(&mut image, step).unwrap());
    image.close().unwrap();
    let image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    Scene { world, disk, image, model: model.settled() }
}

/// Runs the steps with a crash at each call in turn, and looks at what survives a power cut and the death of the process.
fn crash_everywhere(spec: &CreateSpec, sizing: Sizing, before: &[Step], steps: &[Step]) {
    for crash in 0.. {
        let mut scene = scene(spec, sizing, before);
        scene.world.crash_at(scene.world.calls() + crash);
        let outcome = steps.iter().try_for_each(|step| scene.model.run(&mut scene.image, step));
        let context = format!("crash at call {crash} of {steps:?} on {sizing:?}");
        drop(scene.image);
        inspect(&scene.disk, &scene.model, &context);
        if outcome.is_ok() {
            assert!(crash > 3, "the steps do something");
            return;
        }
    }
}

fn inspect(disk: &Arc<SimDisk>, model: &Model, context: &str) {
    let killed: Arc<dyn Container> = disk.after_process_kill();
    let footers = Image::open(killed.clone(), Mode::ReadOnly).unwrap().info().footers;
    assert!(
        matches!(footers, FooterState::Both | FooterState::Differ),
        "{context}: {footers:?} after a kill"
    );
    model.verify(&killed, context);
    for seed in 0..SEEDS {
        let context = format!("{context}, power cut with seed {seed}");
        let survivor: Arc<dyn Container> = disk.after_power_cut(seed);
        model.verify(&survivor, &context);
        if seed == 0 {
            use_again(model, &survivor, &context);
        }
    }
}

/// On files and devices, with and without a parent.
fn crash_on_all(before: &[Step], steps: &[Step]) {
    for sizing in [Sizing::Automatic, Sizing::Explicit] {
        for spec in [spec(16), child_spec(16)] {
            crash_everywhere(&spec, sizing, before, steps);
        }
    }
}

use Step::{Commit, Fill, Flush, GiveUp, Grow, Hide, KeepSpace, Seal, Write};

#[test]
fn writes_survive_in_the_right_order() {
    crash_on_all(
        &[Write(2, 10..20, 1)],
        &[
            Write(2, 15..25, 2),
            Write(0, 0..3, 3),
            Commit,
            Write(0, 2..6, 4),
            Write(5, 4090..4096, 5),
            Flush,
            Write(2, 10..12, 6),
            Write(0, 100..101, 7),
            Commit,
            Write(6, 1..2, 8),
            Flush,
            Seal,
        ],
    );
}

#[test]
fn the_batmap_is_never_ahead_of_the_bits() {
    crash_on_all(
        &[Fill(1, 1), Fill(2, 2), Write(3, 0..9, 3)],
        &[
            Write(1, 0..2, 4),
            GiveUp(vec![(1, 2..4)]),
            Fill(3, 5),
            Seal,
            GiveUp(vec![(2, 0..4096), (3, 0..2)]),
            Flush,
        ],
    );
}

#[test]
fn what_is_given_up_is_gone_and_its_space_is_used_again() {
    crash_on_all(
        &[Write(0, 0..8, 1), Write(1, 0..8, 2), Write(2, 0..8, 3)],
        &[
            GiveUp(vec![(0, 0..4096), (2, 0..4)]),
            Write(3, 4..6, 4),
            Write(1, 8..9, 5),
            Commit,
            GiveUp(vec![(1, 0..9), (2, 4..8)]),
            Write(0, 2..5, 6),
            Write(2, 7..10, 7),
            Flush,
            GiveUp(vec![(0, 0..4096), (1, 0..4096), (2, 0..4096), (3, 0..4096)]),
            Seal,
        ],
    );
}

#[test]
fn space_that_is_kept_is_used_again_and_hides_nothing() {
    crash_on_all(
        &[Write(0, 0..8, 1), Write(1, 0..8, 2)],
        &[
            KeepSpace,
            GiveUp(vec![(0, 0..4096), (1, 0..4)]),
            Write(3, 4..6, 4),
            Commit,
            GiveUp(vec![(1, 0..4096), (3, 0..4096)]),
            Write(0, 2..3, 5),
            Seal,
        ],
    );
}

#[test]
fn one_footer_is_whole_while_the_hidden_flag_changes() {
    crash_on_all(&[Write(0, 0..8, 1)], &[Hide(true), Write(4, 0..1, 2), Hide(false), Flush, Hide(true)]);
}

#[test]
fn growing_within_the_table_is_all_or_nothing() {
    for sizing in [Sizing::Automatic, Sizing::Explicit] {
        let roomy = CreateSpec { table_size: Some(Bytes(64 << 20)), ..child_spec(16) };
        crash_everywhere(
            &roomy,
            sizing,
            &[Fill(7, 1)],
            &[Grow(20), Write(9, 0..2, 3), Flush, Grow(64), Seal],
        );
    }
}

#[test]
fn growing_beyond_the_table_moves_blocks_and_loses_nothing() {
    for sizing in [Sizing::Automatic, Sizing::Explicit] {
        for spec in [spec(16), child_spec(16)] {
            let before = [Write(3, 0..9, 1), Write(1, 5..6, 2), Fill(0, 3)];
            crash_everywhere(
                &spec,
                sizing,
                &before,
                &[Grow(3000), Write(1400, 0..2, 4), Flush, Grow(9000), Seal],
            );
            crash_everywhere(&spec, sizing, &[], &[Grow(3000), Write(0, 0..2, 4), Seal]);
            let first_slot_free = [GiveUp(vec![(3, 0..4096)]), Grow(3000), Write(3, 0..2, 4), Seal];
            crash_everywhere(&spec, sizing, &before, &first_slot_free);
        }
    }
}

#[test]
fn a_torn_change_of_the_parent_is_repaired_from_the_plan() {
    for crash in 0..6 {
        let mut scene = scene(&child_spec(16), Sizing::Automatic, &[Write(1, 0..2, 1)]);
        let mut new = parent("another.vhd");
        new.id = catena_types::ImageId::from_bytes([3; 16]);
        let patch = scene.image.plan_reparent(&new).unwrap();
        scene.world.crash_at(scene.world.calls() + crash);
        let done = scene.image.reparent(&patch).is_ok();
        for seed in 0..20 {
            let survivor: Arc<dyn Container> = scene.disk.after_power_cut(seed);
            if let Ok(image) = Image::open(survivor.clone(), Mode::ReadOnly) {
                let id = image.info().parent.unwrap().id;
                assert!(id == new.id || (id == support::PARENT && !done));
            } else {
                assert!(!done);
            }
            apply_patch(&*survivor, &patch).unwrap();
            scene.model.verify(&survivor, "after the patch");
            let info = Image::open(survivor, Mode::ReadOnly).unwrap().info().parent.unwrap();
            assert_eq!((info.id, info.locators.len(), info.name.as_str()), (new.id, 3, "another.vhd"));
            assert!(info.locators.iter().all(|path| path == "./another.vhd"));
        }
    }
}

#[test]
fn a_plan_for_another_parent_does_not_outlive_the_block_table() {
    let mut scene = scene(&child_spec(16), Sizing::Automatic, &[Write(1, 0..2, 1)]);
    let mut new = parent("another.vhd");
    new.id = catena_types::ImageId::from_bytes([3; 16]);
    let patch = scene.image.plan_reparent(&new).unwrap();
    assert!(!is_stale(&*scene.disk, &patch).unwrap());
    // Within the table it stays right; beyond it, it would put the old table back.
    scene.image.grow(Bytes(18 << 20)).unwrap();
    scene.image.grow(Bytes(3000 << 20)).unwrap();
    assert!(is_stale(&*scene.disk, &patch).unwrap());
    let fresh = scene.image.plan_reparent(&new).unwrap();
    assert!(!is_stale(&*scene.disk, &fresh).unwrap());
    // A torn header is what a plan is for.
    let (at, header) = fresh.last().unwrap();
    scene.disk.write_at(&header[..512], *at).unwrap();
    assert!(!is_stale(&*scene.disk, &fresh).unwrap());
}

#[test]
fn every_call_may_fail_once() {
    let before = [Write(0, 0..8, 1), Fill(1, 2)];
    let steps = [
        Write(0, 4..12, 3),
        Write(2, 0..3, 4),
        Commit,
        GiveUp(vec![(0, 0..4096)]),
        Write(3, 0..2, 5),
        Flush,
        Hide(true),
        Grow(3000),
        Write(4, 0..2, 6),
        Seal,
    ];
    for errno in [Errno::EIO, Errno::ENOSPC] {
        for n in 0.. {
            let mut scene = scene(&child_spec(16), Sizing::Automatic, &before);
            scene.world.fail(Fault::nth(scene.world.calls() + n, errno));
            let mut errors = 0;
            for step in &steps {
                let Err(error) = scene.model.run(&mut scene.image, step) else { continue };
                errors += 1;
                assert_eq!(error.raw_os_error(), Some(errno as i32), "{step:?}: {error}");
                // What was noted is kept: the same step can be done again, unless a barrier failed.
                match scene.model.run(&mut scene.image, step) {
                    Ok(()) => {}
                    Err(error) => {
                        let failed = error.to_string() == Error::Failed.to_string();
                        assert!(failed, "call {n}, {step:?} again: {error}");
                        break;
                    }
                }
            }
            drop(scene.image);
            inspect(&scene.disk, &scene.model, &format!("{errno} at call {n}"));
            if errors == 0 && n > 60 {
                break;
            }
        }
    }
}

#[test]
fn a_failed_barrier_stops_all_changes() {
    let mut scene = scene(&child_spec(16), Sizing::Automatic, &[Write(0, 0..8, 1)]);
    scene.world.fail(Fault::nth(scene.world.counts().flushes, Errno::EIO).of(Call::Flush));
    scene.model.run(&mut scene.image, &Write(0, 20..21, 2)).unwrap();
    assert!(scene.image.flush().is_err());
    for _ in 0..2 {
        assert_eq!(scene.image.flush().unwrap_err().raw_os_error(), Some(5));
        assert!(scene.image.place(BlockIndex(3)).is_err());
        assert!(matches!(scene.image.set_hidden(true), Err(Error::Failed)));
    }
    inspect(&scene.disk, &scene.model, "after a failed barrier");
}

#[test]
fn a_batch_takes_few_barriers_and_an_idle_commit_none() {
    let mut scene = scene(&child_spec(16), Sizing::Automatic, &[]);
    let flushes = |world: &SimWorld| world.counts().flushes;
    let start = flushes(&scene.world);
    scene.image.commit().unwrap();
    assert_eq!(flushes(&scene.world), start, "nothing to commit");
    for block in 0..8 {
        scene.model.run(&mut scene.image, &Write(block, 0..4, 1)).unwrap();
    }
    scene.image.commit().unwrap();
    assert_eq!(flushes(&scene.world), start + 1, "one barrier for eight blocks");
    scene.image.flush().unwrap();
    assert_eq!(flushes(&scene.world), start + 2);
    let all: Vec<_> = (0..8).map(|block| (BlockIndex(block), SectorSet::full())).collect();
    scene.image.give_up(&all).unwrap();
    assert_eq!(flushes(&scene.world), start + 3, "bits and entries");
    scene.image.set_hidden(true).unwrap();
    assert_eq!(flushes(&scene.world), start + 5, "one footer is durable before the other is touched");
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0usize..40, 1usize..20).prop_map(|(start, len)| start..start + len);
    prop_oneof![
        6 => (0u32..6, range.clone(), 1u8..=255).prop_map(|(block, range, fill)| Write(block, range, fill)),
        1 => (0u32..6, 1u8..=255).prop_map(|(block, fill)| Fill(block, fill)),
        2 => Just(Commit),
        2 => Just(Flush),
        1 => Just(Seal),
        2 => prop::collection::vec((0u32..6, prop_oneof![range, Just(0..4096)]), 1..4).prop_map(GiveUp),
        1 => any::<bool>().prop_map(Hide),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_steps_and_any_crash(
        steps in prop::collection::vec(step(), 1..30),
        device in any::<bool>(),
        child in any::<bool>(),
        crash in prop::option::of(0u64..150),
    ) {
        let sizing = if device { Sizing::Explicit } else { Sizing::Automatic };
        let mut scene = scene(&if child { child_spec(12) } else { spec(12) }, sizing, &[]);
        if let Some(crash) = crash {
            scene.world.crash_at(scene.world.calls() + crash);
        }
        let outcome = steps.iter().try_for_each(|step| {
            let done = scene.model.run(&mut scene.image, step);
            if crash.is_none() {
                scene.model.clone().settled().verify_image(&scene.image, "while open");
            }
            done
        });
        drop(scene.image);
        inspect(&scene.disk, &scene.model, if outcome.is_ok() { "at the end" } else { "after a crash" });
    }
}
