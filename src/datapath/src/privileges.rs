//! What a worker gives up before it parses the first byte, and the I/O class it works in.

use catena_control::IoClass;
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

/// Puts the whole process into an I/O class.
pub(crate) fn set_io_class(class: IoClass) -> nix::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: libc::c_int = 13;
    const BEST_EFFORT_DEFAULT: libc::c_int = (2 << CLASS_SHIFT) | 4;
    const IDLE: libc::c_int = 3 << CLASS_SHIFT;
    let value = match class {
        IoClass::Idle => IDLE,
        IoClass::BestEffort => BEST_EFFORT_DEFAULT,
    };
    // SAFETY: ioprio_set takes three integers and touches no memory; 0 means the calling thread, whose threads inherit it.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) };
    Errno::result(result).map(drop)
}
