//! Starts keepers: one end of a socketpair becomes the child's standard input, which is all it needs to find the front.
//!
//! A keeper ends when that socket does. The front never kills one: it may be in the middle of a write to a slow device, and
//! it is made to be left. Called by `supervise` and `lifecycle`.

use crate::events::Hub;
use crate::keeper::{CallError, Link, Ticket};
use crate::reload::KeeperLog;
use crate::srd::SrEntry;
use catena_rpc::KeeperStart;
use catena_types::{ErrorName, Failure, SrUuid};
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

/// How long a keeper may take to end after its socket did, before it is left alone.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Makes keeper processes. The tests have one that makes threads.
pub(crate) trait Launcher: Send + Sync {
    /// Starts one; returns the near end of its socket.
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)>;
}

/// Starts `catena-keeper`.
#[derive(Debug)]
pub(crate) struct KeeperProgram {
    /// Its path.
    pub(crate) path: PathBuf,
    /// What it is to log.
    pub(crate) log: KeeperLog,
}

impl Launcher for KeeperProgram {
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)> {
        let (near, far) = UnixStream::pair()?;
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let child = Command::new(&self.path)
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::null())
            .env("CATENA_LOG", log)
            // An interrupt from the terminal is for the front, which then ends its keepers in order.
            .process_group(0)
            .spawn()?;
        Ok((near, Some(child)))
    }
}

/// A running keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// How to talk to it.
    pub(crate) link: Arc<Link>,
    /// Its process.
    pub(crate) pid: Option<u32>,
    child: Option<Child>,
}

/// Starts keepers for this host.
pub(crate) struct Starter {
    /// Makes the processes.
    pub(crate) launcher: Box<dyn Launcher>,
    /// This host, as SRs know their owner.
    pub(crate) host_id: String,
    /// This boot of it.
    pub(crate) boot_id: String,
    /// Whether merges may have control groups.
    pub(crate) groups: bool,
    /// Where served disks have their sockets.
    pub(crate) run_dir: PathBuf,
    /// The group that may connect to them.
    pub(crate) socket_group: Option<u32>,
    /// Gets their events.
    pub(crate) hub: Arc<Hub>,
}

impl Starter {
    /// Starts a keeper and tells it which SR it is for. The ticket is its answer to that: who sends the next request need
    /// not wait for it.
    /// `elsewhere` are the SRs that are known at other locations.
    pub(crate) fn start(&self, entry: &SrEntry, elsewhere: Vec<SrUuid>) -> Result<(Keeper, Ticket), Failure> {
        let failed = |error: io::Error| {
            Failure::new(ErrorName::SrUnavailable, format!("no keeper can be started: {error}"))
                .hint("is catena-keeper installed beside catenad?")
                .object("sr", entry.uuid)
        };
        let (stream, child) = self.launcher.launch().map_err(failed)?;
        crate::points::KEEPER_STARTED.pass();
        let hub = Arc::clone(&self.hub);
        let link = Link::open(stream, move |event| hub.publish(event)).map_err(failed)?;
        let pid = child.as_ref().map(Child::id);
        let keeper = Keeper { link: Arc::new(link), pid, child };
        let start = KeeperStart {
            sr: entry.uuid,
            kind: entry.kind.clone(),
            location: entry.location.clone(),
            devices: entry.devices(),
            host_id: self.host_id.clone(),
            boot_id: self.boot_id.clone(),
            elsewhere,
            groups: self.groups,
            run_dir: self.run_dir.clone(),
            socket_group: self.socket_group,
        };
        let params = serde_json::to_value(start).map_err(|error| failed(error.into()))?;
        match keeper.link.begin("Keeper.start", params, Vec::new()) {
            Ok(ticket) => Ok((keeper, ticket)),
            Err(error) => {
                keeper.end();
                Err(error.into_failure(entry.uuid))
            }
        }
    }
}

impl Keeper {
    /// Sends the keeper's first request, waits for it and for the answer to its start.
    pub(crate) fn first_call(
        &self,
        started: Ticket,
        method: &str,
        params: Value,
    ) -> Result<Value, CallError> {
        let first = self.link.begin(method, params, Vec::new())?;
        started.wait(None)?;
        first.wait(None).map(|answer| answer.value())
    }

    /// Closes the link and waits a little for the process. One that does not end is reported and left.
    pub(crate) fn end(self) {
        self.link.close();
        let Some(mut child) = self.child else { return };
        let pid = child.id();
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => thread::sleep(LOOK),
                Ok(Some(status)) if status.success() => return tracing::debug!(pid, "a keeper has ended"),
                Ok(Some(status)) => return tracing::warn!(pid, %status, "a keeper has ended badly"),
                Err(error) => return tracing::error!(pid, %error, "a keeper cannot be waited for"),
            }
        }
        tracing::error!(pid, "a keeper does not end and is left; its storage may hang");
        let reaper = thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
        if let Err(error) = reaper {
            tracing::warn!(pid, %error, "nobody will collect the keeper when it ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_ends_with_its_socket_and_is_collected() {
        // Any program that reads its standard input to the end will do.
        let program = KeeperProgram { path: "/bin/cat".into(), log: KeeperLog::default() };
        let starter = Starter {
            groups: false,
            run_dir: PathBuf::new(),
            socket_group: None,
            launcher: Box::new(program),
            host_id: "host".into(),
            boot_id: "boot".into(),
            hub: Arc::new(Hub::default()),
        };
        let (keeper, _started) = starter.start(&crate::testing::entry("a"), Vec::new()).unwrap();
        let process = PathBuf::from(format!("/proc/{}", keeper.pid.unwrap()));
        assert!(process.exists());
        keeper.end();
        assert!(!process.exists());
    }

    #[test]
    fn a_missing_program_is_a_failure_with_a_hint() {
        let program = KeeperProgram { path: "/nonexistent/catena-keeper".into(), log: KeeperLog::default() };
        let starter = Starter {
            groups: false,
            run_dir: PathBuf::new(),
            socket_group: None,
            launcher: Box::new(program),
            host_id: String::new(),
            boot_id: String::new(),
            hub: Arc::new(Hub::default()),
        };
        let failure = starter.start(&crate::testing::entry("a"), Vec::new()).unwrap_err();
        assert_eq!(failure.name, ErrorName::SrUnavailable);
        assert!(failure.hint.contains("catena-keeper"), "{}", failure.hint);
    }
}
