//! Who has something for the loop: an epoll set, and what each entry in it stands for.
//!
//! Sockets of clients and of the keeper are watched for edges: who is told that one can be read or written keeps that in mind
//! until the kernel says that it would block, and no call is made to change what is watched. Everything else is watched for
//! levels.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Events taken in one call.
const BATCH: usize = 64;

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A client wants to be accepted.
    NewClient,
    /// A keeper wants to be accepted.
    NewKeeper,
    /// The engine has completions.
    Engine,
    /// A signal has arrived.
    Signals,
    /// The keeper's connection of this number.
    Keeper(u32),
    /// The client's connection of this number.
    Client(u32),
}

impl Source {
    fn to_word(self) -> u64 {
        match self {
            Self::NewClient => 0,
            Self::NewKeeper => 1,
            Self::Engine => 2,
            Self::Signals => 3,
            Self::Keeper(number) => 4 << 32 | u64::from(number),
            Self::Client(number) => 5 << 32 | u64::from(number),
        }
    }

    fn from_word(word: u64) -> Self {
        let [_, _, _, kind, number @ ..] = word.to_be_bytes();
        let number = u32::from_be_bytes(number);
        match (kind, number) {
            (5, number) => Self::Client(number),
            (4, number) => Self::Keeper(number),
            (_, 0) => Self::NewClient,
            (_, 1) => Self::NewKeeper,
            (_, 2) => Self::Engine,
            _ => Self::Signals,
        }
    }
}

/// What has happened there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// Where.
    pub(crate) source: Source,
    /// It can be read, or has come to an end.
    pub(crate) readable: bool,
    /// Nothing will come after what can be read now.
    pub(crate) ended: bool,
    /// It can be written, or nobody will ever read it.
    pub(crate) writable: bool,
}

/// The set.
#[derive(Debug)]
pub(crate) struct Poller(Epoll);

impl Poller {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches for something to be read, as long as there is.
    pub(crate) fn watch(&self, what: impl AsFd, source: Source) -> io::Result<()> {
        Ok(self.0.add(what, EpollEvent::new(EpollFlags::EPOLLIN, source.to_word()))?)
    }

    /// Watches a connection for edges, in both directions. It leaves the set when it is closed.
    pub(crate) fn watch_edges(&self, what: impl AsFd, source: Source) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.0.add(what, EpollEvent::new(flags, source.to_word()))?)
    }

    /// Watches it no more.
    pub(crate) fn forget(&self, what: impl AsFd) -> io::Result<()> {
        Ok(self.0.delete(what)?)
    }

    /// Waits until something has happened, for at most so long; `None`: for as long as it takes.
    pub(crate) fn wait(&self, patience: Option<Duration>, into: &mut Vec<Ready>) -> io::Result<()> {
        into.clear();
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.0.wait(&mut events, timeout(patience)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let ended = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let no_more = EpollFlags::EPOLLRDHUP | ended;
        into.extend(events[..count].iter().map(|event| Ready {
            source: Source::from_word(event.data()),
            readable: event.events().intersects(EpollFlags::EPOLLIN | no_more),
            ended: event.events().intersects(no_more),
            writable: event.events().intersects(EpollFlags::EPOLLOUT | ended),
        }));
        Ok(())
    }
}

/// In whole milliseconds, rounded up: who wakes too early finds nothing to do and waits again, for nothing.
fn timeout(patience: Option<Duration>) -> EpollTimeout {
    let Some(patience) = patience else { return EpollTimeout::NONE };
    let millis = i32::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn every_source_comes_back_as_it_went_in() {
        let number = [0, 1, 77, u32::MAX];
        let numbered = number.into_iter().flat_map(|n| [Source::Keeper(n), Source::Client(n)]);
        let plain = [Source::NewClient, Source::NewKeeper, Source::Engine, Source::Signals];
        for source in numbered.chain(plain) {
            assert_eq!(Source::from_word(source.to_word()), source);
        }
    }

    #[test]
    fn an_edge_is_told_once_and_a_level_until_it_is_gone() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let (edges, levels) = (Poller::new().unwrap(), Poller::new().unwrap());
        edges.watch_edges(&ours, Source::Client(3)).unwrap();
        levels.watch(&ours, Source::Engine).unwrap();
        let mut ready = Vec::new();
        let now = Some(Duration::ZERO);
        edges.wait(now, &mut ready).unwrap();
        assert!(matches!(
            ready[..],
            [Ready { source: Source::Client(3), readable: false, ended: false, writable: true }]
        ));
        theirs.write_all(b"x").unwrap();
        edges.wait(now, &mut ready).unwrap();
        assert!(matches!(ready[..], [Ready { source: Source::Client(3), readable: true, .. }]));
        edges.wait(now, &mut ready).unwrap();
        assert!(ready.is_empty());
        for _ in 0..2 {
            levels.wait(now, &mut ready).unwrap();
            assert!(matches!(ready[..], [Ready { source: Source::Engine, readable: true, .. }]));
        }
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 1);
        levels.wait(now, &mut ready).unwrap();
        assert!(ready.is_empty());
        drop(theirs);
        edges.wait(now, &mut ready).unwrap();
        assert!(matches!(ready[..], [Ready { readable: true, ended: true, writable: true, .. }]));
    }
}
