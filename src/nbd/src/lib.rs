//! The server's side of the NBD protocol without I/O: bytes in, bytes out; no sockets, no threads, no clock.
//!
//! A connection is two machines, one after the other, both fed with whatever pieces of bytes arrive:
//!
//! ```text
//!   Handshake::GREETING ──▶ client
//!   client ──bytes──▶ Handshake::feed ──replies──▶ client        until Progress::Serving(session)
//!   client ──bytes──▶ Requests::next ──Event──▶ who serves
//!   who serves ──▶ ReadReply, Session::{done, failed, refused, extents} ──bytes──▶ client
//! ```
//!
//! Invariants: whatever a client sends, nothing here panics, waits, or holds more than [`OPTION_LIMIT`] bytes of it; a request
//! that comes out lies inside the disk, is not empty, and is allowed. Payloads are never held here: those of writes are handed
//! through, those of refused writes are dropped as they arrive. The protocol is fixed newstyle with simple and structured
//! replies, as <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md> has it. Used by the process that serves a
//! disk.

mod extents;
mod handshake;
mod intake;
mod options;
mod reply;
mod request;
mod session;
mod wire;

pub use extents::Extent;
pub use handshake::{Export, Handshake, OPTION_LIMIT, Progress};
pub use intake::{Event, Requests};
pub use reply::{Head, ReadReply};
pub use request::{Cookie, REQUEST_BYTES, Refusal, Request, What};
pub use session::{Contexts, MAX_PAYLOAD, Session};
pub use wire::Errno;
