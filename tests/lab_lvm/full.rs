//! A volume group without room: refused before anything is done, with what is missing, and everything works when there is room again.

use crate::harness::lab;
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};

impl Store {
    /// What new volumes can still take, in MiB.
    fn free(&self) -> Result<u64> {
        let record = self.agent.json(&["sr", "show", &self.sr])?;
        Ok(record["free_space"].as_u64().context("free space")? >> 20)
    }

    /// Takes all that is free but so many MiB, by disks that are attached; returns them.
    fn leave(&self, mib: u64) -> Result<Vec<String>> {
        let mut fillers = Vec::new();
        while self.free()? > mib + 16 {
            // Of the room that there is, an attached disk takes its size, 8 MiB of tables and 4 KiB a block.
            let size = (self.free()? - mib - 8) / 2 * 2 - 2;
            let filler = self.vdi(&format!("{size}MiB"), &format!("filler{}", fillers.len()))?;
            self.attach(&filler)?;
            fillers.push(filler);
        }
        Ok(fillers)
    }

    fn relieve(&self, fillers: &[String]) -> Result<()> {
        for filler in fillers {
            self.agent.ok(&["vdi", "detach", filler])?;
            self.agent.ok(&["vdi", "destroy", filler, "--yes"])?;
        }
        wait_until("they are gone", || Ok(self.free()? > 200))
    }
}

#[test]
fn a_full_group_refuses_and_recovers() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let fillers = store.leave(0)?;
        let before = store.volumes()?;
        store.refused(&["vdi", "attach", &disk], "over_provisioned_attach", 5)?;
        while store
            .agent
            .catena(&["vdi", "create", "--sr", &store.sr, "--size", "4MiB", "--name", "small"])?
            .code
            == 0
        {}
        let full = store.volumes()?;
        store.refused(
            &["vdi", "create", "--sr", &store.sr, "--size", "4MiB", "--name", "x"],
            "no_space",
            5,
        )?;
        store.refused(&["vdi", "snapshot", &disk], "no_space", 5)?;
        store.refused(&["vdi", "snapshot", &fillers[0]], "no_space", 5)?;
        ensure!(store.volumes()? == full, "what is refused changes nothing: {before:?}");
        store.relieve(&fillers)?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(0, &[1; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        guest.disconnect()?;
        store.agent.ok(&["vdi", "snapshot", &disk, "--name", "now"])?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.settle()?;
        store.clean()
    })
}

/// The leaf of a disk in use needs room in its parent for every block.
#[test]
fn a_merge_waits_for_room() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let disk = store.vdi("128MiB", "disk")?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        store.agent.write(&disk, 0, &[1; 4096])?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        let socket = store.attach(&disk)?;
        let fillers = store.leave(40)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(4096, &[2; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        let mut last = serde_json::Value::Null;
        wait_until("it is said what is missing", || {
            last = store.agent.json(&["coalesce", "status", &store.sr])?["srs"][0].clone();
            Ok(last["reason"]["code"] == "no_space")
        })
        .with_context(|| last.to_string())?;
        store.relieve(&fillers)?;
        store.settle()?;
        ensure!(store.record(&disk)?["depth"] == 1, "{}", store.record(&disk)?);
        ensure!(guest.read(0, 8192)? == Ok([[1; 4096], [2; 4096]].concat()));
        guest.disconnect()?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.clean()
    })
}
