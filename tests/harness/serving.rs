//! A `catena-datapath serve` started alone, by descriptor numbers, on images that an agent has made and left: so that what serves
//! is tried without what attaches.

use super::{Agent, PATIENCE};
use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A disk, its images, and the sockets that outlive whoever serves it.
pub(crate) struct Served {
    home: TempDir,
    /// Kept open here: a successor gets the same.
    nbd: UnixListener,
    control: OwnedFd,
    pending: File,
    /// The images, leaf first, and their ids.
    images: Vec<(PathBuf, String)>,
    vdi: String,
    child: Option<Child>,
}

impl Served {
    /// The chain of a VDI, which nobody else may be using. The sockets listen; nobody serves yet.
    pub(crate) fn new(agent: &Agent, directory: &Path, vdi: &str) -> Result<Self> {
        let tree = agent.json(&["vdi", "tree", vdi])?;
        let record = agent.json(&["vdi", "show", vdi])?;
        let image = record["image"].as_str().context("the image of a VDI")?;
        let roots = tree["roots"].as_array().context("roots")?;
        let chain = roots.iter().find_map(|root| path_to(root, image)).context("the VDI in its tree")?;
        let images = chain.iter().rev().map(|(id, file)| (directory.join(file), id.clone())).collect();
        let uuid = record["uuid"].as_str().context("a uuid")?.to_owned();
        Self::of(images, uuid)
    }

