//! Whether locks on a file system are seen by other hosts (durability rule D11).
//!
//! NFS can be told to keep locks to this host (`nolock`, `local_lock=...`); two hosts would then both own an SR. Every other
//! file system is taken for local. Used by the plugin before it owns anything.

use crate::directory::Directory;
use catena_sr_api::Error;
use nix::sys::statfs::{NFS_SUPER_MAGIC, fstatfs};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// Refuses ([`Error::Unsupported`]) a directory on an NFS mount whose locks stay on this host, or may.
pub(crate) fn check_locks_are_shared(directory: &Directory) -> Result<(), Error> {
    let status = fstatfs(directory).map_err(directory.failed("looking at", ""))?;
    if status.filesystem_type() != NFS_SUPER_MAGIC {
        return Ok(());
    }
    let read = |path: &str| fs::read_to_string(path).map_err(Error::io(format!("reading {path}")));
    // By the mount's id and not by the path: mounts may lie over each other.
    let fdinfo = read(&format!("/proc/self/fdinfo/{}", directory.as_fd().as_raw_fd()))?;
    let mountinfo = read("/proc/self/mountinfo")?;
    let place = directory.path().display();
    let Some(options) = mount_id(&fdinfo).and_then(|id| super_options(&mountinfo, id)) else {
        return Err(Error::Unsupported(format!(
            "how the NFS file system of {place} is mounted cannot be found out"
        )));
    };
    match local_lock_option(options) {
        None => Ok(()),
        Some(option) => Err(Error::Unsupported(format!(
            "{place} is on NFS mounted with '{option}', so other hosts do not see its locks: mount it without"
        ))),
    }
}

/// The mount id in the text of `/proc/self/fdinfo/N`.
fn mount_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// The options of the file system (not of the mount point) in the text of `/proc/self/mountinfo`.
fn super_options(mountinfo: &str, id: u64) -> Option<&str> {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    // Any number of optional fields, a lone hyphen, type, source, options. Blanks in paths are written as \040.
    line.split_once(" - ")?.1.split(' ').nth(2)
}

/// The option that keeps locks on this host, if there is one.
fn local_lock_option(options: &str) -> Option<&str> {
    options.split(',').find(|&option| {
        option == "nolock" || (option.starts_with("local_lock=") && option != "local_lock=none")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
40 27 0:50 / /mnt/v4 rw,relatime shared:9 - nfs4 filer:/a\\040-\\040b rw,vers=4.2,local_lock=none,addr=10.0.0.1
41 27 0:51 / /mnt/v3 rw,relatime - nfs filer:/b rw,vers=3,nolock,proto=tcp,local_lock=all
42 27 0:51 / /mnt/v3 rw,relatime - nfs filer:/c rw,vers=3,local_lock=posix
";

    #[test]
    fn the_options_of_a_mount_are_found_by_its_id() {
        assert_eq!(mount_id("pos:\t0\nflags:\t02200000\nmnt_id:\t40\nino:\t2\n"), Some(40));
        assert_eq!(mount_id("pos:\t0\n"), None);
        assert_eq!(super_options(MOUNTINFO, 36), Some("rw,errors=continue"));
        assert_eq!(super_options(MOUNTINFO, 40), Some("rw,vers=4.2,local_lock=none,addr=10.0.0.1"));
        assert_eq!(super_options(MOUNTINFO, 4), None);
    }

    #[test]
    fn locks_that_stay_on_the_host_are_noticed() {
        let option = |id| super_options(MOUNTINFO, id).and_then(local_lock_option);
        assert_eq!(option(40), None);
        assert_eq!(option(41), Some("nolock"));
        assert_eq!(option(42), Some("local_lock=posix"));
        assert_eq!(local_lock_option("rw,nolockd"), None);
    }

    #[test]
    fn this_systems_own_files_can_be_read() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(&place.path().canonicalize().unwrap()).unwrap();
        let path = format!("/proc/self/fdinfo/{}", directory.as_fd().as_raw_fd());
        assert!(mount_id(&fs::read_to_string(path).unwrap()).is_some());
        check_locks_are_shared(&directory).unwrap();
    }
}
