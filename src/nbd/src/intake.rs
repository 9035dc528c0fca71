//! A client's bytes in transmission, cut into requests and the data of writes.
//!
//! ```text
//!   Header ──write──▶ Payload ──last byte──▶ Header
//!      │ └─refused write──▶ Refused ──last byte──▶ Header [refusal]
//!      └─disconnect, or not a request──▶ Over
//! ```
//!
//! Nothing is allocated, and nothing is kept but the piece of a request that has not arrived whole. Called by the owner of a
//! connection, which stops calling while it has no room for another request.

use crate::request::{Parsed, REQUEST_BYTES, Refusal, Request, What, parse};
use crate::session::Session;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// To be served. The `len` bytes of a write follow, as payload.
    Request(Request),
    /// More data of the write that came last.
    Payload(&'a [u8]),
    /// To be answered with [`Session::refused`].
    Refused(Refusal),
    /// The client is done: what is under way is answered, then the connection is closed. Nothing comes after this.
    Disconnect,
    /// What the client sends cannot be understood; the connection is to be closed. Nothing comes after this.
    Broken,
}

/// Cuts the bytes of one connection.
#[derive(Debug)]
pub struct Requests {
    session: Session,
    state: State,
    /// The beginning of a request, and how much of it is there.
    header: [u8; REQUEST_BYTES],
    have: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Payload { left: u32 },
    Refused { left: u32, refusal: Refusal },
    Over,
}

impl Requests {
    /// Begins where the handshake ended.
    pub fn new(session: Session) -> Self {
        Self { session, state: State::Header, header: [0; REQUEST_BYTES], have: 0 }
    }

    /// Takes bytes from the front of `input`; nothing when it wants more than there are, and all are taken then.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        loop {
            match self.state {
                State::Over => return None,
                State::Header => {
                    let parsed = self.parsed(input)?;
                    if let Some(event) = self.begin(parsed) {
                        return Some(event);
                    }
                }
                State::Payload { .. } if input.is_empty() => return None,
                State::Payload { left } => {
                    let payload = take(input, left);
                    self.payload_taken(len_of(payload));
                    return Some(Event::Payload(payload));
                }
                State::Refused { left, refusal } => {
                    let left = left - len_of(take(input, left));
                    if left > 0 {
                        self.state = State::Refused { left, refusal };
                        return None;
                    }
                    self.state = State::Header;
                    return Some(Event::Refused(refusal));
                }
            }
        }
    }

    /// How many bytes of the begun write have not come: they may be received straight into its buffer, which
    /// [`payload_taken`](Self::payload_taken) then is told, and only while all input is taken.
    pub fn payload_left(&self) -> u32 {
        if let State::Payload { left } = self.state { left } else { 0 }
    }

    /// So many bytes of the begun write have come.
    pub fn payload_taken(&mut self, len: u32) {
        let left = self.payload_left().saturating_sub(len);
        if let State::Payload { .. } = self.state {
            self.state = if left == 0 { State::Header } else { State::Payload { left } };
        }
    }

    /// The next request, once it is there whole.
    fn parsed(&mut self, input: &mut &[u8]) -> Option<Parsed> {
        if self.have == 0
            && let Some((header, rest)) = input.split_first_chunk()
        {
            *input = rest;
            return Some(parse(header, &self.session));
        }
        let wanted = &mut self.header[self.have..];
        let (piece, rest) = input.split_at(wanted.len().min(input.len()));
        wanted[..piece.len()].copy_from_slice(piece);
        *input = rest;
        self.have += piece.len();
        (self.have == REQUEST_BYTES).then(|| {
            self.have = 0;
            parse(&self.header, &self.session)
        })
    }

    fn begin<'a>(&mut self, parsed: Parsed) -> Option<Event<'a>> {
        match parsed {
            Parsed::Request(request) => {
                if let What::Write { .. } = request.what {
                    self.state = State::Payload { left: request.len };
                }
                Some(Event::Request(request))
            }
            Parsed::Refused(refusal, left) => {
                self.state = State::Refused { left, refusal };
                None
            }
            Parsed::Disconnect => {
                self.state = State::Over;
                Some(Event::Disconnect)
            }
            Parsed::Broken => {
                self.state = State::Over;
                Some(Event::Broken)
            }
        }
    }
}

/// At most `most` bytes from the front.
fn take<'a>(input: &mut &'a [u8], most: u32) -> &'a [u8] {
    let (piece, rest) = input.split_at(input.len().min(most as usize));
    *input = rest;
    piece
}

/// The length of what [`take`] gave.
fn len_of(piece: &[u8]) -> u32 {
    u32::try_from(piece.len()).unwrap_or(u32::MAX)
}
