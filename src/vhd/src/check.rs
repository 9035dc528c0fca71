//! Every rule that a sound image keeps, looked at one after another without changing anything.
//!
//! What a crash of our own writer can leave is at most a `Warning`; so is what other programs put up with. An `Error` means
//! that data may be wrong or that some program refuses the image.

use crate::bat::Bat;
use crate::batmap::{Batmap, Stored};
use crate::check_parent::check_parent;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, FOOTER_BYTES, Footer, NONE};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::image::FooterState;
use crate::layout::{Layout, SECTOR, Slot};
use crate::open::{Footers, layout_of, read_footers, read_header};
use catena_blockio::{Container, Sizing};
use catena_types::{BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES, SectorSet, Severity};

/// What unowned sectors are compared with.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How far a clock of another host may be ahead, in seconds.
pub(crate) const CLOCK_SLACK: u32 = 1800;

/// What to check besides the image itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// The parent as it is: its id and its virtual size.
    pub parent: Option<(ImageId, Bytes)>,
    /// Now, in the format's time: times ahead of it are reported.
    pub now: Option<u32>,
    /// Compare bitmaps with the batmap and with the data. Reads all data of blocks that are not fully owned.
    pub deep: bool,
}

/// A rule that an image breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `Error` where data may be wrong or other programs refuse the image.
    pub severity: Severity,
    /// The rule; a stable name.
    pub check: &'static str,
    /// Where, in the container.
    pub at: Option<FileOffset>,
    /// What is wrong.
    pub detail: String,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

impl Findings {
    pub(crate) fn error(&mut self, check: &'static str, at: FileOffset, detail: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Error, check, at: Some(at), detail: detail.into() });
    }

    /// The rules that are broken.
    pub(crate) fn checks(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|problem| problem.check)
    }

    pub(crate) fn warning(&mut self, check: &'static str, at: FileOffset, detail: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Warning, check, at: Some(at), detail: detail.into() });
    }
}

/// Checks an image without changing it. Each problem names its rule, in the order of the file.
///
/// # Errors
/// Those of the storage only; everything else is a [`Problem`].
pub fn check(container: &dyn Container, options: &CheckOptions) -> Result<Vec<Problem>> {
    let mut found = Findings::default();
    match look(container, options, &mut found) {
        Ok(()) => {}
        Err(Error::Io { context, source }) => return Err(Error::Io { context, source }),
        Err(Error::Damaged { check, at, detail }) => found.error(check, at, detail),
        Err(other) => found.error("unsupported", FileOffset(0), other.to_string()),
    }
    Ok(found.0)
}

fn look(container: &dyn Container, options: &CheckOptions, found: &mut Findings) -> Result<()> {
    let size = container.size().map_err(Error::io("asking for the size of the container"))?;
    let footers = read_footers(container, size)?;
    check_footers(&footers, options, found);
    let footer = &footers.footer;
    if footer.kind == DiskKind::Fixed {
        if footers.end_at.is_none_or(|at| at.0 < footer.size.0) {
            found.error("fixed_short", FileOffset(size.0), "the fixed disk is longer than its container");
        }
        return Ok(());
    }
    let header = read_header(container, footer, size)?;
    check_header(&header, footer, found);
    let layout = layout_of(container, footer, &header, size)?;
    let footer_at = match container.sizing() {
        Sizing::Explicit => size.0.saturating_sub(FOOTER_BYTES),
        Sizing::Automatic => footers.end_at.map_or(size.0, |at| at.0),
    };
    if layout.tables_end() > footer_at {
        found.error("tables_outside", layout.table_at, "block table or batmap reach over the footer");
    }
    check_parent(container, &header, footer, &layout, options, found)?;
    let bat = Bat::load(container, &layout, footer.size.blocks())?;
    check_blocks(&bat, &layout, footer_at, found);
    let batmap = Batmap::load(container, &layout, footer.size)?;
    check_batmap(&batmap, &bat, &layout, found);
    if options.deep {
        check_bitmaps(container, &batmap, &bat, footer.kind, found)?;
    }
    Ok(())
}

