//! A keeper that dies while a disk is attached: in an attach, in a detach, in a snapshot of a disk in use, in an export or
//! a copy of it, in a merge below it or of its leaf, while it grows.
//! The disk's process outlives the keeper, goes on serving, and is brought to what the catalog says.

use super::request::Answer;
use super::stage::Stage;
use crate::harness::{peer, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The size that the disk is to get: with a longer block table, which begins where a block was.
const GROWN: u64 = 264 << 20;

/// What the keeper is doing for the disk when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serving {
    Attach,
    Detach,
    Snapshot,
    Clone,
    Export,
    Copy,
    Merge,
    Resize,
    /// Of a disk that is attached for reading.
    SnapshotRead,
    /// An attach of a disk that an export reads.
    LateLeaf,
    /// Its leaf is merged.
    Leaf,
    /// A snapshot is taken while its leaf is being merged.
    Between,
}

impl Serving {
    /// Whether the disk is the one whose leaf can be merged.
    const fn is_of_leaf(self) -> bool {
        matches!(self, Self::Leaf | Self::Between)
    }
}

/// Kills the keeper at `at` and looks at everything afterwards.
pub(crate) fn scenario(at: &str, what: Serving) -> Result<()> {
    let mut stage = Stage::build()?;
    play(&mut stage, at, what)?;
    stage.verify().context("after the crash")?;
    stage.coalesce()?;
    stage.verify().context("after all merges")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// The same on an SR that has been used already.
pub(crate) fn play(stage: &mut Stage, at: &str, what: Serving) -> Result<()> {
    let disk = if what.is_of_leaf() { stage.b.clone() } else { stage.a.clone() };
    prepare(stage, &disk, what)?;
    let known = stage.content.len();
    stage.arm(at)?;
    // Its pipe holds less than the disk, so it goes on for as long as the keeper lives.
    let stuck = if what == Serving::LateLeaf { Some(stage.agent.begin_export(&disk)?) } else { None };
    if what == Serving::Between {
        begin_leaf(stage)?;
    }
    let (method, params) = request(stage, &disk, what);
    let answer = send(stage, method, &params)?;
    stage.await_death(at)?;
    drop(stuck);
    let served = stage.agent.served();
    let is_attached = !matches!(what, Serving::Attach | Serving::LateLeaf | Serving::Detach);
    ensure!(!is_attached || served.len() == 1, "the datapath has died with its keeper");
    stage.revive(at)?;
    stage.wait_attached()?;
    match what {
        Serving::Attach | Serving::LateLeaf => after_attach(stage, &disk, &params)?,
        Serving::Detach => after_detach(stage, &disk)?,
        Serving::Resize => after_resize(stage, &disk, &params, &answer)?,
        Serving::Snapshot | Serving::SnapshotRead | Serving::Clone | Serving::Between => {
            take_in_copies(stage, &disk)?;
            let again = stage.agent.call(method, &params)?;
            ensure!(again.is_ok(), "the repeated request: {again:?}, after {answer:?}");
            take_in_copies(stage, &disk)?;
        }
        Serving::Export | Serving::Copy => {
            take_in_copies(stage, &disk)?;
            let job = send(stage, method, &params)?;
            let job = job.map_err(|error| anyhow::anyhow!("the repeated request: {error}"))?;
            let job = stage.agent.call("Job.wait", &json!({"job": job["id"]}))?;
            ensure!(job.as_ref().is_ok_and(|job| job["state"] == "done"), "{job:?}, after {answer:?}");
            take_in_copies(stage, &disk)?;
            let whole = what == Serving::Copy || fs::read(exported(stage))? == stage.content[&disk];
            ensure!(whole, "the export is not what the disk holds");
            let more = usize::from(what == Serving::Copy);
            ensure!(stage.content.len() == known + more, "a VDI for each try: {:?}", stage.listed()?);
        }
        Serving::Merge | Serving::Leaf => stage.coalesce()?,
    }
    ensure!(!is_attached || stage.agent.served() == served, "a datapath that lived was replaced");
    if what == Serving::Leaf {
        let depth = stage.record(&disk)?["depth"].clone();
        ensure!(depth == 1, "the chain of the disk in use has {depth} images");
    }
    stage.agent.ok(&["sr", "policy", &stage.sr, "coalesce.rate=0"])?;
    if what == Serving::SnapshotRead {
        peer("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read 0 64k", &uri(stage, &disk)])?;
        stage.agent.ok(&["vdi", "detach", &disk])?;
    } else if what != Serving::Detach {
        write(stage, &disk, 3, 2 << 20)?;
        peer("qemu-utils", "qemu-io", &["-f", "raw", "-c", "read -P 3 2M 64k", &uri(stage, &disk)])?;
        stage.agent.ok(&["vdi", "detach", &disk])?;
    } else if attached(stage, &disk)? != Value::Null {
        let again = stage.agent.call(method, &params)?;
        ensure!(again.is_ok(), "the repeated detach: {again:?}");
    }
    wait_until("no datapath is left", || Ok(stage.agent.served().is_empty()))?;
    ensure!(!stage.agent.path("run/catena/vdi").join(&disk).exists(), "its directory is left");
    Ok(())
}

