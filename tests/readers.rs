//! Disks that are read while something is done to them: attached for reading while they are snapshotted, cloned and reverted to;
//! exported while somebody comes to write them; exported and copied where there is no room to keep them.

mod client;
mod harness;

use anyhow::{Context, Result, anyhow, ensure};
use client::Client;
use harness::{Agent, nbd, peer, sha256, socket_of, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// An agent with one SR, and a disk in it.
struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
}

impl Scene {
    fn set() -> Result<Self> {
        let agent = Agent::start()?;
        let place = agent.path("sr").to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "disk"])?;
        agent.write(&disk, 0, &[1; 1 << 20])?;
        Ok(Self { agent, sr, disk })
    }

    fn read_only(&self, vdi: &str) -> Result<String> {
        self.agent.ok(&["vdi", "attach", "--read-only", vdi])
    }

    fn detach(&self, vdi: &str) -> Result<()> {
        self.agent.ok(&["vdi", "detach", vdi]).map(drop)
    }

    fn snapshot(&self) -> Result<String> {
        self.agent.ok(&["vdi", "snapshot", &self.disk])
    }

    fn show(&self, vdi: &str, field: &str) -> Result<Value> {
        Ok(self.agent.json(&["vdi", "show", vdi])?[field].clone())
    }

    fn run_merges(&self) -> Result<()> {
        self.agent.run_merges(&self.sr)
    }

    /// What a client reads, as a hash.
    fn hash_through(&self, uri: &str) -> Result<String> {
        let file = self.agent.path("copy");
        peer("libnbd-bin", "nbdcopy", &[uri, &file.to_string_lossy()])?;
        let hash = sha256(&file)?;
        fs::remove_file(file)?;
        Ok(hash)
    }

    /// The images that the disk's process reads, as its directory says.
    fn served_chain(&self, vdi: &str) -> Result<usize> {
        let state = self.agent.path("run/catena/vdi").join(vdi).join("state.json");
        let state: Value = serde_json::from_str(&fs::read_to_string(state)?)?;
        Ok(state["chain"].as_array().context("a chain")?.len())
    }

    fn refused(&self, arguments: &[&str], name: &str, reason: &str) -> Result<()> {
        let said = self.agent.catena(&[&["--json"], arguments].concat())?;
        let error = serde_json::from_str::<Value>(&said.err)?["error"].clone();
        let matches = error["name"] == name && error["message"].as_str().unwrap_or_default().contains(reason);
        ensure!(said.code != 0 && matches, "{arguments:?}: {said:?}");
        Ok(())
    }

    fn is_clean(&self) -> Result<()> {
        self.agent.is_clean(&self.sr)
    }
}

#[test]
fn what_is_read_can_be_snapshotted_and_cloned() -> Result<()> {
    let scene = Scene::set()?;
    let hash = scene.agent.hash(&scene.disk)?;
    let uri = scene.read_only(&scene.disk)?;
    let mut client = nbd::Client::connect(&socket_of(&uri)?)?;
    let process = scene.agent.served();
    let mut taken = vec![scene.snapshot()?];
    ensure!(scene.show(&scene.disk, "attached")? == "ro" && scene.show(&scene.disk, "depth")? == 2);
    ensure!(scene.served_chain(&scene.disk)? == 2, "its process does not know of the new leaf");
    // The new leaf owns nothing: clones of it share the base.
    taken.push(scene.agent.ok(&["vdi", "clone", &scene.disk, "--name", "beside"])?);
    ensure!(scene.show(&taken[1], "depth")? == 2 && scene.served_chain(&scene.disk)? == 2);
    for _ in 0..2 {
        taken.push(scene.snapshot()?);
    }
    ensure!(scene.served_chain(&scene.disk)? == 4);

    // Of two disks at one instant, one of them being written.
    let other =
        scene.agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", "16MiB", "--name", "other"])?;
    let mut guest = Client::connect(&scene.agent.ok(&["vdi", "attach", &other])?)?;
    guest.run("write -P 7 0 1M")?;
    let set = scene.agent.json(&["vdi", "snapshot", &scene.disk, &other])?;
    guest.run("write -P 8 0 1M")?;
    let of_other = set["vdis"][1].as_str().context("a snapshot")?;
    ensure!(scene.agent.read(of_other, 0, MIB)?.iter().all(|byte| *byte == 7));
    taken.push(set["vdis"][0].as_str().context("a snapshot")?.to_owned());
    guest.close()?;
    scene.detach(&other)?;

    for vdi in &taken {
        ensure!(scene.agent.hash(vdi)? == hash, "a copy of what is read holds something else");
    }
    // What was between is merged, which the reader goes through.
    for vdi in &taken {
        scene.agent.ok(&["vdi", "destroy", vdi, "--yes"])?;
    }
    scene.run_merges()?;
    ensure!(scene.served_chain(&scene.disk)? == 2 && scene.show(&scene.disk, "depth")? == 2);
    let bytes = client.read(0, 1 << 20)?.map_err(|error| anyhow!("error {error}"))?;
    ensure!(bytes.iter().all(|byte| *byte == 1), "who was connected reads something else");
    ensure!(scene.hash_through(&uri)? == hash && scene.agent.served() == process);
    scene.refused(&["vdi", "attach", &scene.disk], "vdi_in_use", "for reading")?;
    client.disconnect()?;
    scene.detach(&scene.disk)?;
    scene.run_merges()?;
    ensure!(scene.show(&scene.disk, "depth")? == 1 && scene.agent.hash(&scene.disk)? == hash);
    scene.is_clean()
}

