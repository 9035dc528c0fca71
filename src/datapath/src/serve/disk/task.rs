//! A request under way, and how far it has come.
//!
//! ```text
//!   read      lock ─▶ survey ─▶ data ─▶ answer
//!   write     lock ─▶ edges ─▶ pieces ─▶ [commit] ─▶ answer
//!   zeroes    lock ─▶ [would it be fast?] ─▶ edges ─▶ pieces ─▶ (window ─▶ pieces ─▶ give up)* ─▶ [commit] ─▶ answer
//!   trim      lock ─▶ (window ─▶ give up)* ─▶ [commit] ─▶ answer
//! ```
//!
//! A request is moved on by [`Disk::step`](super::Disk) whenever something that it waits for has happened; to be woken for
//! nothing does no harm.

use super::fetch::Fetch;
use super::write::{Piece, PieceState};
use crate::serve::work::{Outcome, Trouble};
use catena_blockio::AlignedBuf;
use catena_chain::{Owner, Run, Slot};
use catena_types::{BLOCK_BYTES, BlockIndex, GuestOffset, SECTOR_BYTES, SectorSet};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Cache,
    Status {
        one: bool,
    },
    Write,
    Zeroes {
        no_hole: bool,
    },
    Trim,
    Flush,
    /// Of a leaf merge: nobody asked for it.
    Move,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its lock, or has just got it.
    Start,
    /// Would it be fast to zero this?
    Check,
    /// Sectors that are written in part are read.
    Edges,
    /// Data are written.
    Pieces,
    /// What is to be done in the next window is found out.
    Window,
    /// Sectors are given up.
    GiveUp,
    /// A commit that covers it is waited for.
    Durable,
}

/// How to go on.
pub(super) enum Step {
    Again,
    Wait,
    End(Outcome),
}

/// Where something stands that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poll {
    Ready,
    Pending,
    Failed(Trouble),
}

/// A sector that is written in part.
#[derive(Debug)]
pub(super) struct Edge {
    /// Its number on the disk.
    pub(super) sector: u64,
    /// Where it stands in the request's buffer.
    pub(super) to: usize,
    /// The bytes of it that are written.
    pub(super) fresh: Range<usize>,
}

/// A request under way.
pub(super) struct Task {
    /// The number by which it is answered.
    pub(super) request: u64,
    pub(super) kind: Kind,
    /// The bytes of the disk.
    pub(super) range: Range<u64>,
    pub(super) fua: bool,
    pub(super) stage: Stage,
    /// It has got its lock, and has begun.
    pub(super) started: bool,
    /// Bytes that it is counted with.
    pub(super) weight: u64,
    /// The state of the chain that its findings are of, while it has any.
    pub(super) epoch: Option<u64>,
    /// What is written: whole sectors; of a zeroing, its first and its last sector where they are not whole.
    pub(super) buf: Option<AlignedBuf>,
    /// Zeros to be written.
    pub(super) zeros: Option<AlignedBuf>,
    /// Bitmaps that it waits for.
    pub(super) learning: usize,
    /// One of them could not be read.
    pub(super) unread: bool,
    pub(super) edges: VecDeque<Edge>,
    pub(super) fetch: Option<Fetch>,
    pub(super) survey: Option<Survey>,
    pub(super) beneath: Option<Beneath>,
    pub(super) pieces: VecDeque<Piece>,
    /// Where the next window begins.
    pub(super) cursor: u64,
    /// What is to be given up, of which image, and whether that is done.
    pub(super) give_up: Vec<(BlockIndex, SectorSet)>,
    pub(super) give_up_of: Option<Slot>,
    pub(super) given_up: bool,
    /// It waits for space.
    pub(super) parked: bool,
    /// It is tried again after it had waited for space.
    pub(super) retried: bool,
    /// Something that it waited for has ended badly.
    pub(super) trouble: Option<Trouble>,
    /// The commit that it waited for has ended.
    pub(super) durable: bool,
    /// Images of which a commit or a give-up is still to end for it.
    pub(super) awaits: usize,
}

impl Task {
    pub(super) fn new(request: u64, kind: Kind, at: u64, len: u64) -> Self {
        Self {
            request,
            kind,
            range: at..at + len,
            fua: false,
            stage: Stage::Start,
            started: false,
            weight: 0,
            epoch: None,
            buf: None,
            zeros: None,
            learning: 0,
            unread: false,
            edges: VecDeque::new(),
            fetch: None,
            survey: None,
            beneath: None,
            pieces: VecDeque::new(),
            cursor: at,
            give_up: Vec::new(),
            give_up_of: None,
            given_up: false,
            parked: false,
            retried: false,
            trouble: None,
            durable: false,
            awaits: 0,
        }
    }

