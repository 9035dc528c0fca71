//! A client of an attached disk that stays connected, whoever dies behind the socket. Used by the tests of attached disks.

#![allow(dead_code, reason = "each test program uses its own part")]

use crate::harness::socket_of;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A client that stays: `qemu-io` with a connection that comes back.
pub(crate) struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Connects; from then on a connection that breaks is made again for a minute.
    pub(crate) fn connect(uri: &str) -> Result<Self> {
        let socket = socket_of(uri)?;
        let options =
            format!("driver=nbd,server.type=unix,server.path={},reconnect-delay=60", socket.display());
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &options])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-io cannot be run: install the Debian package qemu-utils")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut client = Self { child, input, output };
        // The first connection alone is made once only: whoever is killed after this is connected to again.
        client.run("read 0 512")?;
        Ok(client)
    }

    /// Sends a command without waiting for it.
    pub(crate) fn begin(&mut self, command: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input")?;
        writeln!(input, "{command}")?;
        Ok(input.flush()?)
    }

    /// Waits for the end of a read, write or discard; it must have gone well.
    pub(crate) fn end(&mut self) -> Result<()> {
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "qemu-io has ended");
            ensure!(!line.contains("failed") && !line.contains("rror"), "{line}");
            if line.contains(" bytes at offset ") {
                return Ok(());
            }
        }
    }

    /// Sends a command and waits for its end.
    pub(crate) fn run(&mut self, command: &str) -> Result<()> {
        self.begin(command)?;
        self.end().with_context(|| command.to_owned())
    }

    /// Flushes and disconnects.
    pub(crate) fn close(mut self) -> Result<()> {
        self.begin("flush")?;
        // The end of its input, not another line: it reads one line for each time that there is something to read.
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "qemu-io: {status}");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One that was closed has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over the agent's socket, for a thread that does not have the agent; what becomes of it may be anything.
pub(crate) fn call_at(socket: &Path, method: &str, params: &Value) -> Result<Value> {
    let mut socket = UnixStream::connect(socket)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    socket.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
