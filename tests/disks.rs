//! What is done with disks beyond creating and cloning them, through the real programs: snapshots of several at one instant, going
//! back to a snapshot, growing, copying, renaming; and what is removed after a failure.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, peer, qemu_img};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// An agent with one empty SR.
fn with_sr() -> Result<Agent> {
    let agent = Agent::start()?;
    add_sr(&agent, "store")?;
    Ok(agent)
}

fn add_sr(agent: &Agent, name: &str) -> Result<String> {
    let place = agent.path(name).to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", name, "--location", &place])
}

fn create(agent: &Agent, sr: &str, name: &str, size: &str) -> Result<String> {
    agent.ok(&["vdi", "create", "--sr", sr, "--size", size, "--name", name])
}

/// Bytes that are those of no other number.
fn bytes(number: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| number ^ u8::try_from(at / 512 % 251).unwrap_or_default()).collect()
}

/// Everything of an SR that a refusal must leave alone: VDIs, trees, files.
fn picture(agent: &Agent) -> Result<(Value, Value, BTreeSet<PathBuf>)> {
    picture_of(agent, "store")
}

fn picture_of(agent: &Agent, sr: &str) -> Result<(Value, Value, BTreeSet<PathBuf>)> {
    let files = fs::read_dir(agent.path(sr))?.flatten().map(|entry| entry.path()).collect();
    Ok((agent.json(&["vdi", "list", "--sr", sr])?, agent.json(&["vdi", "tree", sr])?, files))
}

/// A refusal with this exit code, and this name in its JSON form, that changes nothing.
fn refused(agent: &Agent, arguments: &[&str], code: i32, name: &str) -> Result<()> {
    let before = picture(agent)?;
    let said = agent.catena(&[&["--json"], arguments].concat())?;
    let named = said.err.contains(&format!("\"{name}\""));
    ensure!(said.code == code && said.out.is_empty() && named, "{arguments:?}: {said:?}");
    ensure!(picture(agent)? == before, "{arguments:?} was refused and has changed something");
    Ok(())
}

fn show(agent: &Agent, vdi: &str) -> Result<Value> {
    agent.json(&["vdi", "show", vdi])
}

fn jobs_of(agent: &Agent, kind: &str) -> Result<Vec<Value>> {
    let jobs = agent.json(&["job", "list"])?;
    Ok(jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["kind"] == kind).cloned().collect())
}

/// Lets the worker do what there is to do, and checks the SR.
fn settle(agent: &Agent) -> Result<()> {
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    let check = agent.json(&["sr", "check", "store"])?;
    ensure!(check["clean"] == true && check["findings"] == json!([]), "{check}");
    Ok(())
}

#[test]
fn several_disks_are_snapshotted_at_one_instant_or_none_is() -> Result<()> {
    let agent = with_sr()?;
    let (a, b) = (create(&agent, "store", "a", "4MiB")?, create(&agent, "store", "b", "6MiB")?);
    agent.write(&a, 1000, &bytes(1, 5000))?;
    agent.write(&b, 3_000_000, &bytes(2, 5000))?;
    let said = agent.ok(&["vdi", "snapshot", "a", &b, "--name", "both"])?;
    let taken: Vec<&str> = said.lines().collect();
    ensure!(taken.len() == 2, "{said}");
    for (snapshot, disk, size) in [(taken[0], &a, 4 * MIB), (taken[1], &b, 6 * MIB)] {
        let row = show(&agent, snapshot)?;
        ensure!(row["snapshot_of"] == **disk && row["name_label"] == "both", "{row}");
        ensure!(agent.read(snapshot, 0, size as u64)? == agent.read(disk, 0, size as u64)?);
    }
    ensure!(jobs_of(&agent, "snapshot")?.len() == 1, "one job for both");

    // The second is refused: nothing happens to the first.
    agent.ok(&["coalesce", "pause", "store"])?;
    for _ in show(&agent, &b)?["depth"].as_u64().context("depth")?..30 {
        agent.ok(&["vdi", "snapshot", &b])?;
    }
    refused(&agent, &["vdi", "snapshot", &a, &b], 6, "chain_too_long")?;
    refused(&agent, &["vdi", "snapshot", &a, "nobody"], 3, "vdi_missing")?;
    refused(&agent, &["vdi", "snapshot", &a, &a.to_uppercase()], 2, "bad_request")?;
    add_sr(&agent, "other")?;
    let c = create(&agent, "other", "c", "2MiB")?;
    refused(&agent, &["vdi", "snapshot", &a, &c], 2, "bad_request")?;
    let none = agent.call("VDI.snapshot", &json!({"vdi": []}))?;
    ensure!(none.is_err_and(|error| error["data"]["name"] == "bad_request"));

    // The plain form and a list of one are the same.
    for vdi in [json!(a), json!([a])] {
        let answer = agent.call("VDI.snapshot", &json!({"vdi": vdi}))?;
        ensure!(answer.is_ok_and(|answer| answer["vdis"].as_array().is_some_and(|made| made.len() == 1)));
    }
    Ok(())
}

