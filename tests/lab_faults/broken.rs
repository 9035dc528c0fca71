//! Breaks what is under a store, and asks what it makes of that.

#![allow(dead_code, reason = "each test program uses its own part of it")]

use crate::harness::lab::{Fault, run};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The protocol's EIO.
pub(crate) const EIO: u32 = 5;

impl Store {
    /// Breaks what is under a volume, which is active.
    pub(crate) fn break_under(&self, volume: &str) -> Result<()> {
        self.break_these(self.ranges(volume)?)
    }

    /// What is asked of these parts of the disk fails.
    pub(crate) fn break_these(&self, ranges: Vec<Range<u64>>) -> Result<()> {
        self.disk.load(&ranges.into_iter().map(|range| (range, Fault::Error)).collect::<Vec<_>>())
    }

    /// What the worker says that it does.
    pub(crate) fn coalescing(&self) -> Result<Value> {
        Ok(self.agent.json(&["coalesce", "status", &self.sr])?["srs"][0].clone())
    }

    /// How often this has happened.
    pub(crate) fn events(&self, kind: &str) -> Result<usize> {
        let list = self.agent.json(&["event", "list"])?;
        let events = list["events"].as_array().context("events")?;
        Ok(events.iter().filter(|event| event["kind"] == kind).count())
    }

    /// A merge of this kind has failed once more: it rests, is remembered, and seen.
    pub(crate) fn backs_off(&self, kind: &str, failures: usize) -> Result<()> {
        let mut last = Value::Null;
        let rests = wait_until("the merge has failed", || {
            last = self.coalescing()?;
            Ok(self.events("merge.failed")? >= failures && last["state"] == "backoff")
        });
        rests.with_context(|| format!("{last}\n{}", self.agent.log()))?;
        ensure!(last["reason"]["code"] == "failed", "{last}");
        let jobs = self.agent.json(&["job", "list"])?;
        let waits = |job: &Value| job["kind"] == kind && job["error"]["name"] == "io_error";
        ensure!(jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(waits)), "{jobs}");
        Ok(())
    }

    /// The disk's merge is over in the end.
    pub(crate) fn is_merged(&self, disk: &str) -> Result<()> {
        self.settle()?;
        ensure!(self.agent.depth(disk)? == 1, "{}\n{}", self.coalescing()?, self.agent.log());
        Ok(())
    }
}

/// The socket serves a client who can write.
pub(crate) fn is_written_again(socket: &Path, byte: u8) -> Result<bool> {
    let Ok(mut client) = Client::connect(socket) else { return Ok(false) };
    Ok(matches!(client.write(0, &[byte; 4096], 0), Ok(0)) && matches!(client.ask(FLUSH, 0, 0, 0), Ok(0)))
}

/// Takes away what the kernel knows of the volumes of an agent that does not run: mounts and devices.
pub(crate) fn forget_devices(store: &Store) -> Result<()> {
    for mounted in mounts_below(&store.agent.path(""))? {
        run("umount", &[&mounted])?;
    }
    for name in run("dmsetup", &["ls"])?.lines().filter_map(|line| line.split_whitespace().next()) {
        if name.starts_with("catena") {
            run("dmsetup", &["remove", name])?;
        }
    }
    Ok(())
}

/// Where something is mounted below a directory.
fn mounts_below(place: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    Ok(points.filter(|point| Path::new(point).starts_with(place)).map(str::to_owned).collect())
}
