//! Exports and copies of a disk that a guest writes all the time: what comes out is what the disk was at one instant, the guest
//! goes on, and nothing that can be seen is left, however the job ends.

mod harness;

use anyhow::{Context, Result, anyhow, bail, ensure};
use harness::nbd::Client;
use harness::{Agent, socket_of, wait_for_end, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const SIZE: usize = 16 << 20;
/// Places that the writer writes in turn, and how far they are apart.
const PLACES: u64 = 256;
const APART: u64 = SIZE as u64 / PLACES;
const STAMP: usize = 4096;

/// An agent with one SR, and a disk in it that is attached.
struct Scene {
    agent: Agent,
    sr: String,
    disk: String,
    socket: PathBuf,
}

impl Scene {
    fn set() -> Result<Self> {
        let agent = Agent::start()?;
        let sr = new_sr(&agent, "store")?;
        let size = SIZE.to_string();
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", &size, "--name", "disk"])?;
        let uri = agent.ok(&["vdi", "attach", &disk])?;
        let socket = socket_of(&uri)?;
        Ok(Self { agent, sr, disk, socket })
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value> {
        self.agent.call(method, params)?.map_err(|error| anyhow!("{method}: {error}"))
    }

    fn end_of(&self, job: &str) -> Result<Value> {
        self.call("Job.wait", &json!({"job": job}))
    }

    /// A whole export.
    fn export(&self) -> Result<Vec<u8>> {
        let (job, mut reader) = self.agent.begin_export(&self.disk)?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        let job = self.end_of(&job)?;
        ensure!(job["state"] == "done", "{job}");
        Ok(bytes)
    }

    fn vdis(&self) -> Result<usize> {
        Ok(self.agent.json(&["vdi", "list"])?["vdis"].as_array().context("vdis")?.len())
    }

    fn images(&self) -> Result<usize> {
        let tree = self.agent.json(&["vdi", "tree", &self.sr])?;
        let mut nodes: Vec<&Value> = tree["roots"].as_array().into_iter().flatten().collect();
        let mut count = 0;
        while let Some(node) = nodes.pop() {
            count += 1;
            nodes.extend(node["children"].as_array().into_iter().flatten());
        }
        Ok(count)
    }

    /// When the disk is let go and all is merged, one image is left, and it holds all that was written.
    fn nothing_is_left(&self, writer: Writer) -> Result<()> {
        let last = writer.end()?;
        self.agent.ok(&["vdi", "detach", &self.disk])?;
        self.agent.run_merges(&self.sr)?;
        ensure!(self.images()? == 1, "{}", self.agent.json(&["vdi", "tree", &self.sr])?);
        ensure!(instant(&self.agent.read(&self.disk, 0, SIZE as u64)?)? == last);
        self.agent.is_clean(&self.sr)
    }
}

fn new_sr(agent: &Agent, name: &str) -> Result<String> {
    let place = agent.path(name).to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", name, "--location", &place])
}

/// A guest that writes the numbers 1, 2, 3... to the places in turn, each when the one before is answered.
struct Writer {
    begun: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    fn start(scene: &Scene) -> Result<Self> {
        let mut client = Client::connect(&scene.socket)?;
        let (begun, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (to_begin, to_answer, stopped) = (Arc::clone(&begun), Arc::clone(&answered), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for number in 1_u64.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                to_begin.store(number, Ordering::SeqCst);
                let data = number.to_be_bytes().repeat(STAMP / 8);
                let error = client.write(number % PLACES * APART, &data, 0)?;
                ensure!(error == 0, "write {number} failed: {error}");
                to_answer.store(number, Ordering::SeqCst);
            }
            client.disconnect()
        });
        Ok(Self { begun, answered, stop, thread: Some(thread) })
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until so many more writes are answered.
    fn go_on(&self, more: u64) -> Result<()> {
        let end = self.answered() + more;
        wait_until("the guest goes on", || Ok(self.answered() >= end))
    }

    /// Ends it; the last number that was written.
    fn end(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            _ => bail!("the writer panicked"),
        }
        Ok(self.answered())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// The number of writes that a disk's content is the outcome of, exactly: all before are there, and none after.
fn instant(bytes: &[u8]) -> Result<u64> {
    ensure!(bytes.len() == SIZE, "{} bytes", bytes.len());
    let apart = usize::try_from(APART)?;
    let mut stamps = Vec::new();
    for place in bytes.chunks_exact(apart) {
        let number: [u8; 8] = place[..8].try_into()?;
        ensure!(place[..STAMP].chunks_exact(8).all(|one| one == number), "a write is half there");
        ensure!(place[STAMP..].iter().all(|byte| *byte == 0), "bytes that nobody wrote");
        stamps.push(u64::from_be_bytes(number));
    }
    let last = stamps.iter().copied().max().unwrap_or(0);
    for (place, stamp) in (0..PLACES).zip(stamps) {
        let since = (last % PLACES + PLACES - place) % PLACES;
        // The first writes leave place 0 alone.
        let should = last.checked_sub(since).filter(|number| *number > 0).unwrap_or(0);
        ensure!(stamp == should, "place {place} has {stamp} and not {should}, of {last} writes");
    }
    Ok(last)
}

#[test]
fn an_export_is_of_one_instant_while_the_guest_goes_on() -> Result<()> {
    let scene = Scene::set()?;
    let writer = Writer::start(&scene)?;
    writer.go_on(PLACES + 50)?;
    let before = writer.answered();
    let (job, mut reader) = scene.agent.begin_export(&scene.disk)?;
    let after = writer.begun();

    // The export stands still: nobody reads. The guest writes every place anew, and the worker leaves the chain alone.
    writer.go_on(2 * PLACES)?;
    ensure!(scene.vdis()? == 1 && scene.images()? == 2, "only the disk, on what is being read");
    let said = scene.agent.catena(&["coalesce", "run", &scene.sr, "--wait"])?;
    ensure!(said.code == 75 && said.err.contains("being read by another job"), "{said:?}");
    let snapshot = scene.agent.ok(&["vdi", "snapshot", &scene.disk])?;
    writer.go_on(2 * PLACES)?;
    scene.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;

    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let job = scene.end_of(&job)?;
    ensure!(job["state"] == "done" && job["result"]["bytes"].is_u64(), "{job}");
    let exported = instant(&bytes)?;
    ensure!((before..=after).contains(&exported), "{exported} is not between {before} and {after}");
    scene.nothing_is_left(writer)
}

#[test]
fn a_copy_is_of_one_instant_here_and_elsewhere() -> Result<()> {
    let scene = Scene::set()?;
    let other = new_sr(&scene.agent, "other")?;
    let writer = Writer::start(&scene)?;
    writer.go_on(PLACES / 2)?;
    for target in [&scene.sr, &other] {
        let before = writer.answered();
        let params = json!({"vdi": scene.disk, "sr": target, "name_label": "copied"});
        let job = scene.call("VDI.copy", &params)?;
        let after = writer.begun();
        let job = scene.end_of(job["id"].as_str().context("a job")?)?;
        ensure!(job["state"] == "done", "{job}");
        let copy = job["result"]["uuid"].as_str().context("uuid")?;
        let copied = instant(&scene.agent.read(copy, 0, SIZE as u64)?)?;
        ensure!((before..=after).contains(&copied), "{copied} is not between {before} and {after}");
        writer.go_on(PLACES)?;
        scene.agent.ok(&["vdi", "destroy", copy, "--yes"])?;
    }
    // A copy in the other SR takes the disk's name.
    scene.agent.ok(&["vdi", "copy", &scene.disk, "--sr", &other])?;
    let list = scene.agent.json(&["vdi", "list", "--sr", &other])?;
    ensure!(list["vdis"][0]["name_label"] == "disk", "{list}");
    scene.nothing_is_left(writer)
}

#[test]
fn an_export_that_is_cancelled_or_dies_leaves_nothing() -> Result<()> {
    let scene = Scene::set()?;
    let writer = Writer::start(&scene)?;
    writer.go_on(PLACES)?;
    let (job, reader) = scene.agent.begin_export(&scene.disk)?;
    scene.call("Job.cancel", &json!({"job": job}))?;
    let job = scene.end_of(&job)?;
    ensure!(job["state"] == "cancelled", "{job}");
    drop(reader);
    writer.go_on(PLACES)?;

    let (_, mut reader) = scene.agent.begin_export(&scene.disk)?;
    for keeper in scene.agent.processes("catena-keeper") {
        kill(keeper, Signal::SIGKILL)?;
        wait_for_end(&[keeper])?;
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    ensure!(bytes.len() < SIZE, "it was whole");
    writer.go_on(PLACES)?;
    wait_until("the keeper is back", || {
        Ok(scene.agent.call("VDI.get_record", &json!({"vdi": scene.disk}))?.is_ok())
    })?;
    ensure!(scene.vdis()? == 1);
    scene.agent.run_merges(&scene.sr)?;
    ensure!(scene.images()? == 1, "what was read is merged, the disk's own leaf too");
    scene.nothing_is_left(writer)
}

#[test]
fn what_a_guest_does_not_write_is_read_as_it_is() -> Result<()> {
    let scene = Scene::set()?;
    // What was read is merged back otherwise, sooner or later.
    scene.agent.ok(&["coalesce", "pause", &scene.sr])?;
    let mut client = Client::connect(&scene.socket)?;
    ensure!(client.write(0, &[7; STAMP], 0)? == 0);
    let first = scene.export()?;
    ensure!(first[..STAMP] == [7; STAMP] && first[STAMP..].iter().all(|byte| *byte == 0));
    ensure!(scene.images()? == 2);
    // Its leaf owns nothing since then: what lies below it is the disk.
    ensure!(scene.export()? == first && scene.images()? == 2, "another level for nothing");
    ensure!(client.write(APART, &[8; STAMP], 0)? == 0);
    let third = scene.export()?;
    ensure!(third[..STAMP] == [7; STAMP] && third[usize::try_from(APART)?..][..STAMP] == [8; STAMP]);
    client.disconnect()
}

#[test]
fn a_chain_at_its_limit_has_no_room_for_it() -> Result<()> {
    let scene = Scene::set()?;
    let mut client = Client::connect(&scene.socket)?;
    for level in 1_u8..30 {
        ensure!(client.write(0, &[level; STAMP], 0)? == 0);
        scene.agent.ok(&["vdi", "snapshot", &scene.disk])?;
    }
    ensure!(scene.export()?[..STAMP] == [29; STAMP], "nothing was written since: no level is needed");
    ensure!(client.write(0, &[30; STAMP], 0)? == 0);
    let other = new_sr(&scene.agent, "other")?;
    let target = scene.agent.path("new.raw").to_string_lossy().into_owned();
    let jobs = scene.agent.json(&["job", "list"])?;
    for arguments in [
        &["vdi", "export", &scene.disk, &target][..],
        &["vdi", "copy", &scene.disk],
        &["vdi", "copy", &scene.disk, "--sr", &other],
    ] {
        let said = scene.agent.catena(arguments)?;
        ensure!(said.code == 6 && said.err.contains("30 is the limit"), "{arguments:?}: {said:?}");
        ensure!(said.err.contains("delete snapshots"), "{arguments:?}: {said:?}");
    }
    ensure!(
        !fs::exists(&target)? && scene.agent.json(&["job", "list"])? == jobs,
        "a refusal has left something"
    );
    ensure!(client.write(0, &[31; STAMP], 0)? == 0);
    client.disconnect()
}
