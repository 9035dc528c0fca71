//! Programs that were not written here judge what Catena writes and reads: qemu-img, libvhdi, and images of other makers. Then
//! what the command line must refuse: with which exit code, and with nothing changed.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::mounted::Mounted;
use harness::{Agent, peer, qemu_img, sha256, text, unpack_golden};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// What images without an entry in the manifest read as: zeros of this size. Without `force_size`, qemu-img rounds up to what
/// cylinders, heads and sectors can express.
const EMPTY: [(&str, u64); 6] = [
    ("v3", 4 * MIB),
    ("v1024", 1024 * MIB),
    ("c1", 1024 * MIB),
    ("c5", 1024 * MIB),
    ("q1G-off", 1_073_995_776),
    ("q1G-on", 1024 * MIB),
];

/// Bytes that differ from place to place, the same for a seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates an SR whose merges wait for a word.
fn quiet_sr(agent: &Agent) -> Result<PathBuf> {
    let directory = agent.path("sr");
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &text(&directory)])?;
    agent.ok(&["coalesce", "pause", "disks"])?;
    Ok(directory)
}

/// Names, sizes and checksums of the images in a directory.
fn images(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), sha256(&entry.path())?);
        }
    }
    Ok(found)
}

/// Whether qemu-img finds the same bytes in a VHD without parent as in a raw file.
fn qemu_agrees(vhd: &Path, raw: &Path) -> Result<()> {
    qemu_img(&["compare", "-f", "vpc", "-F", "raw", &text(vhd), &text(raw)]).map(drop)
}

/// The image of a VDI, and the file that holds it.
fn image_of(agent: &Agent, directory: &Path, vdi: &str) -> Result<(String, PathBuf)> {
    let record = agent.json(&["vdi", "show", vdi])?;
    let image = record["image"].as_str().with_context(|| format!("an image in {record}"))?.to_owned();
    let path = directory.join(format!("{image}.vhd"));
    Ok((image, path))
}

/// A disk with three levels, each written to: `disk` on the base copy of snapshot `two` on that of snapshot `one`. All writes
/// begin and end on 4 KiB, because libvhdi misreads a bitmap whose runs end elsewhere in a byte.
fn three_levels(agent: &Agent) -> Result<()> {
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "16MiB", "--name", "disk"])?;
    agent.write("disk", 0, &noise(1, 5 << 20))?;
    agent.write("disk", 9 * MIB + 4096, &noise(2, 12 << 10))?;
    agent.ok(&["vdi", "snapshot", "disk", "--name", "one"])?;
    agent.write("disk", 2 * MIB - 8192, &noise(3, 16 << 10))?;
    agent.write("disk", 9 * MIB, &noise(4, 8 << 10))?;
    agent.ok(&["vdi", "snapshot", "disk", "--name", "two"])?;
    agent.write("disk", MIB, &noise(5, 4 << 10))?;
    agent.write("disk", 16 * MIB - 4096, &noise(6, 4 << 10))
}

#[test]
fn libvhdi_reads_our_chain_as_we_do() -> Result<()> {
    let agent = Agent::start()?;
    let directory = quiet_sr(&agent)?;
    three_levels(&agent)?;
    let (image, leaf) = image_of(&agent, &directory, "disk")?;
    let tree = agent.json(&["vdi", "tree", "disks"])?;
    let root = tree["roots"][0]["image"].as_str().context("a root")?;
    let middle = agent.json(&["vdi", "show", "two"])?;
    ensure!(middle["depth"] == 3, "{middle}");

    let told = peer("libvhdi-utils", "vhdiinfo", &[&text(&leaf)])?;
    ensure!(
        told.contains("Differential") && told.contains("(16777216 bytes)") && told.contains(&image),
        "{told}"
    );

    let mounted = Mounted::new(&leaf, agent.path("mnt"))?;
    ensure!(mounted.layer(3).exists() && !mounted.layer(4).exists(), "a chain of three");
    ensure!(sha256(&mounted.layer(3))? == agent.hash("disk")?, "the leaf");
    ensure!(sha256(&mounted.layer(2))? == agent.hash("two")?, "what snapshot two froze");
    ensure!(sha256(&mounted.layer(1))? == agent.hash("one")?, "what snapshot one froze");
    ensure!(sha256(&mounted.layer(1))? == agent.hash(root)?, "the root by its own name");
    Ok(())
}

