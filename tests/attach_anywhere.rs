//! Datapath, keeper and front killed at any moment while a disk in use is written, snapshotted, cloned, made larger and merged:
//! the client goes on, and everything that was answered is there.
//!
//! Random; the seed is printed, and `CATENA_SEED` repeats it.

mod client;
mod harness;

use anyhow::{Context, Result, bail, ensure};
use client::Client;
use harness::{Agent, nightly, seed, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

const SLOT: usize = 96 << 10;
const SLOTS: usize = 200;

/// An xorshift generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What each slot of a disk holds.
type Model = Vec<u8>;

/// What a copy holds: that, but of a write which was under way any part, since whoever carried it out may have died in the middle.
struct Copy {
    model: Model,
    under_way: (usize, u8),
}

impl Copy {
    fn holds(&self, slot: usize, byte: u8) -> bool {
        byte == self.model[slot] || (slot, byte) == self.under_way
    }
}

struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
    /// How large the disk is.
    size: u64,
    /// What the disk holds.
    model: Model,
    /// What snapshots and clones hold.
    copies: BTreeMap<String, Copy>,
    dice: Dice,
}

impl Scene {
    fn set(seed: u64) -> Result<Self> {
        let agent = Agent::start()?;
        let location = agent.path("sr");
        fs::create_dir(&location)?;
        let place = location.to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &place])?;
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", "32MiB", "--name", "disk"])?;
        let model = vec![0; SLOTS];
        let (size, copies, dice) = (32 << 20, BTreeMap::new(), Dice(seed | 1));
        Ok(Self { agent, sr, disk, size, model, copies, dice })
    }

    /// Kills one of the three.
    fn kill_one(&mut self) -> Result<()> {
        match self.dice.below(4) {
            0 | 1 => end(&self.agent.served()),
            2 => end(&self.agent.processes("catena-keeper")),
            _ => {
                self.agent.kill()?;
                self.agent.launch(None)?;
            }
        }
        Ok(())
    }

    /// Asks until there is an answer that is not "later". A connection that broke leaves the outcome open: the same key asks again.
    fn ask(&self, method: &str, params: &Value) -> Result<Result<Value, Value>> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match self.agent.call(method, params) {
                Ok(Err(error)) if error["data"]["retry"] == true => {}
                Ok(answer) => return Ok(answer),
                Err(_) => {}
            }
            ensure!(Instant::now() < end, "{method} for ever");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Changes the tree, with one of the processes killed meanwhile.
    fn operate(&mut self, round: u64, under_way: (usize, u8)) -> Result<()> {
        let key = format!("round {round}");
        let (method, params) = match self.dice.below(8) {
            0 | 1 => ("VDI.snapshot", json!({"vdi": self.disk, "name_label": key, "request_id": key})),
            2 => ("VDI.clone", json!({"vdi": self.disk, "name_label": key, "request_id": key})),
            3 | 4 if !self.copies.is_empty() => {
                let index = usize::try_from(self.dice.below(self.copies.len() as u64))?;
                let vdi = self.copies.keys().nth(index).context("a copy")?.clone();
                ("VDI.destroy", json!({"vdi": vdi, "request_id": key}))
            }
            5 | 6 => {
                // Now and then with a longer block table, for which the first blocks move.
                let more = [2 << 20, 40 << 20, 300 << 20][usize::try_from(self.dice.below(3))?];
                let params = json!({"vdi": self.disk, "virtual_size": self.size + more, "request_id": key});
                ("VDI.resize", params)
            }
            _ => ("Coalesce.run", json!({"sr": self.sr})),
        };
        let socket = self.agent.socket();
        let early = {
            let params = params.clone();
            std::thread::spawn(move || client::call_at(&socket, method, &params))
        };
        std::thread::sleep(Duration::from_micros(self.dice.below(30_000)));
        self.kill_one()?;
        // Whatever became of the first request, the second has the same key.
        let _ = early.join();
        let answer = self.ask(method, &params)?;
        match (method, answer) {
            ("VDI.snapshot" | "VDI.clone", Ok(made)) => {
                let vdi = made["vdis"][0].as_str().context("a copy")?.to_owned();
                self.copies.insert(vdi, Copy { model: self.model.clone(), under_way });
            }
            ("VDI.destroy", Ok(_)) => {
                self.copies.remove(params["vdi"].as_str().unwrap_or_default());
            }
            ("VDI.resize", Ok(grown)) => self.size = grown["virtual_size"].as_u64().context("a size")?,
            ("Coalesce.run", _) => {}
            (_, Err(error)) => ensure!(
                ["chain_too_long", "try_again", "vdi_unavailable"]
                    .iter()
                    .any(|name| error["data"]["name"] == *name),
                "{method}: {error}"
            ),
            (method, _) => bail!("{method} was never asked"),
        }
        Ok(())
    }

    fn verify(&self, vdi: &str, what: &Copy) -> Result<()> {
        let read = self.agent.read(vdi, 0, (SLOT * SLOTS) as u64)?;
        for (slot, bytes) in read.chunks(SLOT).enumerate() {
            if let Some(at) = bytes.iter().position(|byte| !what.holds(slot, *byte)) {
                let (is, byte) = (bytes[at], what.model[slot]);
                bail!(
                    "{vdi}: byte {at} of slot {slot} is {is} and not {byte}; under way was {:?}",
                    what.under_way
                );
            }
        }
        Ok(())
    }
}

