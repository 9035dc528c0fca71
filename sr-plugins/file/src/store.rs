//! An open SR in a directory: containers are its regular files.
//!
//! Invariants: every name is checked before it reaches the system; every file is reached through the directory that was opened
//! with the SR; what is no regular file is no container, whatever its name. Called by the keeper from any thread.

use crate::directory::{Directory, is_directory, is_regular};
use crate::home::{HOME, Home};
use crate::labels;
use crate::marker::MARKER;
use crate::reflink::{self, Tried};
use crate::survey;
use catena_sr_api::{
    Access, Capabilities, ContainerInfo, Error, Labels, RawDisk, Sizing, Space, Store, StoreStat,
};
use catena_types::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::fsync;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The unit of `st_blocks`, in bytes, whatever the file system's own.
const STAT_BLOCK: u64 = 512;
/// The most bytes in a name.
const LONGEST_NAME: usize = 255;

/// An SR that is owned, or only looked at.
#[derive(Debug)]
pub(crate) struct FileStore {
    location: Directory,
    home_path: PathBuf,
    tried: Tried,
    /// Absent while only looking.
    home: Option<Home>,
}

impl FileStore {
    /// The SR of this process.
    pub(crate) fn owned(location: Directory, home: Home) -> Self {
        let tried = reflink::try_out(home.directory(), MARKER);
        Self { home_path: location.path().join(HOME), location, tried, home: Some(home) }
    }

    /// A directory, SR or not, in which nothing may change.
    pub(crate) fn looked_at(location: Directory) -> Self {
        Self { home_path: location.path().join(HOME), location, tried: Tried::default(), home: None }
    }

    /// The owner's part; refuses to change what is only looked at.
    fn owner(&self) -> Result<&Home, Error> {
        self.home.as_ref().ok_or_else(only_looking)
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing(format!("there is no container {name:?} in {}", self.location.path().display()))
    }

    /// The status of a container; `None` if there is none, also if something else has the name.
    fn container(&self, name: &str) -> Result<Option<FileStat>, Error> {
        check_name(name)?;
        Ok(self.location.status(name)?.filter(is_regular))
    }

    /// Bytes that the files in `.catena` take.
    fn metadata(&self) -> Result<Bytes, Error> {
        if !self.location.status(HOME)?.as_ref().is_some_and(is_directory) {
            return Ok(Bytes(0));
        }
        let home = self.location.subdirectory(HOME)?;
        let mut sum = 0;
        for name in home.names()? {
            sum += home.status(&name)?.map_or(0, |status| allocated(&status).0);
        }
        Ok(Bytes(sum))
    }