#[test]
fn a_disk_goes_back_to_its_snapshots() -> Result<()> {
    let agent = with_sr()?;
    let disk = create(&agent, "store", "disk", "4MiB")?;
    let read = |vdi: &str| agent.read(vdi, 0, 4 << 20);
    agent.write(&disk, 0, &bytes(1, 3 * MIB))?;
    let first = agent.ok(&["vdi", "snapshot", &disk, "--name", "first"])?;
    agent.write(&disk, MIB as u64, &bytes(2, MIB))?;
    let second = agent.ok(&["vdi", "snapshot", &disk, "--name", "second"])?;
    agent.write(&disk, 2 << 20, &bytes(3, 2 * MIB))?;
    // One that somebody has written to since.
    agent.write(&second, 100, &bytes(4, 1000))?;
    let (in_first, in_second) = (read(&first)?, read(&second)?);
    agent.ok(&["vdi", "set", &disk, "other_config.owner=me"])?;

    for (snapshot, content) in [(&second, &in_second), (&first, &in_first), (&second, &in_second)] {
        agent.ok(&["vdi", "revert", &disk, snapshot])?;
        let row = show(&agent, &disk)?;
        ensure!(row["name_label"] == "disk" && row["is_a_snapshot"] == false, "{row}");
        ensure!(row["other_config"]["owner"] == "me", "{row}");
        ensure!(read(&disk)? == *content, "the disk holds what the snapshot holds");
        agent.write(&disk, 3 << 20, &bytes(9, 5000))?;
        ensure!(read(snapshot)? == *content, "the snapshot is its own");
        ensure!(read(&first)? == in_first && read(&second)? == in_second);
        settle(&agent)?;
    }
    ensure!(agent.json(&["vdi", "list"])?["vdis"].as_array().map(Vec::len) == Some(3));

    // The size goes back too.
    agent.ok(&["vdi", "resize", &disk, "8MiB"])?;
    agent.ok(&["vdi", "revert", &disk, &first])?;
    ensure!(show(&agent, &disk)?["virtual_size"] == 4 * MIB);

    let stranger = create(&agent, "store", "stranger", "4MiB")?;
    let others = agent.ok(&["vdi", "snapshot", &stranger, "--name", "others"])?;
    refused(&agent, &["vdi", "revert", &disk, &others], 2, "bad_request")?;
    refused(&agent, &["vdi", "revert", &disk, &stranger], 2, "bad_request")?;
    refused(&agent, &["vdi", "revert", &first, &second], 2, "bad_request")?;
    refused(&agent, &["vdi", "revert", &disk, "nothing"], 3, "vdi_missing")?;
    Ok(())
}

#[test]
fn names_and_free_keys_are_set_together_or_not_at_all() -> Result<()> {
    let agent = with_sr()?;
    let disk = create(&agent, "store", "disk", "2MiB")?;
    agent.ok(&[
        "vdi",
        "set",
        "disk",
        "name_label=web 01",
        "name_description=a=b",
        "other_config.k=v",
        "other_config.x.y=2",
    ])?;
    let row = show(&agent, "web 01")?;
    ensure!(row["uuid"] == disk && row["name_description"] == "a=b", "{row}");
    ensure!(row["other_config"] == json!({"k": "v", "x.y": "2"}), "{row}");
    agent.ok(&["vdi", "set", &disk, "other_config.k=", "other_config.absent="])?;
    ensure!(show(&agent, &disk)?["other_config"] == json!({"x.y": "2"}));
    for words in [&["size=3"][..], &["name_label=new", "colour=red"], &["name_label"], &["other_config.=1"]] {
        refused(&agent, &[&["vdi", "set", &disk], words].concat(), 2, "bad_request")?;
    }
    let long = json!({"vdi": disk, "name_label": "x".repeat(100_000)});
    for params in [json!({"vdi": disk}), json!({"vdi": disk, "colour": "red"}), long] {
        let answer = agent.call("VDI.set", &params)?;
        ensure!(answer.is_err_and(|error| error["data"]["name"] == "bad_request"));
    }
    ensure!(show(&agent, &disk)?["name_label"] == "web 01");
    Ok(())
}

