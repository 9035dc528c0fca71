//! Disks that grow while guests use them: whoever is connected goes on, whoever connects sees the new size, and whoever dies in
//! between, the disk has the size that the catalog says. How a running QEMU learns of it is tried as the documentation says it.

mod client;
mod harness;

use anyhow::{Context, Result, ensure};
use client::Client;
use harness::qmp::{self, Monitor};
use harness::{Agent, nbd, peer, socket_of, wait_for_end, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
/// Within the block table that the disk has, and with one that begins where its first block was.
const STEPS: [u64; 2] = [10 * MIB, 400 * MIB];

/// An agent with one SR, and a disk in it that is attached.
struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
    uri: String,
}

impl Scene {
    fn set(crash_at: Option<&str>) -> Result<Self> {
        let mut agent = Agent::start()?;
        let place = agent.path("sr").to_string_lossy().into_owned();
        let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "disk"])?;
        if crash_at.is_some() {
            agent.stop()?;
            agent.launch(crash_at)?;
            wait_until("the SR is back", || Ok(agent.catena(&["vdi", "show", &disk])?.code == 0))?;
        }
        let uri = agent.ok(&["vdi", "attach", &disk])?;
        Ok(Self { agent, sr, disk, uri })
    }

    fn socket(&self) -> Result<PathBuf> {
        socket_of(&self.uri)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.agent.ok(&["vdi", "resize", &self.disk, &size.to_string()]).map(drop)
    }

    /// The size as the catalog has it.
    fn recorded(&self, vdi: &str) -> Result<u64> {
        self.agent.json(&["vdi", "show", vdi])?["virtual_size"].as_u64().context("a size")
    }

    /// The size as somebody sees it who connects.
    fn seen(&self) -> Result<u64> {
        Ok(peer("libnbd-bin", "nbdinfo", &["--size", &self.uri])?.trim().parse()?)
    }

    fn io(&self, command: &str) -> Result<()> {
        let said = peer("qemu-utils", "qemu-io", &["-f", "raw", "-c", command, &self.uri])?;
        ensure!(!said.contains("failed") && !said.contains("rror"), "{command}: {said}");
        Ok(())
    }

    fn is_clean(&self) -> Result<()> {
        self.agent.is_clean(&self.sr)
    }

    /// The disk is let go, and everything was as it should be.
    fn ends_with(&self, size: u64) -> Result<()> {
        ensure!((self.seen()?, self.recorded(&self.disk)?) == (size, size));
        self.agent.ok(&["vdi", "detach", &self.disk])?;
        ensure!(self.agent.served().is_empty());
        self.is_clean()
    }
}

#[test]
fn a_disk_grows_under_its_guest() -> Result<()> {
    let scene = Scene::set(None)?;
    let mut guest = Client::connect(&scene.uri)?;
    guest.run("write -P 1 0 8M")?;
    let snapshot = scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "before"])?;
    guest.run("write -P 2 4M 64k")?;
    let served = scene.agent.served();
    let mut before = SIZE;
    for (number, size) in (3_u8..).zip(STEPS) {
        let mut old = nbd::Client::connect(&scene.socket()?)?;
        guest.begin(&format!("write -P {number} {}M 1M", number - 3))?;
        scene.resize(size)?;
        guest.end()?;
        ensure!((scene.seen()?, scene.recorded(&scene.disk)?) == (size, size));
        ensure!(
            old.size == before && old.write(before, &[1; 512], 0)? != 0,
            "an old connection has its size"
        );
        ensure!(old.write(before - 512, &[number; 512], 0)? == 0, "and goes on");
        old.disconnect()?;
        let end = size - 65536;
        scene.io(&format!("read -P 0 {before} {}", size.min(before + (8 << 20)) - before))?;
        scene.io(&format!("write -P {number} {end} 64k"))?;
        guest.run(&format!("write -P {number} {}M 1M", number - 1))?;
        before = size;
    }
    guest.run("read -P 4 1M 1M")?;
    guest.close()?;
    ensure!(scene.agent.served() == served, "its process has been replaced");
    ensure!(scene.recorded(&snapshot)? == SIZE, "a snapshot of before keeps its size");
    ensure!(scene.agent.read(&snapshot, 0, SIZE)?.iter().all(|byte| *byte == 1), "and its content");
    let later = scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "after"])?;
    ensure!(scene.recorded(&later)? == STEPS[1]);
    scene.ends_with(STEPS[1])?;
    let expected = [(0, 3), (MIB, 4), (2 * MIB, 3), (3 * MIB, 4), (4 * MIB, 2), (SIZE - 512, 3)];
    for (at, byte) in
        expected.into_iter().chain(STEPS.into_iter().zip(3..).map(|(at, byte)| (at - 512, byte)))
    {
        let bytes = scene.agent.read(&scene.disk, at, 512)?;
        let byte = if at == STEPS[0] - 512 { 4 } else { byte };
        ensure!(bytes.iter().all(|found| *found == byte), "{} and not {byte} at {at}", bytes[0]);
    }
    // The image of before is merged into: it gets the size that it needs.
    for snapshot in [&snapshot, &later] {
        scene.agent.ok(&["vdi", "destroy", snapshot, "--yes"])?;
    }
    let hash = scene.agent.hash(&scene.disk)?;
    scene.agent.run_merges(&scene.sr)?;
    ensure!(scene.agent.hash(&scene.disk)? == hash && scene.agent.depth(&scene.disk)? == 1);
    scene.is_clean()
}

