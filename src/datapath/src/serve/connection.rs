//! One client: its bytes in, its replies out, neither ever waited for.
//!
//! ```text
//!   Greeting ──agreed──▶ Serving ──disconnect, or the end of what it sends──▶ Ending ──nothing left──▶ closed
//!       └───────────────────┴──────── an error of the socket, or nonsense ───────────────────────────▶ closed
//!       └──── not agreed in time ────────────────────────────────────────────────────────────────────▶ closed
//! ```
//!
//! Invariants: what a client makes us hold is bounded (64 KiB of requests, one part of a write, replies and requests under way
//! up to [`OWED`] bytes and one request more); beyond that it is not read until it has read its replies. Its requests outlive
//! it: what becomes of them is then told to nobody. Owned by the event loop.

use super::core::Core;
use super::input::{Input, Received};
use super::output::Output;
use super::poller::Ready;
use super::underway::{Place, UnderWay};
use super::work::{Outcome, Segment, Trouble, Work};
use catena_blockio::AlignedBuf;
use catena_nbd::{Errno, Event, Export, Handshake, Progress, ReadReply, Request, Requests, Session, What};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Bytes of replies, sent or to be, and of requests under way, beyond which no more requests are taken.
const OWED: u64 = 16 << 20;
/// Requests under way beyond which no more are taken.
const MANY: u32 = 1024;
/// A write is taken in parts of at most so many bytes.
const PART: usize = 1 << 20;
/// Bytes of the disk whose owners are found out with one request: each sector of them may have another owner.
const LOOKED_AT: u64 = 128 << 20;
/// The memory that this takes, in bytes, unless owners change with every sector.
const LOOK: u64 = 1 << 20;
/// Parts end at multiples of this, so that cutting a write into parts cuts no sector.
const PART_ALIGNMENT: u64 = 4096;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u32,
    socket: UnixStream,
    input: Input,
    output: Output,
    phase: Phase,
    /// Who has agreed on nothing by then is left: places are few.
    agree_by: Instant,
    /// The socket may have something.
    readable: bool,
    /// Its end is behind what can be read, and nobody will tell of it again.
    ended: bool,
    /// The socket takes nothing for now.
    blocked: bool,
    /// There may be something to do with what was received, but no room for it.
    stalled: bool,
    /// Requests of it under way.
    under_way: u32,
    /// Their bytes.
    bytes_under_way: u64,
}

#[derive(Debug)]
enum Phase {
    Greeting(Box<Handshake>),
    Serving(Box<Serving>),
    /// No more requests are taken.
    Ending(Option<Session>),
    /// To be closed as it is.
    Closed,
}

#[derive(Debug)]
struct Serving {
    session: Session,
    requests: Requests,
    /// A request that the limits of the disk did not admit yet.
    waiting: Option<Request>,
    /// The write whose bytes are coming.
    incoming: Option<Incoming>,
}

/// A write whose bytes are coming.
#[derive(Debug)]
struct Incoming {
    place: Place,
    /// Where its next part goes.
    at: u64,
    fua: bool,
    /// The part that is being filled; none while there is no room for one.
    part: Option<Part>,
}

/// The bytes of a part.
#[derive(Debug)]
struct Part {
    buf: AlignedBuf,
    filled: usize,
}

/// What the parser waits for.
#[derive(Debug, PartialEq, Eq)]
enum Wants {
    Bytes,
    Room,
    Nothing,
}

impl Connection {
    /// A client that has just connected, and has time to agree until then.
    pub(crate) fn new(number: u32, socket: UnixStream, export: Export, agree_by: Instant) -> Self {
        let mut output = Output::default();
        output.small(&Handshake::GREETING);
        Self {
            number,
            socket,
            input: Input::new(),
            output,
            phase: Phase::Greeting(Box::new(Handshake::new(export))),
            agree_by,
            readable: true,
            ended: false,
            blocked: false,
            stalled: false,
            under_way: 0,
            bytes_under_way: 0,
        }
    }

    /// Something has happened at the socket.
    pub(crate) fn is_ready(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.ended |= ready.ended;
        self.blocked &= !ready.writable;
    }

    /// Whether it could go on now without anything happening first.
    pub(crate) fn is_busy(&self, core: &Core) -> bool {
        match self.phase {
            Phase::Serving(ref serving) if self.stalled && serving.incoming.is_some() => core.disk.can_take(),
            Phase::Greeting(_) | Phase::Serving(_) if self.stalled => self.has_room(core),
            Phase::Greeting(_) | Phase::Serving(_) => self.readable,
            Phase::Ending(_) | Phase::Closed => false,
        }
    }

