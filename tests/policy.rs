//! The policy of the coalesce worker, through the real programs: what is set is kept and shown, and a merge that runs follows it.
//! Its I/O class is asked of the kernel. Where something has to happen, it is waited for; nothing is measured but the bytes that
//! a rate allows at most.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::Agent;
use jiff::{ToSpan, Zoned};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access, geteuid};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const IDLE: i64 = 3 << 13;
/// What the inner merge of these tests copies.
const PAYLOAD: u64 = 96 * MIB;

/// An agent whose SR `store` has a disk, with an inner merge of [`PAYLOAD`] that begins when the returned snapshot goes.
fn with_merge(rate: &str) -> Result<(Agent, String, String)> {
    merge_of(Agent::start()?, rate)
}

/// The same with this agent.
fn merge_of(agent: Agent, rate: &str) -> Result<(Agent, String, String)> {
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    agent.ok(&["sr", "policy", "store", &format!("coalesce.rate={rate}")])?;
    let disk = agent.ok(&["vdi", "create", "--sr", "store", "--size", "128MiB", "--name", "disk"])?;
    let first = agent.ok(&["vdi", "snapshot", &disk])?;
    let bytes: Vec<u8> = (0..PAYLOAD).map(|at| u8::try_from((at / 512) % 251).unwrap_or(0) + 1).collect();
    agent.write(&disk, 0, &bytes)?;
    agent.ok(&["vdi", "snapshot", &disk])?;
    Ok((agent, disk, first))
}

fn status(agent: &Agent) -> Result<Value> {
    Ok(agent.json(&["coalesce", "status", "store"])?["srs"][0].take())
}

/// Looks again and again until `what` is there.
fn until<T>(agent: &Agent, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "no {what}: {}\n{}", status(agent)?, agent.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a status of which `right` is true.
fn until_status(agent: &Agent, what: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
    until(agent, what, || Ok(Some(status(agent)?).filter(&right)))
}

fn moved(status: &Value) -> u64 {
    status["current"]["bytes_done"].as_u64().unwrap_or(0)
}

/// The workers all of whose threads have this class in the kernel.
fn in_class(agent: &Agent, class: i64) -> Vec<Pid> {
    let all = |pid: &Pid| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut threads =
            threads.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).peekable();
        // SAFETY: ioprio_get takes two integers and touches no memory.
        threads.peek().is_some()
            && threads.all(|id| unsafe { libc::syscall(libc::SYS_ioprio_get, 1, id) } == class)
    };
    agent.processes("catena-datapath").into_iter().filter(all).collect()
}

