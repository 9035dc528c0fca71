//! Disks in and out as streams: through pipes and sockets, sparse both ways, in the formats that other programs want, and what
//! is refused: by its name, with nothing left behind.

#[path = "../harness/mod.rs"]
mod harness;
mod places;
mod refused;
mod vhds;

use anyhow::{Context, Result, ensure};
use harness::{Agent, Said, qemu_img, sha256, text};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const MIB: u64 = 1 << 20;

/// Bytes that differ from place to place, the same for a seed.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(usize::try_from(length).unwrap_or(usize::MAX)).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An agent with an SR whose merges wait for a word, and its directory.
fn with_sr() -> Result<(Agent, PathBuf)> {
    let agent = Agent::start()?;
    let directory = agent.path("sr");
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &text(&directory)])?;
    agent.ok(&["coalesce", "pause", "disks"])?;
    Ok((agent, directory))
}

/// A disk of 11 MiB in two layers: 3 MiB of data from 1 MiB on, a zeroed MiB that is owned, a hole, and its last 4 KiB.
fn layered(agent: &Agent) -> Result<String> {
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "12MiB", "--name", "disk"])?;
    agent.write("disk", MIB, &noise(1, 3 * MIB))?;
    agent.ok(&["vdi", "snapshot", "disk", "--name", "before"])?;
    agent.write("disk", 2 * MIB - 4096, &noise(2, 8192))?;
    agent.write("disk", 6 * MIB, &vec![0; 1 << 20])?;
    agent.write("disk", 12 * MIB - 4096, &noise(3, 4096))?;
    agent.hash("disk")
}

/// Imports what `bytes` are through a pipe.
fn import_piped(agent: &Agent, bytes: &[u8], format: &str, name: &str) -> Result<Said> {
    let arguments = ["vdi", "import", "-", "--sr", "disks", "--format", format, "--name", name];
    let mut command = agent.command(&arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A stream that is refused is not read to its end.
    let _ = child.stdin.take().context("a pipe")?.write_all(bytes);
    Ok(Said::from(child.wait_with_output()?))
}

/// What a disk is, exported through a pipe.
fn export_piped(agent: &Agent, vdi: &str, format: &str) -> Result<Vec<u8>> {
    let output = agent.command(&["vdi", "export", vdi, "-", "--format", format]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The files of an SR and what they hold.
fn contents(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), sha256(&entry.path())?);
        }
    }
    Ok(found)
}

/// What an SR must be again after something was refused.
fn state(agent: &Agent, directory: &Path) -> Result<(BTreeMap<String, String>, Value)> {
    Ok((contents(directory)?, agent.json(&["vdi", "list"])?))
}

#[test]
fn a_disk_goes_from_pipe_to_pipe() -> Result<()> {
    let (agent, _) = with_sr()?;
    let hash = layered(&agent)?;
    for (format, read_as) in [
        ("raw", "raw"),
        ("raw", "auto"),
        ("vhd", "auto"),
        ("vhd", "vhd"),
        ("vhd-fixed", "auto"),
        ("vhd-fixed", "vhd"),
    ] {
        let name = format!("{format}-{read_as}");
        let mut export = agent.command(&["vdi", "export", "disk", "-", "--format", format]);
        let mut export = export.stdout(Stdio::piped()).spawn()?;
        let pipe = export.stdout.take().context("a pipe")?;
        let mut import =
            agent.command(&["vdi", "import", "-", "--sr", "disks", "--format", read_as, "--name", &name]);
        let said = Said::from(import.stdin(pipe).output()?);
        ensure!(export.wait()?.success() && said.code == 0, "{name}: {said:?}");
        ensure!(agent.hash(&name)? == hash, "{name} is the disk that went in");
        let record = agent.json(&["vdi", "show", &name])?;
        ensure!(record["virtual_size"] == 12 * MIB, "{name}: {record}");
        ensure!(record["own_bytes"].as_u64().context("bytes")? < 7 * MIB, "{name} is sparse: {record}");
    }
    let check = agent.json(&["sr", "check", "disks"])?;
    ensure!(check["findings"].as_array().is_some_and(Vec::is_empty), "{check}");
    Ok(())
}

