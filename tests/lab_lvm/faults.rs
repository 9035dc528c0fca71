//! Devices that fail and that hang: who does not use what is there goes on.

use crate::harness::lab::{self, Disk, Fault};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::{Store, create};
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// The protocol's EIO.
const EIO: u32 = 5;

impl Store {
    /// Breaks what is under a volume.
    fn break_under(&self, volume: &str, fault: Fault) -> Result<()> {
        let faults: Vec<_> = self.ranges(volume)?.into_iter().map(|range| (range, fault)).collect();
        self.disk.load(&faults)
    }
}

#[test]
fn an_error_reaches_the_client_of_that_disk_alone() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let (broken, other) = (store.vdi("64MiB", "broken")?, store.vdi("64MiB", "other")?);
        let sockets = [store.attach(&broken)?, store.attach(&other)?];
        let mut guest = Client::connect(&sockets[0])?;
        let mut neighbour = Client::connect(&sockets[1])?;
        ensure!(guest.write(0, &[1; 8192], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.break_under(&store.volume(&broken)?, Fault::Error)?;
        ensure!(guest.read(0, 4096)? == Err(EIO), "what cannot be read");
        let written = guest.write(4096, &[2; 4096], 0)?;
        ensure!(written == EIO || guest.ask(FLUSH, 0, 0, 0)? == EIO, "what cannot be stored");
        // Everybody else goes on.
        ensure!(neighbour.write(0, &[3; 8192], 0)? == 0 && neighbour.ask(FLUSH, 0, 0, 0)? == 0);
        store.agent.ok(&["vdi", "snapshot", &other, "--name", "snapshot"])?;
        ensure!(store.agent.json(&["sr", "show", &store.sr])?["state"] == "attached");
        store.disk.load(&[])?;
        wait_until("the disk is served again", || {
            let Ok(mut client) = Client::connect(&sockets[0]) else { return Ok(false) };
            Ok(matches!(client.write(0, &[4; 4096], 0), Ok(0)) && matches!(client.ask(FLUSH, 0, 0, 0), Ok(0)))
        })
        .with_context(|| store.agent.log())?;
        for disk in [&broken, &other] {
            store.agent.ok(&["vdi", "detach", disk])?;
        }
        ensure!(store.agent.read(&broken, 0, 4096)?.iter().all(|byte| *byte == 4));
        ensure!(store.agent.read(&other, 0, 8192)?.iter().all(|byte| *byte == 3));
        store.settle()?;
        store.clean()
    })
}

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
        let stuck = std::thread::scope(|scope| -> Result<bool> {
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
        store.disk.resume()?;
        wait_until("the SR is back", || Ok(store.agent.catena(&["vdi", "detach", &disk])?.code == 0))?;
        ensure!(store.agent.read(&disk, 0, 4096)?.iter().all(|byte| *byte == 1));
        store.clean()
    })
}
