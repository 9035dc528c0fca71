//! A disk in use while everything happens to it at random: snapshots, clones, merges, detaches, and deaths of every process.
//! What its client was answered is there at any time, at the end, and after all merges; snapshots taken while it held still are
//! what it held.

mod harness;

use anyhow::{Context, Result, anyhow, ensure};
use harness::guest::{Dice, Guest};
use harness::nbd::FLUSH;
use harness::{Agent, PATIENCE, nightly, seed, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SIZE: usize = 16 << 20;
/// Snapshots and clones that may stand at a time.
const STANDING: usize = 6;
/// What happens to the disk.
struct Storm<'a> {
    agent: Agent,
    guest: &'a Mutex<Guest>,
    /// The guest is to let go for a moment.
    wanted: &'a AtomicBool,
    disk: String,
    /// Snapshots and clones, and what they must hold where that is known.
    standing: BTreeMap<String, Option<String>>,
    dice: Dice,
    keys: u64,
    /// Keepers that one front has lost: it takes ever longer to start another.
    lost: u32,
}

impl Storm<'_> {
    /// Asks until there is an answer, with one key: whoever dies meanwhile, it is done once.
    fn ask(&mut self, method: &str, mut params: Value) -> Result<Value> {
        self.keys += 1;
        params["request_id"] = json!(format!("storm {}", self.keys));
        let end = Instant::now() + PATIENCE;
        loop {
            let failure = match self.agent.call(method, &params) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if error["data"]["retry"] != true => return Err(anyhow!("{method}: {error}")),
                Ok(Err(error)) => anyhow!("{method}: {error}"),
                Err(error) => error,
            };
            ensure!(Instant::now() < end, "{failure:#}: {}", self.agent.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Does something while the guest holds still.
    fn still<T>(&mut self, act: impl FnOnce(&mut Self, &mut Guest) -> Result<T>) -> Result<T> {
        let guest = self.guest;
        self.wanted.store(true, Ordering::SeqCst);
        let mut held = guest.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = act(self, &mut held);
        self.wanted.store(false, Ordering::SeqCst);
        outcome
    }

    fn take(&mut self, method: &str) -> Result<String> {
        let made = self.ask(method, json!({"vdi": self.disk, "name_label": "standing", "wait": true}))?;
        Ok(made["vdis"][0].as_str().context("a uuid")?.to_owned())
    }

    fn destroy_one(&mut self) -> Result<()> {
        let number = self.dice.roll(self.standing.len().max(1));
        let Some(uuid) = self.standing.keys().nth(number).cloned() else { return Ok(()) };
        self.ask("VDI.destroy", json!({"vdi": uuid}))?;
        self.standing.remove(&uuid);
        Ok(())
    }

    /// One thing at random; says which.
    fn step(&mut self) -> Result<&'static str> {
        while self.standing.len() >= STANDING {
            self.destroy_one()?;
        }
        match self.dice.roll(12) {
            0..3 => {
                let uuid = self.take("VDI.snapshot")?;
                self.standing.insert(uuid, None);
                Ok("snapshot")
            }
            3 => {
                let (uuid, hash) =
                    self.still(|storm, guest| Ok((storm.take("VDI.snapshot")?, guest.sha256())))?;
                self.standing.insert(uuid, Some(hash));
                Ok("still snapshot")
            }
            4 => {
                let (uuid, hash) =
                    self.still(|storm, guest| Ok((storm.take("VDI.clone")?, guest.sha256())))?;
                self.standing.insert(uuid, Some(hash));
                Ok("still clone")
            }
            5..8 => self.destroy_one().map(|()| "destroy"),
            8 => {
                self.still(|storm, _| {
                    storm.ask("VDI.detach", json!({"vdi": storm.disk}))?;
                    storm.ask("VDI.attach", json!({"vdi": storm.disk}))
                })?;
                Ok("detach and attach")
            }
            9 if self.lost < 4 => {
                self.lost += 1;
                self.kill_all("catena-keeper").map(|()| "death of the keeper")
            }
            10 => {
                for pid in self.agent.served() {
                    // One that is just ending is as good.
                    let _ = kill(pid, Signal::SIGKILL);
                }
                Ok("death of the datapath")
            }
            _ if self.dice.roll(2) == 0 => self.kill_all("catena-datapath").map(|()| "death of the workers"),
            _ => {
                self.lost = 0;
                self.agent.kill()?;
                self.agent.launch(None)?;
                Ok("death of the front")
            }
        }
    }

    fn kill_all(&self, program: &str) -> Result<()> {
        for pid in self.agent.processes(program) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    }
}

#[test]
fn nothing_that_was_answered_is_lost_whatever_happens() -> Result<()> {
    let seed = seed("storm");
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    let disk =
        agent.ok(&["vdi", "create", "--sr", "store", "--size", &SIZE.to_string(), "--name", "disk"])?;
    let uri = agent.ok(&["vdi", "attach", &disk])?;
    let guest = Mutex::new(Guest::new(&uri, SIZE, seed | 1)?);
    let (over, wanted) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut storm = Storm {
        agent,
        guest: &guest,
        wanted: &wanted,
        disk,
        standing: BTreeMap::new(),
        dice: Dice(seed.rotate_left(32) | 1),
        keys: 0,
        lost: 0,
    };
    let steps = if nightly() { 400 } else { 60 };
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                if wanted.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                } else {
                    guest.lock().unwrap_or_else(PoisonError::into_inner).one()?;
                }
            }
            Ok(())
        });
        let mut passed = Vec::new();
        let stormed = (0..steps).try_for_each(|_| {
            ensure!(!working.is_finished(), "the guest has given up");
            passed.push(storm.step()?);
            Ok(())
        });
        over.store(true, Ordering::SeqCst);
        let worked: Result<()> = working.join().map_err(|_| anyhow!("the guest has panicked"))?;
        worked.and(stormed).with_context(|| format!("after {passed:?}"))
    })?;
    quiet(&mut storm)
}

/// The storm is over: everything is as it must be, before and after the last merges.
fn quiet(storm: &mut Storm<'_>) -> Result<()> {
    let hash = storm.still(|_, guest| {
        ensure!(
            guest.insist(|client| client.ask(FLUSH, 0, 0, 0))? == 0 && guest.requests > 100,
            "the guest has worked"
        );
        Ok(guest.sha256())
    })?;
    storm.ask("VDI.detach", json!({"vdi": storm.disk}))?;
    for merged in [false, true] {
        if merged {
            storm.agent.ok(&["coalesce", "run", "store", "--wait"])?;
        }
        ensure!(storm.agent.hash(&storm.disk)? == hash, "the disk is not what it was, merged: {merged}");
        for (uuid, hash) in storm.standing.iter().filter_map(|(uuid, hash)| Some((uuid, hash.as_ref()?))) {
            ensure!(storm.agent.hash(uuid)? == *hash, "{uuid} is not what it was, merged: {merged}");
        }
    }
    storm.agent.ok(&["sr", "check", "store"])?;
    wait_until("no process is left that serves", || Ok(storm.agent.served().is_empty()))?;
    storm.agent.stop()
}
