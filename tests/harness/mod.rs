//! A private agent for a test: its own root, its own SRs, the real programs. Everything goes when it is dropped.
//!
//! Used by the root package's tests, the only ones that see the programs' paths.

#![allow(dead_code, reason = "each test program uses its own part of the harness")]

pub(crate) mod attached;
pub(crate) mod device;
mod disks;
pub(crate) mod guest;
pub(crate) mod lab;
mod mortal;
pub(crate) mod mounted;
pub(crate) mod nbd;
pub(crate) mod qmp;
pub(crate) mod serving;
pub(crate) mod small;
pub(crate) mod theirs;
pub(crate) mod volumes;

pub(crate) use disks::socket_of;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take that a test waits for, such as the start of an agent and its end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running catenad and the directory that it lives in.
pub(crate) struct Agent {
    home: TempDir,
    child: Option<Child>,
}

/// What a command line came to.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it printed.
    pub(crate) out: String,
    /// What it said on stderr.
    pub(crate) err: String,
}

impl Agent {
    /// A fresh one.
    pub(crate) fn start() -> Result<Self> {
        let mut agent = Self::stopped()?;
        agent.launch(None)?;
        Ok(agent)
    }

    /// A fresh home without an agent. Short, since a socket's path is limited.
    pub(crate) fn stopped() -> Result<Self> {
        let place = lab::inside().unwrap_or_else(|| "/tmp".into());
        Ok(Self { home: tempfile::Builder::new().prefix("cat").tempdir_in(place)?, child: None })
    }

    /// Starts the agent, with a crash point if one is named, and waits until it answers or is dead.
    pub(crate) fn launch(&mut self, crash_at: Option<&str>) -> Result<()> {
        self.launch_with(crash_at, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn launch_with(&mut self, crash_at: Option<&str>, variables: &[(&str, &Path)]) -> Result<()> {
        let home = self.path("").to_string_lossy().into_owned();
        self.launch_by(&["--root", &home], crash_at, variables)
    }

    /// The same as a service of root, with all that a private agent leaves out, though in this home.
    pub(crate) fn launch_as_service(&mut self) -> Result<()> {
        let [run, srs, config] = ["run/catena", "sr.d", "catenad.toml"].map(|name| self.path(name));
        fs::create_dir_all(&run)?;
        fs::create_dir_all(&srs)?;
        let text =
            format!("socket = {:?}\nrun_dir = {run:?}\nsr_dir = {srs:?}\ngroup = \"root\"\n", self.socket());
        fs::write(&config, text)?;
        self.launch_by(&["--config", &config.to_string_lossy()], None, &[])
    }

    fn launch_by(
        &mut self,
        arguments: &[&str],
        crash_at: Option<&str>,
        variables: &[(&str, &Path)],
    ) -> Result<()> {
        ensure!(self.child.is_none(), "the agent runs already");
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_catenad"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env_remove("CATENA_CRASH_AT").env_remove("CATENA_SOCKET");
        command.envs(variables.iter().copied());
        if let Some(point) = crash_at {
            command.env("CATENA_CRASH_AT", point);
        }
        self.child = Some(command.spawn().context("starting catenad")?);
        let end = Instant::now() + PATIENCE;
        // A connection alone proves nothing: a child that a killed agent was just starting has its socket for a moment. But what an
        // agent with a crash point is asked first is the test's business.
        let is_there = |agent: &Self| match crash_at {
            Some(_) => UnixStream::connect(agent.socket()).is_ok(),
            None => agent.call("Agent.version", &json!({})).is_ok(),
        };
        while !is_there(self) {
            if self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
                ensure!(crash_at.is_some(), "catenad ended at once: {}", self.log());
                return Ok(());
            }
            ensure!(Instant::now() < end, "catenad does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// A path in the home.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.path().join(name)
    }

    /// The agent's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/catena/agent.sock")
    }

    /// What agent, keepers and workers have logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs `catena` with these arguments.
    pub(crate) fn catena(&self, arguments: &[&str]) -> Result<Said> {
        let output = self.command(arguments).output().context("starting catena")?;
        Ok(Said::from(output))
    }

    /// The command itself, to be changed before it is run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_catena"));
        command.arg("--root").arg(self.home.path()).args(arguments).stdin(Stdio::null());
        command.env_remove("CATENA_SOCKET").env_remove("CATENA_CRASH_AT");
        command
    }

    /// Runs `catena`, which must succeed, and returns what it printed, trimmed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<String> {
        let said = self.catena(arguments)?;
        ensure!(said.code == 0, "catena {arguments:?}: exit {}: {}\n{}", said.code, said.err, self.log());
        Ok(said.out.trim().to_owned())
    }

