//! The lab itself: what the other tests rely on.

use crate::harness::lab::{self, Disk, Fault, run};
use crate::harness::text;
use anyhow::{Result, ensure};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

#[test]
fn disks_are_empty_and_grow_and_break() -> Result<()> {
    lab::test(|| {
        let (mut disk, other) = (Disk::new(64)?, Disk::new(64)?);
        let write = |page: u64| {
            let (to, at) = (format!("of={}", text(&disk.path())), format!("seek={page}"));
            run("dd", &["if=/dev/urandom", &to, &at, "bs=4096", "count=1", "oflag=direct", "conv=notrunc"])
        };
        let is_empty = |disk: &Disk| -> Result<bool> {
            let mut bytes = vec![1; 64 << 20];
            File::open(disk.path())?.read_exact_at(&mut bytes, 0)?;
            Ok(bytes.iter().all(|byte| *byte == 0))
        };
        ensure!(is_empty(&disk)?, "a fresh disk reads as zeros");
        disk.load(&[(0..8, Fault::Error), (2048..4096, Fault::Writes)])?;
        ensure!(write(0).is_err() && write(256).is_err(), "a disk that is broken there");
        write(2)?;
        disk.load(&[])?;
        write(256)?;
        ensure!(!is_empty(&disk)? && is_empty(&other)?, "every disk has its own bytes");
        disk.resize(128)?;
        let size = run("blockdev", &["--getsize64", &text(&disk.path())])?;
        ensure!(size.trim() == (128 << 20).to_string(), "{size}");
        Ok(())
    })
}

/// So that a suite does not end with its first test that fails.
#[test]
fn what_a_test_leaves_is_gone() -> Result<()> {
    lab::test(|| {
        let home = lab::inside().expect("in the lab");
        ensure!(fs::read_dir(&home)?.next().is_none(), "another test's files");
        let disk = Disk::new(64)?;
        run("mkfs.ext4", &["-q", &text(&disk.path())])?;
        let point = home.join("point");
        fs::create_dir(&point)?;
        run("mount", &[&text(&disk.path()), &text(&point)])?;
        fs::write(point.join("file"), "left")?;
        // A process that waits for a device that does not come back.
        disk.suspend()?;
        let mut sync = std::process::Command::new("sync");
        sync.arg("-f").arg(&point).spawn()?;
        Ok(())
    })
}

#[test]
fn a_volume_group_lies_on_a_disk() -> Result<()> {
    lab::test(|| {
        let disk = Disk::new(512)?;
        run("vgcreate", &["-qq", "mine", &text(&disk.path())])?;
        run("lvcreate", &["-qq", "--yes", "-L", "64m", "-n", "one", "mine"])?;
        let node = Path::new("/dev/mine/one");
        let file = File::options().write(true).open(node)?;
        file.write_all_at(&[7; 4096], (64 << 20) - 4096)?;
        let over = file.write_all_at(&[7; 4096], 64 << 20);
        ensure!(over.is_err_and(|error| error.kind() == ErrorKind::StorageFull), "it has an end");
        Ok(())
    })
}
