//! What disks, snapshots and base copies take, as XenServer has it: full size where somebody writes, no more than they hold elsewhere.
//!
//! An image has 4,329,472 bytes of tables, and 2,101,248 for each block of 2 MiB; all rounded up to extents of 4 MiB.

use crate::harness::lab;
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Result, ensure};

/// What an image takes that holds nothing, and one with two blocks, in MiB.
const EMPTY: u64 = 8;
const TWO_BLOCKS: u64 = 12;

impl Store {
    /// Writes into the first two blocks of an attached disk.
    fn fill(&self, socket: &std::path::Path) -> Result<()> {
        let mut client = Client::connect(socket)?;
        ensure!(client.write(0, &[1; 4096], 0)? == 0);
        ensure!(client.write(3 << 20, &[2; 4096], 0)? == 0);
        ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
        client.disconnect()
    }

    /// Waits until a VDI's volume has so many MiB.
    fn becomes(&self, vdi: &str, mib: u64) -> Result<()> {
        let mut last = 0;
        let waited = wait_until("a volume gets its size", || {
            last = self.mib(vdi)?;
            Ok(last == mib)
        });
        waited
            .map_err(|error| error.context(format!("it has {last} MiB, and not {mib}\n{}", self.agent.log())))
    }
}

#[test]
fn thin_disks_are_full_while_they_are_attached() -> Result<()> {
    lab::test(|| {
        let store = Store::new(40 << 10, "thin")?;
        let disk = store.vdi("10GiB", "disk")?;
        let large = store.vdi("100GiB", "large")?;
        ensure!(store.mib(&disk)? == EMPTY && store.mib(&large)? == EMPTY, "{:?}", store.volumes()?);
        store.refused(&["vdi", "attach", &large], "over_provisioned_attach", 5)?;

        let socket = store.attach(&disk)?;
        ensure!(store.mib(&disk)? == 10268, "{:?}", store.volumes()?);
        store.fill(&socket)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.becomes(&disk, TWO_BLOCKS)?;
        ensure!(store.active()?.is_empty(), "{:?}", store.active()?);

        // Read-only, nothing is needed.
        store.agent.ok(&["vdi", "attach", "--read-only", &disk])?;
        ensure!(store.mib(&disk)? == TWO_BLOCKS);
        ensure!(store.active()?.len() == 1);
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.clean()
    })
}

#[test]
fn snapshots_take_what_they_hold() -> Result<()> {
    lab::test(|| {
        let store = Store::new(40 << 10, "thin")?;
        let disk = store.vdi("10GiB", "disk")?;
        let socket = store.attach(&disk)?;
        store.fill(&socket)?;
        // In use: the new leaf can take every block before the guest gets it, what becomes the base copy is made small afterwards.
        let first = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "first"])?;
        ensure!(store.mib(&disk)? == 10268 && store.mib(&first)? == EMPTY, "{:?}", store.volumes()?);
        wait_until("the base copy is deflated", || Ok(store.others(&[&disk, &first])? == [TWO_BLOCKS]))?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.becomes(&disk, EMPTY)?;

        // Not in use.
        let second = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "second"])?;
        ensure!(store.mib(&disk)? == EMPTY && store.mib(&second)? == EMPTY);
        // A snapshot that is written to is as large as a disk, for so long.
        store.attach(&second)?;
        store.becomes(&second, 10268)?;
        store.agent.ok(&["vdi", "detach", &second])?;
        store.becomes(&second, EMPTY)?;

        for snapshot in [&first, &second] {
            store.agent.ok(&["vdi", "destroy", snapshot, "--yes"])?;
        }
        store.settle()?;
        wait_until("one image is left", || Ok(store.volumes()?.len() == 1))?;
        store.becomes(&disk, TWO_BLOCKS)?;
        store.clean()
    })
}

#[test]
fn thick_disks_are_always_full() -> Result<()> {
    lab::test(|| {
        let store = Store::new(60 << 10, "thick")?;
        let disk = store.vdi("10GiB", "disk")?;
        ensure!(store.mib(&disk)? == 10268);
        let socket = store.attach(&disk)?;
        store.fill(&socket)?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        ensure!(store.mib(&disk)? == 10268 && store.mib(&snapshot)? == EMPTY, "{:?}", store.volumes()?);
        store.agent.ok(&["vdi", "detach", &disk])?;
        wait_until("the base copy is deflated", || Ok(store.others(&[&disk, &snapshot])? == [TWO_BLOCKS]))?;
        ensure!(store.mib(&disk)? == 10268, "it stays full");

        let clone = store.agent.ok(&["vdi", "clone", &disk, "--name", "clone"])?;
        ensure!(store.mib(&clone)? == 10268 && store.mib(&disk)? == 10268, "{:?}", store.volumes()?);
        store.agent.ok(&["vdi", "resize", &clone, "20GiB"])?;
        store.becomes(&clone, 20528)?;

        // A change of the policy is for what comes: the next detach.
        store.agent.ok(&["sr", "policy", &store.sr, "allocation=thin"])?;
        store.attach(&disk)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        store.becomes(&disk, EMPTY)?;
        store.clean()
    })
}