    /// Runs `catena --json`, which must succeed, and returns the document.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)?).with_context(|| format!("the document of {arguments:?}"))
    }

    /// One request over the socket; `Err` in the `Ok` is the agent's refusal (`error` of the answer).
    pub(crate) fn call(&self, method: &str, params: &Value) -> Result<Result<Value, Value>> {
        self.call_with(method, params, &[])
    }

    /// The same with descriptors, which the parameters name by their index. An outer `Err` is a broken connection: whether the
    /// request was carried out is unknown.
    pub(crate) fn call_with(
        &self,
        method: &str,
        params: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<Value, Value>> {
        let socket = UnixStream::connect(self.socket())?;
        socket.set_read_timeout(Some(Duration::from_secs(120)))?;
        let line = format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}));
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        ensure!(sent == line.len(), "a request was sent only in part");
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        let mut answer: Value =
            serde_json::from_str(&line).with_context(|| format!("the answer to {method}"))?;
        match answer.get_mut("error").map(Value::take) {
            Some(error) => Ok(Err(error)),
            None => Ok(Ok(answer["result"].take())),
        }
    }

    /// Writes bytes to a detached disk.
    pub(crate) fn write(&self, vdi: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.home.path())?;
        file.write_all(bytes)?;
        let name = file.path().to_string_lossy().into_owned();
        self.ok(&["vdi", "write", vdi, "--offset", &offset.to_string(), &name]).map(drop)
    }

    /// Reads bytes of a detached disk.
    pub(crate) fn read(&self, vdi: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let (offset, length) = (offset.to_string(), length.to_string());
        let arguments = ["vdi", "read", vdi, "--offset", &offset, "--length", &length, "-"];
        let output = self.command(&arguments).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// The SHA-256 of what a VDI or base copy exports.
    pub(crate) fn hash(&self, vdi: &str) -> Result<String> {
        let file = self.path(format!("hash-{vdi}"));
        self.ok(&["vdi", "export", vdi, &file.to_string_lossy(), "--format", "raw"])?;
        let hash = sha256(&file)?;
        fs::remove_file(&file)?;
        Ok(hash)
    }

    /// The process of the front, if it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).map(Pid::from_raw)
    }

    /// The processes that serve its disks.
    pub(crate) fn served(&self) -> Vec<Pid> {
        attached::served_below(self.home.path())
    }

    /// The processes of all keepers, or of all workers: descendants of the front by the name of their program, without those that
    /// serve disks.
    pub(crate) fn processes(&self, program: &str) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut level: Vec<Pid> = self.pid().into_iter().collect();
        while !level.is_empty() {
            level = level.into_iter().flat_map(children).collect();
            found.extend(
                level
                    .iter()
                    .copied()
                    .filter(|pid| name_of(*pid).is_some_and(|name| program.starts_with(&name)))
                    .filter(|pid| !attached::is_serving(*pid)),
            );
        }
        found
    }

    /// Kills the front as `kill -9` does; keepers and workers end by themselves, and are waited for.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let family: Vec<Pid> =
            ["catena-keeper", "catena-datapath"].iter().flat_map(|name| self.processes(name)).collect();
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        wait_for_end(&family)
    }

    /// Kills the front alone and waits for nobody else: one of its family may hang.
    pub(crate) fn abandon(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops the agent as an administrator does, and checks that it ends well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let family: Vec<Pid> =
            ["catena-keeper", "catena-datapath"].iter().flat_map(|name| self.processes(name)).collect();
        let Some(pid) = self.pid() else { return Ok(()) };
        kill(pid, Signal::SIGTERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let end = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > end => {
                    child.kill()?;
                    bail!("catenad does not stop: {}", self.log());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        ensure!(status.success(), "catenad ended with {status}: {}", self.log());
        wait_for_end(&family)
    }

    /// Whether the front still runs.
    pub(crate) fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Takes a front that has died by itself off the books, with its family.
    pub(crate) fn bury(&mut self) -> Result<()> {
        self.kill()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let killed = self.kill();
        if let Err(error) = attached::end_served(self.home.path()).and(killed) {
            eprintln!("an agent could not be ended: {error:#}");
        }
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Waits until `what` holds, which no event tells to a test; fails after [`PATIENCE`].
pub(crate) fn wait_until(why: &str, mut what: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !what()? {
        ensure!(Instant::now() < end, "waited in vain: {why}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            length => hash.update(&chunk[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Unpacks the golden images into a directory.
pub(crate) fn unpack_golden(into: &Path) -> Result<()> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xenserver-vhd.tar.zst");
    let reader = zstd::Decoder::new(File::open(archive)?)?;
    tar::Archive::new(reader).unpack(into).context("unpacking the golden images")
}

/// Unpacks one of the golden images to a path.
pub(crate) fn golden_file(name: &str, to: &Path) -> Result<()> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xenserver-vhd.tar.zst");
    let mut archive = tar::Archive::new(zstd::Decoder::new(File::open(archive)?)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.strip_prefix(".").is_ok_and(|path| path == Path::new(name)) {
            return entry.unpack(to).map(drop).context("unpacking a golden image");
        }
    }
    bail!("there is no golden image {name}")
}

/// Runs a program that was not written here, which must succeed; its absence is an error that names the package.
pub(crate) fn peer(package: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be run: install the Debian package {package}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {text}{error}", output.status);
    Ok(text)
}

/// `qemu-img`, which must succeed.
pub(crate) fn qemu_img(arguments: &[&str]) -> Result<String> {
    peer("qemu-utils", "qemu-img", arguments)
}

/// A path as a word of a command.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The seed of a random test: `CATENA_SEED`, or a fresh one; printed so that a failure can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let given = std::env::var("CATENA_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    println!("{test}: CATENA_SEED={seed}");
    seed
}

/// Whether the long forms are asked for.
pub(crate) fn nightly() -> bool {
    std::env::var_os("CATENA_NIGHTLY").is_some()
}

/// Waits until none of these processes is left.
pub(crate) fn wait_for_end(family: &[Pid]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for pid in family {
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            ensure!(Instant::now() < end, "process {pid} does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

fn children(pid: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw));
    }
    found
}

/// The first fifteen characters of a process's program name, as the kernel keeps them.
fn name_of(pid: Pid) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}
