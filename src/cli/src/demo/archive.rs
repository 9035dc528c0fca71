//! A chain of three images that XenServer's own tools wrote, built into this program, with the checksums of what each reads as.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

static ARCHIVE: &[u8] = include_bytes!("../../../../tests/data/xenserver-vhd.tar.zst");

const CHAIN: &str = "chain3";

/// What an image reads as.
#[derive(Debug, Deserialize)]
pub(super) struct Expected {
    /// SHA-256 of the whole virtual disk.
    pub(super) sha256: String,
}

/// Unpacks the images of the chain into `dir`; returns what they read as, by file name.
pub(super) fn unpack(dir: &Path) -> Result<BTreeMap<String, Expected>> {
    let packed = zstd::Decoder::new(ARCHIVE).context("the built-in archive is damaged")?;
    let mut manifest = BTreeMap::new();
    for entry in tar::Archive::new(packed).entries().context("the built-in archive is damaged")? {
        let mut entry = entry.context("the built-in archive is damaged")?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        if path == Path::new("manifest.json") {
            let mut chains: BTreeMap<String, BTreeMap<String, Expected>> =
                serde_json::from_reader(&mut entry).context("the manifest cannot be read")?;
            manifest = chains.remove(CHAIN).unwrap_or_default();
        } else if path.starts_with(CHAIN)
            && entry.header().entry_type().is_file()
            && let Some(name) = path.file_name()
        {
            let target = dir.join(name);
            let mut file =
                File::create_new(&target).with_context(|| format!("cannot create {}", target.display()))?;
            io::copy(&mut entry, &mut file).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    ensure!(!manifest.is_empty(), "the built-in archive has no manifest");
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_of_the_manifest_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = unpack(dir.path()).unwrap();
        let mut files: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["L0.vhd", "L1.vhd", "L2.vhd"]);
        assert_eq!(manifest.keys().cloned().collect::<Vec<_>>(), files);
        assert!(manifest.values().all(|expected| expected.sha256.len() == 64));
    }
}