fn check_footers(footers: &Footers, options: &CheckOptions, found: &mut Findings) {
    let at = footers.end_at.unwrap_or(FileOffset(0));
    match footers.state {
        FooterState::Both => {}
        FooterState::EndMissing => {
            found.warning("footer_end", at, "no footer at the end, only its copy at 0");
        }
        FooterState::CopyDamaged => found.error("footer_copy", FileOffset(0), "no copy of the footer at 0"),
        FooterState::Differ => found.warning("footers_differ", at, "the footer and its copy differ"),
    }
    let (footer, fields) = (&footers.footer, footers.footer.fields());
    if fields.features & !1 != 2 {
        found.error("footer_features", at, format!("unknown features {:#x}", fields.features));
    }
    if footer.kind == DiskKind::Fixed && footer.header_at.0 != NONE {
        found.warning("footer_data_offset", at, "a fixed disk with a header");
    }
    if fields.geometry > Geometry::of(footer.size).to_u32() {
        found.warning("footer_geometry", at, "the geometry is larger than the disk");
    }
    if fields.saved_state > 1 || fields.hidden > 1 {
        found.error("footer_flags", at, "the saved or hidden flag is neither 0 nor 1");
    }
    if fields.reserved_used {
        found.warning("footer_reserved", at, "reserved bytes are in use");
    }
    if footer.id == ImageId::from_bytes([0; 16]) {
        found.error("footer_id", at, "the image has no id");
    }
    if options.now.is_some_and(|now| footer.timestamp > now.saturating_add(CLOCK_SLACK)) {
        found.warning("footer_timestamp", at, "the image was created in the future");
    }
}

fn check_header(header: &Header, footer: &Footer, found: &mut Findings) {
    let at = footer.header_at;
    if !header.table_at.0.is_multiple_of(SECTOR_BYTES) || !at.0.is_multiple_of(SECTOR_BYTES) {
        found.error("alignment", header.table_at, "the metadata are not aligned to sectors");
    }
    if header.reserved_used() {
        found.warning("header_reserved", at, "reserved bytes are in use");
    }
}

/// Each block lies between metadata and footer, and none on another. One sort instead of comparing all with all.
fn check_blocks(bat: &Bat, layout: &Layout, footer_at: u64, found: &mut Findings) {
    let mut slots: Vec<(Slot, BlockIndex)> =
        bat.used(BlockIndex(0)).map(|(block, slot)| (slot, block)).collect();
    slots.sort_unstable();
    let mut before: Option<(Slot, BlockIndex)> = None;
    for (slot, block) in slots {
        let name = block.0;
        if u64::from(slot.0) < layout.headers_end_sector() {
            found.error(
                "block_over_headers",
                slot.bitmap_at(),
                format!("block {name} lies over the metadata"),
            );
        }
        if slot.end().0 > footer_at {
            found.error(
                "block_over_footer",
                slot.bitmap_at(),
                format!("block {name} reaches over the footer"),
            );
        }
        if let Some((last, other)) = before
            && u64::from(slot.0) < last.end_sector()
        {
            let detail = format!("block {name} overlaps block {}", other.0);
            found.error("block_overlap", slot.bitmap_at(), detail);
        }
        before = Some((slot, block));
    }
}

fn check_batmap(batmap: &Batmap, bat: &Bat, layout: &Layout, found: &mut Findings) {
    let at = layout.batmap_header_at();
    match batmap.stored() {
        // D4: what is left when clearing the batmap was interrupted. It counts as clear.
        Stored::Unusable(why @ Batmap::BAD_CHECKSUM) => found.warning("batmap_checksum", at, why),
        Stored::Unusable(why) => found.error("batmap", at, why),
        Stored::Absent | Stored::Clear | Stored::Set => {}
    }
    for block in batmap.marked().filter(|&block| bat.get(block).is_none()) {
        found.error("batmap_unallocated", at, format!("block {} is marked full and has no place", block.0));
    }
}

/// A marked block must own all its sectors. Sectors that a disk without parent does not own must be zero.
fn check_bitmaps(
    container: &dyn Container,
    batmap: &Batmap,
    bat: &Bat,
    kind: DiskKind,
    found: &mut Findings,
) -> Result<()> {
    for (block, slot) in bat.used(BlockIndex(0)) {
        let mut raw = [0; SECTOR];
        container.read_at(&mut raw, slot.bitmap_at()).map_err(Error::io("reading a bitmap"))?;
        let owned = SectorSet::from_bitmap(&raw);
        if batmap.contains(block) && !owned.is_full() {
            found.error(
                "batmap_stale",
                slot.bitmap_at(),
                format!("block {} is marked full and is not", block.0),
            );
        }
        if kind != DiskKind::Dynamic {
            continue;
        }
        for run in SectorSet::full().minus(&owned).runs() {
            let at = FileOffset(slot.data_at().0 + run.start as u64 * SECTOR_BYTES);
            if !is_zero(container, at, run.len() * SECTOR)? {
                found.warning(
                    "unowned_data",
                    at,
                    format!("block {} has data in sectors it does not own", block.0),
                );
            }
        }
    }
    Ok(())
}

fn is_zero(container: &dyn Container, mut at: FileOffset, mut len: usize) -> Result<bool> {
    let mut data = vec![0; len.min(ZEROS.len())];
    while len > 0 {
        let part = len.min(data.len());
        container.read_at(&mut data[..part], at).map_err(Error::io("reading a block"))?;
        if data[..part] != ZEROS[..part] {
            return Ok(false);
        }
        (at.0, len) = (at.0 + part as u64, len - part);
    }
    Ok(true)
}