#[test]
fn a_disk_grows_and_its_leaf_still_merges_right() -> Result<()> {
    let agent = with_sr()?;
    let disk = create(&agent, "store", "disk", "4MiB")?;
    let mut content = bytes(1, 4 * MIB);
    agent.write(&disk, 0, &content)?;
    agent.ok(&["coalesce", "pause", "store"])?;
    let first = agent.ok(&["vdi", "snapshot", &disk])?;
    let before = content.clone();

    // Past the parent's end the disk reads as zero, until something is written there.
    agent.ok(&["vdi", "resize", &disk, "9MiB"])?;
    content.resize(10 * MIB, 0);
    ensure!(show(&agent, &disk)?["virtual_size"] == 10 * MIB, "whole blocks");
    ensure!(agent.read(&disk, 0, 10 << 20)? == content);
    content[7 * MIB..9 * MIB].copy_from_slice(&bytes(2, 2 * MIB));
    agent.write(&disk, 7 << 20, &bytes(2, 2 * MIB))?;
    content[MIB..2 * MIB].copy_from_slice(&bytes(3, MIB));
    agent.write(&disk, 1 << 20, &bytes(3, MIB))?;
    let second = agent.ok(&["vdi", "snapshot", &disk])?;

    // Tables for 40 GiB do not fit before the first block: blocks move.
    agent.ok(&["vdi", "resize", &disk, "40GiB"])?;
    agent.write(&disk, 30 << 30, &bytes(5, MIB))?;
    let tail = |vdi: &str| agent.read(vdi, (30 << 30) - 4096, 2 << 20);
    let far = tail(&disk)?;
    agent.ok(&["vdi", "resize", &disk, "2040GiB"])?;
    ensure!(tail(&disk)? == far && agent.read(&disk, 0, 10 << 20)? == content);

    let row = show(&agent, &disk)?;
    let image = agent.path("store").join(row["container"].as_str().context("container")?);
    let told = qemu_img(&["info", "--output=json", "-f", "vpc", &image.to_string_lossy()])?;
    let told: Value = serde_json::from_str(&told)?;
    ensure!(told["virtual-size"] == 2040_u64 << 30, "{told}");

    refused(&agent, &["vdi", "resize", &disk, "8MiB"], 2, "vdi_size")?;
    refused(&agent, &["vdi", "resize", &disk, "2041GiB"], 2, "vdi_size")?;
    refused(&agent, &["vdi", "resize", &first, "40MiB"], 1, "resize_failed")?;
    refused(&agent, &["vdi", "resize", "nobody", "40MiB"], 3, "vdi_missing")?;
    agent.ok(&["vdi", "resize", &disk, "2040GiB"])?;

    ensure!(agent.read(&first, 0, 4 << 20)? == before && show(&agent, &first)?["virtual_size"] == 4 * MIB);
    // Inner merge into a smaller base, then leaf merge into a smaller base.
    agent.ok(&["vdi", "destroy", &first, &second])?;
    agent.ok(&["coalesce", "resume", "store"])?;
    settle(&agent)?;
    ensure!(show(&agent, &disk)?["depth"] == 1, "merged into one image");
    ensure!(tail(&disk)? == far && agent.read(&disk, 0, 10 << 20)? == content);
    Ok(())
}

#[test]
fn nothing_is_built_on_a_disk_whose_size_is_not_known() -> Result<()> {
    let mut agent = with_sr()?;
    let disk = create(&agent, "store", "disk", "4MiB")?;
    agent.write(&disk, 0, &bytes(1, 4 * MIB))?;
    agent.stop()?;
    // Every worker dies when it has done what it was asked: the image grows, and nobody can ask it.
    agent.launch(Some("worker.before_reply"))?;
    agent.ok(&["sr", "show", "store"])?;
    let resize = json!({"vdi": disk, "virtual_size": 8 * MIB, "request_id": "once"});
    for (method, params) in
        [("VDI.resize", &resize), ("VDI.snapshot", &json!({"vdi": disk})), ("VDI.resize", &resize)]
    {
        let refusal = agent.call(method, params)?.err().context("it cannot be known")?;
        ensure!(
            refusal["data"]["name"] == "try_again" && refusal["data"]["retry"] == true,
            "{method}: {refusal}"
        );
    }
    let job = jobs_of(&agent, "resize")?.pop().context("the job is open")?;
    ensure!(job["state"] == "queued" && job["vdi"] == disk, "{job}");
    let cancel = agent.call("Job.cancel", &json!({"job": job["id"]}))?;
    ensure!(cancel.is_err_and(|error| error["data"]["name"] == "vdi_unavailable"), "it may have happened");
    agent.kill()?;
    agent.launch(None)?;
    let answer = agent.call("VDI.resize", &resize)?;
    ensure!(answer == Ok(json!({"virtual_size": 8 * MIB})), "{answer:?}");
    ensure!(jobs_of(&agent, "resize")?.len() == 1 && show(&agent, &disk)?["virtual_size"] == 8 * MIB);
    agent.ok(&["vdi", "snapshot", &disk])?;
    ensure!(agent.read(&disk, 0, 4 << 20)? == bytes(1, 4 * MIB));
    settle(&agent)
}

