//! What an administrator does with repositories and chains, through the real programs: the life of an SR, the limit of a chain,
//! pauses and cancels, and requests that are repeated.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, Said, text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;

/// An agent with one empty SR, and the SR's uuid.
fn with_sr() -> Result<(Agent, String)> {
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    Ok((agent, sr))
}

fn create(agent: &Agent, name: &str, size: &str) -> Result<String> {
    agent.ok(&["vdi", "create", "--sr", "store", "--size", size, "--name", name])
}

/// A refusal with this exit code, and this name in its JSON form.
fn refused(agent: &Agent, arguments: &[&str], code: i32, name: &str) -> Result<Said> {
    let said = agent.catena(arguments)?;
    ensure!(said.code == code && said.out.is_empty(), "{arguments:?}: {said:?}");
    let as_json = agent.catena(&[&["--json"], arguments].concat())?;
    ensure!(as_json.code == code && as_json.err.contains(name), "{arguments:?}: {as_json:?}");
    Ok(said)
}

#[test]
fn an_sr_lives_from_creation_to_destruction() -> Result<()> {
    let (mut agent, sr) = with_sr()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    let vdi = create(&agent, "disk", "4MiB")?;
    agent.write(&vdi, 1000, b"some bytes that cross a sector's border")?;
    refused(
        &agent,
        &["sr", "create", "--type", "file", "--name", "again", "--location", &place],
        4,
        "sr_exists",
    )?;
    refused(&agent, &["sr", "forget", &sr], 4, "sr_in_use")?;
    refused(&agent, &["sr", "destroy", &sr, "--yes"], 4, "sr_not_empty")?;

    // A restart of everything keeps everything.
    agent.stop()?;
    agent.launch(None)?;
    ensure!(agent.read(&vdi, 1000, 10)? == b"some bytes");

    agent.ok(&["sr", "detach", &sr])?;
    let shown = agent.json(&["sr", "show", &sr])?;
    ensure!(shown["state"] == "detached", "{shown}");
    refused(&agent, &["vdi", "create", "--sr", &sr, "--size", "2MiB", "--name", "x"], 3, "sr_unavailable")?;
    agent.stop()?;
    agent.launch(None)?;
    ensure!(
        agent.json(&["sr", "show", &sr])?["state"] == "detached",
        "a detached SR stays detached over a restart"
    );
    agent.ok(&["sr", "forget", &sr])?;
    ensure!(agent.json(&["sr", "list"])?["srs"] == json!([]));

    // What was forgotten is not lost.
    let again = agent.ok(&["sr", "introduce", "--type", "file", "--location", &place])?;
    ensure!(again == sr, "{again} is not {sr}");
    ensure!(agent.read(&vdi, 1000, 10)? == b"some bytes");
    agent.ok(&["vdi", "destroy", &vdi])?;
    agent.run_merges(&sr)?;
    fs::write(agent.path("sr/notes.txt"), "not ours")?;
    agent.ok(&["sr", "destroy", &sr, "--yes"])?;
    let left: Vec<_> = fs::read_dir(agent.path("sr"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["notes.txt"], "{left:?}");
    agent.stop()
}

#[test]
fn the_thirty_first_image_is_refused_and_waiting_helps_where_merging_can() -> Result<()> {
    let (agent, sr) = with_sr()?;
    let disk = create(&agent, "disk", "2MiB")?;
    let mut snapshots = Vec::new();
    for n in 0..29_u8 {
        agent.write(&disk, u64::from(n) * 512, &[n + 1; 512])?;
        snapshots.push(agent.ok(&["vdi", "snapshot", &disk])?);
    }
    ensure!(agent.depth(&disk)? == 30);
    let before = fs::read_dir(agent.path("sr"))?.count();
    let said = refused(&agent, &["vdi", "snapshot", &disk], 6, "chain_too_long")?;
    ensure!(said.err.lines().count() == 2, "a reason and a hint: {}", said.err);
    ensure!(fs::read_dir(agent.path("sr"))?.count() == before, "a refusal leaves nothing");
    // Every base of this chain has a snapshot of its own: no merge can help, and the answer comes at once.
    refused(&agent, &["vdi", "snapshot", &disk, "--wait"], 6, "chain_too_long")?;
    let events = agent.json(&["event", "list"])?.to_string();
    ensure!(events.contains("chain.long"), "warned from 24 on");

    agent.ok(&["coalesce", "pause", &sr])?;
    for snapshot in &snapshots[5..] {
        agent.ok(&["vdi", "destroy", snapshot])?;
    }
    ensure!(agent.depth(&disk)? == 30, "paused");
    refused(&agent, &["vdi", "snapshot", &disk, "--wait"], 6, "chain_too_long")?;
    let status = agent.json(&["coalesce", "status", &sr])?;
    ensure!(
        status["srs"][0]["state"] == "paused" && status["srs"][0]["reason"]["code"] == "paused",
        "{status}"
    );
    agent.ok(&["coalesce", "resume", &sr])?;
    agent.ok(&["vdi", "snapshot", &disk, "--wait"])?;
    agent.run_merges(&sr)?;
    ensure!(
        agent.depth(&disk)? == 7,
        "five snapshots, what became of the rest, and the new leaf: {}",
        agent.depth(&disk)?
    );
    for n in 0..29_u8 {
        ensure!(agent.read(&disk, u64::from(n) * 512, 512)? == vec![n + 1; 512], "sector {n}");
    }
    for (n, snapshot) in (0_u8..).zip(&snapshots[..5]) {
        let here = agent.read(snapshot, u64::from(n) * 512, 1024)?;
        ensure!(here[..512] == [n + 1; 512] && here[512..] == [0; 512], "snapshot {n}");
    }
    agent.is_clean(&sr)?;
    Ok(())
}

#[test]
fn clones_of_a_template_share_one_base() -> Result<()> {
    let (agent, sr) = with_sr()?;
    let disk = create(&agent, "template", "8MiB")?;
    agent.write(&disk, 3 << 20, &[7; 4096])?;
    let made = agent.ok(&["vdi", "clone", &disk, "--count", "40", "--name", "desk"])?;
    let clones: Vec<&str> = made.lines().collect();
    ensure!(clones.len() == 40);
    // The origin's own leaf is empty now: more clones hang from the same base.
    let more = agent.ok(&["vdi", "clone", &disk])?;
    for vdi in [clones[0], clones[39], &more, &disk] {
        ensure!(agent.depth(vdi)? == 2, "{vdi}");
        ensure!(agent.read(vdi, 3 << 20, 4096)? == [7; 4096]);
    }
    agent.write(clones[1], 0, b"mine")?;
    ensure!(agent.read(clones[2], 0, 4)? == [0; 4]);
    let tree = agent.json(&["vdi", "tree", &sr])?;
    ensure!(tree["roots"][0]["children"].as_array().is_some_and(|children| children.len() == 42), "{tree}");
    agent.is_clean(&sr)?;
    Ok(())
}

#[test]
fn a_repeated_request_has_one_effect() -> Result<()> {
    let (mut agent, sr) = with_sr()?;
    let params = json!({"sr": sr, "virtual_size": 2 << 20, "name_label": "once", "request_id": "key-1"});
    let first = agent.call("VDI.create", &params)?.ok().context("created")?;
    ensure!(agent.call("VDI.create", &params)? == Ok(first.clone()));
    agent.kill()?;
    agent.launch(None)?;
    ensure!(agent.call("VDI.create", &params)? == Ok(first.clone()), "also after a crash");
    let vdi = first["uuid"].clone();
    let snapshot = json!({"vdi": vdi, "request_id": "key-2"});
    let one = agent.call("VDI.snapshot", &snapshot)?;
    ensure!(one.is_ok() && agent.call("VDI.snapshot", &snapshot)? == one);
    let destroy = json!({"vdi": vdi, "request_id": "key-3"});
    ensure!(agent.call("VDI.destroy", &destroy)?.is_ok());
    let vdis = agent.json(&["vdi", "list"])?;
    ensure!(vdis["vdis"].as_array().map(Vec::len) == Some(1), "{vdis}");
    Ok(())
}

#[test]
fn a_cancelled_import_leaves_nothing_and_a_long_job_is_seen_at_work() -> Result<()> {
    let (agent, sr) = with_sr()?;
    let source = agent.path("big.raw");
    let mut bytes = vec![0x5a; 64 << 20];
    for (n, byte) in bytes.iter_mut().step_by(4096).enumerate() {
        *byte = u8::try_from(n % 251)?;
    }
    fs::write(&source, &bytes)?;
    let mut child = agent
        .command(&["vdi", "import", &source.to_string_lossy(), "--sr", "store", "--name", "big"])
        .spawn()?;
    let job = loop {
        let jobs = agent.json(&["job", "list"])?;
        let rows = jobs["jobs"].as_array().context("jobs")?;
        if let Some(row) = rows.iter().find(|row| row["kind"] == "import") {
            break row["id"].as_str().context("an id")?.to_owned();
        }
    };
    agent.catena(&["job", "cancel", &job])?;
    child.wait()?;
    let ended = agent.json(&["job", "show", &job])?;
    let vdis = agent.json(&["vdi", "list"])?["vdis"].as_array().map(Vec::len);
    let files =
        fs::read_dir(agent.path("sr"))?.flatten().filter(|entry| entry.file_name() != ".catena").count();
    // The cancel may have come too late; then all of the disk is there. Nothing in between.
    match ended["state"].as_str() {
        Some("cancelled") => ensure!(vdis == Some(0) && files == 0, "{ended}"),
        Some("done") => ensure!(vdis == Some(1) && files == 1, "{ended}"),
        _ => anyhow::bail!("{ended}"),
    }
    agent.is_clean(&sr)?;
    Ok(())
}

/// A directory that is not mounted yet when the agent starts, or goes while the SR's keeper dies. Nobody has to do anything when it is
/// there, and the others do not notice.
#[test]
fn an_sr_whose_directory_comes_back_is_attached_by_itself() -> Result<()> {
    let (mut agent, sr) = with_sr()?;
    let disk = create(&agent, "disk", "4MiB")?;
    agent.write(&disk, 0, b"kept")?;
    agent.ok(&["vdi", "attach", &disk])?;
    let other = text(&agent.path("other"));
    agent.ok(&["sr", "create", "--type", "file", "--name", "other", "--location", &other])?;
    agent.ok(&["vdi", "create", "--sr", "other", "--size", "4MiB", "--name", "twin"])?;
    for start in [true, false] {
        if start {
            agent.kill()?;
        }
        fs::rename(agent.path("sr"), agent.path("away"))?;
        if start {
            agent.launch(None)?;
        } else {
            let keepers =
                agent.call("Agent.stats", &json!({}))?.map_err(|error| anyhow::anyhow!("{error}"))?;
            let keeper = keepers["srs"]
                .as_array()
                .context("SRs")?
                .iter()
                .find(|keeper| keeper["sr"] == sr.as_str())
                .context("a keeper")?;
            let pid = i32::try_from(keeper["keeper_pid"].as_i64().context("its process")?)?;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        let mut shown = Value::Null;
        wait_until("it is missed", || {
            shown = agent.json(&["sr", "show", &sr])?;
            Ok(shown["error"]["hint"].as_str().is_some_and(|hint| hint.contains("tried again")))
        })
        .with_context(|| format!("{shown}"))?;
        ensure!(shown["state"] == "failed" && shown["error"]["retry"] == true, "{shown}");
        agent.ok(&["vdi", "set", "twin", "name_description=by name"])?;
        refused(&agent, &["sr", "attach", &sr], 3, "sr_unavailable")?;
        fs::rename(agent.path("away"), agent.path("sr"))?;
        wait_until("it is back", || Ok(agent.json(&["sr", "show", &sr])?["state"] == "attached"))
            .with_context(|| agent.log())?;
        ensure!(agent.json(&["vdi", "show", &disk])?["attached"] == "rw");
        let events = agent.json(&["event", "list"])?;
        let events = events["events"].as_array().context("events")?;
        let said = events.iter().filter(|event| event["kind"] == "sr.available").count();
        ensure!(said == if start { 1 } else { 2 }, "{events:?}");
    }
    agent.ok(&["vdi", "detach", &disk])?;
    ensure!(agent.read(&disk, 0, 4)? == b"kept");

    // Who does not want it any more is heard.
    agent.stop()?;
    fs::rename(agent.path("sr"), agent.path("away"))?;
    agent.launch(None)?;
    wait_until("it is missed", || Ok(agent.json(&["sr", "show", &sr])?["state"] == "failed"))?;
    agent.ok(&["sr", "detach", &sr])?;
    agent.ok(&["sr", "forget", &sr])?;
    agent.stop()
}

#[test]
fn names_are_resolved_and_ambiguous_ones_refused() -> Result<()> {
    let (agent, _) = with_sr()?;
    let one = create(&agent, "twin", "2MiB")?;
    let two = create(&agent, "twin", "2MiB")?;
    let said = refused(&agent, &["vdi", "show", "twin"], 2, "bad_request")?;
    ensure!(said.err.contains(&one) && said.err.contains(&two), "{}", said.err);
    ensure!(agent.json(&["vdi", "show", &one[..8]])?["uuid"] == Value::String(one.clone()));
    refused(&agent, &["vdi", "show", "nothing"], 3, "vdi_missing")?;
    refused(
        &agent,
        &["vdi", "create", "--sr", "elsewhere", "--size", "2MiB", "--name", "x"],
        3,
        "sr_unavailable",
    )?;
    refused(&agent, &["vdi", "create", "--sr", "store", "--size", "2041GiB", "--name", "x"], 2, "vdi_size")?;
    refused(&agent, &["vdi", "destroy", "twin"], 2, "bad_request")?;
    ensure!(agent.json(&["vdi", "list"])?["vdis"].as_array().map(Vec::len) == Some(2));
    Ok(())
}

#[test]
fn the_agent_stops_and_leaves_no_process() -> Result<()> {
    let (mut agent, _) = with_sr()?;
    create(&agent, "disk", "2MiB")?;
    ensure!(!agent.processes("catena-keeper").is_empty() && !agent.processes("catena-datapath").is_empty());
    agent.stop()?;
    ensure!(!agent.socket().exists(), "the socket is removed");
    agent.launch(None)?;
    ensure!(agent.json(&["vdi", "list"])?["vdis"].as_array().map(Vec::len) == Some(1));
    Ok(())
}
