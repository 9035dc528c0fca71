//! Merges, copies and imports on logical volumes, with the sizes that `lvs` tells; in the lab.

mod harness;
#[path = "crash/merging.rs"]
mod points;

use anyhow::{Context, Result, ensure};
use harness::lab::{self, Disk, run};
use harness::nbd::Client;
use harness::{Agent, socket_of, text, wait_until};
use points::{MERGES_THERE, Merged};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::process::Stdio;

const MIB: u64 = 1 << 20;
/// The volume of a disk of 128 MiB in which every block has a place, in MiB.
const FULL: u64 = 136;

/// What so many blocks take, as a volume has it, in MiB.
fn holding(blocks: u64) -> u64 {
    (4_329_472 + blocks * (2 * MIB + 4096)).div_ceil(4 * MIB) * 4
}

/// An agent with an SR on logical volumes, on which nothing is merged unless a test says so.
struct Store {
    agent: Agent,
    sr: String,
    /// Goes with the test.
    _disk: Disk,
}

impl Store {
    fn new(mib: u64, allocation: &str) -> Result<Self> {
        let (agent, disk) = (Agent::start_mortal()?, Disk::new(mib)?);
        let device = text(&disk.path());
        let options = ["--name", "volumes", "--devices", &device, "--allocation", allocation];
        let sr = agent.ok(&[&["sr", "create", "--type", "lvm"][..], &options].concat())?;
        agent.ok(&["coalesce", "pause", &sr])?;
        Ok(Self { agent, sr, _disk: disk })
    }

    fn disk(&self, name: &str) -> Result<String> {
        self.agent.ok(&["vdi", "create", "--sr", &self.sr, "--name", name, "--size", "128MiB"])
    }

    /// Writes a part of each of these blocks, through an attachment: which takes fewer commands of lvm2 than as many writes.
    fn fill(&self, vdi: &str, blocks: impl IntoIterator<Item = u64>, byte: u8) -> Result<()> {
        let mut client = Client::connect(&socket_of(&self.agent.ok(&["vdi", "attach", vdi])?)?)?;
        for block in blocks {
            ensure!(
                client.write(block * 2 * MIB + 5000, &[byte; 70_000], 0)? == 0,
                "a write to block {block}"
            );
        }
        client.disconnect()?;
        self.agent.ok(&["vdi", "detach", vdi]).map(drop)
    }

    /// The sizes in MiB of all volumes of images, by name.
    fn volumes(&self) -> Result<BTreeMap<String, u64>> {
        let columns = "lv_name,lv_size,vg_name";
        let report = run("lvs", &["--foreign", "--noheadings", "--units", "m", "--nosuffix", "-o", columns])?;
        let mut sizes = BTreeMap::new();
        for line in report.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [name, size, group] = words[..]
                && group.ends_with(&self.sr)
                && name.starts_with("vhd-")
            {
                sizes.insert(name.to_owned(), size.split('.').next().context("a size")?.parse()?);
            }
        }
        Ok(sizes)
    }

    /// The volumes have these sizes, and the agent says the same.
    fn has(&self, wanted: &[u64], why: &str) -> Result<()> {
        let wanted = {
            let mut sorted = wanted.to_vec();
            sorted.sort_unstable();
            sorted
        };
        wait_until(why, || {
            let volumes = self.volumes()?;
            let mut found: Vec<u64> = volumes.values().copied().collect();
            found.sort_unstable();
            Ok(found == wanted)
        })
        .with_context(|| {
            format!("{why}: wanted {wanted:?}, found {:?}; {}", self.volumes(), self.agent.log())
        })?;
        let tree = self.agent.json(&["vdi", "tree", &self.sr])?;
        let mut nodes: Vec<Value> = tree["roots"].as_array().cloned().unwrap_or_default();
        let volumes = self.volumes()?;
        while let Some(node) = nodes.pop() {
            let container = node["container"].as_str().unwrap_or_default();
            let said = node["own_bytes"].as_u64().unwrap_or(0) / MIB;
            ensure!(volumes.get(container) == Some(&said), "{container}: {said} MiB said; {volumes:?}");
            nodes.extend(node["children"].as_array().cloned().unwrap_or_default());
        }
        Ok(())
    }

    fn merge(&self) -> Result<()> {
        self.agent.ok(&["coalesce", "resume", &self.sr])?;
        self.agent.ok(&["coalesce", "run", &self.sr, "--wait"])?;
        self.agent.ok(&["coalesce", "pause", &self.sr]).map(drop)
    }

    /// A disk over two base copies, of which one can be merged into the other; and its last snapshot.
    fn chain(&self, name: &str) -> Result<(String, String)> {
        self.chain_with(name, 0..0)
    }

    /// The same; the disk has more blocks of its own.
    fn chain_with(&self, name: &str, more: Range<u64>) -> Result<(String, String)> {
        let disk = self.disk(name)?;
        self.fill(&disk, 0..3, 1)?;
        let first = self.agent.ok(&["vdi", "snapshot", &disk])?;
        self.fill(&disk, 2..5, 2)?;
        let second = self.agent.ok(&["vdi", "snapshot", &disk])?;
        self.fill(&disk, (0..1).chain(more), 3)?;
        self.agent.ok(&["vdi", "destroy", &first])?;
        Ok((disk, second))
    }
}