#[test]
fn a_copy_shares_nothing_with_its_origin() -> Result<()> {
    let agent = with_sr()?;
    let disk = create(&agent, "store", "disk", "64MiB")?;
    agent.write(&disk, 0, &bytes(1, 3 * MIB))?;
    let snapshot = agent.ok(&["vdi", "snapshot", &disk, "--name", "before"])?;
    agent.write(&disk, 50 << 20, &bytes(2, MIB))?;
    let copy = agent.ok(&["vdi", "copy", &disk, "--name", "copy"])?;
    let row = show(&agent, &copy)?;
    ensure!(row["depth"] == 1 && row["name_label"] == "copy" && row["is_a_snapshot"] == false, "{row}");
    ensure!(row["own_bytes"].as_u64().context("own")? < 16 << 20, "what is empty takes nothing: {row}");
    ensure!(agent.hash(&copy)? == agent.hash(&disk)?);
    let job = jobs_of(&agent, "copy")?.pop().context("the job is listed")?;
    ensure!(job["state"] == "done" && job["vdi"] == copy, "{job}");

    // A snapshot and a base copy are copied as disks; a label is inherited.
    let of_snapshot = agent.json(&["vdi", "copy", &snapshot])?["uuid"].as_str().context("uuid")?.to_owned();
    ensure!(show(&agent, &of_snapshot)?["name_label"] == "before");
    let tree = agent.json(&["vdi", "tree", &disk])?;
    let base = tree["roots"][0]["image"].as_str().context("a base copy")?.to_owned();
    let of_base = agent.ok(&["vdi", "copy", &base, "--sr", "store"])?;
    ensure!(
        agent.hash(&of_base)? == agent.hash(&of_snapshot)?
            && agent.hash(&of_base)? == agent.hash(&snapshot)?
    );

    agent.write(&copy, 0, &bytes(7, 512))?;
    agent.ok(&["vdi", "destroy", &disk, &snapshot])?;
    settle(&agent)?;
    ensure!(
        agent.read(&copy, 0, 512)? == bytes(7, 512) && agent.read(&copy, 50 << 20, 512)? == bytes(2, 512)
    );

    // Repeated, it is the same job.
    let params = json!({"vdi": copy, "request_id": "once"});
    let jobs = [agent.call("VDI.copy", &params)?, agent.call("VDI.copy", &params)?];
    let ids: BTreeSet<String> = jobs.iter().flatten().map(|job| job["id"].to_string()).collect();
    ensure!(ids.len() == 1, "{jobs:?}");
    let job = jobs[0].as_ref().ok().and_then(|job| job["id"].as_str()).context("a job")?;
    agent.ok(&["job", "wait", job])?;
    refused(&agent, &["vdi", "copy", "nobody"], 3, "vdi_missing")?;
    refused(&agent, &["vdi", "copy", &copy, "--sr", "nowhere"], 3, "sr_unavailable")?;
    Ok(())
}