#[test]
fn libvhdi_reads_what_our_merges_leave() -> Result<()> {
    let agent = Agent::start()?;
    let directory = quiet_sr(&agent)?;
    three_levels(&agent)?;
    let before = agent.hash("disk")?;
    agent.ok(&["vdi", "destroy", "one", "--yes"])?;
    agent.ok(&["coalesce", "resume", "disks"])?;
    agent.ok(&["coalesce", "run", "disks", "--wait"])?;
    let (_, leaf) = image_of(&agent, &directory, "disk")?;
    {
        let mounted = Mounted::new(&leaf, agent.path("mnt"))?;
        ensure!(mounted.layer(2).exists() && !mounted.layer(3).exists(), "one level was merged away");
        ensure!(sha256(&mounted.layer(2))? == before, "the leaf after the inner merge");
        ensure!(sha256(&mounted.layer(1))? == agent.hash("two")?, "the merged base");
    }
    agent.ok(&["vdi", "destroy", "two", "--yes"])?;
    agent.ok(&["coalesce", "run", "disks", "--wait"])?;
    let (_, root) = image_of(&agent, &directory, "disk")?;
    let mounted = Mounted::new(&root, agent.path("mnt2"))?;
    ensure!(mounted.layer(1).exists() && !mounted.layer(2).exists(), "the leaf was merged away");
    ensure!(sha256(&mounted.layer(1))? == before, "the disk after the leaf merge");
    Ok(())
}

#[test]
fn qemu_reads_our_exports_and_our_roots() -> Result<()> {
    let agent = Agent::start()?;
    let directory = quiet_sr(&agent)?;
    three_levels(&agent)?;
    for vdi in ["disk", "one", "two"] {
        let (raw, vhd) = (agent.path(format!("{vdi}.raw")), agent.path(format!("{vdi}.vhd")));
        agent.ok(&["vdi", "export", vdi, &text(&raw), "--format", "raw"])?;
        agent.ok(&["vdi", "export", vdi, &text(&vhd), "--format", "vhd"])?;
        qemu_agrees(&vhd, &raw)?;
        peer("libvhdi-utils", "vhdiinfo", &[&text(&vhd)])?;
    }
    let tree = agent.json(&["vdi", "tree", "disks"])?;
    let container = directory.join(tree["roots"][0]["container"].as_str().context("a container")?);
    qemu_agrees(&container, &agent.path("one.raw"))
}

#[test]
fn images_come_back_as_they_went_in() -> Result<()> {
    let agent = Agent::start()?;
    quiet_sr(&agent)?;
    // Data, a hole of several blocks, and data that ends with the disk.
    let raw = agent.path("in.raw");
    let mut bytes = noise(7, 3 << 20);
    bytes.resize(11 << 20, 0);
    bytes.extend(noise(8, 1 << 20));
    fs::write(&raw, &bytes)?;
    let hash = hex(&bytes);

    agent.ok(&["vdi", "import", &text(&raw), "--sr", "disks", "--format", "raw", "--name", "from-raw"])?;
    ensure!(agent.hash("from-raw")? == hash, "raw in, raw out");
    let vhd = agent.path("ours.vhd");
    agent.ok(&["vdi", "export", "from-raw", &text(&vhd), "--format", "vhd"])?;
    ensure!(fs::metadata(&vhd)?.len() < 9 * MIB, "the hole stays a hole");
    agent.ok(&["vdi", "import", &text(&vhd), "--sr", "disks", "--format", "vhd", "--name", "from-ours"])?;
    ensure!(agent.hash("from-ours")? == hash, "our VHD in, raw out");

    for subformat in ["dynamic", "fixed"] {
        let (theirs, name) = (agent.path(format!("{subformat}.vhd")), format!("from-{subformat}"));
        let options = format!("subformat={subformat},force_size=on");
        let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", &options, &text(&raw), &text(&theirs)];
        qemu_img(&convert)?;
        agent.ok(&["vdi", "import", &text(&theirs), "--sr", "disks", "--format", "vhd", "--name", &name])?;
        ensure!(agent.hash(&name)? == hash, "qemu's {subformat} VHD in, raw out");
    }
    let check = agent.json(&["sr", "check", "disks"])?;
    ensure!(check["clean"] == true, "{check}");
    Ok(())
}

