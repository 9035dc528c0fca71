//! One connection: reads requests, gives each a thread of its own, sends the answers as they come.
//!
//! Bounded in every direction: the length of a line, the requests under way, the time without one, the time a client takes to
//! read an answer. A request beyond a bound is refused, the others go on. Requests of one connection run side by side: who wants
//! an order waits for the answer. Called by `server`.

use crate::access::{Access, Peer};
use crate::events::Subscription;
use crate::front::{self, Front};
use crate::routes::{Own, Route};
use catena_rpc::{IN_FLIGHT_LIMIT, Id, Message, Reader, Reply, Request, Response, WireError, Writer};
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
    /// Requests that are not answered.
    in_flight: Arc<AtomicUsize>,
    /// Threads of requests: those, and the ones that are sending an answer.
    threads: Arc<AtomicUsize>,
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
        let mut session = Self {
            front,
            peer,
            access,
            limits,
            writer,
            in_flight: Arc::default(),
            threads: Arc::default(),
            subscription: None,
            place: Arc::new(place),
        };
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
                    if self.threads.load(Ordering::SeqCst) == 0 && self.subscription.is_none() {
                        return self.complain(Failure::new(ErrorName::TryAgain, "the connection was idle"));
                    }
                }
                Err(WireError::Io(error)) => return tracing::debug!(%error, "a connection broke"),
                Err(error @ WireError::TooLong(_)) => {
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
        let limit = self.limits.in_flight;
        let counted = Counted::take(&self.in_flight, limit);
        let (Some(counted), Some(thread)) = (counted, Counted::take(&self.threads, 2 * limit)) else {
            return Err(busy(format!("{limit} requests of this connection are under way"))
                .hint("take an answer before the next request"));
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
            // Who has got the answer may send the next request at once; who takes none runs out of threads.
            drop(counted);
            reply(&writer, request.id, outcome);
            drop((thread, place));
        };
        let thread = thread::Builder::new().name("request".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map(drop).map_err(|error| busy(format!("no thread can be started: {error}")))
    }
}

