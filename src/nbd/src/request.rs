//! One request: its 28 bytes judged, so that what comes out can be served as it stands.

use crate::session::{MAX_PAYLOAD, Session};
use crate::wire::{Cursor, Errno, REQUEST_MAGIC, command, command_flag as flag};

/// The length of a request without the data of a write.
pub const REQUEST_BYTES: usize = 28;

/// What the client calls a request; its replies carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// A request that can be served: it is allowed and lies inside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    /// From which byte of the disk on; 0 for a flush.
    pub at: u64,
    /// How many bytes: not zero, except for a flush; at most [`MAX_PAYLOAD`] for reads and writes.
    pub len: u32,
    /// What to do.
    pub what: What,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Read.
    Read {
        /// The reply has to be in one piece.
        whole: bool,
    },
    /// Write what follows the request.
    Write {
        /// Durably.
        fua: bool,
    },
    /// Make durable what was answered.
    Flush,
    /// The content is not needed any more.
    Trim {
        /// Durably.
        fua: bool,
    },
    /// It will soon be read.
    Cache,
    /// Make it zeros.
    Zeroes {
        /// Durably.
        fua: bool,
        /// The space has to stay allocated.
        no_hole: bool,
        /// Only where that is faster than writing zeros.
        fast: bool,
    },
    /// Tell what is allocated.
    Status {
        /// Only the first extent.
        one: bool,
    },
}

/// A request that is not served, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The client's name for it.
    pub cookie: Cookie,
    /// The error.
    pub error: Errno,
    /// The error in words.
    pub why: &'static str,
}

/// What 28 bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parsed {
    Request(Request),
    /// To be refused when so many bytes of payload were passed over.
    Refused(Refusal, u32),
    Disconnect,
    /// Not a request: nobody knows where the next one begins.
    Broken,
}

/// Judges a request.
pub(crate) fn parse(bytes: &[u8; REQUEST_BYTES], session: &Session) -> Parsed {
    let mut cursor = Cursor(bytes);
    let (Some(REQUEST_MAGIC), Some(flags), Some(command), Some(cookie), Some(at), Some(len)) =
        (cursor.u32(), cursor.u16(), cursor.u16(), cursor.u64(), cursor.u64(), cursor.u32())
    else {
        return Parsed::Broken;
    };
    if command == command::DISC {
        return Parsed::Disconnect;
    }
    let cookie = Cookie(cookie);
    let judged = what(command, flags, session).and_then(|what| {
        within(what, at, len, session)?;
        Ok(what)
    });
    match judged {
        Ok(what) => Parsed::Request(Request { cookie, at, len, what }),
        Err((error, why)) => {
            let payload = if command == command::WRITE { len } else { 0 };
            Parsed::Refused(Refusal { cookie, error, why }, payload)
        }
    }
}

type Judged<T> = Result<T, (Errno, &'static str)>;

/// The command with its flags, if this session allows it. FUA is allowed everywhere, as the protocol demands.
fn what(command: u16, flags: u16, session: &Session) -> Judged<What> {
    let has = |flag| flags & flag != 0;
    let fua = has(flag::FUA);
    let (what, known) = match command {
        command::READ => (What::Read { whole: has(flag::DF) }, if session.structured { flag::DF } else { 0 }),
        command::WRITE => (What::Write { fua }, 0),
        command::FLUSH => (What::Flush, 0),
        command::TRIM => (What::Trim { fua }, 0),
        command::CACHE => (What::Cache, 0),
        command::WRITE_ZEROES => (
            What::Zeroes { fua, no_hole: has(flag::NO_HOLE), fast: has(flag::FAST_ZERO) },
            flag::NO_HOLE | flag::FAST_ZERO,
        ),
        command::BLOCK_STATUS => (What::Status { one: has(flag::REQ_ONE) }, flag::REQ_ONE),
        _ => return Err((Errno::Inval, "there is no such command")),
    };
    if flags & !(known | flag::FUA) != 0 {
        return Err((Errno::Inval, "the command does not have such a flag"));
    }
    if session.read_only && matches!(what, What::Write { .. } | What::Trim { .. } | What::Zeroes { .. }) {
        return Err((Errno::Perm, "the disk is read-only"));
    }
    if matches!(what, What::Status { .. }) && session.contexts.is_empty() {
        return Err((Errno::Inval, "no metadata context was selected"));
    }
    Ok(what)
}

/// Whether the range can be served.
fn within(what: What, at: u64, len: u32, session: &Session) -> Judged<()> {
    if what == What::Flush {
        let nowhere = at == 0 && len == 0;
        return nowhere.then_some(()).ok_or((Errno::Inval, "a flush has no range"));
    }
    if len == 0 {
        return Err((Errno::Inval, "the range is empty"));
    }
    if at.checked_add(u64::from(len)).is_none_or(|end| end > session.size) {
        let error = match what {
            What::Write { .. } | What::Zeroes { .. } => Errno::NoSpc,
            _ => Errno::Inval,
        };
        return Err((error, "the range ends beyond the disk"));
    }
    if len > MAX_PAYLOAD {
        match what {
            // The protocol allows this error where the client can know it.
            What::Read { .. } if session.structured => {
                return Err((Errno::Overflow, "longer than one reply"));
            }
            What::Read { .. } | What::Write { .. } => return Err((Errno::Inval, "longer than one request")),
            _ => {}
        }
    }
    Ok(())
}
