//! The volume of the catalog: made, locked, mounted, and given up.
//!
//! It holds a small file system of a fixed size, so that a full group still has room for what is written about it. The lock that
//! makes a process the owner of the SR is on the volume's device: it excludes every process of the host, whatever its run directory,
//! and as long as it is held the volume cannot be made inactive. A mount that outlived its owner is taken over by the next.
//! Used by the plugin and, for the owner, by the store.

use crate::command;
use crate::fsck::{self, Checked};
use crate::marker::CATALOG;
use crate::node::Node;
use crate::report::Group;
use crate::tags;
use catena_sr_api::{Access, Error};
use catena_types::{Bytes, SrUuid};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{fstat, stat};
use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file system of the catalog.
const KIND: &str = "ext4";
/// The least size of the volume, in bytes: a journal, the catalog's write-ahead log and some thousand images.
pub(crate) const LEAST: u64 = 32 << 20;
/// The greatest, enough for any catalog.
const MOST: u64 = 256 << 20;
/// In between it has this part of the group.
const PART: u64 = 32;

/// The lock of the owner, held until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnerLock(#[expect(dead_code, reason = "holding it is the use")] Flock<OwnedFd>);

/// A mounted catalog.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
    /// What had to be mended for it, until somebody asks.
    mended: Mutex<Option<String>>,
}

/// What an owner holds: dropped in this order.
#[derive(Debug)]
pub(crate) struct Home {
    /// The catalog.
    pub(crate) mounted: Mounted,
    /// The lock.
    pub(crate) _lock: OwnerLock,
}

/// The catalog of who only looks.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Mounted for this.
    At(Mounted),
    /// The owner on this host has it mounted there.
    Owners(PathBuf),
    /// There is none; where it would be.
    Nowhere(PathBuf),
}

impl Seen {
    /// Where the catalog is, and what is to be kept for it.
    pub(crate) fn into_parts(self) -> (PathBuf, Option<Mounted>) {
        match self {
            Self::At(mounted) => (mounted.path().to_owned(), Some(mounted)),
            Self::Owners(path) | Self::Nowhere(path) => (path, None),
        }
    }
}

/// How large the volume of the catalog is made in a group of that size.
pub(crate) fn size(group: Bytes) -> Bytes {
    Bytes((group.0 / PART).clamp(LEAST, MOST))
}

/// The node of the catalog of a group.
pub(crate) fn node(group: &Group) -> Node {
    Node::of(&group.name, &group.uuid, CATALOG)
}

/// Where the catalog of an SR is mounted.
pub(crate) fn place(run_dir: &Path, sr: SrUuid) -> PathBuf {
    run_dir.join("sr").join(sr.to_string())
}

/// Makes the file system, durably.
pub(crate) fn format(node: &Node) -> Result<(), Error> {
    let device = node.path().display().to_string();
    let extended = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    let arguments = ["-q", "-F", "-t", KIND, "-m", "0", "-e", "remount-ro", "-E", extended, &device];
    let ran = command::run("mke2fs", "e2fsprogs", &arguments.map(str::to_owned), &[])?;
    if ran.code == Some(0) {
        return Ok(());
    }
    let why = std::io::Error::other(ran.complaint);
    Err(Error::io(format!("making the file system of the catalog on {device}"))(why))
}

/// Makes the file system as large as its volume, while it is mounted. One that is so already stays as it is.
pub(crate) fn fill(node: &Node) -> Result<(), Error> {
    let device = node.path().display().to_string();
    let ran = command::run("resize2fs", "e2fsprogs", std::slice::from_ref(&device), &[])?;
    if ran.code == Some(0) {
        return Ok(());
    }
    let why = std::io::Error::other(ran.complaint);
    Err(Error::io(format!("making the file system of the catalog on {device} larger"))(why))
}

impl OwnerLock {
    /// Takes the lock through the catalog's device; `None` if somebody else has it.
    pub(crate) fn take(node: &Node, device: OwnedFd) -> Result<Option<Self>, Error> {
        match Flock::lock(device, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io(format!("locking {}", node.path().display()))(errno.into())),
        }
    }
}

impl Mounted {
    /// Mounts the catalog for its owner.
    pub(crate) fn new(node: &Node, at: &Path) -> Result<Self, Error> {
        let mended = Mutex::new(mount_anew(node, at)?);
        Ok(Self { at: at.to_owned(), mended })
    }

    /// Mounts it for who only looks: nothing is written, not even what a crash has left in the journal.
    pub(crate) fn to_look(node: &Node, at: &Path) -> Result<Self, Error> {
        mount_at(node, at, MsFlags::MS_RDONLY, Some("noload"))?;
        Ok(Self { at: at.to_owned(), mended: Mutex::default() })
    }

