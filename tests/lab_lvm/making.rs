//! Where an SR may be made, and how it is found again.

use crate::harness::lab::{self, Disk, run};
use crate::harness::{Agent, sha256, text, wait_until};
use crate::store::{Store, create};
use anyhow::{Result, ensure};
use std::fs;

/// A device that holds anything is refused by the name of what it holds, and keeps it.
#[test]
fn a_device_that_holds_something_is_refused() -> Result<()> {
    lab::test(|| {
        let agent = Agent::start()?;
        let disk = Disk::new(128)?;
        let node = text(&disk.path());
        let refused = |devices: &str, what: &str| -> Result<()> {
            let before = sha256(&disk.path())?;
            let said =
                agent.catena(&["sr", "create", "--type", "lvm", "--name", "x", "--devices", devices])?;
            ensure!(said.code != 0 && said.out.is_empty(), "on {what}: {said:?}");
            ensure!(said.err.contains(what), "it does not say {what}: {said:?}");
            ensure!(sha256(&disk.path())? == before, "what was refused was changed: {what}");
            Ok(())
        };
        run("mkfs.ext4", &["-q", &node])?;
        refused(&node, "ext4")?;
        let point = agent.path("point");
        fs::create_dir(&point)?;
        run("mount", &[&node, &text(&point)])?;
        refused(&node, &node)?;
        run("umount", &[&text(&point)])?;
        run("wipefs", &["-q", "-a", &node])?;
        // A table of partitions with one, of Linux, from 1 MiB on.
        let mut table = [0; 512];
        table[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 2, 0, 0, 8, 0, 0, 0, 0x10, 0, 0]);
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::write(disk.path(), table)?;
        refused(&node, "dos")?;
        run("wipefs", &["-q", "-a", &node])?;
        run("pvcreate", &["-qq", &node])?;
        refused(&node, "LVM")?;
        run("pvremove", &["-qq", &node])?;
        refused(&format!("{node},/dev/mapper/nothing"), "/dev/mapper/nothing")?;
        refused(&format!("{node},{node}"), &node)?;
        refused("/dev/null", "/dev/null")?;
        refused(&text(&agent.path("log")), "log")?;
        ensure!(agent.json(&["sr", "list"])?["srs"].as_array().is_some_and(Vec::is_empty));
        agent.ok(&["sr", "create", "--type", "lvm", "--name", "small", "--devices", &node]).map(drop)
    })
}

/// The volume group is what counts: its devices may get other names.
#[test]
fn devices_are_found_under_other_names() -> Result<()> {
    lab::test(|| {
        let agent = Agent::start()?;
        let (first, second) = (Disk::new(256)?, Disk::new(256)?);
        let devices = format!("{},{}", text(&first.path()), text(&second.path()));
        let sr = agent.ok(&["sr", "create", "--type", "lvm", "--name", "store", "--devices", &devices])?;
        let disk = agent.ok(&["vdi", "create", "--sr", &sr, "--size", "400MiB", "--name", "wide"])?;
        agent.write(&disk, 0, &[1; 8192])?;
        agent.ok(&["sr", "detach", &sr])?;
        // The first gets a new name, the second the name that was the first's.
        run("dmsetup", &["rename", "lab-0", "lab-moved"])?;
        run("dmsetup", &["rename", "lab-1", "lab-0"])?;
        agent.ok(&["sr", "attach", &sr])?;
        ensure!(agent.read(&disk, 0, 8192)? == [1; 8192]);
        agent.ok(&["vdi", "attach", &disk])?;
        agent.ok(&["vdi", "detach", &disk])?;
        ensure!(agent.json(&["sr", "check", &sr])?["clean"] == true);
        Ok(())
    })
}

/// A device that is not there: its SR is not attached and says so, others are; nothing is made anew.
#[test]
fn an_sr_without_its_device_waits_for_it() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(256, "thin")?;
        let well = Disk::new(256)?;
        let other = create(&store.agent, &well, "well", "thin")?;
        let disk = store.vdi("16MiB", "disk")?;
        store.agent.ok(&["sr", "detach", &store.sr])?;
        store.disk.load(&[(0..256 << 11, lab::Fault::Error)])?;
        ensure!(store.agent.catena(&["sr", "attach", &store.sr])?.code != 0);
        store.agent.stop()?;
        store.agent.launch(None)?;
        wait_until("the other SR is there", || {
            Ok(store.agent.catena(&["vdi", "create", "--sr", &other, "--size", "4MiB", "--name", "x"])?.code
                == 0)
        })?;
        store.disk.load(&[])?;
        store.agent.ok(&["sr", "attach", &store.sr])?;
        ensure!(store.record(&disk)?["virtual_size"] == 16 << 20);
        store.clean()
    })
}
