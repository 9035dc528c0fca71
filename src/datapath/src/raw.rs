//! A disk whose bytes are the container's, from its first to its last: what other managers keep as a plain volume or file.
//!
//! It is only read: as the root of a chain, never as a leaf that is written or the target of a merge. It has no header, so nothing
//! verifies that a container is the one that is meant; the catalog alone says so. Made by `open`.

use crate::trouble::{from_io, trouble};
use catena_blockio::Container;
use catena_chain::{Error, Extent, Known, Layer, Ownership, Recall};
use catena_control::{Trouble, TroubleKind};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SECTOR_BYTES};
use std::sync::Arc;

/// An open one.
pub(crate) struct Raw {
    container: Arc<dyn Container>,
    size: Bytes,
}

impl Raw {
    /// Takes over a container of whole sectors.
    pub(crate) fn open(container: Arc<dyn Container>) -> Result<Self, Trouble> {
        let size = container.size().map_err(from_io("asking for the size of a container"))?;
        if size.0 == 0 || !size.0.is_multiple_of(SECTOR_BYTES) {
            let message = format!("a raw disk of {} bytes, which are not whole sectors", size.0);
            return Err(trouble(TroubleKind::Unsupported, message));
        }
        Ok(Self { container, size })
    }

    fn has(&self, block: BlockIndex) -> bool {
        block.start().0 < self.size.0
    }
}

impl Layer for Raw {
    fn virtual_size(&self) -> Bytes {
        self.size
    }

    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error> {
        Ok(if self.has(block) { Ownership::Everything } else { Ownership::Nothing })
    }

    fn locate(&self, block: BlockIndex) -> Option<Extent> {
        let start = block.start().0;
        let len = self.size.0.saturating_sub(start).min(BLOCK_BYTES);
        self.has(block).then(|| Extent { at: FileOffset(start), len: u32::try_from(len).unwrap_or(0) })
    }

    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.has(from).then_some(from)
    }

    fn container(&self) -> &dyn Container {
        &*self.container
    }
}

impl Recall for Raw {
    fn known(&self, block: BlockIndex) -> Result<Known, Error> {
        Ok(if self.has(block) { Known::Everything } else { Known::Nothing })
    }

    fn learn(&self, _: BlockIndex, _: FileOffset, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
