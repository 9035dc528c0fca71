//! What XenServer's storage manager leaves, made of its own images: a chain whose root is a raw disk.

use crate::harness::{qemu_img, sha256, text, unpack_golden};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A raw disk, a base copy that names it as its parent, and a leaf; and what the two disks read as.
pub(crate) struct RawChain {
    /// The bytes of the root.
    pub(crate) root: PathBuf,
    /// The base copy on top of it.
    pub(crate) base: PathBuf,
    /// The leaf.
    pub(crate) leaf: PathBuf,
    /// SHA-256 of the root as a disk.
    pub(crate) root_hash: String,
    /// SHA-256 of what the leaf reads.
    pub(crate) leaf_hash: String,
}

impl RawChain {
    /// Of the golden `L0 <- L1 <- L2`, in a new folder: `L0` becomes a raw disk whose container is called `root`.
    pub(crate) fn new(folder: &Path, root: &str) -> Result<Self> {
        unpack_golden(folder)?;
        let chain = folder.join("chain3");
        let manifest: Value = serde_json::from_str(&fs::read_to_string(folder.join("manifest.json"))?)?;
        let hash = |file: &str| {
            Ok::<_, anyhow::Error>(
                manifest["chain3"][file]["sha256"].as_str().context("a checksum")?.to_owned(),
            )
        };
        let (made, base, leaf) = (folder.join("L0.raw"), chain.join("L1.vhd"), chain.join("L2.vhd"));
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", &text(&chain.join("L0.vhd")), &text(&made)])?;
        let root_hash = hash("L0.vhd")?;
        ensure!(sha256(&made)? == root_hash, "qemu-img reads the root as XenServer does");
        name_raw_parent(&base, root)?;
        Ok(Self { root: made, base, leaf, root_hash, leaf_hash: hash("L2.vhd")? })
    }
}

/// Makes a VHD with a parent name a raw one instead: without an id, by its name in the header.
fn name_raw_parent(image: &Path, name: &str) -> Result<()> {
    const HEADER: u64 = 512;
    let file = File::options().read(true).write(true).open(image)?;
    let mut header = [0; 1024];
    file.read_exact_at(&mut header, HEADER)?;
    ensure!(&header[..8] == b"cxsparse", "a header");
    header[40..56].fill(0);
    header[64..576].fill(0);
    for (place, unit) in header[64..576].chunks_exact_mut(2).zip(name.encode_utf16()) {
        place.copy_from_slice(&unit.to_be_bytes());
    }
    header[36..40].fill(0);
    let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    header[36..40].copy_from_slice(&(!sum).to_be_bytes());
    file.write_all_at(&header, HEADER).context("writing a header")
}
