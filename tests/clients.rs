//! Clients that ask twice, and clients that go away: one effect, nothing half done, nothing held.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, wait_until};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Methods that take a key only because they share their parameters with others: they change nothing.
const LOOKS: &[&str] = &["SR.get_record", "SR.stat", "VDI.get_record"];

fn with_sr() -> Result<(Agent, String)> {
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    Ok((agent, sr))
}

/// Asks twice with the same key: the same answer (the same job, for a job), and no effect of the second.
fn twice(agent: &Agent, tried: &mut BTreeSet<String>, method: &str, mut params: Value) -> Result<Value> {
    params["request_id"] = json!(format!("the key of {method}"));
    let first = ask(agent, method, &params)?;
    let after_first = picture(agent)?;
    let second = ask(agent, method, &params)?;
    ensure!(first == second, "{method}: first {first}, then {second}");
    let after_second = picture(agent)?;
    ensure!(after_first == after_second, "{method} had two effects: {after_first:#}\n{after_second:#}");
    tried.insert(method.to_owned());
    Ok(first)
}

/// One request; a job is waited for and stands for its id and its result.
fn ask(agent: &Agent, method: &str, params: &Value) -> Result<Value> {
    let file =
        File::options().create(true).truncate(false).read(true).write(true).open(agent.path("stream.raw"))?;
    let fds = if params["fd"].is_u64() { vec![file.as_fd()] } else { Vec::new() };
    let answer = agent.call_with(method, params, &fds)?;
    let answer = answer.map_err(|error| anyhow::anyhow!("{method}: {error}"))?;
    if !answer["id"].is_string() || !answer["phase"].is_string() {
        return Ok(answer);
    }
    let job = agent.call("Job.wait", &json!({"job": answer["id"]}))?;
    let job = job.map_err(|error| anyhow::anyhow!("{method}: {error}"))?;
    ensure!(job["state"] == "done", "{method}: {job}");
    Ok(json!({"job": job["id"], "result": job["result"]}))
}

/// What lists say of everything that a request may change; the worker's own jobs aside.
fn picture(agent: &Agent) -> Result<Value> {
    let mut all = json!({});
    for (words, array, state) in [
        (["sr", "list"], "srs", "state"),
        (["vdi", "list"], "vdis", "virtual_size"),
        (["job", "list"], "jobs", "kind"),
    ] {
        let list = agent.json(&words)?;
        let rows = list[array].as_array().context("a list")?.iter();
        let rows =
            rows.filter(|row| !["garbage", "merge", "leaf_merge"].iter().any(|kind| row["kind"] == *kind));
        let mut rows: Vec<String> =
            rows.map(|row| format!("{} {} {}", row["uuid"], row["id"], row[state])).collect();
        rows.sort();
        all[array] = json!(rows);
    }
    Ok(all)
}

