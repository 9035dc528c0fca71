//! A guest works on a served disk that is snapshotted, merged and made larger, while front, keeper and datapath are killed: it
//! notices nothing but the new size, what it wrote is there, and its file system is in order.

#[path = "../harness/mod.rs"]
mod harness;
mod machine;

use anyhow::{Context, Result, ensure};
use harness::{Agent, nightly, peer, socket_of, wait_until};
use machine::{Machine, root_image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;

/// How many snapshots are taken.
fn snapshots() -> usize {
    if nightly() { 60 } else { 20 }
}
/// Snapshots that are left standing while newer ones are taken.
const STANDING: usize = 3;

#[test]
fn a_guest_notices_nothing() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    let scratch = agent.path("guest");
    fs::create_dir(&scratch)?;
    let image = root_image(&scratch, "64M")?.to_string_lossy().into_owned();
    let vdi = agent.ok(&["vdi", "import", &image, "--sr", "store", "--name", "root", "--format", "raw"])?;
    let socket = attach(&agent)?;
    let mut guest = Machine::boot(&scratch, &socket)?;

    let mut standing = VecDeque::new();
    let count = snapshots();
    for number in 1..=count {
        guest.rounds(1)?;
        standing.push_back(agent.ok(&["vdi", "snapshot", "root", "--name", &format!("s{number}")])?);
        if standing.len() > STANDING {
            let oldest = standing.pop_front().context("a snapshot")?;
            agent.ok(&["vdi", "destroy", &oldest])?;
            agent.ok(&["coalesce", "run", "store"])?;
        }
        match number {
            5 => {
                agent.kill()?;
                agent.launch(None)?;
            }
            10 => kill(*agent.processes("catena-keeper").first().context("a keeper")?, Signal::SIGKILL)?,
            15 => kill(datapath(&socket)?, Signal::SIGKILL)?,
            _ => {}
        }
        attached_again(&agent)?;
    }
    guest.rounds(2)?;
    for snapshot in standing {
        agent.ok(&["vdi", "destroy", &snapshot])?;
    }
    agent.run_merges("store")?;
    ensure!(agent.depth("root")? == 1, "all is merged below the guest, its own leaf too");
    agent.ok(&["vdi", "resize", "root", "96MiB"])?;
    guest.sees_size(&socket, 96 << 20)?;
    guest.rounds(2)?;
    let rounds = guest.shut_down()?;
    ensure!(rounds > count as u64, "the guest has worked: {rounds} rounds");

    agent.ok(&["vdi", "detach", "root"])?;
    let before = agent.hash(&vdi)?;
    agent.run_merges("store")?;
    ensure!(agent.depth("root")? == 1 && agent.hash(&vdi)? == before, "the disk is as before");
    let exported = agent.path("exported.raw").to_string_lossy().into_owned();
    agent.ok(&["vdi", "export", "root", &exported, "--format", "raw"])?;
    peer("e2fsprogs", "e2fsck", &["-fn", &exported])?;
    agent.ok(&["sr", "check", "store"])?;
    agent.stop()
}

fn attach(agent: &Agent) -> Result<PathBuf> {
    let uri = agent.ok(&["vdi", "attach", "root"])?;
    socket_of(&uri)
}

/// The process that serves the disk behind a socket.
fn datapath(socket: &std::path::Path) -> Result<Pid> {
    let state: Value = serde_json::from_str(&fs::read_to_string(socket.with_file_name("state.json"))?)?;
    Ok(Pid::from_raw(i32::try_from(state["pid"].as_i64().context("a process")?)?))
}

/// After a process was killed: the SR answers again, and its disk is served.
fn attached_again(agent: &Agent) -> Result<()> {
    wait_until("the disk is served again", || {
        let said = agent.catena(&["--json", "vdi", "show", "root"])?;
        Ok(said.code == 0 && serde_json::from_str::<Value>(&said.out)?["attached"] == "rw")
    })
}
