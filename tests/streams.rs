//! Disks in and out as streams: through pipes and sockets, sparse both ways, in the formats that other programs want, and what
//! is refused: by its name, with nothing left behind.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::mounted::Mounted;
use harness::{Agent, Said, peer, sha256};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
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
    peer("qemu-utils", "qemu-img", &["compare", "-f", "vpc", "-F", "raw", &text(&vhd), &text(&raw)])?;
    let fixed = agent.path("fixed.vhd");
    agent.ok(&["vdi", "export", "sparse", &text(&fixed), "--format", "vhd-fixed"])?;
    let (size, blocks) = fs::metadata(&fixed).map(|file| (file.len(), file.blocks()))?;
    ensure!(size == (1 << 30) + 512 && blocks * 512 < MIB, "a fixed VHD has holes too: {size}, {blocks}");
    Ok(())
}

/// What must stand at these places of a VHD's footer, big-endian.
fn check_footer(footer: &[u8], kind: u8, size: u64, header_at: u64) -> Result<()> {
    let number = |at: usize, len: usize| {
        footer[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    ensure!(&footer[..8] == b"conectix", "cookie");
    ensure!(number(8, 4) == 2 && number(12, 4) == 0x1_0000, "features and version");
    ensure!(number(16, 8) == header_at, "place of the header: {}", number(16, 8));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() - 946_684_800;
    ensure!(number(24, 4) <= now && number(24, 4) + 600 > now, "time: {}", number(24, 4));
    // The creator for which qemu, VirtualBox and Azure take the size, not the geometry.
    ensure!(&footer[28..32] == b"win " && number(32, 4) == 0xa_0000 && &footer[36..40] == b"Wi2k", "creator");
    ensure!(number(40, 8) == size && number(48, 8) == size, "sizes: {} {}", number(40, 8), number(48, 8));
    let (cylinders, heads, sectors) = (number(56, 2), number(58, 1), number(59, 1));
    let product = cylinders * heads * sectors * 512;
    ensure!(
        product <= size && product + heads * sectors * 512 > size,
        "geometry {cylinders}/{heads}/{sectors}"
    );
    ensure!(number(60, 4) == u64::from(kind), "kind: {}", number(60, 4));
    let sum = footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at));
    let sum = !sum.fold(0u32, |sum, (_, byte)| sum + u32::from(*byte));
    ensure!(number(64, 4) == u64::from(sum), "checksum");
    let id = uuid::Uuid::from_slice(&footer[68..84])?;
    ensure!(id.get_version_num() == 4, "a fresh id: {id}");
    ensure!(footer[84..].iter().all(|byte| *byte == 0), "saved state and what is reserved");
    Ok(())
}

#[test]
fn exported_vhds_have_what_their_readers_ask_for() -> Result<()> {
    let (agent, _) = with_sr()?;
    layered(&agent)?;
    let raw = agent.path("disk.raw");
    agent.ok(&["vdi", "export", "disk", &text(&raw), "--format", "raw"])?;
    let hash = sha256(&raw)?;
    for format in ["vhd", "vhd-fixed"] {
        let (file, piped) = (agent.path(format!("{format}.vhd")), agent.path(format!("{format}-piped.vhd")));
        agent.ok(&["vdi", "export", "disk", &text(&file), "--format", format])?;
        fs::write(&piped, export_piped(&agent, "disk", format)?)?;
        for path in [&file, &piped] {
            let bytes = fs::read(path)?;
            let footer = bytes.last_chunk::<512>().context("a footer")?;
            if format == "vhd" {
                check_footer(footer, 3, 12 * MIB, 512)?;
                check_dynamic(&bytes)?;
            } else {
                check_footer(footer, 2, 12 * MIB, u64::MAX)?;
                ensure!(bytes.len() as u64 == 12 * MIB + 512, "a whole number of MiB and a footer");
            }
            let info =
                peer("qemu-utils", "qemu-img", &["info", "--output", "json", "-f", "vpc", &text(path)])?;
            let info: Value = serde_json::from_str(&info)?;
            ensure!(info["virtual-size"] == 12 * MIB, "{info}");
            peer("qemu-utils", "qemu-img", &["compare", "-f", "vpc", "-F", "raw", &text(path), &text(&raw)])?;
            let mounted = Mounted::new(path, path.with_extension("mnt"))?;
            ensure!(sha256(&mounted.layer(1))? == hash, "libvhdi reads the same: {}", path.display());
        }
    }
    Ok(())
}