#[test]
fn a_clone_of_what_is_read_is_its_own() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.read_only(&scene.disk)?;
    let clone = scene.agent.ok(&["vdi", "clone", &scene.disk, "--name", "clone"])?;
    ensure!(scene.show(&clone, "depth")? == 2 && scene.show(&scene.disk, "depth")? == 2);
    let mut guest = Client::connect(&scene.agent.ok(&["vdi", "attach", &clone])?)?;
    guest.run("write -P 9 0 64k")?;
    guest.close()?;
    peer("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1M", &uri])?;
    scene.detach(&clone)?;
    scene.detach(&scene.disk)?;
    ensure!(scene.agent.read(&clone, 0, 65536)?.iter().all(|byte| *byte == 9));
    scene.is_clean()
}

#[test]
fn a_disk_goes_back_to_a_snapshot_that_is_in_use() -> Result<()> {
    let scene = Scene::set()?;
    let snapshot = scene.snapshot()?;
    scene.agent.write(&scene.disk, 0, &[2; 4096])?;
    let uri = scene.read_only(&snapshot)?;
    scene.agent.ok(&["vdi", "revert", &scene.disk, &snapshot])?;
    ensure!(scene.agent.read(&scene.disk, 0, 4096)? == [1; 4096]);
    peer("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1M", &uri])?;
    scene.detach(&snapshot)?;

    // As it is now, also where it is being written.
    let mut guest = Client::connect(&scene.agent.ok(&["vdi", "attach", &snapshot])?)?;
    guest.run("write -P 3 0 4k")?;
    scene.agent.ok(&["vdi", "revert", &scene.disk, &snapshot])?;
    guest.run("write -P 4 0 4k")?;
    guest.close()?;
    scene.detach(&snapshot)?;
    ensure!(scene.agent.read(&scene.disk, 0, 4096)? == [3; 4096]);
    ensure!(scene.agent.read(&snapshot, 0, 4096)? == [4; 4096]);

    // Nobody's disk becomes another while he uses it; what the snapshot holds can be had beside it.
    scene.agent.ok(&["vdi", "attach", &scene.disk])?;
    scene.refused(&["vdi", "revert", &scene.disk, &snapshot], "vdi_in_use", "for writing")?;
    let beside = scene.agent.ok(&["vdi", "clone", &snapshot, "--name", "beside"])?;
    ensure!(scene.agent.read(&beside, 0, 4096)? == [4; 4096]);
    scene.detach(&scene.disk)?;
    scene.run_merges()?;
    scene.is_clean()
}