#[test]
fn merges_grow_their_parent_by_what_they_bring() -> Result<()> {
    lab::test(|| {
        let store = Store::new(4 << 10, "thin")?;
        let (disk, snapshot) = store.chain("disk")?;
        let (before, kept) = (store.agent.hash(&disk)?, store.agent.hash(&snapshot)?);
        store.merge()?;
        store.has(&[holding(5), holding(1), holding(0)], "an inner merge")?;
        ensure!(store.agent.hash(&disk)? == before && store.agent.hash(&snapshot)? == kept, "after a merge");
        store.agent.ok(&["vdi", "destroy", &snapshot])?;
        store.merge()?;
        store.has(&[holding(5)], "a leaf merge")?;
        ensure!(store.agent.hash(&disk)? == before && store.agent.depth(&disk)? == 1, "after a leaf merge");
        store.agent.is_clean(&store.sr)
    })
}

#[test]
fn a_thick_disk_stays_full_and_a_guest_has_room() -> Result<()> {
    lab::test(|| {
        let store = Store::new(8 << 10, "thick")?;
        let (disk, snapshot) = store.chain("disk")?;
        store.agent.ok(&["vdi", "destroy", &snapshot])?;
        let before = store.agent.hash(&disk)?;
        store.merge()?;
        store.has(&[FULL], "merges of a thick disk")?;
        ensure!(store.agent.hash(&disk)? == before, "after merges");
        store.agent.ok(&["sr", "policy", &store.sr, "allocation=thin"])?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk])?;
        store.agent.ok(&["vdi", "attach", &disk])?;
        store.agent.ok(&["vdi", "destroy", &snapshot])?;
        store.merge()?;
        store.has(&[FULL], "a merge of the leaf of a disk in use")?;
        ensure!(store.agent.depth(&disk)? == 1, "a leaf of its own");
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.has(&[holding(5)], "a disk at rest")?;
        ensure!(store.agent.hash(&disk)? == before, "after a merge in use");
        store.agent.is_clean(&store.sr)
    })
}