    /// Makes an empty file, not durable yet.
    fn make(&self, name: &str) -> Result<OwnedFd, Error> {
        self.owner()?;
        check_name(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        self.location.open_file(name, flags).map_err(|errno| match errno {
            Errno::EEXIST => Error::Exists(format!("{name:?} exists in {}", self.location.path().display())),
            other => self.location.failed("making", name)(other),
        })
    }
}

impl Store for FileStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            sizing: Sizing::Automatic,
            clone_range: self.tried.clone_range,
            punch: self.tried.punch,
            shared: false,
            own_catalog: false,
        }
    }

    fn catalog_dir(&self) -> &Path {
        &self.home_path
    }

    fn may_be_image(&self, name: &str) -> bool {
        survey::may_be_image(name)
    }

    fn raw_disk(&self, name: &str) -> Option<RawDisk> {
        survey::raw_disk(name)
    }

    fn check_marker(&self) -> Result<(), Error> {
        let now = Directory::open(self.location.path())?;
        if now.identity()? != self.location.identity()? {
            let place = now.path().display();
            return Err(Error::Unavailable(format!(
                "{place} is another directory than the one that was opened"
            )));
        }
        self.home.as_ref().map_or(Ok(()), |home| home.check(&now))
    }

    fn create_container(&self, name: &str, _size: Bytes) -> Result<(), Error> {
        let file = self.make(name)?;
        // D1: the file, then its name.
        fsync(&file).map_err(self.location.failed("syncing", name))?;
        self.location.sync()
    }

    fn create_containers(&self, wanted: &[(&str, Bytes)]) -> Result<(), Error> {
        for (name, _) in wanted {
            self.make(name)?;
        }
        // One barrier for all names. Until somebody has written and synced them they are empty, and nothing points at them.
        self.location.sync()
    }

    fn remove(&self, name: &str) -> Result<bool, Error> {
        self.owner()?;
        if self.container(name)?.is_none() {
            return Ok(false);
        }
        let removed = self.location.remove(name)?;
        self.location.sync()?;
        Ok(removed)
    }

    fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        let mut list = Vec::new();
        for name in self.location.names()? {
            // A name that is no text was not given by us, and no image of another manager has one.
            let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else { continue };
            if let Some(status) = self.container(name)? {
                list.push(describe(name, &status));
            }
        }
        Ok(list)
    }

    fn info(&self, name: &str) -> Result<ContainerInfo, Error> {
        let status = self.container(name)?.ok_or_else(|| self.missing(name))?;
        Ok(describe(name, &status))
    }

    fn activate(&self, name: &str, access: Access) -> Result<OwnedFd, Error> {
        let flags = match access {
            Access::ReadOnly => OFlag::O_RDONLY,
            Access::ReadWrite => {
                self.owner()?;
                OFlag::O_RDWR
            }
        };
        // Asked first because opening a device can do something; asked again below because the name may change hands between.
        if self.container(name)?.is_none() {
            return Err(self.missing(name));
        }
        let failed = |doing: &'static str| self.location.failed(doing, name);
        // Without O_NONBLOCK a named pipe that took the file's place would block here for ever.
        let file = self.location.open_file(name, flags | OFlag::O_NONBLOCK).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ELOOP | Errno::ENXIO => self.missing(name),
            other => failed("opening")(other),
        })?;
        if !is_regular(&fstat(&file).map_err(failed("looking at"))?) {
            return Err(self.missing(name));
        }
        // Who gets the descriptor expects plain blocking I/O; io_uring fails early on a nonblocking one.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(failed("setting the mode of"))?;
        Ok(file)
    }

    fn grow(&self, name: &str, _size: Bytes) -> Result<(), Error> {
        check_name(name)
    }

    fn shrink(&self, name: &str, _size: Bytes) -> Result<(), Error> {
        check_name(name)
    }

    fn set_labels(&self, name: &str, labels: &Labels) -> Result<(), Error> {
        self.owner()?;
        let file = self.activate(name, Access::ReadOnly)?;
        labels::write(&file, labels, |doing, errno| self.location.failed(doing, name)(errno))
    }

    fn labels(&self, name: &str) -> Result<Labels, Error> {
        let file = self.activate(name, Access::ReadOnly)?;
        labels::read(&file).map_err(self.location.failed("reading the labels of", name))
    }

    fn stat(&self) -> Result<StoreStat, Error> {
        let Space { total, allocatable, metadata } = self.space()?;
        let containers: u64 = self.list()?.iter().map(|info| info.allocated.0).sum();
        Ok(StoreStat { total, used: Bytes(containers + metadata.0), allocatable })
    }

    fn space(&self) -> Result<Space, Error> {
        let figures = fstatvfs(&self.location).map_err(self.location.failed("looking at", ""))?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(figures.fragment_size()));
        Ok(Space {
            total: bytes(figures.blocks()),
            allocatable: bytes(figures.blocks_available()),
            metadata: self.metadata()?,
        })
    }

    fn destroy(&self) -> Result<(), Error> {
        self.owner()?.remove(&self.location)
    }
}

fn only_looking() -> Error {
    Error::Unsupported("the SR was opened only to look at it".to_owned())
}

/// Refuses what cannot name a container.
fn check_name(name: &str) -> Result<(), Error> {
    let why = match name {
        "" => "is empty",
        _ if name.starts_with('.') => "starts with a dot",
        _ if name.len() > LONGEST_NAME => "is longer than 255 bytes",
        _ if name.contains(['/', '\0']) => "has a slash or a zero byte in it",
        _ => return Ok(()),
    };
    Err(Error::Unsupported(format!("the container name {name:?} {why}")))
}

fn describe(name: &str, status: &FileStat) -> ContainerInfo {
    ContainerInfo {
        name: name.to_owned(),
        length: Bytes(status.st_size.try_into().unwrap_or(0)),
        allocated: allocated(status),
        modified: status.st_mtime,
    }
}

/// Bytes that a file takes on the storage.
fn allocated(status: &FileStat) -> Bytes {
    Bytes(u64::try_from(status.st_blocks).unwrap_or(0) * STAT_BLOCK)
}
