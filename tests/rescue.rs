//! SRs that lost something, through the real programs: the catalog, its copy, the labels, the host that they belong to. What
//! is brought back reads as before, and a refusal changes nothing.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, Said, sha256, text, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What must be as before: of each disk its record's fields and the checksum of what it reads.
type Disks = BTreeMap<String, (Vec<Value>, String)>;

/// An SR with a tree, and what it holds.
struct Scene {
    agent: Agent,
    sr: String,
    place: String,
    disks: Disks,
}

impl Scene {
    /// A disk with a snapshot and a clone, another one that was merged, one that came from elsewhere, an empty one; and what was
    /// deleted.
    fn new() -> Result<Self> {
        let agent = Agent::start()?;
        let place = text(&agent.path("sr"));
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
        let create = |name: &str| agent.ok(&["vdi", "create", "--sr", &sr, "--size", "8MiB", "--name", name]);
        let web = create("web")?;
        agent.write(&web, 0, &[1; 9000])?;
        agent.ok(&["vdi", "snapshot", &web, "--name", "web before"])?;
        agent.write(&web, 4 * MIB, &[2; 70_000])?;
        let desk = agent.ok(&["vdi", "clone", &web, "--name", "desk \"ü\""])?;
        agent.write(&desk, MIB, &[3; 512])?;
        let merged = create("merged")?;
        agent.write(&merged, 0, &[4; 4096])?;
        let snapshot = agent.ok(&["vdi", "snapshot", &merged])?;
        agent.write(&merged, 2 * MIB, &[5; 4096])?;
        agent.ok(&["vdi", "destroy", &snapshot])?;
        agent.ok(&["coalesce", "run", &sr, "--wait"])?;
        agent.ok(&["coalesce", "pause", &sr])?;
        let raw = agent.path("raw");
        fs::write(&raw, vec![6; 3 << 20])?;
        agent.ok(&["vdi", "import", &text(&raw), "--sr", &sr, "--format", "raw", "--name", "web"])?;
        create("empty")?;
        let gone = create("gone")?;
        agent.write(&gone, 0, &[7; 4096])?;
        agent.ok(&["vdi", "destroy", &gone])?;
        let disks = disks(&agent)?;
        ensure!(disks.len() == 6, "{disks:?}");
        Ok(Self { agent, sr, place, disks })
    }

    fn home(&self) -> PathBuf {
        Path::new(&self.place).join(".catena")
    }

