//! A layer that is written while it is read, as its owner sees it: bookkeeping that never waits, and plans that others run.
//!
//! ```text
//!   nothing ──place──▶ placed ──wrote──▶ noted ──begin_commit──▶ on its way ──end_commit──▶ stored
//!                                          ▲                        │ more sectors of the block: noted again,
//!                                          └────────────────────────┘ for the next commit (D1)
//! ```
//!
//! Invariants: what [`known`](LiveLayer::known) says includes all that was noted, whether it is stored or not; a plan holds
//! only bits whose data were written before the plan was made, and its barrier stands between the two (D1, D3); one commit
//! is under way at a time. The owner is the event loop of a disk that is being served.

use crate::error::Error;
use crate::layer::{Extent, Layer, Ownership};
use crate::plan::Plan;
use catena_blockio::Container;
use catena_types::{BlockIndex, Bytes, FileOffset, SectorSet};
use std::sync::Arc;

/// What is known about a block without asking the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The layer owns none of its sectors.
    Nothing,
    /// All of them.
    Everything,
    /// These.
    Sectors(Box<SectorSet>),
    /// It depends on the bytes there, which are to be read and given to [`Recall::learn`]. There may be more to read then.
    At(Extent),
}

impl Known {
    /// What the layer owns of the block, or what must be read to say so.
    pub(crate) fn owned(self) -> Result<Ownership, Extent> {
        match self {
            Self::Nothing => Ok(Ownership::Nothing),
            Self::Everything => Ok(Ownership::Everything),
            Self::Sectors(set) => Ok(Ownership::Sectors(set)),
            Self::At(at) => Err(at),
        }
    }
}

/// A layer that can tell what it knows. Neither call waits for anything.
pub trait Recall: Layer {
    /// What is known of the block.
    fn known(&self, block: BlockIndex) -> Result<Known, Error>;

    /// Takes up what stands at `at`, where [`Known::At`] said. Ignored if the block is known by now: what is known in memory is
    /// newer. What was not learnt before the block was changed must not be learnt after it: one read of a block at a time,
    /// which all share who need it, and no write to a block that is being read like this.
    fn learn(&self, block: BlockIndex, at: FileOffset, raw: &[u8]) -> Result<(), Error>;
}

/// Sectors that are owned in memory and not on the storage: what a successor must be told of (D7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The block.
    pub block: BlockIndex,
    /// Where its place is: for a new block the one that it was given, else the one that it has.
    pub place: FileOffset,
    /// No entry for the block is stored yet.
    pub new: bool,
    /// The sectors.
    pub sectors: SectorSet,
}

/// A place for a block's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Position of the block's first sector.
    pub at: FileOffset,
    /// To be done before anything is written there.
    pub first: Plan,
}

/// A commit that was begun.
#[derive(Debug)]
#[must_use = "a commit that is begun has to be ended"]
pub struct Commit {
    /// What it takes, its last barrier included: all that it covers is durable when it has run. A storage that is full may
    /// refuse a part of it: then it can be run again, see [`Plan::run`].
    pub plan: Plan,
    /// What the format wants back.
    pub number: u64,
}

/// What a layer has of a container of explicit size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// So many more blocks can get a place.
    pub blocks: u64,
    /// The size of the container, as far as the layer makes use of it.
    pub size: Bytes,
    /// The size in which every block of the disk has a place: more helps nothing.
    pub most: Bytes,
}

/// Raises the size of a layer. An error means that nothing was changed; otherwise the layer that it gives stands in the old one's
/// place from then on, even where it could not be made larger: where its blocks are the old one does not know any more.
pub type Growth = Box<dyn FnOnce() -> Result<Grown, Error> + Send>;

/// What came of it.
pub struct Grown {
    /// The layer.
    pub layer: Box<dyn LiveLayer>,
    /// Whether it has the new size.
    pub outcome: Result<(), Error>,
}

/// A layer that is written while it is read. One writer (D11).
pub trait LiveLayer: Recall {
    /// A place for the block: the one it has, or a new one. Changes memory only. Only the first who asks for a new place is told
    /// what is to be done before; nobody asks for this block again until that is done.
    fn place(&mut self, block: BlockIndex) -> Result<Placed, Error>;

    /// Takes a new place back of which [`Placed::first`] failed, if nothing was written there.
    fn unplace(&mut self, block: BlockIndex) -> Result<(), Error>;

    /// Says that the data of these sectors of a placed block have been written; from here on they are owned. Reads, and waits,
    /// where the block was known when it was placed and has been forgotten since.
    fn wrote(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<(), Error>;

    /// What is owned in memory only, whether a commit is under way for it or not.
    fn noted(&self) -> Vec<Noted>;

    /// Takes over from a writer that died: what it had noted. Before anything else is done with the layer; reads, and waits. The
    /// next commit stores it.
    fn restore(&mut self, noted: &[Noted]) -> Result<(), Error>;

    /// Begins to store all that is noted. `None` while another is under way; with nothing noted, a plan of one barrier.
    fn begin_commit(&mut self) -> Result<Option<Commit>, Error>;

    /// The same without the barrier at the end: what it stores is written when it ends, and durable with the next barrier. What was
    /// written before it began is durable when it ends. Only with nothing noted the plan is one barrier, and ends with it.
    fn begin_store(&mut self) -> Result<Option<Commit>, Error>;

    /// Ends it. After a failure nothing is known of what is stored: the layer takes no further change and every later call that
    /// would make one fails.
    fn end_commit(&mut self, commit: Commit, succeeded: bool) -> Result<(), Error>;

    /// Begins to give sectors up, of which nothing is noted and which nobody reads or writes until the end (D2). No commit may be
    /// under way. Other sectors of their blocks may be written meanwhile, so a block loses its place only where it is given up as a
    /// whole. The blocks should be known, or their bitmaps are read here. The plan of nothing to give up is empty.
    fn begin_give_up(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<Commit, Error>;

    /// Ends it: the sectors are not owned any more.
    fn end_give_up(&mut self, commit: Commit, succeeded: bool) -> Result<(), Error>;

    /// Makes the layer as complete as a closed one, with everything durable and nobody using it: the last plan of a writer.
    fn close(&mut self) -> Result<Plan, Error>;

    /// Takes over what a plan made elsewhere writes to the header (D12), with nothing else under way.
    fn patch(&mut self, writes: &[(FileOffset, Vec<u8>)]) -> Result<Plan, Error>;

    /// What marks the layer hidden or visible, durably. Refused while the layer is being made longer.
    fn set_hidden(&mut self, hidden: bool) -> Result<Plan, Error>;

    /// What raises the virtual size, durably: to be run elsewhere, since it waits, with nothing noted and nobody using the layer,
    /// of which blocks may move. What deeper layers own past the old end is the caller's business (D6).
    fn grow(&mut self, size: Bytes) -> Result<Growth, Error>;

    /// How much room there is in a container of explicit size; `None` where the container takes what it needs.
    fn room(&self) -> Option<Room>;

    /// The owner has made the container larger, which is what it now says of its size. The next commit or give-up makes the layer ready
    /// for that, even where nothing is noted: when it has ended [`room`](Self::room) tells the new size, and blocks get the new
    /// places.
    fn enlarged(&mut self) -> Result<(), Error>;

    /// From here on the layer is only read, through this container: what a leaf becomes under a new one. Nothing is noted. The
    /// old container is let go, and every change is refused.
    fn end_writing(&mut self, container: Arc<dyn Container>) -> Result<(), Error>;
}
