//! The fence between writers: an exclusive lock on a whole file that belongs to the open file description.
//!
//! Durability rule D11 asks for one writer per open image and for a successor that starts only when the last request of
//! its predecessor has landed. A lock of a *process* (`F_SETLK`) cannot give that: it goes when the process closes any
//! descriptor of the file. An OFD lock belongs to the open file description: it travels with the descriptor when that is
//! passed to another process, and the kernel frees it with the last reference to the description, which a request in
//! flight of a killed process still holds. So whoever hands a locked descriptor over must keep no copy of it, or the
//! fence outlives the writer.
//!
//! The lock belongs to the inode of what was opened. For a block device that is its node, and the same volume may have two
//! nodes, so devices are opened with `O_EXCL` besides. On NFS the lock is only as good as the server's lock manager: mounts
//! with `nolock` or `local_lock` are refused by the back end, which knows the mount.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::io;
use std::os::fd::AsFd;

/// Takes the exclusive lock on the whole file if it is free; `Ok(false)` if another description holds a lock. `fd` must be
/// open for writing. The lock is freed when the last copy of this descriptor is closed, in every process that has one.
pub fn lock_exclusive(fd: impl AsFd) -> io::Result<bool> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the exclusive lock on the whole file, waiting for as long as another description holds one. `fd` must be open for
/// writing.
pub fn lock_exclusive_wait(fd: impl AsFd) -> io::Result<()> {
    loop {
        match fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLKW(&whole_file())) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// From the first byte to wherever the file ends.
#[expect(clippy::cast_possible_truncation, reason = "the kernel's constants are ints, its fields shorts")]
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::mpsc;
    use tempfile::NamedTempFile;

    #[test]
    fn a_lock_belongs_to_the_description_and_ends_with_its_last_copy() {
        let first = NamedTempFile::new().unwrap();
        let second = first.reopen().unwrap();
        let copy = first.as_file().try_clone().unwrap();
        assert!(lock_exclusive(&first).unwrap());
        assert!(lock_exclusive(&copy).unwrap(), "the same description, so no conflict");
        assert!(!lock_exclusive(&second).unwrap());
        // Closing some other descriptor of the file must not free it, as it would free a process's lock.
        drop(File::open(first.path()).unwrap());
        assert!(!lock_exclusive(&second).unwrap());
        let _path = first.into_temp_path();
        assert!(!lock_exclusive(&second).unwrap(), "the copy still holds it");
        drop(copy);
        assert!(lock_exclusive(&second).unwrap());
    }

    #[test]
    fn a_waiter_gets_the_lock_when_the_holder_lets_go() {
        let held = tempfile::tempfile().unwrap();
        let waiting = File::options().write(true).open(descriptor_path(&held)).unwrap();
        assert!(lock_exclusive(&held).unwrap());
        let (told, locked) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            lock_exclusive_wait(&waiting).unwrap();
            told.send(()).unwrap();
        });
        assert_eq!(locked.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(held);
        locked.recv().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_descriptor_that_cannot_write_is_an_error() {
        let file = NamedTempFile::new().unwrap();
        let read_only = File::open(file.path()).unwrap();
        assert_eq!(lock_exclusive(&read_only).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    fn descriptor_path(file: &File) -> String {
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))
    }
}