    /// Waits for the copy that an idle keeper makes.
    fn wait_for_copy(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self.home().join("catalog.bak").exists() {
            ensure!(Instant::now() < end, "there is no catalog.bak");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the keeper as a power cut does: what was committed last is in the log only.
    fn cut(&mut self) -> Result<()> {
        let front = self.agent.pid().context("a front")?;
        // It must not start another one meanwhile.
        kill(front, Signal::SIGSTOP)?;
        for keeper in self.agent.processes("catena-keeper") {
            kill(keeper, Signal::SIGKILL)?;
        }
        self.agent.kill()
    }

    fn introduce(&self, more: &[&str]) -> Result<Said> {
        introduce(&self.agent, &self.place, more)
    }

    /// Finds the SR failed, brings it back, and leaves it attached.
    fn bring_back(&mut self) -> Result<()> {
        self.agent.launch(None)?;
        let shown = settled(&self.agent, &self.sr)?;
        ensure!(shown["state"] == "failed", "{shown}");
        let database = fs::read(self.home().join("catalog.db")).ok();
        let said = self.agent.catena(&["sr", "attach", &self.sr])?;
        ensure!(said.code == 7 && said.err.contains("sr introduce"), "{said:?}");
        ensure!(fs::read(self.home().join("catalog.db")).ok() == database, "a refusal changes the catalog");
        let before = fingerprints(Path::new(&self.place))?;
        let plan = self.introduce(&["--dry-run", "--json"])?;
        ensure!(plan.code == 0 && plan.out.contains("made anew"), "{plan:?}");
        ensure!(fingerprints(Path::new(&self.place))? == before, "a dry run changes something");
        let said = self.introduce(&[])?;
        ensure!(said.code == 0 && said.out.trim() == self.sr, "{said:?}\n{}", self.agent.log());
        for (name, bytes) in &before {
            let kept = fingerprints(Path::new(&self.place))?.values().any(|now| now == bytes);
            let own = ["catalog.bak", "catalog.db-wal", "reserve"].iter().any(|own| name.ends_with(own));
            ensure!(kept || own, "{name} is gone");
        }
        let status = self.agent.json(&["coalesce", "status", &self.sr])?;
        ensure!(status["srs"][0]["reason"]["code"] == "paused", "{status}");
        let check = self.agent.json(&["sr", "check", &self.sr])?;
        ensure!(check["clean"] == true, "{check}");
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        let now = disks(&self.agent)?;
        ensure!(now == self.disks, "before: {:#?}\nnow: {now:#?}\n{}", self.disks, self.agent.log());
        Ok(())
    }

    /// The SR works as any other, and merges change no disk.
    fn verify_it_works(&self) -> Result<()> {
        self.verify()?;
        let agent = &self.agent;
        let disk = agent.ok(&["vdi", "create", "--sr", &self.sr, "--size", "2MiB", "--name", "a new one"])?;
        agent.write(&disk, 0, b"new")?;
        agent.ok(&["vdi", "snapshot", &disk])?;
        agent.ok(&["coalesce", "resume", &self.sr])?;
        agent.ok(&["coalesce", "run", &self.sr, "--wait"])?;
        ensure!(agent.read(&disk, 0, 3)? == b"new");
        let now = disks(agent)?;
        for (uuid, before) in &self.disks {
            ensure!(now.get(uuid) == Some(before), "{uuid}: {before:?} {:?}", now.get(uuid));
        }
        ensure!(agent.json(&["sr", "check", &self.sr])?["clean"] == true);
        Ok(())
    }
}

fn introduce(agent: &Agent, place: &str, more: &[&str]) -> Result<Said> {
    let mut words = vec!["sr", "introduce", "--type", "file", "--location", place];
    words.extend(more);
    agent.catena(&words)
}

/// What must not change of the agent's disks.
fn disks(agent: &Agent) -> Result<Disks> {
    let list = agent.json(&["vdi", "list"])?;
    let rows = list["vdis"].as_array().context("vdis")?;
    let disk = |row: &Value| {
        let uuid = row["uuid"].as_str().context("uuid")?.to_owned();
        let names =
            ["name_label", "name_description", "is_a_snapshot", "snapshot_of", "virtual_size", "created"];
        let hash = agent.hash(&uuid)?;
        Ok((uuid, (names.iter().map(|name| row[name].clone()).collect(), hash)))
    };
    rows.iter().map(disk).collect()
}

/// The record of an SR that is neither being attached nor waiting for it.
fn settled(agent: &Agent, sr: &str) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let shown = agent.json(&["sr", "show", sr])?;
        if shown["state"] == "attached" || shown["state"] == "failed" {
            return Ok(shown);
        }
        ensure!(Instant::now() < end, "{shown}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Names and checksums of all files in a directory and below.
fn fingerprints(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(fingerprints(&path)?);
        } else {
            // One that a keeper is just making may have gone.
            match sha256(&path) {
                Err(_) if !path.exists() => {}
                sum => drop(found.insert(text(&path), sum?)),
            }
        }
    }
    Ok(found)
}

/// Does damage in `.catena`.
type Damage = fn(&Path) -> std::io::Result<()>;

/// Ways to lose a catalog.
const DAMAGES: &[(&str, Damage)] = &[
    ("garbage at its beginning", |home| {
        let path = home.join("catalog.db");
        let mut bytes = fs::read(&path)?;
        bytes.iter_mut().take(100).for_each(|byte| *byte = 0xa5);
        fs::write(path, bytes)
    }),
    ("garbage in its middle", |home| {
        let path = home.join("catalog.db");
        let mut bytes = fs::read(&path)?;
        // The log has newer pages of some; without it, these are what is read.
        fs::remove_file(home.join("catalog.db-wal"))?;
        bytes.iter_mut().skip(4096).for_each(|byte| *byte = 0xa5);
        fs::write(path, bytes)
    }),
    ("truncated", |home| File::options().write(true).open(home.join("catalog.db"))?.set_len(0)),
    ("removed, not its log", |home| fs::remove_file(home.join("catalog.db"))),
    ("removed with its log", |home| {
        fs::remove_file(home.join("catalog.db-wal"))?;
        fs::remove_file(home.join("catalog.db"))
    }),
];

#[test]
fn a_lost_catalog_is_made_anew_from_its_copy_and_the_images() -> Result<()> {
    let mut scene = Scene::new()?;
    for (what, damage) in DAMAGES {
        scene.wait_for_copy()?;
        scene.cut()?;
        damage(&scene.home())?;
        scene.bring_back().with_context(|| format!("{what}, with a copy"))?;
        scene.verify().with_context(|| format!("{what}, with a copy"))?;
    }
    let events = scene.agent.json(&["event", "list"])?.to_string();
    ensure!(events.contains("sr.rebuilt") && events.contains("vdi.created"), "the history is kept: {events}");
    scene.verify_it_works()?;
    scene.agent.stop()
}

#[test]
fn a_lost_catalog_without_a_copy_is_made_anew_from_the_images() -> Result<()> {
    let mut scene = Scene::new()?;
    for (what, damage) in DAMAGES {
        scene.cut()?;
        damage(&scene.home())?;
        remove(&scene.home().join("catalog.bak"))?;
        scene.bring_back().with_context(|| format!("{what}, without a copy"))?;
        scene.verify().with_context(|| format!("{what}, without a copy"))?;
    }
    scene.verify_it_works()?;
    scene.agent.stop()
}

#[test]
fn a_copy_that_is_damaged_too_is_kept_aside() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.cut()?;
    for name in ["catalog.db", "catalog.bak"] {
        fs::write(scene.home().join(name), format!("this was {name}"))?;
    }
    scene.bring_back()?;
    scene.verify_it_works()?;
    for name in ["catalog.db", "catalog.bak"] {
        let kept = fs::read_to_string(scene.home().join(format!("{name}.damaged-1")))?;
        ensure!(kept == format!("this was {name}"), "{kept}");
    }
    scene.agent.stop()
}

