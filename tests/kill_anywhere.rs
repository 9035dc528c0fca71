//! Mover, keeper or front killed at any moment of a merge of 64 MiB, again and again: each time the disks read as they should
//! and the check is clean, and in the end the merge is done.

mod crash;
mod harness;

use anyhow::{Context, Result, ensure};
use crash::stage::Stage;
use harness::{nightly, seed, wait_for_end, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::time::Duration;

/// Bytes that each merge moves.
const LOAD: usize = 64 << 20;

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Mover,
    Keeper,
    Front,
}

#[test]
fn a_merge_survives_its_mover_its_keeper_and_its_front() -> Result<()> {
    let mut random = seed("kill_anywhere");
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut stage = Stage::empty()?;
    let disk = stage.disk("large", LOAD + (8 << 20))?;
    stage.write(&disk, 0, 4096)?;
    let rounds = if nightly() { 100 } else { 20 };
    for round in 0..rounds {
        if unmerged(&stage)? == 0 {
            stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
            load(&mut stage, &disk, round % 2 == 0)?;
        }
        let victim = [Victim::Mover, Victim::Keeper, Victim::Front][usize::try_from(next(3))?];
        let moment = Duration::from_millis(next(150));
        stage.agent.ok(&["coalesce", "resume", &stage.sr])?;
        // What fails rests; this tries it at once.
        stage.agent.call("Coalesce.run", &json!({"sr": stage.sr}))?.ok();
        std::thread::sleep(moment);
        strike(&mut stage, victim)?;
        stage.verify().with_context(|| format!("round {round}: {victim:?} after {moment:?}"))?;
    }
    stage.coalesce()?;
    stage.verify()?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// What is merged into an image while the merge *of* that image rests may lie before the place that the latter has come to.
#[test]
fn a_merge_whose_source_has_taken_in_more_begins_anew() -> Result<()> {
    const BLOCK: usize = 2 << 20;
    let mut stage = Stage::empty()?;
    let disk = stage.disk("large", 32 * BLOCK)?;
    stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
    stage.write(&disk, 0, 32 * BLOCK)?;
    let first = stage.snapshot(&disk)?;
    stage.write(&disk, 0, 32 * BLOCK)?;
    let second = stage.snapshot(&disk)?;
    stage.write(&disk, 0, BLOCK)?;
    stage.snapshot(&disk)?;
    stage.write(&disk, 4096, 4096)?;
    stage.destroy(&first)?;
    stage.agent.ok(&["sr", "policy", &stage.sr, "coalesce.rate=8MiB"])?;
    stage.agent.ok(&["coalesce", "resume", &stage.sr])?;
    // Its first block is behind it, durably, and it is far from its end.
    wait_until("a merge under way", || {
        Ok(first_merge(&stage)?.is_some_and(|job| job["bytes_done"].as_u64() >= Some(4 * BLOCK as u64)))
    })?;
    stage.destroy(&second)?;
    strike(&mut stage, Victim::Mover)?;
    // The small one above it goes first while it rests.
    wait_until("another merge", || {
        let events = stage.agent.json(&["event", "list"])?;
        Ok(events["events"].as_array().into_iter().flatten().any(|event| event["kind"] == "merge.done"))
    })?;
    let rests = first_merge(&stage)?.context("the first merge")?;
    ensure!(rests["state"] == "queued" || rests["state"] == "running", "{rests}");
    stage.agent.ok(&["sr", "policy", &stage.sr, "coalesce.rate=0"])?;
    stage.coalesce()?;
    stage.verify()?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// The job of the first merge that was begun.
fn first_merge(stage: &Stage) -> Result<Option<Value>> {
    let jobs = stage.agent.json(&["job", "list"])?;
    let merges = jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["kind"] == "merge");
    Ok(merges.min_by_key(|job| job["created"].to_string()).cloned())
}

/// Gives the worker something to do: an inner merge under a snapshot that stays until the next round, or a leaf merge.
fn load(stage: &mut Stage, disk: &str, inner: bool) -> Result<()> {
    let others: Vec<String> = stage.content.keys().filter(|vdi| *vdi != disk).cloned().collect();
    let snapshot = stage.snapshot(disk)?;
    for vdi in others {
        stage.destroy(&vdi)?;
    }
    stage.write(disk, 4096, LOAD)?;
    if inner {
        stage.snapshot(disk)?;
        stage.write(disk, 1 << 20, 1 << 20)?;
    }
    stage.destroy(&snapshot)
}

fn strike(stage: &mut Stage, victim: Victim) -> Result<()> {
    let program = match victim {
        Victim::Mover => "catena-datapath",
        Victim::Keeper => "catena-keeper",
        Victim::Front => {
            stage.agent.kill()?;
            return stage.agent.launch(None);
        }
    };
    let struck = stage.agent.processes(program);
    for pid in &struck {
        // One that has just ended by itself needs no killing.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    wait_for_end(&struck)?;
    if let Victim::Keeper = victim {
        stage.wait_attached()?;
    }
    Ok(())
}

fn unmerged(stage: &Stage) -> Result<u64> {
    let status = stage.agent.json(&["coalesce", "status", &stage.sr])?;
    status["srs"][0]["unmerged_images"].as_u64().context("unmerged_images")
}