/// Sends an answer. A client that does not take it in time has lost its connection: half a line cannot be mended.
fn reply(writer: &Writer, id: Id, outcome: Reply) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Door, Server};
    use crate::testing::{Script, front};
    use catena_rpc::connect;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::RwLock;

    const SMALL: Limits = Limits {
        connections: 2,
        in_flight: 2,
        idle: Duration::from_secs(3600),
        write: Duration::from_secs(3600),
    };

    /// Runs `client` against a server with these limits, whose SR "a" has a keeper that follows the script.
    fn served(limits: Limits, script: Script, client: impl FnOnce(PathBuf)) {
        let (front, directory) = front([script]);
        let front = Arc::new(front);
        let socket = directory.path().join("agent.sock");
        let server = Server::bind(directory.path(), &socket, Door { group: None, readers: false }).unwrap();
        let own = Some(nix::unistd::Uid::effective());
        let rules = RwLock::new(crate::access::Rules { own, group: None, readers: None });
        thread::scope(|scope| {
            scope.spawn(|| server.serve(&front, &rules, limits));
            client(socket);
            front.stopping.store(true, Ordering::SeqCst);
            server.close();
        });
    }

    fn send(writer: &Writer, id: u64, method: &str) {
        let params = if method.starts_with("SR.") { json!({"sr": "a"}) } else { json!({}) };
        let request = Request { id: Id::Number(id), method: method.to_owned(), params };
        writer.send(&Message::Request(request), &[]).unwrap();
    }

    fn receive(reader: &mut Reader) -> Option<Response> {
        match reader.next_message().unwrap()?.message.unwrap() {
            Message::Response(response) => Some(response),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_come_as_they_are_ready_and_too_many_requests_are_refused() {
        served(SMALL, Script::new().ignore("SR.scan").ignore("SR.check"), |socket| {
            let (mut reader, writer) = connect(&socket).unwrap();
            send(&writer, 1, "SR.scan");
            for id in 2..20 {
                send(&writer, id, "SR.stat");
                assert_eq!(
                    receive(&mut reader).unwrap(),
                    Response { id: Id::Number(id), outcome: Ok(json!({}).into()) }
                );
            }
            send(&writer, 20, "SR.check");
            send(&writer, 21, "SR.stat");
            let refused = receive(&mut reader).unwrap();
            assert_eq!(
                (refused.id, refused.outcome.unwrap_err().name),
                (Id::Number(21), ErrorName::TryAgain)
            );
        });
    }

    #[test]
    fn what_is_no_request_is_refused_and_the_connection_goes_on() {
        served(SMALL, Script::new(), |socket| {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(b"hello\n{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n").unwrap();
            let (mut reader, writer) = catena_rpc::split(stream);
            for _ in 0..2 {
                let refused = receive(&mut reader).unwrap();
                assert_eq!(
                    (refused.id, refused.outcome.unwrap_err().name),
                    (Id::Null, ErrorName::BadRequest)
                );
            }
            send(&writer, 1, "SR.fly");
            assert_eq!(receive(&mut reader).unwrap().outcome.unwrap_err().name, ErrorName::Unsupported);
            send(&writer, 2, "Agent.version");
            assert!(receive(&mut reader).unwrap().outcome.unwrap().value()["version"].is_string());
        });
    }

    #[test]
    fn a_line_that_is_too_long_ends_the_connection() {
        served(SMALL, Script::new(), |socket| {
            let mut stream = UnixStream::connect(socket).unwrap();
            // The other end may close before it has read all.
            let _ = stream.write_all(&vec![b'x'; catena_rpc::LINE_LIMIT + 1]);
            let (mut reader, _writer) = catena_rpc::split(stream);
            let refused = receive(&mut reader).unwrap().outcome.unwrap_err();
            assert!(refused.message.contains("longer"), "{refused}");
            assert!(!matches!(reader.next_message(), Ok(Some(_))));
        });
    }

    #[test]
    fn an_idle_connection_ends_but_not_one_that_waits() {
        let limits = Limits { idle: Duration::from_millis(20), ..SMALL };
        served(limits, Script::new().ignore("SR.scan"), |socket| {
            let (mut waiting, writer) = connect(&socket).unwrap();
            send(&writer, 1, "SR.scan");
            let (mut idle, _writer) = connect(&socket).unwrap();
            assert_eq!(receive(&mut idle).unwrap().id, Id::Null);
            assert_eq!(receive(&mut idle), None);
            send(&writer, 2, "SR.stat");
            assert_eq!(receive(&mut waiting).unwrap().id, Id::Number(2));
        });
    }

    #[test]
    fn a_connection_too_many_is_refused() {
        served(SMALL, Script::new(), |socket| {
            let mut kept = Vec::new();
            for _ in 0..SMALL.connections {
                let (mut reader, writer) = connect(&socket).unwrap();
                send(&writer, 1, "SR.stat");
                receive(&mut reader).unwrap();
                kept.push((reader, writer));
            }
            let (mut reader, _writer) = connect(&socket).unwrap();
            assert_eq!(receive(&mut reader).unwrap().outcome.unwrap_err().name, ErrorName::TryAgain);
            assert_eq!(receive(&mut reader), None);
        });
    }

    #[test]
    fn a_subscriber_gets_what_keepers_tell() {
        served(SMALL, Script::new().tell("SR.scan", json!({"id": "e"})), |socket| {
            let (mut reader, writer) = connect(&socket).unwrap();
            send(&writer, 1, "Event.subscribe");
            assert_eq!(receive(&mut reader).unwrap().id, Id::Number(1));
            send(&writer, 2, "SR.scan");
            loop {
                match reader.next_message().unwrap().unwrap().message.unwrap() {
                    Message::Notification(event) => break assert_eq!(event.params, json!({"id": "e"})),
                    other => assert!(matches!(other, Message::Response(_))),
                }
            }
        });
    }
}
