//! The real programs under one SR, requests that survive the death of a process, and the comparison with the model.

use crate::dice::Dice;
use crate::disk::{Disk, SECTOR};
use crate::harness::Agent;
use crate::harness::nbd::Client;
use crate::storage::{Scale, Storage};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

/// The longest chain.
const CHAIN_LIMIT: u64 = 30;
/// How long a passing refusal may go on.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Calls that are answered when something has ended, however long that takes.
const WAITING: [&str; 2] = ["Coalesce.run", "Job.wait"];
/// The most bytes that a client reads at once: servers need not give more.
const LARGEST_READ: u64 = 32 << 20;
/// Lines of history that a failure shows.
const TAIL: usize = 60;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// catenad.
    Front,
    /// The keeper of the SR.
    Keeper,
    /// Every worker: the one for small requests and the mover.
    Workers,
    /// One worker.
    Worker(u64),
}

/// A `kill -9` while a request is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strike {
    /// Whom.
    pub(crate) victim: Victim,
    /// How long after the request was sent.
    pub(crate) after: Duration,
}

/// A result, or a refusal.
type Answer = std::result::Result<Value, Value>;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its result.
    Done(Value),
    /// It was refused, and nothing was done.
    Refused(Value),
    /// The process that carried it out is dead.
    Unknown,
}

/// A VDI as the list has it.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The images of its chain.
    pub(crate) depth: u64,
    /// Of which disk it is a snapshot.
    pub(crate) snapshot_of: Option<String>,
}

/// The programs and the model.
pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) sr: String,
    pub(crate) dice: Dice,
    /// The model, by the VDIs' uuids.
    pub(crate) disks: BTreeMap<String, Disk>,
    /// Disks and snapshots made so far.
    pub(crate) numbered: u64,
    /// What of the policy was set.
    pub(crate) policy: Map<String, Value>,
    /// Coalescing is paused.
    pub(crate) paused: bool,
    /// Workers were killed, and no request has met that yet.
    pub(crate) hurt: bool,
    /// The disk that is attached, and its client.
    pub(crate) attached: Option<(String, Client)>,
    /// What was done, latest last.
    pub(crate) history: Vec<String>,
    pub(crate) scale: Scale,
    storage: Box<dyn Storage>,
}

impl World {
    /// A new SR on what `storage` makes for it.
    pub(crate) fn new(seed: u64, storage: impl FnOnce(&Agent) -> Result<Box<dyn Storage>>) -> Result<Self> {
        let agent = Agent::start()?;
        let storage = storage(&agent)?;
        let place = storage.options();
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let sr = agent.ok(&[&["sr", "create", "--name", "model"], &place[..]].concat())?;
        if !storage.policy().is_empty() {
            agent.ok(&[&["sr", "policy", &sr], storage.policy()].concat())?;
        }
        Ok(Self {
            agent,
            sr,
            dice: Dice::new(seed),
            disks: BTreeMap::new(),
            numbered: 0,
            policy: Map::new(),
            paused: false,
            hurt: false,
            attached: None,
            history: Vec::new(),
            scale: storage.scale(),
            storage,
        })
    }