#[test]
fn what_a_job_reads_can_be_written_by_a_guest_that_comes_later() -> Result<()> {
    let scene = Scene::set()?;
    let hash = scene.agent.hash(&scene.disk)?;
    let (job, mut reader) = scene.agent.begin_export(&scene.disk)?;
    let mut guest = Client::connect(&scene.agent.ok(&["vdi", "attach", &scene.disk])?)?;
    ensure!(scene.show(&scene.disk, "depth")? == 2, "what is read is not kept");
    ensure!(scene.agent.json(&["vdi", "list"])?["vdis"].as_array().context("vdis")?.len() == 1);
    guest.run("write -P 2 0 16M")?;
    guest.run("read -P 2 0 16M")?;
    // It comes and goes.
    guest.close()?;
    scene.detach(&scene.disk)?;
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let job = scene.agent.call("Job.wait", &json!({"job": job}))?.map_err(|error| anyhow!("{error}"))?;
    ensure!(job["state"] == "done", "{job}");
    let file = scene.agent.path("exported");
    fs::write(&file, &bytes)?;
    ensure!(sha256(&file)? == hash, "the export has something of later");
    ensure!(scene.agent.read(&scene.disk, 0, SIZE)?.iter().all(|byte| *byte == 2));
    scene.run_merges()?;
    ensure!(scene.show(&scene.disk, "depth")? == 1, "nothing of it is left");
    scene.is_clean()
}

#[test]
fn what_a_job_reads_is_in_use_where_it_cannot_be_kept() -> Result<()> {
    let scene = Scene::set()?;
    let snapshot = scene.snapshot()?;
    let (_, reader) = scene.agent.begin_export(&snapshot)?;
    scene.refused(&["vdi", "attach", &snapshot], "vdi_in_use", "it is a snapshot")?;
    let uri = scene.read_only(&snapshot)?;
    peer("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1M", &uri])?;
    scene.detach(&snapshot)?;
    // The disk's own leaf is read by nobody.
    scene.agent.ok(&["vdi", "attach", &scene.disk])?;
    ensure!(scene.show(&scene.disk, "depth")? == 2);
    scene.detach(&scene.disk)?;
    drop(reader);

    for _ in 0..28 {
        scene.snapshot()?;
    }
    ensure!(scene.show(&scene.disk, "depth")? == 30);
    let (job, reader) = scene.agent.begin_export(&scene.disk)?;
    scene.refused(&["vdi", "attach", &scene.disk], "vdi_in_use", "has no room")?;
    scene.agent.call("Job.cancel", &json!({"job": job}))?.map_err(|error| anyhow!("{error}"))?;
    drop(reader);
    wait_until(
        "the export has ended",
        || Ok(scene.agent.catena(&["vdi", "attach", &scene.disk])?.code == 0),
    )?;
    scene.detach(&scene.disk)
}

#[test]
fn who_waits_gets_an_export_and_a_copy_of_a_chain_at_its_limit() -> Result<()> {
    let scene = Scene::set()?;
    let place = scene.agent.path("other").to_string_lossy().into_owned();
    let other =
        scene.agent.ok(&["sr", "create", "--type", "file", "--name", "other", "--location", &place])?;
    let uri = scene.agent.ok(&["vdi", "attach", &scene.disk])?;
    let mut guest = nbd::Client::connect(&socket_of(&uri)?)?;
    let mut snapshots = Vec::new();
    for level in 2..=30_u8 {
        snapshots.push(scene.snapshot()?);
        ensure!(guest.write(0, &[level; 4096], 0)? == 0);
    }
    let target = scene.agent.path("new.raw").to_string_lossy().into_owned();
    let export = ["vdi", "export", &scene.disk, &target, "--format", "raw", "--wait"];
    let copies = [
        &["vdi", "copy", &scene.disk, "--wait"][..],
        &["vdi", "copy", &scene.disk, "--wait", "--sr", &other],
    ];
    for arguments in copies.into_iter().chain([&export[..]]) {
        // No merge can help.
        scene.refused(arguments, "chain_too_long", "30 is the limit")?;
    }
    scene.agent.ok(&["coalesce", "pause", &scene.sr])?;
    for (arguments, snapshot) in copies.into_iter().chain([&export[..]]).zip(&snapshots) {
        scene.agent.ok(&["vdi", "destroy", snapshot, "--yes"])?;
        // Nor while merges rest.
        scene.refused(arguments, "chain_too_long", "30 is the limit")?;
        scene.agent.ok(&["coalesce", "resume", &scene.sr])?;
        let printed = scene.agent.ok(arguments)?;
        match arguments[1] {
            "copy" => ensure!(scene.agent.read(&printed, 0, 4096)? == [30; 4096]),
            _ => ensure!(fs::read(&target)?[..4096] == [30; 4096]),
        }
        // What was kept for it is merged; the next one finds a chain at its limit again.
        scene.agent.ok(&["coalesce", "pause", &scene.sr])?;
        ensure!(guest.write(0, &[30; 4096], 0)? == 0);
        while scene.show(&scene.disk, "depth")? != 30 {
            scene.snapshot()?;
            ensure!(guest.write(0, &[30; 4096], 0)? == 0);
        }
    }
    guest.disconnect()?;
    scene.detach(&scene.disk)?;
    scene.is_clean()
}