    /// Whether it changes the disk, or waits for changes: what a quiesce holds back.
    pub(super) const fn changes(&self) -> bool {
        !matches!(self.kind, Kind::Read | Kind::Cache | Kind::Status { .. } | Kind::Move)
    }

    /// Whether nothing is under way for it, so that it may be ended.
    pub(super) fn is_between_operations(&self) -> bool {
        let writes = self.pieces.front().is_some_and(|piece| piece.state == PieceState::Landing);
        let reads = self.fetch.as_ref().is_some_and(Fetch::is_under_way);
        !writes && !reads && self.learning == 0
    }

    /// Where it stands with bitmaps that it waits for; `None`: with none.
    pub(super) const fn learns(&self) -> Option<Poll> {
        match (self.learning, self.unread) {
            (0, false) => None,
            (0, true) => Some(Poll::Failed(Trouble::Io)),
            _ => Some(Poll::Pending),
        }
    }

    /// The sectors that nobody else may change meanwhile. What gives sectors up has whole blocks: a block of which nothing is
    /// left loses its place, and nobody may be writing there.
    pub(super) fn sectors(&self) -> Range<u64> {
        let unit = match self.kind {
            Kind::Zeroes { .. } | Kind::Trim => BLOCK_BYTES,
            _ => SECTOR_BYTES,
        };
        let per = unit / SECTOR_BYTES;
        self.range.start / unit * per..self.range.end.div_ceil(unit) * per
    }
}

/// Who owns what in a range, while it is being found out.
#[derive(Debug)]
pub(super) struct Survey {
    of: Range<u64>,
    /// The state of the chain that it is of, once it has begun.
    epoch: Option<u64>,
    /// What is not known yet: the sectors of a block.
    pub(super) todo: Vec<(BlockIndex, Range<usize>)>,
    /// What is known, by block.
    pub(super) found: Vec<(BlockIndex, Run)>,
}

impl Survey {
    /// Of the sectors that these bytes of the disk touch.
    pub(super) fn of(bytes: Range<u64>) -> Self {
        Self { of: bytes.clone(), epoch: None, todo: by_block(bytes).collect(), found: Vec::new() }
    }

    /// The chain is in this state. What was found out in another one names images that may have left: it begins again.
    pub(super) fn is_of(&mut self, epoch: u64) {
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            *self = Self { epoch: Some(epoch), ..Self::of(self.of.clone()) };
        }
    }

    /// The sectors of the block whose owner is one of those.
    pub(super) fn owned_by(&self, block: BlockIndex, owner: impl Fn(Owner) -> bool) -> SectorSet {
        let mut set = SectorSet::empty();
        for (_, run) in self.found.iter().filter(|(of, run)| *of == block && owner(run.owner)) {
            set.insert(run.sectors.clone());
        }
        set
    }
}

/// What is owned below an image in some blocks, while it is being found out.
#[derive(Debug)]
pub(super) struct Beneath {
    of: Range<u64>,
    /// The state of the chain that it is of, once it has begun.
    epoch: Option<u64>,
    /// What is not known yet.
    pub(super) todo: Vec<BlockIndex>,
    /// What is known.
    pub(super) found: HashMap<BlockIndex, SectorSet>,
}

impl Beneath {
    /// In the blocks that these bytes of the disk touch.
    pub(super) fn of(bytes: Range<u64>) -> Self {
        let todo = by_block(bytes.clone()).map(|(block, _)| block).collect();
        Self { of: bytes, epoch: None, todo, found: HashMap::new() }
    }

    /// The chain is in this state: another image may be the one that is looked below.
    pub(super) fn is_of(&mut self, epoch: u64) {
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            *self = Self { epoch: Some(epoch), ..Self::of(self.of.clone()) };
        }
    }
}

/// The sectors of each block that these bytes touch, ascending.
pub(super) fn by_block(bytes: Range<u64>) -> impl Iterator<Item = (BlockIndex, Range<usize>)> {
    let mut at = bytes.start;
    std::iter::from_fn(move || {
        if at >= bytes.end {
            return None;
        }
        let (block, inside) = GuestOffset(at).split();
        let end = (bytes.end - block.start().0).min(BLOCK_BYTES);
        at = block.start().0 + end;
        Some((block, index(inside / SECTOR_BYTES)..index(end.div_ceil(SECTOR_BYTES))))
    })
}

/// A number of bytes or sectors of one request, as an index. They fit: a request is shorter than 4 GiB.
pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
