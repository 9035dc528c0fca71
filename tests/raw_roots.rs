//! Chains that begin with a raw disk of another manager: taken over, read, written above, merged down to it and never into it.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::theirs::RawChain;
use harness::{Agent, qemu_img, sha256, text};
use std::fs;

const ROOT: &str = "0b1d9c44-0000-4000-8000-00000000000a";
const LONE: &str = "0b1d9c44-0000-4000-8000-00000000000b";
const LEAF: &str = "0b1d9c44-0000-4000-8000-00000000000c";

#[test]
fn a_raw_disk_is_the_root_of_a_chain_and_never_written() -> Result<()> {
    let agent = Agent::start()?;
    let chain = RawChain::new(&agent.path("golden"), &format!("{ROOT}.raw"))?;
    let place = agent.path("sr");
    fs::create_dir(&place)?;
    let files = [format!("{ROOT}.raw"), "base.vhd".to_owned(), format!("{LEAF}.vhd"), format!("{LONE}.raw")];
    let files = files.map(|name| place.join(name));
    for (from, to) in [&chain.root, &chain.base, &chain.leaf].into_iter().zip(&files) {
        fs::copy(from, to)?;
    }
    fs::write(&files[3], vec![7; 4 << 20])?;
    let lone_hash = sha256(&files[3])?;
    fs::write(place.join("notes.raw"), "not the name of a disk")?;
    let location = text(&place);
    let introduce = ["sr", "introduce", "--type", "file", "--location", &location];

    let plan = agent.json(&[&introduce[..], &["--dry-run"]].concat())?;
    let findings = plan["findings"].as_array().context("findings")?;
    ensure!(findings.len() == 1 && findings[0]["object"] == format!("{LONE}.raw"), "{plan}");
    let roots = plan["roots"].as_array().or(plan["images"].as_array()).context("roots")?;
    let root = roots.iter().find(|node| node["image"] == ROOT).context("the root")?;
    ensure!(root["format"] == "raw" && root["virtual_size"] == 48 << 20, "{root}");

    let sr = agent.ok(&introduce)?;
    ensure!(agent.hash(LEAF)? == chain.leaf_hash && agent.hash(LONE)? == lone_hash, "all reads as before");
    ensure!(agent.depth(LEAF)? == 3 && agent.depth(LONE)? == 2);
    agent.write(LONE, 4096, b"above")?;
    agent.write(LEAF, 8192, b"written")?;
    let written = agent.hash(LEAF)?;
    agent.ok(&["vdi", "snapshot", LEAF, "--name", "before"])?;
    agent.ok(&["vdi", "destroy", "before", "--yes"])?;
    agent.ok(&["coalesce", "resume", &sr])?;
    agent.run_merges(&sr)?;
    ensure!(agent.hash(LEAF)? == written, "the same after the merges");
    ensure!(agent.depth(LEAF)? == 2, "all is merged that may be: {}", agent.json(&["vdi", "tree", &sr])?);
    ensure!(
        sha256(&files[0])? == chain.root_hash && sha256(&files[3])? == lone_hash,
        "raw disks are as they were"
    );
    agent.is_clean(&sr)?;

    let exported = agent.path("leaf.raw");
    agent.ok(&["vdi", "export", LEAF, &text(&exported)])?;
    ensure!(sha256(&exported)? == written);
    let uri = agent.ok(&["vdi", "attach", LEAF])?;
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &uri, &text(&exported)])?;
    agent.ok(&["vdi", "detach", LEAF])?;
    let copied = agent.ok(&["vdi", "copy", LONE, "--name", "copy"])?;
    ensure!(agent.hash(&copied)? == agent.hash(LONE)? && agent.depth(&copied)? == 1);
    ensure!(agent.read(LONE, 4096, 6)? == b"above\x07");

    // What was made above the raw disks names them as XenServer's tools do: it is found without a catalog too.
    agent.ok(&["sr", "detach", &sr])?;
    agent.ok(&["sr", "forget", &sr])?;
    fs::remove_dir_all(place.join(".catena"))?;
    agent.ok(&introduce)?;
    let found = agent.json(&["vdi", "list"])?;
    let disks = found["vdis"].as_array().context("disks")?;
    let mut hashes = Vec::new();
    for disk in disks {
        hashes.push(agent.hash(disk["uuid"].as_str().context("a uuid")?)?);
    }
    ensure!(disks.len() == 3 && hashes.contains(&written), "{found}");
    Ok(())
}
