//! The storage is full under a disk in use: writes that need room wait and go on when there is some, everything else goes on
//! meanwhile, and the disk can be detached.

mod harness;

use anyhow::{Result, anyhow, ensure};
use harness::nbd::{Client, FLUSH};
use harness::small::Small;
use harness::{Agent, socket_of, wait_until};
use std::path::PathBuf;
use std::thread::{JoinHandle, spawn};

const MIB: u32 = 1 << 20;
/// How many requests write what there is no room for, and how long each is.
const PIECES: u8 = 32;
const PIECE: u32 = 256 << 10;

/// An agent with an SR on a small file system that is full, and an attached disk whose first MiB was written before.
struct Scene {
    agent: Agent,
    mount: Small,
    socket: PathBuf,
    client: Client,
}

impl Scene {
    fn set() -> Result<Self> {
        let agent = Agent::start()?;
        let mount = Small::ext4(48 << 20)?;
        let place = mount.point().to_string_lossy().into_owned();
        agent.ok(&["sr", "create", "--type", "file", "--name", "small", "--location", &place])?;
        agent.ok(&["vdi", "create", "--sr", "small", "--size", "32MiB", "--name", "disk"])?;
        let uri = agent.ok(&["vdi", "attach", "disk"])?;
        let socket = socket_of(&uri)?;
        let mut client = Client::connect(&socket)?;
        ensure!(client.write(0, &[7; 1 << 20], 0)? == 0 && client.ask(FLUSH, 0, 0, 0)? == 0);
        mount.fill()?;
        Ok(Self { agent, mount, socket, client })
    }

    /// Somebody who writes where nothing was written; comes back with the first error.
    fn writer(&self) -> Result<JoinHandle<Result<u32>>> {
        let mut client = Client::connect(&self.socket)?;
        Ok(spawn(move || {
            for piece in 0..PIECES {
                let error = client.write(place(piece), &pattern(piece), 0)?;
                if error != 0 {
                    return Ok(error);
                }
            }
            Ok(0)
        }))
    }

    fn event(&self, kind: &str) -> Result<()> {
        wait_until(kind, || {
            let events = self.agent.json(&["event", "list"])?;
            Ok(events["events"].as_array().into_iter().flatten().any(|event| event["kind"] == kind))
        })
    }
}

fn place(piece: u8) -> u64 {
    u64::from(8 * MIB + u32::from(piece) * PIECE)
}

fn pattern(piece: u8) -> Vec<u8> {
    vec![piece + 1; 256 << 10]
}

#[test]
fn writes_wait_for_room_and_go_on() -> Result<()> {
    let mut scene = Scene::set()?;
    let writer = scene.writer()?;
    scene.event("vdi.storage_full")?;
    // What needs no room does not wait.
    ensure!(scene.client.read(0, MIB)?.is_ok_and(|data| data == [7; 1 << 20]));
    ensure!(scene.client.write(4096, &[8; 4096], 0)? == 0 && scene.client.ask(FLUSH, 0, 0, 0)? == 0);
    ensure!(scene.agent.json(&["vdi", "show", "disk"])?["serving"]["queue_depth"] != 0, "a write waits");
    ensure!(!writer.is_finished());

    scene.mount.relieve()?;
    let error = writer.join().map_err(|_| anyhow!("the writer has panicked"))??;
    ensure!(error == 0, "a write has failed with {error}");
    scene.event("vdi.storage_free")?;
    ensure!(scene.client.ask(FLUSH, 0, 0, 0)? == 0);
    scene.agent.ok(&["vdi", "detach", "disk"])?;
    ensure!(scene.agent.read("disk", 4096, 8192)? == [[8; 4096], [7; 4096]].concat());
    for piece in 0..PIECES {
        ensure!(scene.agent.read("disk", place(piece), PIECE.into())? == pattern(piece), "piece {piece}");
    }
    scene.agent.ok(&["sr", "check", "small"])?;
    scene.agent.stop()
}

#[test]
fn a_disk_whose_writes_wait_can_be_detached() -> Result<()> {
    let mut scene = Scene::set()?;
    let writer = scene.writer()?;
    scene.event("vdi.storage_full")?;
    scene.agent.ok(&["vdi", "detach", "disk"])?;
    // It was told that it failed, or that nobody is there any more.
    let outcome = writer.join().map_err(|_| anyhow!("the writer has panicked"))?;
    ensure!(outcome.as_ref().map_or(true, |error| *error != 0), "a write without room was acknowledged");
    ensure!(scene.agent.served().is_empty(), "the process has ended");
    let log = scene.agent.log();
    ensure!(!log.contains("does not stop and is killed"), "it has ended in order: {log}");
    ensure!(scene.agent.read("disk", 0, MIB.into())? == [7; 1 << 20], "what was there before is there");
    scene.agent.ok(&["sr", "check", "small"])?;
    scene.agent.stop()
}
