//! The control group of an SR's merges: the kernel weighs their I/O as a whole against that of the groups beside it.
//!
//! A favour, not a need: where the system gives no group there is none, and the merges run all the same. In the unified hierarchy
//! the group lies beside that of the agent, which the agent's unit asks systemd for (`DelegateSubgroup=agent`); nowhere else may a
//! service make one. In the old one it lies below the keeper's. Made when the SR is attached, and removed when it is detached.

use catena_types::SrUuid;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The name of the agent's own group in the unified hierarchy.
const AGENT: &str = "agent";

/// Which hierarchy a group is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The unified one.
    V2,
    /// That of `blkio`.
    V1,
}

impl Kind {
    /// As clients see it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
        }
    }

    /// The files that may hold the weight; which of them there are depends on the schedulers of the kernel.
    const fn weights(self) -> [&'static str; 2] {
        match self {
            Self::V2 => ["io.weight", "io.bfq.weight"],
            Self::V1 => ["blkio.weight", "blkio.bfq.weight"],
        }
    }
}

/// A group of our own.
#[derive(Debug)]
pub(crate) struct Group {
    kind: Kind,
    path: PathBuf,
}

impl Group {
    /// Makes the group of an SR, if the system lets us have one.
    pub(crate) fn make(sr: SrUuid) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let places = places(&read("cgroup"), &read("mountinfo"));
        places.into_iter().find_map(|(kind, parent)| {
            Self::make_in(kind, &parent, &format!("catena-merge-{sr}"))
                .inspect_err(|error| tracing::debug!(%error, parent = %parent.display(), "no control group"))
                .ok()
        })
    }

    fn make_in(kind: Kind, parent: &Path, name: &str) -> io::Result<Self> {
        if kind == Kind::V2 {
            fs::write(parent.join("cgroup.subtree_control"), "+io")?;
        }
        let path = parent.join(name);
        match fs::create_dir(&path) {
            // A keeper was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        let group = Self { kind, path };
        if group.weight().is_none() {
            group.remove();
            return Err(io::Error::other("I/O cannot be weighed there"));
        }
        Ok(group)
    }

    /// The hierarchy.
    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The weight as the kernel has it; 100 is everybody's at first.
    pub(crate) fn weight(&self) -> Option<u64> {
        let read = |name: &&str| fs::read_to_string(self.path.join(name)).ok();
        let text = self.kind.weights().iter().find_map(read)?;
        // `default 100`, and lines for single devices, or a bare number.
        text.lines().next()?.split_whitespace().last()?.parse().ok()
    }

    /// Sets the weight, 10 to 1000.
    pub(crate) fn weigh(&self, weight: u64) -> io::Result<()> {
        let known = self.kind.weights().into_iter().map(|name| self.path.join(name));
        known.filter(|path| path.exists()).try_for_each(|path| fs::write(path, weight.to_string()))
    }

    /// Takes a process in, with all its threads.
    pub(crate) fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Unmakes it. One that still has a process stays, and is found again by the next keeper.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// The groups below which one of ours may be, the best first: from what the kernel says of this process's groups and mounts.
fn places(groups: &str, mounts: &str) -> Vec<(Kind, PathBuf)> {
    let own = |wanted: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|one| one == wanted).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let mounted = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let (mut head, mut tail) = (head.split(' ').skip(3), tail.split(' '));
            let whole = head.next()? == "/";
            let point = head.next()?;
            let right =
                tail.next()? == kind && tail.nth(1)?.split(',').any(|one| one == option || option.is_empty());
            (whole && right).then(|| PathBuf::from(point))
        })
    };
    let unified = mounted("cgroup2", "").zip(own("")).map(|(mount, path)| mount.join(path));
    let beside =
        unified.filter(|path| path.ends_with(AGENT)).and_then(|path| path.parent().map(Path::to_owned));
    let old = mounted("cgroup", "blkio").zip(own("blkio")).map(|(mount, path)| mount.join(path));
    beside.map(|path| (Kind::V2, path)).into_iter().chain(old.map(|path| (Kind::V1, path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw,nsdelegate\n\
        35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        36 30 0:32 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n";

    #[test]
    fn a_group_is_made_where_the_system_allows_it() {
        let unit = "/system.slice/catenad.service";
        let new = places(&format!("0::{unit}/agent\n"), MOUNTS);
        assert_eq!(new, [(Kind::V2, PathBuf::from(format!("/sys/fs/cgroup/unified{unit}")))]);
        let old = places(&format!("5:cpu,cpuacct:/\n4:blkio:{unit}\n0::{unit}\n"), MOUNTS);
        assert_eq!(old, [(Kind::V1, PathBuf::from(format!("/sys/fs/cgroup/blkio{unit}")))]);
        // Without a place that the unit gave us, and where only a part of the hierarchy is to be seen.
        assert_eq!(places(&format!("0::{unit}\n"), MOUNTS), []);
        assert_eq!(places("0::/agent\n", &MOUNTS.replace("0:27 / ", "0:27 /part ")), []);
        assert_eq!(places("", ""), []);
    }

    #[test]
    fn the_weight_is_that_of_the_kernel() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ours");
        assert!(Group::make_in(Kind::V1, parent.path(), "ours").is_err(), "no file for a weight");
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("blkio.bfq.weight"), "100\n").unwrap();
        let group = Group::make_in(Kind::V1, parent.path(), "ours").unwrap();
        assert_eq!(group.weight(), Some(100));
        group.weigh(30).unwrap();
        assert_eq!((group.weight(), path.join("blkio.weight").exists()), (Some(30), false));
        group.take(17).unwrap();
        assert_eq!(fs::read_to_string(path.join("cgroup.procs")).unwrap(), "17");

        fs::write(path.join("io.weight"), "default 100\n8:0 50\n").unwrap();
        let group = Group::make_in(Kind::V2, parent.path(), "ours").unwrap();
        assert_eq!(group.weight(), Some(100));
        assert_eq!(fs::read_to_string(parent.path().join("cgroup.subtree_control")).unwrap(), "+io");
    }
}
