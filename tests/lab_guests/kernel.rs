//! The kernel's own client has a file system on a disk, which is snapshotted and merged under it.

use crate::harness::lab::{self, run};
use crate::harness::{socket_of, text, wait_until};
use crate::store::Store;
use anyhow::{Result, ensure};
use std::fs;

const NODE: &str = "/dev/nbd0";

#[test]
fn the_kernel_has_a_file_system_on_a_disk() -> Result<()> {
    lab::test(|| {
        let store = Store::new(2048, "thin")?;
        let disk = store.vdi("256MiB", "disk")?;
        let socket = store.attach(&disk)?;
        run("nbd-client", &["-unix", &text(&socket), NODE, "-connections", "2"])?;
        run("mkfs.ext4", &["-q", NODE])?;
        let point = store.agent.path("point");
        let mounted = text(&point);
        fs::create_dir(&point)?;
        run("mount", &["-o", "discard", NODE, &mounted])?;
        for round in 0..4 {
            fs::write(point.join(round.to_string()), content(round))?;
            fs::write(point.join("removed"), content(9))?;
            run("sync", &["-f", &mounted])?;
            store.agent.ok(&["vdi", "snapshot", &disk, "--name", &round.to_string()])?;
            fs::remove_file(point.join("removed"))?;
            match round {
                // Of the first two an inner merge is left, of the last one that of the leaf.
                1 => drop(store.agent.ok(&["vdi", "destroy", "0", "--yes"])?),
                3 => drop(store.agent.ok(&["vdi", "destroy", "2", "3", "--yes"])?),
                _ => {}
            }
        }
        store.settle()?;
        ensure!(store.record(&disk)?["depth"] == 2, "merged under the file system: {}", store.record(&disk)?);
        run("umount", &[&mounted])?;
        run("e2fsck", &["-fn", NODE])?;
        run("mount", &[NODE, &mounted])?;
        for round in 0..4 {
            ensure!(fs::read(point.join(round.to_string()))? == content(round), "file {round}");
        }
        run("umount", &[&mounted])?;
        run("nbd-client", &["-d", NODE])?;
        store.agent.ok(&["vdi", "detach", &disk])?;

        // A snapshot is read as it was, and its node cannot be written.
        let socket = socket_of(&store.agent.ok(&["vdi", "attach", "--read-only", "1"])?)?;
        run("nbd-client", &["-unix", &text(&socket), NODE])?;
        ensure!(run("blockdev", &["--getro", NODE])?.trim() == "1");
        run("mount", &["-o", "ro,noload", NODE, &mounted])?;
        ensure!(fs::read(point.join("1"))? == content(1) && !point.join("2").exists());
        run("umount", &[&mounted])?;
        run("nbd-client", &["-d", NODE])?;
        store.agent.ok(&["vdi", "detach", "1"])?;
        store.agent.ok(&["vdi", "destroy", "1", "--yes"])?;
        store.settle()?;
        wait_until("one image is left", || Ok(store.volumes()?.len() == 1))?;
        store.clean()
    })
}

/// A file of 3 MiB that differs from those of other rounds.
fn content(round: usize) -> Vec<u8> {
    (0..3 << 20).map(|byte| u8::try_from(byte * (round + 3) % 251).unwrap_or(0)).collect()
}