    /// Notes what happens, for the report of a failure.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.history.push(text.into());
    }

    // Requests.

    /// One request. Refusals that pass are waited out; a process is struck down meanwhile if `strike` says so.
    pub(crate) fn request(
        &mut self,
        method: &str,
        params: &Value,
        fds: &[BorrowedFd<'_>],
        strike: Option<Strike>,
    ) -> Result<Outcome> {
        let end = Instant::now() + PATIENCE;
        let mut answer = self.strike_during(method, params, fds, strike)?;
        loop {
            let refusal = match answer {
                Some(Ok(value)) => return Ok(Outcome::Done(value)),
                None => return Ok(Outcome::Unknown),
                Some(Err(refusal)) => refusal,
            };
            let data = &refusal["data"];
            let message = data["message"].as_str().unwrap_or_default();
            if message.contains("the outcome is unknown") {
                return Ok(Outcome::Unknown);
            }
            if data["retry"] != true || method == "Coalesce.run" && data["name"] == "try_again" {
                return Ok(Outcome::Refused(refusal));
            }
            ensure!(Instant::now() < end, "{method} is refused for ever: {refusal}");
            self.note(format!("    {method} again: {message}"));
            if data["name"] == "sr_unavailable" {
                // Keepers that die often are started after pauses; this ends the pause. Its own refusals pass as well.
                drop(self.agent.call("SR.attach", &json!({"sr": self.sr}))?);
            }
            thread::sleep(Duration::from_millis(5));
            rewind(fds)?;
            answer = heard(method, self.agent.call_with(method, params, fds))?;
        }
    }

    /// Sends a request and kills a process soon after.
    fn strike_during(
        &mut self,
        method: &str,
        params: &Value,
        fds: &[BorrowedFd<'_>],
        strike: Option<Strike>,
    ) -> Result<Option<Answer>> {
        let Some(Strike { victim, after }) = strike else {
            return heard(method, self.agent.call_with(method, params, fds));
        };
        let agent = &self.agent;
        let family: Vec<Pid> =
            ["catena-keeper", "catena-datapath"].iter().flat_map(|name| agent.processes(name)).collect();
        let answer = thread::scope(|scope| {
            let call = scope.spawn(|| agent.call_with(method, params, fds));
            thread::sleep(after);
            for pid in targets(agent, victim) {
                // A worker may have ended by itself meanwhile.
                let _ = kill(pid, Signal::SIGKILL);
            }
            call.join().map_err(|_| anyhow!("a call panicked"))
        });
        let answer = heard(method, answer?)?;
        match victim {
            Victim::Front => {
                self.agent.kill()?;
                // The next front meets the keeper of the last one, or not.
                if self.dice.percent(50) {
                    await_end(&family)?;
                }
                self.agent.launch(None)?;
            }
            Victim::Keeper => {}
            Victim::Worker(_) | Victim::Workers => self.hurt = true,
        }
        Ok(answer)
    }

    /// A request that changes nothing, or may be repeated: until it is done.
    pub(crate) fn must(&mut self, method: &str, params: &Value, fds: &[BorrowedFd<'_>]) -> Result<Value> {
        // One that waits for an end was not answered for minutes: it is to be said which, before what hangs is ended without a word.
        let tries = if WAITING.contains(&method) { 4 } else { 20 };
        for _ in 0..tries {
            match self.request(method, params, fds, None)? {
                Outcome::Done(value) => return Ok(value),
                Outcome::Unknown => rewind(fds)?,
                Outcome::Refused(refusal) if self.forgives(&refusal) => rewind(fds)?,
                Outcome::Refused(refusal) => bail!("{method} {params} is refused: {refusal}"),
            }
        }
        bail!("{method} {params} does not succeed")
    }

    /// Whether a refusal is the consequence of a killed worker. Each killing is an excuse for one refusal.
    pub(crate) fn forgives(&mut self, refusal: &Value) -> bool {
        refusal["data"]["name"] == "io_error" && std::mem::take(&mut self.hurt)
    }

    /// Whether a refusal is one for want of room, which is told in bytes; where there is always room it never is.
    pub(crate) fn lacks_room(&mut self, refusal: &Value) -> Result<bool> {
        let data = &refusal["data"];
        let is = self.is_lack(data);
        if is {
            let missing = data["objects"]["bytes_missing"].as_str().and_then(|text| text.parse::<u64>().ok());
            ensure!(missing.is_some_and(|missing| missing > 0), "what is missing? {refusal}");
            self.note("  no room");
        }
        Ok(is)
    }

    /// Whether a failure is one for want of room.
    pub(crate) fn is_lack(&self, failure: &Value) -> bool {
        let is = failure["name"] == "no_space" || failure["name"] == "over_provisioned_attach";
        is && self.storage.is_small()
    }

    // Comparison.

    /// Compares a part of a disk with the model.
    pub(crate) fn compare_range(&mut self, vdi: &str, from: u64, length: u64) -> Result<()> {
        let read = match &mut self.attached {
            Some((attached, client)) if attached == vdi => {
                // A client that was there before the disk grew sees what it was.
                let length = length.min(client.size.saturating_sub(from));
                let mut all = Vec::new();
                while (all.len() as u64) < length {
                    let (at, left) = (from + all.len() as u64, length - all.len() as u64);
                    let read = client.read(at, u32::try_from(left.min(LARGEST_READ))?)?;
                    all.extend(read.map_err(|error| anyhow!("error {error} at {at} of {vdi}"))?);
                }
                all
            }
            _ => self.read_detached(vdi, from, length)?,
        };
        self.compare_bytes(vdi, from, &read)
    }

    fn read_detached(&mut self, vdi: &str, from: u64, length: u64) -> Result<Vec<u8>> {
        let mut file = tempfile::tempfile()?;
        let params = json!({"vdi": vdi, "offset": from, "length": length, "fd": 0});
        self.must("VDI.read", &params, &[file.as_fd()])?;
        // The worker for small requests lives again.
        self.hurt = false;
        let mut read = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut read)?;
        ensure!(read.len() as u64 == length, "VDI.read gave {} bytes of {length}", read.len());
        Ok(read)
    }

    fn compare_bytes(&mut self, vdi: &str, from: u64, read: &[u8]) -> Result<()> {
        let disk = self.disks.get_mut(vdi).context("not in the model")?;
        // The model compares from the beginning of a sector: what is missing there is taken from it.
        let skipped = (SECTOR - from % SECTOR) % SECTOR;
        if skipped < read.len() as u64 {
            let rest = &read[usize::try_from(skipped)?..];
            disk.compare(from + skipped, rest).with_context(|| format!("VDI {vdi}"))?;
        }
        Ok(())
    }

    /// Compares a whole disk with the model.
    pub(crate) fn compare(&mut self, vdi: &str) -> Result<()> {
        let size = self.disks.get(vdi).context("not in the model")?.size;
        self.compare_range(vdi, 0, size)
    }

    /// Compares all of them.
    pub(crate) fn compare_all(&mut self) -> Result<()> {
        let all: Vec<String> = self.disks.keys().cloned().collect();
        all.iter().try_for_each(|vdi| self.compare(vdi))
    }

    /// The VDIs that the agent lists.
    pub(crate) fn list(&mut self) -> Result<BTreeMap<String, Listed>> {
        let document = self.must("VDI.list", &json!({"sr": self.sr}), &[])?;
        let mut listed = BTreeMap::new();
        for row in document["vdis"].as_array().context("no vdis")? {
            let uuid = row["uuid"].as_str().context("no uuid")?.to_owned();
            if let Some(disk) = self.disks.get(&uuid) {
                ensure!(row["virtual_size"] == disk.size, "the size of {uuid}: {row}");
                ensure!(row["is_a_snapshot"] == disk.snapshot, "what {uuid} is: {row}");
            }
            ensure!(row["state"] == "ok" || row["state"] == "mixed", "the state of {uuid}: {row}");
            let snapshot_of = row["snapshot_of"].as_str().map(str::to_owned);
            let depth = row["depth"].as_u64().context("no depth")?;
            listed.insert(uuid, Listed { depth, snapshot_of });
        }
        Ok(listed)
    }

    /// What holds at any time: the same VDIs in list, tree and model, none with children, no chain too long.
    pub(crate) fn check_shape(&mut self) -> Result<()> {
        let model: BTreeSet<String> = self.disks.keys().cloned().collect();
        let listed: BTreeSet<String> = self.list()?.into_keys().collect();
        ensure!(listed == model, "VDIs are listed that should not, or the reverse: {listed:?}, {model:?}");
        let document = self.must("VDI.get_tree", &json!({"sr": self.sr}), &[])?;
        let mut in_tree = BTreeSet::new();
        for root in document["roots"].as_array().context("no roots")? {
            walk(root, 1, &mut in_tree)?;
        }
        ensure!(in_tree == model, "VDIs of the tree: {in_tree:?}, not {model:?}");
        Ok(())
    }

    /// `sr check` finds nothing; what an open job has still to do is no finding.
    pub(crate) fn check_sr(&mut self) -> Result<()> {
        for _ in 0..20 {
            // What a killed worker has left for later is done now.
            self.must("Coalesce.run", &json!({"sr": self.sr}), &[])?;
            let job = self.must("SR.check", &json!({"sr": self.sr}), &[])?;
            let job = self.must("Job.wait", &json!({"job": job["id"]}), &[])?;
            if job["state"] == "done" {
                let bad = |finding: &&Value| finding["severity"] != "info";
                let findings = job["result"]["findings"].as_array().context("no findings")?;
                let bad: Vec<&Value> = findings.iter().filter(bad).collect();
                ensure!(job["result"]["clean"] == true && bad.is_empty(), "sr check: {bad:?}");
                return Ok(());
            }
            ensure!(self.forgives(&json!({"data": job["error"]})), "the check has failed: {job}");
        }
        bail!("sr check does not come to an end")
    }

    /// Waits until the worker has nothing left to do.
    pub(crate) fn coalesce_to_the_end(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.must("Coalesce.run", &json!({"sr": self.sr, "wait": true}), &[])?;
            if status["state"] == "idle" {
                return Ok(());
            }
            if self.storage.is_small() && status["reason"]["code"] == "no_space" {
                self.note("  no room to merge");
                return Ok(());
            }
            ensure!(Instant::now() < end, "the worker does not come to an end: {status}");
        }
    }

    /// What the storage says of the SR is what the agent says of it.
    pub(crate) fn check_storage(&mut self) -> Result<()> {
        let attached = self.attached.as_ref().map(|(vdi, _)| vdi.as_str());
        self.storage.check(&self.agent, &self.sr, attached)
    }

    /// The containers of images that the storage has.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        self.storage.containers(&self.agent)
    }

    /// What is told of a run that has failed.
    pub(crate) fn story(&self) -> String {
        let tail = &self.history[self.history.len().saturating_sub(TAIL)..];
        let log = self.agent.log();
        let log: Vec<&str> = log.lines().rev().take(TAIL).collect();
        let log: Vec<&str> = log.into_iter().rev().collect();
        format!("paused: {}\n{}\nthe log:\n{}", self.paused, tail.join("\n"), log.join("\n"))
    }
}

