//! Operations, repairs and trims on logical volumes, in the lab, each of their crash points once (`crash::there`).
//!
//! See `crash::worn` for how one SR does for many deaths. Disks that are attached, and merges: `tests/lab_crash_disks.rs`; SRs that come
//! and go: `tests/lab_crash_life.rs`.

mod crash;
mod harness;

use Operation::{Clone, CopyIn, Destroy, List, Repair, Resize, Revert, Write};
use anyhow::{Context, Result, bail, ensure};
use crash::effect::Effect;
use crash::request::{Operation, Turn};
use crash::stage::{SIZE, Stage};
use crash::{mending, there};
use harness::lab;
use nix::sys::signal::{Signal, kill};

#[test]
fn operations_are_interrupted() -> Result<()> {
    lab::test(|| {
        let (mut stage, mut failed) = (Stage::worn()?, Vec::new());
        for (operation, points) in there::operations() {
            if let Err(error) = interrupt(&mut stage, operation, &points) {
                eprintln!("{operation:?} at one of {points:?}: {error:#}");
                failed.push(operation);
                stage.agent.disarm()?;
                stage.wait_attached()?;
            }
        }
        ensure!(failed.is_empty(), "{failed:?}");
        stage.end()
    })
}

#[test]
fn repairs_and_trims_are_interrupted() -> Result<()> {
    lab::test(|| {
        let mut stage = Stage::worn()?;
        prepare(&mut stage, Repair)?;
        for (at, operation) in there::mending() {
            stage.round += 1;
            if operation == Repair {
                mending::damage(&stage)?;
            }
            mending::play(&mut stage, at, operation).with_context(|| at.to_owned())?;
        }
        stage.end()
    })
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