    /// When it can go on, if it waits for the time alone, or has to be looked at.
    pub(crate) fn deadline(&self, core: &Core) -> Option<Instant> {
        match self.phase {
            Phase::Greeting(_) => Some(self.agree_by),
            Phase::Serving(_) if self.stalled => self.held_until(core),
            _ => None,
        }
    }

    /// Leaves a client that has taken too long to agree, whatever it has said. One that has agreed may be silent for ever.
    pub(crate) fn tick(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Greeting(_)) && now >= self.agree_by {
            tracing::info!(
                client = self.number,
                "a client that does not come to an end with its handshake is left"
            );
            self.phase = Phase::Closed;
        }
    }

    /// Until when the limits of the disk hold its next request back. Asked anew each time: limits change, and others take from
    /// them, too.
    fn held_until(&self, core: &Core) -> Option<Instant> {
        match &self.phase {
            Phase::Serving(serving) => core.limiter.held_until(serving.waiting.as_ref()?, core.now),
            _ => None,
        }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        match self.phase {
            Phase::Closed => true,
            Phase::Ending(_) => self.under_way == 0 && self.output.len() == 0,
            Phase::Greeting(_) | Phase::Serving(_) => false,
        }
    }

    /// Takes no more requests.
    pub(crate) fn end(&mut self, core: &mut Core) {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        self.phase = match phase {
            Phase::Serving(serving) => {
                if let Some(Incoming { place, part, .. }) = serving.incoming {
                    // It never came whole: nobody is told what became of what did.
                    if let Some(done) = core.under_way.give_up(place) {
                        self.settled(&done);
                    }
                    part.into_iter().for_each(|part| core.disk.pool().give(part.buf));
                }
                Phase::Ending(Some(serving.session))
            }
            Phase::Greeting(_) => Phase::Ending(None),
            other => other,
        };
    }

    /// Gives back what it holds; what is under way ends without it.
    pub(crate) fn close(mut self, core: &mut Core) {
        self.end(core);
        self.output.drop_all(|buf| core.disk.pool().give(buf));
    }

    /// Takes in what the client has sent, as far as there is room for it; receives once at most, so that others have their
    /// turn.
    pub(crate) fn advance(&mut self, core: &mut Core) {
        let mut received = false;
        loop {
            let wants = self.take_in(core);
            self.stalled = wants == Wants::Room;
            if wants != Wants::Bytes || !self.readable || received {
                return;
            }
            received = true;
            if let Err(error) = self.receive(core) {
                tracing::debug!(client = self.number, %error, "a client is gone");
                self.abandon(core);
                return;
            }
        }
    }

    fn abandon(&mut self, core: &mut Core) {
        self.end(core);
        self.phase = Phase::Closed;
    }

    fn has_room(&self, core: &Core) -> bool {
        let owed = self.bytes_under_way + self.output.len() as u64;
        let is_held = self.held_until(core).is_some();
        owed < OWED && self.under_way < MANY && !is_held && core.disk.can_take()
    }

    fn receive(&mut self, core: &mut Core) -> io::Result<()> {
        let serving = match &mut self.phase {
            Phase::Serving(serving) => Some(serving),
            _ => None,
        };
        let open = serving.and_then(|serving| {
            let part = serving.incoming.as_mut()?.part.as_mut()?;
            Some((part, &mut serving.requests))
        });
        let received = match open {
            None => self.input.receive(&self.socket, None)?,
            Some((part, requests)) => {
                let received = self.input.receive(&self.socket, Some((&mut part.buf, part.filled)))?;
                if let Received::Some { payload, .. } = received {
                    part.filled += payload;
                    requests.payload_taken(short(payload));
                }
                received
            }
        };
        match received {
            Received::Nothing => self.readable = false,
            Received::Some { drained, .. } => self.readable = !drained || self.ended,
            Received::End => {
                // A client may close its half and wait for its replies.
                self.readable = false;
                self.end(core);
            }
        }
        Ok(())
    }

    /// Deals with what was received.
    fn take_in(&mut self, core: &mut Core) -> Wants {
        loop {
            let step = match self.phase {
                Phase::Greeting(_) => self.greet(core),
                Phase::Serving(_) => self.serve(core),
                Phase::Ending(_) | Phase::Closed => Some(Wants::Nothing),
            };
            if let Some(wants) = step {
                return wants;
            }
        }
    }

    /// Goes on with the handshake; `None`: there may be more to do.
    fn greet(&mut self, core: &Core) -> Option<Wants> {
        if !self.has_room(core) {
            return Some(Wants::Room);
        }
        let Phase::Greeting(handshake) = &mut self.phase else { return None };
        let mut rest = self.input.bytes();
        let (before, mut replies) = (rest.len(), Vec::new());
        let progress = handshake.feed(&mut rest, &mut replies);
        let taken = before - rest.len();
        self.input.consume(taken);
        self.output.small(&replies);
        match progress {
            Progress::More => return Some(Wants::Bytes),
            Progress::Closed(why) => {
                tracing::info!(client = self.number, why, "no agreement with a client");
                self.phase = Phase::Ending(None);
            }
            Progress::Serving(session) => {
                let requests = Requests::new(session);
                self.phase =
                    Phase::Serving(Box::new(Serving { session, requests, waiting: None, incoming: None }));
            }
        }
        None
    }

    /// Takes the next request, or more of a write; `None`: there may be more to do.
    fn serve(&mut self, core: &mut Core) -> Option<Wants> {
        let room = self.has_room(core);
        let Phase::Serving(serving) = &mut self.phase else { return None };
        let may_go_on = match &serving.incoming {
            None => room,
            // It was admitted; each part waits only until the disk can take it.
            Some(incoming) => incoming.part.is_some() || core.disk.can_take(),
        };
        if !may_go_on {
            return Some(Wants::Room);
        }
        if serving.incoming.is_some() {
            return serving.take_payload(&mut self.input, core).then_some(Wants::Bytes);
        }
        if let Some(request) = serving.waiting.take() {
            return self.admit(request, core);
        }
        let mut rest = self.input.bytes();
        let before = rest.len();
        let event = serving.requests.next(&mut rest).map(without_bytes);
        let taken = before - rest.len();
        self.input.consume(taken);
        match event {
            None => return Some(Wants::Bytes),
            Some(Event::Request(request)) => return self.admit(request, core),
            Some(Event::Refused(refusal)) => {
                let mut reply = Vec::new();
                serving.session.refused(&refusal, &mut reply);
                self.output.small(&reply);
            }
            Some(Event::Disconnect) => self.end(core),
            Some(Event::Broken | Event::Payload(_)) => {
                tracing::info!(client = self.number, "a client sends what is not a request");
                self.abandon(core);
            }
        }
        None
    }

    /// Begins a request, unless the limits of the disk want it to wait.
    fn admit(&mut self, request: Request, core: &mut Core) -> Option<Wants> {
        if core.limiter.admit(&request, core.now) {
            self.begin(request, core);
            return None;
        }
        if let Phase::Serving(serving) = &mut self.phase {
            serving.waiting = Some(request);
        }
        Some(Wants::Room)
    }

    fn begin(&mut self, request: Request, core: &mut Core) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        self.under_way += 1;
        self.bytes_under_way += weight(&request);
        let place = core.under_way.begin(self.number, request, core.now);
        let Request { at, len, what, .. } = request;
        let work = match what {
            What::Write { fua } => {
                serving.incoming = Some(Incoming { place, at, fua, part: None });
                return;
            }
            What::Read { .. } => Work::Read { at, len },
            What::Flush => Work::Flush,
            What::Trim { fua } => Work::Trim { at, len, fua },
            What::Zeroes { fua, no_hole, fast } => Work::Zeroes { at, len, fua, no_hole, fast },
            What::Cache => Work::Cache { at, len: looked_at(at, len) },
            What::Status { one } => Work::Status { at, len: looked_at(at, len), one },
        };
        core.submit(place, work);
        core.under_way.complete(place);
    }

    /// A request of this client is done.
    pub(crate) fn reply(&mut self, done: &UnderWay, outcome: Outcome, core: &mut Core) {
        self.settled(done);
        let (Phase::Serving(_) | Phase::Ending(_)) = &self.phase else { return };
        let Some(session) = self.session() else { return };
        let request = &done.request;
        match (done.trouble, outcome) {
            (Some(trouble), outcome) => {
                core.discard(outcome);
                let (error, why) = in_words(trouble);
                let mut reply = Vec::new();
                session.failed(request.cookie, error, why, None, &mut reply);
                self.output.small(&reply);
            }
            (None, Outcome::Data(segments)) => self.send_data(ReadReply::new(&session, request), segments),
            (None, Outcome::Extents(extents)) => {
                let mut reply = Vec::new();
                session.extents(request, &extents, &mut reply);
                self.output.small(&reply);
            }
            (None, _) => self.output.small(&session.done(request.cookie)),
        }
    }

    fn send_data(&mut self, mut reply: ReadReply, segments: Vec<Segment>) {
        for segment in segments {
            match segment {
                Segment::Bytes { buf, range } => {
                    self.output.small(&reply.data(short(range.len())));
                    self.output.data(buf, range);
                }
                Segment::Zeros(count) => {
                    let (head, zeros) = reply.zeros(short(count));
                    self.output.small(&head);
                    self.output.zeros(zeros as usize);
                }
            }
        }
    }

    /// Sends what the socket takes.
    pub(crate) fn send(&mut self, core: &mut Core) {
        if self.blocked {
            return;
        }
        match self.output.send(&self.socket, |buf| core.disk.pool().give(buf)) {
            Ok(all) => self.blocked = !all,
            Err(error) => {
                tracing::debug!(client = self.number, %error, "a client takes no more replies");
                self.abandon(core);
            }
        }
    }

    fn session(&self) -> Option<Session> {
        match &self.phase {
            Phase::Serving(serving) => Some(serving.session),
            Phase::Ending(session) => *session,
            Phase::Greeting(_) | Phase::Closed => None,
        }
    }

    fn settled(&mut self, done: &UnderWay) {
        self.under_way -= 1;
        self.bytes_under_way -= weight(&done.request);
    }
}