fn end(pids: &[Pid]) {
    for pid in pids {
        // One that has just ended by itself is as good.
        let _ = kill(*pid, Signal::SIGKILL);
    }
}

#[test]
fn whoever_dies_whenever_it_is() -> Result<()> {
    let mut scene = Scene::set(seed("whoever_dies_whenever_it_is"))?;
    let uri = scene.agent.ok(&["vdi", "attach", &scene.disk])?;
    let mut client = Client::connect(&uri)?;
    let rounds = if nightly() { 150 } else { 12 };
    for round in 1..=rounds {
        for _ in 0..scene.dice.below(8) {
            let slot = usize::try_from(scene.dice.below(SLOTS as u64))?;
            let byte = u8::try_from(scene.dice.below(255) + 1)?;
            client.run(&format!("write -P {byte} {} {SLOT}", slot * SLOT))?;
            scene.model[slot] = byte;
        }
        let slot = usize::try_from(scene.dice.below(SLOTS as u64))?;
        let byte = u8::try_from(round % 250 + 1)?;
        client.begin(&format!("write -P {byte} {} {SLOT}", slot * SLOT))?;
        scene
            .operate(round, (slot, byte))
            .with_context(|| format!("round {round}: {}", scene.agent.log()))?;
        client.end().with_context(|| format!("round {round}: {}", scene.agent.log()))?;
        scene.model[slot] = byte;
        let slot = usize::try_from(scene.dice.below(SLOTS as u64))?;
        client
            .run(&format!("read -P {} {} {SLOT}", scene.model[slot], slot * SLOT))
            .with_context(|| format!("round {round}: {}", scene.agent.log()))?;
    }
    client.close()?;
    wait_until("the SR is back", || Ok(scene.agent.call("SR.scan", &json!({"sr": scene.sr}))?.is_ok()))?;
    let detached = scene.ask("VDI.detach", &json!({"vdi": scene.disk, "request_id": "detach"}))?;
    ensure!(detached.is_ok(), "{detached:?}");
    let left = scene.agent.served();
    ensure!(left.is_empty(), "datapaths are left: {left:?}: {}", scene.agent.log());
    let size = scene.agent.json(&["vdi", "show", &scene.disk])?["virtual_size"].clone();
    ensure!(size == scene.size, "{size} and not {}", scene.size);
    for turn in ["before", "after"] {
        let disk = Copy { model: scene.model.clone(), under_way: (0, scene.model[0]) };
        scene.verify(&scene.disk, &disk).context(turn)?;
        for (vdi, copy) in &scene.copies {
            scene.verify(vdi, copy).context(turn)?;
        }
        let report = scene.agent.json(&["sr", "check", &scene.sr])?;
        ensure!(report["clean"] == true, "{turn}: {report}");
        scene.agent.ok(&["coalesce", "run", "--wait", &scene.sr])?;
    }
    Ok(())
}
