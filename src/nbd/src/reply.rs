//! Replies, except the data that they carry: heads are small values, so that data go out from where they lie.

use crate::request::{Cookie, Refusal, Request, What};
use crate::session::Session;
use crate::wire::{CHUNK_MAGIC, Errno, SIMPLE_REPLY_MAGIC, chunk};
use std::ops::Deref;

/// The most bytes of a message that are sent with an error.
const MESSAGE_LIMIT: usize = 1024;

/// Some bytes of a reply; they may be none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; 32],
    len: usize,
}

impl Head {
    fn simple(cookie: Cookie, error: u32) -> Self {
        Self::default()
            .with(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .with(&error.to_be_bytes())
            .with(&cookie.0.to_be_bytes())
    }

    /// The head of a chunk, whose payload has `len` bytes.
    pub(crate) fn chunk(cookie: Cookie, kind: u16, done: bool, len: u32) -> Self {
        let flags = if done { chunk::DONE } else { 0 };
        Self::default()
            .with(&CHUNK_MAGIC.to_be_bytes())
            .with(&flags.to_be_bytes())
            .with(&kind.to_be_bytes())
            .with(&cookie.0.to_be_bytes())
            .with(&len.to_be_bytes())
    }

    fn with(mut self, field: &[u8]) -> Self {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Session {
    /// The reply to what succeeded and has no data: anything but a read or a status.
    pub fn done(&self, cookie: Cookie) -> Head {
        Head::simple(cookie, 0) // allowed beside structured replies, and the shortest
    }

    /// The reply to what failed, with the reason in words if the client can take it, and where it failed if that is known.
    pub fn failed(&self, cookie: Cookie, error: Errno, why: &str, at: Option<u64>, out: &mut Vec<u8>) {
        if !self.structured {
            out.extend_from_slice(&Head::simple(cookie, error.number()));
            return;
        }
        let cut = (0..=MESSAGE_LIMIT).rev().find(|&end| why.is_char_boundary(end)).unwrap_or(0);
        let message_len = u16::try_from(cut).unwrap_or(0);
        let (kind, at_len) = if at.is_some() { (chunk::ERROR_OFFSET, 8) } else { (chunk::ERROR, 0) };
        out.extend_from_slice(&Head::chunk(cookie, kind, true, 6 + u32::from(message_len) + at_len));
        out.extend_from_slice(&error.number().to_be_bytes());
        out.extend_from_slice(&message_len.to_be_bytes());
        out.extend_from_slice(&why.as_bytes()[..cut]);
        out.extend(at.into_iter().flat_map(u64::to_be_bytes));
    }

    /// The reply to what was refused.
    pub fn refused(&self, refusal: &Refusal, out: &mut Vec<u8>) {
        self.failed(refusal.cookie, refusal.error, refusal.why, None, out);
    }
}

/// The reply to one read that succeeded: tells what stands before each piece of the data, which come in order and without gaps.
#[derive(Debug)]
pub struct ReadReply {
    cookie: Cookie,
    form: Form,
    at: u64,
    left: u32,
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One head, then all the bytes.
    Simple,
    /// One chunk with all the bytes.
    Whole,
    /// A chunk for each piece.
    Chunks,
}

impl ReadReply {
    /// Begins a reply.
    pub fn new(session: &Session, request: &Request) -> Self {
        let form = match request.what {
            _ if !session.structured => Form::Simple,
            What::Read { whole: true } => Form::Whole,
            _ => Form::Chunks,
        };
        Self { cookie: request.cookie, form, at: request.at, left: request.len, begun: false }
    }

    /// What goes out before the next `len` bytes of data.
    pub fn data(&mut self, len: u32) -> Head {
        let (at, all, first) = (self.at, self.left, !self.begun);
        if !self.advance(len) {
            return Head::default();
        }
        match self.form {
            Form::Chunks => data_chunk(self.cookie, at, len, self.left == 0),
            Form::Whole if first => data_chunk(self.cookie, at, all, true),
            Form::Simple if first => Head::simple(self.cookie, 0),
            Form::Whole | Form::Simple => Head::default(),
        }
    }

    /// What goes out for the next `len` bytes, which are zeros: some bytes, and so many zeros after them.
    pub fn zeros(&mut self, len: u32) -> (Head, u32) {
        // All of a read may be a hole even where it has to stay in one piece.
        let alone = self.form == Form::Whole && !self.begun && len == self.left;
        if self.form != Form::Chunks && !alone {
            return (self.data(len), len);
        }
        let at = self.at;
        if !self.advance(len) {
            return (Head::default(), 0);
        }
        let head = Head::chunk(self.cookie, chunk::OFFSET_HOLE, self.left == 0, 12);
        (head.with(&at.to_be_bytes()).with(&len.to_be_bytes()), 0)
    }

    /// Goes on by one piece; an empty piece is none.
    fn advance(&mut self, len: u32) -> bool {
        debug_assert!(len <= self.left, "{len} bytes of data where {} were asked for", self.left);
        self.at += u64::from(len);
        self.left = self.left.saturating_sub(len);
        self.begun |= len > 0;
        len > 0
    }
}

fn data_chunk(cookie: Cookie, at: u64, len: u32, done: bool) -> Head {
    Head::chunk(cookie, chunk::OFFSET_DATA, done, 8 + len).with(&at.to_be_bytes())
}
