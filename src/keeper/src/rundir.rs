//! The directory of a served disk under the agent's run directory: its sockets, its record of acknowledged writes, its state.
//!
//! | file | what it is |
//! |---|---|
//! | `nbd.sock` | where clients connect; always the socket of the present process: a new one takes its name by a rename |
//! | `control.sock` | where the keeper connects; root's alone |
//! | `pending` | D7: what is acknowledged and not yet on the image; of fixed size, made with the attachment and never again (D8) |
//! | `state.json` | for people: what is served by whom |
//!
//! All of it lies in memory (tmpfs) and goes with a reboot, as the processes do. Used by `attach` and `adoption`.

use catena_control::{Channel, ChannelError, PENDING_BYTES};
use catena_types::VdiUuid;
use nix::fcntl::posix_fallocate;
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The longest path that a socket can have.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where the directories of served disks are.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    /// Their parent.
    disks: PathBuf,
    /// The group that may connect to them.
    group: Option<u32>,
}

/// The listening sockets of a process that is about to be started.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// For clients.
    pub(crate) nbd: OwnedFd,
    /// For the keeper.
    pub(crate) control: OwnedFd,
}

impl RunDir {
    /// Below the agent's run directory.
    pub(crate) fn new(run_dir: &Path, group: Option<u32>) -> Self {
        Self { disks: run_dir.join("vdi"), group }
    }

    /// The directory of a disk.
    pub(crate) fn of(&self, vdi: VdiUuid) -> PathBuf {
        self.disks.join(vdi.to_string())
    }

    /// Where clients connect, as QEMU and libnbd take it.
    pub(crate) fn uri(&self, vdi: VdiUuid) -> String {
        let mut uri = "nbd+unix:///?socket=".to_owned();
        for byte in self.of(vdi).join("nbd.sock").as_os_str().as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                    uri.push(char::from(*byte));
                }
                // Writing to a string does not fail.
                other => drop(write!(uri, "%{other:02X}")),
            }
        }
        uri
    }

    /// Whether a path in the directory of the disk is short enough for a socket.
    pub(crate) fn is_short_enough(&self, vdi: VdiUuid) -> bool {
        self.of(vdi).join("control.sock").as_os_str().len() <= SOCKET_PATH_LIMIT
    }

    /// Makes the directory of a disk that is being attached, and its record of acknowledged writes, which is empty. What an
    /// attachment that was undone has left there is replaced.
    pub(crate) fn make(&self, vdi: VdiUuid) -> io::Result<()> {
        let dir = self.of(vdi);
        self.remove(vdi)?;
        DirBuilder::new().recursive(true).create(&self.disks)?;
        fs::set_permissions(&self.disks, Permissions::from_mode(0o755))?;
        DirBuilder::new().mode(0o700).create(&dir)?;
        let pending =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(dir.join("pending"))?;
        posix_fallocate(&pending, 0, i64::try_from(PENDING_BYTES).unwrap_or(i64::MAX))?;
        if let Some(group) = self.group {
            chown(&dir, None, Some(group))?;
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o750))
    }

    /// The record of acknowledged writes; none if the disk was never served in this boot.
    pub(crate) fn pending(&self, vdi: VdiUuid) -> io::Result<Option<File>> {
        match File::options().read(true).write(true).open(self.of(vdi).join("pending")) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sockets for a process. They get their names at once: who connects from here on is answered by that process.
    pub(crate) fn listen(&self, vdi: VdiUuid) -> io::Result<Sockets> {
        let dir = self.of(vdi);
        let fresh = |name: &str| {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(path),
            }
        };
        let path = fresh("nbd.new")?;
        let nbd = UnixListener::bind(&path)?;
        if let Some(group) = self.group {
            chown(&path, None, Some(group))?;
        }
        fs::set_permissions(&path, Permissions::from_mode(0o660))?;
        fs::rename(&path, dir.join("nbd.sock"))?;
        let path = fresh("control.new")?;
        let control = Channel::listen(&path).map_err(into_io)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        fs::rename(&path, dir.join("control.sock"))?;
        Ok(Sockets { nbd: nbd.into(), control })
    }

    /// Connects to the process of the disk; `None` if there is none.
    pub(crate) fn connect(&self, vdi: VdiUuid) -> io::Result<Option<Channel>> {
        match Channel::connect(&self.of(vdi).join("control.sock")).map_err(into_io) {
            Ok(channel) => Ok(Some(channel)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Says for people what is served.
    pub(crate) fn write_state(&self, vdi: VdiUuid, state: &serde_json::Value) -> io::Result<()> {
        let dir = self.of(vdi);
        let next = dir.join("state.json.new");
        fs::write(&next, format!("{state:#}\n"))?;
        fs::rename(next, dir.join("state.json"))
    }

    /// The process that serves the disk, by what was said of it last; none unless that number is still such a process.
    pub(crate) fn process(&self, vdi: VdiUuid) -> Option<u32> {
        let state = fs::read(self.of(vdi).join("state.json")).ok()?;
        let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
        let pid = u32::try_from(state["pid"].as_u64()?).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let (mut words, name) = (line.split(|byte| *byte == 0), vdi.to_string());
        (words.nth(1) == Some(b"serve") && words.any(|word| word == name.as_bytes())).then_some(pid)
    }

    /// The disks that have a directory, of whatever SR.
    pub(crate) fn list(&self) -> Vec<VdiUuid> {
        let entries = fs::read_dir(&self.disks).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes all of it.
    pub(crate) fn remove(&self, vdi: VdiUuid) -> io::Result<()> {
        match fs::remove_dir_all(self.of(vdi)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn into_io(error: ChannelError) -> io::Error {
    match error {
        ChannelError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_takes_over_the_names_of_the_sockets() {
        let home = tempfile::tempdir().unwrap();
        let (dir, vdi) = (RunDir::new(home.path(), None), VdiUuid::random());
        dir.make(vdi).unwrap();
        assert!(dir.connect(vdi).unwrap().is_none());
        let first = dir.listen(vdi).unwrap();
        let second = dir.listen(vdi).unwrap();
        drop(first);
        assert!(dir.connect(vdi).unwrap().is_some());
        drop(second);
        assert!(dir.connect(vdi).unwrap().is_none());
    }

    #[test]
    fn the_record_of_writes_is_made_once_and_goes_with_the_directory() {
        let home = tempfile::tempdir().unwrap();
        let (dir, vdi) = (RunDir::new(home.path(), None), VdiUuid::random());
        assert!(dir.pending(vdi).unwrap().is_none());
        dir.make(vdi).unwrap();
        assert_eq!(dir.pending(vdi).unwrap().unwrap().metadata().unwrap().len(), PENDING_BYTES);
        dir.remove(vdi).unwrap();
        dir.remove(vdi).unwrap();
        assert!(dir.pending(vdi).unwrap().is_none());
    }

    #[test]
    fn a_path_with_odd_characters_is_written_as_a_uri_wants_it() {
        let dir = RunDir::new(Path::new("/tmp/a b%"), None);
        let vdi = VdiUuid::from_bytes([0; 16]);
        let socket = "/tmp/a%20b%25/vdi/00000000-0000-0000-0000-000000000000/nbd.sock";
        assert_eq!(dir.uri(vdi), format!("nbd+unix:///?socket={socket}"));
    }
}
