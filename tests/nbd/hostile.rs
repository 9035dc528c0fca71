//! Clients that misbehave hurt nobody but themselves: each gets the error that the protocol has for it, or is left; nothing of
//! what they leave stays.

use crate::harness::nbd::{Client, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
use crate::harness::serving::whole_file;
use crate::harness::wait_until;
use crate::stage::{MIB, Stage, noise, same};
use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EPERM: u32 = 1;

/// Requests that libnbd sends when it is told to check nothing, and what must become of them.
const SCRIPT: &str = r#"
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()

def refused(expected, call, *arguments, **words):
    try:
        call(*arguments, **words)
    except nbd.Error as error:
        assert error.errno == expected, (error.errno, expected, arguments[-2:])
    else:
        raise AssertionError(arguments[-2:])

refused("EINVAL", h.pread, 512, size)
refused("EINVAL", h.pread, 512, size - 511)
refused("EINVAL", h.pread, 512, (1 << 64) - 512)
refused("ENOSPC", h.pwrite, b"x" * 512, size - 100)
refused("ENOSPC", h.zero, 512, size)
refused("EINVAL", h.trim, 512, size)
refused("EINVAL", h.cache, 512, size)
refused("EINVAL", h.pread, 0, 0)
refused("EINVAL", h.pwrite, b"", 0)
refused("EOVERFLOW", h.pread, (32 << 20) + 1, 0) if size > 32 << 20 else None
refused("EINVAL", h.pread, 512, 0, flags=1 << 9)
refused("EINVAL", h.pwrite, b"x" * 512, 0, flags=1 << 9)
refused("EINVAL", h.flush, flags=1 << 9)
refused("EINVAL", h.block_status, 512, size, lambda *a: 0)
before = h.pread(4096, 0)
assert before == h.pread(4096, 0, flags=nbd.CMD_FLAG_DF)
h.pwrite(before, 0, flags=nbd.CMD_FLAG_FUA)
whole = h.pread(32 << 20, 0)
assert len(whole) == 32 << 20 and whole[:4096] == before
h.pwrite(whole, 0)
h.shutdown()
"#;

#[test]
fn illegal_requests_are_refused_one_by_one() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    // The bindings belong to the system's python, which need not be the first one that is found.
    let output = Command::new("/usr/bin/python3")
        .args(["-c", SCRIPT, &stage.served.uri()])
        .output()
        .context("/usr/bin/python3 cannot be run: install the Debian packages python3 and python3-libnbd")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!said.contains("No module named"), "install the Debian package python3-libnbd: {said}");
    ensure!(output.status.success(), "{said}");

    let mut client = stage.served.client()?;
    ensure!(client.ask(77, 0, 0, 0)? == EINVAL, "an unknown command");
    ensure!(client.ask(FLUSH, 0, 512, 512)? == EINVAL, "a flush with a range");
    ensure!(client.write(stage.content.len() as u64, &[1; 70_000], 0)? == ENOSPC, "a write past the end");
    ensure!(
        client.read(0, 512)?.is_ok_and(|found| found == stage.content[..512]),
        "its payload was passed over"
    );
    client.stream().write_all(&[0xff; 28])?;
    ensure!(client.receive().is_err(), "what is not a request ends the connection");
    stage.expect_content()?;
    stage.served.stop()?;

    stage.served.start(&["--read-only"])?;
    let mut client = stage.served.client()?;
    ensure!(client.write(0, &[1; 512], 0)? == EPERM, "a write");
    ensure!(
        client.ask(TRIM, 0, 0, 512)? == EPERM && client.ask(WRITE_ZEROES, 0, 0, 512)? == EPERM,
        "the others"
    );
    ensure!(client.ask(FLUSH, 0, 0, 0)? == 0, "a flush has nothing to do");
    stage.served.stop()?;
    stage.agree_detached()
}

/// Resident memory of who serves, in bytes.
fn memory(stage: &Stage) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", stage.served.pid()?))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse::<usize>()? << 10)
}

