//! Storage that fails in the middle of a merge below a disk in use: under what is copied, then under what takes it.

use crate::broken::EIO;
use crate::harness::lab;
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::ops::Range;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;

impl Store {
    /// The merge into a base copy is in its middle.
    fn is_merging(&self) -> Result<()> {
        let mut last = Value::Null;
        wait_until("the merge is under way", || {
            last = self.coalescing()?;
            let current = &last["current"];
            Ok(current["kind"] == "merge" && current["bytes_done"].as_u64().is_some_and(|bytes| bytes > 0))
        })
        .with_context(|| format!("{last}\n{}", self.agent.log()))
    }

    /// What lies behind the first so many MiB of a volume that is active.
    fn behind(&self, volume: &str, mib: u64) -> Result<Vec<Range<u64>>> {
        let mut left = mib << 11;
        let mut found = Vec::new();
        // A volume that has grown lies in pieces, in the order of its table.
        for piece in self.pieces(volume)? {
            let skipped = left.min(piece.end - piece.start);
            left -= skipped;
            if piece.start + skipped < piece.end {
                found.push(piece.start + skipped..piece.end);
            }
        }
        ensure!(!found.is_empty(), "{volume} has no more than {mib} MiB");
        found.sort_by_key(|range| range.start);
        Ok(found)
    }
}

/// A guest who writes all the time, and finds what it wrote.
struct Guest {
    client: Client,
    writes: u8,
}

impl Guest {
    /// One more write, durable, into the last block of the disk.
    fn write(&mut self) -> Result<()> {
        self.writes = self.writes.wrapping_add(1);
        let byte = [self.writes; 4096];
        let done = (self.client.write(31 * BLOCK, &byte, 0)?, self.client.ask(FLUSH, 0, 0, 0)?);
        ensure!(done == (0, 0), "the guest is hurt: {done:?}");
        ensure!(self.client.read(31 * BLOCK, 4096)? == Ok(byte.to_vec()), "what it wrote");
        Ok(())
    }

    /// It writes until the merge below it has failed once more.
    fn until_failed(&mut self, store: &Store, failures: usize) -> Result<()> {
        wait_until("the merge has failed", || {
            self.write()?;
            Ok(store.events("merge.failed")? >= failures)
        })
        .with_context(|| store.agent.log())?;
        store.backs_off("merge", failures)
    }
}

#[test]
fn a_merge_below_a_disk_in_use_that_fails_hurts_nobody_and_goes_on() -> Result<()> {
    lab::test(|| {
        let store = Store::new(512, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        store.agent.write(&disk, 0, &[1; 8192])?;
        let target = store.volume(&disk)?;
        let old = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "old"])?;
        let mut guest = Guest { client: Client::connect(&store.attach(&disk)?)?, writes: 0 };
        ensure!(guest.client.write(4096, &[2; 4096], 0)? == 0);
        for block in 1..9 {
            ensure!(guest.client.write(block * BLOCK, &[2; 1 << 20], 0)? == 0);
        }
        let source = store.volume(&disk)?;
        // It keeps the leaf from being merged first.
        let kept = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "kept"])?;
        store.agent.ok(&["vdi", "destroy", &old, "--yes"])?;
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=1MiB"])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;

        // The tables, and the first blocks, can be read.
        store.is_merging()?;
        store.break_these(store.behind(&source, 14)?)?;
        ensure!(guest.client.read(8 * BLOCK, 4096)? == Err(EIO), "what is broken");
        ensure!(guest.client.read(BLOCK, 4096)? == Ok(vec![2; 4096]), "what is not");
        guest.until_failed(&store, 1)?;
        ensure!(guest.client.read(8 * BLOCK, 4096)? == Err(EIO), "only reads of that");
        store.disk.load(&[])?;
        ensure!(guest.client.read(8 * BLOCK, 4096)? == Ok(vec![2; 4096]), "it is back");

        // It goes on where it was, into what cannot be written any more.
        store.agent.ok(&["coalesce", "run", &store.sr])?;
        store.is_merging()?;
        store.break_these(store.behind(&target, 14)?)?;
        guest.until_failed(&store, 2)?;
        for block in 1..9 {
            ensure!(guest.client.read(block * BLOCK, 4096)? == Ok(vec![2; 4096]), "block {block}");
        }
        store.disk.load(&[])?;

        ensure!(store.events("vdi.storage_failed")? == 0, "{}", store.agent.log());
        store.agent.ok(&["sr", "policy", &store.sr, "coalesce.rate=0"])?;
        store.settle()?;
        ensure!(store.agent.depth(&disk)? == 2, "{}\n{}", store.coalescing()?, store.agent.log());
        guest.write()?;
        let writes = guest.writes;
        for (vdi, last) in [(&disk, writes), (&kept, 0)] {
            if vdi == &disk {
                guest.client.ask(FLUSH, 0, 0, 0)?;
                store.agent.ok(&["vdi", "detach", vdi])?;
            }
            ensure!(store.agent.read(vdi, 0, 8192)? == [[1; 4096], [2; 4096]].concat());
            for block in 1..9 {
                ensure!(store.agent.read(vdi, block * BLOCK, MIB)? == [2; 1 << 20], "block {block}");
                ensure!(store.agent.read(vdi, block * BLOCK + MIB, 4096)? == [0; 4096], "behind {block}");
            }
            ensure!(store.agent.read(vdi, 31 * BLOCK, 4096)? == [last; 4096], "the last block");
        }
        store.clean()
    })
}
