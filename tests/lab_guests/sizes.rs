//! What disks of other sizes take, and disks in use that grow and are merged: equal to what XenServer gives them.

use crate::harness::lab;
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// What an image takes that holds nothing, and one with two blocks, in MiB.
const EMPTY: u64 = 8;
const TWO_BLOCKS: u64 = 12;

/// Writes into the first two blocks of an attached disk.
fn fill(socket: &Path) -> Result<()> {
    let mut client = Client::connect(socket)?;
    ensure!(client.write(0, &[1; 4096], 0)? == 0);
    ensure!(client.write(3 << 20, &[2; 4096], 0)? == 0);
    ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
    client.disconnect()
}

#[test]
fn large_disks_have_the_sizes_of_the_table() -> Result<()> {
    lab::test(|| {
        let store = Store::new(127 << 10, "thick")?;
        for (size, mib) in [("1GiB", 1032), ("10GiB", 10_268), ("100GiB", 102_608)] {
            let disk = store.vdi(size, size)?;
            ensure!(store.mib(&disk)? == mib, "{size}: {:?}", store.volumes()?);
        }
        store.agent.ok(&["vdi", "destroy", "10GiB", "100GiB", "--yes"])?;
        store.agent.ok(&["sr", "policy", &store.sr, "allocation=thin"])?;
        let disk = store.vdi("40GiB", "disk")?;
        ensure!(store.mib(&disk)? == EMPTY, "{:?}", store.volumes()?);
        let socket = store.attach(&disk)?;
        fill(&socket)?;
        store.agent.ok(&["vdi", "resize", &disk, "100GiB"])?;
        ensure!(store.mib(&disk)? == 102_608, "grown in use: {:?}", store.volumes()?);
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.mib(&disk)? == TWO_BLOCKS, "{:?}", store.volumes()?);
        store.clean()
    })
}

#[test]
fn thick_disks_in_use_grow_and_are_merged() -> Result<()> {
    lab::test(|| {
        let store = Store::new(16 << 10, "thick")?;
        let disk = store.vdi("1GiB", "disk")?;
        let socket = store.attach(&disk)?;
        fill(&socket)?;
        store.agent.ok(&["vdi", "resize", &disk, "2GiB"])?;
        ensure!(store.mib(&disk)? == 2060, "grown in use: {:?}", store.volumes()?);
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        ensure!(store.mib(&disk)? == 2060 && store.mib(&snapshot)? == EMPTY, "{:?}", store.volumes()?);
        ensure!(store.others(&[&disk, &snapshot])? == [TWO_BLOCKS], "{:?}", store.volumes()?);
        // A snapshot that is written to is as large as a disk, for so long.
        fill(&store.attach(&snapshot)?)?;
        ensure!(store.mib(&snapshot)? == 2060, "{:?}", store.volumes()?);
        store.agent.ok(&["vdi", "detach", &snapshot])?;
        ensure!(store.mib(&snapshot)? == TWO_BLOCKS, "{:?}", store.volumes()?);
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        store.settle()?;
        let one_is_left = || wait_until("one image is left", || Ok(store.volumes()?.len() == 1));
        one_is_left()?;
        ensure!(store.mib(&disk)? == 2060, "merged in use: {:?}", store.volumes()?);
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.mib(&disk)? == 2060, "{:?}", store.volumes()?);
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "again"])?;
        ensure!(store.others(&[&disk, &snapshot])? == [TWO_BLOCKS], "{:?}", store.volumes()?);
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        store.settle()?;
        one_is_left()?;
        ensure!(store.mib(&disk)? == 2060, "merged at rest: {:?}", store.volumes()?);
        store.clean()
    })
}

/// Where there is little room the leaf is cut before its parent grows. It gets its size back when the merge comes to nothing.
#[test]
fn a_leaf_that_was_cut_for_a_merge_is_full_again() -> Result<()> {
    lab::test(|| {
        let store = Store::new(1536, "thick")?;
        let disk = store.vdi("1GiB", "disk")?;
        fill(&store.attach(&disk)?)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        let socket = store.attach(&disk)?;
        let mut client = Client::connect(&socket)?;
        for block in 3..9 {
            ensure!(client.write(block << 21, &vec![7; 2 << 20], 0)? == 0);
        }
        client.disconnect()?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        let held = store.agent.hash(&disk)?;
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=1MiB"])?;
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        wait_until("the leaf is cut, and its parent is full", || {
            Ok(store.mib(&disk)? == 20 && store.others(&[&disk])? == [1032])
        })
        .with_context(|| format!("{:?}\n{}", store.volumes(), store.agent.log()))?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        wait_until("the leaf is full, and its parent is cut", || {
            Ok(store.mib(&disk)? == 1032 && store.others(&[&disk])?.iter().all(|mib| *mib < 32))
        })
        .with_context(|| format!("{:?}\n{}", store.volumes(), store.agent.log()))?;
        ensure!(store.agent.hash(&disk)? == held, "half a merge");
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=0"])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        store.settle()?;
        wait_until("one image is left", || Ok(store.volumes()?.len() == 1))?;
        ensure!(store.mib(&disk)? == 1032 && store.agent.hash(&disk)? == held, "merged in the end");
        store.clean()
    })
}