/// Copy of the footer, header, table and blocks of a dynamic VHD of 12 MiB.
fn check_dynamic(bytes: &[u8]) -> Result<()> {
    let number = |at: usize, len: usize| {
        bytes[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    ensure!(bytes[..512] == bytes[bytes.len() - 512..], "the copy of the footer");
    ensure!(&bytes[512..520] == b"cxsparse" && number(520, 8) == u64::MAX, "header");
    ensure!(number(528, 8) == 1536 && number(536, 4) == 0x1_0000, "place of the table, version");
    ensure!(number(540, 4) == 6 && number(544, 4) == 2 * MIB, "six blocks of 2 MiB");
    let sum = bytes[512..1536].iter().enumerate().filter(|(at, _)| !(36..40).contains(at));
    ensure!(
        number(548, 4) == u64::from(!sum.fold(0u32, |sum, (_, byte)| sum + u32::from(*byte))),
        "checksum"
    );
    ensure!(bytes[552..1536].iter().all(|byte| *byte == 0), "no parent, no locators");
    let mut end = 2048;
    for (block, owned) in [true, true, false, false, false, true].into_iter().enumerate() {
        let entry = number(1536 + 4 * block, 4);
        if !owned && entry == u64::from(u32::MAX) {
            continue;
        }
        let bitmap = usize::try_from(entry * 512)?;
        ensure!(bitmap >= end && (bitmap + 512) % 4096 == 0, "block {block} at {bitmap}");
        ensure!(bytes[bitmap..bitmap + 512].iter().all(|byte| *byte == 0xff), "all sectors are there");
        end = bitmap + 512 + (2 << 20);
    }
    ensure!(end + 512 == bytes.len(), "the footer follows the last block");
    Ok(())
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

#[test]
fn other_formats_are_refused_by_name() -> Result<()> {
    let (agent, directory) = with_sr()?;
    let at = |name: &str| text(&agent.path(name));
    let raw = agent.path("disk.raw");
    fs::write(&raw, noise(1, 300_000))?;
    let make = |arguments: &[&str]| peer("qemu-utils", "qemu-img", arguments);
    let convert =
        |format: &str, name: &str| make(&["convert", "-f", "raw", "-O", format, &at("disk.raw"), &at(name)]);
    for (format, name) in
        [("qcow2", "a.qcow2"), ("vmdk", "a.vmdk"), ("vhdx", "a.vhdx"), ("vdi", "a.vdi"), ("qed", "a.qed")]
    {
        convert(format, name)?;
    }
    make(&["create", "-q", "-f", "qcow2", "-b", &at("a.qcow2"), "-F", "qcow2", &at("child.qcow2")])?;
    let data = format!("data_file={}", at("data.raw"));
    make(&["create", "-q", "-f", "qcow2", "-o", &data, &at("outside.qcow2"), "4M"])?;
    let secret = ["--object", "secret,id=s,data=geheim"];
    let sealed = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    make(
        &[&["create", "-q", "-f", "qcow2"], &secret[..], &["-o", sealed, &at("sealed.qcow2"), "4M"]].concat(),
    )?;
    let sealed = "key-secret=s,iter-time=10";
    make(&[&["create", "-q", "-f", "luks"], &secret[..], &["-o", sealed, &at("a.luks"), "4M"]].concat())?;
    make(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &at("flat.vmdk"), "4M"])?;
    for (program, package, name) in
        [("gzip", "gzip", "disk.raw.gz"), ("xz", "xz-utils", "disk.raw.xz"), ("zstd", "zstd", "disk.raw.zst")]
    {
        let output = Command::new(program).arg("-c").arg(&raw).output();
        fs::write(
            agent.path(name),
            output.with_context(|| format!("install the Debian package {package}"))?.stdout,
        )?;
    }

    let strange = {
        let mut bytes = fs::read(agent.path("a.qcow2"))?;
        bytes[72] = 0x40;
        bytes
    };
    fs::write(agent.path("strange.qcow2"), strange)?;
    for (name, words) in [
        ("a.qcow2", &["a qcow2 image (version 3), which"][..]),
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
    ] {
        let bytes = fs::read(agent.path(name))?;
        for format in ["auto", "vhd"] {
            let said = agent.catena(&["vdi", "import", &at(name), "--sr", "disks", "--format", format])?;
            refused(
                &agent,
                &directory,
                &said,
                8,
                words.iter().map(|word| word.trim_end_matches(", which")).collect::<Vec<_>>().as_slice(),
            )?;
        }
        refused(&agent, &directory, &import_piped(&agent, &bytes, "auto", "x")?, 8, words)?;
    }
    let said = agent.catena(&["--json", "vdi", "import", &at("a.qcow2"), "--sr", "disks"])?;
    ensure!(serde_json::from_str::<Value>(&said.err)?["error"]["name"] == "unsupported", "{said:?}");
    // Who says that it is raw is believed.
    agent.ok(&["vdi", "import", &at("a.qcow2"), "--sr", "disks", "--format", "raw", "--name", "bytes"])?;
    let mut bytes = fs::read(agent.path("a.qcow2"))?;
    bytes.resize(bytes.len().next_multiple_of(2 << 20), 0);
    ensure!(agent.hash("bytes")? == hex(&bytes), "the bytes as they are");
    Ok(())
}

#[test]
fn what_is_no_vhd_or_only_a_part_of_one_is_refused() -> Result<()> {
    let (agent, directory) = with_sr()?;
    let at = |name: &str| text(&agent.path(name));
    fs::write(agent.path("noise"), noise(1, 3 * MIB))?;
    harness::golden_file("chain3/L1.vhd", &agent.path("child.vhd"))?;
    let mut broken = fs::read(agent.path("child.vhd"))?;
    broken[520] ^= 1;
    fs::write(agent.path("broken.vhd"), &broken)?;
    fs::write(agent.path("tiny"), "conectix")?;
    for (name, format, exit, words) in [
        ("noise", "vhd", 7, &["footer"][..]),
        ("child.vhd", "auto", 8, &["differencing", "L0.vhd"]),
        ("child.vhd", "vhd", 8, &["differencing", "L0.vhd"]),
        ("broken.vhd", "auto", 7, &["header"]),
        ("tiny", "auto", 7, &[]),
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

#[test]
fn an_export_that_fails_leaves_no_file() -> Result<()> {
    let (agent, directory) = with_sr()?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "4MiB", "--name", "disk"])?;
    agent.write("disk", 0, &noise(1, 4 * MIB))?;
    let record = agent.json(&["vdi", "show", "disk"])?;
    let container = directory.join(format!("{}.vhd", record["image"].as_str().context("an image")?));
    // The second block is gone, which shows only when it is read.
    File::options().write(true).open(&container)?.set_len(2 * MIB)?;
    for format in ["raw", "vhd", "vhd-fixed"] {
        let out = agent.path(format!("out.{format}"));
        let said = agent.catena(&["vdi", "export", "disk", &text(&out), "--format", format])?;
        ensure!(said.code != 0 && said.err.contains("block"), "{said:?}");
        ensure!(!out.exists(), "a file that is not whole");
    }
    Ok(())
}

/// Interrupts a command that hangs on a stream that stands still; it must end as interrupted.
fn interrupted(agent: &Agent, arguments: &[&str], kind: &str) -> Result<()> {
    let mut command = agent.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Both ends stay open here, and nothing moves.
    let ends = (child.stdin.take(), child.stdout.take());
    loop {
        let jobs = agent.json(&["job", "list"])?;
        let running = |job: &Value| job["kind"] == kind && job["state"] == "running";
        if jobs["jobs"].as_array().context("jobs")?.iter().any(running) {
            break;
        }
        ensure!(child.try_wait()?.is_none(), "{arguments:?} ended by itself");
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let said = Said::from(child.wait_with_output()?);
    drop(ends);
    ensure!(said.code == 130, "{arguments:?}: {said:?}");
    let jobs = agent.json(&["job", "list"])?;
    let open = |job: &&Value| job["state"] == "running" || job["state"] == "queued";
    ensure!(jobs["jobs"].as_array().context("jobs")?.iter().find(open).is_none(), "{jobs}");
    Ok(())
}

#[test]
fn ctrl_c_is_heard_while_a_pipe_stands_still() -> Result<()> {
    let (agent, directory) = with_sr()?;
    layered(&agent)?;
    let before = state(&agent, &directory)?;
    for format in ["auto", "raw", "vhd"] {
        interrupted(&agent, &["vdi", "import", "-", "--sr", "disks", "--format", format], "import")?;
        ensure!(state(&agent, &directory)? == before, "an interrupted import leaves nothing");
    }
    for format in ["raw", "vhd", "vhd-fixed"] {
        interrupted(&agent, &["vdi", "export", "disk", "-", "--format", format], "export")?;
    }
    // A reader that goes away is an error, and a plain one.
    let mut export = agent.command(&["vdi", "export", "disk", "-"]);
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(export.stdout.take());
    let said = Said::from(export.wait_with_output()?);
    ensure!(said.code == 1 && said.err.contains("Broken pipe"), "{said:?}");
    Ok(())
}

#[test]
fn a_terminal_is_no_place_for_a_disk() -> Result<()> {
    let (agent, directory) = with_sr()?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "4MiB", "--name", "disk"])?;
    let before = state(&agent, &directory)?;
    let program = env!("CARGO_BIN_EXE_catena");
    let root = text(&agent.path(""));
    for (line, word) in [("vdi export disk -", "stdout"), ("vdi import - --sr disks", "stdin")] {
        let line = format!("{program} --root {root} {line}");
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        let output = output.context("script cannot be run: install the Debian package bsdutils")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(2), "{line}: {said}");
        ensure!(said.contains(&format!("{word} is a terminal")), "{line}: {said}");
    }
    ensure!(state(&agent, &directory)? == before, "nothing happened");
    Ok(())
}

