//! I/O priority as the kernel has it: the class of a process's threads, and whether the scheduler of a device heeds it. Used for
//! what clients are shown, which is never what was merely asked for, and to change a mover that is in the middle of a batch.

use catena_types::IoClass;
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The device that an SR is on, and what schedules its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    /// Names of the devices at the bottom, such as `sda`.
    pub(crate) devices: BTreeSet<String>,
    /// Their schedulers.
    pub(crate) schedulers: BTreeSet<String>,
}

impl Scheduling {
    /// Whether a class makes a difference; `None` where there is no block device to ask (a network file system).
    pub(crate) fn honours_classes(&self) -> Option<bool> {
        // Only these look at a request's class; kyber looks at its kind, and none at nothing.
        let heed = |name: &String| matches!(name.as_str(), "bfq" | "cfq" | "mq-deadline");
        (!self.schedulers.is_empty()).then(|| self.schedulers.iter().all(heed))
    }
}

/// The class of all threads of a process; `None` while they differ (threads of a batch that was begun in another class), or
/// if the process is gone.
pub(crate) fn class_of(pid: u32) -> Option<IoClass> {
    let mut found = None;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let thread: i32 = thread.ok()?.file_name().to_str()?.parse().ok()?;
        let class = class_of_thread(thread)?;
        if *found.get_or_insert(class) != class {
            return None;
        }
    }
    found
}

/// Puts all threads of a process into a class, the first one first: what it starts meanwhile has the class of it. The process
/// must not have been reaped.
pub(crate) fn set_class(pid: u32, class: IoClass) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let set = |thread: i32| {
        // SAFETY: ioprio_set takes three integers and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, thread, class.to_kernel()) };
        match Errno::result(result) {
            // It has ended meanwhile.
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    set(i32::try_from(pid).map_err(io::Error::other)?)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(Ok(thread)) = thread?.file_name().to_str().map(str::parse) {
            set(thread)?;
        }
    }
    Ok(())
}

fn class_of_thread(thread: i32) -> Option<IoClass> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_get takes two integers and touches no memory.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, thread) };
    i32::try_from(value).ok().filter(|value| *value >= 0).and_then(IoClass::from_kernel)
}

/// The devices below a file system, by its device number, and their schedulers as they are now.
pub(crate) fn scheduling(device: u64) -> Scheduling {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let mut found = Scheduling::default();
    if let Ok(path) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) {
        descend(&path, &mut found);
    }
    found
}

/// From a device to those that it is made of (device mapper, RAID), and from a partition to its disk.
fn descend(device: &Path, found: &mut Scheduling) {
    let slaves: Vec<PathBuf> = fs::read_dir(device.join("slaves"))
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok())
        .collect();
    if !slaves.is_empty() {
        return slaves.iter().for_each(|slave| descend(slave, found));
    }
    let disk = if device.join("partition").exists() { device.parent().unwrap_or(device) } else { device };
    if let Some(name) = disk.file_name() {
        found.devices.insert(name.to_string_lossy().into_owned());
    }
    let text = fs::read_to_string(disk.join("queue/scheduler")).unwrap_or_default();
    // A device that has no choice has a bare word.
    let chosen =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text.trim(), |(name, _)| name);
    if !chosen.is_empty() {
        found.schedulers.insert(chosen.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn devices_are_followed_down_to_the_disks() {
        let sys = tempfile::tempdir().unwrap();
        let make = |name: &str, scheduler: Option<&str>| {
            let path = sys.path().join(name);
            fs::create_dir_all(path.join("queue")).unwrap();
            if let Some(text) = scheduler {
                fs::write(path.join("queue/scheduler"), text).unwrap();
            }
            path
        };
        make("sda", Some("none [mq-deadline] kyber bfq \n"));
        let partition = make("sda/sda1", None);
        fs::write(partition.join("partition"), "1\n").unwrap();
        let other = make("sdb", Some("[none] bfq\n"));
        let mapped = make("dm-0", Some("none\n"));
        fs::create_dir(mapped.join("slaves")).unwrap();
        symlink(&partition, mapped.join("slaves/sda1")).unwrap();
        let look = |path: &Path| {
            let mut found = Scheduling::default();
            descend(path, &mut found);
            found
        };
        let found = look(&mapped);
        assert_eq!((found.devices.len(), found.devices.contains("sda")), (1, true));
        assert_eq!(found.honours_classes(), Some(true));
        symlink(&other, mapped.join("slaves/sdb")).unwrap();
        assert_eq!(look(&mapped).schedulers, ["mq-deadline", "none"].map(str::to_owned).into());
        assert_eq!(look(&mapped).honours_classes(), Some(false));
        assert_eq!(Scheduling::default().honours_classes(), None);
    }

    #[test]
    fn all_threads_of_a_process_change_their_class() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        for class in [IoClass::Idle, IoClass::LEAST_EFFORT] {
            set_class(child.id(), class).unwrap();
            assert_eq!(class_of(child.id()), Some(class));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn this_process_has_a_class() {
        assert!(class_of(std::process::id()).is_some());
        assert_eq!(class_of(u32::MAX), None);
    }
}