/// What the special images of the manifest must read as: name without suffix and SHA-256.
fn special_hashes(special: &Path) -> Result<BTreeMap<String, String>> {
    let manifest: Value = serde_json::from_str(&fs::read_to_string(special.join("manifest.json"))?)?;
    let mut expected = BTreeMap::new();
    for (file, row) in manifest.as_object().context("a manifest")? {
        let stem = file.split('.').next().unwrap_or(file).to_owned();
        expected.insert(stem, row["sha256"].as_str().context("a checksum")?.to_owned());
    }
    Ok(expected)
}

/// Whether a disk is empty: its export is a hole of this size.
fn is_hole(agent: &Agent, disk: &str, size: u64) -> Result<bool> {
    let raw = agent.path(format!("{disk}.raw"));
    agent.ok(&["vdi", "export", disk, &text(&raw), "--format", "raw"])?;
    let metadata = fs::metadata(&raw)?;
    fs::remove_file(&raw)?;
    Ok(metadata.len() == size && metadata.blocks() == 0)
}

#[test]
fn images_of_other_makers_are_taken_over_and_read_true() -> Result<()> {
    let agent = Agent::start()?;
    unpack_golden(&agent.path("golden"))?;
    let special = agent.path("golden/special");
    let mut expected = special_hashes(&special)?;
    fs::remove_file(special.join("manifest.json"))?;
    fs::rename(special.join("lv.img"), special.join("lv.vhd"))?;
    // The repaired file has the uuid of the broken one: the second of a name is nobody's disk, and is kept.
    let repaired = expected.remove("qrepaired").context("qrepaired")?;
    // The broken one lost only its footer. The vendor's tool, which made the manifest, takes the last sector of data for one and
    // reads zeros there; the vendor's repair and qemu-img do not.
    expected.insert("qcrash".to_owned(), repaired.clone());
    let before = images(&special)?;

    let sr = agent.ok(&["sr", "introduce", "--type", "file", "--location", &text(&special)])?;
    let disks = agent.json(&["vdi", "list", "--sr", &sr])?["vdis"].as_array().context("disks")?.clone();
    ensure!(disks.len() == expected.len() + EMPTY.len(), "a disk for each: {disks:?}");
    let read_all = |when: &str| -> Result<()> {
        for (name, hash) in &expected {
            ensure!(agent.hash(name)? == *hash, "{name} does not read as it should {when}");
        }
        for (name, size) in EMPTY {
            ensure!(is_hole(&agent, name, size)?, "{name} is not {size} zero bytes {when}");
        }
        Ok(())
    };
    read_all("when taken over")?;
    let raw = agent.path("qcrash.raw");
    agent.ok(&["vdi", "export", "qcrash", &text(&raw)])?;
    qemu_agrees(&special.join("qcrash.vhd"), &raw)?;
    let kept = |when: &str| -> Result<()> {
        let now = images(&special)?;
        let changed: Vec<_> = before.iter().filter(|(name, hash)| now.get(*name) != Some(*hash)).collect();
        ensure!(changed.is_empty(), "{when}: {changed:?}");
        Ok(())
    };
    kept("taking over and reading rewrites nothing")?;

    agent.ok(&["coalesce", "resume", &sr])?;
    agent.ok(&["coalesce", "run", &sr, "--wait"])?;
    read_all("after the worker ran")?;
    kept("there is nothing here that may be merged, foreign images and orphans are kept")?;
    let check = agent.json(&["sr", "check", &sr])?;
    ensure!(check["clean"] == true, "{check}");

    let apart = agent.path("apart");
    fs::create_dir(&apart)?;
    fs::copy(special.join("qrepaired.vhd"), apart.join("qrepaired.vhd"))?;
    let sr = agent.ok(&["sr", "introduce", "--type", "file", "--location", &text(&apart)])?;
    let disks = agent.json(&["vdi", "list", "--sr", &sr])?;
    let disk = disks["vdis"][0]["uuid"].as_str().context("a disk")?;
    ensure!(agent.hash(disk)? == repaired, "alone, the repaired image is a disk");
    Ok(())
}