#[test]
fn a_shell_s_files_are_written_where_they_stand() -> Result<()> {
    let (agent, _) = with_sr()?;
    layered(&agent)?;
    let raw = export_piped(&agent, "disk", "raw")?;
    let path = agent.path("appended");
    fs::write(&path, "before ")?;
    let mut export = agent.command(&["vdi", "export", "disk", "-"]);
    let status = export.stdout(File::options().append(true).open(&path)?).status()?;
    ensure!(status.success() && fs::read(&path)? == [b"before ", &raw[..]].concat(), "appended");
    let mut middle = File::open(&path)?;
    middle.read_exact(&mut [0; 7])?;
    let mut import = agent.command(&["vdi", "import", "-", "--sr", "disks", "--name", "middle"]);
    ensure!(import.stdin(middle).output()?.status.success(), "imported from the middle on");
    ensure!(agent.hash("middle")? == hex(&raw), "what came before is not ours");
    // An empty file that a shell has opened is as good as one that we have made.
    let path = agent.path("redirected");
    let status = agent.command(&["vdi", "export", "disk", "-"]).stdout(File::create(&path)?).status()?;
    let blocks = fs::metadata(&path)?.blocks();
    ensure!(status.success() && fs::read(&path)? == raw && blocks * 512 < 5 * MIB, "sparse: {blocks}");
    Ok(())
}

