//! A device that answers nothing: its SR waits, everything else goes on, and so does the SR when it answers again.

use crate::harness::lab::{self, Disk};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::{Store, create};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::thread;

#[test]
fn a_device_that_hangs_holds_up_its_sr_only() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let socket = store.attach(&disk)?;
        let well = Disk::new(1024)?;
        let other = create(&store.agent, &well, "well", "thin")?;
        let busy = store.agent.ok(&["vdi", "create", "--sr", &other, "--size", "64MiB", "--name", "busy"])?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(0, &[1; 4096], 0)? == 0);
        store.disk.suspend()?;
        // The keeper hangs in its catalog or in a command of lvm2, the guest in its write.
        let cookie = guest.send(FLUSH, 0, 0, 0, &[])?;
        let stuck = thread::scope(|scope| -> Result<bool> {
            let agent = &store.agent;
            let asked = scope.spawn(|| {
                agent.call(
                    "VDI.create",
                    &json!({"sr": store.sr, "virtual_size": 4 << 20, "name_label": "late"}),
                )
            });
            let beside = (|| -> Result<()> {
                for round in 0..2 {
                    store.agent.ok(&["sr", "list"])?;
                    store.agent.ok(&["sr", "show", &store.sr])?;
                    store.agent.ok(&["vdi", "list"])?;
                    store.agent.ok(&["coalesce", "status"])?;
                    store.agent.ok(&["vdi", "attach", &busy])?;
                    store.agent.ok(&["vdi", "snapshot", &busy, "--name", &round.to_string()])?;
                    store.agent.ok(&["vdi", "detach", &busy])?;
                }
                Ok(())
            })();
            store.disk.resume()?;
            beside.with_context(|| store.agent.log())?;
            let made = asked.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
            Ok(made?.is_ok())
        })?;
        ensure!(stuck, "what had to wait was done when the device was back");
        let flushed = guest.receive()?;
        ensure!(flushed.cookie == cookie && flushed.error == 0, "{flushed:?}");
        guest.disconnect()?;

        // A front that comes while it hangs serves the other SR.
        store.disk.suspend()?;
        store.agent.abandon()?;
        store.agent.launch(None)?;
        wait_until("the other SR is there", || {
            Ok(store.agent.catena(&["vdi", "snapshot", &busy, "--name", "after"])?.code == 0)
        })
        .with_context(|| store.agent.log())?;
        // The keeper that looks for its group has nothing of lvm2 locked that others need.
        let third = Disk::new(256)?;
        create(&store.agent, &third, "third", "thin")?;
        store.disk.resume()?;
        wait_until("the SR is back", || Ok(store.agent.catena(&["vdi", "detach", &disk])?.code == 0))?;
        ensure!(store.agent.read(&disk, 0, 4096)?.iter().all(|byte| *byte == 1));
        store.clean()
    })
}

/// What is under way when the device stops is done when it goes on, or was refused and can be repeated; nothing is lost.
#[test]
fn what_meets_a_device_that_hangs_is_done_when_it_goes_on() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let well = Disk::new(256)?;
        let other = create(&store.agent, &well, "well", "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.write(&disk, 0, &[1; 8192])?;
        let hangs = |method: &str, params: &Value| {
            hung(&store, &other, method, params).with_context(|| format!("{method}: {}", store.agent.log()))
        };
        hangs("VDI.attach", &json!({"vdi": disk}))?;
        let socket = store.agent.path(format!("run/catena/vdi/{disk}/nbd.sock"));
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(4096, &[2; 4096], 0)? == 0);
        hangs("VDI.snapshot", &json!({"vdi": disk, "name_label": "snapshot"}))?;
        ensure!(guest.write(8192, &[3; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        let list = store.agent.json(&["vdi", "list", "--sr", &store.sr])?;
        let vdis = list["vdis"].as_array().context("VDIs")?;
        let snapshots: Vec<&str> = vdis
            .iter()
            .filter(|vdi| vdi["is_a_snapshot"] == true)
            .filter_map(|vdi| vdi["uuid"].as_str())
            .collect();
        ensure!(snapshots.len() == 1, "taken once: {list}");
        // With the last snapshot goes what keeps the leaf from being merged.
        hangs("VDI.destroy", &json!({"vdi": snapshots[0]}))?;
        hangs("Coalesce.run", &json!({"sr": store.sr}))?;
        store.settle()?;
        let content = [[1; 4096], [2; 4096], [3; 4096]].concat();
        ensure!(store.agent.depth(&disk)? == 1 && guest.read(0, 12288)? == Ok(content.clone()));
        guest.disconnect()?;
        hangs("VDI.detach", &json!({"vdi": disk}))?;
        ensure!(store.agent.read(&disk, 0, 12288)? == content);
        store.clean()
    })
}

/// Asks something of an SR whose device hangs, sees that everybody else goes on, and repeats it where it was refused for now.
fn hung(store: &Store, other: &str, method: &str, params: &Value) -> Result<()> {
    store.disk.suspend()?;
    let answer = thread::scope(|scope| -> Result<_> {
        let asked = scope.spawn(|| store.agent.call(method, params));
        let beside = (|| -> Result<()> {
            store.agent.ok(&["sr", "show", &store.sr])?;
            store.agent.ok(&["coalesce", "status"])?;
            let vdi = store.agent.ok(&["vdi", "create", "--sr", other, "--size", "4MiB", "--name", "x"])?;
            store.agent.ok(&["vdi", "destroy", &vdi, "--yes"]).map(drop)
        })();
        store.disk.resume()?;
        beside?;
        asked.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?
    })?;
    let Err(refused) = answer else { return Ok(()) };
    ensure!(refused["data"]["retry"] == true, "{refused}");
    wait_until("it is done", || Ok(store.agent.call(method, params)?.is_ok()))
}
