//! The life of an SR, interrupted: create, introduce, open again, destroy. Each has a keeper of its own that the front starts
//! for it.

use super::request::Answer;
use super::stage::{PATIENCE, SIZE, Stage};
use crate::harness::golden_file;
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// What is asked of the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Begin,
    TakeOver,
    Reopen,
    Rebuild,
    Unmake,
}

/// Kills at `at` while it is carried out, and verifies what is there afterwards.
pub(crate) fn scenario(at: &str, life: Life) -> Result<()> {
    match life {
        Life::Begin => create(at),
        Life::TakeOver => introduce(at),
        Life::Reopen => reopen(at),
        Life::Rebuild => rebuild(at),
        Life::Unmake => destroy(at),
    }
}

fn create(at: &str) -> Result<()> {
    let mut stage = small_stage()?;
    let place = stage.agent.path("made");
    fs::create_dir(&place)?;
    let params = json!({"type": "file", "name_label": "made", "location": place, "request_id": "made"});
    crash(&mut stage, at, "SR.create", &params)?;
    let answer = patiently(&stage, "SR.create", &params)?.map_err(|error| anyhow!("{error}"))?;
    let again = patiently(&stage, "SR.create", &params)?;
    ensure!(again == Ok(answer.clone()), "the same request is answered {answer}, then {again:?}");
    let made = answer["uuid"].as_str().context("uuid")?.to_owned();
    ensure!(srs(&stage)?.len() == 2, "one SR more: {:?}", srs(&stage)?);
    stage.verify().context("the other SR")?;
    stage.agent.ok(&["vdi", "create", "--sr", &made, "--size", "2MiB", "--name", "first"])?;
    ensure!(stage.agent.json(&["sr", "check", &made])?["clean"] == true, "the new SR is clean");
    stage.agent.stop()
}

