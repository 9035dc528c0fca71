//! The keeper's side door: its questions in, answers in their order and news out.
//!
//! The newest connection counts; an older one is closed, and what was still to be answered there is answered to nobody. When
//! the keeper goes away nothing changes for the disk: a quiesce stays as it is (D20). Owned by the event loop.

use super::poller::{Poller, Source};
use catena_control::{Ask, Channel, ChannelError, News, Packet, Said, Told, Trouble, TroubleKind};
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// Packets that a keeper may leave unread before its connection is given up.
const UNREAD: usize = 4096;

/// A question with its descriptors.
pub(crate) type Asked = (Ask, Vec<OwnedFd>);

/// How a question is going to be answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Like this.
    Ready(Result<Told, Trouble>),
    /// By the disk, as its next answer.
    FromDisk,
    /// With what is being served when all earlier questions are answered.
    Hello,
    /// With the figures of that time.
    Stats,
}

/// The listening socket, the connection that counts, and the answers that are due.
#[derive(Debug)]
pub(crate) struct Keepers {
    listener: UnixListener,
    /// Who besides root may connect: the user that started us.
    user: u32,
    peer: Option<Peer>,
    /// Connections so far.
    count: u32,
    /// Answers in the order of their questions, with the connection that asked.
    due: VecDeque<(u32, Answer)>,
}

#[derive(Debug)]
struct Peer {
    channel: Channel,
    /// It may have sent something.
    readable: bool,
    /// What it did not take yet.
    unsent: VecDeque<Said>,
}

impl Keepers {
    /// Nobody is connected. `user`: who besides root may connect.
    pub(crate) fn new(listener: UnixListener, user: u32, poller: &Poller) -> io::Result<Self> {
        poller.watch(&listener, Source::NewKeeper)?;
        Ok(Self { listener, user, peer: None, count: 0, due: VecDeque::new() })
    }

    /// Takes in who has connected.
    pub(crate) fn accept(&mut self, poller: &Poller) {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "a keeper cannot be accepted");
                    return;
                }
            };
            match getsockopt(&socket, sockopt::PeerCredentials) {
                Ok(peer) if peer.uid() == 0 || peer.uid() == self.user => {}
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "somebody who is not the keeper was turned away");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection without credentials was turned away");
                    continue;
                }
            }
            self.count = self.count.wrapping_add(1);
            if let Err(error) = poller.watch_edges(&socket, Source::Keeper(self.count)) {
                tracing::warn!(%error, "a keeper cannot be listened to");
                continue;
            }
            let channel = Channel::from_fd(OwnedFd::from(socket));
            self.peer = Some(Peer { channel, readable: true, unsent: VecDeque::new() });
        }
    }

    /// The connection of that number has something, or room.
    pub(crate) fn ready(&mut self, number: u32, readable: bool) {
        if let Some(peer) = self.peer.as_mut().filter(|_| number == self.count) {
            peer.readable |= readable;
            self.flush();
        }
    }

    /// The next question.
    pub(crate) fn next(&mut self) -> Option<Asked> {
        loop {
            let peer = self.peer.as_mut().filter(|peer| peer.readable)?;
            match peer.channel.poll::<Ask>() {
                Ok(Some(Some(Packet { message, fds }))) => return Some((message, fds)),
                Ok(Some(None)) => self.lose("it has gone"),
                Ok(None) => peer.readable = false,
                Err(ChannelError::Io(error)) => self.lose(&error.to_string()),
                Err(error) => {
                    let message = format!("a question cannot be understood: {error}");
                    self.owe(
                        self.count,
                        Answer::Ready(Err(Trouble { kind: TroubleKind::Unsupported, message })),
                    );
                }
            }
        }
    }

    /// Who asks now.
    pub(crate) const fn asker(&self) -> u32 {
        self.count
    }

    /// The question that came last from that asker is going to be answered like this.
    pub(crate) fn owe(&mut self, asker: u32, answer: Answer) {
        self.due.push_back((asker, answer));
    }

    /// The disk has an answer, to the oldest question that waits for one.
    pub(crate) fn disk_answers(&mut self, answer: Result<Told, Trouble>) {
        match self.due.iter_mut().find(|(_, due)| matches!(due, Answer::FromDisk)) {
            Some((_, due)) => *due = Answer::Ready(answer),
            None => tracing::warn!(?answer, "an answer that nobody asked for"),
        }
    }

    /// Sends the answers whose turn it is. `now` answers what is answered from the state of the moment.
    pub(crate) fn answer(&mut self, mut now: impl FnMut(&Answer) -> Told) {
        while let Some((number, due)) = self.due.front() {
            let (number, answer) = match due {
                Answer::FromDisk => break,
                Answer::Ready(_) => match self.due.pop_front() {
                    Some((number, Answer::Ready(answer))) => (number, answer),
                    _ => break,
                },
                moment => {
                    let answer = (*number, Ok(now(moment)));
                    self.due.pop_front();
                    answer
                }
            };
            if number == self.count {
                self.send(Said::Answer(answer));
            }
        }
    }

    /// Tells whoever is connected.
    pub(crate) fn tell(&mut self, news: News) {
        self.send(Said::News(news));
    }

    fn send(&mut self, said: Said) {
        if let Some(peer) = &mut self.peer {
            peer.unsent.push_back(said);
            if peer.unsent.len() > UNREAD {
                self.lose("it does not read");
                return;
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        while let Some(said) = peer.unsent.front() {
            match peer.channel.try_send(said) {
                Ok(true) => drop(peer.unsent.pop_front()),
                Ok(false) => return,
                Err(error) => return self.lose(&error.to_string()),
            }
        }
    }

    fn lose(&mut self, why: &str) {
        tracing::info!(why, "the keeper is not connected any more");
        self.peer = None;
    }
}
