//! What a repository says of its space, against what lies on the disk; that no byte is promised twice; and what can still be done
//! when the last block is taken.

mod harness;
#[path = "space/recount.rs"]
mod recount;

use anyhow::{Context, Result, bail, ensure};
use harness::small::Small;
use harness::{Agent, nightly, seed, text};
use recount::Recount;
use serde_json::{Value, json};

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// An agent with an SR "store" in this place.
fn with_sr(place: &Path) -> Result<Agent> {
    let agent = Agent::start()?;
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &text(place)])?;
    Ok(agent)
}

fn create(agent: &Agent, name: &str, size: &str) -> Result<String> {
    agent.ok(&["vdi", "create", "--sr", "store", "--size", size, "--name", name])
}

/// Numbers that a seed repeats.
fn dice(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed | 1;
    move |limit| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or(0) % limit
    }
}

/// A file of so many bytes, none of them a hole.
fn full_file(agent: &Agent, name: &str, length: usize) -> Result<PathBuf> {
    let path = agent.path(name);
    let mut file = File::create(&path)?;
    let piece: Vec<u8> = (0..MIB).map(|at| u8::try_from(at % 251).unwrap_or(0) | 1).collect();
    for _ in 0..length / MIB {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(path)
}

#[test]
fn lists_say_what_is_on_the_disk_whatever_was_done() -> Result<()> {
    let small = Small::ext4(256 << 20)?;
    let agent = with_sr(&small.point())?;
    let mut dice = dice(seed("space"));
    let mut vdis: Vec<String> = Vec::new();
    agent.ok(&["coalesce", "pause", "store"])?;
    for step in 0..if nightly() { 400 } else { 45 } {
        let one = |dice: &mut dyn FnMut(usize) -> usize| vdis[dice(vdis.len())].clone();
        match dice(10) {
            _ if vdis.len() < 2 => vdis.push(create(&agent, "disk", "16MiB")?),
            0 => vdis.push(create(&agent, "disk", "8MiB")?),
            1..=4 => {
                let (offset, length) = (dice(7 * MIB / 512) * 512, dice(MIB / 512) * 512 + 512);
                let vdi = one(&mut dice);
                if agent.json(&["vdi", "show", &vdi])?["is_a_snapshot"] == false {
                    agent.write(
                        &vdi,
                        u64::try_from(offset)?,
                        &vec![u8::try_from(step % 250)? + 1; length],
                    )?;
                }
            }
            5 => vdis.push(agent.ok(&["vdi", "snapshot", &one(&mut dice)])?),
            6 => vdis.push(agent.ok(&["vdi", "clone", &one(&mut dice)])?),
            7 | 8 => {
                let gone = vdis.swap_remove(dice(vdis.len()));
                agent.ok(&["vdi", "destroy", &gone])?;
            }
            _ => {
                agent.ok(&["coalesce", "resume", "store"])?;
                agent.ok(&["coalesce", "run", "store", "--wait"])?;
                agent.ok(&["coalesce", "pause", "store"])?;
            }
        }
        Recount::of(&agent, &small)
            .and_then(|count| count.compare())
            .with_context(|| format!("step {step}"))?;
    }
    // Each disk that goes frees what was said, and nothing that was not.
    agent.ok(&["coalesce", "resume", "store"])?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    while let Some(vdi) = vdis.pop() {
        let said = agent.json(&["vdi", "show", &vdi])?;
        let bytes = |field: &str| said[field].as_u64().with_context(|| format!("{field} of {said}"));
        let before = Recount::of(&agent, &small)?.images();
        agent.ok(&["vdi", "destroy", &vdi])?;
        agent.ok(&["coalesce", "run", "store", "--wait"])?;
        let after = Recount::of(&agent, &small)?.images();
        let (least, most) = (bytes("reclaimable_bytes")?, bytes("reclaimable_after_coalesce_bytes")?);
        // The map of a file takes a block or two of the file system's, fewer after a merge.
        let most = most + 4 * 4096;
        ensure!(after + least <= before && before <= after + most, "{before} to {after}: {said}");
    }
    Ok(())
}

/// Sends several requests at once, and reads as many answers, by the number of the request.
fn together(agent: &Agent, requests: &[(&str, Value)]) -> Result<Vec<Value>> {
    let mut socket = UnixStream::connect(agent.socket())?;
    let line = |(id, (method, params)): (usize, &(&str, Value))| {
        format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    };
    socket.write_all(requests.iter().enumerate().map(line).collect::<String>().as_bytes())?;
    let lines = BufReader::new(socket).lines().take(requests.len());
    let mut answers = lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<Vec<Value>>>()?;
    answers.sort_by_key(|answer| answer["id"].as_u64());
    Ok(answers)
}

#[test]
fn of_two_copies_that_fit_one_by_one_the_second_is_refused_at_once() -> Result<()> {
    let small = Small::ext4(160 << 20)?;
    let agent = with_sr(&small.point())?;
    let source = full_file(&agent, "source", 48 * MIB)?;
    let source = agent.ok(&["vdi", "import", &text(&source), "--sr", "store", "--name", "source"])?;
    let copy = ("VDI.copy", json!({"vdi": source}));
    let answers = together(&agent, &[copy.clone(), copy.clone()])?;
    let jobs: Vec<&str> = answers.iter().filter_map(|answer| answer["result"]["id"].as_str()).collect();
    let refused: Vec<&Value> = answers.iter().filter(|answer| answer["error"].is_object()).collect();
    ensure!(jobs.len() == 1 && refused.len() == 1, "{answers:?}");
    let data = &refused[0]["error"]["data"];
    let missing = data["objects"]["bytes_missing"].to_string();
    let missing: u64 = missing.trim_matches('"').parse().with_context(|| format!("{data}"))?;
    ensure!(data["name"] == "no_space" && missing > 0 && missing < 64 << 20, "{data}");
    agent.ok(&["job", "wait", jobs[0]])?;
    // What was held is free again when the copy is gone.
    let copied = agent.json(&["vdi", "list"])?;
    let copied = copied["vdis"].as_array().into_iter().flatten().find(|vdi| vdi["uuid"] != source.as_str());
    let copied = copied.and_then(|vdi| vdi["uuid"].as_str()).context("the copy")?;
    agent.ok(&["vdi", "destroy", copied])?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    agent.ok(&["vdi", "copy", &source])?;
    Recount::of(&agent, &small)?.compare()
}

/// Disks with a base, a snapshot to be deleted, and one that nobody needs; and what the first two read as.
fn prepare(agent: &Agent) -> Result<(String, String, String)> {
    agent.ok(&["coalesce", "pause", "store"])?;
    let disk = create(agent, "disk", "32MiB")?;
    agent.write(&disk, 0, &vec![1; 8 * MIB])?;
    let snapshot = agent.ok(&["vdi", "snapshot", &disk])?;
    agent.write(&disk, 2 * MIB as u64, &vec![2; 4 * MIB])?;
    let other = create(agent, "other", "32MiB")?;
    agent.write(&other, 0, &vec![3; 6 * MIB])?;
    Ok((disk, snapshot, other))
}

/// Fills the file system until no disk can be made. A quiet agent copies its catalog: what the copy before it took may come
/// free after the file system was full.
fn refused_when_full(agent: &Agent, small: &Small) -> Result<()> {
    for attempt in 0..5 {
        small.fill()?;
        let name = format!("late {attempt}");
        let said = agent.catena(&["vdi", "create", "--sr", "store", "--size", "64MiB", "--name", &name])?;
        match said.code {
            5 => return Ok(()),
            0 => {}
            _ => bail!("{said:?}"),
        }
    }
    bail!("disks are made on a full file system")
}

fn full_sr_recovers(small: &Small, merges: bool) -> Result<()> {
    let mut agent = with_sr(&small.point())?;
    let (disk, snapshot, other) = prepare(&agent)?;
    let content = agent.hash(&disk)?;
    refused_when_full(&agent, small)?;

    agent.kill()?;
    agent.launch(None)?;
    ensure!(agent.json(&["sr", "show", "store"])?["state"] == "attached");
    agent.ok(&["vdi", "destroy", &snapshot])?;
    let status = agent.json(&["coalesce", "status", "store"])?;
    if merges {
        // Blocks are shared, so the merge takes none.
        agent.ok(&["coalesce", "resume", "store"])?;
        agent.ok(&["coalesce", "run", "store", "--wait"])?;
        ensure!(agent.json(&["vdi", "show", &disk])?["depth"] == 1, "merged on a full file system");
        ensure!(agent.hash(&disk)? == content);
        small.fill()?;
    }
    agent.ok(&["vdi", "destroy", &other])?;
    agent.kill()?;
    agent.launch(None)?;
    agent.ok(&["coalesce", "resume", "store"])?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    let free = small.figures()?.blocks_available() * small.figures()?.fragment_size();
    ensure!(free >= 6 << 20, "the disk that was deleted gave {free} bytes; before: {status}");
    ensure!(agent.hash(&disk)? == content);
    small.relieve()?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    ensure!(agent.json(&["vdi", "show", &disk])?["depth"] == 1);
    ensure!(agent.hash(&disk)? == content);
    create(&agent, "late", "64MiB")?;
    Recount::of(&agent, small)?.compare()?;
    ensure!(agent.json(&["sr", "check", "store"])?["clean"] == true);
    agent.stop()
}

#[test]
fn a_full_ext4_can_delete_and_comes_back_after_a_crash() -> Result<()> {
    full_sr_recovers(&Small::ext4(96 << 20)?, false)
}

#[test]
fn a_full_xfs_merges_by_sharing_blocks() -> Result<()> {
    full_sr_recovers(&Small::xfs(320 << 20)?, true)
}
