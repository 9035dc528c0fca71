//! Mending the header: what it says of the parent, and, if it is unreadable, all of it.
//!
//! A header without a sound checksum is rebuilt only where the batmap proves where the block table is: it lies right behind it,
//! and its own header says where. Everything else in a header is constant or known to the catalog. The result is a patch, which is
//! not applied here (D5).

use crate::bat::Bat;
use crate::batmap::Batmap;
use crate::bytes::{u32_at, u64_at};
use crate::check::{CheckOptions, Findings};
use crate::check_parent::check_parent;
use crate::create::{ParentSpec, check_name, new_locators};
use crate::error::{Error, Result};
use crate::footer::{DiskKind, FOOTER_BYTES, Footer};
use crate::header::{Header, RawHeader};
use crate::layout::{Layout, TABLE_AT};
use crate::locator::LOCATORS;
use crate::open::{layout_of, read_header};
use crate::repair::Fix;
use crate::reparent::{Patch, repointed};
use catena_blockio::Container;
use catena_types::{BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES};

/// A header as it will be, and how it becomes so.
#[derive(Debug)]
pub(crate) struct MendedHeader {
    pub(crate) header: Header,
    pub(crate) patch: Patch,
    pub(crate) fixes: Vec<Fix>,
}

/// Reads the header and plans to mend it, if it must be.
pub(crate) fn mend_header(
    container: &dyn Container,
    footer: &Footer,
    size: Bytes,
    parent: Option<&ParentSpec>,
) -> Result<MendedHeader> {
    let (header, check) = match read_header(container, footer, size) {
        Ok(header) => (header, None),
        Err(Error::Damaged { check, at, detail }) => {
            let lost = || Error::Damaged { check, at, detail: format!("{detail}, and cannot be rebuilt") };
            (rebuilt(container, footer, size)?.ok_or_else(lost)?, Some(check))
        }
        Err(other) => return Err(other),
    };
    let layout = layout_of(container, footer, &header, size)?;
    if let Some(check) = check {
        let what = "it is rebuilt: the batmap shows where the block table is, the catalog knows the parent";
        let fixes = vec![Fix { check, what }];
        if footer.kind != DiskKind::Differencing {
            let patch = vec![(layout.header_at, header.raw().to_vec())];
            return Ok(MendedHeader { header, patch, fixes });
        }
        let Some(parent) = parent else {
            return Err(Error::damaged(
                check,
                layout.header_at,
                "the header is lost, and its parent unknown",
            ));
        };
        let patch = newly_pointed(container, &header, &layout, footer, parent)?;
        return mended(&layout, patch, fixes);
    }
    let fixes = wrong_parent(container, &header, footer, &layout, parent)?;
    if fixes.is_empty() {
        return Ok(MendedHeader { header, patch: Patch::new(), fixes });
    }
    let patch = match parent {
        Some(parent) if footer.kind == DiskKind::Differencing => {
            let places_are_sound = fixes.iter().all(|fix| !fix.check.starts_with("locator_"));
            match repointed(&header, &layout, parent) {
                Ok(patch) if places_are_sound => patch,
                _ => newly_pointed(container, &header, &layout, footer, parent)?,
            }
        }
        _ => {
            let none = header.with_parent(ImageId::from_bytes([0; 16]), 0, "", [None; LOCATORS])?;
            vec![(layout.header_at, none.raw().to_vec())]
        }
    };
    mended(&layout, patch, fixes)
}

fn mended(layout: &Layout, patch: Patch, fixes: Vec<Fix>) -> Result<MendedHeader> {
    let raw = patch.last().and_then(|(_, bytes)| bytes.first_chunk());
    let raw: &RawHeader = raw.ok_or_else(|| Error::OutOfRange("a plan without a header".into()))?;
    Ok(MendedHeader { header: Header::parse(raw, layout.header_at)?, patch, fixes })
}

/// The rules about the parent that are broken and that the catalog can mend.
fn wrong_parent(
    container: &dyn Container,
    header: &Header,
    footer: &Footer,
    layout: &Layout,
    parent: Option<&ParentSpec>,
) -> Result<Vec<Fix>> {
    let differencing = footer.kind == DiskKind::Differencing;
    if differencing && parent.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Findings::default();
    let options = CheckOptions {
        parent: parent.filter(|_| differencing).map(|parent| (parent.id, Bytes(0))),
        ..CheckOptions::default()
    };
    check_parent(container, header, footer, layout, &options, &mut found)?;
    let what =
        if differencing { "the catalog's parent is written to it" } else { "the parent's name is removed" };
    Ok(found.checks().map(|check| Fix { check, what }).collect())
}

/// The writes that name a parent in locators at their usual place, between the tables and the first block.
fn newly_pointed(
    container: &dyn Container,
    header: &Header,
    layout: &Layout,
    footer: &Footer,
    parent: &ParentSpec,
) -> Result<Patch> {
    check_name(&parent.name)?;
    let bat = Bat::load(container, layout, footer.size.blocks())?;
    let first = bat.used(BlockIndex(0)).map(|(_, slot)| slot).min();
    let free_until = first.map_or(u64::MAX, |slot| slot.bitmap_at().0);
    let mut texts = Vec::new();
    let mut locators = new_locators(parent, layout.tables_end(), &mut texts)?;
    for place in &mut locators {
        *place = place.filter(|locator| locator.end() <= free_until);
    }
    let end = locators.iter().flatten().map(|locator| locator.end()).max();
    // A name that is too long has been refused: what is in the way is a block, or an entry that is none.
    let no_room = || {
        let detail = "the parent's name must be written anew, and a block begins where it would be";
        Error::damaged("locator_place", layout.header_at, detail)
    };
    let len = end.ok_or_else(no_room)? - layout.tables_end();
    texts.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    let new = header.with_parent(parent.id, parent.timestamp, &parent.name, locators)?;
    Ok(vec![(FileOffset(layout.tables_end()), texts), (layout.header_at, new.raw().to_vec())])
}

/// The header of an image without parent whose tables lie where the batmap proves them to be; `None` without that proof.
fn rebuilt(container: &dyn Container, footer: &Footer, size: Bytes) -> Result<Option<Header>> {
    if footer.header_at.0 != FOOTER_BYTES || footer.creator_version < 0x0001_0002 {
        return Ok(None);
    }
    let mut raw: RawHeader = [0; 1024];
    container.read_at(&mut raw, footer.header_at).map_err(Error::io("reading the header"))?;
    for (table_at, entries) in
        [(FileOffset(u64_at(&raw, 16)), u32_at(&raw, 28)), (TABLE_AT, footer.size.blocks())]
    {
        let layout = Layout { table_at, ..Layout::new(entries) };
        let plausible = table_at >= TABLE_AT
            && table_at.0.is_multiple_of(SECTOR_BYTES)
            && entries >= footer.size.blocks()
            && layout.tables_end() <= size.0;
        if plausible && Batmap::lies_at(container, &layout)? {
            return Ok(Some(Header::new(table_at, entries)));
        }
    }
    Ok(None)
}