/// Runs a command that must be refused: its exit code, one line of error and no data, and the number on the wire.
fn refused(agent: &Agent, arguments: &[&str], exit: i32, code: u64) -> Result<()> {
    let said = agent.catena(arguments)?;
    ensure!(said.code == exit && said.out.is_empty(), "{arguments:?} is refused with {exit}: {said:?}");
    ensure!(said.err.starts_with("catena: "), "{arguments:?}: {}", said.err);
    let mut all = vec!["--json"];
    all.extend(arguments);
    let said = agent.catena(&all)?;
    let told: Value = serde_json::from_str(&said.err).with_context(|| format!("{arguments:?}: {said:?}"))?;
    ensure!(
        said.code == exit && told["error"]["code"] == code,
        "{arguments:?} is refused with {code}: {told}"
    );
    Ok(())
}

#[test]
fn what_must_be_refused_changes_nothing() -> Result<()> {
    let agent = Agent::start()?;
    let directory = quiet_sr(&agent)?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "4MiB", "--name", "disk"])?;
    agent.write("disk", 0, &noise(9, 4096))?;
    unpack_golden(&agent.path("golden"))?;
    let (child, there) = (agent.path("golden/chain3/L1.vhd"), agent.path("there.raw"));
    fs::write(&there, "not an export")?;
    let (before, disks) = (images(&directory)?, agent.json(&["vdi", "list"])?);

    refused(&agent, &["sr", "show", "nowhere"], 3, 47)?;
    refused(&agent, &["vdi", "create", "--sr", "nowhere", "--size", "4MiB", "--name", "x"], 3, 47)?;
    refused(&agent, &["vdi", "show", "no-such-disk"], 3, 144)?;
    refused(&agent, &["vdi", "snapshot", "no-such-disk"], 3, 144)?;
    refused(&agent, &["vdi", "create", "--sr", "disks", "--size", "2041GiB", "--name", "x"], 2, 79)?;
    refused(&agent, &["vdi", "create", "--sr", "disks", "--size", "0", "--name", "x"], 2, 79)?;
    refused(&agent, &["vdi", "import", &text(&child), "--sr", "disks", "--name", "x"], 8, 66)?;
    refused(&agent, &["vdi", "export", "disk", &text(&there)], 2, 143)?;
    ensure!(fs::read_to_string(&there)? == "not an export", "an export never overwrites");
    for usage in [&["vdi"][..], &["vdi", "explode"], &["vdi", "create", "--sr", "disks"], &["--nonsense"]] {
        let said = agent.catena(usage)?;
        ensure!(said.code == 2 && said.out.is_empty() && said.err.contains("Usage:"), "{usage:?}: {said:?}");
    }

    ensure!(images(&directory)? == before, "no image was made, changed or removed");
    ensure!(agent.json(&["vdi", "list"])? == disks, "no disk was made, changed or removed");
    Ok(())
}

#[test]
fn the_thirty_first_level_is_refused() -> Result<()> {
    let agent = Agent::start()?;
    let directory = quiet_sr(&agent)?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "2MiB", "--name", "disk"])?;
    for level in 2..=30 {
        agent.write("disk", level * 4096, &noise(level, 4096))?;
        agent.ok(&["vdi", "snapshot", "disk", "--name", &format!("s{level}")])?;
    }
    // The leaf must own something, or a clone would hang beside it.
    agent.write("disk", 0, &noise(31, 4096))?;
    ensure!(agent.json(&["vdi", "show", "disk"])?["depth"] == 30, "the limit is thirty, leaf included");
    let (before, hash) = (images(&directory)?, agent.hash("disk")?);
    refused(&agent, &["vdi", "snapshot", "disk"], 6, 109)?;
    refused(&agent, &["vdi", "clone", "disk", "--name", "x"], 6, 109)?;
    let answer = agent.call("VDI.snapshot", &json!({"vdis": ["disk"]}))?;
    ensure!(answer.is_err(), "the socket refuses it too: {answer:?}");
    ensure!(images(&directory)? == before, "nothing was made");
    ensure!(agent.hash("disk")? == hash, "the disk is what it was");
    Ok(())
}