#[test]
fn disks_come_in_and_go_out() -> Result<()> {
    lab::test(|| {
        let store = Store::new(4 << 10, "thin")?;
        let raw = store.agent.path("raw");
        let bytes: Vec<u8> =
            (0..9 * MIB / 4).flat_map(|n| u32::try_from(n % 9973 + 1).unwrap_or(1).to_le_bytes()).collect();
        fs::write(&raw, &bytes)?;
        let import = ["vdi", "import", "-", "--sr", &store.sr, "--name", "piped", "--format", "raw"];
        let mut cat = std::process::Command::new("cat").arg(&raw).stdout(Stdio::piped()).spawn()?;
        let output = store.agent.command(&import).stdin(cat.stdout.take().context("a pipe")?).output()?;
        ensure!(cat.wait()?.success() && output.status.success(), "{output:?}: {}", store.agent.log());
        let piped = String::from_utf8(output.stdout)?.trim().to_owned();
        store.has(&[holding(5)], "an import of a pipe")?;
        let hash = store.agent.hash(&piped)?;
        let exported = store.agent.path("out.vhd");
        store.agent.ok(&["vdi", "export", &piped, &text(&exported), "--format", "vhd"])?;
        let again =
            ["vdi", "import", &text(&exported), "--sr", &store.sr, "--name", "again", "--format", "vhd"];
        let again = store.agent.ok(&again)?;
        store.has(&[holding(5); 2], "an import of a file")?;
        let files = store.agent.path("files");
        store.agent.ok(&[
            "sr",
            "create",
            "--type",
            "file",
            "--name",
            "files",
            "--location",
            &text(&files),
        ])?;
        let there = store.agent.ok(&["vdi", "copy", &again, "--sr", "files"])?;
        let back = store.agent.ok(&["vdi", "copy", &there, "--sr", &store.sr])?;
        let beside = store.agent.ok(&["vdi", "copy", &piped])?;
        store.has(&[holding(5); 4], "copies")?;
        for vdi in [&again, &there, &back, &beside] {
            ensure!(store.agent.hash(vdi)? == hash, "{vdi}");
        }
        store.agent.is_clean(&store.sr)
    })
}

#[test]
fn a_keeper_that_dies_in_a_merge_of_base_copies() -> Result<()> {
    lab::test(|| all(Merged::Inner))
}

#[test]
fn a_keeper_that_dies_in_a_merge_of_a_leaf() -> Result<()> {
    lab::test(|| all(Merged::Leaf))
}

#[test]
fn a_keeper_that_dies_in_a_merge_of_a_leaf_in_use() -> Result<()> {
    lab::test(|| all(Merged::Live))
}

/// Plays all points of one kind of merge, one after another on one SR.
fn all(what: Merged) -> Result<()> {
    let mut store = Store::new(4 << 10, "thin")?;
    for (at, _) in MERGES_THERE.iter().filter(|(_, one)| *one == what) {
        play(&mut store, what, at).with_context(|| format!("{what:?} at {at}"))?;
    }
    Ok(())
}

fn play(store: &mut Store, what: Merged, at: &str) -> Result<()> {
    // The parent of a leaf must grow for it.
    let (disk, snapshot) = store.chain_with("disk", if what == Merged::Inner { 0..0 } else { 5..8 })?;
    if what != Merged::Inner {
        store.merge()?;
        store.agent.ok(&["vdi", "destroy", &snapshot])?;
    }
    let hash = store.agent.hash(&disk)?;
    if what == Merged::Live {
        store.agent.ok(&["vdi", "attach", &disk])?;
    }
    store.agent.arm(at)?;
    // Who dies of it may not answer.
    store.agent.catena(&["coalesce", "resume", &store.sr])?;
    store.agent.await_death(at)?;
    store.agent.wait_attached(&store.sr)?;
    store.merge()?;
    if what == Merged::Live {
        store.agent.ok(&["vdi", "detach", &disk])?;
    }
    match what {
        Merged::Inner => store.has(&[holding(5), holding(1), holding(0)], "after all")?,
        Merged::Leaf | Merged::Live => store.has(&[holding(8)], "after all")?,
    }
    ensure!(store.agent.hash(&disk)? == hash, "{}", store.agent.log());
    store.agent.is_clean(&store.sr)?;
    store.agent.ok(&["vdi", "destroy", &disk])?;
    if what == Merged::Inner {
        store.agent.ok(&["vdi", "destroy", &snapshot])?;
    }
    store.merge()?;
    store.has(&[], "nothing is left")
}