#[test]
fn who_reads_no_replies_holds_up_nobody_else() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let mut deaf = stage.served.client()?;
    // No more than a socket holds, where each takes some hundred bytes of the system's memory.
    let count = 150;
    for index in 0..count {
        deaf.send(READ, 0, (index % 16) << 20, 1 << 20, &[])?;
    }
    let mut others = (0..8).map(|_| stage.served.client()).collect::<Result<Vec<_>>>()?;
    for turn in 0..50u64 {
        for (index, client) in others.iter_mut().enumerate() {
            let at = usize::try_from(turn)? * 4096 + index * MIB;
            let bytes = noise(turn, 4096);
            ensure!(client.write(at as u64, &bytes, 0)? == 0, "a write");
            stage.content[at..at + 4096].copy_from_slice(&bytes);
            ensure!(client.read(at as u64, 4096)?.is_ok_and(|found| found == bytes), "a read");
        }
    }
    let held = memory(&stage)?;
    ensure!(held < 100 * MIB, "{held} bytes are held for one client");
    // In the end it listens, and has lost nothing.
    for _ in 0..count {
        let reply = deaf.receive()?;
        ensure!(reply.error == 0, "{reply:?}");
        deaf.stream().read_exact(&mut vec![0; MIB])?;
    }
    stage.expect_content()?;
    stage.served.stop()?;
    stage.agree_detached()
}

#[test]
fn what_a_client_leaves_behind_ends() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    // A write of which only a part comes: less than is handed on at once, so nothing of it is written.
    let mut client = stage.served.client()?;
    client.send(WRITE, 0, 0, 1 << 20, &noise(1, 300_000))?;
    drop(client);
    // Requests under way, and a client that is gone before they are done.
    let mut client = stage.served.client()?;
    for index in 0..64usize {
        let (at, bytes) = (16 * MIB + index * 65_536, noise(index as u64, 65_536));
        client.send(WRITE, 0, at as u64, 65_536, &bytes)?;
        client.send(READ, 0, 0, 4096, &[])?;
        stage.content[at..at + 65_536].copy_from_slice(&bytes);
    }
    // What was sent whole is done: the end of the connection comes behind it.
    client.stream().shutdown(std::net::Shutdown::Write)?;
    let mut answers = Vec::new();
    client.stream().read_to_end(&mut answers)?;
    ensure!(answers.len() == 64 * (16 + 16 + 4096), "{} bytes of answers", answers.len());
    // Half a handshake, and half an option.
    UnixStream::connect(stage.served.socket())?.write_all(&[0, 0])?;
    UnixStream::connect(stage.served.socket())?
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xffhello")?;
    wait_until("nothing is left", || {
        let stats = stage.served.ask(&json!({"ask": "stats"}))?;
        Ok(stats["queue_depth"] == 0 && stats["connections"] == 0)
    })?;
    stage.expect_content()?;
    stage.served.stop()?;
    stage.agree_detached()
}

#[test]
fn many_are_served_and_too_many_are_turned_away() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let mut clients = (0..100).map(|_| stage.served.client()).collect::<Result<Vec<Client>>>()?;
    for (index, client) in clients.iter_mut().enumerate() {
        let (at, bytes) = (index * 8192, noise(index as u64, 8192));
        client.send(WRITE, 0, at as u64, 8192, &bytes)?;
        stage.content[at..at + 8192].copy_from_slice(&bytes);
    }
    for client in &mut clients {
        ensure!(client.receive()?.error == 0, "a write of one of many");
    }
    let mut idle = Vec::new();
    for _ in clients.len()..512 {
        let mut stream = UnixStream::connect(stage.served.socket())?;
        stream.read_exact(&mut [0; 18])?;
        idle.push(stream);
    }
    let mut refused = UnixStream::connect(stage.served.socket())?;
    ensure!(refused.read(&mut [0; 18])? == 0, "one too many is closed without a word");
    drop(idle.pop());
    wait_until("there is room again", || Ok(stage.served.client().is_ok()))?;
    drop(idle);
    drop(clients);
    stage.expect_content()?;
    stage.served.stop()?;
    stage.agree_detached()
}

