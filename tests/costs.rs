//! What operations cost, counted and not timed: commits, barriers, requests to the worker and programs started are the same in a
//! large repository as in a small one, and one job of forty clones costs little more than one clone.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::Agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What keeper and worker did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Costs {
    /// Transactions: barriers of the catalog's log.
    commits: usize,
    /// Barriers of images.
    images: usize,
    /// Barriers of the SR's directory.
    directory: usize,
    /// Barriers of anything else.
    others: usize,
    /// Requests that the worker took.
    requests: usize,
    /// Programs that were started.
    programs: usize,
}

/// strace, attached to the keeper of an agent and its worker.
struct Trace {
    program: Child,
    worker: Pid,
    file: PathBuf,
}

impl Trace {
    fn begin(agent: &Agent) -> Result<Self> {
        let file = agent.path("trace");
        let keeper = *agent.processes("catena-keeper").first().context("a keeper")?;
        let worker = *agent.processes("catena-datapath").first().context("a worker")?;
        let program = Command::new("strace")
            .args(["-f", "-y", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,execve,recvmsg", "-o"])
            .arg(&file)
            .args(["-p", &keeper.to_string(), "-p", &worker.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("strace cannot be run: install the Debian package strace")?;
        let mut trace = Self { program, worker, file };
        let end = Instant::now() + Duration::from_secs(30);
        while !(is_traced(keeper)? && is_traced(worker)?) {
            ensure!(trace.program.try_wait()?.is_none(), "strace may not look at other processes here");
            ensure!(Instant::now() < end, "strace does not begin");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(trace)
    }

    fn end(mut self) -> Result<Costs> {
        kill(Pid::from_raw(i32::try_from(self.program.id())?), Signal::SIGINT)?;
        self.program.wait()?;
        let mut costs = Costs::default();
        for line in fs::read_to_string(&self.file)?.lines() {
            let (pid, call) = line.split_once(' ').context("a process and its call")?;
            let call = call.trim_start();
            let name = call.trim_start_matches("<... ").split([' ', '(']).next().unwrap_or_default();
            match name {
                "execve" => costs.programs += 1,
                // A call that was begun before its end is told in two lines, of which the second has the result.
                "recvmsg" if pid.parse() == Ok(self.worker.as_raw()) => {
                    let result = call.rsplit_once(" = ").map(|(_, result)| result);
                    costs.requests +=
                        usize::from(result.is_some_and(|bytes| !bytes.starts_with(['0', '-', '?'])));
                }
                "fsync" | "fdatasync" | "sync_file_range" | "syncfs" if !call.starts_with("<...") => {
                    let path = call.split(['<', '>']).nth(1).unwrap_or_default();
                    let counter = match path {
                        _ if path.ends_with("/catalog.db-wal") => &mut costs.commits,
                        _ if path.ends_with(".vhd") => &mut costs.images,
                        _ if path.ends_with("/sr") => &mut costs.directory,
                        _ => &mut costs.others,
                    };
                    *counter += 1;
                }
                _ => {}
            }
        }
        Ok(costs)
    }
}

/// Whether all threads of a process have a tracer.
fn is_traced(pid: Pid) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.lines().any(|line| line == "TracerPid:\t0") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What one command costs.
fn cost(agent: &Agent, command: &[&str]) -> Result<Costs> {
    let trace = Trace::begin(agent)?;
    let done = agent.ok(command);
    let costs = trace.end()?;
    done?;
    println!("{}: {costs:?}", command[..2].join(" "));
    Ok(costs)
}

#[test]
fn an_operation_costs_the_same_among_ten_and_a_thousand() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    agent.ok(&["coalesce", "pause", "store"])?;
    let create = ["vdi", "create", "--sr", "store", "--size", "16MiB", "--name"];
    let mut rounds = Vec::new();
    for others in [10, 1000] {
        let golden = agent.ok(&[&create[..], &["golden"]].concat())?;
        agent.ok(&["vdi", "clone", &golden, "--count", &others.to_string()])?;
        let disk = agent.ok(&[&create[..], &["disk"]].concat())?;
        agent.write(&disk, 0, &[1; 4096])?;
        rounds.push([
            cost(&agent, &[&create[..], &["another"]].concat())?,
            cost(&agent, &["vdi", "snapshot", &disk])?,
            cost(&agent, &["vdi", "clone", &disk])?,
            cost(&agent, &["vdi", "clone", &disk, "--count", "40"])?,
            cost(&agent, &["vdi", "destroy", &disk])?,
        ]);
    }
    ensure!(rounds[0] == rounds[1], "{rounds:?}");
    let [created, snapshot, clone, clones, destroyed] = &rounds[0];
    ensure!(rounds[0].iter().all(|costs| costs.programs == 0 && costs.others == 0), "{rounds:?}");
    // A job's row, then its commit; a snapshot has its base sealed on the disk after that.
    ensure!([created, snapshot, clone, clones, destroyed].map(|costs| costs.commits) == [2, 3, 2, 2, 1]);
    ensure!([created, snapshot, clone, clones].map(|costs| costs.directory) == [1; 4]);
    // Each new image has one barrier; a base that is sealed has those of its header.
    ensure!([created, clone, clones].map(|costs| costs.images) == [1, 1, 40] && snapshot.images <= 5);
    // The first look of a clone is whether its leaf owns anything.
    ensure!([created, snapshot, clone, clones].map(|costs| costs.requests) == [1, 2, 2, 2]);
    ensure!(destroyed.images == 0 && destroyed.directory == 0 && destroyed.requests == 0);
    agent.stop()
}
