//! A disk that is written all the time through NBD, as by a guest, while snapshots of it come and go.

use super::remote::Remote;
use super::{Demo, disks, hash};
use anyhow::{Result, anyhow, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The name of the disk.
const DISK: &str = "busy";

const DISK_BYTES: usize = 32 << 20;
const SECTOR: usize = 512;
/// The longest write, in sectors.
const LONGEST: u64 = 256;
/// A flush after so many writes.
const FLUSH_EVERY: u64 = 50;

/// Somebody who writes to the disk and remembers what it must read.
struct Guest {
    remote: Remote,
    content: Vec<u8>,
    writes: u64,
    bytes: usize,
}

impl Guest {
    /// Writes somewhere, then reads somewhere else and compares.
    fn one(&mut self) -> Result<()> {
        self.writes += 1;
        let (at, length) = self.somewhere(1);
        let bytes = hash::pattern(self.writes, length);
        self.remote.write(u64::try_from(at)?, &bytes)?;
        self.content[at..at + length].copy_from_slice(&bytes);
        self.bytes += length;
        let (at, length) = self.somewhere(2);
        let found = self.remote.read(u64::try_from(at)?, length)?;
        ensure!(found == self.content[at..at + length], "{length} bytes at {at} are not what was written");
        if self.writes.is_multiple_of(FLUSH_EVERY) {
            self.remote.flush()?;
        }
        Ok(())
    }

    /// A place and a length, whole sectors both.
    fn somewhere(&self, what: u64) -> (usize, usize) {
        let dice = hash::pattern(self.writes * 2 + what, 16);
        let roll = |half: &[u8], below: u64| {
            let number = half.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(251) + u64::from(*byte));
            usize::try_from(number % below).unwrap_or(0)
        };
        let sectors = roll(&dice[..8], LONGEST) + 1;
        let last = DISK_BYTES / SECTOR - sectors;
        (roll(&dice[8..], last as u64 + 1) * SECTOR, sectors * SECTOR)
    }

    fn sha256(&self) -> String {
        hash::of_bytes(&self.content)
    }
}

/// Does `work` while the guest writes; both must go well.
fn while_it_writes(guest: &mut Guest, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                guest.one()?;
            }
            Ok(())
        });
        let worked = work();
        over.store(true, Ordering::Relaxed);
        let wrote = writing.join().map_err(|_| anyhow!("the writer has panicked"))?;
        wrote.and(worked)
    })
}

impl Demo {
    /// Step: a disk is written through NBD all the time; snapshots are taken, destroyed and merged under it.
    pub(super) fn serve_a_disk(&mut self) -> Result<()> {
        self.stage
            .title("A disk is served and written all the time, while snapshots come, go and are merged");
        let size = DISK_BYTES.to_string();
        let vdi = self.stage.run(&["vdi", "create", "--sr", disks::SR, "--size", &size, "--name", DISK])?;
        let uri = self.stage.run(&["vdi", "attach", DISK])?;
        let remote = Remote::connect(uri.trim())?;
        let mut guest = Guest { remote, content: vec![0; DISK_BYTES], writes: 0, bytes: 0 };
        let mut passing = Vec::new();
        while_it_writes(&mut guest, || self.some_snapshots(&mut passing))?;
        let kept = self.stage.run(&["vdi", "snapshot", DISK, "--name", &format!("{DISK}-kept")])?;
        let kept_sha256 = guest.sha256();
        while_it_writes(&mut guest, || {
            self.some_snapshots(&mut passing)?;
            self.merge_below(&passing)
        })?;
        let (written, megabytes) = (guest.writes, guest.bytes >> 20);
        self.stage
            .voice()
            .say(&format!("{written} writes of {megabytes} MiB, each followed by a read that was compared."));
        let sha256 = guest.sha256();
        guest.remote.flush()?;
        guest.remote.close()?;
        self.stage.run(&["vdi", "detach", DISK])?;
        self.stage.verify("the disk, detached", vdi.trim(), &sha256)?;
        self.stage.verify("the snapshot that was kept", kept.trim(), &kept_sha256)
    }

    fn some_snapshots(&self, taken: &mut Vec<String>) -> Result<()> {
        for number in 0..5 {
            let line = ["vdi", "snapshot", DISK, "--name", &format!("{DISK}-{}", taken.len())];
            let printed = if number == 0 { self.stage.run(&line)? } else { self.stage.quietly(&line)? };
            taken.push(printed.trim().to_owned());
        }
        Ok(())
    }

    /// Destroys the snapshots and has all that they leave merged, the leaf that is being written too: one image is left below the
    /// fork of the kept snapshot, one above.
    fn merge_below(&self, snapshots: &[String]) -> Result<()> {
        let uuids: Vec<&str> = snapshots.iter().map(String::as_str).collect();
        let shown = format!("vdi destroy {} ... ({} snapshots)", uuids[0], uuids.len());
        self.stage.run_as(&shown, &[&["vdi", "destroy"], &uuids[..]].concat())?;
        self.stage.run(&["coalesce", "run", disks::SR, "--wait"])?;
        self.stage.run(&["vdi", "tree", DISK])?;
        let depth = self.stage.number(&["vdi", "show", DISK], "depth")?;
        ensure!(depth == 2, "the chain of the served disk has {depth} images");
        Ok(())
    }
}
