//! Each crash point once on logical volumes, in the lab: what is played is the first row that `crash::table` has of it. Processes are
//! told where to die by a file (`CATENA_CRASH_AT=@FILE`), so one agent and one SR do for all of a test, and what was interrupted at
//! one point goes on to the next. In the end everything is looked at.
//!
//! Left to others: points that are reached on volumes alone and those of trims (`tests/lab_sizing`, `tests/lab_merging`,
//! `tests/lab_growing`, `tests/lab_dynamic`), those of the process that serves a disk (`tests/nbd`), which knows no storage, and those of
//! SRs that come and go.

mod crash;
mod harness;

use Operation::{Clone, Coalesce, CopyIn, Destroy, Grow, List, Repair, Resize, Revert, Write};
use anyhow::{Context, Result, bail, ensure};
use crash::effect::Effect;
use crash::mending;
use crash::request::{Operation, Turn};
use crash::serving::{self, Serving};
use crash::stage::{PATIENCE, SIZE, Stage};
use crash::table::{FRONT, KEEPER, MENDING, MERGES, SERVING, WORKER};
use harness::lab;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The size of the disk, in MiB.
const ROOM: u64 = 2048;

/// Where the first row of a point is played.
fn rows(table: &[(&'static str, Operation)]) -> Vec<(&'static str, Operation)> {
    let mut seen = BTreeSet::new();
    table.iter().copied().filter(|(at, _)| seen.insert(at.split(':').next().unwrap_or(at))).collect()
}

/// The rows of each operation, in the order of the operations' first rows.
fn by_operation(rows: Vec<(&'static str, Operation)>) -> Vec<(Operation, Vec<&'static str>)> {
    let mut all: Vec<(Operation, Vec<&'static str>)> = Vec::new();
    for (at, operation) in rows {
        match all.iter_mut().find(|(one, _)| *one == operation) {
            Some((_, points)) => points.push(at),
            None => all.push((operation, vec![at])),
        }
    }
    all
}

#[test]
fn operations_are_interrupted() -> Result<()> {
    lab::test(|| {
        // What merges is played below, and what grows elsewhere.
        let others = rows(&[KEEPER, FRONT, WORKER].concat());
        let others =
            others.into_iter().filter(|(_, operation)| !matches!(operation, Coalesce | Grow)).collect();
        let (mut stage, mut failed) = (begin()?, Vec::new());
        for (operation, points) in by_operation(others) {
            if let Err(error) = interrupt(&mut stage, operation, &points) {
                eprintln!("{operation:?} at one of {points:?}: {error:#}");
                failed.push(operation);
                stage.agent.disarm()?;
                stage.wait_attached()?;
            }
        }
        ensure!(failed.is_empty(), "{failed:?}");
        end(stage)
    })
}

#[test]
fn repairs_are_interrupted() -> Result<()> {
    lab::test(|| {
        let mut stage = begin()?;
        for at in rows(MENDING).into_iter().map(|(at, _)| at).filter(|at| at.contains("repair")) {
            prepare(&mut stage, Repair)?;
            mending::damage(&stage)?;
            mending::play(&mut stage, at, Repair).with_context(|| at.to_owned())?;
        }
        end(stage)
    })
}

#[test]
fn merges_are_interrupted() -> Result<()> {
    lab::test(|| {
        let mut stage = begin()?;
        let points = rows(&[MERGES, WORKER].concat());
        let of = |kind: &str| -> Vec<&str> {
            points.iter().map(|(at, _)| *at).filter(|at| at.starts_with(kind)).collect()
        };
        let old = stage.snapshot(&stage.a.clone())?;
        stage.destroy(&old)?;
        merge(&mut stage, &of("garbage."))?;
        add_inner_merge(&mut stage)?;
        merge(&mut stage, &of("merge."))?;
        add_leaf_merge(&mut stage)?;
        merge(&mut stage, &of("leaf_merge."))?;
        // A worker that dies makes its merge fail, which is begun anew. Headers are written when the copying is over.
        add_inner_merge(&mut stage)?;
        let own = |at: &&str| points.contains(&(*at, Coalesce));
        let mut workers: Vec<&str> = of("worker.").into_iter().filter(own).collect();
        workers.sort_by_key(|at| *at == "worker.patch_half");
        merge(&mut stage, &workers)?;
        end(stage)
    })
}

#[test]
fn disks_are_attached_meanwhile() -> Result<()> {
    lab::test(|| {
        let mut stage = begin()?;
        let elsewhere: BTreeSet<&str> = [KEEPER, MERGES].concat().into_iter().map(|(at, _)| at).collect();
        let mut seen = elsewhere.clone();
        for &(at, what) in SERVING.iter().filter(|(at, _)| seen.insert(at.split(':').next().unwrap_or(at))) {
            stage.round += 1;
            if matches!(what, Serving::Leaf | Serving::Between) {
                add_leaf_merge(&mut stage)?;
            }
            serving::play(&mut stage, at, what).with_context(|| format!("{what:?} at {at}"))?;
            stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
        }
        end(stage)
    })
}

/// Two disks with two blocks and a bit.
fn begin() -> Result<Stage> {
    let mut stage = Stage::on_volumes(ROOM)?;
    [stage.a, stage.b] = [stage.disk("a", SIZE)?, stage.disk("b", SIZE)?];
    for disk in [stage.a.clone(), stage.b.clone()] {
        stage.write(&disk, 1000, 5 << 20)?;
    }
    Ok(stage)
}

/// Everything is in order, and goes without a trace.
fn end(mut stage: Stage) -> Result<()> {
    stage.verify()?;
    for vdi in stage.content.keys().cloned().collect::<Vec<_>>() {
        stage.destroy(&vdi)?;
    }
    stage.coalesce()?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// What the operation works on, which an earlier one may have used up.
fn prepare(stage: &mut Stage, operation: Operation) -> Result<()> {
    stage.round += 1;
    match operation {
        Destroy | Revert | Repair => {
            let a = stage.a.clone();
            stage.old = stage.snapshot(&a)?;
            // A snapshot that owns something becomes a base when the disk is put back to it.
            stage.write(&stage.old.clone(), 1 << 20, 4096)?;
            stage.write(&a, 2 << 20, 4096)
        }
        // Of a leaf that owns nothing there is no base to be made.
        Clone => {
            let a = stage.a.clone();
            stage.write(&a, 2 << 20, 4096)
        }
        Resize | Write => {
            stage.b = stage.disk("b", SIZE)?;
            Ok(())
        }
        CopyIn if stage.elsewhere.0.is_empty() => stage.add_disk_elsewhere(),
        _ => Ok(()),
    }
}

/// One base copy of the one disk can be merged into another.
fn add_inner_merge(stage: &mut Stage) -> Result<()> {
    let a = stage.a.clone();
    let oldest = stage.snapshot(&a)?;
    stage.write(&a, 3 << 20, 2 << 20)?;
    stage.snapshot(&a)?;
    stage.destroy(&oldest)
}

/// The leaf of the other disk can be merged into its base copy.
fn add_leaf_merge(stage: &mut Stage) -> Result<()> {
    let b = stage.b.clone();
    let before = stage.snapshot(&b)?;
    stage.write(&b, 1 << 20, 4 << 20)?;
    stage.destroy(&before)
}

/// An operation dies at one point after the other, and is repeated under the same key until it is done: it has one effect.
fn interrupt(stage: &mut Stage, operation: Operation, points: &[&str]) -> Result<()> {
    prepare(stage, operation)?;
    let mut done = Effect::None;
    let is_one = |done: Effect| done == Effect::Whole || !operation.changes_vdis();
    for at in points {
        stage.arm(at)?;
        if *at == "front.keeper_started" {
            stage
                .agent
                .processes("catena-keeper")
                .into_iter()
                .try_for_each(|pid| kill(pid, Signal::SIGKILL))?;
        }
        let mut answer = operation.send(stage, Turn::First);
        if stage.agent.is_armed() && answer.is_ok() && operation != List {
            // It was over before, or has come to an end without this point: another one does it.
            settle(stage, operation, &mut done)?;
            ensure!(
                matches!(&answer, Ok(Err(_))) || is_one(done),
                "{at}: answered without an effect: {answer:?}"
            );
            stage.agent.disarm()?;
            prepare(stage, operation)?;
            stage.arm(at)?;
            done = Effect::None;
            answer = operation.send(stage, Turn::First);
        }
        stage.await_death(at)?;
        stage.revive(at)?;
        settle(stage, operation, &mut done)?;
        if let Ok(Ok(answer)) = answer {
            ensure!(is_one(done), "{at}: it was said to be done: {answer}");
        }
    }
    match operation.send_patiently(stage, Turn::First)? {
        Ok(answer) => {
            settle(stage, operation, &mut done)?;
            ensure!(is_one(done), "no effect in the end: {answer}");
            operation.verify_result(stage, Turn::First, &answer)
        }
        // A worker's death is a failure, and who repeats the request is told so.
        Err(error) if points.last().is_some_and(|at| at.starts_with("worker.")) => {
            ensure!(done == Effect::None, "refused, with an effect: {error}");
            Ok(())
        }
        Err(error) => bail!("the repeated request was refused: {error}"),
    }
}

/// Takes the effect of an operation into the model, which comes once.
fn settle(stage: &mut Stage, operation: Operation, done: &mut Effect) -> Result<()> {
    let more = operation.settle(stage, Turn::First)?;
    ensure!(more == Effect::None || *done == Effect::None, "a second effect");
    if more == Effect::Whole {
        *done = more;
    }
    Ok(())
}

/// The coalesce worker dies at one point after the other of what there is to do.
fn merge(stage: &mut Stage, points: &[&str]) -> Result<()> {
    stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
    let mut last = None;
    for at in points {
        // Before the one that has died is there again: it goes on by itself.
        stage.arm(at)?;
        if let Some(last) = last.replace(*at) {
            stage.revive(last)?;
        }
        let sr = json!({"sr": stage.sr});
        let end = Instant::now() + PATIENCE;
        while stage.agent.is_armed() {
            ensure!(Instant::now() < end, "{at} of {points:?} was not reached: {}", stage.agent.log());
            for method in ["Coalesce.resume", "Coalesce.run"] {
                // Who dies of it does not answer; what has failed rests until it is asked for.
                drop(stage.agent.call(method, &sr));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    stage.revive(last.unwrap_or_default())?;
    stage.verify().with_context(|| format!("after {points:?}"))?;
    stage.coalesce()?;
    stage.verify().with_context(|| format!("after {points:?} and all merges"))?;
    stage.agent.ok(&["coalesce", "pause", &stage.sr]).map(drop)
}
