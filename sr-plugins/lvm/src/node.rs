//! The kernel's device of an active volume.
//!
//! Invariant: what is opened is checked to be the volume that is meant, by what the kernel says of the open device and not by its
//! path, which may be a link that udev made. All who open a volume for writing do so by the same node, so that locks on it are
//! seen by all (D11). Used by `store` and `home`.

use catena_sr_api::{Access, Error};
use catena_types::Bytes;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, major, minor, stat};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The unit in which the kernel says sizes, in bytes.
const SECTOR: u64 = 512;

/// A volume of a group.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The name of its device in device-mapper.
    name: String,
    /// What the device's id begins with.
    id: String,
}

impl Node {
    /// The node of the volume `name` of a group.
    pub(crate) fn of(group: &str, group_uuid: &str, name: &str) -> Self {
        let double = |name: &str| name.replace('-', "--");
        Self {
            name: format!("{}-{}", double(group), double(name)),
            id: format!("LVM-{}", group_uuid.replace('-', "")),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/dev/mapper").join(&self.name)
    }

    /// Opens it; `None` if the volume is not active.
    ///
    /// Not exclusively (`O_EXCL`), though that would keep mounts and other mappings off: the claim would be of this one open file, and ours
    /// overlap by design. Who comes next is handed an open file while the last one still has his, and waits for the lock (D11); one
    /// that fails is tried beside the process that has it. Foreign writers are kept off by what they look for: the volume is active only
    /// while we use it, and writable only while we write.
    pub(crate) fn open(&self, access: Access) -> Result<Option<OwnedFd>, Error> {
        let mode = match access {
            Access::ReadOnly => OFlag::O_RDONLY,
            Access::ReadWrite => OFlag::O_RDWR,
        };
        let path = self.path();
        let failed = |doing: &str| {
            let context = format!("{doing} {}", path.display());
            move |errno: Errno| Error::io(context)(errno.into())
        };
        let fd = match open(&path, mode | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => return Ok(None),
            Err(errno) => return Err(failed("opening")(errno)),
        };
        let status = fstat(&fd).map_err(failed("looking at"))?;
        Ok(self.is(&status).then_some(fd))
    }

    /// The size that the kernel has it with; `None` if the volume is not active. Opens nothing: that can wait for a device that is
    /// suspended.
    pub(crate) fn size(&self) -> Option<Bytes> {
        let status = stat(&self.path()).ok().filter(|status| self.is(status))?;
        let sectors: u64 = system(&status, "size").trim_end().parse().ok()?;
        Some(Bytes(sectors.saturating_mul(SECTOR)))
    }

    fn is(&self, status: &FileStat) -> bool {
        status.st_mode & libc::S_IFMT == libc::S_IFBLK
            && system(status, "dm/name").trim_end() == self.name
            && system(status, "dm/uuid").starts_with(&self.id)
    }
}

/// What the kernel says of a block device.
pub(crate) fn system(status: &FileStat, what: &str) -> String {
    let (major, minor) = (major(status.st_rdev), minor(status.st_rdev));
    fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{what}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_device_mapper() {
        let node = Node::of("catena-1-2", "a-b", "vhd-3");
        assert_eq!(node.path().to_str(), Some("/dev/mapper/catena--1--2-vhd--3"));
        assert_eq!(node.id, "LVM-ab");
    }

    #[test]
    fn what_is_not_there_is_not_active() {
        assert!(Node::of("no-such-group", "x", "y").open(Access::ReadOnly).unwrap().is_none());
    }
}