/// What is handed over is looked at: each mistake is named, and nothing is served.
#[test]
fn descriptors_that_are_something_else_are_refused() -> Result<()> {
    let mut stage = Stage::chain()?;
    let [nbd, control, pending] = stage.served.descriptors();
    let (leaf, id) = stage.leaf()?;
    let writable = File::options().read(true).write(true).open(&leaf)?;
    let readable = File::open(&leaf)?;
    let (stream, _other) = UnixStream::pair()?;
    let foreign = tempfile::tempfile()?;
    (&foreign).write_all(&[7; 100])?;
    let other = UnixListener::bind(stage.served.path("other"))?;
    let (w, r) = (writable.as_raw_fd(), readable.as_raw_fd());
    let unknown = "11111111-2222-3333-4444-555555555555";
    let cases = [
        (nbd, control, pending, format!("{r}:{id}:vhd"), "not open for reading and writing"),
        (nbd, control, pending, format!("{w}:{unknown}:vhd"), "not 11111111-2222"),
        (nbd, control, pending, format!("{w}:{id}:vhdx"), "is not a format"),
        (nbd, control, pending, format!("{w}:{id}:raw"), "a raw disk is only read"),
        (nbd, control, pending, format!("999:{id}:vhd"), "descriptor 999 is not open"),
        (nbd, control, pending, format!("2:{id}:vhd"), "descriptor 2 is not one of those"),
        (nbd, control, pending, format!("{nbd}:{id}:vhd"), "is named twice"),
        (control, other.as_raw_fd(), pending, format!("{w}:{id}:vhd"), "the socket for clients"),
        (nbd, other.as_raw_fd(), pending, format!("{w}:{id}:vhd"), "the control socket"),
        (stream.as_raw_fd(), control, pending, format!("{w}:{id}:vhd"), "it does not listen"),
        (w, control, pending, format!("{r}:{id}:vhd"), "it is not a socket"),
        (nbd, control, foreign.as_raw_fd(), format!("{w}:{id}:vhd"), "pending"),
        (nbd, control, stream.as_raw_fd(), format!("{w}:{id}:vhd"), "pending"),
    ];
    for (nbd, control, pending, image, expected) in cases {
        let words = [
            "--vdi",
            &stage.vdi,
            "--nbd",
            &nbd.to_string(),
            "--control",
            &control.to_string(),
            "--pending",
            &pending.to_string(),
            "--image",
            &image,
        ]
        .map(str::to_owned);
        let all = [stage.served.descriptors().to_vec(), vec![w, r, stream.as_raw_fd(), foreign.as_raw_fd()]];
        let fds = all.concat().into_iter().chain([other.as_raw_fd()]).collect();
        let said = stage.served.refused(&words, fds)?;
        ensure!(said.contains(expected), "'{expected}' where it said: {said}");
        ensure!(
            said.lines().filter(|line| line.contains("ERROR") || line.starts_with("error:")).count() == 1,
            "{said}"
        );
    }
    drop((writable, readable));
    same(&fs::read(&leaf)?, &stage.leaf_bytes)?;
    // A leaf that somebody else is writing.
    let locked = File::options().read(true).write(true).open(&leaf)?;
    fcntl(&locked, FcntlArg::F_OFD_SETLK(&whole_file()))?;
    let mine = File::options().read(true).write(true).open(&leaf)?;
    let words = stage.words(&format!("{}:{id}:vhd", mine.as_raw_fd()));
    let fds = stage.served.descriptors().into_iter().chain([mine.as_raw_fd()]).collect();
    let said = stage.served.refused(&words, fds)?;
    ensure!(said.contains("still being written"), "it said: {said}");
    Ok(())
}
