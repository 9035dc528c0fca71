//! What is no disk, or only a part of one, is refused: by its name, with nothing left behind.

use crate::harness::{Agent, Said, golden_file, peer, qemu_img, text};
use crate::{MIB, contents, export_piped, hex, import_piped, layered, noise, state, with_sr};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn a_stream_that_is_cut_off_leaves_nothing() -> Result<()> {
    let (agent, directory) = with_sr()?;
    layered(&agent)?;
    let vhd = export_piped(&agent, "disk", "vhd")?;
    let fixed = export_piped(&agent, "disk", "vhd-fixed")?;
    let before = state(&agent, &directory)?;
    // In the copy of the footer, the header, the table, a bitmap, the data, between blocks, in the footer.
    let length = vhd.len();
    for cut in [300, 600, 1600, 3700, 2 << 20, length - (2 << 20), length - 4096, length - 512, length - 2] {
        let said = import_piped(&agent, &vhd[..cut], "vhd", "cut")?;
        ensure!(said.code == 7 && said.err.contains("cut off"), "cut at {cut}: {said:?}");
        ensure!(state(&agent, &directory)? == before, "cut at {cut}: nothing is left");
    }
    for cut in [512, fixed.len() - 512, fixed.len() - 2] {
        let said = import_piped(&agent, &fixed[..cut], "vhd", "cut")?;
        ensure!(said.code == 7 && said.err.contains("no VHD"), "cut at {cut}: {said:?}");
        ensure!(state(&agent, &directory)? == before, "cut at {cut}: nothing is left");
    }
    let said = import_piped(&agent, &fixed[512..], "auto", "cut")?;
    ensure!(said.code == 7 && said.err.contains("footer tells"), "{said:?}");
    ensure!(state(&agent, &directory)? == before, "a disk without its beginning");
    Ok(())
}

/// Writes a VHD's checksum of these bytes at a place in them.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum + u32::from(*byte));
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Refused with this exit code and a message that says this; nothing has changed.
fn refused(agent: &Agent, directory: &Path, said: &Said, exit: i32, words: &[&str]) -> Result<()> {
    ensure!(said.code == exit && said.out.is_empty(), "exit {exit} is asked for: {said:?}");
    for word in words {
        ensure!(said.err.contains(word), "'{word}' is asked for: {}", said.err);
    }
    ensure!(contents(directory)?.is_empty(), "nothing is left");
    ensure!(agent.json(&["vdi", "list"])?["vdis"].as_array().is_some_and(Vec::is_empty), "no disk");
    Ok(())
}

/// Images of other formats, and what a refusal says of each.
const OTHERS: &[(&str, &[&str])] = &[
    ("a.qcow2", &["a qcow2 image (version 3)"]),
    ("child.qcow2", &["qcow2", "backing file", "a.qcow2"]),
    ("outside.qcow2", &["qcow2", "external data file", "data.raw"]),
    ("sealed.qcow2", &["qcow2", "LUKS encryption"]),
    ("strange.qcow2", &["qcow2", "unknown incompatible features 0x4000000000000000"]),
    ("a.vmdk", &["VMDK"]),
    ("flat.vmdk", &["VMDK descriptor"]),
    ("a.vhdx", &["VHDX"]),
    ("a.vdi", &["VDI image of VirtualBox"]),
    ("a.qed", &["QED"]),
    ("a.luks", &["encrypted with LUKS"]),
    ("disk.raw.gz", &["gzip"]),
    ("disk.raw.xz", &["xz"]),
    ("disk.raw.zst", &["zstd"]),
];

