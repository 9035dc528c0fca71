//! The monitor of a running QEMU, and what it is told when a disk of it has grown.

use super::PATIENCE;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to a monitor.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects to the monitor behind a socket, which must be there.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connecting to QEMU's monitor")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.0.read_line(&mut String::new())?;
        monitor.tell("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// A command, which must be carried out; what it returns.
    pub(crate) fn tell(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        writeln!(self.0.get_mut(), "{line}")?;
        loop {
            let mut said = String::new();
            ensure!(self.0.read_line(&mut said)? > 0, "QEMU has ended");
            let mut said: Value = serde_json::from_str(&said)?;
            ensure!(said["error"].is_null(), "{line}: {said}");
            if !said["return"].is_null() {
                return Ok(said["return"].take());
            }
        }
    }

    /// Makes the size known that a disk has now, as docs/operations.md says: below the node `web01` another connection takes the
    /// place of the one named `old`.
    pub(crate) fn enlarge(&mut self, socket: &Path, [old, new]: [&str; 2], size: u64) -> Result<()> {
        let server = json!({"type": "unix", "path": socket});
        let node = json!({"driver": "nbd", "node-name": new, "server": server, "reconnect-delay": 60, "discard": "unmap"});
        self.tell("blockdev-add", &node)?;
        let over = json!({"driver": "raw", "node-name": "web01", "file": new, "discard": "unmap"});
        self.tell("blockdev-reopen", &json!({"options": [over]}))?;
        self.tell("block_resize", &json!({"node-name": "web01", "size": size}))?;
        self.tell("blockdev-del", &json!({"node-name": old})).map(drop)
    }
}

/// The options of `-blockdev` with which a disk can grow later: the connection, named `name`, and the node `web01` over it.
pub(crate) fn blockdevs(socket: &Path, name: &str) -> [String; 2] {
    let server = format!("server.type=unix,server.path={}", socket.display());
    let connection = format!("driver=nbd,node-name={name},{server},reconnect-delay=60,discard=unmap");
    [connection, format!("driver=raw,node-name=web01,file={name},discard=unmap")]
}
