//! Images on containers of explicit size: how large those must be, and the move of the footer when one gets another size.
//!
//! ```text
//!  inflate:  container grown ─▶ fit (footer at its new end)            deflate:  fit (footer further down) ─▶ container cut
//! ```
//! The footer is in the last sector, so a container that has grown has none until it is fitted: what stands at its end then may be
//! anything, an older footer of this very image too; the copy at the beginning counts. A container that is about to be cut has
//! two, one where it ends and one where it will. So a crash in an inflate needs one more `fit`, and one in a deflate needs
//! nothing.

use crate::error::{Error, Result};
use crate::footer::FOOTER_BYTES;
use crate::image::{FooterState, Image, Mode};
use crate::layout::Layout;
use crate::open::read_footers;
use crate::space::{End, Space};
use catena_blockio::{Container, Sizing};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset, SECTOR_BYTES};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Images on containers of explicit size have tables for a disk of this size, so that growing a disk moves nothing. XenServer's
/// too.
const TABLE_SIZE: Bytes = Bytes(2 << 40);
/// The texts of the parent's locators, each in a sector of its own.
const LOCATOR_BYTES: u64 = 3 * SECTOR_BYTES;
/// What a block takes besides its data: its bitmap, and what aligns the data to 4 KiB.
const BLOCK_OVERHEAD: u64 = 4096;

/// How large a container of explicit size must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerSizes {
    /// For an image without blocks.
    pub empty: Bytes,
    /// For one that can take every block of its disk.
    pub full: Bytes,
}

impl ContainerSizes {
    /// Those of an image with a disk of this size; the same as XenServer's.
    pub fn of(virtual_size: Bytes) -> Self {
        let empty = Layout::new(TABLE_SIZE.blocks()).tables_end() + LOCATOR_BYTES + FOOTER_BYTES;
        let blocks = u64::from(virtual_size.blocks());
        Self { empty: Bytes(empty), full: Bytes(empty + blocks * (BLOCK_BYTES + BLOCK_OVERHEAD)) }
    }
}

/// The size for which a new image in this container has tables, if it is not that of its disk.
pub fn table_size_on(container: &dyn Container) -> Option<Bytes> {
    (container.sizing() == Sizing::Explicit).then_some(TABLE_SIZE)
}

impl Image {
    /// Opens an image for writing whose container of explicit size has grown, or is to be cut: it had `before` bytes when the
    /// footer was last at its end. Where that footer was is looked for only if the copy at the beginning is damaged.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); `Unsupported` where the container is a file.
    pub fn open_to_fit(container: Arc<dyn Container>, before: Bytes) -> Result<Self> {
        if container.sizing() == Sizing::Automatic {
            return Err(Error::Unsupported("sizing a file".into()));
        }
        let size = container.size().map_err(Error::io("asking for the size of the container"))?;
        let footers = match read_footers(&*container, size) {
            Ok(footers) if footers.state != FooterState::CopyDamaged => footers,
            _ => read_footers(&*container, before.min(size))?,
        };
        Self::open_with(container, Mode::ReadWrite, size, footers)
    }

    /// Puts the footer where the container ends, or is to end, when it has `size` bytes; durable when this returns. One that is to be
    /// smaller may be cut to that size afterwards.
    ///
    /// # Errors
    /// `NoSpace` where the container is smaller, or a block lies beyond `size`; nothing was changed then.
    pub fn fit(&mut self, size: Bytes) -> Result<()> {
        self.writer()?;
        let container = self.container.size().map_err(Error::io("asking for the size of the container"))?;
        let needed = Space::with_footer(self.used_end());
        let size = Bytes(size.0 / SECTOR_BYTES * SECTOR_BYTES);
        let missing = needed.0.saturating_sub(size.0).max(size.0.saturating_sub(container.0));
        if missing > 0 {
            return Err(Error::NoSpace { missing: Bytes(missing) });
        }
        self.flush_all()?;
        let end = FileOffset(size.0 - FOOTER_BYTES);
        self.writer()?.space.end = End::Pinned(end);
        self.data_end.store(end.0, Ordering::Relaxed);
        self.write_footers()
    }
}
