//! An SR with something of everything, and what each of its disks must hold.
//!
//! Disk `a` has a base copy that is to be merged into the one below it (two children hang from it), disk `b` a leaf that is to
//! be merged into its base copy; deleted snapshots of both are garbage. Disk `c`, where there is one, has a snapshot. The worker
//! is paused. The directory also holds files that are nobody's business.

use super::request::Turn;
use crate::harness::lab::Disk;
use crate::harness::volumes::{Group, OnDisk};
use crate::harness::{Agent, text};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The size of the disks: four blocks.
pub(crate) const SIZE: usize = 8 << 20;

/// A private agent, its SR, and the model of it.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) sr: String,
    pub(crate) directory: PathBuf,
    /// What each disk and snapshot holds, by uuid.
    pub(crate) content: BTreeMap<String, Vec<u8>>,
    /// A disk with two snapshots, of which the older is deleted.
    pub(crate) a: String,
    /// Its snapshot that is left.
    pub(crate) old: String,
    /// A disk whose snapshot is deleted.
    pub(crate) b: String,
    /// A disk with a snapshot of its own, and that snapshot; only where [`Stage::add_snapshot_to_revert_to`] was called.
    c: (String, String),
    /// A disk of another SR and what it holds; only where [`Stage::add_disk_elsewhere`] was called.
    pub(crate) elsewhere: (String, Vec<u8>),
    /// The label of `a`.
    pub(crate) label: String,
    /// How often the same requests were sent already: they are others each time.
    pub(crate) round: u32,
    /// Where it lies, if not in the directory.
    volumes: Option<Disk>,
    foreign: Vec<(PathBuf, Vec<u8>)>,
    noise: u64,
}

impl Stage {
    /// The whole SR, with a running agent.
    pub(crate) fn build() -> Result<Self> {
        let mut stage = Self::empty()?;
        let (a, b) = (stage.disk("a", SIZE)?, stage.disk("b", SIZE)?);
        stage.write(&a, 1000, 5 << 20)?;
        let oldest = stage.snapshot(&a)?;
        stage.write(&a, 3 << 20, 2 << 20)?;
        stage.old = stage.snapshot(&a)?;
        stage.write(&a, (2 << 20) - 512, 1 << 20)?;
        stage.destroy(&oldest)?;
        stage.write(&b, 0, 3 << 20)?;
        let before = stage.snapshot(&b)?;
        stage.write(&b, 1 << 20, 4 << 20)?;
        stage.destroy(&before)?;
        (stage.a, stage.b) = (a, b);
        Ok(stage)
    }

