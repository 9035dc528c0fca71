//! The handshake: fixed newstyle, one option after the other until the client enters transmission or goes away.
//!
//! ```text
//!   Flags ──▶ Header ──▶ Data ──┐ reply
//!               ▲  └───▶ Skipping┤ reply
//!               └────────────────┘        ──▶ Over: Serving, or Closed
//! ```
//!
//! Options that we do not know, and data that no option of ours has, are passed over as they arrive and refused; so only the
//! data of known options are held, at most [`OPTION_LIMIT`] bytes. Replies to a piece of input are at most some ten times as
//! long as the piece.

use crate::options::{Queries, Wanted};
use crate::session::{Contexts, MAX_PAYLOAD, Session};
use crate::wire::{
    Cursor, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_LIMIT, handshake_flag, info, option, rep,
};
use std::mem;

/// The most bytes of an option's data that are looked at.
pub const OPTION_LIMIT: usize = 16 << 10;

/// Bytes before an option's data: magic, option, length.
const OPTION_HEADER: usize = 16;

/// What is offered. The empty name stands for it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it may not be written.
    pub read_only: bool,
}

/// Where a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It wants more bytes; all that were given are taken.
    More,
    /// It is over; the bytes that are left are [`Requests`](crate::Requests).
    Serving(Session),
    /// The connection is to be closed when the replies are sent; why, in words.
    Closed(&'static str),
}

/// The server's side of one handshake. The [greeting](Self::GREETING) is sent first.
#[derive(Debug)]
pub struct Handshake {
    export: Export,
    state: State,
    /// The beginning of what is being collected.
    held: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    contexts: Contexts,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Flags,
    Header,
    Data { option: u32, len: usize },
    Skipping { option: u32, left: u32, then: Then },
    Over(Progress),
}

/// What is said when the data of an option were passed over.
#[derive(Debug, Clone, Copy)]
enum Then {
    Refuse(u32, &'static str),
    Abort,
}

impl Handshake {
    /// What the server says first: both magics and that it is fixed newstyle and may leave out the zeroes.
    pub const GREETING: [u8; 18] = {
        let mut bytes = [0; 18];
        let (magic, option) = (NBD_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes());
        let mut i = 0;
        while i < 8 {
            bytes[i] = magic[i];
            bytes[8 + i] = option[i];
            i += 1;
        }
        [bytes[16], bytes[17]] = (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes();
        bytes
    };

    /// A handshake that offers an export.
    pub fn new(export: Export) -> Self {
        Self {
            export,
            state: State::Flags,
            held: Vec::new(),
            no_zeroes: false,
            structured: false,
            contexts: Contexts::default(),
        }
    }

    /// Takes bytes from the front of `input` and appends what is to be sent to `out`.
    pub fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Progress {
        loop {
            self.state = match self.state {
                State::Over(progress) => return progress,
                State::Flags => match self.collect(4, input) {
                    Some(data) => self.flags(&data),
                    None => return Progress::More,
                },
                State::Header => match self.collect(OPTION_HEADER, input) {
                    Some(data) => self.header(&data, out),
                    None => return Progress::More,
                },
                State::Data { option, len } => match self.collect(len, input) {
                    Some(data) => self.option(option, &data, out),
                    None => return Progress::More,
                },
                State::Skipping { option, left, then } => {
                    let skipped = u32::try_from(input.len()).map_or(left, |len| len.min(left));
                    *input = &input[skipped as usize..];
                    if skipped < left {
                        self.state = State::Skipping { option, left: left - skipped, then };
                        return Progress::More;
                    }
                    skipped_over(option, then, out)
                }
            };
        }
    }

    /// The next `len` bytes, once they are all there.
    fn collect(&mut self, len: usize, input: &mut &[u8]) -> Option<Vec<u8>> {
        debug_assert!(len <= OPTION_LIMIT, "{len} bytes would be held");
        let (piece, rest) = input.split_at((len - self.held.len()).min(input.len()));
        self.held.extend_from_slice(piece);
        *input = rest;
        (self.held.len() == len).then(|| mem::take(&mut self.held))
    }

    fn flags(&mut self, data: &[u8]) -> State {
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        match Cursor(data).u32() {
            Some(flags) if flags & !known == 0 => {
                self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
                State::Header
            }
            _ => closed("the client has flags that were not offered"),
        }
    }

    /// Decides from the header alone whether the data are wanted, so that nothing is held of those that are not.
    fn header(&mut self, data: &[u8], out: &mut Vec<u8>) -> State {
        let mut cursor = Cursor(data);
        let (Some(OPTION_MAGIC), Some(option), Some(left)) = (cursor.u64(), cursor.u32(), cursor.u32())
        else {
            return closed("not an option");
        };
        let len = left as usize;
        let refuse = |kind, why| State::Skipping { option, left, then: Then::Refuse(kind, why) };
        match option {
            option::EXPORT_NAME if len > STRING_LIMIT => closed("the name of the export is too long"),
            option::EXPORT_NAME => State::Data { option, len },
            option::ABORT => State::Skipping { option, left, then: Then::Abort },
            option::LIST | option::STRUCTURED_REPLY if len > 0 => {
                refuse(rep::ERR_INVALID, "this option has no data")
            }
            option::LIST => self.list(out),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                acknowledge(out, option)
            }
            option::SET_META_CONTEXT if len > OPTION_LIMIT => {
                self.contexts = Contexts::default(); // what fails deselects, too
                refuse(rep::ERR_TOO_BIG, "too much data")
            }
            option::INFO | option::GO | option::LIST_META_CONTEXT if len > OPTION_LIMIT => {
                refuse(rep::ERR_TOO_BIG, "too much data")
            }
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                State::Data { option, len }
            }
            _ => refuse(rep::ERR_UNSUP, "not supported"),
        }
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> State {
        match option {
            option::EXPORT_NAME => self.export_name(data, out),
            option::INFO | option::GO => self.info(option, data, out),
            _ => self.meta_context(option, data, out),
        }
    }

