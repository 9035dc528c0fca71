//! All clients of the disk: who comes in, who goes, and whose reply is whose.
//!
//! Any number of them up to [`LIMIT`]; who comes then is turned away at once, so that a client learns it and does not wait. A
//! client that waits, floods or reads nothing holds up itself alone. Owned by the event loop.

use super::connection::Connection;
use super::core::Core;
use super::poller::{Poller, Ready, Source};
use catena_nbd::Export;
use catena_types::VdiUuid;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Connections at a time.
const LIMIT: usize = 512;
/// How long nobody is accepted when the system has no descriptor left for a client.
const REST: Duration = Duration::from_millis(200);

/// The listening socket and the connections.
#[derive(Debug)]
pub(crate) struct Clients {
    listener: UnixListener,
    vdi: VdiUuid,
    read_only: bool,
    connections: BTreeMap<u32, Connection>,
    /// Connections so far.
    count: u32,
    door: Door,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Opened again then.
    Resting(Instant),
    Closed,
}

impl Clients {
    /// Nobody yet.
    pub(crate) fn new(
        listener: UnixListener,
        vdi: VdiUuid,
        read_only: bool,
        poller: &Poller,
    ) -> io::Result<Self> {
        poller.watch(&listener, Source::NewClient)?;
        Ok(Self { listener, vdi, read_only, connections: BTreeMap::new(), count: 0, door: Door::Open })
    }

    /// Takes in who has connected.
    pub(crate) fn accept(&mut self, core: &Core, poller: &Poller) {
        while self.door == Door::Open {
            match self.listener.accept() {
                Ok((socket, _)) if self.connections.len() >= LIMIT => {
                    tracing::warn!(limit = LIMIT, "a client was turned away: there are too many");
                    drop(socket);
                }
                Ok((socket, _)) => self.welcome(socket, core, poller),
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::EAGAIN => return,
                    Errno::EINTR | Errno::ECONNABORTED => {}
                    _ => {
                        tracing::warn!(%error, "a client cannot be accepted; trying again soon");
                        self.shut(Door::Resting(core.now + REST), poller);
                    }
                },
            }
        }
    }

    fn welcome(&mut self, socket: UnixStream, core: &Core, poller: &Poller) {
        self.count = self.count.wrapping_add(1);
        let watched = socket
            .set_nonblocking(true)
            .and_then(|()| poller.watch_edges(&socket, Source::Client(self.count)));
        if let Err(error) = watched {
            tracing::warn!(%error, "a client cannot be listened to");
            return;
        }
        let export = Export {
            name: self.vdi.to_string(),
            description: format!("Catena disk {}", self.vdi),
            size: core.disk.size().0,
            read_only: self.read_only,
        };
        self.connections.insert(self.count, Connection::new(self.count, socket, export));
    }

    fn shut(&mut self, door: Door, poller: &Poller) {
        if self.door == Door::Open
            && let Err(error) = poller.forget(&self.listener)
        {
            tracing::warn!(%error, "the listening socket is still watched");
        }
        self.door = door;
    }

    /// Something has happened at a connection.
    pub(crate) fn ready(&mut self, number: u32, ready: Ready) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.is_ready(ready);
        }
    }

    /// Takes in what clients have sent. Another one begins in every turn: where there is no room for all, each gets his.
    pub(crate) fn advance(&mut self, core: &mut Core, turn: u32) {
        let first = self.connections.keys().nth(turn as usize % self.connections.len().max(1)).copied();
        let first = first.unwrap_or_default();
        for (_, connection) in self.connections.range_mut(first..) {
            connection.advance(core);
        }
        for (_, connection) in self.connections.range_mut(..first) {
            connection.advance(core);
        }
    }

    /// Passes on what has been done.
    pub(crate) fn reply(&mut self, core: &mut Core) {
        for (number, outcome) in core.disk.finished() {
            let trouble = match &outcome {
                super::work::Outcome::Failed(trouble) => Some(*trouble),
                _ => None,
            };
            let Some(done) = core.under_way.done(number, trouble) else {
                core.discard(outcome);
                continue;
            };
            core.figures.answered(&done.request, done.trouble.is_some(), core.now - done.since);
            match self.connections.get_mut(&done.client) {
                Some(connection) => connection.reply(&done, outcome, core),
                None => core.discard(outcome),
            }
        }
    }

    /// Sends what can be sent, and closes what is over.
    pub(crate) fn send(&mut self, core: &mut Core) {
        let mut over = Vec::new();
        for (number, connection) in &mut self.connections {
            connection.send(core);
            if connection.is_over() {
                over.push(*number);
            }
        }
        for number in over {
            if let Some(connection) = self.connections.remove(&number) {
                connection.close(core);
            }
        }
    }

    /// Whether somebody could go on at once.
    pub(crate) fn is_busy(&self, core: &Core) -> bool {
        self.connections.values().any(|connection| connection.is_busy(core))
    }

    /// When the door has to be looked at, or somebody can go on.
    pub(crate) fn deadline(&self, core: &Core) -> Option<Instant> {
        let door = match self.door {
            Door::Resting(until) => Some(until),
            Door::Open | Door::Closed => None,
        };
        self.connections.values().filter_map(|connection| connection.deadline(core)).chain(door).min()
    }

    /// The time has come to see whether there is a descriptor again.
    pub(crate) fn tick(&mut self, core: &Core, poller: &Poller) {
        if let Door::Resting(until) = self.door
            && core.now >= until
        {
            match poller.watch(&self.listener, Source::NewClient) {
                Ok(()) => self.door = Door::Open,
                Err(_) => self.door = Door::Resting(core.now + REST),
            }
        }
    }

    /// Nobody is let in any more, and no more requests are taken.
    pub(crate) fn end(&mut self, core: &mut Core, poller: &Poller) {
        self.shut(Door::Closed, poller);
        for connection in self.connections.values_mut() {
            connection.end(core);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }
}
