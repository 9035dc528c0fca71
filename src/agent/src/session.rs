//! One connection: reads requests, gives each a thread of its own, sends the answers as they come.
//!
//! Bounded in every direction: the length of a line, the requests under way, the time without one, the time a client takes to
//! read an answer. A request beyond a bound is refused, the others go on. Requests of one connection run side by side: who wants
//! an order waits for the answer. Called by `server`.

use crate::access::{Access, Peer};
use crate::events::Subscription;
use crate::front::{self, Front};
use crate::routes::{Own, Route};
use catena_rpc::{IN_FLIGHT_LIMIT, Id, Message, Outcome, Reader, Request, Response, WireError, Writer};
use catena_types::{ErrorName, Failure};
use serde_json::json;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The bounds of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// Requests under way on one connection.
    pub(crate) in_flight: usize,
    /// A connection on which nothing happens for so long is closed.
    pub(crate) idle: Duration,
    /// A client that does not read for so long is gone.
    pub(crate) write: Duration,
}

/// The bounds in force.
pub(crate) const LIMITS: Limits = Limits {
    connections: 256,
    in_flight: IN_FLIGHT_LIMIT,
    idle: Duration::from_secs(600),
    write: Duration::from_secs(30),
};

/// Stack of a request's thread: there may be thousands, and none goes deep.
const STACK_BYTES: usize = 512 << 10;

/// A counter that is one higher while this lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Takes a place, if fewer than `limit` are taken.
    pub(crate) fn take(counter: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let more = |taken| (taken < limit).then_some(taken + 1);
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Self(Arc::clone(counter)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection.
pub(crate) struct Session {
    front: Arc<Front>,
    peer: Peer,
    access: Access,
    limits: Limits,
    writer: Writer,
    in_flight: Arc<AtomicUsize>,
    subscription: Option<Subscription>,
    /// Shared with the threads of its requests: the place is free when the last has ended.
    place: Arc<Counted>,
}

/// Refuses a connection: answers once, whatever the client may ask, and closes.
pub(crate) fn refuse(stream: UnixStream, failure: Failure) {
    // Who does not take the answer does without: a refusal must not hold anybody up.
    if stream.set_nonblocking(true).is_ok() {
        let (_, writer) = catena_rpc::split(stream);
        let _ = writer.send(&Message::Response(Response { id: Id::Null, outcome: Err(failure) }), &[]);
    }
}

impl Session {
    /// Serves a connection until it ends.
    pub(crate) fn serve(
        front: Arc<Front>,
        stream: UnixStream,
        (peer, access): (Peer, Access),
        limits: Limits,
        place: Counted,
    ) -> io::Result<()> {
        stream.set_read_timeout(Some(limits.idle))?;
        stream.set_write_timeout(Some(limits.write))?;
        let (reader, writer) = catena_rpc::split(stream);
        let in_flight = Arc::default();
        let place = Arc::new(place);
        let mut session = Self { front, peer, access, limits, writer, in_flight, subscription: None, place };
        session.run(reader);
        Ok(())
    }

    fn run(&mut self, mut reader: Reader) {
        loop {
            match reader.next_message() {
                Ok(None) => return,
                Ok(Some(incoming)) => match incoming.message {
                    Ok(Message::Request(request)) => self.take(request, incoming.fds),
                    Ok(_) => self.complain(front::bad_request("only requests are understood here")),
                    Err(failure) => self.complain(failure),
                },
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.in_flight.load(Ordering::SeqCst) == 0 && self.subscription.is_none() {
                        return self.complain(Failure::new(ErrorName::TryAgain, "the connection was idle"));
                    }
                }
                Err(WireError::Io(error)) => return tracing::debug!(%error, "a connection broke"),
                Err(error @ WireError::TooLong) => {
                    return self.complain(front::bad_request(error.to_string()));
                }
            }
        }
    }

    /// Answers what has no id.
    fn complain(&self, failure: Failure) {
        reply(&self.writer, Id::Null, Err(failure));
    }

    fn take(&mut self, request: Request, fds: Vec<OwnedFd>) {
        crate::points::REQUEST_RECEIVED.pass();
        let id = request.id.clone();
        if let Err(failure) = self.begin(request, fds) {
            reply(&self.writer, id, Err(failure));
        }
    }

    /// Starts the thread of a request, which answers it.
    fn begin(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let busy = |text: String| Failure::new(ErrorName::TryAgain, text);
        let Some(counted) = Counted::take(&self.in_flight, self.limits.in_flight) else {
            let text = format!("{} requests of this connection are under way", self.limits.in_flight);
            return Err(busy(text).hint("wait for an answer before the next request"));
        };
        let method = front::admit(self.access, &request.method)?;
        if method.route == Route::Front(Own::Subscribe) && self.subscription.is_none() {
            let subscription = self.front.starter.hub.subscribe(self.writer.clone());
            self.subscription = Some(subscription.map_err(|error| busy(error.to_string()))?);
        }
        let (front, writer, access) = (Arc::clone(&self.front), self.writer.clone(), self.access);
        let (place, pid, uid) = (Arc::clone(&self.place), self.peer.pid, self.peer.uid);
        let work = move || {
            let outcome = front.answer(access, method, request.params, fds);
            match &outcome {
                Ok(_) if method.for_readers => tracing::debug!(method = method.name, pid, %uid, "answered"),
                Ok(_) => tracing::info!(method = method.name, pid, %uid, "done"),
                Err(failure) => tracing::info!(method = method.name, pid, %uid, %failure, "refused"),
            }
            crate::points::BEFORE_REPLY.pass();
            // The answer is on its way before the next request may take its place.
            reply(&writer, request.id, outcome);
            drop((counted, place));
        };
        let thread = thread::Builder::new().name("request".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map(drop).map_err(|error| busy(format!("no thread can be started: {error}")))
    }
}

/// Sends an answer. A client that does not take it in time has lost its connection: half a line cannot be mended.
fn reply(writer: &Writer, id: Id, outcome: Outcome) {
    let response = Message::Response(Response { id, outcome });
    if let Err(error) = writer.send(&response, &[]) {
        tracing::debug!(%error, "an answer was not taken");
        writer.shutdown();
    }
}

/// What a peer gets that may do nothing.
pub(crate) fn not_allowed(peer: &Peer) -> Failure {
    Failure::new(ErrorName::BadRequest, format!("user {} may not use this agent", peer.uid))
        .hint("root and the members of the group catena may")
        .object("uid", json!(peer.uid.as_raw()))
}
