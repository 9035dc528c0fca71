//! Front, keeper and worker killed at each of their named points, in each kind of job: afterwards the SR is clean, every disk
//! holds what it should, nothing foreign was touched, nothing is left over, and a repeated request has one effect.
//!
//! `crash::table` says which operation reaches which pass of a point; a point that no table has, or that its operation does
//! not reach, fails the tests.

mod crash;
mod harness;

use Operation::{Coalesce, CopyIn, Revert};
use anyhow::{Context, Result, bail, ensure};
use crash::coming::{INTRODUCED, MADE, RENEWED, UNMADE};
use crash::effect::Effect;
use crash::extending::EXTENSIONS;
use crash::growing::GROWTHS;
use crash::merging::MERGES_THERE;
use crash::request::{Operation, Turn};
use crash::stage::Stage;
use crash::table::{FRONT, KEEPER, LIFE, MENDING, MERGES, SERVE, SERVING, WORKER};
use crash::there::{self, NOT_THERE, name_of};
use crash::volumes::VOLUMES;
use crash::{life, mending, serving};
use std::collections::BTreeSet;
use std::process::Command;

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
        .chain([MADE, INTRODUCED, RENEWED, UNMADE, GROWTHS].concat())
        .collect();
    let listed = listed()?;
    let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
    ensure!(named == listed, "without a scenario: {:?}; unknown: {:?}", &listed - &named, &named - &listed);
    Ok(())
}

#[test]
fn every_point_is_played_on_volumes_or_means_nothing_there() -> Result<()> {
    let (played, listed) = (there::all(), listed()?);
    let without: BTreeSet<&str> = NOT_THERE.iter().map(|(at, _)| *at).collect();
    ensure!(played.is_disjoint(&without), "played all the same: {:?}", &played & &without);
    let (known, listed) = (&played | &without, listed.iter().map(String::as_str).collect());
    ensure!(known == listed, "not played: {:?}; unknown: {:?}", &listed - &known, &known - &listed);
    Ok(())
}

/// The points of all programs.
fn listed() -> Result<BTreeSet<String>> {
    let mut listed = BTreeSet::new();
    for program in [
        env!("CARGO_BIN_EXE_catenad"),
        env!("CARGO_BIN_EXE_catena-keeper"),
        env!("CARGO_BIN_EXE_catena-datapath"),
    ] {
        let output = Command::new(program).arg("--list-crash-points").output()?;
        listed.extend(String::from_utf8(output.stdout)?.lines().map(str::to_owned));
    }
    Ok(listed)
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
fn all<T: Copy + std::fmt::Debug>(table: &[(&str, T)], play: fn(&str, T) -> Result<()>) -> Result<()> {
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
    stage.arm(at)?;
    // Whatever is answered: the client of a process that dies may be told anything but a lie, which is looked for below.
    let answer = operation.send(stage, Turn::First);
    stage.await_death(at)?;
    stage.revive(at)?;

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