/// Removes a file if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A copy of a file has no extended attributes.
fn strip_labels(place: &str) -> Result<()> {
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.is_file() {
            let bare = path.with_extension("bare");
            fs::copy(&path, &bare)?;
            fs::rename(bare, path)?;
        }
    }
    Ok(())
}

#[test]
fn without_labels_the_copy_names_the_disks() -> Result<()> {
    let mut scene = Scene::new()?;
    // The keeper of a fresh start makes a copy of all that is there by then.
    scene.agent.stop()?;
    remove(&scene.home().join("catalog.bak"))?;
    scene.agent.launch(None)?;
    scene.wait_for_copy()?;
    scene.cut()?;
    strip_labels(&scene.place)?;
    fs::write(scene.home().join("catalog.db"), "garbage")?;
    scene.bring_back()?;
    scene.verify_it_works()?;
    scene.agent.stop()
}

#[test]
fn with_nothing_but_images_no_content_is_lost() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.cut()?;
    strip_labels(&scene.place)?;
    for name in ["catalog.db", "catalog.bak"] {
        remove(&scene.home().join(name))?;
    }
    scene.bring_back()?;
    let hashes = |disks: &Disks| disks.values().map(|(_, hash)| hash.clone()).collect::<BTreeSet<_>>();
    let now = disks(&scene.agent)?;
    ensure!(hashes(&now).is_superset(&hashes(&scene.disks)), "{:#?}\n{now:#?}", scene.disks);
    scene.agent.stop()
}

#[test]
fn an_image_that_is_lost_with_something_left_to_do_costs_its_own_disk_only() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr");
    let location = place.to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &location])?;
    let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", "16MiB", "--name", "disk"])?;
    let mut taken = Vec::new();
    for byte in 1..=3 {
        agent.write(&disk, u64::from(byte) << 20, &[byte; 4096])?;
        taken.push(agent.ok(&["vdi", "snapshot", &disk])?);
    }
    agent.ok(&["coalesce", "pause", &sr])?;
    agent.ok(&["vdi", "destroy", &taken[0], "--yes"])?;
    let container = agent.json(&["vdi", "show", &taken[1]])?["container"].clone();
    agent.stop()?;
    // What is to be written to the headers above the merged image stands in the catalog, and is not written.
    agent.launch(Some("merge.planned"))?;
    wait_until("the SR is back", || Ok(agent.catena(&["vdi", "show", &disk])?.code == 0))?;
    let first = agent.processes("catena-keeper");
    // The keeper may be dead before it has answered.
    agent.catena(&["coalesce", "resume", &sr])?;
    wait_until("the keeper has died", || Ok(agent.processes("catena-keeper") != first))?;
    agent.kill()?;
    fs::remove_file(place.join(container.as_str().context("a container")?))?;

    agent.launch(None)?;
    wait_until("the SR is back", || Ok(agent.catena(&["vdi", "show", &disk])?.code == 0))?;
    for byte in 1..=3 {
        let read = agent.read(&disk, u64::from(byte) << 20, 4096)?;
        ensure!(read == [byte; 4096], "what the disk holds at {byte} MiB is not {byte}");
    }
    ensure!(agent.catena(&["vdi", "read", &taken[1], "--to", "/dev/null"])?.code != 0);
    agent.ok(&["vdi", "snapshot", &disk]).map(drop)
}
