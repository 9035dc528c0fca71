//! Where everything lies: all arithmetic on positions.
//!
//! ```text
//! copy of the footer | header | block table | batmap header | batmap | locators | gap, bitmap, data | ... | footer
//! ```
//! Positions are in bytes ([`FileOffset`]) or, where the format counts so, in sectors. A [`Slot`] is the place of one block: a
//! bitmap sector and 4096 data sectors, placed so that the data are aligned to 4 KiB. The 7 sectors before the bitmap of
//! every block but the first stay free: XenServer's data path may write zeros there.

use crate::footer::FOOTER_BYTES;
use crate::header::{HEADER_BYTES, Locators};
use crate::locator::Locator;
use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, Bytes, FileOffset, SECTOR_BYTES};

/// Where new images have their block table.
pub(crate) const TABLE_AT: FileOffset = FileOffset(FOOTER_BYTES + HEADER_BYTES);
/// Entries of the block table in one sector.
pub(crate) const ENTRIES_PER_SECTOR: usize = 128;
/// Bytes of a sector, as a length in memory.
pub(crate) const SECTOR: usize = 512;
/// Sectors of a slot: bitmap and data.
pub(crate) const SLOT_SECTORS: u64 = 1 + BLOCK_SECTORS as u64;
/// Sectors before a bitmap that other writers may overwrite.
pub(crate) const GAP_SECTORS: u64 = 7;

/// The place of a block, named as the block table does: by the sector of its bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// The first slot whose bitmap is at or after `sector`; `None` if the block table cannot name it.
    pub(crate) fn at_or_after(sector: u64) -> Option<Self> {
        u32::try_from((sector + 1).next_multiple_of(8) - 1)
            .ok()
            .filter(|&sector| sector != u32::MAX)
            .map(Self)
    }

    /// Position of the bitmap.
    pub(crate) const fn bitmap_at(self) -> FileOffset {
        FileOffset(self.0 as u64 * SECTOR_BYTES)
    }

    /// Position of the data.
    pub(crate) const fn data_at(self) -> FileOffset {
        FileOffset((self.0 as u64 + 1) * SECTOR_BYTES)
    }

    /// The sector that follows the data.
    pub(crate) const fn end_sector(self) -> u64 {
        self.0 as u64 + SLOT_SECTORS
    }

    /// The byte that follows the data.
    pub(crate) const fn end(self) -> FileOffset {
        FileOffset(self.end_sector() * SECTOR_BYTES)
    }

    /// The first sector at which another block's bitmap may be placed after this slot.
    pub(crate) const fn next_free(self) -> u64 {
        self.end_sector() + GAP_SECTORS
    }
}

/// Rounded up to whole sectors.
pub(crate) const fn sectors(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR_BYTES) * SECTOR_BYTES
}

/// Where the metadata of an image with blocks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Position of the header.
    pub(crate) header_at: FileOffset,
    /// Position of the block table.
    pub(crate) table_at: FileOffset,
    /// Entries of the block table.
    pub(crate) entries: u32,
    /// Whether a batmap follows the table.
    pub(crate) batmap: bool,
    /// The byte after the last locator, 0 without any.
    pub(crate) locators_end: u64,
}

impl Layout {
    /// The layout of a new image of our own.
    pub(crate) const fn new(entries: u32) -> Self {
        Self {
            header_at: FileOffset(FOOTER_BYTES),
            table_at: TABLE_AT,
            entries,
            batmap: true,
            locators_end: 0,
        }
    }

    /// The same, reserving the space of these locators.
    #[must_use]
    pub(crate) fn with_locators(mut self, locators: &Locators) -> Self {
        self.locators_end = locators.iter().flatten().map(Locator::end).max().unwrap_or(0);
        self
    }

    /// Bytes of the block table, padded.
    pub(crate) const fn table_bytes(&self) -> u64 {
        sectors(4 * self.entries as u64)
    }

    /// The byte after the block table, where the batmap's header is.
    pub(crate) const fn batmap_header_at(&self) -> FileOffset {
        FileOffset(self.table_at.0.saturating_add(self.table_bytes()))
    }

    /// Position of the batmap.
    pub(crate) const fn batmap_at(&self) -> FileOffset {
        FileOffset(self.batmap_header_at().0.saturating_add(SECTOR_BYTES))
    }