fn introduce(at: &str) -> Result<()> {
    let mut stage = small_stage()?;
    forget(&mut stage)?;
    let params = json!({"type": "file", "location": stage.directory, "request_id": "taken"});
    crash(&mut stage, at, "SR.introduce", &params)?;
    let job = patiently(&stage, "SR.introduce", &params)?;
    let job = job.map_err(|error| anyhow!("the repeated request: {error}"))?;
    ensure!(job["state"] == "done", "{job}");
    stage.sr = job["sr"].as_str().context("sr")?.to_owned();
    ensure!(srs(&stage)? == [stage.sr.clone()], "one SR: {:?}", srs(&stage)?);
    stage.verify().context("after the introduction")?;
    let disk = stage.a.clone();
    let snapshot = stage.snapshot(&disk)?;
    stage.write(&disk, 0, 1 << 20)?;
    stage.destroy(&snapshot)?;
    stage.coalesce()?;
    stage.verify().context("after all merges")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// The keeper that comes after one that was killed replaces the catalog (D19), and dies over it.
fn reopen(at: &str) -> Result<()> {
    let mut stage = small_stage()?;
    // A keeper that has nothing to do closes its log of changes after a moment: once in a while that is before it is killed.
    for _ in 0..20 {
        stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
        kill_all(&mut stage)?;
        stage.agent.launch(Some(at))?;
        if died_before_it_was_attached(&stage, at)? {
            break;
        }
    }
    stage.wait_for_crash(at)?;
    stage.agent.kill()?;
    stage.agent.launch(None)?;
    let status = stage.agent.json(&["coalesce", "status", &stage.sr])?;
    ensure!(status["srs"][0]["state"] == "paused", "the last commit before the kill: {status}");
    stage.verify().context("what was committed before")?;
    stage.agent.ok(&["coalesce", "resume", &stage.sr])?;
    let disk = stage.a.clone();
    stage.snapshot(&disk)?;
    stage.write(&disk, 0, 4096)?;
    kill_all(&mut stage)?;
    stage.agent.launch(None)?;
    stage.verify().context("what was committed afterwards")?;
    stage.agent.stop()
}

/// A damaged catalog is made anew (D21), and keeper or front die over it.
fn rebuild(at: &str) -> Result<()> {
    let mut stage = small_stage()?;
    stage.agent.stop()?;
    let home = stage.directory.join(".catena");
    fs::write(home.join("catalog.db"), "garbage")?;
    let params = json!({"type": "file", "location": stage.directory, "request_id": "anew"});
    crash(&mut stage, at, "SR.introduce", &params)?;
    let job = patiently(&stage, "SR.introduce", &params)?.map_err(|error| anyhow!("{error}"))?;
    ensure!(job["state"] == "done" && job["sr"] == stage.sr.as_str(), "{job}");
    let again = patiently(&stage, "SR.introduce", &params)?.map_err(|error| anyhow!("{error}"))?;
    ensure!(again["id"] == job["id"], "the same request is answered {job}, then {again}");
    ensure!(srs(&stage)? == [stage.sr.clone()], "one SR: {:?}", srs(&stage)?);
    ensure!(fs::read_to_string(home.join("catalog.db.damaged-1"))? == "garbage");
    stage.verify().context("after the crash")?;
    let disk = stage.a.clone();
    let snapshot = stage.snapshot(&disk)?;
    stage.write(&disk, 0, 1 << 20)?;
    stage.destroy(&snapshot)?;
    stage.coalesce()?;
    stage.verify().context("after all merges")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// Kills the keeper too, before it can close anything; the front must not start another one meanwhile.
fn kill_all(stage: &mut Stage) -> Result<()> {
    let front = stage.agent.pid().context("a front")?;
    kill(front, Signal::SIGSTOP)?;
    for keeper in stage.agent.processes("catena-keeper") {
        kill(keeper, Signal::SIGKILL)?;
    }
    stage.agent.kill()
}

fn died_before_it_was_attached(stage: &Stage, at: &str) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        if stage.agent.log().contains(&format!("crash point {at}\n")) {
            return Ok(true);
        }
        if stage.agent.json(&["sr", "show", &stage.sr])?["state"] == "attached" {
            return Ok(false);
        }
        ensure!(Instant::now() < end, "neither attached nor dead: {}", stage.agent.log());
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
}

fn destroy(at: &str) -> Result<()> {
    let mut stage = small_stage()?;
    let place = stage.agent.path("doomed");
    fs::create_dir(&place)?;
    let text = place.to_string_lossy().into_owned();
    let doomed =
        stage.agent.ok(&["sr", "create", "--type", "file", "--name", "doomed", "--location", &text])?;
    stage.leave_foreign_files(&place)?;
    crash(&mut stage, at, "SR.destroy", &json!({"sr": doomed}))?;
    if srs(&stage)?.contains(&doomed) {
        // It is named and gone: an administrator lets go of it.
        stage.agent.ok(&["sr", "detach", &doomed])?;
        stage.agent.ok(&["sr", "forget", &doomed])?;
    }
    ensure!(srs(&stage)? == [stage.sr.clone()], "one SR: {:?}", srs(&stage)?);
    ensure!(!place.join(".catena").exists(), "nothing of the SR is left");
    stage.verify()?;
    stage.agent.stop()
}

/// An SR with one disk, its snapshot, and something to read in both.
fn small_stage() -> Result<Stage> {
    let mut stage = Stage::empty()?;
    let disk = stage.disk("a", SIZE)?;
    stage.write(&disk, 5000, 3 << 20)?;
    stage.snapshot(&disk)?;
    stage.write(&disk, 2 << 20, 2 << 20)?;
    stage.a = disk;
    Ok(stage)
}

/// Makes the stage's SR a directory of images that no agent knows, with one of another program among them. An introduced disk is
/// named by its file, so the model is by image from here on.
fn forget(stage: &mut Stage) -> Result<()> {
    let image_of = |stage: &Stage, vdi: &str| -> Result<String> {
        let record = stage.agent.json(&["vdi", "show", vdi])?;
        Ok(record["image"].as_str().context("image")?.to_owned())
    };
    let content = std::mem::take(&mut stage.content);
    for (vdi, bytes) in content {
        let image = image_of(stage, &vdi)?;
        stage.content.insert(image, bytes);
    }
    stage.a = image_of(stage, &stage.a.clone())?;
    stage.agent.ok(&["sr", "detach", &stage.sr])?;
    stage.agent.ok(&["sr", "forget", &stage.sr])?;
    fs::remove_dir_all(stage.directory.join(".catena"))?;
    let foreign = "5f3ba1a6-4f4b-4b0b-8f0c-6d1f6f0e7a11";
    let raw = foreign_image(stage, &stage.directory.join(format!("{foreign}.vhd")))?;
    stage.content.insert(foreign.to_owned(), raw);
    Ok(())
}

/// An image that QEMU has written, and its content as QEMU reads it.
fn foreign_image(stage: &Stage, path: &Path) -> Result<Vec<u8>> {
    golden_file("special/qemu-data.vhd", path)?;
    let raw = stage.agent.path("foreign.raw");
    let (from, to) = (path.to_string_lossy(), raw.to_string_lossy());
    crate::harness::qemu_img(&["convert", "-f", "vpc", "-O", "raw", &from, &to])?;
    Ok(fs::read(raw)?)
}

/// Sends the request to an agent that dies at the point, and brings up another one.
fn crash(stage: &mut Stage, at: &str, method: &str, params: &Value) -> Result<()> {
    stage.agent.stop()?;
    stage.agent.launch(Some(at))?;
    // Any answer or none: what counts is what is there afterwards.
    let _ = stage.agent.call(method, params);
    stage.wait_for_crash(at.split(':').next().unwrap_or(at))?;
    stage.agent.kill()?;
    stage.agent.launch(None)
}

fn patiently(stage: &Stage, method: &str, params: &Value) -> Result<Answer> {
    let end = Instant::now() + PATIENCE;
    loop {
        match stage.agent.call(method, params)? {
            Err(error) if error["data"]["retry"] == true && Instant::now() < end => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            answer => return Ok(answer),
        }
    }
}

fn srs(stage: &Stage) -> Result<Vec<String>> {
    let document = stage.agent.json(&["sr", "list"])?;
    let rows = document["srs"].as_array().context("srs")?;
    Ok(rows.iter().filter_map(|row| row["uuid"].as_str()).map(str::to_owned).collect())
}
