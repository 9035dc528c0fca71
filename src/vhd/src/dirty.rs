//! A block of which something is in memory and not on disk, and the plan that is to change that.
//!
//! ```text
//!   nothing ──place──▶ fresh, nothing noted ──wrote──▶ fresh, noted
//!                                                          │ begin
//!   on disk ──wrote──▶ noted ◀──wrote (others)── on its way ◀┘
//!      ▲                 └────────begin───────────▶ │
//!      └──────────────────────────────────────end───┘
//! ```
//!
//! Invariants: what a block owns is what is stored, on its way and noted together; these three do not overlap; a
//! bitmap is written as what is stored and what this plan brings, never with what was noted since (D3). A dirty block keeps its
//! stored bits here, so they are never read while they change.

use crate::layout::Slot;
use catena_types::{BlockIndex, FileOffset, SectorSet};

/// A dirty block.
#[derive(Debug, Clone)]
pub(crate) struct Dirty {
    pub(crate) slot: Slot,
    /// Nothing on disk names the slot, and no plan that is under way will.
    pub(crate) fresh: bool,
    /// The entry of the block is part of the plan that is under way.
    pub(crate) linking: bool,
    /// The bits on disk.
    pub(crate) stored: SectorSet,
    /// The bits that the plan brings that is under way: their data are behind its barrier.
    pub(crate) on_way: SectorSet,
    /// The bits for the next plan: their data are written.
    pub(crate) noted: SectorSet,
    /// Where the footer stands once the block may be written to.
    pub(crate) footer_at: Option<FileOffset>,
}

impl Dirty {
    /// A new block at a slot that nothing names.
    pub(crate) fn fresh(slot: Slot) -> Self {
        Self { fresh: true, ..Self::stored(slot, SectorSet::empty()) }
    }

    /// A block that is on disk.
    pub(crate) fn stored(slot: Slot, stored: SectorSet) -> Self {
        Self {
            slot,
            fresh: false,
            linking: false,
            stored,
            on_way: SectorSet::empty(),
            noted: SectorSet::empty(),
            footer_at: None,
        }
    }

    /// All that the block owns.
    pub(crate) fn owned(&self) -> SectorSet {
        self.stored.union(&self.on_way).union(&self.noted)
    }

    /// What is owned in memory only.
    pub(crate) fn unstored(&self) -> SectorSet {
        self.on_way.union(&self.noted)
    }

    /// Notes sectors whose data have been written.
    pub(crate) fn note(&mut self, sectors: &SectorSet) {
        let new = sectors.minus(&self.stored).minus(&self.on_way);
        self.noted = self.noted.union(&new);
    }

    /// Puts what is noted on its way. Gives the bitmap that is to be written.
    pub(crate) fn depart(&mut self) -> SectorSet {
        self.on_way = std::mem::take(&mut self.noted);
        self.linking = std::mem::take(&mut self.fresh);
        self.stored.union(&self.on_way)
    }

    /// What was on its way has arrived.
    pub(crate) fn arrive(&mut self) {
        self.stored = self.stored.union(&self.on_way);
        self.on_way = SectorSet::empty();
        self.linking = false;
    }
}

/// What a plan is for that is being carried out.
#[derive(Debug, Clone)]
pub(crate) enum UnderWay {
    /// Nothing, not even a barrier.
    Nothing,
    /// Bits and entries are on their way.
    Commit,
    /// Sectors are given up.
    GiveUp {
        /// Blocks of which something is left, and their bits then.
        shrunk: Vec<(BlockIndex, SectorSet)>,
        /// The slots of blocks of which nothing is left.
        emptied: Vec<Slot>,
    },
}
