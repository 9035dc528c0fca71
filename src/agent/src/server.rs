//! The socket: one agent at a time, nobody but those let in, at most so many connections.
//!
//! A lock file keeps a second agent away; it is freed by the kernel however the agent ends, so a socket found while holding the
//! lock is stale, unless somebody still answers there. Called by `run`.

use crate::access::{self, Rules};
use crate::front::Front;
use crate::session::{self, Counted, Limits, Session};
use catena_types::{ErrorName, Failure};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, listen, shutdown, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Gid;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait before accepting again when the process has too many descriptors open.
const BREATH: Duration = Duration::from_millis(100);

/// How long an agent that died may hold its lock through its children.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// How often it is looked whether it is free.
const LOOK: Duration = Duration::from_millis(10);

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// Another agent runs.
    #[error("another catenad is running: {0}")]
    Running(String),
    /// Something else is where the socket should be.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound socket. Dropped, it removes the socket's file.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held for life.
    _lock: File,
}

/// Who may open the socket's file. The credentials of the peer decide in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Door {
    /// The file's group, if it is to be changed.
    pub(crate) group: Option<Gid>,
    /// Members of another group may read: the file lets everybody in, for the file system knows one group only.
    pub(crate) readers: bool,
}

impl Server {
    /// Takes the lock in `run_dir` and binds the socket.
    pub(crate) fn bind(run_dir: &Path, path: &Path, door: Door) -> Result<Self, ServerError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Io { path, source }
        };
        fs::create_dir_all(run_dir).map_err(failed(run_dir))?;
        let lock_path = run_dir.join("agent.lock");
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        take(&lock, path).map_err(|error| match error {
            TryLockError::WouldBlock => ServerError::Running(format!("{} is locked", lock_path.display())),
            TryLockError::Error(source) => ServerError::Io { path: lock_path.clone(), source },
        })?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        remove_stale(path)?;
        let listener = bind_for_owner(path).map_err(|error| failed(path)(error.into()))?;
        let server = Self { listener, path: path.to_owned(), _lock: lock };
        server.open_for(door)?;
        Ok(server)
    }

    /// Gives the socket's file its group and mode.
    pub(crate) fn open_for(&self, door: Door) -> Result<(), ServerError> {
        let failed = |source| ServerError::Io { path: self.path.clone(), source };
        if let Some(group) = door.group {
            std::os::unix::fs::chown(&self.path, None, Some(group.as_raw())).map_err(failed)?;
        }
        let mode = if door.readers { 0o666 } else { 0o660 };
        fs::set_permissions(&self.path, Permissions::from_mode(mode)).map_err(failed)
    }

    /// Accepts connections until [`Server::close`].
    pub(crate) fn serve(&self, front: &Arc<Front>, rules: &RwLock<Rules>, limits: Limits) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let rules = rules.read().unwrap_or_else(PoisonError::into_inner).clone();
                    welcome(front, &rules, limits, stream);
                }
                Err(_) if front.stopping.load(Ordering::SeqCst) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "a connection was not accepted");
                    thread::sleep(BREATH);
                }
            }
        }
    }

    /// Accepts no more.
    pub(crate) fn close(&self) {
        // Wakes the accepting thread; an error would mean that it does not sleep.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, socket = %self.path.display(), "the socket was not removed");
        }
    }
}

/// Binds a socket whose file has the mode 0600 from the start: nobody else comes in before the group is right. (The mode of
/// an unbound socket becomes that of its file.)
fn bind_for_owner(path: &Path) -> nix::Result<UnixListener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

/// Takes the agent's lock. While nobody answers at `socket` its holder is taken for one that has just died: a child of it that
/// had not become its program yet has the lock for a moment more.
fn take(lock: &File, socket: &Path) -> Result<(), TryLockError> {
    let deadline = Instant::now() + LAST_BREATH;
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock)
                if Instant::now() < deadline && UnixStream::connect(socket).is_err() =>
            {
                thread::sleep(LOOK);
            }
            outcome => return outcome,
        }
    }
}

/// Removes a socket that nobody answers.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::Running(format!("it answers at {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Gives a connection its thread, or refuses it.
fn welcome(front: &Arc<Front>, rules: &Rules, limits: Limits, stream: UnixStream) {
    let Some(place) = Counted::take(&front.connections, limits.connections) else {
        let text = format!("{} connections are open", limits.connections);
        return session::refuse(stream, Failure::new(ErrorName::TryAgain, text));
    };
    let peer = match access::peer(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::warn!(%error, "the peer of a connection is unknown"),
    };
    let Some(access) = rules.access(&peer) else {
        tracing::warn!(pid = peer.pid, uid = %peer.uid, "not let in");
        return session::refuse(stream, session::not_allowed(&peer));
    };
    let front = Arc::clone(front);
    let serve = move || {
        if let Err(error) = Session::serve(front, stream, (peer, access), limits, place) {
            tracing::warn!(%error, "a connection was not served");
        }
    };
    if let Err(error) = thread::Builder::new().name("session".to_owned()).spawn(serve) {
        tracing::error!(%error, "a connection gets no thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const DOOR: Door = Door { group: None, readers: false };

    fn bind_in(directory: &Path) -> Result<Server, ServerError> {
        Server::bind(&directory.join("run"), &directory.join("run/agent.sock"), DOOR)
    }

    #[test]
    fn a_second_agent_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = bind_in(directory.path()).unwrap();
        let path = directory.path().join("run/agent.sock");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert!(matches!(bind_in(directory.path()), Err(ServerError::Running(_))));
        // Another lock, the same socket: somebody answers there.
        let other = Server::bind(&directory.path().join("other"), &path, DOOR);
        assert!(matches!(other, Err(ServerError::Running(_))));
        drop(first);
        assert!(!path.exists());
        bind_in(directory.path()).unwrap();
    }

    #[test]
    fn the_lock_of_an_agent_that_died_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("run")).unwrap();
        let held = File::create(directory.path().join("run/agent.lock")).unwrap();
        held.lock().unwrap();
        let path = directory.path().join("run/agent.lock");
        let opened = || {
            fs::read_dir("/proc/self/fd")
                .unwrap()
                .flatten()
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .filter(|target| *target == path)
                .count()
        };
        thread::scope(|scope| {
            let second = scope.spawn(|| bind_in(directory.path()));
            while opened() < 2 {
                thread::yield_now();
            }
            drop(held);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn nobody_but_the_owner_comes_in_before_the_group_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let _listener = bind_for_owner(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        drop(bind_in(directory.path()).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_in(directory.path()), Err(ServerError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_file_lets_everybody_in_only_where_there_are_readers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let _server =
            Server::bind(directory.path(), &path, Door { group: Some(Gid::current()), readers: true })
                .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }
}
