//! The processes that serve the disks of a private agent. They survive the agent, so a test that fails must end them.

use super::wait_for_end;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;

/// All processes that serve a disk of an agent with this home.
pub(crate) fn served_below(home: &Path) -> Vec<Pid> {
    let everybody = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = everybody.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    numbers.filter(|pid| is_serving(*pid) && holds_below(*pid, home)).collect()
}

/// Whether the process serves a disk.
pub(crate) fn is_serving(pid: Pid) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    words.next().is_some_and(|program| program.ends_with(b"catena-datapath"))
        && words.next() == Some(b"serve")
}

/// Whether the process has a file below the directory open.
fn holds_below(pid: Pid, home: &Path) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(home)))
}

/// Ends them as `kill -9` does.
pub(crate) fn end_served(home: &Path) -> Result<()> {
    let served = served_below(home);
    for pid in &served {
        // One that has just ended by itself is as good.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    wait_for_end(&served)
}
