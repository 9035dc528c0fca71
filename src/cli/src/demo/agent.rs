//! An agent of the demonstration's own: a child process that lives in a temporary directory and is gone with it.

use crate::client::Client;
use crate::errors::CliError;
use crate::interrupt::Interrupt;
use anyhow::{Context, Result, bail, ensure};
use catena_types::ErrorName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an agent may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);

/// The agent; dropping it stops it and removes its directory.
#[derive(Debug)]
pub(super) struct PrivateAgent {
    child: Child,
    /// After `child`: the directory goes when nobody uses it any more.
    dir: TempDir,
}

impl PrivateAgent {
    /// Starts `program --root DIR` and waits until it answers.
    pub(super) fn start(program: &Path, interrupt: &Interrupt) -> Result<Self> {
        // The path of a socket is short, whatever TMPDIR says.
        let dir =
            tempfile::Builder::new().prefix("catena-").tempdir_in("/tmp").context("no directory in /tmp")?;
        let log = File::create(log_path(&dir)).context("cannot make the agent's log")?;
        let child = Command::new(program)
            .arg("--root")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut agent = Self { child, dir };
        agent.wait_for_answer(interrupt)?;
        Ok(agent)
    }

    fn wait_for_answer(&mut self, interrupt: &Interrupt) -> Result<()> {
        let socket = self.root().join("run/catena/agent.sock");
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&socket, interrupt) {
                Ok(_) => return Ok(()),
                Err(CliError::Failure(failure)) if failure.name == ErrorName::SrUnavailable => {}
                Err(other) => return Err(other.into()),
            }
            if let Some(status) = self.child.try_wait().context("cannot watch the agent")? {
                bail!("the agent ended ({status}) {}", self.log_tail());
            }
            ensure!(Instant::now() < end, "the agent does not answer {}", self.log_tail());
            interrupt.pause(TICK)?;
        }
    }

    /// The directory that the agent has for itself.
    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The last lines of its log, in brackets; nothing if it is empty.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(log_path(&self.dir)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        if lines.is_empty() {
            return String::new();
        }
        format!("(the agent's log ends: {})", lines[lines.len().saturating_sub(8)..].join(" | "))
    }

    /// Stops the agent in order and removes its directory; an agent that has to be killed, or fails, is an error.
    pub(super) fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        let log = self.log_tail();
        ensure!(status.success(), "the agent ended with {status} {log}");
        let root = self.root().to_owned();
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let status = self.end_agent();
        self.end_served();
        status
    }

    /// Ends the processes that serve disks, which outlive their agent. There are some only where a step has failed in between.
    fn end_served(&self) {
        for disk in fs::read_dir(self.root().join("run/catena/vdi")).into_iter().flatten().flatten() {
            let state = fs::read_to_string(disk.path().join("state.json")).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_str(&state).unwrap_or_default();
            if let Some(pid) = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())
                && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("catena-datapath"))
            {
                // One that has just ended by itself is as good.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    fn end_agent(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(TICK);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for PrivateAgent {
    fn drop(&mut self) {
        if self.end().is_err() {
            // The orderly way failed; what is left is to let nothing outlive us.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn log_path(dir: &TempDir) -> PathBuf {
    dir.path().join("catenad.log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A script in place of the agent, started as one.
    fn start(script: &str) -> Result<PrivateAgent> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("catenad");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        PrivateAgent::start(&program, &Interrupt::default())
    }

    #[test]
    fn an_agent_that_dies_early_is_an_error_with_its_log() {
        let error = start("echo no luck >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn an_interruption_leaves_no_process_and_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (program, told) = (dir.path().join("catenad"), dir.path().join("told"));
        let script =
            format!("#!/bin/sh\necho $$ $2 > {0}.new; mv {0}.new {0}; exec sleep 600\n", told.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let interrupt = Interrupt::default();
        let signal = interrupt.clone();
        let starter = thread::spawn(move || PrivateAgent::start(&program, &interrupt));
        let text = loop {
            match fs::read_to_string(&told) {
                Ok(text) => break text,
                Err(_) => thread::yield_now(),
            }
        };
        signal.raise();
        assert!(starter.join().unwrap().is_err());
        let (pid, root) = text.trim().split_once(' ').unwrap();
        assert!(kill(Pid::from_raw(pid.parse().unwrap()), None).is_err());
        assert!(!Path::new(root).exists());
    }
}
