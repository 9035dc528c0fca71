//! Storage that fails under an image: who does not use that image goes on, and who does goes on when it works again.

use crate::broken::{EIO, is_written_again};
use crate::harness::lab::{self, Fault};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};

const MIB: u64 = 1 << 20;

#[test]
fn an_error_reaches_the_client_of_that_disk_alone() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let (broken, other) = (store.vdi("64MiB", "broken")?, store.vdi("64MiB", "other")?);
        let sockets = [store.attach(&broken)?, store.attach(&other)?];
        let mut guest = Client::connect(&sockets[0])?;
        let mut neighbour = Client::connect(&sockets[1])?;
        ensure!(guest.write(0, &[1; 8192], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.break_under(&store.volume(&broken)?)?;
        ensure!(guest.read(0, 4096)? == Err(EIO), "what cannot be read");
        let written = guest.write(4096, &[2; 4096], 0)?;
        ensure!(written == EIO || guest.ask(FLUSH, 0, 0, 0)? == EIO, "what cannot be stored");
        // Everybody else goes on.
        ensure!(neighbour.write(0, &[3; 8192], 0)? == 0 && neighbour.ask(FLUSH, 0, 0, 0)? == 0);
        store.agent.ok(&["vdi", "snapshot", &other, "--name", "snapshot"])?;
        ensure!(store.agent.json(&["sr", "show", &store.sr])?["state"] == "attached");
        // Nobody takes over who could not open it; who has it open knows what it does not own.
        ensure!(store.events("vdi.storage_works")? == 0, "{}", store.agent.log());
        ensure!(guest.read(32 * MIB, 4096)? == Ok(vec![0; 4096]), "what needs nothing from it");
        store.disk.load(&[])?;
        wait_until("the disk is served again", || is_written_again(&sockets[0], 4))
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
fn an_error_of_a_parent_is_one_of_who_reads_it() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        store.agent.write(&disk, 0, &[1; 8192])?;
        let parent = store.volume(&disk)?;
        store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        store.break_under(&parent)?;
        ensure!(guest.read(0, 4096)? == Err(EIO));
        let written = (guest.write(4096, &[2; 4096], 0)?, guest.ask(FLUSH, 0, 0, 0)?);
        ensure!(written == (0, 0), "the leaf is well: {written:?}");
        ensure!(guest.read(4096, 4096)? == Ok(vec![2; 4096]), "so is what it owns");
        store.disk.load(&[])?;
        ensure!(guest.read(0, 8192)? == Ok([[1; 4096], [2; 4096]].concat()), "it is back");
        guest.disconnect()?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.clean()
    })
}

/// A merge into an image that cannot be used any more fails, is tried again later, and costs nothing: of a disk in use first, then of
/// one that is not.
#[test]
fn a_merge_that_fails_is_taken_up_again() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        store.agent.write(&disk, 0, &[1; 8192])?;
        let parent = store.volume(&disk)?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        for block in 1..9 {
            ensure!(guest.write(block * 2 * MIB, &[2; 1 << 20], 0)? == 0);
        }
        ensure!(guest.write(4096, &[2; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        // In its middle: slow enough to be met there.
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=1MiB"])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        wait_until("the merge is under way", || {
            Ok(store.coalescing()?["current"]["bytes_done"].as_u64().is_some_and(|bytes| bytes > 0))
        })
        .with_context(|| store.agent.log())?;
        let ranges = store.ranges(&parent)?;
        store.break_these(ranges.clone())?;
        store.backs_off("leaf_merge", 1)?;
        store.disk.load(&[])?;
        wait_until("the disk can be written", || is_written_again(&socket, 3))
            .with_context(|| store.agent.log())?;
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=0"])?;
        store.is_merged(&disk)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.read(0, 8192)? == Ok([[3; 4096], [2; 4096]].concat()));
        ensure!(guest.read(16 * MIB, 1 << 20)? == Ok(vec![2; 1 << 20]));
        guest.disconnect()?;

        // Detached. Where its parent lies is known: it is the leaf of now.
        let ranges = store.ranges(&store.volume(&disk)?)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        store.agent.write(&disk, 8192, &[4; 4096])?;
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        let failures = store.events("merge.failed")?;
        store.break_these(ranges[..1].to_vec())?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        store.backs_off("leaf_merge", failures + 1)?;
        store.disk.load(&[])?;
        store.is_merged(&disk)?;
        ensure!(store.agent.read(&disk, 0, 12288)? == [[3; 4096], [2; 4096], [4; 4096]].concat());
        store.clean()
    })
}

/// A device that fails as a whole for a while, with the catalog on it. Nobody has to do anything for the SR when it works again.
#[test]
fn a_device_that_is_lost_comes_back() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(0, &[1; 8192], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        let create = |name: &str| -> Result<bool> {
            let command = ["vdi", "create", "--sr", &store.sr, "--size", "4MiB", "--name", name];
            Ok(store.agent.catena(&command)?.code == 0)
        };
        for (fault, byte) in [(Fault::Error, 2), (Fault::Writes, 3)] {
            let mut guest = Client::connect(&socket)?;
            store.disk.load(&[(0..1024 << 11, fault)])?;
            ensure!(guest.read(4096, 4096)?.is_err() == matches!(fault, Fault::Error));
            ensure!(!create("lost")? && !create("lost")?, "a disk was made of nothing");
            ensure!(store.agent.json(&["vdi", "list", "--sr", &store.sr])?["vdis"].is_array());
            store.disk.load(&[])?;
            wait_until("the SR works", || create(&byte.to_string())).with_context(|| store.agent.log())?;
            wait_until("the disk works", || is_written_again(&socket, byte))
                .with_context(|| store.agent.log())?;
        }
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [[3; 4096], [1; 4096]].concat());
        store.settle()?;
        store.clean()
    })
}
