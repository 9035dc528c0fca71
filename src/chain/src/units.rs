//! Conversions between bytes, sectors and blocks that the modules of this crate share. Pure arithmetic.

use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, GuestOffset, SECTOR_BYTES};
use std::ops::Range;

/// Bytes in a sector, as a buffer index.
pub(crate) const SECTOR: usize = 512;
/// Bytes in a block, as a buffer index.
pub(crate) const BLOCK: usize = BLOCK_SECTORS * SECTOR;
const _: () = assert!(SECTOR as u64 == SECTOR_BYTES && BLOCK as u64 == BLOCK_BYTES);
/// Bytes in a page, the alignment that direct I/O and reflinks want.
pub(crate) const PAGE: u64 = 4096;
/// Sectors in a page.
pub(crate) const PAGE_SECTORS: usize = 8;

/// A length as a buffer index. Saturates where memory is smaller than the length, so that a slice fails and not wraps.
pub(crate) fn len(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// How many of the block's sectors lie inside a disk of this size; a sector that is cut by its end counts.
pub(crate) fn sectors_inside(size: Bytes, block: BlockIndex) -> usize {
    let bytes = size.0.saturating_sub(block.start().0).min(BLOCK_BYTES);
    len(bytes.div_ceil(SECTOR_BYTES)).min(BLOCK_SECTORS)
}

/// The pieces of `range` that lie in one block each: the block and the range of bytes inside it, ascending.
pub(crate) fn by_block(range: Range<GuestOffset>) -> impl Iterator<Item = (BlockIndex, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (block, start) = at.split();
        let end = (range.end.0 - block.start().0).min(BLOCK_BYTES);
        at = GuestOffset(block.start().0 + end);
        Some((block, len(start)..len(end)))
    })
}

/// The sectors that a range of bytes touches.
pub(crate) fn sectors_touched(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / SECTOR..bytes.end.div_ceil(SECTOR)
}

/// The bytes of a range of sectors.
pub(crate) fn sector_bytes(sectors: &Range<usize>) -> Range<usize> {
    sectors.start * SECTOR..sectors.end * SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_cut_by_the_end_of_the_disk() {
        assert_eq!(sectors_inside(Bytes(BLOCK_BYTES + 513), BlockIndex(0)), BLOCK_SECTORS);
        assert_eq!(sectors_inside(Bytes(BLOCK_BYTES + 513), BlockIndex(1)), 2);
        assert_eq!(sectors_inside(Bytes(BLOCK_BYTES + 513), BlockIndex(2)), 0);
    }

    #[test]
    fn a_range_is_cut_at_block_borders() {
        let range = GuestOffset(BLOCK_BYTES - 1)..GuestOffset(2 * BLOCK_BYTES + 1);
        let pieces: Vec<_> = by_block(range).collect();
        assert_eq!(
            pieces,
            [(BlockIndex(0), BLOCK - 1..BLOCK), (BlockIndex(1), 0..BLOCK), (BlockIndex(2), 0..1)]
        );
    }
}
