//! Front, keeper and worker killed at each of their named points, in each kind of job: afterwards the SR is clean, every disk
//! holds what it should, nothing foreign was touched, nothing is left over, and a repeated request has one effect.
//!
//! The tables below say which operation reaches which pass of a point; a point that no table has, or that its operation does
//! not reach, fails the tests.

mod crash;
mod harness;

use anyhow::{Context, Result, bail, ensure};
use crash::effect::Effect;
use crash::extending::EXTENSIONS;
use crash::life::{self, Life};
use crash::mending;
use crash::merging::MERGES_THERE;
use crash::request::{Operation, Turn};
use crash::serving::{self, Serving};
use crash::stage::Stage;
use crash::volumes::VOLUMES;
use std::collections::BTreeSet;
use std::process::Command;

use Life::{Begin, Rebuild, Reopen, TakeOver, Unmake};
use Operation::{
    Check, Clone, Coalesce, Copy, CopyIn, Create, Destroy, Export, Grow, Import, List, Repair, Resize,
    Revert, Set, Snapshot, Snapshots, Trim, Write,
};

/// Each phase of the keeper's jobs that VDIs are changed by.
const KEEPER: &[(&str, Operation)] = &[
    ("create.journaled", Create),
    ("create.made", Create),
    ("create.committed", Create),
    ("create.done", Create),
    ("snapshot.journaled", Snapshot),
    ("snapshot.made", Snapshot),
    ("snapshot.paused", Snapshot),
    ("snapshot.committed", Snapshot),
    ("snapshot.stepped", Snapshot),
    ("snapshot.done", Snapshot),
    ("snapshot.journaled", Snapshots),
    ("snapshot.made", Snapshots),
    ("snapshot.committed", Snapshots),
    ("snapshot.stepped", Snapshots),
    ("snapshot.stepped:2", Snapshots),
    ("clone.journaled", Clone),
    ("clone.made", Clone),
    ("clone.paused", Clone),
    ("clone.committed", Clone),
    ("clone.stepped", Clone),
    ("clone.done", Clone),
    ("revert.journaled", Revert),
    ("revert.made", Revert),
    ("revert.committed", Revert),
    ("revert.stepped", Revert),
    ("revert.done", Revert),
    ("resize.journaled", Resize),
    ("resize.made", Resize),
    ("resize.done", Resize),
    ("set.committed", Set),
    ("copy.journaled", Copy),
    ("copy.made", Copy),
    ("copy.done", Copy),
    ("copy.journaled", CopyIn),
    ("copy.made", CopyIn),
    ("destroy.committed", Destroy),
    ("import.journaled", Import),
    ("import.made", Import),
    ("import.done", Import),
    ("export.journaled", Export),
    ("export.made", Export),
    ("export.done", Export),
    ("check.journaled", Check),
    ("check.done", Check),
    ("grow.journaled", Grow),
    ("grow.made", Grow),
    ("grow.done", Grow),
];

/// Each phase of the jobs of the coalesce worker.
const MERGES: &[(&str, Operation)] = &[
    ("garbage.journaled", Coalesce),
    ("garbage.stepped", Coalesce),
    ("garbage.done", Coalesce),
    ("merge.journaled", Coalesce),
    ("merge.made", Coalesce),
    ("merge.committed", Coalesce),
    ("merge.planned", Coalesce),
    ("merge.stepped", Coalesce),
    ("merge.done", Coalesce),
    ("leaf_merge.journaled", Coalesce),
    ("leaf_merge.made", Coalesce),
    ("leaf_merge.committed", Coalesce),
    ("leaf_merge.stepped", Coalesce),
    ("leaf_merge.done", Coalesce),
];