impl Serving {
    /// Takes what there is of a write's bytes. True: more have to come first.
    fn take_payload(&mut self, input: &mut Input, core: &mut Core) -> bool {
        let Some(incoming) = &mut self.incoming else { return false };
        let left = self.requests.payload_left();
        let at = incoming.at;
        let part = incoming
            .part
            .get_or_insert_with(|| Part { buf: core.disk.pool().take(part_length(at, left)), filled: 0 });
        let count = input.move_to(&mut part.buf[part.filled..]);
        part.filled += count;
        self.requests.payload_taken(short(count));
        if part.filled < part.buf.len() {
            return true;
        }
        if let Some(Part { buf, .. }) = incoming.part.take() {
            let len = short(buf.len());
            incoming.at += u64::from(len);
            core.submit(incoming.place, Work::Write { at, len, data: buf, fua: incoming.fua });
        }
        if self.requests.payload_left() == 0 {
            core.under_way.complete(incoming.place);
            self.incoming = None;
        }
        false
    }
}

/// The bytes of a write are taken elsewhere, so none come as an event.
const fn without_bytes(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Request(request) => Event::Request(request),
        Event::Refused(refusal) => Event::Refused(refusal),
        Event::Disconnect => Event::Disconnect,
        Event::Payload(_) | Event::Broken => Event::Broken,
    }
}

