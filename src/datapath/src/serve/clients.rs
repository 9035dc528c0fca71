//! All clients of the disk: who comes in, who goes, and whose reply is whose.
//!
//! Any number of them up to [`LIMIT`]; who comes then is turned away at once, so that a client learns it and does not wait. Who
//! says nothing does not keep his place: a handshake takes [`HANDSHAKE`] at most. Clients that are served may be idle for ever. A
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
/// How long a client may take to agree on what it is served.
const HANDSHAKE: Duration = Duration::from_secs(30);
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
        let connection = Connection::new(self.count, socket, export, core.now + HANDSHAKE);
        self.connections.insert(self.count, connection);
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

    /// The time has come to see who has not agreed yet, and whether there is a descriptor again.
    pub(crate) fn tick(&mut self, core: &Core, poller: &Poller) {
        self.connections.values_mut().for_each(|connection| connection.tick(core.now));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::disk::{Disk, Opening, Part};
    use catena_blockio::engine::{self, Kind};
    use catena_blockio::sim::{SimDisk, SimWorld};
    use catena_types::{Bytes, ImageId};
    use catena_vhd::{CreateSpec, Image, Mode, create};
    use std::io::{Read, Write};
    use std::sync::Arc;

    /// A client's flags, and its wish for the default export.
    const AGREE: &[u8] = b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\0";

    /// An empty disk that is only read.
    fn core() -> Core {
        let container = SimDisk::automatic(&SimWorld::new());
        let spec = CreateSpec {
            id: ImageId::from_bytes([1; 16]),
            virtual_size: Bytes(2 << 20),
            parent: None,
            table_size: None,
            fixed: false,
            hidden: false,
            timestamp: 1,
        };
        create(&*container, &spec).unwrap();
        let layer = Arc::new(Image::open(container.clone(), Mode::ReadOnly).unwrap());
        let below = vec![Part { id: spec.id, layer, container }];
        let vdi = VdiUuid::from_bytes([1; 16]);
        let disk =
            Disk::open(Opening { vdi, boot: [2; 16], leaf: None, into: None, below, waits_when_full: true });
        Core::new(disk.unwrap(), engine::open(Kind::Threads).unwrap())
    }

    /// A door, and who comes in by it.
    struct House {
        core: Core,
        clients: Clients,
        poller: Poller,
        begin: Instant,
        home: tempfile::TempDir,
    }

    impl House {
        fn new() -> Self {
            let (home, poller, core) = (tempfile::tempdir().unwrap(), Poller::new().unwrap(), core());
            let listener = UnixListener::bind(home.path().join("nbd.sock")).unwrap();
            listener.set_nonblocking(true).unwrap();
            let clients = Clients::new(listener, VdiUuid::from_bytes([1; 16]), true, &poller).unwrap();
            Self { begin: core.now, core, clients, poller, home }
        }

        /// Somebody who comes in, says this, and listens from then on.
        fn come(&mut self, words: &[u8]) -> UnixStream {
            let mut client = UnixStream::connect(self.home.path().join("nbd.sock")).unwrap();
            client.write_all(words).unwrap();
            client.set_nonblocking(true).unwrap();
            self.clients.accept(&self.core, &self.poller);
            client
        }

        /// One turn, so long after the beginning.
        fn turn(&mut self, after: Duration) {
            self.core.now = self.begin + after;
            self.clients.tick(&self.core, &self.poller);
            self.clients.advance(&mut self.core, 0);
            self.clients.send(&mut self.core);
        }
    }

    /// Whether the other end of a connection is closed, behind what was said.
    fn is_closed(client: &mut UnixStream) -> bool {
        client.read_to_end(&mut Vec::new()).is_ok()
    }

    #[test]
    fn who_does_not_agree_in_time_is_left_and_who_has_agreed_may_be_silent_for_ever() {
        let mut house = House::new();
        let (mut silent, mut half) = (house.come(b""), house.come(&AGREE[..9]));
        let mut idle = house.come(AGREE);
        house.turn(Duration::ZERO);
        let late = Duration::from_secs(20);
        house.turn(late);
        let mut later = house.come(b"");
        assert_eq!(house.clients.deadline(&house.core), Some(house.begin + HANDSHAKE));

        house.turn(HANDSHAKE.saturating_sub(Duration::from_nanos(1)));
        assert!(![&mut silent, &mut half, &mut idle, &mut later].into_iter().any(is_closed), "too early");
        house.turn(HANDSHAKE);
        assert!([&mut silent, &mut half].into_iter().all(is_closed), "they still hold their places");
        assert_eq!(house.clients.len(), 2);
        assert_eq!(house.clients.deadline(&house.core), Some(house.begin + late + HANDSHAKE));
        house.turn(late + HANDSHAKE);
        assert!(is_closed(&mut later) && !is_closed(&mut idle), "each has its own time");
        house.turn(Duration::from_secs(1 << 30));
        assert!(!is_closed(&mut idle), "an idle client was left");
        assert_eq!((house.clients.len(), house.clients.deadline(&house.core)), (1, None));
    }
}
