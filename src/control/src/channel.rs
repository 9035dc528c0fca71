//! One end of the socketpair: packets of JSON with descriptors.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, connect, listen, recvmsg, sendmsg, socket, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// The most descriptors in one packet.
const FD_LIMIT: usize = 128;
/// The most bytes in one packet.
const PACKET_LIMIT: usize = 160 << 10;

/// Connections that may wait to be taken up.
const BACKLOG: i32 = 16;

/// Why nothing can be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("the control channel failed")]
    Io(#[from] io::Error),
    /// The peer sent what this program does not understand.
    #[error("a control message cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// A message or its descriptors do not fit into a packet.
    #[error("a control message is too large")]
    TooLarge,
}

/// A message and what came with it.
#[derive(Debug)]
pub struct Packet<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, in the order in which they were sent.
    pub fds: Vec<OwnedFd>,
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A fresh pair; both ends are closed on exec.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        Ok((Self(a), Self(b)))
    }

    /// A socket at this path (at most 107 bytes) that peers can connect to; it is closed on exec. The file's mode is that of the
    /// umask: who may connect is decided by its directory.
    pub fn listen(path: &Path) -> Result<OwnedFd, ChannelError> {
        let socket = unconnected(SockFlag::empty())?;
        let address = UnixAddr::new(path).map_err(io::Error::from)?;
        bind(socket.as_raw_fd(), &address).map_err(io::Error::from)?;
        listen(&socket, Backlog::new(BACKLOG).map_err(io::Error::from)?).map_err(io::Error::from)?;
        Ok(socket)
    }

    /// Connects to a socket of [`listen`](Self::listen). Waits for nobody: where too many connections wait to be taken up, the
    /// error is [`io::ErrorKind::WouldBlock`].
    pub fn connect(path: &Path) -> Result<Self, ChannelError> {
        let socket = unconnected(SockFlag::SOCK_NONBLOCK)?;
        let address = UnixAddr::new(path).map_err(io::Error::from)?;
        connect(socket.as_raw_fd(), &address).map_err(io::Error::from)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).map_err(io::Error::from)?;
        Ok(Self(socket))
    }

    /// The end behind a descriptor, such as a child's standard input.
    pub const fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor, to hand the end to a child.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Ends the conversation for every handle of this end: the peer finds it gone.
    pub fn shutdown(&self) {
        // A peer that is gone already needs no telling.
        let _ = nix::sys::socket::shutdown(self.0.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// A second handle of the same end, for a thread that only sends.
    pub fn try_clone(&self) -> Result<Self, ChannelError> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends one message with its descriptors (at most 128).
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_with(message, fds, MsgFlags::empty())
    }

    /// Sends one message if the peer has room for it; false, and nothing was sent, if it has not.
    pub fn try_send<T: Serialize>(&self, message: &T) -> Result<bool, ChannelError> {
        self.try_send_with(message, &[])
    }

    /// The same with descriptors.
    pub fn try_send_with<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<bool, ChannelError> {
        match self.send_with(message, fds, MsgFlags::MSG_DONTWAIT) {
            Ok(()) => Ok(true),
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send_with<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > PACKET_LIMIT || fds.len() > FD_LIMIT {
            return Err(ChannelError::TooLarge);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        loop {
            let parts = [IoSlice::new(&bytes)];
            let flags = flags | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// The next message; `None` once the peer has gone. Blocks.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<Packet<T>>, ChannelError> {
        self.receive_with(MsgFlags::empty()).map(Option::flatten)
    }

    /// A message if one is waiting (`Some(None)`: the peer has gone), otherwise `None` at once.
    pub fn poll<T: DeserializeOwned>(&self) -> Result<Option<Option<Packet<T>>>, ChannelError> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    /// Waits until something can be received, or the peer has gone, for at most so long (to the millisecond, rounded up).
    pub fn wait(&self, patience: Duration) -> Result<(), ChannelError> {
        let millis = i32::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn receive_with<T: DeserializeOwned>(
        &self,
        flags: MsgFlags,
    ) -> Result<Option<Option<Packet<T>>>, ChannelError> {
        let mut bytes = vec![0; PACKET_LIMIT];
        let mut control = cmsg_space!([RawFd; FD_LIMIT]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = loop {
            let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ECONNRESET) => return Ok(Some(None)),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        };
        let length = received.bytes;
        let mut fds = Vec::new();
        for message in received.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if length == 0 {
            return Ok(Some(None));
        }
        Ok(Some(Some(Packet { message: serde_json::from_slice(&bytes[..length])?, fds })))
    }
}

fn unconnected(flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)?;
    Ok(socket)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn messages_keep_their_borders_and_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        a.send(&"one", &[]).unwrap();
        a.send(&"x".repeat(100_000), &[file.as_fd(), file.as_fd()]).unwrap();
        assert_eq!(b.receive::<String>().unwrap().unwrap().message, "one");
        let mut second = b.receive::<String>().unwrap().unwrap();
        assert_eq!((second.message.len(), second.fds.len()), (100_000, 2));
        let mut received = std::fs::File::from(second.fds.remove(0));
        received.rewind().unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn who_connects_gets_an_end_of_its_own_or_learns_that_nobody_listens() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("control.sock");
        let listener = Channel::listen(&path).unwrap();
        let near = Channel::connect(&path).unwrap();
        near.send(&"hello", &[]).unwrap();
        let raw = nix::sys::socket::accept(listener.as_raw_fd()).unwrap();
        // SAFETY: `accept` has just made this descriptor, and nothing else has it.
        let far = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(raw) });
        assert_eq!(far.receive::<String>().unwrap().unwrap().message, "hello");
        drop(listener);
        let refused = Channel::connect(&path);
        assert!(
            matches!(refused, Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
        );
    }

    #[test]
    fn connecting_waits_for_nobody() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("control.sock");
        let _listener = Channel::listen(&path).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match Channel::connect(&path) {
                Ok(channel) => waiting.push(channel),
                Err(error) => break error,
            }
        };
        assert!(matches!(full, ChannelError::Io(error) if error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn an_idle_peer_and_a_gone_peer_differ() {
        let (a, b) = Channel::pair().unwrap();
        assert!(b.poll::<String>().unwrap().is_none());
        drop(a);
        assert!(matches!(b.poll::<String>(), Ok(Some(None))));
        assert!(b.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn a_peer_that_reads_nothing_holds_nobody_up() {
        let (a, b) = Channel::pair().unwrap();
        let sent = (0..100_000).find(|number| !a.try_send(number).unwrap()).unwrap();
        for number in 0..sent {
            assert_eq!(b.receive::<i32>().unwrap().unwrap().message, number);
        }
        assert!(a.try_send(&sent).unwrap());
        drop(b);
        assert!(a.try_send(&sent).is_err());
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_sent() {
        let (a, b) = Channel::pair().unwrap();
        assert!(matches!(a.send(&"x".repeat(200 << 10), &[]), Err(ChannelError::TooLarge)));
        assert!(b.poll::<String>().unwrap().is_none());
    }
}