/// The length of the part of a write that begins at `at` and has `left` bytes.
fn part_length(at: u64, left: u32) -> usize {
    let left = left as usize;
    if left <= PART {
        return left;
    }
    let over = (at + PART as u64) % PART_ALIGNMENT;
    PART - usize::try_from(over).unwrap_or_default()
}

/// The memory that a request may need, in bytes. That of a write's parts is the disk's, which counts it.
fn weight(request: &Request) -> u64 {
    match request.what {
        What::Read { .. } => u64::from(request.len),
        What::Write { .. } => u64::from(request.len).min(PART as u64),
        What::Cache | What::Status { .. } => LOOK,
        _ => 0,
    }
}

/// How much of a range is looked at to tell who owns it: up to a border, so that extents end with sectors. The client asks on
/// from there, or is content.
fn looked_at(at: u64, len: u32) -> u32 {
    let most = LOOKED_AT - at % LOOKED_AT;
    u32::try_from(most).map_or(len, |most| most.min(len))
}

/// A length that a request can have.
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

const fn in_words(trouble: Trouble) -> (Errno, &'static str) {
    match trouble {
        Trouble::Io => (Errno::Io, "the storage failed"),
        Trouble::NoSpace => (Errno::NoSpc, "the storage is full"),
        Trouble::NotSupported => (Errno::NotSup, "it would not be faster than writing"),
        Trouble::ReadOnly => (Errno::Perm, "the disk is read-only"),
        Trouble::ShuttingDown => (Errno::Shutdown, "the disk is about to be closed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_ends_at_the_next_border_or_with_the_range() {
        let border = 128 << 20;
        for (at, len, looked) in [
            (0, 512, 512),
            (0, u32::MAX, border),
            (7, u32::MAX, border - 7),
            (u64::from(border) - 1, 2, 1),
            (u64::from(border), border, border),
            (u64::MAX - 1, 1, 1),
        ] {
            assert_eq!(looked_at(at, len), looked, "{len} bytes from {at}");
        }
    }
}
