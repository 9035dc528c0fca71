//! The requests that are interrupted. Each can be sent again, under the same key or another one.

use super::stage::{PATIENCE, SIZE, Stage};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is asked of an SR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Write,
    Snapshot,
    /// Of two disks at once.
    Snapshots,
    Clone,
    Revert,
    Resize,
    Set,
    Copy,
    /// From another SR.
    CopyIn,
    Destroy,
    Import,
    Export,
    Coalesce,
    Check,
    Repair,
    Trim,
    Grow,
    List,
}

/// The first time, or once more with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    Second,
}

/// A method's answer or its refusal; a job that is over stands for its result or its error.
pub(crate) type Answer = Result<Value, Value>;

/// Where [`Operation::Write`] writes: parts of blocks that `b` has and of one that it has not.
pub(crate) const WRITTEN: std::ops::Range<usize> = (5 << 20) - 1000..(7 << 20) - 1000;

impl Operation {
    /// Sends the request and waits for the end of the job, if it is one. An outer `Err` is a broken connection.
    pub(crate) fn send(self, stage: &Stage, turn: Turn) -> Result<Answer> {
        match self.begin(stage, turn)? {
            Ok(job) if job["id"].is_string() => end_of(stage, &job),
            other => Ok(other),
        }
    }

    /// Sends the request; if its answer is a job, that has only begun.
    pub(crate) fn begin(self, stage: &Stage, turn: Turn) -> Result<Answer> {
        let (method, mut params) = self.request(stage, turn);
        if self == Self::Coalesce {
            let _ = stage.agent.call("Coalesce.resume", &json!({"sr": stage.sr}))?;
        }
        if !matches!(self, Self::Write | Self::Coalesce | Self::List) {
            params["request_id"] = json!(format!("{self:?} {turn:?} {}", stage.round));
        }
        let stream = self.stream(stage, turn)?;
        let fds: Vec<_> = stream.iter().map(File::as_fd).collect();
        stage.agent.call_with(method, &params, &fds)
    }

    /// Sends the request until the agent has no reason to say "later".
    pub(crate) fn send_patiently(self, stage: &Stage, turn: Turn) -> Result<Answer> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.send(stage, turn)? {
                Err(error) if error["data"]["retry"] == true => {
                    ensure!(Instant::now() < end, "{self:?} for ever: {error}");
                    std::thread::sleep(Duration::from_millis(10));
                }
                answer => return Ok(answer),
            }
        }
    }

    fn request(self, stage: &Stage, turn: Turn) -> (&'static str, Value) {
        let (sr, a, b) = (&stage.sr, &stage.a, &stage.b);
        match self {
            Self::Create => ("VDI.create", json!({"sr": sr, "virtual_size": SIZE, "name_label": "new"})),
            Self::Write => {
                let length = WRITTEN.len();
                ("VDI.write", json!({"vdi": b, "offset": WRITTEN.start, "length": length, "fd": 0}))
            }
            Self::Snapshot => ("VDI.snapshot", json!({"vdi": a, "name_label": "new"})),
            Self::Snapshots => ("VDI.snapshot", json!({"vdi": [a, b], "name_label": "new"})),
            Self::Revert => {
                let (disk, snapshot) = stage.reverted(turn);
                ("VDI.revert", json!({"vdi": disk, "snapshot": snapshot}))
            }
            Self::Resize => ("VDI.resize", json!({"vdi": b, "virtual_size": grown(turn)})),
            Self::Set => ("VDI.set", json!({"vdi": a, "name_label": label(stage, turn)})),
            Self::Copy => ("VDI.copy", json!({"vdi": a, "name_label": "new"})),
            Self::CopyIn => ("VDI.copy", json!({"vdi": stage.elsewhere.0, "sr": sr, "name_label": "new"})),
            Self::Clone => ("VDI.clone", json!({"vdi": a, "count": 2})),
            Self::Destroy => {
                ("VDI.destroy", json!({"vdi": if turn == Turn::First { &stage.old } else { b }}))
            }
            Self::Import => ("VDI.import", json!({"sr": sr, "format": "raw", "name_label": "new", "fd": 0})),
            Self::Export => ("VDI.export", json!({"vdi": a, "format": "raw", "fd": 0})),
            Self::Coalesce => ("Coalesce.run", json!({"sr": sr, "wait": true})),
            Self::Check => ("SR.check", json!({"sr": sr})),
            Self::Repair => ("SR.check", json!({"sr": sr, "repair": true})),
            Self::Trim => ("SR.trim", json!({"sr": sr})),
            Self::Grow => ("SR.grow", json!({"sr": sr})),
            Self::List => ("SR.list", json!({})),
        }
    }

    /// The file that the request passes: to be read by import and write, to be written by export.
    fn stream(self, stage: &Stage, turn: Turn) -> Result<Option<File>> {
        match self {
            Self::Import => {
                let path = stage.agent.path("import.raw");
                fs::write(&path, imported())?;
                Ok(Some(File::open(path)?))
            }
            Self::Write => {
                let path = stage.agent.path("write.raw");
                fs::write(&path, written())?;
                Ok(Some(File::open(path)?))
            }
            Self::Export => {
                // Not truncated: what a repeated request finds done is not written again.
                let options = File::options().create(true).truncate(false).read(true).write(true).clone();
                Ok(Some(options.open(exported(stage, turn))?))
            }
            _ => Ok(None),
        }
    }
}

/// What [`Operation::Resize`] makes of a disk: the second time with a longer block table, which begins where a block was.
pub(crate) const fn grown(turn: Turn) -> usize {
    match turn {
        Turn::First => SIZE + (2 << 20),
        Turn::Second => SIZE + (300 << 20),
    }
}

/// The content of an imported disk: three blocks with data, one without.
pub(crate) fn imported() -> Vec<u8> {
    let mut bytes = b"an imported disk".repeat(SIZE / 16);
    bytes[2 << 20..4 << 20].fill(0);
    bytes
}

/// What [`Operation::Write`] writes.
pub(crate) fn written() -> Vec<u8> {
    let mut bytes = b"what is written ".repeat(WRITTEN.len() / 16 + 1);
    bytes.truncate(WRITTEN.len());
    bytes
}

/// Where an export goes.
pub(crate) fn exported(stage: &Stage, turn: Turn) -> PathBuf {
    stage.agent.path(format!("export-{turn:?}-{}.raw", stage.round))
}

/// What [`Operation::Set`] calls a disk.
pub(crate) fn label(stage: &Stage, turn: Turn) -> String {
    format!("named {turn:?} {}", stage.round)
}

fn end_of(stage: &Stage, job: &Value) -> Result<Answer> {
    match stage.agent.call("Job.wait", &json!({"job": job["id"]}))? {
        Ok(job) if job["state"] == "done" => Ok(Ok(job.get("result").context("result")?.clone())),
        Ok(job) => Ok(Err(json!({"data": job["error"]}))),
        Err(refusal) => Ok(Err(refusal)),
    }
}
