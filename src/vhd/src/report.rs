//! What an image says about itself, for the catalog and for people.

use crate::footer::{DiskKind, FOOTER_BYTES};
use crate::image::{FooterState, Image};
use catena_types::{BlockIndex, Bytes, ImageId};

/// The parent that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentInfo {
    /// Its id; all zero for a raw parent.
    pub id: ImageId,
    /// The name in the header.
    pub name: String,
    /// The paths of the locators that can be read, in their order, with `/` between parts.
    pub locators: Vec<String>,
    /// When it was last changed, as far as the image knows, in the format's time.
    pub timestamp: u32,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its id.
    pub id: ImageId,
    /// The parent it names, for a differencing image.
    pub parent: Option<ParentInfo>,
    /// Size of the virtual disk.
    pub virtual_size: Bytes,
    /// The size it was created with.
    pub original_size: Bytes,
    /// The largest size to which it can grow by changing footers only.
    pub table_size: Bytes,
    /// What kind of disk it is.
    pub kind: DiskKind,
    /// Whether it is a base copy.
    pub hidden: bool,
    /// The program that made it.
    pub creator: [u8; 4],
    /// Whether that program is of another family, so that the image is never written.
    pub foreign: bool,
    /// Which footers were found.
    pub footers: FooterState,
    /// Blocks that have a place.
    pub allocated_blocks: u32,
    /// When it was created, in the format's time.
    pub timestamp: u32,
    /// Bytes from the beginning to the end of its last block and a footer: the size that a container of explicit size can
    /// be cut to.
    pub physical_end: Bytes,
}

impl Image {
    /// Its id.
    pub const fn id(&self) -> ImageId {
        self.footer.id
    }

    /// What the image says about itself. Reads the texts of the locators; those that cannot be read are left out.
    pub fn info(&self) -> ImageInfo {
        let dirty = self.writer.iter().flat_map(|writer| writer.dirty.values());
        let fresh = dirty.filter(|dirty| dirty.fresh).count();
        let allocated = self.bat.used(BlockIndex(0)).count() + fresh;
        let table_size = Bytes(BlockIndex(self.layout.entries).start().0);
        ImageInfo {
            id: self.footer.id,
            parent: self.parent_info(),
            virtual_size: self.footer.size,
            original_size: self.footer.original_size,
            table_size: if self.header.is_some() { table_size } else { self.footer.size },
            kind: self.footer.kind,
            hidden: self.footer.hidden,
            creator: self.footer.creator,
            foreign: self.footer.is_foreign(),
            footers: self.footers,
            allocated_blocks: u32::try_from(allocated).unwrap_or(u32::MAX),
            timestamp: self.footer.timestamp,
            physical_end: Bytes(self.used_end().0 + FOOTER_BYTES),
        }
    }

    fn parent_info(&self) -> Option<ParentInfo> {
        let header = self.header.as_ref().filter(|_| self.footer.kind == DiskKind::Differencing)?;
        let locators = header.locators.iter().flatten().filter_map(|locator| {
            let mut text = vec![0; locator.readable()?];
            self.container.read_at(&mut text, locator.at).ok()?;
            locator.platform.decode(&text)
        });
        Some(ParentInfo {
            id: header.parent,
            name: header.parent_name(),
            locators: locators.collect(),
            timestamp: header.parent_timestamp,
        })
    }
}