#[test]
fn a_disk_is_copied_into_another_sr() -> Result<()> {
    let agent = with_sr()?;
    let other = add_sr(&agent, "other")?;
    let disk = create(&agent, "store", "disk", "64MiB")?;
    agent.write(&disk, 0, &bytes(1, 3 * MIB))?;
    let snapshot = agent.ok(&["vdi", "snapshot", &disk, "--name", "before"])?;
    agent.write(&disk, 50 << 20, &bytes(2, MIB))?;
    agent.ok(&["vdi", "resize", &disk, "70MiB"])?;
    let base =
        agent.json(&["vdi", "tree", &disk])?["roots"][0]["image"].as_str().context("a base")?.to_owned();
    let before = picture_of(&agent, "store")?;
    for (origin, label, same, size) in [
        (&disk, "disk", &disk, 70 * MIB),
        (&snapshot, "before", &snapshot, 64 * MIB),
        (&base, "", &snapshot, 64 * MIB),
    ] {
        let copy = agent.ok(&["vdi", "copy", origin, "--sr", "other"])?;
        let row = show(&agent, &copy)?;
        ensure!(row["sr"] == *other && row["name_label"] == *label && row["depth"] == 1, "{row}");
        ensure!(row["virtual_size"] == size && row["is_a_snapshot"] == false, "{row}");
        ensure!(row["own_bytes"].as_u64().context("own")? < 16 << 20, "what is empty takes nothing: {row}");
        ensure!(agent.hash(&copy)? == agent.hash(same)?);
        let job = jobs_of(&agent, "copy")?.into_iter().find(|job| job["vdi"] == *copy).context("a job")?;
        ensure!(job["sr"] == *other && job["state"] == "done", "{job}");
    }
    ensure!(picture_of(&agent, "store")? == before, "the origin's SR is as it was");

    // Repeated, it is the same job, and nothing is sent once more.
    let params = json!({"vdi": disk, "sr": "other", "name_label": "twice", "request_id": "once"});
    let first = job_id(&agent.call("VDI.copy", &params)?)?;
    agent.ok(&["job", "wait", &first])?;
    let exports = jobs_of(&agent, "export")?.len();
    ensure!(job_id(&agent.call("VDI.copy", &params)?)? == first);
    ensure!(jobs_of(&agent, "export")?.len() == exports);
    agent.ok(&["sr", "check", "other"])?;

    // An origin that cannot be read to its end leaves no copy.
    let known = picture_of(&agent, "other")?;
    let image = agent.path("store").join(format!("{base}.vhd"));
    fs::File::options().write(true).open(image)?.set_len(1 << 20)?;
    let said = agent.catena(&["vdi", "copy", &disk, "--sr", "other"])?;
    ensure!(said.code == 1 && said.err.contains("the job of its export says why"), "{said:?}");
    ensure!(picture_of(&agent, "other")? == known, "nothing is left of it");
    agent.ok(&["sr", "detach", "other"])?;
    refused(&agent, &["vdi", "copy", &snapshot, "--sr", "other"], 3, "sr_unavailable")
}

fn job_id(answer: &Result<Value, Value>) -> Result<String> {
    let job = answer.as_ref().map_err(|error| anyhow::anyhow!("refused: {error}"))?;
    Ok(job["id"].as_str().context("a job")?.to_owned())
}

/// Lets nothing be removed from a directory while this lives.
struct NothingGoes(PathBuf);

impl NothingGoes {
    fn from(directory: &Path) -> Result<Self> {
        peer("e2fsprogs", "chattr", &["+a", &directory.to_string_lossy()])?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for NothingGoes {
    fn drop(&mut self) {
        if let Err(error) = peer("e2fsprogs", "chattr", &["-a", &self.0.to_string_lossy()]) {
            eprintln!("a directory stays as it was made: {error:#}");
        }
    }
}

#[test]
fn what_a_failed_job_could_not_remove_is_removed_later() -> Result<()> {
    let mut agent = with_sr()?;
    let place = agent.path("store");
    let images = || -> Result<usize> {
        let names = fs::read_dir(&place)?.flatten().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_string_lossy().ends_with(".vhd")).count())
    };
    let bad = agent.path("bad.vhd");
    fs::write(&bad, bytes(1, 8192))?;
    for restart in [false, true] {
        let guard = NothingGoes::from(&place)?;
        let said =
            agent.catena(&["vdi", "import", &bad.to_string_lossy(), "--sr", "store", "--format", "vhd"])?;
        ensure!(said.code != 0, "{said:?}");
        ensure!(images()? == 1, "the container could not be removed");
        let job = jobs_of(&agent, "import")?.pop().context("the job")?;
        ensure!(job["state"] == "failed", "the job is over for its client: {job}");
        let check = agent.json(&["sr", "check", "store"])?;
        ensure!(check["findings"] == json!([]), "it is known whose it is: {check}");
        if restart {
            agent.stop()?;
            agent.launch(None)?;
        }
        drop(guard);
        settle(&agent)?;
        ensure!(images()? == 0, "it is gone");
        ensure!(jobs_of(&agent, "import")?.iter().all(|job| job["state"] == "failed"));
    }
    Ok(())
}
