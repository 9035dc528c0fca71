//! The leaf of a disk that is in use is merged by the process that serves it, while a guest writes all the time: paused,
//! cancelled, interrupted by operations on the chain and by the death of everybody, it costs nothing and comes to its end.

mod harness;

use anyhow::{Context, Result, anyhow, ensure};
use harness::guest::Guest;
use harness::{Agent, seed, wait_for_end, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SIZE: usize = 64 << 20;

/// An agent with one SR and a disk in it that is attached, and somebody who uses it.
struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
    guest: Mutex<Guest>,
    /// The guest is to let go for a moment.
    wanted: AtomicBool,
    over: AtomicBool,
}

impl Scene {
    fn set(name: &str) -> Result<Self> {
        let agent = Agent::start()?;
        let place = agent.path("sr").to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "disk"])?;
        let uri = agent.ok(&["vdi", "attach", &disk])?;
        let guest = Mutex::new(Guest::new(&uri, SIZE, seed(name) | 1)?);
        Ok(Self { agent, sr, disk, guest, wanted: AtomicBool::new(false), over: AtomicBool::new(false) })
    }

    /// Does something while the guest uses the disk; both must go well.
    fn in_use(&mut self, act: impl FnOnce(&mut Agent, &Table<'_>) -> Result<()>) -> Result<()> {
        let Self { agent, sr, disk, guest, wanted, over } = self;
        let table = Table { sr, disk, guest, wanted };
        std::thread::scope(|scope| {
            let using = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if table.wanted.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    } else {
                        table.guest().one()?;
                    }
                }
                Ok(())
            });
            let acted = act(agent, &table);
            over.store(true, Ordering::SeqCst);
            let used: Result<()> = using.join().map_err(|_| anyhow!("the guest has panicked"))?;
            used.context("the guest").and(acted).with_context(|| agent.log())
        })?;
        self.over.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// The disk holds what its guest wrote, as one image, and the SR is in order.
    fn ends_well(self) -> Result<()> {
        let Self { mut agent, sr, disk, guest, .. } = self;
        agent.run_merges(&sr)?;
        agent.ok(&["vdi", "detach", &disk])?;
        agent.run_merges(&sr)?;
        let guest = guest.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(guest.requests > 50, "the guest has worked: {}", guest.requests);
        ensure!(agent.hash(&disk)? == guest.sha256(), "the disk holds something else");
        ensure!(agent.depth(&disk)? == 1);
        agent.is_clean(&sr)?;
        agent.stop()
    }
}

/// What is done to the disk while it is in use.
struct Table<'a> {
    sr: &'a str,
    disk: &'a str,
    guest: &'a Mutex<Guest>,
    wanted: &'a AtomicBool,
}

impl Table<'_> {
    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something while the guest holds still, which gives what the disk holds then.
    fn still<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
        self.wanted.store(true, Ordering::SeqCst);
        let guest = self.guest();
        let outcome = act();
        self.wanted.store(false, Ordering::SeqCst);
        Ok((outcome?, guest.sha256()))
    }

    fn policy(&self, agent: &Agent, rate: &str) -> Result<()> {
        agent.ok(&["sr", "policy", self.sr, &format!("coalesce.rate={rate}")]).map(drop)
    }

    /// Merges what there is, then has the leaf merged so slowly that it does not come to its end; returns when it is being moved.
    fn begin(&self, agent: &Agent) -> Result<()> {
        self.policy(agent, "0")?;
        agent.run_merges(self.sr)?;
        let snapshot = self.leave_something(agent)?;
        self.policy(agent, "1KiB")?;
        agent.ok(&["vdi", "destroy", &snapshot])?;
        self.is_moving(agent)
    }

    /// A leaf that owns a lot above what a snapshot holds: more than is moved at once as often as it is begun anew here.
    fn leave_something(&self, agent: &Agent) -> Result<String> {
        let snapshot = agent.ok(&["vdi", "snapshot", self.disk, "--name", "passing"])?;
        let written = self.guest().requests + 500;
        wait_until("the guest goes on", || Ok(self.guest().requests >= written))?;
        Ok(snapshot)
    }

    fn is_moving(&self, agent: &Agent) -> Result<()> {
        let mut last = Value::Null;
        wait_until("the leaf is being moved", || {
            // The front may be waiting for a keeper.
            let Ok(Ok(status)) = agent.call("Coalesce.status", &json!({"sr": self.sr})) else {
                return Ok(false);
            };
            last = status["srs"][0]["current"].clone();
            Ok(last["kind"] == "leaf_merge"
                && last["phase"] == "moving"
                && last["bytes_total"].as_u64() > Some(0))
        })
        .with_context(|| format!("{last}"))
    }

    fn merged_to(&self, agent: &Agent, images: u64) -> Result<()> {
        self.policy(agent, "0")?;
        agent.run_merges(self.sr)?;
        let depth = agent.depth(self.disk)?;
        ensure!(depth == images, "the chain has {depth} images: {}", agent.log());
        Ok(())
    }

    fn status(&self, agent: &Agent) -> Result<Value> {
        let status = agent.call("Coalesce.status", &json!({"sr": self.sr}))?;
        Ok(status.map_err(|error| anyhow!("{error}"))?["srs"][0].clone())
    }
}

fn files(directory: &Path) -> Result<usize> {
    let files = std::fs::read_dir(directory)?.flatten();
    Ok(files.filter(|entry| entry.file_name().to_string_lossy().ends_with(".vhd")).count())
}

fn kill_served(agent: &Agent) -> Result<()> {
    wait_until("the disk is served", || Ok(agent.served().len() == 1))?;
    kill_all(&agent.served())
}

