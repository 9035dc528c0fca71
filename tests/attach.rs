//! Disks that are attached, with the clients that a hypervisor has: what is written through NBD is on the disk, whoever dies
//! meanwhile; who may attach what; snapshots, clones and merges of disks in use. `trouble` has processes that hang, storage that
//! fails, and hosts that are started anew.

mod client;
mod harness;
#[path = "attach/trouble.rs"]
mod trouble;

use anyhow::{Context, Result, ensure};
use client::Client;
use harness::{Agent, peer, sha256, wait_for_end, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// An agent with one SR, and a disk in it.
struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
}

impl Scene {
    fn set() -> Result<Self> {
        let agent = Agent::start()?;
        let location = agent.path("sr");
        fs::create_dir(&location)?;
        let place = location.to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &place])?;
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "disk"])?;
        Ok(Self { agent, sr, disk })
    }

    fn attach(&self) -> Result<String> {
        self.agent.ok(&["vdi", "attach", &self.disk])
    }

    fn detach(&self) -> Result<()> {
        self.agent.ok(&["vdi", "detach", &self.disk]).map(drop)
    }

    fn record(&self, vdi: &str) -> Result<Value> {
        let record = self.agent.call("VDI.get_record", &json!({"vdi": vdi}))?;
        record.map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// What the client of a disk that is attached reads, as a hash.
    fn hash_through(&self, uri: &str) -> Result<String> {
        let file = self.agent.path("copy");
        peer("libnbd-bin", "nbdcopy", &[uri, &file.to_string_lossy()])?;
        let hash = sha256(&file)?;
        fs::remove_file(file)?;
        Ok(hash)
    }

    /// The only datapath.
    fn datapath(&self) -> Result<Pid> {
        let mut found = None;
        wait_until("a datapath runs", || {
            found = self.agent.served().first().copied();
            Ok(found.is_some())
        })?;
        found.context("no datapath")
    }

    fn events(&self, kind: &str) -> Result<usize> {
        let list = self.agent.call("Event.list", &json!({"sr": self.sr}))?;
        let list = list.map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(list["events"].as_array().into_iter().flatten().filter(|event| event["kind"] == kind).count())
    }

    fn clean(&self) -> Result<()> {
        self.agent.is_clean(&self.sr)
    }

    fn refused(&self, arguments: &[&str], name: &str, code: i32) -> Result<()> {
        let said = self.agent.catena(arguments)?;
        ensure!(said.code == code, "{arguments:?}: exit {}: {}{}", said.code, said.out, said.err);
        let mut all = vec!["--json"];
        all.extend(arguments);
        let said = self.agent.catena(&all)?;
        let text = format!("{}{}", said.out, said.err);
        ensure!(text.contains(name) && text.contains("hint"), "{arguments:?}: {text}");
        Ok(())
    }
}

fn kill_and_wait(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGKILL)?;
    wait_for_end(&[pid])
}

#[test]
fn what_a_client_writes_is_on_the_disk() -> Result<()> {
    let scene = Scene::set()?;
    scene.agent.write(&scene.disk, 5 * MIB, &[7; 4096])?;
    let uri = scene.attach()?;
    ensure!(uri.starts_with("nbd+unix:///?socket="), "{uri}");
    ensure!(scene.record(&scene.disk)?["attached"] == "rw");
    // Clients have the group of the agent, the keeper alone has the rest.
    let directory = scene.agent.path("run/catena/vdi").join(&scene.disk);
    for (name, mode) in [("", 0o750), ("nbd.sock", 0o660), ("control.sock", 0o600), ("pending", 0o600)] {
        let found = fs::metadata(directory.join(name))?.permissions().mode() & 0o777;
        ensure!(found == mode, "{name}: {found:o}, not {mode:o}");
    }
    let info = peer("libnbd-bin", "nbdinfo", &["--size", &uri])?;
    ensure!(info.trim() == SIZE.to_string(), "{info}");
    let mut client = Client::connect(&uri)?;
    client.run("read -P 7 5M 4k")?;
    client.run("write -P 1 1M 64k")?;
    client.run("write -P 2 20M 3M")?;
    client.run("read -P 2 20M 3M")?;
    client.close()?;
    scene.detach()?;
    ensure!(scene.record(&scene.disk)?["attached"].is_null());
    ensure!(scene.agent.served().is_empty(), "a datapath is left");
    let own = scene.record(&scene.disk)?["own_bytes"].as_u64();
    ensure!(own >= Some(3 * MIB), "what the client has written is not measured: {own:?}");
    ensure!(scene.agent.read(&scene.disk, 1 << 20, 65536)?.iter().all(|byte| *byte == 1));
    ensure!(scene.agent.read(&scene.disk, 20 << 20, 3 << 20)?.iter().all(|byte| *byte == 2));
    ensure!(scene.agent.read(&scene.disk, 5 << 20, 4096)?.iter().all(|byte| *byte == 7));
    scene.clean()
}

