//! XenServer's own images, taken over and merged by the real programs: every one reads back to its checksum, before and after.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, qemu_img, sha256, unpack_golden};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The checksums that a manifest names: file and SHA-256.
fn expected(manifest: &Value) -> Vec<(String, String)> {
    let rows = manifest.as_object().into_iter().flatten();
    rows.filter_map(|(file, row)| Some((file.clone(), row["sha256"].as_str()?.to_owned()))).collect()
}

/// Takes over a chain, reads every image, lets the worker merge it, and reads the leaf again.
fn chain(name: &str, leaf: &str) -> Result<()> {
    let agent = Agent::start()?;
    unpack_golden(&agent.path("golden"))?;
    let directory = agent.path("golden").join(name);
    let place = directory.to_string_lossy().into_owned();
    let manifest: Value = serde_json::from_str(&fs::read_to_string(agent.path("golden/manifest.json"))?)?;
    let images = expected(&manifest[name]);
    let before = fingerprints(&directory)?;

    let plan = agent.json(&["sr", "introduce", "--type", "file", "--location", &place, "--dry-run"])?;
    ensure!(plan["findings"] == serde_json::json!([]), "{plan}");
    ensure!(
        fingerprints(&directory)? == before && !directory.join(".catena").exists(),
        "a dry run changes nothing"
    );

    let sr = agent.ok(&["sr", "introduce", "--type", "file", "--location", &place])?;
    for (file, hash) in &images {
        let stem = file.trim_end_matches(".vhd");
        ensure!(agent.hash(stem)? == *hash, "{file} does not read as it should");
    }
    ensure!(fingerprints(&directory)? == before, "taking over and reading rewrites nothing");

    agent.ok(&["coalesce", "resume", &sr])?;
    agent.ok(&["coalesce", "run", &sr, "--wait"])?;
    let tree = agent.json(&["vdi", "tree", &sr])?;
    let root = &tree["roots"][0];
    ensure!(
        root["children"] == serde_json::json!([]) && root["depth"] == 1,
        "everything hidden is merged away: {tree}"
    );
    let hash = &images.iter().find(|(file, _)| file.trim_end_matches(".vhd") == leaf).context("the leaf")?.1;
    ensure!(agent.hash(leaf)? == *hash, "the leaf reads the same after the merges");
    let check = agent.json(&["sr", "check", &sr])?;
    ensure!(check["clean"] == true, "{check}");

    let container = directory.join(root["container"].as_str().context("a container")?);
    let raw = agent.path("leaf.raw");
    agent.ok(&["vdi", "export", leaf, &raw.to_string_lossy()])?;
    let (container, raw) = (container.to_string_lossy(), raw.to_string_lossy());
    qemu_img(&["compare", "-f", "vpc", "-F", "raw", &container, &raw])?;
    Ok(())
}

/// Names and checksums of the files in a directory.
fn fingerprints(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.push((entry.file_name().to_string_lossy().into_owned(), sha256(&entry.path())?));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_short_chain_is_taken_over_and_merged() -> Result<()> {
    chain("chain3", "L2")
}

#[test]
fn the_longest_chain_is_taken_over_and_merged() -> Result<()> {
    chain("chain30", "L29")
}