/// What the keeper's hands do.
const WORKER: &[(&str, Operation)] = &[
    ("worker.created", Create),
    ("worker.created", Snapshot),
    ("worker.created:2", Snapshot),
    ("worker.created:4", Snapshots),
    ("worker.created:3", Clone),
    ("worker.created:2", Revert),
    ("worker.grown", Resize),
    ("worker.hidden_set", Snapshot),
    ("worker.hidden_set:2", Snapshots),
    ("worker.hidden_set", Clone),
    ("worker.hidden_set", Revert),
    ("worker.hidden_set", Coalesce),
    ("worker.patch_half", Coalesce),
    ("worker.patch_half:2", Coalesce),
    ("worker.batch", Coalesce),
    ("worker.checkpoint", Coalesce),
    ("worker.merged", Coalesce),
    ("worker.write_unflushed", Write),
    ("worker.importing", Import),
    ("worker.importing:2", Import),
    ("worker.importing:3", Import),
    ("worker.importing", Copy),
    ("worker.importing:2", Copy),
    ("worker.importing:2", CopyIn),
    ("worker.before_reply", Create),
    ("worker.before_reply", Write),
    ("worker.before_reply", Snapshot),
    ("worker.before_reply:2", Snapshot),
    ("worker.before_reply", Clone),
    ("worker.before_reply:2", Clone),
    ("worker.before_reply:3", Clone),
    ("worker.before_reply:2", Revert),
    ("worker.before_reply:3", Revert),
    ("worker.before_reply", Resize),
    ("worker.before_reply", Copy),
    ("worker.before_reply", CopyIn),
    ("worker.before_reply", Import),
    ("worker.before_reply", Export),
    ("worker.before_reply", Check),
    ("worker.before_reply:2", Check),
    ("worker.before_reply", Coalesce),
    ("worker.before_reply:2", Coalesce),
    ("worker.before_reply:3", Coalesce),
];

/// Repairs and trims, by the keeper and its worker.
const MENDING: &[(&str, Operation)] = &[
    ("repair.journaled", Repair),
    ("repair.made", Repair),
    ("repair.made:2", Repair),
    ("repair.committed", Repair),
    ("repair.planned", Repair),
    ("repair.stepped", Repair),
    ("repair.done", Repair),
    ("worker.repair_saved", Repair),
    ("worker.repair_saved:2", Repair),
    ("worker.repaired", Repair),
    ("worker.repaired:2", Repair),
    ("worker.patch_half", Repair),
    ("worker.before_reply", Repair),
    ("worker.before_reply:5", Repair),
    ("trim.journaled", Trim),
    ("trim.made", Trim),
    ("trim.done", Trim),
    ("worker.trimmed", Trim),
    ("worker.trimmed:2", Trim),
    ("worker.before_reply", Trim),
];

/// The front, which holds nothing of an SR but the connection.
const FRONT: &[(&str, Operation)] = &[
    ("front.request_received", List),
    ("front.request_received", Create),
    ("front.request_received:2", Coalesce),
    ("front.before_reply", Create),
    ("front.before_reply", Snapshot),
    ("front.before_reply", Clone),
    ("front.before_reply", Snapshots),
    ("front.before_reply", Revert),
    ("front.before_reply", Resize),
    ("front.before_reply", Set),
    ("front.before_reply", Copy),
    ("front.before_reply:2", Copy),
    ("front.copy_begun", CopyIn),
    ("front.before_reply", CopyIn),
    ("front.before_reply", Destroy),
    ("front.before_reply", Import),
    ("front.before_reply:2", Import),
    ("front.before_reply", Export),
    ("front.before_reply", Write),
    ("front.before_reply:2", Coalesce),
    ("front.keeper_started", List),
];

/// The life of an SR: what the keeper, its worker and the front do in it.
const LIFE: &[(&str, Life)] = &[
    ("front.request_received", Begin),
    ("front.keeper_started:2", Begin),
    ("front.sr_made", Begin),
    ("front.sr_d_written", Begin),
    ("front.before_reply", Begin),
    ("front.keeper_started", TakeOver),
    ("introduce.journaled", TakeOver),
    ("introduce.made", TakeOver),
    ("introduce.done", TakeOver),
    ("worker.before_reply", TakeOver),
    ("worker.before_reply:2", TakeOver),
    ("worker.created", TakeOver),
    ("front.sr_made", TakeOver),
    ("front.sr_d_written", TakeOver),
    ("front.before_reply", TakeOver),
    ("catalog.replace.named", Begin),
    ("catalog.replace.wal-removed", Begin),
    ("catalog.replace.renamed", Begin),
    ("catalog.replace.copied", Reopen),
    ("catalog.replace.named", Reopen),
    ("catalog.replace.wal-removed", Reopen),
    ("catalog.replace.renamed", Reopen),
    ("catalog.salvage.aside", Rebuild),
    ("catalog.salvage.aside:2", Rebuild),
    ("catalog.replace.named", Rebuild),
    ("catalog.replace.renamed", Rebuild),
    ("front.sr_made", Rebuild),
    ("front.sr_d_written", Rebuild),
    ("front.before_reply", Rebuild),
    ("front.sr_destroyed", Unmake),
    ("front.sr_d_written", Unmake),
    ("front.before_reply", Unmake),
];