/// A loop device, detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Result<Self> {
        Ok(Self(peer("mount", "losetup", &["--find", "--show", &text(file)])?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn devices_take_and_give_the_bytes_of_a_disk() -> Result<()> {
    let (agent, _) = with_sr()?;
    let hash = layered(&agent)?;
    let (backing, small) = (agent.path("backing"), agent.path("small"));
    fs::write(&backing, noise(5, 12 * MIB))?;
    fs::write(&small, noise(6, 11 * MIB))?;
    let (device, too_small) = (Loop::new(&backing)?, Loop::new(&small)?);
    let export = |to: &Loop, format: &str| -> Result<Said> {
        let mut command = agent.command(&["vdi", "export", "disk", "-", "--format", format]);
        let output = command.stdout(File::options().write(true).read(true).open(&to.0)?).output()?;
        Ok(Said::from(output))
    };
    let said = export(&device, "vhd")?;
    ensure!(said.code == 8, "{said:?}");
    let said = export(&too_small, "raw")?;
    ensure!(said.code == 2 && said.err.contains("does not fit"), "{said:?}");
    ensure!(sha256(Path::new(&device.0))? == hex(&noise(5, 12 * MIB)), "refused before anything was written");
    let said = export(&device, "raw")?;
    ensure!(
        said.code == 0 && sha256(Path::new(&device.0))? == hash,
        "old bytes do not shine through: {said:?}"
    );
    agent.ok(&["vdi", "import", &device.0, "--sr", "disks", "--name", "from-device"])?;
    ensure!(agent.hash("from-device")? == hash, "and back");
    Ok(())
}

#[test]
fn a_write_that_is_too_short_writes_nothing() -> Result<()> {
    let (agent, _) = with_sr()?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "4MiB", "--name", "disk"])?;
    agent.write("disk", 0, &noise(1, 3 * MIB))?;
    let hash = agent.hash("disk")?;
    let file = agent.path("short");
    fs::write(&file, noise(2, 2 * MIB))?;
    let arguments = ["vdi", "write", "disk", "--length", "3MiB"];
    let said = agent.catena(&[&arguments[..], &[&text(&file)]].concat())?;
    ensure!(said.code == 2 && said.err.contains("2097152 bytes, not 3145728"), "{said:?}");
    let mut command = agent.command(&[&arguments[..], &["-"]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(&noise(2, 2 * MIB))?;
    let said = Said::from(child.wait_with_output()?);
    ensure!(said.code == 2 && said.err.contains("nothing was written"), "{said:?}");
    ensure!(agent.hash("disk")? == hash, "nothing was written");
    // What a pipe brings beyond the length is left in it.
    let mut shell = Command::new("sh");
    let line = format!(
        "printf 'abcdrest' | {{ {} --root {} vdi write disk --length 4 -; cat; }}",
        env!("CARGO_BIN_EXE_catena"),
        text(&agent.path(""))
    );
    let output = shell.args(["-c", &line]).output()?;
    ensure!(output.status.success() && output.stdout == b"rest", "{output:?}");
    ensure!(agent.read("disk", 0, 4)? == b"abcd", "written");
    Ok(())
}
