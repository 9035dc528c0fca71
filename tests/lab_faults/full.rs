//! A volume group without room: refused before anything is done, with what is missing, and everything works when there is room again.

use crate::harness::lab;
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::{text, wait_until};
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;

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

    /// Destroys a VDI, waits until so many volumes are left, and takes all that is free by one disk; returns that.
    fn drop_and_fill(&self, vdi: &str, volumes: usize) -> Result<String> {
        self.agent.ok(&["vdi", "destroy", vdi, "--yes"])?;
        wait_until("it is removed", || Ok(self.volumes()?.len() == volumes))
            .with_context(|| format!("{:?}", self.volumes()))?;
        let free = self.free()?;
        // Each block has a bitmap and what aligns it.
        let takes = |blocks: u64| (4_329_472 + blocks * 2_101_248).div_ceil(4 << 20) * 4;
        let blocks = (1..).take_while(|blocks| takes(*blocks) <= free).last().context("some space")?;
        let filler = self.vdi(&format!("{}MiB", blocks * 2), &format!("instead of {vdi}"))?;
        ensure!(self.free()? == 0, "{:?}", self.volumes()?);
        Ok(filler)
    }

    fn merges(&self, enabled: bool) -> Result<()> {
        self.agent.ok(&["sr", "policy", &self.sr, &format!("coalesce.enabled={enabled}")]).map(drop)
    }

    /// It is said that a merge has no room.
    fn lacks_room(&self) -> Result<()> {
        let mut last = Value::Null;
        let said = wait_until("it is said what is missing", || {
            last = self.agent.json(&["coalesce", "status", &self.sr])?["srs"][0].clone();
            Ok(last["reason"]["code"] == "no_space")
        });
        said.with_context(|| format!("{last}\n{}", self.agent.log()))?;
        ensure!(
            last["state"] == "blocked" && last["reason"]["text"].to_string().contains("needed"),
            "{last}"
        );
        Ok(())
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
        let raw = store.agent.path("raw");
        fs::write(&raw, vec![7; 9 << 20])?;
        let raw = text(&raw);
        for refused in [
            &["vdi", "snapshot", &disk][..],
            &["vdi", "snapshot", &fillers[0]],
            &["vdi", "clone", &disk],
            &["vdi", "copy", &disk],
            &["vdi", "resize", &fillers[0], "1GiB"],
            &["vdi", "import", &raw, "--sr", &store.sr, "--name", "x", "--format", "raw"],
        ] {
            let said = store.refused(refused, "no_space", 5)?;
            ensure!(said.contains("missing"), "{refused:?}: {said}");
        }
        wait_until("what was begun is taken back", || Ok(store.volumes()? == full))
            .with_context(|| format!("{before:?}: {full:?}, {:?}", store.volumes()))?;
        store.agent.is_clean(&store.sr)?;
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
        store.lacks_room()?;
        store.relieve(&fillers)?;
        wait_until("it goes on by itself", || Ok(store.agent.depth(&disk)? == 1))
            .with_context(|| store.agent.log())?;
        ensure!(guest.read(0, 8192)? == Ok([[1; 4096], [2; 4096]].concat()));
        guest.disconnect()?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.clean()
    })
}

/// With nothing free at all: a leaf that has more than it uses gives that to its parent; what needs more waits, says so, and goes on by
/// itself when there is some.
#[test]
fn merges_find_the_room_that_there_is() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thick")?;
        // Keeps merges off, and not removals.
        store.merges(false)?;
        let disk = store.vdi("256MiB", "disk")?;
        for byte in 1..4 {
            store.agent.write(&disk, u64::from(byte) << 22, &[byte; 4096])?;
            store.agent.ok(&["vdi", "snapshot", &disk, "--name", &format!("snapshot {byte}")])?;
        }
        store.agent.write(&disk, 0, &[9; 4096])?;
        let content = store.agent.hash(&disk)?;
        let full = store.mib(&disk)?;
        store.drop_and_fill("snapshot 3", 6)?;
        store.merges(true)?;
        wait_until(
            "the leaf is merged",
            || Ok(store.agent.depth(&disk)? == 3 && store.volumes()?.len() == 6),
        )
        .with_context(|| format!("{:?}\n{}", store.volumes(), store.agent.log()))?;
        ensure!(store.mib(&disk)? == full, "a thick disk: {:?}", store.volumes()?);

        // One base copy needs an extent more to take in another.
        store.merges(false)?;
        let filler = store.drop_and_fill("snapshot 1", 5)?;
        let volumes = store.volumes()?;
        store.merges(true)?;
        store.lacks_room()?;
        ensure!(store.volumes()? == volumes, "nothing was begun");
        store.agent.ok(&["vdi", "destroy", &filler, "--yes"])?;
        wait_until("it goes on by itself", || Ok(store.agent.depth(&disk)? == 2))
            .with_context(|| store.agent.log())?;
        ensure!(store.agent.hash(&disk)? == content, "after the merges");
        store.clean()
    })
}