/// Makes them with the programs that they are of.
fn make_others(agent: &Agent) -> Result<()> {
    let at = |name: &str| text(&agent.path(name));
    let raw = agent.path("disk.raw");
    fs::write(&raw, noise(1, 300_000))?;
    let make = |arguments: &[&str]| qemu_img(arguments);
    for format in ["qcow2", "vmdk", "vhdx", "vdi", "qed"] {
        make(&["convert", "-f", "raw", "-O", format, &text(&raw), &at(&format!("a.{format}"))])?;
    }
    make(&["create", "-q", "-f", "qcow2", "-b", &at("a.qcow2"), "-F", "qcow2", &at("child.qcow2")])?;
    let data = format!("data_file={}", at("data.raw"));
    make(&["create", "-q", "-f", "qcow2", "-o", &data, &at("outside.qcow2"), "4M"])?;
    for (format, options, name) in [
        ("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "sealed.qcow2"),
        ("luks", "key-secret=s,iter-time=10", "a.luks"),
    ] {
        let secret = "secret,id=s,data=geheim";
        let create =
            || make(&["create", "-q", "-f", format, "--object", secret, "-o", options, &at(name), "4M"]);
        // On a busy machine qemu-img now and then cannot tell how long its key takes, and gives up.
        (0..50).find_map(|_| create().ok()).map_or_else(create, Ok)?;
    }
    make(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &at("flat.vmdk"), "4M"])?;
    for (package, program, suffix) in
        [("gzip", "gzip", "gz"), ("xz-utils", "xz", "xz"), ("zstd", "zstd", "zst")]
    {
        peer(package, program, &["-q", "-k", &text(&raw)])?;
        ensure!(raw.with_extension(format!("raw.{suffix}")).exists(), "{program} made its file");
    }
    let mut strange = fs::read(agent.path("a.qcow2"))?;
    strange[72] = 0x40;
    fs::write(agent.path("strange.qcow2"), strange)?;
    Ok(())
}

#[test]
fn other_formats_are_refused_by_name() -> Result<()> {
    let (agent, directory) = with_sr()?;
    make_others(&agent)?;
    for (name, words) in OTHERS {
        let path = agent.path(name);
        for format in ["auto", "vhd"] {
            let said = agent.catena(&["vdi", "import", &text(&path), "--sr", "disks", "--format", format])?;
            refused(&agent, &directory, &said, 8, words)?;
        }
        let said = import_piped(&agent, &fs::read(&path)?, "auto", "x")?;
        refused(&agent, &directory, &said, 8, words)?;
    }
    let qcow2 = agent.path("a.qcow2");
    let said = agent.catena(&["--json", "vdi", "import", &text(&qcow2), "--sr", "disks"])?;
    ensure!(serde_json::from_str::<Value>(&said.err)?["error"]["name"] == "unsupported", "{said:?}");
    // Who says that it is raw is believed.
    agent.ok(&["vdi", "import", &text(&qcow2), "--sr", "disks", "--format", "raw", "--name", "bytes"])?;
    let mut bytes = fs::read(&qcow2)?;
    bytes.resize(bytes.len().next_multiple_of(2 << 20), 0);
    ensure!(agent.hash("bytes")? == hex(&bytes), "the bytes as they are");
    Ok(())
}

#[test]
fn what_is_no_vhd_or_only_a_part_of_one_is_refused() -> Result<()> {
    let (agent, directory) = with_sr()?;
    let at = |name: &str| text(&agent.path(name));
    fs::write(agent.path("noise"), noise(1, 3 * MIB))?;
    golden_file("chain3/L1.vhd", &agent.path("child.vhd"))?;
    let mut broken = fs::read(agent.path("child.vhd"))?;
    broken[520] ^= 1;
    fs::write(agent.path("broken.vhd"), &broken)?;
    fs::write(agent.path("tiny"), "conectix")?;
    let mut small = fs::read(agent.path("child.vhd"))?;
    // Blocks of 512 KiB, which the format allows.
    small[512 + 32..][..4].copy_from_slice(&0x8_0000u32.to_be_bytes());
    seal(&mut small[512..1536], 36);
    fs::write(agent.path("small-blocks.vhd"), &small)?;
    for (name, format, exit, words) in [
        ("noise", "vhd", 7, &["footer"][..]),
        ("child.vhd", "auto", 8, &["differencing", "L0.vhd"]),
        ("child.vhd", "vhd", 8, &["differencing", "L0.vhd"]),
        ("broken.vhd", "auto", 7, &["header"]),
        ("tiny", "auto", 7, &[]),
        ("small-blocks.vhd", "auto", 8, &["blocks of 524288 bytes"]),
    ] {
        let said = agent.catena(&["vdi", "import", &at(name), "--sr", "disks", "--format", format])?;
        refused(&agent, &directory, &said, exit, words)?;
        let said = import_piped(&agent, &fs::read(agent.path(name))?, format, "x")?;
        refused(&agent, &directory, &said, exit, words)?;
    }
    let said = agent.catena(&["vdi", "import", &text(&directory), "--sr", "disks"])?;
    refused(&agent, &directory, &said, 1, &["directory"])?;
    Ok(())
}