    /// Of these images, leaf first, with their ids.
    pub(crate) fn of(images: Vec<(PathBuf, String)>, vdi: String) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("nbd").tempdir_in("/tmp")?;
        let nbd = UnixListener::bind(home.path().join("nbd.sock"))?;
        let control = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(control.as_raw_fd(), &UnixAddr::new(&home.path().join("control.sock"))?)?;
        listen(&control, Backlog::new(16)?)?;
        // In memory, as it is where it counts.
        let pending = tempfile::tempfile_in("/dev/shm")?;
        Ok(Self { home, nbd, control, pending, images, vdi, child: None })
    }

    /// Starts who serves, and waits until it does.
    pub(crate) fn start(&mut self, arguments: &[&str]) -> Result<()> {
        self.launch(arguments, None)?;
        // Its first answer; until then it may be taking over what a predecessor left.
        match self.ask(&json!({"ask": "hello"})) {
            Ok(_) => Ok(()),
            Err(error) => bail!("it does not serve: {error:#}: {}", self.said()),
        }
    }

    /// Starts who serves, with a crash point if one is named, and waits for nothing.
    pub(crate) fn launch(&mut self, arguments: &[&str], crash_at: Option<&str>) -> Result<()> {
        ensure!(self.child.is_none(), "it is being served already");
        let read_only = arguments.contains(&"--read-only");
        let mut files = Vec::new();
        for (depth, (path, _)) in self.images.iter().enumerate() {
            files.push(File::options().read(true).write(depth == 0 && !read_only).open(path)?);
        }
        if let Some(leaf) = files.first().filter(|_| !read_only) {
            // As a keeper does: of who was killed, the last request may still be landing (D11).
            fcntl(leaf, FcntlArg::F_OFD_SETLKW(&whole_file()))?;
        }
        let mut words: Vec<String> = vec!["--vdi".into(), self.vdi.clone()];
        let sockets = [
            ("--nbd", self.nbd.as_raw_fd()),
            ("--control", self.control.as_raw_fd()),
            ("--pending", self.pending.as_raw_fd()),
        ];
        words.extend(sockets.iter().flat_map(|(name, fd)| [(*name).to_owned(), fd.to_string()]));
        for (file, (_, id)) in files.iter().zip(&self.images) {
            words.extend(["--image".into(), format!("{}:{id}:vhd", file.as_raw_fd())]);
        }
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        let fds = sockets.iter().map(|(_, fd)| *fd).chain(files.iter().map(AsRawFd::as_raw_fd)).collect();
        // Our copies of the images go at the end: a lock that we still had would outlive who serves.
        self.child = Some(spawn(&words, fds, &self.log(), crash_at)?);
        Ok(())
    }

    /// Starts it with arguments as they stand, which must be refused; what it said.
    pub(crate) fn refused(&mut self, arguments: &[String], fds: Vec<RawFd>) -> Result<String> {
        let before = self.said().len();
        let mut child = spawn(arguments, fds, &self.log(), None)?;
        let status = wait(&mut child)?;
        ensure!(status.code() == Some(1) || status.code() == Some(2), "it ended with {status}");
        Ok(self.said().split_off(before))
    }

    /// Kills who serves, as `kill -9` does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("nobody serves")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Ends it with a signal, as a system does that goes down; it must end well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.ended()
    }

    /// Waits until it has ended, which it must do well.
    pub(crate) fn ended(&mut self) -> Result<()> {
        let mut child = self.child.take().context("nobody serves")?;
        let status = wait(&mut child)?;
        ensure!(status.success(), "it ended with {status}: {}", self.said());
        Ok(())
    }

    /// Waits until it has died at its crash point.
    pub(crate) fn died(&mut self, point: &str) -> Result<()> {
        let mut child = self.child.take().context("nobody serves")?;
        let status = wait(&mut child)?;
        let there = self.said().contains(&format!("crash point {point}"));
        ensure!(!status.success() && there, "it ended with {status}: {}", self.said());
        Ok(())
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("nobody serves")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// Where clients connect.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("nbd.sock")
    }

    /// The same as clients write it.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// The file of the leaf, and its id.
    pub(crate) fn leaf(&self) -> Option<(PathBuf, String)> {
        self.images.first().cloned()
    }

    /// A path of this test's own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What all who served have said.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The descriptors that a start by hand needs: both sockets, the file of pending writes.
    pub(crate) fn descriptors(&self) -> [RawFd; 3] {
        [self.nbd.as_raw_fd(), self.control.as_raw_fd(), self.pending.as_raw_fd()]
    }

    /// Connects as a keeper.
    pub(crate) fn keeper(&self) -> Result<Keeper> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let patience = nix::sys::time::TimeVal::new(i64::try_from(PATIENCE.as_secs())?, 0);
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &patience)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.home.path().join("control.sock"))?)?;
        Ok(Keeper(fd))
    }

    /// One question over a connection of its own; the answer.
    pub(crate) fn ask(&self, question: &Value) -> Result<Value> {
        self.keeper()?.ask(question)
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection to the control socket.
pub(crate) struct Keeper(OwnedFd);

impl Keeper {
    /// Sends a question.
    pub(crate) fn send(&self, question: &Value) -> Result<()> {
        send(self.0.as_raw_fd(), question.to_string().as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// The next packet; `None` when the other end is closed.
    pub(crate) fn receive(&self) -> Result<Option<Value>> {
        let mut packet = vec![0; 1 << 16];
        match recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty())? {
            0 => Ok(None),
            length => Ok(Some(serde_json::from_slice(&packet[..length])?)),
        }
    }

    /// Sends a question and waits for its answer, which must not be a refusal.
    pub(crate) fn ask(&self, question: &Value) -> Result<Value> {
        self.send(question)?;
        loop {
            let mut said = self.receive()?.context("the connection ended without an answer")?;
            if said["answer"].is_null() {
                continue;
            }
            let answer = &mut said["answer"];
            ensure!(answer["Err"].is_null(), "{question} was refused: {}", answer["Err"]);
            return Ok(answer["Ok"].take());
        }
    }
}

/// A lock for writing on all of a file.
pub(crate) fn whole_file() -> nix::libc::flock {
    nix::libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Starts the program with these descriptors and no others.
fn spawn(arguments: &[String], fds: Vec<RawFd>, log: &Path, crash_at: Option<&str>) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_catena-datapath"));
    command.arg("serve").args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.env_remove("CATENA_CRASH_AT").envs(crash_at.map(|point| ("CATENA_CRASH_AT", point)));
    let inherit = move || {
        for fd in &fds {
            // SAFETY: the descriptors are open in the parent until the child has been started.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only fcntl is called, and nothing is allocated.
    unsafe { command.pre_exec(inherit) };
    command.spawn().context("starting catena-datapath")
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status),
            None if Instant::now() > end => {
                child.kill()?;
                child.wait()?;
                bail!("it does not end");
            }
            None => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    }
}

/// The images from this node down to the one that is looked for, with their files.
fn path_to(node: &Value, image: &str) -> Option<Vec<(String, String)>> {
    let own = (node["image"].as_str()?.to_owned(), node["container"].as_str()?.to_owned());
    if own.0 == image {
        return Some(vec![own]);
    }
    let below = node["children"].as_array()?.iter().find_map(|child| path_to(child, image))?;
    Some(std::iter::once(own).chain(below).collect())
}
