//! The lock that makes a process the owner of an SR.
//!
//! Invariant: at most one [`OwnerLock`] of a lock file is alive, on all hosts that see the file. It is an OFD lock: it ends
//! with the open file description, that is with its process at the latest, and two opens of one process exclude each other
//! too. `home` takes it before it changes anything.

use crate::directory::Directory;
use catena_sr_api::Error;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::fstat;
use std::os::fd::OwnedFd;

/// The name of the lock file.
pub(crate) const LOCK: &str = "lock";

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnerLock(OwnedFd);

impl OwnerLock {
    /// Takes the lock of the directory `.catena`; `None` if somebody else holds it.
    pub(crate) fn take(home: &Directory) -> Result<Option<Self>, Error> {
        let fd = home
            .open_file(LOCK, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK)
            .map_err(home.failed("opening", LOCK))?;
        Self::lock(home, fd)
    }

    fn lock(home: &Directory, fd: OwnedFd) -> Result<Option<Self>, Error> {
        match fcntl(&fd, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
            Err(errno) => return Err(home.failed("locking", LOCK)(errno)),
        }
        let lock = Self(fd);
        // Whoever destroyed the SR between our open and our lock has unlinked the file: then this lock excludes nobody.
        let links = fstat(&lock.0).map_err(home.failed("looking at", LOCK))?.st_nlink;
        if links == 0 {
            return Err(Error::Unavailable(format!("{} was removed meanwhile", home.path().display())));
        }
        Ok(Some(lock))
    }
}

impl Drop for OwnerLock {
    /// Unlocks instead of only closing: a process that is being started at this moment shares the description until it
    /// executes, and the lock would live that much longer.
    fn drop(&mut self) {
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants of the C library are wider than the fields they are for"
)]
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Directory) {
        let place = tempfile::tempdir().unwrap();
        let home = Directory::open(&place.path().canonicalize().unwrap()).unwrap();
        (place, home)
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let (_place, home) = home();
        let lock = OwnerLock::take(&home).unwrap().unwrap();
        // As a process that is being started has one.
        let copy = lock.0.try_clone().unwrap();
        assert!(OwnerLock::take(&home).unwrap().is_none());
        drop(lock);
        assert!(OwnerLock::take(&home).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn a_lock_file_that_was_removed_meanwhile_makes_no_owner() {
        let (_place, home) = home();
        let fd = home.open_file(LOCK, OFlag::O_RDWR | OFlag::O_CREAT).unwrap();
        home.remove(LOCK).unwrap();
        assert!(matches!(OwnerLock::lock(&home, fd), Err(Error::Unavailable(_))));
    }
}
