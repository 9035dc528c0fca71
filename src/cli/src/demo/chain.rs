//! A chain that grows with every snapshot up to the limit, and the merge that makes it short again.

use super::stage::text;
use super::{Demo, disks, hash};
use anyhow::{Context, Result, ensure};
use catena_types::{CHAIN_LIMIT, ErrorName};
use std::fs;

/// The name of the disk whose snapshots make the chain.
pub(super) const DISK: &str = "ledger";

const DISK_BYTES: usize = 16 << 20;
const WRITE_BYTES: usize = 128 << 10;
/// One snapshot in so many is kept.
const KEEP_EVERY: usize = 10;

/// The disk, its snapshots, and what each of them must read.
pub(super) struct Chain {
    disk: String,
    disk_sha256: String,
    snapshots: Vec<Snapshot>,
}

struct Snapshot {
    uuid: String,
    sha256: String,
}

impl Demo {
    /// Step: snapshots with writes between them until the limit of the chain refuses one.
    pub(super) fn snapshot_to_the_limit(&mut self) -> Result<Chain> {
        self.stage.title("Snapshots of a disk, with writes between them, up to the limit of the chain");
        let size = DISK_BYTES.to_string();
        let disk = self.stage.run(&["vdi", "create", "--sr", disks::SR, "--size", &size, "--name", DISK])?;
        let mut content = vec![0; DISK_BYTES];
        let mut snapshots = Vec::new();
        // The disk's own image is one of the chain's, every snapshot adds one.
        for number in 1..CHAIN_LIMIT {
            self.write(number, &mut content)?;
            let line = ["vdi", "snapshot", DISK, "--name", &format!("{DISK}-{number}")];
            let printed = if number == 1 { self.stage.run(&line)? } else { self.stage.quietly(&line)? };
            snapshots.push(Snapshot { uuid: printed.trim().to_owned(), sha256: hash::of_bytes(&content) });
        }
        self.stage.voice().say(&format!("... and so on: {} snapshots.", snapshots.len()));
        self.write(CHAIN_LIMIT, &mut content)?;
        let failure = self.stage.refused(&["vdi", "snapshot", DISK])?;
        ensure!(failure.name == ErrorName::ChainTooLong, "refused as {} instead", failure.name.name());
        let depth = self.stage.number(&["vdi", "show", DISK], "depth")?;
        ensure!(depth == CHAIN_LIMIT as u64, "the chain has {depth} images");
        let chain = Chain { disk: disk.trim().to_owned(), disk_sha256: hash::of_bytes(&content), snapshots };
        self.stage.verify("the disk at the end of thirty images", &chain.disk, &chain.disk_sha256)?;
        self.note_space("a chain of thirty", disks::SR)?;
        Ok(chain)
    }

    /// Step: destroy most snapshots, merge, and read back the disk and the snapshots that are left.
    pub(super) fn merge_the_chain(&mut self, chain: &Chain) -> Result<()> {
        self.stage.title("Most snapshots are destroyed, and the worker makes the chain short again");
        let kept = |number: usize| (number + 1).is_multiple_of(KEEP_EVERY);
        let (keep, destroy): (Vec<_>, Vec<_>) =
            chain.snapshots.iter().enumerate().partition(|(number, _)| kept(*number));
        let uuids: Vec<&str> = destroy.iter().map(|(_, snapshot)| snapshot.uuid.as_str()).collect();
        let shown = format!("vdi destroy {} ... ({} snapshots)", uuids[0], uuids.len());
        self.stage.run_as(&shown, &[&["vdi", "destroy"], uuids.as_slice()].concat())?;
        self.stage.run(&["coalesce", "status", disks::SR])?;
        self.stage.run(&["coalesce", "run", disks::SR, "--wait"])?;
        self.stage.run(&["vdi", "tree", DISK])?;
        let depth = self.stage.number(&["vdi", "show", DISK], "depth")?;
        ensure!(depth == keep.len() as u64 + 1, "the merged chain has {depth} images");
        self.stage.verify("the disk after the merge", &chain.disk, &chain.disk_sha256)?;
        for (number, snapshot) in keep {
            self.stage.verify(&format!("snapshot {}", number + 1), &snapshot.uuid, &snapshot.sha256)?;
        }
        self.note_space("merged", disks::SR)
    }

    /// Writes a piece of the disk that depends on `number`, on the disk and in `content`.
    fn write(&self, number: usize, content: &mut [u8]) -> Result<()> {
        let seed = u64::try_from(number)?;
        // Pieces overlap their predecessors by half, so that every image hides something of an older one.
        let offset = number * WRITE_BYTES / 2;
        let bytes = hash::pattern(seed, WRITE_BYTES);
        content[offset..offset + WRITE_BYTES].copy_from_slice(&bytes);
        let file = self.stage.scratch("piece");
        fs::write(&file, &bytes).context("cannot write the piece")?;
        self.stage.quietly(&["vdi", "write", DISK, "--offset", &offset.to_string(), text(&file)?])?;
        Ok(())
    }
}