    /// Mounts it anew for its owner.
    pub(crate) fn renew(&self, node: &Node) -> Result<(), Error> {
        let mended = mount_anew(node, &self.at)?;
        *self.mended.lock().unwrap_or_else(PoisonError::into_inner) = mended;
        Ok(())
    }

    /// What had to be mended for it, if it was not asked for yet.
    pub(crate) fn mended(&self) -> Option<String> {
        self.mended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    /// A mount that is still used stays, and is taken over by the next owner.
    fn drop(&mut self) {
        match umount2(&self.at, MntFlags::empty()) {
            Ok(()) => {
                // Another may be mounting there already.
                let _ = fs::remove_dir(&self.at);
            }
            Err(errno) => tracing::warn!(at = %self.at.display(), %errno, "the catalog stays mounted"),
        }
    }
}

/// Mounts the catalog for its owner. A mount that is there may have met an error of its storage, and takes no writes then; one that
/// somebody uses stays. Returns what had to be mended in its file system.
fn mount_anew(node: &Node, at: &Path) -> Result<Option<String>, Error> {
    let _ = umount2(at, MntFlags::empty());
    let device = node.path();
    let mut mended = None;
    if !is_mounted(node, at)? && fsck::is_doubtful(node)? {
        match fsck::check(node)? {
            Checked::Mended(what) => mended = Some(what),
            Checked::Beyond(why) => {
                return Err(Error::CatalogLost(format!(
                    "the catalog on {} is damaged: {why}",
                    device.display()
                )));
            }
            // Somebody of another name may have it mounted. It is tried again the next time.
            Checked::Unchecked(why) => {
                tracing::warn!(why, "the file system of the catalog is used unchecked");
            }
        }
    }
    match mount_at(node, at, MsFlags::empty(), None) {
        Err(Error::CatalogLost(why)) if mended.is_none() => match fsck::check(node)? {
            Checked::Mended(what) => mount_at(node, at, MsFlags::empty(), None).map(|()| Some(what)),
            Checked::Beyond(more) | Checked::Unchecked(more) => {
                Err(Error::CatalogLost(format!("{why}, nor mended: {more}")))
            }
        },
        mounted => mounted.map(|()| mended),
    }
}

/// Mounts the file system of the node there, if it is not.
fn mount_at(node: &Node, at: &Path, flags: MsFlags, data: Option<&str>) -> Result<(), Error> {
    let failed = |doing: &str| Error::io(format!("{doing} {}", at.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(at).map_err(failed("making"))?;
    if is_mounted(node, at)? {
        return Ok(());
    }
    // What an owner of another time has left here is of a device that is gone.
    while umount2(at, MntFlags::MNT_DETACH).is_ok() {}
    let always = MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    mount(Some(&node.path()), at, Some(KIND), always | flags, data).map_err(|errno| {
        let _ = fs::remove_dir(at);
        match errno {
            // What is there is no such file system any more, or a damaged one. A device that fails is none of these.
            Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG => {
                let device = node.path();
                Error::CatalogLost(format!("the catalog on {} cannot be mounted: {errno}", device.display()))
            }
            _ => failed("mounting the catalog at")(errno.into()),
        }
    })
}

/// Unmounts the catalog of a group that is no SR: who was making or destroying one may have died before it did that.
pub(crate) fn let_go(group: &Group, run_dir: &Path) -> Result<(), Error> {
    let said = group.volumes.get(CATALOG).map(|volume| tags::read(&volume.tags)).unwrap_or_default();
    let Some(sr) = said.get("sr").and_then(|sr| sr.parse::<SrUuid>().ok()) else { return Ok(()) };
    let (node, at) = (node(group), place(run_dir, sr));
    let Some(device) = node.open(Access::ReadOnly)? else { return Ok(()) };
    let Some(_lock) = OwnerLock::take(&node, device)? else {
        return Err(Error::InUse(format!(
            "somebody makes or destroys an SR of the volume group {}",
            group.name
        )));
    };
    if is_mounted(&node, &at)? {
        drop(Mounted { at, mended: Mutex::default() });
    }
    Ok(())
}

/// Whether the file system of the node is mounted there.
pub(crate) fn is_mounted(node: &Node, at: &Path) -> Result<bool, Error> {
    let Some(device) = node.open(Access::ReadOnly)? else { return Ok(false) };
    let failed = |errno: Errno| Error::io(format!("looking at {}", at.display()))(errno.into());
    match stat(at) {
        Ok(there) => Ok(there.st_dev == fstat(&device).map_err(failed)?.st_rdev),
        Err(Errno::ENOENT | Errno::EIO) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_has_a_part_of_a_small_group_and_no_more_than_it_needs() {
        let mib = |n: u64| Bytes(n << 20);
        assert_eq!((size(mib(100)), size(mib(2048)), size(mib(1 << 20))), (mib(32), mib(64), mib(256)));
    }
}