#[test]
fn one_may_write_or_many_may_read() -> Result<()> {
    let scene = Scene::set()?;
    let disk = scene.disk.as_str();
    scene.agent.write(disk, 0, &[9; 65536])?;
    let uri = scene.attach()?;
    let target = scene.agent.path("export").to_string_lossy().into_owned();
    for arguments in [
        &["vdi", "attach", disk][..],
        &["vdi", "attach", "--read-only", disk],
        &["vdi", "destroy", disk],
        &["vdi", "read", disk, "--offset", "0", "--length", "512", &target],
    ] {
        scene.refused(arguments, "vdi_in_use", 4)?;
    }
    scene.refused(&["sr", "detach", "disks"], "sr_in_use", 4)?;
    scene.detach()?;
    scene.refused(&["vdi", "detach", disk], "vdi_unavailable", 4)?;

    let reader = scene.agent.ok(&["vdi", "attach", "--read-only", disk])?;
    ensure!(scene.agent.ok(&["vdi", "attach", "--read-only", disk])? == reader && reader == uri);
    ensure!(scene.record(disk)?["attached"] == "ro");
    scene.refused(&["vdi", "attach", disk], "vdi_in_use", 4)?;
    peer("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read -P 9 0 64k", &reader])?;
    ensure!(peer("libnbd-bin", "nbdinfo", &["--is", "read-only", &reader]).is_ok());
    let hash = scene.hash_through(&reader)?;
    ensure!(scene.agent.hash(disk)? == hash, "an export beside a reader");
    scene.detach()?;
    ensure!(scene.record(disk)?["attached"] == "ro", "one reader is left");
    scene.detach()?;
    ensure!(scene.record(disk)?["attached"].is_null());
    scene.agent.ok(&["sr", "detach", "disks"]).map(drop)
}