    /// The old way into transmission, which cannot say no.
    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> State {
        if !self.knows(name) {
            return closed("there is no such export");
        }
        let session = self.session();
        out.extend(session.size.to_be_bytes());
        out.extend(session.flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        State::Over(Progress::Serving(session))
    }

    fn list(&self, out: &mut Vec<u8>) -> State {
        let name = self.export.name.as_bytes();
        reply(out, option::LIST, rep::SERVER, &[&len_of(name), name]);
        acknowledge(out, option::LIST)
    }

    fn info(&self, option: u32, data: &[u8], out: &mut Vec<u8>) -> State {
        let Some(wanted) = Wanted::parse(data) else {
            return refused(out, option, rep::ERR_INVALID, "malformed");
        };
        if !self.knows(wanted.name) {
            return refused(out, option, rep::ERR_UNKNOWN, "there is no such export");
        }
        let session = self.session();
        let mut tell = |kind: u16, parts: [&[u8]; 3]| {
            reply(out, option, rep::INFO, &[&kind.to_be_bytes(), parts[0], parts[1], parts[2]]);
        };
        tell(info::EXPORT, [&session.size.to_be_bytes(), &session.flags().to_be_bytes(), &[]]);
        if wanted.asks(info::NAME) {
            tell(info::NAME, [self.export.name.as_bytes(), &[], &[]]);
        }
        if wanted.asks(info::DESCRIPTION) {
            tell(info::DESCRIPTION, [self.export.description.as_bytes(), &[], &[]]);
        }
        if wanted.asks(info::BLOCK_SIZE) {
            let [min, preferred, max] = [1, 4096, MAX_PAYLOAD].map(u32::to_be_bytes);
            tell(info::BLOCK_SIZE, [&min, &preferred, &max]);
        }
        let next = acknowledge(out, option);
        if option == option::GO { State::Over(Progress::Serving(session)) } else { next }
    }

    /// Tells contexts; `SET_META_CONTEXT` selects them, and selects none where it fails.
    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> State {
        let selects = option == option::SET_META_CONTEXT;
        if selects {
            self.contexts = Contexts::default();
        }
        if !self.structured {
            return refused(out, option, rep::ERR_INVALID, "structured replies have to come first");
        }
        let Some(queries) = Queries::parse(data) else {
            return refused(out, option, rep::ERR_INVALID, "malformed");
        };
        if !self.knows(queries.name) {
            return refused(out, option, rep::ERR_UNKNOWN, "there is no such export");
        }
        if selects {
            self.contexts = queries.named;
        }
        for (name, id) in Contexts::NAMES {
            let listed = !selects && (queries.is_empty || queries.matched.has(id));
            if listed || self.contexts.has(id) && selects {
                let id = if selects { id } else { 0 };
                reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
            }
        }
        acknowledge(out, option)
    }

    fn knows(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn session(&self) -> Session {
        Session {
            size: self.export.size,
            read_only: self.export.read_only,
            structured: self.structured,
            contexts: self.contexts,
        }
    }
}

fn skipped_over(option: u32, then: Then, out: &mut Vec<u8>) -> State {
    match then {
        Then::Refuse(kind, why) => refused(out, option, kind, why),
        Then::Abort => {
            acknowledge(out, option);
            closed("the client gave up")
        }
    }
}

const fn closed(why: &'static str) -> State {
    State::Over(Progress::Closed(why))
}

fn refused(out: &mut Vec<u8>, option: u32, kind: u32, why: &str) -> State {
    reply(out, option, kind, &[why.as_bytes()]);
    State::Header
}

fn acknowledge(out: &mut Vec<u8>, option: u32) -> State {
    reply(out, option, rep::ACK, &[]);
    State::Header
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let data = parts.concat();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(len_of(&data));
    out.extend(data);
}

/// The length of a short text of ours, as it stands before it.
fn len_of(text: &[u8]) -> [u8; 4] {
    u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()
}
