//! What a client and we agreed on in the handshake.

use crate::wire::transmission_flag as flag;

/// The most bytes that one read or write carries: what the protocol calls the default maximum payload, 32 MiB.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// An agreement: how the rest of the conversation is to be read and answered. Made by a [`Handshake`](crate::Handshake).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The size of the disk that the client was told, in bytes.
    pub size: u64,
    /// Whether the client was told that it may not write.
    pub read_only: bool,
    /// Whether replies are structured.
    pub structured: bool,
    /// What a block status tells.
    pub contexts: Contexts,
}

/// The metadata contexts that a client selected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contexts {
    /// `base:allocation`: holes and zeros.
    pub allocation: bool,
    /// `qemu:allocation-depth`: which image of the chain owns the data, counted from one.
    pub depth: bool,
}

impl Contexts {
    /// All that there are, with the names and the numbers that they have on the wire.
    pub(crate) const NAMES: [(&'static str, u32); 2] =
        [("base:allocation", Self::ALLOCATION), ("qemu:allocation-depth", Self::DEPTH)];
    pub(crate) const ALLOCATION: u32 = 1;
    pub(crate) const DEPTH: u32 = 2;

    /// Whether there is nothing to tell.
    pub const fn is_empty(self) -> bool {
        !self.allocation && !self.depth
    }

    pub(crate) fn has(self, id: u32) -> bool {
        if id == Self::ALLOCATION { self.allocation } else { self.depth }
    }

    pub(crate) fn select(&mut self, id: u32) {
        if id == Self::ALLOCATION {
            self.allocation = true;
        } else {
            self.depth = true;
        }
    }
}

impl Session {
    /// What the client is told that we can do. All connections to a disk see one state, so there may be many.
    pub(crate) const fn flags(&self) -> u16 {
        let always =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        let writing = if self.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        let form = if self.structured { flag::SEND_DF } else { 0 };
        always | writing | form
    }
}
