//! One layer of a chain, as this crate sees it: which sectors it owns and where their bytes lie.
//!
//! A format implements [`Layer`] (and [`LayerMut`] where it can be written) by *mapping*; it moves no data. The data are
//! read and written through [`Layer::container`], by whoever called, in whichever order and number it likes. Blocks are
//! 2 MiB, sectors 512 bytes.

use crate::error::Error;
use catena_blockio::Container;
use catena_types::{BlockIndex, Bytes, FileOffset, SectorSet};

/// Which sectors of a block a layer owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// These.
    Sectors(Box<SectorSet>),
}

impl Ownership {
    /// As a set.
    pub fn to_set(&self) -> SectorSet {
        match self {
            Self::Nothing => SectorSet::empty(),
            Self::Everything => SectorSet::full(),
            Self::Sectors(set) => (**set).clone(),
        }
    }

    /// From a set, in its shortest form.
    pub fn from_set(set: SectorSet) -> Self {
        if set.is_empty() {
            Self::Nothing
        } else if set.is_full() {
            Self::Everything
        } else {
            Self::Sectors(Box::new(set))
        }
    }
}

/// Where the data area of a block lies in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Position of the block's first sector.
    pub at: FileOffset,
    /// Bytes that are there, a multiple of 512: less than 2 MiB in the last block of a disk or of a truncated foreign
    /// file. What is past them reads as zero.
    pub len: u32,
}

/// A layer that can be read.
pub trait Layer: Send + Sync {
    /// Size of the virtual disk at this layer. Past it every sector below reads as zero (D6).
    fn virtual_size(&self) -> Bytes;

    /// Which sectors of the block the layer owns. May read the container; safe to call from several threads.
    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error>;

    /// Where the block's data lie, `None` if the layer has no place for the block.
    fn locate(&self, block: BlockIndex) -> Option<Extent>;

    /// The first block at or after `from` for which the layer has a place, or may have one as far as it knows.
    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex>;

    /// The bytes themselves.
    fn container(&self) -> &dyn Container;
}

/// A layer that can be written. One writer at a time (D11), so changes take `&mut self`.
///
/// The order of a write (D1): [`place`](Self::place), then the data are written to the container, then
/// [`wrote`](Self::wrote), then [`commit`](Self::commit), which puts the barrier between the data and the pointers to them.
pub trait LayerMut: Layer {
    /// Says that so many new blocks are about to be placed, so that a format can make room for them at once instead of one by
    /// one. Only a hint.
    fn expect(&mut self, _new_blocks: usize) -> Result<(), Error> {
        Ok(())
    }

    /// A place for the block's data: the one it has, or a newly allocated one of which nothing is owned yet and whose bytes
    /// are unspecified. Nothing on disk points there before [`commit`](Self::commit).
    fn place(&mut self, block: BlockIndex) -> Result<FileOffset, Error>;

    /// Says that the data of these sectors of a placed block have been written. From here on [`Layer::ownership`]
    /// includes them; on disk they are owned only after the next commit.
    fn wrote(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<(), Error>;

    /// Barrier, then the pointers to everything written so far: bitmaps of new blocks were part of the data, bits of old
    /// blocks and block-table entries come after it. Does nothing, not even a barrier, if nothing was written.
    fn commit(&mut self) -> Result<(), Error>;

    /// Commits, then a barrier: everything written so far survives a power cut.
    fn flush(&mut self) -> Result<(), Error>;

    /// Gives these sectors up: durably unowned when this returns (D2). Blocks of which nothing is left lose their place, and
    /// their space is given back to the storage where it can be. No read may be under way there.
    fn give_up(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<(), Error>;
}