#[test]
fn a_request_that_is_repeated_has_one_effect_whatever_it_asks() -> Result<()> {
    let (agent, sr) = with_sr()?;
    fs::write(agent.path("stream.raw"), vec![5; 2 << 20])?;
    let mut tried = BTreeSet::new();
    let create = json!({"sr": sr, "virtual_size": 4 << 20, "name_label": "disk"});
    let disk = twice(&agent, &mut tried, "VDI.create", create)?["uuid"].clone();
    let snapshot = twice(&agent, &mut tried, "VDI.snapshot", json!({"vdi": disk}))?["vdis"][0].clone();
    twice(&agent, &mut tried, "VDI.set", json!({"vdi": disk, "name_label": "named"}))?;
    twice(&agent, &mut tried, "VDI.revert", json!({"vdi": disk, "snapshot": snapshot}))?;
    twice(&agent, &mut tried, "VDI.resize", json!({"vdi": disk, "virtual_size": 8 << 20}))?;
    twice(&agent, &mut tried, "VDI.copy", json!({"vdi": disk, "name_label": "copied"}))?;
    twice(&agent, &mut tried, "VDI.clone", json!({"vdi": disk, "count": 2}))?;
    twice(&agent, &mut tried, "VDI.import", json!({"sr": sr, "format": "raw", "name_label": "in", "fd": 0}))?;
    twice(&agent, &mut tried, "VDI.export", json!({"vdi": disk, "format": "raw", "fd": 0}))?;
    // The second of two readers' attachments, and its end, are counted once too.
    for number in 1..=2 {
        let params = json!({"vdi": disk, "read_only": true, "request_id": format!("reader {number}")});
        ensure!(ask(&agent, "VDI.attach", &params)? == ask(&agent, "VDI.attach", &params)?);
    }
    ensure!(ask(&agent, "VDI.detach", &json!({"vdi": disk, "request_id": "end 1"}))? == json!({}));
    ask(&agent, "VDI.detach", &json!({"vdi": disk, "request_id": "end 1"}))?;
    ask(&agent, "VDI.detach", &json!({"vdi": disk}))?;
    twice(&agent, &mut tried, "VDI.attach", json!({"vdi": disk}))?;
    twice(&agent, &mut tried, "VDI.detach", json!({"vdi": disk}))?;
    twice(&agent, &mut tried, "VDI.destroy", json!({"vdi": disk}))?;
    let policy = json!({"sr": sr, "policy": {"coalesce.rate": "100MiB"}});
    twice(&agent, &mut tried, "SR.set_policy", policy)?;
    twice(&agent, &mut tried, "SR.scan", json!({"sr": sr}))?;
    twice(&agent, &mut tried, "SR.check", json!({"sr": sr}))?;
    twice(&agent, &mut tried, "SR.trim", json!({"sr": sr}))?;
    twice(&agent, &mut tried, "SR.grow", json!({"sr": sr}))?;
    twice(&agent, &mut tried, "SR.detach", json!({"sr": sr}))?;
    twice(&agent, &mut tried, "SR.attach", json!({"sr": sr}))?;
    agent.ok(&["sr", "detach", &sr])?;
    twice(&agent, &mut tried, "SR.forget", json!({"sr": sr}))?;
    let old = json!({"type": "file", "location": agent.path("sr")});
    twice(&agent, &mut tried, "SR.introduce", old)?;
    let new = json!({"type": "file", "name_label": "new", "location": agent.path("new")});
    let new = twice(&agent, &mut tried, "SR.create", new)?["uuid"].clone();
    twice(&agent, &mut tried, "SR.destroy", json!({"sr": new}))?;
    // Another key is another request.
    let refused = agent.call("SR.destroy", &json!({"sr": new, "request_id": "another"}))?;
    ensure!(refused.is_err(), "{refused:?}");

    let schema = agent.call("Agent.schema", &json!({}))?.ok().context("Agent.schema")?;
    for (method, entry) in schema["methods"].as_object().context("methods")? {
        let name = entry["params"]["$ref"].as_str().and_then(|to| to.strip_prefix("#/$defs/"));
        let keyed = name.is_some_and(|name| schema["$defs"][name]["properties"]["request_id"].is_object());
        ensure!(
            !keyed || LOOKS.contains(&method.as_str()) || tried.contains(method),
            "{method} is not tried here"
        );
    }
    Ok(())
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_its_request_has_asked_nothing() -> Result<()> {
    let (agent, sr) = with_sr()?;
    let path = agent.path("left.raw");
    fs::write(&path, vec![1; 2 << 20])?;
    let before = picture(&agent)?;
    let params = json!({"sr": sr, "format": "raw", "name_label": "half", "fd": 0});
    let line = json!({"jsonrpc": "2.0", "id": 1, "method": "VDI.import", "params": params}).to_string();
    let socket = UnixStream::connect(agent.socket())?;
    let file = File::open(&path)?;
    let raw = [file.as_raw_fd()];
    let part = [IoSlice::new(&line.as_bytes()[..line.len() / 2])];
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &part, &rights, MsgFlags::empty(), None)?;
    let front = agent.pid().context("the agent runs")?.as_raw();
    wait_until("the front has taken the descriptor", || holds(front, &path))?;
    drop(socket);
    wait_until("the front has let go of it", || Ok(!holds(front, &path)?))?;
    ensure!(picture(&agent)? == before, "no job, no disk");
    Ok(())
}

/// Whether a process has the file open.
fn holds(pid: i32, path: &Path) -> Result<bool> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path)))
}

#[test]
fn a_client_that_goes_away_after_its_request_leaves_a_job_that_ends() -> Result<()> {
    let (agent, sr) = with_sr()?;
    let path = agent.path("in.raw");
    fs::write(&path, vec![1; 6 << 20])?;
    let params = json!({"sr": sr, "format": "raw", "name_label": "whole", "fd": 0, "request_id": "import"});
    let mut line = json!({"jsonrpc": "2.0", "id": 1, "method": "VDI.import", "params": params}).to_string();
    line.push('\n');
    let mut socket = UnixStream::connect(agent.socket())?;
    let raw = [File::open(&path)?];
    let fds = [raw[0].as_raw_fd()];
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(line.as_bytes())],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    ensure!(sent == line.len());
    socket.flush()?;
    drop(socket);
    let import = || -> Result<Option<Value>> {
        let jobs = agent.json(&["job", "list"])?;
        let jobs = jobs["jobs"].as_array().context("jobs")?;
        Ok(jobs.iter().find(|job| job["kind"] == "import").cloned())
    };
    wait_until("the job of the request", || Ok(import()?.is_some_and(|job| job["state"] == "done")))?;
    // Who comes back with the key is told what became of it.
    fs::write(agent.path("stream.raw"), "")?;
    let again = ask(&agent, "VDI.import", &params)?;
    let vdis = agent.json(&["vdi", "list"])?;
    ensure!(
        vdis["vdis"].as_array().map(Vec::len) == Some(1)
            && vdis["vdis"][0]["uuid"] == again["result"]["uuid"]
    );
    let vdi = again["result"]["uuid"].as_str().context("uuid")?;
    ensure!(agent.hash(vdi)? == harness::sha256(&path)?, "the disk is whole");
    Ok(())
}