#[test]
fn base_copies_that_grow_are_read_as_before() -> Result<()> {
    let scene = Scene::set()?;
    let agent = &scene.agent;
    agent.ok(&["coalesce", "pause", &scene.sr])?;
    let content = vec![7; usize::try_from(SIZE)?];
    let last = content.len() - (2 << 20);
    let mut kept = Vec::new();
    for number in 0..12 {
        let name = format!("disk {number}");
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", &size, "--name", &name])?;
        // Its last block comes first in the image, and makes room for a longer block table when that grows.
        agent.write(&disk, last as u64, &content[last..])?;
        agent.write(&disk, 0, &content[..last])?;
        let below = agent.ok(&["vdi", "snapshot", &disk])?;
        agent.ok(&["vdi", "resize", &disk, "64GiB"])?;
        kept.push(agent.ok(&["vdi", "snapshot", &disk])?);
        agent.ok(&["vdi", "destroy", &below, "--yes"])?;
    }
    agent.ok(&["coalesce", "resume", &scene.sr])?;
    // So many that one is reading whenever a merge begins, and that calls come one behind the other.
    std::thread::scope(|scope| {
        let read_on = || -> Result<()> {
            for vdi in &kept {
                while scene.show(vdi, "depth")?.as_u64() > Some(2) {
                    ensure!(agent.read(vdi, 0, SIZE)? == content, "what is read beside a merge is wrong");
                }
            }
            Ok(())
        };
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(read_on)).collect();
        let panicked = |_| Err(anyhow!("a reader panicked"));
        readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(panicked))
    })?;
    scene.run_merges()?;
    for vdi in &kept {
        ensure!(agent.read(vdi, 0, SIZE)? == content);
    }
    scene.is_clean()
}

#[test]
fn a_base_copy_that_a_cancelled_merge_left_larger_is_merged() -> Result<()> {
    let scene = Scene::set()?;
    let agent = &scene.agent;
    agent.ok(&["coalesce", "pause", &scene.sr])?;
    // Three images below the leaf, of which the third is larger and takes long to copy.
    let first = scene.snapshot()?;
    agent.write(&scene.disk, 4 * MIB, &[2; 1 << 20])?;
    let second = scene.snapshot()?;
    agent.ok(&["vdi", "resize", &scene.disk, "1GiB"])?;
    agent.write(&scene.disk, 8 * MIB, &vec![3; 16 << 20])?;
    let kept = scene.snapshot()?;
    agent.ok(&["vdi", "destroy", &second, "--yes"])?;
    agent.ok(&["sr", "policy", &scene.sr, "coalesce.rate=1MiB"])?;
    agent.ok(&["coalesce", "resume", &scene.sr])?;
    let mut merge = Value::Null;
    wait_until("the second is made larger, and something was copied", || {
        let jobs = agent.json(&["job", "list"])?;
        let copies =
            |job: &&Value| job["kind"] == "merge" && job["state"] == "running" && job["bytes_done"] != 0;
        merge =
            jobs["jobs"].as_array().and_then(|jobs| jobs.iter().find(copies)).cloned().unwrap_or_default();
        Ok(!merge.is_null())
    })?;
    agent.ok(&["job", "cancel", merge["id"].as_str().context("a job")?])?;
    // The third merge rests; the second image is to be merged into the first, of which nobody has written down how large it is now.
    agent.ok(&["vdi", "destroy", &first, "--yes"])?;
    agent.ok(&["sr", "policy", &scene.sr, "coalesce.rate=0"])?;
    scene.run_merges()?;
    ensure!(scene.show(&kept, "depth")? == 2);
    for (mib, byte) in [(0, 1), (4, 2), (8, 3), (23, 3)] {
        ensure!(
            agent.read(&kept, mib * MIB, MIB)?.iter().all(|is| *is == byte),
            "{byte} is not at {mib} MiB"
        );
    }
    scene.is_clean()
}
