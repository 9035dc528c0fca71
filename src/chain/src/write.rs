//! Writing to the leaf of a chain at any byte.
//!
//! Invariant: what is not written reads as before; sectors that are written in part take their rest from the chain
//! (D6). Nothing is durable before the caller commits or flushes the target (D1). Called by imports and by tools.

use crate::error::Error;
use crate::layer::LayerMut;
use crate::reader::Chain;
use crate::units::{BLOCK, SECTOR, by_block, len, sector_bytes, sectors_touched};
use catena_types::{BlockIndex, Bytes, FileOffset, GuestOffset, SectorSet};
use std::ops::Range;

/// Writes `buf` at `at` of the disk whose leaf is `target` and whose other layers are `below` (`None` for a single layer).
/// The caller invalidates the maps of chains that contain the target.
pub fn write(
    target: &mut dyn LayerMut,
    below: Option<&Chain>,
    at: GuestOffset,
    buf: &[u8],
) -> Result<(), Error> {
    let size = target.virtual_size();
    let end = at.0.checked_add(buf.len() as u64).filter(|&end| end <= size.0).ok_or_else(|| {
        Error::OutOfRange(format!("{} bytes at {} of a disk of {} bytes", buf.len(), at.0, size.0))
    })?;
    let mut rest = buf;
    for (block, bytes) in by_block(at..GuestOffset(end)) {
        let (part, after) = rest.split_at(bytes.len());
        rest = after;
        let sectors = sectors_touched(&bytes);
        if sector_bytes(&sectors) == bytes {
            store(target, block, &sectors, part)?;
        } else {
            let mut whole = vec![0; sectors.len() * SECTOR];
            let inside = bytes.start - sectors.start * SECTOR;
            fill_edges(target, below, block, &sectors, &mut whole)?;
            whole[inside..inside + part.len()].copy_from_slice(part);
            store(target, block, &sectors, &whole)?;
        }
    }
    Ok(())
}

/// Writes whole sectors of one block.
fn store(
    target: &mut dyn LayerMut,
    block: BlockIndex,
    sectors: &Range<usize>,
    data: &[u8],
) -> Result<(), Error> {
    let place = target.place(block)?;
    let at = FileOffset(place.0 + sector_bytes(sectors).start as u64);
    target.container().write_at(data, at).map_err(Error::io("writing to an image"))?;
    target.wrote(block, &SectorSet::of(sectors.clone()))
}

/// Reads the first and the last of the sectors to their places in `whole`.
fn fill_edges(
    target: &dyn LayerMut,
    below: Option<&Chain>,
    block: BlockIndex,
    sectors: &Range<usize>,
    whole: &mut [u8],
) -> Result<(), Error> {
    let owned = target.ownership(block)?.to_set();
    let last = sectors.end - 1;
    for sector in [sectors.start, last] {
        let at = (sector - sectors.start) * SECTOR;
        let old = &mut whole[at..at + SECTOR];
        if owned.contains(sector) {
            read_own(target, block, sector, old)?;
        } else if let Some(chain) = below {
            read_below(chain, block, sector, old)?;
        }
    }
    Ok(())
}

/// Reads a sector that the target owns.
fn read_own(target: &dyn LayerMut, block: BlockIndex, sector: usize, old: &mut [u8]) -> Result<(), Error> {
    let Some(extent) = target.locate(block) else {
        return Err(Error::Damaged { block, problem: "sectors are owned and have no place".to_owned() });
    };
    let start = sector * SECTOR;
    let there = (extent.len as usize).clamp(start, BLOCK).min(start + SECTOR) - start;
    target
        .container()
        .read_at(&mut old[..there], FileOffset(extent.at.0 + start as u64))
        .map_err(Error::io("reading from an image"))
}

/// Reads a sector as the layers below have it; past their end they have zeros.
fn read_below(chain: &Chain, block: BlockIndex, sector: usize, old: &mut [u8]) -> Result<(), Error> {
    let at = GuestOffset(block.start().0 + (sector * SECTOR) as u64);
    let Bytes(size) = chain.virtual_size();
    let there = len(size.saturating_sub(at.0)).min(SECTOR);
    if there == 0 {
        return Ok(());
    }
    chain.read(at, &mut old[..there])
}
