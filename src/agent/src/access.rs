//! Who may do what: the credentials that the kernel vouches for decide, not what a client says.
//!
//! Root and the members of the group may do everything, the members of the group of readers may look, nobody else may
//! connect. Asked by `session` once for each connection.

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, Uid};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Methods that change nothing.
    Read,
    /// All methods, but those that name a location.
    Change,
    /// All methods.
    Root,
}

/// A connected process, as it was when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its process, for the log.
    pub(crate) pid: i32,
    /// Its effective user.
    pub(crate) uid: Uid,
    /// Its effective group and its supplementary ones.
    pub(crate) gids: Vec<Gid>,
}

/// Whom to let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Counts as root besides root: the running user of a private agent.
    pub(crate) own: Option<Uid>,
    /// May change.
    pub(crate) group: Option<Gid>,
    /// May read.
    pub(crate) readers: Option<Gid>,
}

impl Rules {
    /// What the peer may do; `None` is nothing at all.
    pub(crate) fn access(&self, peer: &Peer) -> Option<Access> {
        let is_member = |gid: Option<Gid>| gid.is_some_and(|gid| peer.gids.contains(&gid));
        if peer.uid.is_root() || self.own == Some(peer.uid) {
            Some(Access::Root)
        } else if is_member(self.group) {
            Some(Access::Change)
        } else if is_member(self.readers) {
            Some(Access::Read)
        } else {
            None
        }
    }
}

/// The id of a group; `None`, with a warning, where the system has no such group.
pub(crate) fn group_id(name: &str) -> Option<Gid> {
    match Group::from_name(name) {
        Ok(Some(group)) => return Some(group.gid),
        Ok(None) => tracing::warn!(group = name, "there is no such group, so it opens nothing"),
        Err(error) => tracing::warn!(group = name, %error, "the group cannot be looked up"),
    }
    None
}

/// The process at the other end of a connection.
pub(crate) fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    let mut gids = supplementary_groups(stream)?;
    gids.push(Gid::from_raw(credentials.gid()));
    Ok(Peer { pid: credentials.pid(), uid: Uid::from_raw(credentials.uid()), gids })
}

/// Asks the kernel, not the group database: a service may have groups that no database gives its user.
fn supplementary_groups(stream: &UnixStream) -> io::Result<Vec<Gid>> {
    const GID_BYTES: usize = size_of::<libc::gid_t>();
    let mut gids: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = libc::socklen_t::try_from(gids.len() * GID_BYTES).map_err(io::Error::other)?;
        // SAFETY: the pointer is to `length` writable bytes, which outlive the call; every bit pattern is a gid_t.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                gids.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / GID_BYTES;
        match Errno::result(result) {
            Ok(_) => return Ok(gids[..count].iter().copied().map(Gid::from_raw).collect()),
            // The kernel has said how much room it needs.
            Err(Errno::ERANGE) if count > gids.len() => gids.resize(count, 0),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_decide() {
        let gid = |n| Gid::from_raw(n);
        let system = Rules { own: None, group: Some(gid(50)), readers: Some(gid(60)) };
        let bare = Rules { own: None, group: None, readers: None };
        let private = Rules { own: Some(Uid::from_raw(1000)), group: None, readers: None };
        let table = [
            (&system, 0, vec![0], Some(Access::Root)),
            (&system, 1000, vec![1000, 50], Some(Access::Change)),
            (&system, 1000, vec![60, 50], Some(Access::Change)),
            (&system, 1000, vec![1000, 60], Some(Access::Read)),
            (&system, 1000, vec![1000], None),
            (&system, 50, vec![1000], None),
            (&bare, 0, vec![1000], Some(Access::Root)),
            (&bare, 1000, vec![0, 50], None),
            (&private, 1000, vec![1000], Some(Access::Root)),
            (&private, 1001, vec![1000], None),
        ];
        for (rules, uid, gids, expected) in table {
            let peer =
                Peer { pid: 1, uid: Uid::from_raw(uid), gids: gids.into_iter().map(Gid::from_raw).collect() };
            assert_eq!(rules.access(&peer), expected, "{rules:?} {peer:?}");
        }
    }

    #[test]
    fn the_kernel_names_the_peer() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = peer(&a).unwrap();
        assert_eq!(peer.uid, Uid::effective());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert!(peer.gids.contains(&Gid::effective()));
        let groups = nix::unistd::getgroups().unwrap();
        assert!(groups.iter().all(|gid| peer.gids.contains(gid)), "{groups:?} {peer:?}");
    }
}