    /// The SR without any disk.
    pub(crate) fn empty() -> Result<Self> {
        let agent = Agent::start()?;
        let directory = agent.path("sr");
        fs::create_dir(&directory)?;
        let place = directory.to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "stage", "--location", &place])?;
        let mut stage = Self::of(agent, sr, directory, None)?;
        stage.leave_foreign_files(&place)?;
        Ok(stage)
    }

    /// The SR without any disk, on logical volumes of a disk of the lab. Its agent goes on whatever dies.
    pub(crate) fn on_volumes(mib: u64) -> Result<Self> {
        let (agent, disk) = (Agent::start_mortal()?, Disk::new(mib)?);
        let device = text(&disk.path());
        let sr = agent.ok(&["sr", "create", "--type", "lvm", "--name", "stage", "--devices", &device])?;
        Self::of(agent, sr, PathBuf::new(), Some(disk))
    }

    fn of(agent: Agent, sr: String, directory: PathBuf, volumes: Option<Disk>) -> Result<Self> {
        agent.ok(&["coalesce", "pause", &sr])?;
        let (content, a, old, b) = (BTreeMap::new(), String::new(), String::new(), String::new());
        let (c, elsewhere, label) = (<_>::default(), <_>::default(), "a".to_owned());
        let (foreign, round, noise) = (Vec::new(), 0, 1);
        Ok(Self {
            agent,
            sr,
            directory,
            content,
            a,
            old,
            b,
            c,
            elsewhere,
            label,
            round,
            volumes,
            foreign,
            noise,
        })
    }

    /// From now on who passes the point dies there.
    pub(crate) fn arm(&mut self, at: &str) -> Result<()> {
        if self.is_on_volumes() {
            return self.agent.arm(at);
        }
        self.agent.stop()?;
        self.agent.launch(Some(at))
    }

    /// Waits for the death.
    pub(crate) fn await_death(&mut self, at: &str) -> Result<()> {
        if self.is_on_volumes() {
            return self.agent.await_death(at);
        }
        self.wait_for_crash(at.split(':').next().unwrap_or(at))?;
        self.agent.kill()
    }

    /// Brings back what has died.
    pub(crate) fn revive(&mut self, at: &str) -> Result<()> {
        if !self.is_on_volumes() {
            return self.agent.launch(None);
        }
        if at.starts_with("front.") {
            self.agent.bury()?;
            self.agent.launch_mortal()?;
        }
        self.wait_attached()
    }

    /// Whether it lies on logical volumes.
    pub(crate) const fn is_on_volumes(&self) -> bool {
        self.volumes.is_some()
    }

    /// The device that it lies on.
    pub(crate) fn device(&self) -> Result<String> {
        Ok(text(&self.volumes.as_ref().context("no volume group")?.path()))
    }

    /// A volume of the group, by its name.
    pub(crate) fn on_disk(&self, container: &str) -> Result<OnDisk> {
        OnDisk::of(self.volumes.as_ref().context("no volume group")?, container)
    }

    /// Puts files into a directory that no program of ours may touch.
    pub(crate) fn leave_foreign_files(&mut self, directory: impl AsRef<Path>) -> Result<()> {
        for name in ["notes.txt", "other.bin", "stranger.vhd"] {
            let (path, bytes) = (directory.as_ref().join(name), self.bytes(70_000));
            fs::write(&path, &bytes)?;
            self.foreign.push((path, bytes));
        }
        Ok(())
    }

    /// Bytes that occur nowhere else.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            // An xorshift generator: the same in every run.
            self.noise ^= self.noise << 13;
            self.noise ^= self.noise >> 7;
            self.noise ^= self.noise << 17;
            bytes.extend(self.noise.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// A new disk.
    pub(crate) fn disk(&mut self, name: &str, size: usize) -> Result<String> {
        let uuid = self.agent.ok(&[
            "vdi",
            "create",
            "--sr",
            &self.sr,
            "--size",
            &size.to_string(),
            "--name",
            name,
        ])?;
        self.content.insert(uuid.clone(), vec![0; size]);
        Ok(uuid)
    }

    /// Writes new bytes to a disk.
    pub(crate) fn write(&mut self, vdi: &str, offset: usize, length: usize) -> Result<()> {
        let bytes = self.bytes(length);
        self.agent.write(vdi, offset as u64, &bytes)?;
        let content = self.content.get_mut(vdi).context("a disk of the stage")?;
        content[offset..offset + length].copy_from_slice(&bytes);
        Ok(())
    }

    /// A snapshot of a disk.
    pub(crate) fn snapshot(&mut self, vdi: &str) -> Result<String> {
        let uuid = self.agent.ok(&["vdi", "snapshot", vdi])?;
        let content = self.content.get(vdi).context("a disk of the stage")?.clone();
        self.content.insert(uuid.clone(), content);
        Ok(uuid)
    }

    /// Deletes a disk or snapshot.
    pub(crate) fn destroy(&mut self, vdi: &str) -> Result<()> {
        self.agent.ok(&["vdi", "destroy", vdi])?;
        self.content.remove(vdi);
        Ok(())
    }

    /// Writes to the snapshot of `a`, so that it becomes a base copy when the disk is put back to it, and makes another disk with
    /// a snapshot that nobody has written to.
    pub(crate) fn add_snapshot_to_revert_to(&mut self) -> Result<()> {
        self.write(&self.old.clone(), 1 << 20, 3 << 20)?;
        let c = self.disk("c", SIZE)?;
        self.write(&c, 5000, 3 << 20)?;
        let snapshot = self.snapshot(&c)?;
        self.write(&c, 2 << 20, 3 << 20)?;
        self.c = (c, snapshot);
        Ok(())
    }

    /// Makes another SR, with a disk that has a base copy.
    pub(crate) fn add_disk_elsewhere(&mut self) -> Result<()> {
        let place = self.agent.path("elsewhere").to_string_lossy().into_owned();
        let create = ["sr", "create", "--type", "file", "--name", "elsewhere", "--location", &place];
        let sr = self.agent.ok(&create)?;
        let size = SIZE.to_string();
        let disk = self.agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "origin"])?;
        let mut content = vec![0; SIZE];
        for (offset, length) in [(1000, 5 << 20), (3 << 20, 1 << 20)] {
            let bytes = self.bytes(length);
            self.agent.write(&disk, offset as u64, &bytes)?;
            content[offset..offset + length].copy_from_slice(&bytes);
            self.agent.ok(&["vdi", "snapshot", &disk])?;
        }
        self.elsewhere = (disk, content);
        Ok(())
    }

    /// The disk that is put back, and the snapshot that it is put back to.
    pub(crate) fn reverted(&self, turn: Turn) -> (String, String) {
        match turn {
            Turn::First => (self.a.clone(), self.old.clone()),
            Turn::Second => self.c.clone(),
        }
    }

    /// The answer to a request that must succeed; without a process, which takes long in the lab.
    fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        self.agent.call(method, params)?.map_err(|error| anyhow!("{method}: {error}: {}", self.agent.log()))
    }

    /// What is known of a VDI.
    pub(crate) fn record(&self, vdi: &str) -> Result<Value> {
        self.ask("VDI.get_record", &json!({"vdi": vdi}))
    }

    /// The VDIs that the SR has.
    pub(crate) fn listed(&self) -> Result<BTreeSet<String>> {
        let document = self.ask("VDI.list", &json!({"sr": self.sr}))?;
        let rows = document["vdis"].as_array().context("vdis")?;
        Ok(rows.iter().filter_map(|row| row["uuid"].as_str()).map(str::to_owned).collect())
    }

    /// Waits until the process that was told so has died at its point.
    pub(crate) fn wait_for_crash(&self, name: &str) -> Result<()> {
        let said = format!("crash point {name}\n");
        let end = Instant::now() + PATIENCE;
        while !self.agent.log().contains(&said) {
            ensure!(Instant::now() < end, "{name} was not reached: {}", self.agent.log());
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    }

    /// Waits until the SR has a keeper again after it has lost one.
    pub(crate) fn wait_attached(&self) -> Result<()> {
        self.agent.wait_attached(&self.sr)
    }

    /// The check is clean, the VDIs are those of the model and hold what it says, nothing foreign has changed.
    pub(crate) fn verify(&self) -> Result<()> {
        let said = self.agent.catena(&["--json", "sr", "check", &self.sr])?;
        let check: Value =
            serde_json::from_str(&said.out).with_context(|| format!("the check said {said:?}"))?;
        ensure!(said.code == 0 && check["clean"] == true, "not clean: {check}");
        for finding in check["findings"].as_array().into_iter().flatten() {
            ensure!(finding["severity"] == "info", "the check found more than a remark: {check}");
        }
        let (listed, known): (_, BTreeSet<String>) = (self.listed()?, self.content.keys().cloned().collect());
        ensure!(listed == known, "the SR has {listed:?} and should have {known:?}");
        for (vdi, content) in &self.content {
            let row = self.record(vdi)?;
            ensure!(row["virtual_size"] == content.len(), "the size of {vdi}: {row}");
            let read = self.agent.read(vdi, 0, content.len() as u64)?;
            ensure!(read == *content, "{vdi} reads wrong {}", first_difference(&read, content));
        }
        for (path, bytes) in &self.foreign {
            ensure!(fs::read(path).ok().as_ref() == Some(bytes), "{} was touched", path.display());
        }
        Ok(())
    }

    /// Lets the worker do all there is to do.
    pub(crate) fn coalesce(&self) -> Result<()> {
        self.agent.ok(&["coalesce", "resume", &self.sr])?;
        self.agent.ok(&["coalesce", "run", &self.sr, "--wait"]).map(drop)
    }

    fn containers(&self) -> Result<Vec<String>> {
        match &self.volumes {
            Some(disk) => Ok(Group::on(disk)?.volumes.into_keys().collect()),
            None => {
                let entries = fs::read_dir(&self.directory)?;
                entries.map(|entry| Ok(name_of(&entry?.path()).unwrap_or_default())).collect()
            }
        }
    }

    /// Nothing is left to do, and every container in the directory is in the tree.
    pub(crate) fn verify_tidy(&self) -> Result<()> {
        let tree = self.agent.json(&["vdi", "tree", &self.sr])?;
        let mut known: BTreeSet<String> = self.foreign.iter().filter_map(|(path, _)| name_of(path)).collect();
        let mut nodes: Vec<&Value> = tree["roots"].as_array().into_iter().flatten().collect();
        while let Some(node) = nodes.pop() {
            ensure!(node["state"] == "ok" || node["state"] == "orphan", "not settled: {node}");
            known.insert(node["container"].as_str().context("container")?.to_owned());
            nodes.extend(node["children"].as_array().into_iter().flatten());
        }
        for name in self.containers()? {
            ensure!(known.contains(&name) || name == ".catena", "{name} belongs to nobody: {tree}");
        }
        let status = &self.agent.json(&["coalesce", "status", &self.sr])?["srs"][0];
        let merged = status["unmerged_images"] == 0 && status["queue"] == json!([]);
        ensure!(merged || status["reason"]["code"] == "foreign_image", "not merged: {status}");
        let jobs = self.agent.json(&["job", "list"])?;
        for job in jobs["jobs"].as_array().into_iter().flatten() {
            let over = ["done", "failed", "cancelled"].iter().any(|state| job["state"] == *state);
            ensure!(over, "a job is not over: {job}");
        }
        Ok(())
    }
}

fn first_difference(is: &[u8], should: &[u8]) -> String {
    let sector = is.chunks(512).zip(should.chunks(512)).position(|(is, should)| is != should);
    format!("({} bytes of {}) at sector {sector:?}", is.len(), should.len())
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}