#[test]
fn what_comes_through_a_pipe_is_as_large_as_what_came() -> Result<()> {
    let (agent, directory) = with_sr()?;
    for (name, length, size) in [
        ("one", 1, 2),
        ("short", 511, 2),
        ("sector", 512, 2),
        ("block", 2 * MIB, 2),
        ("odd", 5 * MIB + 700, 6),
    ] {
        let mut bytes = noise(length, length);
        let said = import_piped(&agent, &bytes, "raw", name)?;
        ensure!(said.code == 0, "{name}: {said:?}");
        bytes.resize(usize::try_from(size * MIB)?, 0);
        ensure!(agent.hash(name)? == hex(&bytes), "{name}");
        ensure!(agent.json(&["vdi", "show", name])?["virtual_size"] == size * MIB, "{name}");
    }
    // Its size is nothing that the image keeps a trace of where others could stumble.
    agent.write("odd", 6 * MIB - 512, &noise(9, 512))?;
    ensure!(agent.read("odd", 6 * MIB - 512, 512)? == noise(9, 512), "the new disk is one like any other");
    let check = agent.json(&["sr", "check", "disks"])?;
    ensure!(check["findings"].as_array().is_some_and(Vec::is_empty), "{check}");
    let before = state(&agent, &directory)?;
    let said = import_piped(&agent, &[], "auto", "nothing")?;
    ensure!(said.code == 2 && said.err.contains("empty"), "{said:?}");
    ensure!(state(&agent, &directory)? == before, "of nothing nothing is left");
    Ok(())
}

#[test]
fn sockets_are_streams_too() -> Result<()> {
    let (agent, _) = with_sr()?;
    let hash = layered(&agent)?;
    let (ours, theirs) = UnixStream::pair()?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut ours = ours;
        ours.read_to_end(&mut bytes).map(|_| bytes)
    });
    finished(&agent, "VDI.export", &json!({"vdi": "disk", "format": "vhd", "fd": 0}), theirs)?;
    let bytes = reader.join().ok().context("the reader")??;

    let (ours, theirs) = UnixStream::pair()?;
    let writer = std::thread::spawn(move || {
        let mut ours = ours;
        ours.write_all(&bytes)
    });
    finished(&agent, "VDI.import", &json!({"sr": "disks", "name_label": "again", "fd": 0}), theirs)?;
    writer.join().ok().context("the writer")??;
    ensure!(agent.hash("again")? == hash, "what went out came in");
    Ok(())
}

/// Starts a job with a descriptor, which is gone from here then, and waits until it is done.
fn finished(agent: &Agent, method: &str, params: &Value, stream: UnixStream) -> Result<()> {
    let job = agent.call_with(method, params, &[stream.as_fd()])?;
    drop(stream);
    let job = job.map_err(|error| anyhow::anyhow!("{method}: {error}"))?;
    let id = job["id"].as_str().context("a job")?;
    let ended = agent.json(&["job", "wait", id])?;
    ensure!(ended["state"] == "done" && ended["bytes_done"] == ended["bytes_total"], "{method}: {ended}");
    Ok(())
}

#[test]
fn zeros_take_no_space_either_way() -> Result<()> {
    let (agent, _) = with_sr()?;
    // 4 KiB of data in a hole of 1 GiB, and 8 MiB of zeros that are written.
    let raw = agent.path("in.raw");
    let file = File::create(&raw)?;
    file.set_len(1 << 30)?;
    file.write_all_at(&noise(1, 4096), 700 * MIB + 512)?;
    file.write_all_at(&vec![0; 8 << 20], 4 * MIB)?;
    drop(file);
    agent.ok(&["vdi", "import", &text(&raw), "--sr", "disks", "--name", "sparse"])?;
    let own = agent.json(&["vdi", "show", "sparse"])?["own_bytes"].as_u64().context("bytes")?;
    ensure!(own < MIB, "{own} bytes for 4 KiB of data");

    let back = agent.path("back.raw");
    agent.ok(&["vdi", "export", "sparse", &text(&back)])?;
    let (size, blocks) = fs::metadata(&back).map(|file| (file.len(), file.blocks()))?;
    ensure!(size == 1 << 30 && blocks * 512 < MIB, "{blocks} blocks for 4 KiB of data");
    ensure!(sha256(&back)? == sha256(&raw)?, "the same bytes");

    // A block that is owned and holds zeros is not in the VHD.
    agent.write("sparse", 10 * MIB, &vec![0; 4 << 20])?;
    let vhd = agent.path("out.vhd");
    agent.ok(&["vdi", "export", "sparse", &text(&vhd)])?;
    let (size, blocks) = fs::metadata(&vhd).map(|file| (file.len(), file.blocks()))?;
    ensure!(
        size < 3 * MIB && blocks * 512 < MIB,
        "one block of 2 MiB, a hole but for 64 KiB: {size}, {blocks}"
    );
    qemu_img(&["compare", "-f", "vpc", "-F", "raw", &text(&vhd), &text(&raw)])?;
    let fixed = agent.path("fixed.vhd");
    agent.ok(&["vdi", "export", "sparse", &text(&fixed), "--format", "vhd-fixed"])?;
    let (size, blocks) = fs::metadata(&fixed).map(|file| (file.len(), file.blocks()))?;
    ensure!(size == (1 << 30) + 512 && blocks * 512 < MIB, "a fixed VHD has holes too: {size}, {blocks}");
    Ok(())
}