#[test]
fn whoever_dies_the_client_goes_on() -> Result<()> {
    let mut scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let first = scene.datapath()?;

    // Written and not flushed: what was acknowledged is taken over by the successor (D8).
    client.run("write -P 2 1M 64k")?;
    kill_and_wait(first)?;
    client.run("write -P 3 4M 1M")?;
    client.run("read -P 2 1M 64k")?;
    let second = scene.datapath()?;
    ensure!(first != second, "the dead one was not replaced");
    ensure!(scene.events("vdi.datapath_died")? == 1, "nobody was told of its end");

    for keeper in scene.agent.processes("catena-keeper") {
        kill_and_wait(keeper)?;
    }
    client.run("write -P 4 8M 1M")?;
    wait_until("the keeper is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    scene.agent.kill()?;
    client.run("write -P 5 12M 1M")?;
    scene.agent.launch(None)?;
    scene.agent.stop()?;
    client.run("write -P 6 16M 1M")?;
    scene.agent.launch(None)?;
    wait_until("the SR is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    ensure!(scene.datapath()? == second, "a datapath that lived was replaced");
    for (pattern, at) in
        [(1, "0 1M"), (2, "1M 64k"), (3, "4M 1M"), (4, "8M 1M"), (5, "12M 1M"), (6, "16M 1M")]
    {
        client.run(&format!("read -P {pattern} {at}"))?;
    }

    // All of them at once.
    let all = [scene.agent.pid().context("the front")?, second];
    scene.agent.kill()?;
    kill_and_wait(all[1])?;
    scene.agent.launch(None)?;
    client.run("write -P 7 20M 1M")?;
    client.run("read -P 6 16M 1M")?;
    client.close()?;
    scene.detach()?;
    ensure!(scene.agent.read(&scene.disk, 1 << 20, 65536)?.iter().all(|byte| *byte == 2));
    ensure!(scene.agent.read(&scene.disk, 20 << 20, 1 << 20)?.iter().all(|byte| *byte == 7));
    scene.clean()
}

#[test]
fn a_dead_datapath_leaves_nothing_behind_when_its_disk_is_detached() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 8 3M 64k")?;
    kill_and_wait(scene.datapath()?)?;
    scene.detach()?;
    drop(client);
    ensure!(scene.agent.served().is_empty());
    ensure!(!scene.agent.path("run/catena/vdi").join(&scene.disk).exists());
    ensure!(scene.agent.read(&scene.disk, 3 << 20, 65536)?.iter().all(|byte| *byte == 8));
    scene.clean()
}

/// A snapshot of a disk that is being written holds all that was answered before it was asked for, nothing that was begun after it
/// was answered, and of what is in between the beginning.
#[test]
fn snapshots_and_clones_are_of_one_instant() -> Result<()> {
    const SLOTS: u64 = 96;
    const SLOT: u64 = 64 << 10;
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    let mut taken = Vec::new();
    for slot in 0..SLOTS {
        client.begin(&format!("write -P 1 {} {SLOT}", slot * SLOT))?;
        if slot % 16 == 9 {
            let verb = if slot % 32 == 9 { "snapshot" } else { "clone" };
            let name = format!("{verb} {slot}");
            taken.push((slot, scene.agent.ok(&["vdi", verb, &scene.disk, "--name", &name])?));
        }
        client.end()?;
    }
    client.run(&format!("read -P 1 0 {}", SLOTS * SLOT))?;
    client.close()?;
    scene.detach()?;
    for (slot, vdi) in &taken {
        let bytes = scene.agent.read(vdi, 0, SLOTS * SLOT)?;
        let ones = bytes.iter().take_while(|byte| **byte == 1).count() as u64;
        let rest = &bytes[usize::try_from(ones)?..];
        ensure!(ones >= slot * SLOT && ones <= (slot + 1) * SLOT, "{ones} bytes at slot {slot}");
        ensure!(rest.iter().all(|byte| *byte == 0), "something of later is in it");
    }
    scene.clean()?;
    scene.agent.run_merges(&scene.sr)?;
    scene.clean()
}

/// An image on a file system in memory is open before the turn of the event loop in which that was begun is over.
#[test]
fn an_idle_disk_on_a_fast_storage_is_snapshotted_at_once() -> Result<()> {
    let agent = Agent::start()?;
    let memory = tempfile::Builder::new().prefix("cat").tempdir_in("/dev/shm")?;
    let place = memory.path().join("sr").to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "fast", "--location", &place])?;
    let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &SIZE.to_string(), "--name", "disk"])?;
    agent.ok(&["coalesce", "pause", &sr])?;
    agent.ok(&["vdi", "attach", &disk])?;
    for number in 0..12 {
        agent.ok(&["vdi", "snapshot", &disk, "--name", &number.to_string()])?;
    }
    agent.ok(&["vdi", "detach", &disk])?;
    agent.ok(&["sr", "detach", &sr]).map(drop)
}