#[test]
fn the_largest_disk_is_grown_to_in_one_step() -> Result<()> {
    let scene = Scene::set(None)?;
    let largest = 2040 << 30;
    scene.io("write -P 1 0 8M")?;
    scene.resize(largest)?;
    scene.resize(largest)?;
    ensure!(scene.agent.catena(&["vdi", "resize", &scene.disk, "2041GiB"])?.code == 2);
    ensure!(scene.agent.catena(&["vdi", "resize", &scene.disk, "4MiB"])?.code == 2);
    scene.io(&format!("write -P 2 {} 64k", largest - 65536))?;
    scene.io("read -P 1 0 8M")?;
    scene.ends_with(largest)
}

/// The process that serves the disk dies before each of its answers: that writes are held back, that it has grown, that it goes
/// on.
#[test]
fn a_datapath_that_dies_while_it_grows() -> Result<()> {
    for answer in 1..=3 {
        let mut scene = Scene::set(Some(&format!("serve.answer:{answer}")))?;
        let mut guest = Client::connect(&scene.uri)?;
        guest.run("write -P 1 0 8M")?;
        let size = STEPS[1];
        let said = scene.agent.catena(&["vdi", "resize", &scene.disk, &size.to_string()])?;
        ensure!(scene.agent.log().contains("crash point serve.answer"), "{answer}: it lives");
        // Before the second one nothing has grown; after it the leaf has the size, whoever died.
        ensure!((said.code == 0) == (answer > 1), "{answer}: {said:?}");
        guest.run("read -P 1 0 8M")?;
        ensure!(scene.recorded(&scene.disk)? == if answer > 1 { size } else { SIZE }, "{answer}");
        // Whoever serves now would die there, too.
        scene.agent.kill()?;
        let served = scene.agent.served();
        scene.agent.launch(None)?;
        for pid in &served {
            kill(*pid, Signal::SIGKILL)?;
        }
        wait_for_end(&served)?;
        guest.run("write -P 2 1M 64k")?;
        scene.resize(size)?;
        guest.close()?;
        scene.io(&format!("write -P 3 {} 64k", size - 65536))?;
        scene.io("read -P 2 1M 64k")?;
        scene.ends_with(size)?;
    }
    Ok(())
}

/// The process dies before it says that its leaf names another parent. That was planned for the block table that the leaf had then; it is
/// carried out when the disk has grown, by the process that serves it then or by a worker.
#[test]
fn another_parent_is_named_in_the_header_that_a_disk_has_when_it_has_grown() -> Result<()> {
    let size = STEPS[1];
    for detached in [false, true] {
        let mut scene = Scene::set(None)?;
        let mut snapshots = Vec::new();
        for number in 1..=3 {
            scene.io(&format!("write -P {number} {number}M 1M"))?;
            if number < 3 {
                snapshots.push(scene.agent.ok(&["vdi", "snapshot", &scene.disk])?);
            }
        }
        scene.agent.ok(&["coalesce", "pause", &scene.sr])?;
        scene.agent.ok(&["vdi", "detach", &scene.disk])?;
        scene.agent.stop()?;
        // The first answer is that it reads without the merged image.
        scene.agent.launch(Some("serve.answer:2"))?;
        wait_until("the SR is back", || Ok(scene.agent.catena(&["vdi", "show", &scene.disk])?.code == 0))?;
        scene.agent.ok(&["vdi", "attach", &scene.disk])?;
        scene.agent.ok(&["vdi", "destroy", &snapshots[0]])?;
        scene.agent.ok(&["coalesce", "resume", &scene.sr])?;
        let merged =
            |job: &Value| job["kind"] == "merge" && job["state"] == "queued" && job["error"].is_object();
        wait_until("the merge is left as it is for now", || {
            let jobs = scene.agent.json(&["job", "list"])?;
            Ok(jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(merged)))
        })?;
        wait_until("the disk has grown", || Ok(scene.resize(size).is_ok()))?;
        if detached {
            wait_until("it is detached", || {
                Ok(scene.agent.catena(&["vdi", "detach", &scene.disk])?.code == 0)
            })?;
        }
        scene.agent.kill()?;
        let served = scene.agent.served();
        served.iter().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
        wait_for_end(&served)?;
        scene.agent.launch(None)?;
        wait_until("nothing is left to do", || {
            let jobs = scene.agent.json(&["job", "list"])?;
            let over = |job: &Value| job["state"] != "queued" && job["state"] != "running";
            Ok(jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().all(over)))
        })?;
        if detached {
            scene.agent.ok(&["vdi", "attach", &scene.disk])?;
        }
        scene.io(&format!("write -P 4 {} 64k", size - 65536))?;
        for number in 1..=3 {
            scene.io(&format!("read -P {number} {number}M 1M"))?;
        }
        scene.ends_with(size)?;
    }
    Ok(())
}

