//! Limits of a served disk, on the real process. Nothing here looks at a clock: a limit of one byte a second, once used up, holds
//! for longer than any test runs.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::nbd::{Client, FLUSH, READ, WRITE};
use harness::serving::Served;
use harness::{Agent, socket_of, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

const MIB: u32 = 1 << 20;

#[test]
fn a_limit_holds_back_what_moves_bytes_and_lets_go_when_it_is_raised() -> Result<()> {
    let (_agent, mut served) = disk()?;
    served.start(&[])?;
    let (mut one, mut other) = (Client::connect(&served.socket())?, Client::connect(&served.socket())?);
    served.ask(&limits(1))?;

    // The first one passes, however large it is; then nobody's do, on no connection.
    ensure!(one.read(0, MIB)?.is_ok());
    for _ in 0..3 {
        one.send(READ, 0, 0, 512, &[])?;
    }
    let mut writer = Client::connect(&served.socket())?;
    // Short enough for a socket, as nobody takes it in.
    writer.send(WRITE, 0, 0, 4096, &[7; 4096])?;
    for _ in 0..100 {
        ensure!(other.ask(FLUSH, 0, 0, 0)? == 0, "a flush was refused");
    }
    let stats = stats(&served)?;
    ensure!(stats["read"]["count"] == 1 && stats["write"]["count"] == 0, "more was served: {stats}");
    ensure!(stats["queue_depth"] == 0, "what waits for a limit does not wait for the storage: {stats}");

    served.ask(&limits(0))?;
    for _ in 0..3 {
        ensure!(one.receive()?.error == 0);
        one.stream().read_exact(&mut [0; 512])?;
    }
    ensure!(writer.receive()?.error == 0);
    ensure!(other.read(0, 4)? == Ok(vec![7; 4]));
    served.stop()
}

#[test]
fn figures_tell_what_was_served_and_how_long_it_took() -> Result<()> {
    let (_agent, mut served) = disk()?;
    served.start(&[])?;
    let mut client = Client::connect(&served.socket())?;
    for nth in 0..3 {
        ensure!(client.write(nth * 4096, &[1; 4096], 0)? == 0);
    }
    ensure!(client.read(0, MIB)?.is_ok());
    ensure!(client.read(client.size, 1)?.is_err(), "a read beyond the end");
    ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
    let stats = stats(&served)?;
    for (kind, count, bytes) in [("read", 1, MIB), ("write", 3, 3 * 4096), ("flush", 1, 0)] {
        let told = &stats[kind];
        ensure!(told["count"] == count && told["bytes"] == bytes && told["failed"] == 0, "{kind}: {told}");
        let latency = told["latency"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        ensure!(latency.sum::<u64>() == count, "{kind}: {told}");
    }
    ensure!(stats["connections"] == 1, "{stats}");
    served.stop()
}

#[test]
fn an_attached_disk_keeps_to_its_limits_whoever_serves_it() -> Result<()> {
    let agent = Agent::start()?;
    let location = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &location])?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "16MiB", "--name", "disk"])?;
    agent.ok(&["vdi", "set", "disk", "qos.bytes=1", "qos.io_class=idle"])?;
    let before = agent.json(&["vdi", "show", "disk"])?;
    for wrong in ["qos.iops=many", "qos.bytes=1MB", "qos.speed=1", "qos.io_class=realtime"] {
        let said = agent.catena(&["vdi", "set", "disk", "name_label=other", wrong])?;
        ensure!(said.code == 2, "{wrong}: {said:?}");
    }
    ensure!(agent.json(&["vdi", "show", "disk"])? == before, "what was refused changed something");

    // As it is attached, and again with a successor, which only the catalog can tell.
    let uri = agent.ok(&["vdi", "attach", "disk"])?;
    let socket = &socket_of(&uri)?;
    let mut client = held_back(&agent, socket)?;
    let first = serving(&agent)?.context("figures")?["pid"].as_i64().context("a pid")?;
    ensure!(io_class(first)? == 3 << 13, "not idle");
    kill(Pid::from_raw(first.try_into()?), Signal::SIGKILL)?;
    ensure!(client.receive().is_err());
    wait_until("another process serves the disk", || {
        Ok(serving(&agent)?.is_some_and(|figures| figures["pid"] != first))
    })?;
    let mut client = held_back(&agent, socket)?;

    // Another limit is felt at once, and so is none.
    agent.ok(&["vdi", "set", "disk", "qos.bytes=", "qos.io_class="])?;
    ensure!(client.receive()?.error == 0);
    client.stream().read_exact(&mut [0; 512])?;
    ensure!(client.read(0, MIB)?.is_ok());
    let second = serving(&agent)?.context("figures")?["pid"].as_i64().context("a pid")?;
    ensure!(io_class(second)? == (2 << 13) + 4, "still idle");
    agent.ok(&["vdi", "detach", "disk"])?;
    Ok(())
}

/// A client that has used up the limit of a byte a second, and waits for one more read.
fn held_back(agent: &Agent, socket: &Path) -> Result<Client> {
    let (mut client, mut other) = (Client::connect(socket)?, Client::connect(socket)?);
    ensure!(client.read(0, MIB)?.is_ok());
    client.send(READ, 0, 0, 512, &[])?;
    for _ in 0..100 {
        ensure!(other.ask(FLUSH, 0, 0, 0)? == 0, "a flush was refused");
    }
    let figures = serving(agent)?.context("figures")?;
    ensure!(figures["read"]["count"] == 1, "more was served: {figures}");
    Ok(client)
}

/// How the disk is served, if its process could be asked.
fn serving(agent: &Agent) -> Result<Option<Value>> {
    let mut record = agent.json(&["vdi", "show", "disk"])?;
    Ok(Some(record["serving"].take()).filter(|figures| !figures.is_null()))
}

/// The kernel's number for the I/O class of a process.
fn io_class(pid: i64) -> Result<i64> {
    // SAFETY: ioprio_get takes two integers and touches no memory; 1 means a process.
    let class = unsafe { nix::libc::syscall(nix::libc::SYS_ioprio_get, 1, pid) };
    Ok(nix::errno::Errno::result(class)?)
}

/// A small disk that nobody serves yet, and the agent whose home it is in.
fn disk() -> Result<(Agent, Served)> {
    let mut agent = Agent::start()?;
    let directory = agent.path("sr");
    let location = directory.to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &location])?;
    let vdi = agent.ok(&["vdi", "create", "--sr", "disks", "--size", "16MiB", "--name", "disk"])?;
    let served = Served::new(&agent, &directory, &vdi)?;
    agent.stop()?;
    Ok((agent, served))
}

/// So many bytes a second; 0: no limit.
fn limits(bytes: u64) -> Value {
    json!({"ask": "limit", "iops": 0, "bytes": bytes, "iops_burst": 0, "bytes_burst": 0, "class": null})
}

fn stats(served: &Served) -> Result<Value> {
    served.ask(&json!({"ask": "stats"}))
}
