//! What a worker gives up before it parses the first byte, and the I/O class it works in.

use catena_types::IoClass;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Becomes nobody where the process is root; otherwise it already has no more rights than its user.
pub(crate) fn drop_privileges() -> nix::Result<()> {
    if geteuid().is_root() {
        setgroups(&[])?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    nix::sys::prctl::set_no_new_privs()
}

/// Puts the calling thread into an I/O class, and with it every thread that it makes from here on.
pub(crate) fn set_io_class(class: IoClass) -> nix::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    set_class_of(WHO_PROCESS, class)
}

/// Puts all threads of all processes of the caller's group into an I/O class.
pub(crate) fn set_group_io_class(class: IoClass) -> nix::Result<()> {
    const WHO_GROUP: libc::c_int = 2;
    set_class_of(WHO_GROUP, class)
}

fn set_class_of(who: libc::c_int, class: IoClass) -> nix::Result<()> {
    // SAFETY: ioprio_set takes three integers and touches no memory; 0 means the caller's own thread or group.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, who, 0, class.to_kernel()) };
    Errno::result(result).map(drop)
}