#[test]
fn a_datapath_that_hangs_does_not_grow_and_grows_later() -> Result<()> {
    let scene = Scene::set(None)?;
    let mut guest = Client::connect(&scene.uri)?;
    guest.run("write -P 1 0 1M")?;
    let served = scene.agent.served();
    served.iter().try_for_each(|pid| kill(*pid, Signal::SIGSTOP))?;
    let params = json!({"vdi": scene.disk, "virtual_size": STEPS[0], "request_id": "later"});
    let refused = scene.agent.call("VDI.resize", &params)?.err().context("a process that hangs has grown")?;
    ensure!(refused["data"]["name"] == "vdi_unavailable" && refused["data"]["retry"] == true, "{refused}");
    ensure!(scene.recorded(&scene.disk)? == SIZE);
    served.iter().try_for_each(|pid| kill(*pid, Signal::SIGCONT))?;
    wait_until("it can grow again", || Ok(scene.agent.call("VDI.resize", &params)?.is_ok()))?;
    guest.run("write -P 2 0 1M")?;
    guest.close()?;
    ensure!(scene.agent.served() == served, "it was replaced, though it lives");
    scene.ends_with(STEPS[0])
}

/// A QEMU whose guest stands still, with the disk as a device of it.
struct Qemu {
    child: Child,
    monitor: Monitor,
}

impl Qemu {
    fn start(home: &Path, socket: &Path) -> Result<Self> {
        let monitor = home.join("qmp");
        let [connection, disk] = qmp::blockdevs(socket, "web01-1");
        let child = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-S"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
            .args([
                "-blockdev",
                &connection,
                "-blockdev",
                &disk,
                "-device",
                "virtio-blk-pci,id=web,drive=web01",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64 cannot be run: install the Debian package qemu-system-x86")?;
        let mut qemu = None;
        wait_until("QEMU has its monitor", || {
            qemu = Monitor::connect(&monitor).ok();
            Ok(qemu.is_some())
        })?;
        Ok(Self { child, monitor: qemu.context("a monitor")? })
    }

    /// The size of the device's disk.
    fn seen(&mut self) -> Result<u64> {
        let nodes = self.monitor.tell("query-named-block-nodes", &json!({"flat": true}))?;
        let disk = nodes.as_array().into_iter().flatten().find(|node| node["node-name"] == "web01");
        disk.and_then(|disk| disk["image"]["virtual-size"].as_u64()).context("a size")
    }

    /// A request of the device; what becomes of it QEMU says elsewhere.
    fn io(&mut self, command: &str) -> Result<()> {
        let device = "/machine/peripheral/web/virtio-backend";
        let line = json!({"command-line": format!("qemu-io -d {device} \"{command}\"")});
        let said = self.monitor.tell("human-monitor-command", &line)?;
        ensure!(said == "", "{command}: {said}");
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("a QEMU could not be ended: {error}");
        }
    }
}

#[test]
fn a_running_qemu_learns_of_it() -> Result<()> {
    let scene = Scene::set(None)?;
    let socket = scene.socket()?;
    let mut qemu = Qemu::start(&scene.agent.path(""), &socket)?;
    qemu.io("write -P 4 0 1M")?;
    scene.io("read -P 4 0 1M")?;
    for (names, size) in [["web01-1", "web01-2"], ["web01-2", "web01-3"]].into_iter().zip(STEPS) {
        scene.resize(size)?;
        qemu.monitor.enlarge(&socket, names, size)?;
        ensure!(qemu.seen()? == size, "{} and not {size}", qemu.seen()?);
        let end = size - 4096;
        qemu.io(&format!("write -P 5 {end} 4k"))?;
        scene.io(&format!("read -P 5 {end} 4k"))?;
    }
    drop(qemu);
    scene.io("read -P 4 0 1M")?;
    scene.ends_with(STEPS[1])
}