    /// Bytes of the batmap, padded.
    pub(crate) const fn batmap_bytes(&self) -> u64 {
        sectors((self.entries as u64).div_ceil(8))
    }

    /// The byte after the table and the batmap.
    pub(crate) const fn tables_end(&self) -> u64 {
        if self.batmap {
            self.batmap_at().0.saturating_add(self.batmap_bytes())
        } else {
            self.batmap_header_at().0
        }
    }

    /// The byte after all metadata: no block begins before it.
    pub(crate) fn headers_end(&self) -> u64 {
        self.tables_end().max(self.header_at.0.saturating_add(HEADER_BYTES)).max(self.locators_end)
    }

    /// The same in sectors, rounded up.
    pub(crate) fn headers_end_sector(&self) -> u64 {
        self.headers_end().div_ceil(SECTOR_BYTES)
    }
}

/// Bytes of the batmap that its checksum covers, for a virtual size. Blocks past these bytes are never marked: XenServer's
/// tools neither write nor check that part.
pub(crate) fn batmap_window(size: Bytes) -> u64 {
    sectors((size.0 / (8 * BLOCK_BYTES)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn agrees_with_the_golden_table() {
        for (mib, entries, header, map, sectors, file, first) in [
            (2, 1, 2048, 2560, 1, 3584, 7),
            (4, 2, 2048, 2560, 1, 3584, 7),
            (10, 5, 2048, 2560, 1, 3584, 7),
            (100, 50, 2048, 2560, 1, 3584, 7),
            (1024, 512, 3584, 4096, 1, 5120, 15),
            (8192, 4096, 17_920, 18_432, 1, 19_456, 39),
            (10_240, 5120, 22_016, 22_528, 2, 24_064, 47),
            (102_400, 51_200, 206_336, 206_848, 13, 214_016, 423),
            (130_048, 65_024, 261_632, 262_144, 16, 270_848, 535),
            (1_048_576, 524_288, 2_098_688, 2_099_200, 128, 2_165_248, 4231),
            (2_088_960, 1_044_480, 4_179_456, 4_179_968, 255, 4_311_040, 8423),
        ] {
            let layout = Layout::new(Bytes(mib * MIB).blocks());
            assert_eq!(layout.entries, entries, "{mib}");
            assert_eq!(layout.batmap_header_at(), FileOffset(header), "{mib}");
            assert_eq!(layout.batmap_at(), FileOffset(map), "{mib}");
            assert_eq!(layout.batmap_bytes(), sectors * 512, "{mib}");
            assert_eq!(layout.headers_end() + FOOTER_BYTES, file, "{mib}");
            assert_eq!(Slot::at_or_after(layout.headers_end_sector()), Some(Slot(first)), "{mib}");
        }
    }

    #[test]
    fn slots_follow_each_other_with_a_gap() {
        let first = Slot::at_or_after(9).unwrap();
        let second = Slot::at_or_after(first.next_free()).unwrap();
        let third = Slot::at_or_after(second.next_free()).unwrap();
        assert_eq!((first, second, third), (Slot(15), Slot(4119), Slot(8223)));
        assert_eq!(first.data_at().0 % 4096, 0);
    }

    #[test]
    fn vendor_bug_redundant_bitmap_needs_seven_free_sectors_after_unaligned_blocks() {
        let packed = Slot(4104);
        let next = Slot::at_or_after(packed.next_free()).unwrap();
        assert!(u64::from(next.0) >= packed.end_sector() + 7);
    }

    #[test]
    fn the_last_nameable_sector_ends_allocation() {
        assert_eq!(Slot::at_or_after(u64::from(u32::MAX)), None);
        assert_eq!(Slot::at_or_after(u64::from(u32::MAX) + 1), None);
        let full = 1_044_479 * 4104 + 8423;
        assert!(Slot::at_or_after(full).is_some(), "2040 GiB can be written in full");
    }

    #[test]
    fn vendor_bug_batmap_window_ends_before_the_last_blocks() {
        assert_eq!(batmap_window(Bytes(8194 * MIB)), 512, "block 4096 is not covered");
        assert_eq!(batmap_window(Bytes(0)), 512);
        assert_eq!(batmap_window(Bytes(8208 * MIB)), 1024);
    }
}
