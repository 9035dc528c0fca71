//! A keeper that is started while its device is not there: the SR is attached, and its disks are served, when the device is.

use crate::broken::{forget_devices, is_written_again};
use crate::harness::lab::{self, Disk, Fault};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::{Store, create};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

impl Store {
    /// Kills the SR's keeper alone.
    fn kill_keeper(&self) -> Result<()> {
        let stats =
            self.agent.call("Agent.stats", &json!({}))?.map_err(|error| anyhow::anyhow!("{error}"))?;
        let srs = stats["srs"].as_array().context("SRs")?;
        let row = srs.iter().find(|row| row["sr"] == self.sr.as_str()).context("the SR")?;
        let pid = row["keeper_pid"].as_i64().context("its keeper")?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
    }

    /// The SR is said to be away and tried again, which another one does not notice whose disks are named by label.
    fn is_missed(&self, busy: &str) -> Result<()> {
        let mut shown = Value::Null;
        wait_until("the device is missed", || {
            shown = self.agent.json(&["sr", "show", &self.sr])?;
            Ok(shown["error"]["hint"].as_str().is_some_and(|hint| hint.contains("tried again")))
        })
        .with_context(|| format!("{shown}\n{}", self.agent.log()))?;
        ensure!(shown["state"] == "failed" && shown["error"]["retry"] == true, "{shown}");
        self.agent.ok(&["vdi", "snapshot", busy, "--name", "beside"])?;
        self.agent.ok(&["vdi", "destroy", "beside", "--yes"]).map(drop)
    }

    /// Nobody has done anything for it.
    fn is_back(&self, times: usize) -> Result<()> {
        wait_until("the SR is back", || {
            Ok(self.agent.json(&["sr", "show", &self.sr])?["state"] == "attached")
        })
        .with_context(|| self.agent.log())?;
        ensure!(self.events("sr.available")? == times, "{}", self.agent.log());
        Ok(())
    }
}

#[test]
fn a_keeper_that_starts_without_its_device_does_its_work_when_that_is_there() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(512, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let well = Disk::new(256)?;
        let other = create(&store.agent, &well, "well", "thin")?;
        store.agent.ok(&["vdi", "create", "--sr", &other, "--size", "8MiB", "--name", "busy"])?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(0, &[1; 8192], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);

        // It dies while the device fails, under a disk in use.
        store.disk.load(&[(0..512 << 11, Fault::Error)])?;
        store.kill_keeper()?;
        store.is_missed("busy")?;
        store.disk.load(&[])?;
        store.is_back(1)?;
        wait_until("the disk works", || is_written_again(&socket, 2)).with_context(|| store.agent.log())?;
        store.agent.ok(&["vdi", "detach", &disk])?;

        // The host starts before the device is found.
        store.agent.stop()?;
        forget_devices(&store)?;
        store.disk.take_away()?;
        store.agent.launch(None)?;
        store.is_missed("busy")?;
        store.disk.bring_back()?;
        store.is_back(2)?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [[2; 4096], [1; 4096]].concat());
        store.clean()
    })
}