#[test]
fn many_clones_of_an_attached_empty_leaf_share_its_base() -> Result<()> {
    let scene = Scene::set()?;
    scene.agent.write(&scene.disk, 0, &[1; 4096])?;
    let snapshot = scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "s"])?;
    scene.attach()?;
    for _ in 0..3 {
        let clone = scene.agent.ok(&["vdi", "clone", &scene.disk, "--name", "c"])?;
        ensure!(scene.record(&clone)?["depth"] == 2, "a clone of an empty leaf is no deeper than it");
        ensure!(scene.agent.read(&clone, 0, 4096)? == [1; 4096]);
    }
    ensure!(scene.record(&scene.disk)?["depth"] == 2 && scene.record(&snapshot)?["depth"] == 2);
    scene.detach()
}

#[test]
fn base_copies_are_merged_under_a_disk_in_use() -> Result<()> {
    let scene = Scene::set()?;
    let mut expected = vec![0_u8; usize::try_from(SIZE)?];
    let mut put = |at: u64, byte: u8, length: u64| -> Result<()> {
        let (at, length) = (usize::try_from(at)?, usize::try_from(length)?);
        expected[at..at + length].fill(byte);
        Ok(())
    };
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    let mut snapshots = Vec::new();
    for round in 1..=4_u64 {
        let at = round * MIB + 512 * round;
        client.run(&format!("write -P {round} {at} 3M"))?;
        put(at, u8::try_from(round)?, 3 * MIB)?;
        snapshots.push(scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", &format!("s{round}")])?);
    }
    client.run("write -P 9 7M 64k")?;
    put(7 * MIB, 9, 65536)?;
    ensure!(scene.record(&scene.disk)?["depth"] == 5);
    for snapshot in &snapshots[..3] {
        scene.agent.ok(&["vdi", "destroy", snapshot])?;
    }
    client.begin("write -P 10 9M 1M")?;
    put(9 * MIB, 10, MIB)?;
    scene.agent.run_merges(&scene.sr)?;
    client.end()?;
    let depth = scene.record(&scene.disk)?["depth"].clone();
    ensure!(depth == 2, "the chain is still {depth} deep");
    let file = scene.agent.path("expected");
    fs::write(&file, &expected)?;
    let hash = sha256(&file)?;
    ensure!(scene.hash_through(&uri)? == hash, "the client sees something else after the merges");
    let images = fs::read_dir(scene.agent.path("sr"))?.flatten();
    let images = images.filter(|entry| entry.file_name().to_string_lossy().ends_with(".vhd")).count();
    ensure!(images == 3, "{images} images are left");

    // The last snapshot goes too: what is left is a leaf merge, which the disk's process carries out.
    scene.agent.ok(&["vdi", "destroy", &snapshots[3]])?;
    scene.agent.run_merges(&scene.sr)?;
    ensure!(scene.record(&scene.disk)?["depth"] == 1);
    ensure!(scene.hash_through(&uri)? == hash, "the client sees something else with its leaf merged");
    client.close()?;
    scene.detach()?;
    ensure!(scene.agent.hash(&scene.disk)? == hash);
    scene.clean()
}

#[test]
fn disks_of_one_snapshot_are_held_back_together() -> Result<()> {
    let scene = Scene::set()?;
    let other =
        scene.agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", "32MiB", "--name", "other"])?;
    let uris = [scene.attach()?, scene.agent.ok(&["vdi", "attach", &other])?];
    let mut clients = [Client::connect(&uris[0])?, Client::connect(&uris[1])?];
    // Each write to the second disk follows one to the first: a set of one instant never has more of the second.
    let mut sets = Vec::new();
    for slot in 0..40_u64 {
        clients[0].run(&format!("write -P 1 {} 4k", slot * 4096))?;
        clients[1].begin(&format!("write -P 1 {} 4k", slot * 4096))?;
        if slot % 10 == 5 {
            let made = scene.agent.json(&["vdi", "snapshot", &scene.disk, &other, "--name", "set"])?;
            sets.push(made);
        }
        clients[1].end()?;
    }
    for client in clients {
        client.close()?;
    }
    scene.detach()?;
    scene.agent.ok(&["vdi", "detach", &other])?;
    for set in &sets {
        let written = |index: usize| -> Result<usize> {
            let vdi = set["vdis"][index].as_str().context("a snapshot")?;
            Ok(scene.agent.read(vdi, 0, 40 * 4096)?.iter().take_while(|byte| **byte == 1).count())
        };
        let (first, second) = (written(0)?, written(1)?);
        ensure!(first == second || first == second + 4096, "{first} and {second} bytes");
    }
    scene.clean()
}

#[test]
fn a_catalog_that_is_made_anew_finds_the_disks_in_use() -> Result<()> {
    let mut scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let snapshot = scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "s"])?;
    client.run("write -P 2 1M 1M")?;
    let datapath = scene.datapath()?;
    scene.agent.ok(&["vdi", "attach", "--read-only", &snapshot])?;
    let served = scene.agent.served();
    scene.agent.kill()?;
    let home = scene.agent.path("sr/.catena");
    for name in ["catalog.db", "catalog.db-wal", "catalog.bak"] {
        let path = home.join(name);
        if path.exists() {
            fs::remove_file(path)?;
        }
    }
    scene.agent.launch(None)?;
    let place = scene.agent.path("sr").to_string_lossy().into_owned();
    scene.agent.ok(&["sr", "introduce", "--type", "file", "--location", &place])?;
    ensure!(scene.record(&scene.disk)?["attached"] == "rw", "the disk in use was not found");
    ensure!(served.contains(&datapath) && scene.agent.served() == served, "a process was replaced");
    ensure!(scene.record(&snapshot)?["attached"] == "ro", "a disk in use for reading was not found");
    scene.agent.ok(&["vdi", "detach", &snapshot])?;
    client.run("write -P 3 2M 1M")?;
    client.close()?;
    scene.detach()?;
    let bytes = scene.agent.read(&scene.disk, 0, 3 << 20)?;
    ensure!(bytes == [vec![1; 1 << 20], vec![2; 1 << 20], vec![3; 1 << 20]].concat());
    ensure!(scene.agent.read(&snapshot, 0, 2 << 20)? == [vec![1; 1 << 20], vec![0; 1 << 20]].concat());
    scene.clean()
}