/// The keeper of a disk that is attached, or on its way there or back.
const SERVING: &[(&str, Serving)] = &[
    ("attach.journaled", Serving::Attach),
    ("attach.made", Serving::Attach),
    ("attach.done", Serving::Attach),
    ("detach.stopped", Serving::Detach),
    ("detach.committed", Serving::Detach),
    ("snapshot.made", Serving::Snapshot),
    ("snapshot.paused", Serving::Snapshot),
    ("snapshot.committed", Serving::Snapshot),
    ("snapshot.stepped", Serving::Snapshot),
    ("clone.paused", Serving::Clone),
    ("clone.committed", Serving::Clone),
    ("resize.journaled", Serving::Resize),
    ("resize.paused", Serving::Resize),
    ("resize.paused:2", Serving::Resize),
    ("resize.made", Serving::Resize),
    ("resize.done", Serving::Resize),
    ("snapshot.committed", Serving::SnapshotRead),
    ("snapshot.stepped", Serving::SnapshotRead),
    ("snapshot.journaled", Serving::LateLeaf),
    ("snapshot.committed", Serving::LateLeaf),
    ("snapshot.stepped", Serving::LateLeaf),
    ("attach.journaled", Serving::LateLeaf),
    ("attach.made", Serving::LateLeaf),
    ("snapshot.journaled", Serving::Export),
    ("snapshot.paused", Serving::Export),
    ("snapshot.committed", Serving::Export),
    ("snapshot.stepped", Serving::Export),
    ("snapshot.done", Serving::Export),
    ("export.journaled", Serving::Export),
    ("export.made", Serving::Export),
    ("export.done", Serving::Export),
    ("snapshot.committed", Serving::Copy),
    ("copy.journaled", Serving::Copy),
    ("copy.made", Serving::Copy),
    ("merge.journaled", Serving::Merge),
    ("merge.made", Serving::Merge),
    ("merge.committed", Serving::Merge),
    ("merge.planned", Serving::Merge),
    ("merge.stepped", Serving::Merge),
    ("garbage.journaled", Serving::Merge),
    ("leaf_merge.journaled", Serving::Leaf),
    ("leaf_merge.begun", Serving::Leaf),
    ("leaf_merge.made", Serving::Leaf),
    ("leaf_merge.committed", Serving::Leaf),
    ("leaf_merge.released", Serving::Leaf),
    ("leaf_merge.stepped", Serving::Leaf),
    ("leaf_merge.done", Serving::Leaf),
    ("leaf_merge.closed", Serving::Between),
    ("snapshot.journaled", Serving::Between),
    ("snapshot.paused", Serving::Between),
    ("snapshot.committed", Serving::Between),
];

/// The process that serves a disk, which is followed by another one: `tests/nbd` kills it there, beside any other moment.
const SERVE: &[&str] = &["serve.opened", "serve.landed", "serve.noted", "serve.stored", "serve.answer"];

#[test]
fn every_point_of_every_program_has_a_scenario() -> Result<()> {
    let named: BTreeSet<&str> = [KEEPER, MERGES, WORKER, MENDING, FRONT]
        .into_iter()
        .flatten()
        .map(|(at, _)| name_of(at))
        .chain(SERVING.iter().map(|(at, _)| name_of(at)))
        .chain(LIFE.iter().map(|(at, _)| name_of(at)))
        .chain(SERVE.iter().copied())
        .chain(EXTENSIONS.iter().copied())
        .chain(VOLUMES.iter().map(|(at, _)| name_of(at)))
        .chain(MERGES_THERE.iter().map(|(at, _)| name_of(at)))
        .collect();
    let mut listed = BTreeSet::new();
    for program in [
        env!("CARGO_BIN_EXE_catenad"),
        env!("CARGO_BIN_EXE_catena-keeper"),
        env!("CARGO_BIN_EXE_catena-datapath"),
    ] {
        let output = Command::new(program).arg("--list-crash-points").output()?;
        listed.extend(String::from_utf8(output.stdout)?.lines().map(str::to_owned));
    }
    let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
    ensure!(named == listed, "without a scenario: {:?}; unknown: {:?}", &listed - &named, &named - &listed);
    Ok(())
}

#[test]
fn a_keeper_that_dies_in_an_operation() -> Result<()> {
    all(KEEPER, scenario)
}

#[test]
fn a_keeper_that_dies_in_a_merge() -> Result<()> {
    all(MERGES, scenario)
}