fn kill_all(pids: &[Pid]) -> Result<()> {
    ensure!(!pids.is_empty(), "nobody is there");
    for pid in pids {
        kill(*pid, Signal::SIGKILL)?;
    }
    wait_for_end(pids)
}

#[test]
fn snapshots_come_and_go_and_one_image_is_left_while_the_guest_writes() -> Result<()> {
    let mut scene = Scene::set("live_leaf")?;
    let first = scene.agent.served();
    scene.in_use(|agent, table| {
        for _ in 0..3 {
            let snapshot = table.leave_something(agent)?;
            agent.ok(&["vdi", "destroy", &snapshot])?;
            table.merged_to(agent, 1)?;
            wait_until("the leaf is removed", || Ok(files(&agent.path("sr"))? == 1))?;
        }
        Ok(())
    })?;
    ensure!(scene.agent.served() == first, "another process serves the disk");
    scene.ends_well()
}

#[test]
fn a_merge_is_paused_cancelled_and_hurried() -> Result<()> {
    let mut scene = Scene::set("live_leaf")?;
    scene.in_use(|agent, table| {
        table.begin(agent)?;
        agent.ok(&["coalesce", "pause", table.sr])?;
        let status = table.status(agent)?;
        ensure!(status["reason"]["code"] == "paused" && status["current"].is_null(), "{status}");
        agent.ok(&["coalesce", "resume", table.sr])?;
        table.is_moving(agent)?;
        let job = table.status(agent)?["current"]["id"].as_str().context("a job")?.to_owned();
        let cancelled = agent.call("Job.cancel", &json!({"job": job}))?;
        ensure!(cancelled.as_ref().is_ok_and(|job| job["state"] == "cancelled"), "{cancelled:?}");
        let status = table.status(agent)?;
        ensure!(status["current"].is_null() && status["reason"]["code"] == "failed", "{status}");
        agent.ok(&["coalesce", "run", table.sr])?;
        table.is_moving(agent)?;
        // A window that is closed, and one that opens.
        let closed = "coalesce.enabled=false";
        agent.ok(&["sr", "policy", table.sr, closed])?;
        ensure!(table.status(agent)?["current"].is_null());
        agent.ok(&["sr", "policy", table.sr, "coalesce.enabled=true"])?;
        table.is_moving(agent)?;
        // The rate of a merge under way.
        table.merged_to(agent, 1)
    })?;
    scene.ends_well()
}

#[test]
fn operations_on_the_chain_end_a_merge_and_it_begins_again() -> Result<()> {
    let mut scene = Scene::set("live_leaf")?;
    let mut taken = Vec::new();
    scene.in_use(|agent, table| {
        table.begin(agent)?;
        let (snapshot, hash) =
            table.still(|| agent.ok(&["vdi", "snapshot", table.disk, "--name", "kept"]))?;
        ensure!(agent.hash(&snapshot)? == hash, "the snapshot is not what the disk was");
        agent.ok(&["vdi", "destroy", &snapshot])?;
        table.begin(agent)?;
        taken.push(table.still(|| agent.ok(&["vdi", "clone", table.disk, "--name", "clone"]))?);
        table.begin(agent)?;
        taken.push(table.still(|| agent.ok(&["vdi", "copy", table.disk, "--name", "copy"]))?);
        table.begin(agent)?;
        let refused = agent.call("VDI.destroy", &json!({"vdi": table.disk}))?;
        ensure!(refused.is_err_and(|error| error["data"]["name"] == "vdi_in_use"));
        table.is_moving(agent)?;
        agent.is_clean(table.sr)?;
        table.is_moving(agent)?;
        // It ends with the attachment, and a worker goes on where it was.
        let ((), _) = table.still(|| {
            agent.ok(&["vdi", "detach", table.disk])?;
            agent.ok(&["vdi", "attach", table.disk]).map(drop)
        })?;
        table.is_moving(agent)?;
        table.merged_to(agent, 2)
    })?;
    for (vdi, hash) in &taken {
        ensure!(scene.agent.hash(vdi)? == *hash, "{vdi} is not what the disk was at that instant");
        scene.agent.ok(&["vdi", "destroy", vdi])?;
    }
    scene.ends_well()
}

#[test]
fn whoever_dies_the_merge_comes_to_its_end() -> Result<()> {
    let mut scene = Scene::set("live_leaf")?;
    scene.in_use(|agent, table| {
        table.begin(agent)?;
        kill_served(agent)?;
        table.is_moving(agent)?;
        kill_all(&agent.processes("catena-keeper"))?;
        table.is_moving(agent)?;
        agent.kill()?;
        agent.launch(None)?;
        table.is_moving(agent)?;
        // All of them.
        agent.kill()?;
        kill_served(agent)?;
        agent.launch(None)?;
        table.is_moving(agent)?;
        // A keeper finds a merge that waits, with a leaf that somebody has locked.
        agent.ok(&["coalesce", "pause", table.sr])?;
        kill_all(&agent.processes("catena-keeper"))?;
        wait_until("the SR is back", || {
            let resumed = agent.call("Coalesce.resume", &json!({"sr": table.sr}))?;
            Ok(resumed.is_ok())
        })?;
        table.is_moving(agent)?;
        // Dead, and paused before anybody has noticed.
        agent.ok(&["coalesce", "pause", table.sr])?;
        kill_served(agent)?;
        agent.ok(&["coalesce", "resume", table.sr])?;
        table.is_moving(agent)?;
        kill_served(agent)?;
        let snapshot = agent.ok(&["vdi", "snapshot", table.disk, "--name", "over the dead"])?;
        agent.ok(&["vdi", "destroy", &snapshot])?;
        table.merged_to(agent, 1)
    })?;
    scene.ends_well()
}
