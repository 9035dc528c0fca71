//! An SR in a volume group from its creation to its end, through the command line.

use crate::harness::lab::{self, Disk, run};
use crate::harness::{Agent, text};
use anyhow::{Result, ensure};
use std::os::unix::fs::FileExt;

fn places(disks: &[&Disk]) -> String {
    disks.iter().map(|disk| text(&disk.path())).collect::<Vec<_>>().join(",")
}

#[test]
fn an_sr_comes_and_goes() -> Result<()> {
    lab::test(|| {
        let (one, two) = (Disk::new(2048)?, Disk::new(2048)?);
        let agent = Agent::start()?;
        let devices = places(&[&one, &two]);
        let create = ["sr", "create", "--type", "lvm", "--name", "fast", "--devices", &devices];
        let sr = agent.ok(&create)?.trim().to_owned();
        let record = agent.json(&["sr", "show", "fast"])?;
        ensure!(record["type"] == "lvm" && record["devices"][1] == text(&two.path()), "{record}");
        ensure!(record["physical_size"].as_u64() > Some(4000 << 20), "{record}");
        let probed = agent.json(&["sr", "probe", "--type", "lvm", "--devices", &devices])?;
        ensure!(
            probed["found"] == "sr" && probed["uuid"] == sr.as_str() && probed["known"] == true,
            "{probed}"
        );
        let refused = agent.catena(&create)?;
        ensure!(refused.code == 4, "a known SR is there: {}", refused.err);

        let vdi = agent.ok(&["vdi", "create", "--sr", "fast", "--size", "1GiB", "--name", "disk"])?;
        agent.write(vdi.trim(), 4096, b"kept")?;
        agent.ok(&["vdi", "snapshot", "disk", "--name", "before"])?;
        agent.write(vdi.trim(), 4096, b"more")?;
        agent.ok(&["sr", "detach", "fast"])?;
        let active = run("dmsetup", &["ls"])?;
        ensure!(!active.contains("catena"), "nothing of a detached SR is active: {active}");
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        ensure!(!mounts.contains(&sr), "nothing of it is mounted: {mounts}");
        agent.ok(&["sr", "attach", "fast"])?;
        ensure!(agent.read(vdi.trim(), 4096, 4)? == b"more");
        agent.ok(&["vdi", "destroy", "before", "--yes"])?;
        agent.ok(&["vdi", "destroy", "disk", "--yes"])?;
        agent.ok(&["sr", "destroy", "fast", "--yes"])?;
        let probed = agent.json(&["sr", "probe", "--type", "lvm", "--devices", &devices])?;
        ensure!(probed["found"] == "empty", "{probed}");
        Ok(())
    })
}

#[test]
fn a_device_that_holds_something_is_left_alone() -> Result<()> {
    lab::test(|| {
        let (free, other) = (Disk::new(512)?, Disk::new(512)?);
        let agent = Agent::start()?;
        let refused = |devices: &str, words: &str| -> Result<()> {
            let said =
                agent.catena(&["sr", "create", "--type", "lvm", "--name", "x", "--devices", devices])?;
            ensure!(said.code != 0 && said.err.contains(words), "{devices}: {} {}", said.code, said.err);
            Ok(())
        };
        let device = text(&other.path());
        run("mkfs.ext4", &["-q", &device])?;
        refused(&places(&[&free, &other]), "ext4")?;
        run("wipefs", &["-a", &device])?;
        let mut table = [0; 512];
        table[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        table[510..].copy_from_slice(&[0x55, 0xAA]);
        std::fs::File::options().write(true).open(other.path())?.write_all_at(&table, 0)?;
        refused(&device, "partition table (dos)")?;
        run("wipefs", &["-a", &device])?;
        run("vgcreate", &["-qq", "theirs", &device])?;
        refused(&device, "theirs")?;
        refused("/dev/null", "block device")?;
        refused("/dev/no-such", "no device")?;
        refused(&format!("{0},{0}", text(&free.path())), "second time")?;
        ensure!(run("pvs", &["--noheadings", "-o", "vg_name", &device])?.trim() == "theirs", "left alone");
        let blank = run("blkid", &["-p", &text(&free.path())]);
        ensure!(blank.is_err(), "a free device beside it is untouched");
        Ok(())
    })
}
