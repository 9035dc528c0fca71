//! What a device held before reaches nobody: not a guest, not an export, and no program that reads the image by itself and takes
//! every block as it is.

use crate::harness::guest::Guest;
use crate::harness::lab::{self, Disk};
use crate::harness::mounted::Mounted;
use crate::harness::{peer, qemu_img, seed, sha256, text, wait_until};
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

const MIB: usize = 1 << 20;

#[test]
fn what_was_on_the_device_is_seen_by_nobody() -> Result<()> {
    lab::test(|| {
        let store = Store::on(soiled(192)?, "thin")?;
        let disk = store.vdi("8MiB", "disk")?;
        let guest = in_use(&store, &disk)?;
        all_see(&store, &disk, &guest, "after a detach")?;
        let guest = at_rest(&store, &disk, guest)?;
        all_see(&store, &disk, &guest, "after all")?;
        store.agent.ok(&["vdi", "destroy", &disk, "--yes"])?;
        wait_until("its volume is removed", || Ok(store.volumes()?.is_empty()))?;
        store.clean()
    })
}

/// A disk of which every byte was written.
fn soiled(mib: u64) -> Result<Disk> {
    let disk = Disk::new(mib)?;
    let mut node = File::options().write(true).open(disk.path())?;
    let stale = vec![0xAA; MIB];
    (0..mib).try_for_each(|_| node.write_all(&stale))?;
    node.sync_all()?;
    Ok(disk)
}

/// A new disk, read by everybody, and then what a guest sees: snapshots, merges and growth while it writes.
fn in_use(store: &Store, disk: &str) -> Result<Guest> {
    let uri = store.agent.ok(&["vdi", "attach", disk])?;
    let mut guest = Guest::new(&uri, 8 * MIB, seed("what_was_on_the_device_is_seen_by_nobody") | 1)?;
    store.agent.ok(&["vdi", "detach", disk])?;
    all_see(store, disk, &guest, "a new disk")?;
    store.agent.ok(&["vdi", "attach", disk])?;
    for round in 0..2 {
        works(&mut guest, 30)?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", disk, "--name", &round.to_string()])?;
        let held = guest.sha256();
        works(&mut guest, 30)?;
        ensure!(store.agent.hash(&snapshot)? == held, "the snapshot holds something else");
        if round == 1 {
            // A base copy below is smaller than the disk.
            store.agent.ok(&["vdi", "resize", disk, "12MiB"])?;
            guest.grown(12 * MIB);
        }
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        works(&mut guest, 10)?;
        store.settle()?;
        works(&mut guest, 10)?;
    }
    store.agent.ok(&["vdi", "detach", disk])?;
    Ok(guest)
}

/// The same with a disk that is merged and grows while nobody uses it, and that is trimmed.
fn at_rest(store: &Store, disk: &str, mut guest: Guest) -> Result<Guest> {
    let snapshot = store.agent.ok(&["vdi", "snapshot", disk])?;
    store.agent.ok(&["vdi", "resize", disk, "20MiB"])?;
    guest.grown(20 * MIB);
    store.agent.ok(&["vdi", "attach", disk])?;
    works(&mut guest, 40)?;
    store.agent.ok(&["vdi", "detach", disk])?;
    store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
    store.settle()?;
    ensure!(store.agent.hash(disk)? == guest.sha256(), "a merged disk holds something else");
    store.agent.ok(&["sr", "trim", &store.sr])?;
    Ok(guest)
}

/// So many requests, and some that give up space.
fn works(guest: &mut Guest, requests: usize) -> Result<()> {
    for number in 0..requests {
        guest.one()?;
        if number % 6 == 0 {
            guest.trim()?;
        }
    }
    Ok(())
}

/// A detached disk of one image holds what its guest knows, whoever reads it.
fn all_see(store: &Store, disk: &str, guest: &Guest, when: &str) -> Result<()> {
    let sum = guest.sha256();
    ensure!(store.agent.hash(disk)? == sum, "{when}: an export of it");
    let (vhd, raw) = (store.agent.path("seen.vhd"), store.agent.path("seen.raw"));
    let is_same = |who: &str| -> Result<()> {
        ensure!(sha256(&raw)? == sum, "{when}: {who}");
        Ok(fs::remove_file(&raw)?)
    };
    store.agent.ok(&["vdi", "export", disk, &text(&vhd), "--format", "vhd"])?;
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", &text(&vhd), &text(&raw)])?;
    is_same("qemu-img, of an exported VHD")?;
    fs::remove_file(&vhd)?;

    let socket = store.agent.ok(&["vdi", "attach", "--read-only", disk])?;
    peer("libnbd-bin", "nbdcopy", &[&socket, &text(&raw)])?;
    is_same("a client")?;
    let node = PathBuf::from(format!("/dev/{}/{}", store.group(), store.volume(disk)?));
    qemu_img(&["convert", "-U", "-f", "vpc", "-O", "raw", &text(&node), &text(&raw)])?;
    is_same("qemu-img, of the volume")?;
    let mounted = Mounted::new(&node, store.agent.path("seen"))?;
    // It takes the size that a disk was made with for the one that it has.
    let read = fs::read(mounted.layer(1)).context("vhdimount")?;
    ensure!(guest.content().starts_with(&read) && read.len() >= 8 * MIB, "{when}: libvhdi, of the volume");
    drop(mounted);
    fs::remove_dir(store.agent.path("seen"))?;
    store.agent.ok(&["vdi", "detach", disk]).map(drop)
}
