//! Lowering the virtual size of an image whose end nobody owns: for an import that learns only at its end how large the disk is.
//!
//! Only footers change; the block table keeps its length, as that of an image made to grow into has.

use crate::bat::Bat;
use crate::create::disk_size;
use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::image::Image;
use catena_types::{BlockIndex, Bytes};

impl Image {
    /// Lowers the virtual size to `size`, rounded up to 2 MiB, durably. The original size that the footer tells becomes the same:
    /// this is for an image that is still being made.
    ///
    /// # Errors
    /// `OutOfRange` for a size that is larger, zero, or below what a block owns; `Unsupported` for an image with a parent.
    pub fn shrink(&mut self, size: Bytes) -> Result<()> {
        let size = disk_size(size, false)?;
        self.writer()?;
        if self.footer.kind == DiskKind::Differencing {
            return Err(Error::Unsupported("shrinking a disk with a parent".into()));
        }
        if size > self.footer.size {
            return Err(Error::OutOfRange(format!("{size} is more than {}", self.footer.size)));
        }
        self.flush_all()?;
        self.release_unwritten()?;
        if let Some((block, _)) = self.bat.used(BlockIndex(size.blocks())).next() {
            return Err(Error::OutOfRange(format!("block {} past {size} is in use", block.0)));
        }
        // D4: the batmap's checksum covers as much as the size says; a clear one is right for any size.
        self.begin_change_now()?;
        let before = (self.footer.size, self.footer.original_size);
        (self.footer.size, self.footer.original_size) = (size, size);
        self.write_footers().inspect_err(|_| (self.footer.size, self.footer.original_size) = before)?;
        self.bat = Bat::load(&*self.container, &self.layout, size.blocks())?;
        self.batmap.resize(size);
        Ok(())
    }
}