#[test]
fn base_copies_are_merged_under_readers() -> Result<()> {
    let scene = Scene::set()?;
    let mut snapshots = Vec::new();
    for round in 1..=3_u8 {
        scene.agent.write(&scene.disk, u64::from(round) * MIB, &vec![round; 3 << 20])?;
        snapshots.push(scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", &round.to_string()])?);
    }
    let hash = scene.agent.hash(&scene.disk)?;
    let uri = scene.agent.ok(&["vdi", "attach", "--read-only", &scene.disk])?;
    let other = scene.agent.ok(&["vdi", "attach", "--read-only", &snapshots[2]])?;
    let before = scene.hash_through(&uri)?;
    ensure!(before == hash, "a reader sees something else");
    for snapshot in &snapshots[..2] {
        scene.agent.ok(&["vdi", "destroy", snapshot])?;
    }
    scene.agent.run_merges(&scene.sr)?;
    ensure!(scene.record(&scene.disk)?["depth"] == 2, "nothing was merged");
    let images = fs::read_dir(scene.agent.path("sr"))?.flatten();
    let images = images.filter(|entry| entry.file_name().to_string_lossy().ends_with(".vhd")).count();
    ensure!(images == 3, "{images} images are left");
    ensure!(scene.hash_through(&uri)? == hash && scene.hash_through(&other)? == hash, "after the merges");
    scene.agent.ok(&["vdi", "detach", &snapshots[2]])?;
    scene.agent.ok(&["vdi", "destroy", &snapshots[2]])?;
    scene.agent.run_merges(&scene.sr)?;
    let status = scene.agent.call("Coalesce.status", &json!({"sr": scene.sr}))?;
    let status = status.map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(status["srs"][0]["reason"]["code"] == "chain_attached", "the leaf of a reader: {status}");
    scene.agent.ok(&["vdi", "detach", &scene.disk])?;
    ensure!(scene.agent.hash(&scene.disk)? == hash);
    scene.clean()
}
