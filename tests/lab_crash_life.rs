//! The life of an SR on volumes, interrupted at each of its crash points (`crash::coming`), in the lab: it is created, opened again,
//! destroyed; its catalog is lost and made anew; a group of XenServer is taken over.
//!
//! The same request is sent again after each death, and in the end has been carried out once.

mod crash;
mod harness;

use anyhow::{Context, Result, anyhow, ensure};
use crash::coming::{INTRODUCED, MADE, RENEWED, REOPENED, UNMADE};
use crash::request::Answer;
use crash::stage::{SIZE, Stage};
use harness::lab::{self, Disk, run};
use harness::{Agent, golden_file, qemu_img, text, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The size of the disk, in MiB.
const ROOM: u64 = 1024;

/// Sends the request again and again, and lets somebody die of it at each of the points; what it came to in the end.
fn interrupt(agent: &mut Agent, points: &[&str], method: &str, params: &Value) -> Result<Value> {
    for at in points {
        agent.arm(at)?;
        let answer = patiently(agent, method, params);
        agent.await_death(at).with_context(|| format!("{at}: {answer:?}"))?;
        if at.starts_with("front.") {
            agent.bury()?;
            agent.launch_mortal()?;
        }
    }
    patiently(agent, method, params)?
        .map_err(|error| anyhow!("{method} after {points:?}: {error}: {}", agent.log()))
}

/// Sends a request until the agent has no reason to say "later", or somebody has died of it.
fn patiently(agent: &Agent, method: &str, params: &Value) -> Result<Answer> {
    let is_mortal = agent.is_armed();
    let mut answer = agent.call(method, params)?;
    wait_until(method, || {
        let is_over = !matches!(&answer, Err(error) if error["data"]["retry"] == true);
        if is_over || is_mortal && !agent.is_armed() {
            return Ok(true);
        }
        answer = agent.call(method, params)?;
        Ok(false)
    })?;
    Ok(answer)
}

#[test]
fn an_sr_is_made_and_goes() -> Result<()> {
    lab::test(|| {
        let (mut agent, disk) = (Agent::start_mortal()?, Disk::new(ROOM)?);
        let device = text(&disk.path());
        let create =
            |key: &str| json!({"type": "lvm", "name_label": "made", "devices": [device], "request_id": key});
        let made = interrupt(&mut agent, MADE, "SR.create", &create("first"))?;
        ensure!(patiently(&agent, "SR.create", &create("first"))? == Ok(made.clone()), "another answer");
        let sr = made["uuid"].as_str().context("a uuid")?.to_owned();
        agent.wait_attached(&sr)?;
        agent.is_clean(&sr)?;
        for at in REOPENED {
            reopen(&agent, &sr, at)?;
        }
        let [unmarked, destroyed] = UNMADE else { return Err(anyhow!("{UNMADE:?}")) };
        agent.arm(unmarked)?;
        let answer = agent.call("SR.destroy", &json!({"sr": sr}))?;
        agent.await_death(unmarked).with_context(|| format!("{answer:?}"))?;
        // It is named and gone: an administrator lets go of it.
        forget(&agent, &sr)?;
        ensure!(probed(&agent, &device)? == "empty");

        let again = patiently(&agent, "SR.create", &create("second"))?
            .map_err(|error| anyhow!("{error}: {}", agent.log()))?;
        let sr = again["uuid"].as_str().context("a uuid")?.to_owned();
        agent.arm(destroyed)?;
        drop(agent.call("SR.destroy", &json!({"sr": sr})));
        agent.await_death(destroyed)?;
        agent.bury()?;
        agent.launch_mortal()?;
        forget(&agent, &sr)?;
        ensure!(probed(&agent, &device)? == "empty" && run("pvs", &["--noheadings"])?.is_empty());
        let mounts = fs::read_to_string("/proc/mounts")?;
        ensure!(!mounts.contains("/run/catena/sr/"), "{mounts}");
        agent.stop()
    })
}

/// The keeper that comes after one that was killed replaces the catalog (D19), and dies over it.
fn reopen(agent: &Agent, sr: &str, at: &str) -> Result<()> {
    agent.arm(at)?;
    // One that has had nothing to do for a moment has closed its log of changes: its successor replaces nothing.
    for _ in 0..20 {
        agent.ok(&["coalesce", "pause", sr])?;
        agent.processes("catena-keeper").into_iter().try_for_each(|pid| kill(pid, Signal::SIGKILL))?;
        agent.wait_attached(sr)?;
        if !agent.is_armed() {
            break;
        }
    }
    agent.await_death(at)?;
    agent.wait_attached(sr)?;
    let status = agent.json(&["coalesce", "status", sr])?;
    ensure!(status["srs"][0]["state"] == "paused", "the last commit before the kill: {status}");
    agent.is_clean(sr)
}

fn forget(agent: &Agent, sr: &str) -> Result<()> {
    agent.ok(&["sr", "detach", sr])?;
    agent.ok(&["sr", "forget", sr]).map(drop)
}

fn probed(agent: &Agent, device: &str) -> Result<Value> {
    Ok(agent.json(&["sr", "probe", "--type", "lvm", "--devices", device])?["found"].clone())
}

#[test]
fn a_lost_catalog_is_made_anew() -> Result<()> {
    lab::test(|| {
        let mut stage = Stage::on_volumes(ROOM)?;
        let disk = stage.disk("a", SIZE)?;
        stage.write(&disk, 5000, 3 << 20)?;
        stage.snapshot(&disk)?;
        stage.write(&disk, 2 << 20, 2 << 20)?;
        let (group, device) = (format!("catena-{}", stage.sr), stage.device()?);
        let introduce = |key: &str| json!({"type": "lvm", "devices": [device], "request_id": key});
        // Its volume, then what is in it.
        let (volume, inside): (Vec<&str>, Vec<&str>) =
            RENEWED.iter().partition(|at| at.starts_with("renew."));
        for (points, key) in [(volume, "first"), (inside, "second")] {
            stage.agent.ok(&["sr", "detach", &stage.sr])?;
            lose(&group, &stage.agent.path("lost"), key == "first")?;
            let job = interrupt(&mut stage.agent, &points, "SR.introduce", &introduce(key))?;
            ensure!(job["state"] == "done" && job["sr"] == stage.sr.as_str(), "{job}");
            let again = patiently(&stage.agent, "SR.introduce", &introduce(key))?;
            ensure!(again.as_ref().is_ok_and(|again| again["id"] == job["id"]), "{job}, then {again:?}");
            stage.verify()?;
        }
        let volumes = run("lvs", &["--foreign", "--noheadings", "-o", "lv_name,lv_tags", &group])?;
        let lost: Vec<&str> = volumes.lines().filter(|line| line.contains("catalog-lost-")).collect();
        ensure!(lost.len() == 1 && !volumes.contains("unfinished"), "one is kept aside: {volumes}");
        stage.agent.ok(&["coalesce", "resume", &stage.sr])?;
        stage.write(&disk, 0, 4096)?;
        stage.end()
    })
}

/// Damages the file system of the catalog of an SR that is detached, or the catalog in it.
fn lose(group: &str, at: &Path, whole: bool) -> Result<()> {
    let catalog = format!("{group}/catalog");
    as_owner(group, "lvchange", &["-ay", &catalog])?;
    let node = format!("/dev/mapper/{}-catalog", group.replace('-', "--"));
    if whole {
        let file = File::options().write(true).open(&node)?;
        file.write_all_at(&vec![0; 1 << 20], 0)?;
        file.sync_all()?;
    } else {
        fs::create_dir(at)?;
        run("mount", &[&node, &text(at)])?;
        fs::write(at.join("catalog.db"), "garbage")?;
        run("umount", &[&text(at)])?;
    }
    as_owner(group, "lvchange", &["-an", &catalog]).map(drop)
}

/// A command of lvm2 by the owner of a group.
fn as_owner(group: &str, command: &str, arguments: &[&str]) -> Result<String> {
    let owner = run("vgs", &["--foreign", "--noheadings", "-o", "vg_systemid", group])?;
    let settings = format!("global{{system_id_source=\"lvmlocal\"}} local{{system_id={:?}}}", owner.trim());
    run(command, &[&["-qq", "--yes", "--config", &settings], arguments].concat())
}

#[test]
fn a_group_of_another_manager_is_taken_over() -> Result<()> {
    lab::test(|| {
        const UUID: &str = "5f3ba1a6-4f4b-4b0b-8f0c-6d1f6f0e7a11";
        let (mut agent, disk) = (Agent::start_mortal()?, Disk::new(ROOM)?);
        let device = text(&disk.path());
        let content = theirs(&agent, &device, UUID)?;
        let introduce = json!({"type": "lvm", "devices": [device], "request_id": "taken"});
        let job = interrupt(&mut agent, INTRODUCED, "SR.introduce", &introduce)?;
        ensure!(job["state"] == "done", "{job}");
        let sr = job["sr"].as_str().context("an SR")?.to_owned();
        let srs = agent.json(&["sr", "list"])?;
        ensure!(srs["srs"].as_array().is_some_and(|srs| srs.len() == 1), "{srs}");
        ensure!(agent.read(UUID, 0, content.len() as u64)? == content, "its disk reads as before");
        agent.write(UUID, 4096, b"ours now")?;
        ensure!(agent.read(UUID, 4096, 8)? == b"ours now");
        agent.is_clean(&sr)?;
        agent.stop()
    })
}

/// A group as XenServer has one, with an image that QEMU has written; what QEMU reads in it.
fn theirs(agent: &Agent, device: &str, uuid: &str) -> Result<Vec<u8>> {
    const MIB: u64 = 16;
    let [image, raw]: [PathBuf; 2] = ["theirs.vhd", "theirs.raw"].map(|name| agent.path(name));
    golden_file("special/qemu-data.vhd", &image)?;
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", &text(&image), &text(&raw)])?;
    let (group, volume) = ("VG_XenStorage-7a3bd6f0-1111-4222-8333-444455556666", format!("VHD-{uuid}"));
    run("vgcreate", &["-qq", group, device])?;
    let size = format!("{MIB}m");
    run("lvcreate", &["-qq", "--yes", "-Wn", "-Zn", "-ay", "-L", &size, "-n", &volume, group])?;
    let double = |name: &str| name.replace('-', "--");
    let bytes = fs::read(&image)?;
    let (body, footer) = bytes.split_at(bytes.len() - 512);
    ensure!(bytes.len() as u64 <= MIB << 20, "{} bytes", bytes.len());
    let node = format!("/dev/mapper/{}-{}", double(group), double(&volume));
    let file = File::options().write(true).open(node)?;
    file.write_all_at(body, 0)?;
    file.write_all_at(footer, (MIB << 20) - 512)?;
    file.sync_all()?;
    drop(file);
    run("lvchange", &["-qq", "-an", &format!("{group}/{volume}")])?;
    Ok(fs::read(raw)?)
}
