//! Creating an empty image, byte for byte as XenServer's tools do (identity and time aside).
//!
//! Metadata first, then the footer at the end, then one barrier. An image whose creation was interrupted is removed by the
//! job that made it.

use crate::bat::empty_table;
use crate::batmap::Batmap;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, FOOTER_BYTES, Footer};
use crate::header::{Header, Locators};
use crate::layout::{Layout, SECTOR};
use crate::locator::{LOCATORS, Locator, WRITTEN};
use crate::open::MAX_SIZE;
use catena_blockio::{Container, Sizing};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset, ImageId, SECTOR_BYTES, VHD_MAX_SIZE, VHD_MIN_SIZE};

/// The parent that a new or changed image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentSpec {
    /// Its id.
    pub id: ImageId,
    /// The name of its container, in the directory of the child.
    pub name: String,
    /// When it was last changed, in the format's time ([`vhd_timestamp`](crate::vhd_timestamp)).
    pub timestamp: u32,
}

/// What to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSpec {
    /// Its id.
    pub id: ImageId,
    /// Size of the virtual disk, 2 MiB to 2040 GiB; rounded up to 2 MiB, that of a differencing image to 512 bytes.
    pub virtual_size: Bytes,
    /// The parent of a differencing image.
    pub parent: Option<ParentSpec>,
    /// Make the block table long enough for a disk of this size, so that growing up to it changes footers only.
    pub table_size: Option<Bytes>,
    /// A fixed disk: all bytes in order. Cannot have a parent.
    pub fixed: bool,
    /// Whether it is a base copy, which no user sees.
    pub hidden: bool,
    /// Now, in the format's time ([`vhd_timestamp`](crate::vhd_timestamp)).
    pub timestamp: u32,
}

/// Rounds a size as images of ours are sized, or says why it cannot be one.
pub(crate) fn rounded_size(size: Bytes) -> Result<Bytes> {
    if size.0 == 0 || size > VHD_MAX_SIZE {
        return Err(Error::OutOfRange(format!("a VHD has {VHD_MIN_SIZE} to {VHD_MAX_SIZE}, not {size}")));
    }
    Ok(size.round_up(BLOCK_BYTES))
}

/// The same for a disk with or without a parent: a child has its parent's size to the sector, also where another program
/// chose that.
pub(crate) fn disk_size(size: Bytes, has_parent: bool) -> Result<Bytes> {
    let rounded = rounded_size(size)?;
    Ok(if has_parent { size.round_up(SECTOR_BYTES) } else { rounded })
}

/// Writes a complete empty image and waits until it is durable. A file is cut to the image's length; on a container of
/// explicit size the footer goes to its last sector.
///
/// # Errors
/// `OutOfRange` for a size or name that the format cannot hold, `NoSpace` where the container is too small, before anything is
/// written.
pub fn create(container: &dyn Container, spec: &CreateSpec) -> Result<()> {
    let size = disk_size(spec.virtual_size, spec.parent.is_some())?;
    let kind = match (&spec.parent, spec.fixed) {
        (Some(_), true) => return Err(Error::Unsupported("a fixed disk with a parent".into())),
        (None, true) => DiskKind::Fixed,
        (None, false) => DiskKind::Dynamic,
        (Some(_), false) => DiskKind::Differencing,
    };
    let footer = Footer::new(kind, spec.id, size, spec.timestamp, spec.hidden).encode();
    let metadata = match kind {
        DiskKind::Fixed => Vec::new(),
        _ => metadata(&footer, size, spec)?,
    };
    let content = if kind == DiskKind::Fixed { size.0 } else { metadata.len() as u64 };
    let footer_at = place_footer(container, content)?;
    container.write_at(&metadata, FileOffset(0)).map_err(Error::io("writing a new image"))?;
    container.write_at(&footer, footer_at).map_err(Error::io("writing the footer of a new image"))?;
    container.flush().map_err(Error::io("waiting for a new image to be durable"))
}

/// Sizes the container and tells where the footer goes.
fn place_footer(container: &dyn Container, content: u64) -> Result<FileOffset> {
    let needed = Bytes(content + FOOTER_BYTES);
    match container.sizing() {
        Sizing::Automatic => {
            container.set_size(needed).map_err(Error::io("sizing a new image"))?;
            Ok(FileOffset(content))
        }
        Sizing::Explicit => {
            let size = container.size().map_err(Error::io("asking for the size of the container"))?;
            let size = Bytes(size.0 / SECTOR_BYTES * SECTOR_BYTES);
            if size < needed {
                return Err(Error::NoSpace { missing: Bytes(needed.0 - size.0) });
            }
            Ok(FileOffset(size.0 - FOOTER_BYTES))
        }
    }
}

/// Everything before the first block.
fn metadata(footer: &[u8], size: Bytes, spec: &CreateSpec) -> Result<Vec<u8>> {
    let table_size = spec.table_size.unwrap_or(size).round_up(BLOCK_BYTES);
    if table_size.0 > MAX_SIZE || table_size < size {
        return Err(Error::OutOfRange(format!("a block table for {table_size} is not one for {size}")));
    }
    let layout = Layout::new(table_size.blocks());
    let mut header = Header::new(layout.table_at, layout.entries);
    let mut texts = Vec::new();
    if let Some(parent) = &spec.parent {
        check_name(&parent.name)?;
        let locators = new_locators(parent, layout.tables_end(), &mut texts)?;
        header = header.with_parent(parent.id, parent.timestamp, &parent.name, locators)?;
    }
    let mut raw = footer.to_vec();
    raw.extend_from_slice(header.raw());
    raw.extend(empty_table(&layout));
    // The whole map is written, or the footer of a file would lie inside its last sector for some sizes.
    raw.extend(Batmap::new(&layout, size).to_clear_bytes());
    raw.extend(texts);
    Ok(raw)
}

/// The three locators, their texts one after another from `at`.
pub(crate) fn new_locators(parent: &ParentSpec, at: u64, texts: &mut Vec<u8>) -> Result<Locators> {
    let mut locators = [None; LOCATORS];
    for (place, platform) in locators.iter_mut().zip(WRITTEN) {
        let mut text = platform.text(&parent.name);
        let len = u32::try_from(text.len()).map_err(|_| too_long(&parent.name))?;
        text.resize(text.len().next_multiple_of(SECTOR), 0);
        let at = FileOffset(at + texts.len() as u64);
        *place = Some(Locator { platform, space: text.len() as u64, len, at });
        texts.extend(text);
    }
    Ok(locators)
}

/// Refuses what is not the name of a container in the same directory.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '\\', '\0']) {
        return Err(Error::OutOfRange(format!("'{}' cannot name a parent", name.escape_default())));
    }
    Ok(())
}

/// The error for a name that does not fit.
pub(crate) fn too_long(name: &str) -> Error {
    Error::OutOfRange(format!("the name of the parent is too long for a VHD: '{name}'"))
}
