//! Keeper, front and the process that serves the disk are killed while a guest writes and its disk is merged: nothing that was
//! acknowledged is lost, and nothing is left that nobody uses.

use crate::harness::guest::Guest;
use crate::harness::{attached, lab, seed, wait_until};
use crate::store::Store;
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

/// Who is killed: the keeper, the front with it, the process of the disk.
const DEATHS: [(bool, bool, bool); 4] =
    [(true, false, false), (false, false, true), (true, false, true), (true, true, true)];

#[test]
fn deaths_of_everybody() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(2048, "thin")?;
        let size = 16 << 20;
        let disk = store.vdi(&size.to_string(), "disk")?;
        let uri = store.agent.ok(&["vdi", "attach", &disk])?;
        let mut guest = Guest::new(&uri, size, seed("deaths_of_everybody") | 1)?;
        // So that merges last.
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=2MiB"])?;
        for (round, death) in DEATHS.into_iter().enumerate() {
            works(&mut guest)?;
            let snapshot = snapshot(&store, &disk, round)?;
            works(&mut guest)?;
            store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
            wait_until("a merge runs", || is_merging(&store, &disk)).with_context(|| store.agent.log())?;
            die(&mut store, death)?;
            works(&mut guest).with_context(|| store.agent.log())?;
            wait_until("the SR is back", || Ok(store.record(&disk).is_ok()))?;
        }
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=0"])?;
        store.settle()?;
        wait_until("one image is left, and in use", || {
            Ok(store.volumes()?.len() == 1 && store.active()?.len() == 1)
        })
        .with_context(|| store.agent.log())?;
        works(&mut guest)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.agent.hash(&disk)? == guest.sha256(), "the disk holds something else");
        // It can be attached again, and nothing of the earlier processes is in the way.
        store.agent.ok(&["vdi", "attach", &disk])?;
        works(&mut guest)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.agent.hash(&disk)? == guest.sha256(), "the disk holds something else");
        store.clean()
    })
}

fn works(guest: &mut Guest) -> Result<()> {
    (0..50).try_for_each(|_| guest.one())
}

/// Where the SR is being attached again this may have to be tried again.
fn snapshot(store: &Store, disk: &str, round: usize) -> Result<String> {
    let mut taken = None;
    wait_until("a snapshot", || {
        let asked = json!({"vdi": disk, "name_label": round.to_string()});
        match store.agent.call("VDI.snapshot", &asked)? {
            Ok(answer) => taken = answer["vdis"][0].as_str().map(str::to_owned),
            Err(error) => ensure!(error["data"]["retry"] == true, "{error}"),
        }
        Ok(taken.is_some())
    })?;
    taken.context("a snapshot")
}

/// Whether a merge is under way, or there is none any more.
fn is_merging(store: &Store, disk: &str) -> Result<bool> {
    let jobs = store.agent.json(&["job", "list"])?;
    let jobs = jobs["jobs"].as_array().context("jobs")?;
    let runs = jobs.iter().any(|job| job["state"] == "running" && job["phase"] != "growing");
    Ok(runs || store.record(disk)?["depth"] == 1)
}

fn die(store: &mut Store, (keeper, front, disks): (bool, bool, bool)) -> Result<()> {
    if front {
        store.agent.kill()?;
    } else if keeper {
        let found = store.agent.processes("catena-keeper");
        let pid = found.first().ok_or_else(|| anyhow!("there is no keeper"))?;
        kill(*pid, Signal::SIGKILL)?;
    }
    if disks {
        attached::end_served(&store.agent.path(""))?;
    }
    if front {
        store.agent.launch(None)?;
    }
    Ok(())
}
