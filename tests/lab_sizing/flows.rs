//! The sizes that XenServer gives its volumes: full where a guest writes, what they hold elsewhere; with `thick` disks always full.

use crate::harness::lab;
use crate::sized::{EMPTY, FULL_1, FULL_10, MIB, Sized, holding};
use anyhow::{Context, Result, ensure};
use std::fs::File;

#[test]
fn a_thin_disk_is_full_while_it_is_written() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(32 << 10, "thin")?;
        let disk = sized.disk("one", "10GiB")?;
        sized.has(&disk, EMPTY, "a new disk")?;
        sized.agent.ok(&["vdi", "attach", &disk, "--read-only"])?;
        sized.has(&disk, EMPTY, "read only")?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        let mut client = sized.attach(&disk)?;
        sized.has(&disk, FULL_10, "written")?;
        sized.is_active(&[], &[&sized.image(&disk)?])?;
        Sized::fill(&mut client, 0, 5)?;
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(5), "detached")?;
        sized.is_active(&[], &[])?;
        sized.is_filled(&disk, 0, 5)?;
        sized.agent.write(&disk, 7 * 2 * MIB, &[7; 4096])?;
        sized.has(&disk, holding(6), "written without a guest")?;
        sized.agent.ok(&["vdi", "resize", &disk, "20GiB"])?;
        sized.has(&disk, holding(6), "a larger disk needs no more")?;
        // Who has a volume open keeps it active, and no longer. Nobody tells the keeper when it is closed.
        let image = sized.image(&disk)?;
        sized.agent.ok(&["vdi", "attach", &disk, "--read-only"])?;
        let held = File::open(format!("/dev/catena-{}/vhd-{image}", sized.sr))?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        for _ in 0..3 {
            sized.is_active(&[&image], &[]).context("for as long as it is open")?;
        }
        drop(held);
        sized.is_active(&[], &[])?;
        sized.agent.is_clean(&sized.sr)
    })
}

#[test]
fn snapshots_take_what_they_hold() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(48 << 10, "thin")?;
        let disk = sized.disk("one", "10GiB")?;
        let mut client = sized.attach(&disk)?;
        Sized::fill(&mut client, 0, 3)?;
        let base = sized.image(&disk)?;
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        ensure!(sized.mib(&base)? == holding(3), "the old leaf is cut under the guest");
        sized.has(&disk, FULL_10, "the new leaf")?;
        sized.has(&snapshot, EMPTY, "the snapshot")?;
        Sized::fill(&mut client, 3, 2)?;
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(2), "detached")?;
        let mut client = sized.attach(&snapshot)?;
        sized.has(&snapshot, FULL_10, "a snapshot that is written")?;
        Sized::fill(&mut client, 100, 1)?;
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &snapshot])?;
        sized.has(&snapshot, holding(1), "a snapshot that was written")?;
        let clone = sized.agent.ok(&["vdi", "clone", &disk])?;
        sized.has(&clone, EMPTY, "a clone")?;
        sized.has(&disk, EMPTY, "the origin of a clone")?;
        sized.is_filled(&clone, 0, 5)?;
        sized.is_filled(&snapshot, 100, 1)?;
        sized.agent.is_clean(&sized.sr)
    })
}

#[test]
fn thick_disks_stay_full() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(64 << 10, "thick")?;
        let shown = sized.agent.json(&["sr", "show", &sized.sr])?;
        ensure!(shown["allocation"] == "thick", "{shown}");
        let disk = sized.disk("one", "10GiB")?;
        sized.has(&disk, FULL_10, "a new disk")?;
        let mut client = sized.attach(&disk)?;
        Sized::fill(&mut client, 0, 4)?;
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, FULL_10, "detached")?;
        let base = sized.image(&disk)?;
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        ensure!(sized.mib(&base)? == holding(4), "a base copy");
        sized.has(&disk, FULL_10, "the new leaf")?;
        sized.has(&snapshot, EMPTY, "the snapshot")?;
        let clone = sized.agent.ok(&["vdi", "clone", &snapshot])?;
        sized.has(&clone, FULL_10, "a clone is a disk")?;
        sized.agent.ok(&["vdi", "resize", &clone, "12GiB"])?;
        sized.has(&clone, FULL_10 + 2052, "a larger disk")?;
        sized.is_filled(&clone, 0, 4)?;
        let small = sized.disk("small", "1GiB")?;
        sized.has(&small, FULL_1, "a small disk")?;
        sized.agent.ok(&["sr", "policy", &sized.sr, "allocation=thin"])?;
        drop(sized.attach(&small)?);
        sized.agent.ok(&["vdi", "detach", &small])?;
        sized.has(&small, EMPTY, "from then on")?;
        sized.agent.is_clean(&sized.sr)
    })
}

#[test]
fn a_disk_grows_in_use_with_its_volume() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(32 << 10, "thin")?;
        let disk = sized.disk("one", "1GiB")?;
        let client = sized.attach(&disk)?;
        sized.agent.ok(&["vdi", "resize", &disk, "10GiB"])?;
        sized.has(&disk, FULL_10, "grown in use")?;
        client.disconnect()?;
        let answer = sized.agent.json(&["vdi", "show", &disk])?;
        ensure!(answer["virtual_size"] == 10 * 1024 * MIB, "{answer}");
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, EMPTY, "detached")?;
        sized.agent.is_clean(&sized.sr)
    })
}