#[test]
fn a_worker_that_dies() -> Result<()> {
    all(WORKER, scenario)
}

#[test]
fn a_repair_or_a_trim_that_dies() -> Result<()> {
    all(MENDING, mending::scenario)
}

#[test]
fn a_keeper_that_dies_while_a_disk_is_attached() -> Result<()> {
    all(SERVING, serving::scenario)
}

#[test]
fn a_front_that_dies() -> Result<()> {
    all(FRONT, scenario)
}

#[test]
fn any_of_them_dies_in_the_life_of_an_sr() -> Result<()> {
    all(LIFE, life::scenario)
}

#[test]
fn a_mover_that_dies_between_two_batches() -> Result<()> {
    for at in ["worker.batch:2", "worker.checkpoint:2"] {
        let mut stage = Stage::empty()?;
        let disk = stage.disk("large", 72 << 20)?;
        stage.write(&disk, 4096, 1 << 20)?;
        let snapshot = stage.snapshot(&disk)?;
        stage.write(&disk, 512, (72 << 20) - 512)?;
        stage.destroy(&snapshot)?;
        crash_and_verify(&mut stage, at, Coalesce).with_context(|| at.to_owned())?;
    }
    Ok(())
}

/// Plays every scenario of a table, also after one has failed, and says which have.
fn all<T: std::marker::Copy + std::fmt::Debug>(
    table: &[(&str, T)],
    play: fn(&str, T) -> Result<()>,
) -> Result<()> {
    let mut failed = Vec::new();
    for &(at, what) in table {
        if let Err(error) = play(at, what) {
            eprintln!("{what:?} at {at}: {error:#}");
            failed.push(format!("{what:?} at {at}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{failed:#?}") }
}

/// Kills at `at` while the operation is carried out on a standard SR.
fn scenario(at: &str, operation: Operation) -> Result<()> {
    let mut stage = Stage::build()?;
    match operation {
        Revert => stage.add_snapshot_to_revert_to()?,
        CopyIn => stage.add_disk_elsewhere()?,
        _ => {}
    }
    crash_and_verify(&mut stage, at, operation)
}

fn crash_and_verify(stage: &mut Stage, at: &str, operation: Operation) -> Result<()> {
    stage.agent.stop()?;
    stage.agent.launch(Some(at))?;
    // Whatever is answered: the client of a process that dies may be told anything but a lie, which is looked for below.
    let answer = operation.send(stage, Turn::First);
    stage.wait_for_crash(name_of(at))?;
    stage.agent.kill()?;
    stage.agent.launch(None)?;

    let effect = operation.settle(stage, Turn::First)?;
    if let Ok(Ok(answer)) = &answer {
        ensure!(effect == Effect::Whole || !operation.changes_vdis(), "it was said to be done: {answer}");
        operation.verify_result(stage, Turn::First, answer)?;
    }
    stage.verify().context("after the crash")?;

    let again = operation.send_patiently(stage, Turn::First)?;
    let more = operation.settle(stage, Turn::First)?;
    match &again {
        Ok(answer) => {
            ensure!(
                !operation.changes_vdis() || (effect == Effect::Whole) != (more == Effect::Whole),
                "{effect:?} after the crash, {more:?} with the repeated request"
            );
            operation.verify_result(stage, Turn::First, answer)?;
        }
        // A worker's death is a failure that the client was told; a repeated request is told the same.
        Err(error) => {
            let told = matches!(&answer, Ok(Err(first)) if first["data"]["name"] == error["data"]["name"]);
            ensure!(told && at.starts_with("worker."), "the repeated request was refused: {error}");
            ensure!((effect, more) == (Effect::None, Effect::None), "refused, with an effect: {error}");
        }
    }
    stage.coalesce()?;
    stage.verify().context("after the repeated request and all merges")?;
    stage.verify_tidy()?;

    let anew = operation.send_patiently(stage, Turn::Second)?;
    let effect = operation.settle(stage, Turn::Second)?;
    ensure!(!operation.changes_vdis() || effect == Effect::Whole, "the same anew has no effect: {anew:?}");
    match &anew {
        Ok(answer) => operation.verify_result(stage, Turn::Second, answer)?,
        Err(error) => bail!("the same anew: {error}"),
    }
    stage.coalesce()?;
    stage.verify().context("after the same anew")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

fn name_of(at: &str) -> &str {
    at.rsplit_once(':').map_or(at, |(name, _)| name)
}
