//! An agent with an SR on a disk of the lab, and what lvm2 says of it.

#![allow(dead_code, reason = "each test program uses its own part of it")]

use crate::harness::lab::{Disk, run};
use crate::harness::{Agent, text, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

/// An agent, an SR, and the disk that it lies on.
pub(crate) struct Store {
    pub(crate) agent: Agent,
    pub(crate) disk: Disk,
    pub(crate) sr: String,
}

impl Store {
    /// On a disk of so many MiB, with this allocation.
    pub(crate) fn new(mib: u64, allocation: &str) -> Result<Self> {
        Self::on(Disk::new(mib)?, allocation)
    }

    /// The same with an agent whose processes are told where to die.
    pub(crate) fn mortal(mib: u64) -> Result<Self> {
        let (agent, disk) = (Agent::start_mortal()?, Disk::new(mib)?);
        let sr = create(&agent, &disk, "store", "thin")?;
        Ok(Self { agent, disk, sr })
    }

    /// On this disk.
    pub(crate) fn on(disk: Disk, allocation: &str) -> Result<Self> {
        let agent = Agent::start()?;
        let sr = create(&agent, &disk, "store", allocation)?;
        Ok(Self { agent, disk, sr })
    }

    /// A disk of that size; its uuid.
    pub(crate) fn vdi(&self, size: &str, name: &str) -> Result<String> {
        self.agent.ok(&["vdi", "create", "--sr", &self.sr, "--size", size, "--name", name])
    }

    /// Attached for reading and writing; its socket.
    pub(crate) fn attach(&self, vdi: &str) -> Result<PathBuf> {
        let uri = self.agent.ok(&["vdi", "attach", vdi])?;
        Ok(uri.split_once("socket=").context("a socket")?.1.into())
    }

    pub(crate) fn record(&self, vdi: &str) -> Result<Value> {
        self.agent.json(&["vdi", "show", vdi])
    }

    /// The logical volume of a VDI.
    pub(crate) fn volume(&self, vdi: &str) -> Result<String> {
        Ok(self.record(vdi)?["container"].as_str().context("a container")?.to_owned())
    }

    /// All logical volumes of images and their sizes in MiB.
    pub(crate) fn volumes(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.report("lv_name,lv_size")?;
        let size = |row: &Value| Some(row["lv_size"].as_str()?.parse::<u64>().ok()? >> 20);
        let pairs = rows.iter().filter_map(|row| Some((row["lv_name"].as_str()?.to_owned(), size(row)?)));
        Ok(pairs.filter(|(name, _)| name.starts_with("vhd-")).collect())
    }

    /// The size of the logical volume of a VDI in MiB.
    pub(crate) fn mib(&self, vdi: &str) -> Result<u64> {
        self.volumes()?.get(&self.volume(vdi)?).copied().context("the volume of a VDI")
    }

    /// The sizes of the volumes that no VDI of these has.
    pub(crate) fn others(&self, vdis: &[&str]) -> Result<Vec<u64>> {
        let mut all = self.volumes()?;
        for vdi in vdis {
            all.remove(&self.volume(vdi)?).context("the volume of a VDI")?;
        }
        Ok(all.into_values().collect())
    }

    /// The volumes of images that are active.
    pub(crate) fn active(&self) -> Result<BTreeSet<String>> {
        let rows = self.report("lv_name,lv_active")?;
        let active = rows.iter().filter(|row| row["lv_active"] == "active");
        let names = active.filter_map(|row| row["lv_name"].as_str()).map(str::to_owned);
        Ok(names.filter(|name| name.starts_with("vhd-")).collect())
    }

    /// Where a volume that is active lies on the disk, in sectors, sorted.
    pub(crate) fn ranges(&self, volume: &str) -> Result<Vec<Range<u64>>> {
        let mut ranges = self.pieces(volume)?;
        ranges.sort_by_key(|range| range.start);
        Ok(ranges)
    }

    /// The same in the order of its bytes.
    pub(crate) fn pieces(&self, volume: &str) -> Result<Vec<Range<u64>>> {
        let name = format!("{}-{}", self.group().replace('-', "--"), volume.replace('-', "--"));
        let table = run("dmsetup", &["table", &name])?;
        let mut ranges = Vec::new();
        for line in table.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            ensure!(words.len() == 5 && words[2] == "linear", "{line}");
            let (len, at): (u64, u64) = (words[1].parse()?, words[4].parse()?);
            ranges.push(at..at + len);
        }
        Ok(ranges)
    }

    /// The volume group.
    pub(crate) fn group(&self) -> String {
        format!("catena-{}", self.sr)
    }

    /// Merges what there is to merge, and waits until no job is left.
    pub(crate) fn settle(&self) -> Result<()> {
        self.agent.ok(&["coalesce", "run", "--wait", &self.sr])?;
        wait_until("no job is left", || {
            let list = self.agent.json(&["job", "list"])?;
            let jobs = list["jobs"].as_array().context("jobs")?;
            Ok(jobs.iter().all(|job| job["state"] != "running" && job["state"] != "queued"))
        })
    }

    /// A command that must fail with this error and exit code; what it said.
    pub(crate) fn refused(&self, arguments: &[&str], name: &str, code: i32) -> Result<String> {
        let said = self.agent.catena(&[&["--json"], arguments].concat())?;
        ensure!(said.code == code, "{arguments:?}: {said:?}\n{}", self.agent.log());
        let text = format!("{}{}", said.out, said.err);
        ensure!(text.contains(name), "{arguments:?}: {text}");
        Ok(text)
    }

    /// The SR is in order, and nothing of it is active that is not in use.
    pub(crate) fn clean(mut self) -> Result<()> {
        let report = self.agent.json(&["sr", "check", &self.sr])?;
        ensure!(report["clean"] == true, "{report}");
        wait_until("volumes are let go", || Ok(self.active()?.is_empty()))?;
        self.agent.stop()
    }

    fn report(&self, columns: &str) -> Result<Vec<Value>> {
        let group = self.group();
        let form =
            ["--reportformat", "json", "--units", "b", "--nosuffix", "--foreign", "-o", columns, &group];
        let document: Value = serde_json::from_str(&run("lvs", &form)?)?;
        Ok(document["report"][0]["lv"].as_array().context("a report")?.clone())
    }
}

/// An SR on a disk; its uuid.
pub(crate) fn create(agent: &Agent, disk: &Disk, name: &str, allocation: &str) -> Result<String> {
    let kind = ["sr", "create", "--type", "lvm", "--name", name];
    agent.ok(&[&kind[..], &["--devices", &text(&disk.path()), "--allocation", allocation]].concat())
}