/// The answer to a call, if there was one before its connection broke. Who says nothing is at fault, unless he was told to wait.
fn heard(method: &str, called: Result<Answer>) -> Result<Option<Answer>> {
    let waited = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    match called {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.downcast_ref().is_some_and(waited) && !WAITING.contains(&method) => {
            Err(error.context(format!("{method} is not answered")))
        }
        Err(_) => Ok(None),
    }
}

/// A file with these bytes, for a request.
pub(crate) fn stream(bytes: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// A repeated request moves its stream from the beginning again.
fn rewind(fds: &[BorrowedFd<'_>]) -> Result<()> {
    for fd in fds {
        File::from(fd.try_clone_to_owned()?).rewind()?;
    }
    Ok(())
}

fn targets(agent: &Agent, victim: Victim) -> Vec<Pid> {
    match victim {
        Victim::Front => agent.pid().into_iter().collect(),
        Victim::Keeper => agent.processes("catena-keeper"),
        Victim::Workers => agent.processes("catena-datapath"),
        Victim::Worker(any) => {
            let all = agent.processes("catena-datapath");
            let chosen = any.checked_rem(all.len() as u64).and_then(|at| usize::try_from(at).ok());
            chosen.and_then(|at| all.get(at).copied()).into_iter().collect()
        }
    }
}

/// Waits for processes whose front was killed: keeper and workers end by themselves.
fn await_end(family: &[Pid]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for pid in family {
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            ensure!(Instant::now() < end, "process {pid} has survived its front");
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// Checks a node of the tree and all below it; collects their VDIs.
fn walk(node: &Value, depth: u64, vdis: &mut BTreeSet<String>) -> Result<()> {
    let children = node["children"].as_array().context("no children")?;
    ensure!(node["depth"] == depth && depth <= CHAIN_LIMIT, "a node at depth {depth}: {node}");
    if let Some(uuid) = node["vdi"]["uuid"].as_str() {
        ensure!(children.is_empty(), "an image has a VDI and children: {node}");
        ensure!(vdis.insert(uuid.to_owned()), "{uuid} has two images");
    }
    let state = node["state"].as_str().unwrap_or_default();
    ensure!(["ok", "mixed", "merging", "garbage"].contains(&state), "the state of an image: {node}");
    children.iter().try_for_each(|child| walk(child, depth + 1, vdis))
}
