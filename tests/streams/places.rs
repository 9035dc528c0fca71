//! Where a stream can lead: pipes that stand still, terminals, a shell's files, devices, and places that are full.

use crate::harness::{Agent, Said, peer, sha256, text};
use crate::{MIB, export_piped, hex, import_piped, layered, noise, state, with_sr};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A filesystem in a file, mounted; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(agent: &Agent, name: &str, size: u64) -> Result<Self> {
        let (image, point) = (agent.path(format!("{name}.img")), agent.path(name));
        File::create(&image)?.set_len(size)?;
        peer("e2fsprogs", "mkfs.ext4", &["-q", "-m", "0", &text(&image)])?;
        fs::create_dir(&point)?;
        peer("mount", "mount", &["-o", "loop", &text(&image), &text(&point)])?;
        Ok(Self(point))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn what_does_not_fit_leaves_nothing() -> Result<()> {
    let (agent, _) = with_sr()?;
    let small = Small::new(&agent, "small", 48 * MIB)?;
    let directory = small.0.join("sr");
    agent.ok(&["sr", "create", "--type", "file", "--name", "small", "--location", &text(&directory)])?;
    agent.ok(&["vdi", "create", "--sr", "disks", "--size", "100MiB", "--name", "big"])?;
    agent.write("big", 0, &noise(1, 100 * MIB))?;
    let before = state(&agent, &directory)?;
    for format in ["raw", "vhd", "vhd-fixed"] {
        let mut export = agent.command(&["vdi", "export", "big", "-", "--format", format]);
        let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pipe = export.stdout.take().context("a pipe")?;
        let mut import = agent.command(&["vdi", "import", "-", "--sr", "small", "--name", "x"]);
        let said = Said::from(import.stdin(pipe).output()?);
        // It holds the end of the pipe that was its child's.
        drop(import);
        ensure!(said.code == 5, "{format}: {said:?}");
        let said = Said::from(export.wait_with_output()?);
        ensure!(said.code == 1 && said.err.contains("other end"), "{format}: {said:?}");
        ensure!(state(&agent, &directory)? == before, "{format}: nothing is left in the SR");

        let out = small.0.join("out");
        let said = agent.catena(&["vdi", "export", "big", &text(&out), "--format", format])?;
        ensure!(said.code == 5 && said.err.contains("where the export goes"), "{format}: {said:?}");
        ensure!(!out.exists(), "{format}: no file is left");
    }
    let said = import_piped(&agent, &noise(2, 4 * MIB), "raw", "fits")?;
    ensure!(said.code == 0, "{said:?}");
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
    // Whoever shares a file goes on behind what was written or read.
    let (program, root) = (env!("CARGO_BIN_EXE_catena"), text(&agent.path("")));
    let (file, rest) = (text(&agent.path("shared")), text(&agent.path("rest")));
    let line = format!(
        "set -e; {{ {program} --root {root} vdi export disk - --format vhd; printf behind; }} > {file}; \
         {{ {program} --root {root} vdi import - --sr disks --name all --format raw; cat; }} < {file} > {rest}"
    );
    ensure!(Command::new("sh").args(["-c", &line]).status()?.success(), "{line}");
    let vhd = fs::read(&file)?;
    ensure!(vhd.ends_with(b"behind") && vhd[vhd.len() - 518..].starts_with(b"conectix"), "written behind");
    let uuid = agent.json(&["vdi", "show", "all"])?["uuid"].as_str().context("a uuid")?.to_owned();
    ensure!(fs::read_to_string(&rest)? == uuid + "\n", "all of the file was taken");
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
