//! A directory held open, and the few things done in it.
//!
//! Invariants: names are looked up relative to the descriptor, so a directory that was moved is still the one that was
//! opened; the last component is never followed if it is a symbolic link; every descriptor closes on exec. Errors say
//! what was done on which path. Used by every other module of the crate.

use catena_sr_api::Error;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const OPEN_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open directory and the path it was opened by, which is only for messages and for the catalog.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Opens a directory by a path without symbolic links. Not there, or no directory: [`Error::Unavailable`].
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fd = nix::fcntl::open(path, OPEN_DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => {
                Error::Unavailable(format!("there is no directory {}", path.display()))
            }
            other => failed("opening", path)(other),
        })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a directory in this one.
    pub(crate) fn subdirectory(&self, name: impl AsRef<OsStr>) -> Result<Self, Error> {
        let path = self.path.join(name.as_ref());
        let fd =
            openat(self, name.as_ref(), OPEN_DIRECTORY, Mode::empty()).map_err(failed("opening", &path))?;
        Ok(Self { fd, path })
    }

    /// Makes a directory in this one, for its owner only, durably. One that is there already is left as it is.
    pub(crate) fn make_subdirectory(&self, name: impl AsRef<OsStr>) -> Result<(), Error> {
        match mkdirat(self, name.as_ref(), Mode::S_IRWXU) {
            Ok(()) => self.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.failed("making", name.as_ref())(errno)),
        }
    }

    /// The path it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode: what tells two directories apart.
    pub(crate) fn identity(&self) -> Result<(u64, u64), Error> {
        let status = fstat(self).map_err(failed("looking at", &self.path))?;
        Ok((status.st_dev, status.st_ino))
    }

    /// All names in it, sorted, without `.` and `..`.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, Error> {
        let failed = || failed("listing", &self.path);
        // A descriptor of its own: a position in the directory is shared by all who hold a description.
        let mut listing = nix::dir::Dir::openat(self, ".", OPEN_DIRECTORY, Mode::empty()).map_err(failed())?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What `name` is; `None` if there is nothing. A symbolic link is itself.
    pub(crate) fn status(&self, name: impl AsRef<OsStr>) -> Result<Option<FileStat>, Error> {
        match fstatat(self, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("looking at", name.as_ref())(errno)),
        }
    }

    /// Opens a file. With `O_CREAT` it is made for its owner only.
    pub(crate) fn open_file(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        openat(self, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// Gives a file another name, replacing what has that name. Not durable before [`sync`](Self::sync).
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        renameat(self, from, self, to).map_err(self.failed("renaming", from))
    }

    /// Removes a file; `false` if there was none. Not durable before [`sync`](Self::sync).
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Error> {
        match unlinkat(self, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.failed("removing", name)(errno)),
        }
    }

    /// Removes an empty directory, durably.
    pub(crate) fn remove_subdirectory(&self, name: &str) -> Result<(), Error> {
        unlinkat(self, name, UnlinkatFlags::RemoveDir).map_err(self.failed("removing", name))?;
        self.sync()
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        fsync(self).map_err(failed("syncing", &self.path))
    }

    /// Turns the system's answer about `name` into an error with a context.
    pub(crate) fn failed(&self, doing: &str, name: impl AsRef<OsStr>) -> impl FnOnce(Errno) -> Error {
        failed(doing, &self.path.join(name.as_ref()))
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(Errno) -> Error + use<> {
    let context = format!("{doing} {}", path.display());
    move |errno| Error::io(context)(errno.into())
}

/// Whether it is a regular file.
pub(crate) fn is_regular(status: &FileStat) -> bool {
    status.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Whether it is a directory.
pub(crate) fn is_directory(status: &FileStat) -> bool {
    status.st_mode & libc::S_IFMT == libc::S_IFDIR
}