/// What there is before the keeper dies.
fn prepare(stage: &mut Stage, disk: &str, what: Serving) -> Result<()> {
    match what {
        Serving::Attach | Serving::LateLeaf => {}
        Serving::SnapshotRead => stage.agent.ok(&["vdi", "attach", "--read-only", disk]).map(drop)?,
        _ => {
            attach(stage, disk)?;
            write(stage, disk, 1, 0)?;
        }
    }
    if what == Serving::Merge {
        // Of two images below the disk the upper goes into the lower.
        let snapshot = stage.snapshot(disk)?;
        write(stage, disk, 2, 1 << 20)?;
        stage.snapshot(disk)?;
        stage.destroy(&snapshot)?;
    }
    if what == Serving::Between {
        // Nothing but the leaf is there to be merged.
        stage.coalesce()?;
        stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
        let snapshot = stage.snapshot(disk)?;
        // More than one window: the second waits for as long as the rate says.
        for block in 0..4 {
            write_all(stage, disk, 4, (block << 21)..(block << 21) + (1 << 20))?;
        }
        stage.destroy(&snapshot)?;
    }
    Ok(())
}

fn request(stage: &Stage, disk: &str, what: Serving) -> (&'static str, Value) {
    let key = format!("{what:?} {}", stage.round);
    match what {
        Serving::Attach | Serving::LateLeaf => ("VDI.attach", json!({"vdi": disk, "request_id": key})),
        Serving::Detach => ("VDI.detach", json!({"vdi": disk, "request_id": key})),
        Serving::Resize => ("VDI.resize", json!({"vdi": disk, "virtual_size": GROWN, "request_id": key})),
        Serving::Snapshot | Serving::SnapshotRead | Serving::Between => {
            ("VDI.snapshot", json!({"vdi": disk, "name_label": "new", "request_id": key}))
        }
        Serving::Clone => ("VDI.clone", json!({"vdi": disk, "name_label": "new", "request_id": key})),
        Serving::Export => ("VDI.export", json!({"vdi": disk, "format": "raw", "fd": 0, "request_id": key})),
        Serving::Copy => ("VDI.copy", json!({"vdi": disk, "name_label": "new", "request_id": key})),
        Serving::Merge | Serving::Leaf => ("Coalesce.resume", json!({"sr": stage.sr})),
    }
}

/// Has the leaf merged so slowly that it does not come to its end; returns when some of it was moved.
fn begin_leaf(stage: &Stage) -> Result<()> {
    stage.agent.ok(&["sr", "policy", &stage.sr, "coalesce.rate=1"])?;
    stage.agent.ok(&["coalesce", "resume", &stage.sr])?;
    wait_until("the leaf is being merged", || {
        let status = stage.agent.call("Coalesce.status", &json!({"sr": stage.sr}))?;
        let current = status.map(|status| status["srs"][0]["current"].clone()).unwrap_or_default();
        Ok(current["kind"] == "leaf_merge" && current["phase"] == "moving")
    })
    .with_context(|| stage.agent.log())
}