fn events(agent: &Agent, kind: &str) -> Result<Vec<String>> {
    let document = agent.json(&["event", "list"])?;
    let all = document["events"].as_array().context("events")?;
    let of_kind = all.iter().filter(|event| event["kind"] == kind);
    Ok(of_kind.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

#[test]
fn a_policy_is_checked_kept_and_shown() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    let defaults = json!({"allocation": "thin", "allocation.chunk": 0, "coalesce.enabled": true, "coalesce.io_class": "idle", "coalesce.rate": 0,
        "coalesce.floor": MIB, "coalesce.weight": 100, "coalesce.window": "always"});
    ensure!(agent.json(&["sr", "policy", "store"])?["policy"] == defaults);
    for wrong in
        ["coalesce.speed=1", "coalesce.rate=fast", "coalesce.io_class=realtime", "coalesce.window=22:00"]
    {
        // What is right beside it is not set either.
        let said = agent.catena(&["sr", "policy", "store", "coalesce.enabled=false", wrong])?;
        ensure!(said.code == 2 && said.out.is_empty() && said.err.contains("coalesce."), "{wrong}: {said:?}");
    }
    ensure!(agent.json(&["sr", "policy", "store"])?["policy"] == defaults);
    let text = agent.ok(&["sr", "policy", "store", "coalesce.rate=20MiB", "coalesce.window=22:00-6:00"])?;
    ensure!(text.contains("20971520 (20.0 MiB)") && text.contains("22:00-06:00"), "{text}");
    agent.ok(&["sr", "policy", "store", "coalesce.io_class=best-effort"])?;
    let changes = events(&agent, "policy.changed")?;
    ensure!(changes.len() == 2 && changes[0].contains("coalesce.rate=20971520 (was 0)"), "{changes:?}");
    // Numbers and booleans over the socket, and a restart.
    let values = json!({"sr": "store", "policy": {"coalesce.rate": 1000, "coalesce.enabled": false}});
    let answer = agent.call("SR.set_policy", &values)?.map_err(|error| anyhow::anyhow!("{error}"))?;
    agent.kill()?;
    agent.launch(None)?;
    let wanted = json!({"allocation": "thin", "allocation.chunk": 0, "coalesce.enabled": false, "coalesce.io_class": "best-effort:4", "coalesce.rate": 1000,
        "coalesce.floor": MIB, "coalesce.weight": 100, "coalesce.window": "22:00-06:00"});
    let shown = until(&agent, "attached SR", || {
        let shown = agent.json(&["sr", "show", "store"])?;
        Ok(Some(shown).filter(|shown| shown["state"] == "attached"))
    })?;
    ensure!(answer["policy"] == wanted && shown["policy"] == wanted, "{answer} {shown}");
    ensure!(shown.get("io_class_honoured").is_some(), "{shown}");
    ensure!(shown["io_group"].is_null(), "an agent of a user has no control groups: {shown}");
    agent.stop()
}

#[test]
fn class_and_rate_change_under_a_running_merge() -> Result<()> {
    const RATE: u64 = 4 * MIB;
    let (mut agent, disk, first) = with_merge("4MiB")?;
    let before = agent.hash(&disk)?;
    let begun = Instant::now();
    agent.ok(&["vdi", "destroy", &first])?;
    let running =
        until_status(&agent, "merge in class idle", |now| moved(now) > 0 && now["io_class"] == "idle")?;
    ensure!(in_class(&agent, IDLE).len() == 1, "{running}");
    // Never more than the rate allows, and one batch.
    let paced = until_status(&agent, "8 MiB", |now| moved(now) >= 8 * MIB)?;
    let most = u128::from(RATE) * begun.elapsed().as_millis() / 1000 + u128::from(2 * MIB);
    ensure!(u128::from(moved(&paced)) <= most, "{} of {most}", moved(&paced));

    agent.ok(&["sr", "policy", "store", "coalesce.io_class=best-effort:6"])?;
    until_status(&agent, "merge in the other class", |now| now["io_class"] == "best-effort:6")?;
    ensure!(in_class(&agent, IDLE).is_empty() && in_class(&agent, (2 << 13) | 6).len() == 1);
    ensure!(!status(&agent)?["current"].is_null(), "the merge went on");

    agent.ok(&["sr", "policy", "store", "coalesce.rate=0"])?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    let jobs = agent.json(&["job", "list"])?["jobs"].take();
    let merges: Vec<_> =
        jobs.as_array().context("jobs")?.iter().filter(|job| job["kind"] == "merge").collect();
    ensure!(
        merges.len() == 1 && merges[0]["state"] == "done" && merges[0]["bytes_done"] == PAYLOAD,
        "{jobs}"
    );
    ensure!(agent.hash(&disk)? == before);
    agent.stop()
}

#[test]
fn a_merge_stops_when_its_hours_end_and_goes_on_where_it_was() -> Result<()> {
    let (mut agent, disk, first) = with_merge("8MiB")?;
    let before = agent.hash(&disk)?;
    agent.ok(&["vdi", "destroy", &first])?;
    until_status(&agent, "progress", |now| moved(now) >= 16 * MIB)?;
    let now = Zoned::now();
    let at =
        |hours: i64| -> Result<String> { Ok(now.checked_add(hours.hours())?.strftime("%H:%M").to_string()) };
    agent.ok(&["sr", "policy", "store", &format!("coalesce.window={}-{}", at(2)?, at(3)?)])?;
    let closed = until_status(&agent, "closed window", |now| now["current"].is_null())?;
    ensure!(closed["state"] == "blocked" && closed["reason"]["code"] == "window", "{closed}");
    ensure!(agent.catena(&["coalesce", "run", "store", "--wait"])?.code == 75);
    // What nothing needs any more goes at any hour.
    let spare = agent.ok(&["vdi", "create", "--sr", "store", "--size", "2MiB", "--name", "spare"])?;
    let container =
        agent.json(&["vdi", "show", &spare])?["container"].as_str().context("container")?.to_owned();
    ensure!(agent.path("sr").join(&container).exists(), "{container}");
    agent.ok(&["vdi", "destroy", &spare])?;
    until(&agent, "removal", || Ok((!agent.path("sr").join(&container).exists()).then_some(())))?;
    agent.ok(&["sr", "policy", "store", "coalesce.enabled=false"])?;
    // The job of the removal ends a moment after the file has gone.
    let off = until_status(&agent, "end of the removal", |now| now["current"].is_null())?;
    ensure!(off["state"] == "paused" && off["reason"]["code"] == "disabled", "{off}");
    ensure!(off["queue"].as_array().is_some_and(|queue| queue.len() == 1), "{off}");

    let open = format!("coalesce.window={}-{}", at(-1)?, at(1)?);
    agent.ok(&["sr", "policy", "store", "coalesce.enabled=true", "coalesce.rate=0", &open])?;
    agent.ok(&["coalesce", "run", "store", "--wait"])?;
    let jobs = agent.json(&["job", "list"])?["jobs"].take();
    let merges: Vec<_> =
        jobs.as_array().context("jobs")?.iter().filter(|job| job["kind"] == "merge").collect();
    ensure!(merges.len() == 1 && merges[0]["state"] == "done", "{jobs}");
    // It was taken up at its cursor, so there was less to do.
    let rest = merges[0]["bytes_total"].as_u64().context("a total")?;
    ensure!(rest > 0 && rest <= PAYLOAD - 16 * MIB, "{jobs}");
    ensure!(agent.hash(&disk)? == before);
    agent.stop()
}

#[test]
fn a_pause_ends_by_itself_also_over_a_restart() -> Result<()> {
    let (mut agent, _, first) = with_merge("0")?;
    let said = agent.catena(&["coalesce", "pause", "store", "--until", "2020-01-01T00:00:00Z"])?;
    ensure!(said.code == 2, "{said:?}");
    let end = Zoned::now().checked_add(8.seconds())?.timestamp();
    agent.ok(&["coalesce", "pause", "store", "--until", &end.to_string()])?;
    agent.ok(&["vdi", "destroy", &first])?;
    let paused = status(&agent)?;
    ensure!(paused["state"] == "paused" && paused["paused_until"] == json!(end.to_string()), "{paused}");
    agent.kill()?;
    agent.launch(None)?;
    // The status is answered without the owner, who has to wake by itself.
    until_status(&agent, "end of the pause", |now| now["state"] == "idle" && now["unmerged_images"] == 0)?;
    let resumed = Zoned::now().timestamp();
    ensure!(resumed >= end, "the pause ended too early");
    // Not by the housekeeping of each minute.
    ensure!(resumed.duration_since(end) < jiff::SignedDuration::from_secs(40), "the owner has overslept");
    ensure!(events(&agent, "coalesce.resumed")? == ["the pause is over"]);
    agent.stop()
}

#[test]
fn a_starved_merge_is_raised_until_its_floor_is_met() -> Result<()> {
    let (mut agent, _, first) = with_merge("8MiB")?;
    agent.ok(&["vdi", "destroy", &first])?;
    until_status(&agent, "merge in class idle", |now| now["io_class"] == "idle" && moved(now) > 0)?;
    let mover = *in_class(&agent, IDLE).first().context("a mover in class idle")?;
    // What a guest that leaves nothing to others would do.
    kill(mover, Signal::SIGSTOP)?;
    let starved = until(&agent, "starving", || Ok(events(&agent, "merge.starved")?.pop()));
    // Also the batch that it is stuck in, which hears of nothing.
    let raised = in_class(&agent, (2 << 13) | 7);
    kill(mover, Signal::SIGCONT)?;
    ensure!(starved?.contains("best-effort:7") && raised == [mover], "{raised:?}");
    until(&agent, "recovery", || Ok(events(&agent, "merge.recovered")?.pop()))?;
    until(&agent, "mover in class idle", || Ok(in_class(&agent, IDLE).contains(&mover).then_some(())))?;
    agent.ok(&["sr", "policy", "store", "coalesce.rate=0"])?;
    until_status(&agent, "end of the merge", |now| now["unmerged_images"] == 0 && now["current"].is_null())?;
    agent.stop()
}

#[test]
fn a_merge_is_in_the_control_group_that_is_shown() -> Result<()> {
    let mut agent = Agent::stopped()?;
    if geteuid().is_root() {
        agent.launch_as_service()?;
    } else {
        agent.launch(None)?;
    }
    let (mut agent, _, first) = merge_of(agent, "4MiB")?;
    agent.ok(&["sr", "policy", "store", "coalesce.weight=33"])?;
    agent.ok(&["vdi", "destroy", &first])?;
    until_status(&agent, "merge", |now| moved(now) > 0)?;
    let shown = agent.json(&["sr", "show", "store"])?;
    let name = format!("catena-merge-{}", shown["uuid"].as_str().context("uuid")?);
    let in_group = |pid: &Pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| text.lines().any(|line| line.ends_with(&name)))
    };
    let movers = agent.processes("catena-datapath").iter().filter(|pid| in_group(pid)).count();
    // Only the system knows whether there can be one; where there cannot, nobody is told that there is.
    let there = !shown["io_group"].is_null();
    let blkio = Path::new("/sys/fs/cgroup/blkio");
    let must = geteuid().is_root() && access(blkio, AccessFlags::W_OK).is_ok();
    ensure!(there || !must, "{shown}\n{}", agent.log());
    ensure!(movers == usize::from(there) && (shown["io_weight"] == 33) == there, "{movers} of {shown}");
    agent.ok(&["sr", "policy", "store", "coalesce.weight=44", "coalesce.rate=0"])?;
    ensure!((agent.json(&["sr", "show", "store"])?["io_weight"] == 44) == there);
    agent.stop()?;
    ensure!(!blkio.join(&name).exists(), "the group is left");
    Ok(())
}

#[test]
fn a_mover_that_stands_still_holds_nobody_up() -> Result<()> {
    let (mut agent, _, first) = with_merge("4MiB")?;
    agent.ok(&["vdi", "destroy", &first])?;
    until_status(&agent, "merge in class idle", |now| now["io_class"] == "idle" && moved(now) > 0)?;
    let mover = *in_class(&agent, IDLE).first().context("a mover in class idle")?;
    kill(mover, Signal::SIGSTOP)?;
    // More than its socket holds, and it reads none of them.
    let all: Result<()> = (1..=1000).try_for_each(|rate| {
        let params = json!({"sr": "store", "policy": {"coalesce.rate": rate * MIB}});
        agent.call("SR.set_policy", &params)?.map(drop).map_err(|error| anyhow::anyhow!("{error}"))
    });
    kill(mover, Signal::SIGCONT)?;
    all?;
    until_status(&agent, "end of the merge", |now| now["unmerged_images"] == 0 && now["current"].is_null())?;
    agent.stop()
}