/// Sends a request, with a file where it wants one.
fn send(stage: &Stage, method: &str, params: &Value) -> Result<Answer> {
    if !params["fd"].is_u64() {
        return stage.agent.call(method, params);
    }
    let file = File::options().create(true).truncate(false).write(true).open(exported(stage))?;
    stage.agent.call_with(method, params, &[file.as_fd()])
}

/// Where the disk is exported to.
fn exported(stage: &Stage) -> PathBuf {
    stage.agent.path("export.raw")
}

fn attach(stage: &Stage, disk: &str) -> Result<()> {
    stage.agent.ok(&["vdi", "attach", disk]).map(drop)
}

fn attached(stage: &Stage, disk: &str) -> Result<Value> {
    Ok(stage.record(disk)?["attached"].clone())
}

fn uri(stage: &Stage, disk: &str) -> String {
    let socket = stage.agent.path("run/catena/vdi").join(disk).join("nbd.sock");
    format!("nbd+unix:///?socket={}", socket.display())
}

/// A client writes 64 KiB of one byte.
fn write(stage: &mut Stage, disk: &str, byte: u8, at: usize) -> Result<()> {
    write_all(stage, disk, byte, at..at + 65536)
}

fn write_all(stage: &mut Stage, disk: &str, byte: u8, range: Range<usize>) -> Result<()> {
    let command = format!("write -P {byte} {} {}", range.start, range.len());
    peer("qemu-utils", "qemu-io", &["-f", "raw", "-c", &command, &uri(stage, disk)])?;
    stage.content.get_mut(disk).context("a disk of the stage")?[range].fill(byte);
    Ok(())
}

/// An attach that was not answered is undone, one that was recorded stands; repeated, it has one effect.
fn after_attach(stage: &Stage, disk: &str, params: &Value) -> Result<()> {
    let mode = attached(stage, disk)?;
    let served = stage.agent.served().len();
    ensure!((mode == "rw" && served == 1) || (mode.is_null() && served == 0), "{mode}, {served} processes");
    let again = stage.agent.call("VDI.attach", params)?;
    let again = again.map_err(|error| anyhow::anyhow!("the repeated attach: {error}"))?;
    ensure!(again["mode"] == "rw" && again["uri"] == uri(stage, disk), "{again}");
    ensure!(stage.agent.served().len() == 1);
    Ok(())
}

/// The disk has the size that the catalog says, for everybody; the repeated request makes it what was asked for.
fn after_resize(stage: &mut Stage, disk: &str, params: &Value, answer: &Answer) -> Result<()> {
    let sizes = |stage: &Stage| -> Result<(u64, u64)> {
        let recorded = stage.record(disk)?["virtual_size"].as_u64().context("a size")?;
        let seen = peer("libnbd-bin", "nbdinfo", &["--size", &uri(stage, disk)])?.trim().parse()?;
        Ok((recorded, seen))
    };
    let (recorded, seen) = sizes(stage)?;
    ensure!(recorded == seen, "{recorded} in the catalog, and clients see {seen}");
    ensure!(recorded == GROWN || answer.is_err(), "it was said to be done: {answer:?}");
    let again = stage.agent.call("VDI.resize", params)?;
    ensure!(again.as_ref().is_ok_and(|answer| answer["virtual_size"] == GROWN), "{again:?}");
    ensure!(sizes(stage)? == (GROWN, GROWN), "{:?}", sizes(stage)?);
    let content = stage.content.get_mut(disk).context("a disk of the stage")?;
    content.resize(usize::try_from(GROWN)?, 0);
    Ok(())
}

/// A disk is attached and served, or neither.
fn after_detach(stage: &Stage, disk: &str) -> Result<()> {
    let mode = attached(stage, disk)?;
    if mode == "rw" {
        return wait_until("it is served again", || Ok(stage.agent.served().len() == 1));
    }
    ensure!(mode.is_null() && stage.agent.served().is_empty(), "{mode}");
    Ok(())
}

/// VDIs that the model does not know hold what the disk holds.
fn take_in_copies(stage: &mut Stage, disk: &str) -> Result<()> {
    let content = stage.content.get(disk).context("a disk of the stage")?.clone();
    for vdi in stage.listed()? {
        stage.content.entry(vdi).or_insert_with(|| content.clone());
    }
    Ok(())
}
