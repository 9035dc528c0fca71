//! The block allocation table in memory: one page for each 512-byte sector of the table.
//!
//! A page is the sector as it is on disk, padding included, so that only touched sectors are ever written back and what
//! another program put into the padding survives. An entry is set here only when it may be written (D1).

use crate::error::{Error, Result};
use crate::layout::{ENTRIES_PER_SECTOR, Layout, SECTOR, Slot};
use crate::page::{Page, UNUSED};
use catena_blockio::{AlignedBuf, Container};
use catena_chain::Plan;
use catena_types::{BlockIndex, FileOffset, SECTOR_BYTES};
use std::collections::BTreeSet;

/// Sectors of the table that are read at once: a large table is read in a few requests.
const READ_SECTORS: usize = 2048;

/// The block table of one image.
#[derive(Debug, Default, Clone)]
pub(crate) struct Bat {
    at: FileOffset,
    blocks: u32,
    pages: Vec<Page>,
    /// Pages that differ from the disk.
    dirty: BTreeSet<usize>,
}

impl Bat {
    /// Reads the entries of the first `blocks` blocks. Their number has been checked against the size of the container.
    pub(crate) fn load(container: &dyn Container, layout: &Layout, blocks: u32) -> Result<Self> {
        let count = (blocks as usize).div_ceil(ENTRIES_PER_SECTOR);
        let mut pages = Vec::with_capacity(count);
        let mut buf = AlignedBuf::zeroed(count.min(READ_SECTORS) * SECTOR);
        while pages.len() < count {
            let take = (count - pages.len()).min(READ_SECTORS) * SECTOR;
            let at = FileOffset(layout.table_at.0 + pages.len() as u64 * SECTOR_BYTES);
            container.read_at(&mut buf[..take], at).map_err(Error::io("reading the block table"))?;
            pages.extend(buf[..take].chunks_exact(SECTOR).map(Page::parse));
        }
        Ok(Self { at: layout.table_at, blocks, pages, dirty: BTreeSet::new() })
    }

    /// How many blocks the disk has.
    pub(crate) const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The place of the block.
    pub(crate) fn get(&self, block: BlockIndex) -> Option<Slot> {
        if block.0 >= self.blocks {
            return None;
        }
        let page = self.pages.get(block.index() / ENTRIES_PER_SECTOR)?;
        let entry = page.get(block.index() % ENTRIES_PER_SECTOR);
        (entry != UNUSED).then_some(Slot(entry))
    }

    /// Changes the place of a block of the disk; on disk when what [`take_dirty`](Self::take_dirty) tells is done.
    pub(crate) fn set(&mut self, block: BlockIndex, slot: Option<Slot>) {
        let number = block.index() / ENTRIES_PER_SECTOR;
        if let Some(page) = self.pages.get_mut(number) {
            page.set(block.index() % ENTRIES_PER_SECTOR, slot.map_or(UNUSED, |slot| slot.0));
            self.dirty.insert(number);
        }
    }

    /// The blocks at or after `from` that have a place, ascending.
    pub(crate) fn used(&self, from: BlockIndex) -> impl Iterator<Item = (BlockIndex, Slot)> + '_ {
        let first = from.index() / ENTRIES_PER_SECTOR;
        let pages = self.pages.iter().enumerate().skip(first);
        let entries = pages.flat_map(|(page, entries)| {
            entries.used().map(move |(number, entry)| (page * ENTRIES_PER_SECTOR + number, Slot(entry)))
        });
        entries
            .filter_map(|(block, slot)| Some((BlockIndex(u32::try_from(block).ok()?), slot)))
            .filter(move |&(block, _)| block >= from && block.0 < self.blocks)
    }

    /// A sector of the table: its place and its bytes.
    fn sector(&self, number: usize) -> (FileOffset, [u8; SECTOR]) {
        let raw = self.pages.get(number).map_or([0xff; SECTOR], Page::encode);
        (FileOffset(self.at.0 + number as u64 * SECTOR_BYTES), raw)
    }

    /// The changed sectors, for a plan that somebody else carries out.
    pub(crate) fn dirty_sectors(&self) -> Vec<(FileOffset, Vec<u8>)> {
        let sectors = self.dirty.iter().map(|&number| self.sector(number));
        sectors.map(|(at, raw)| (at, raw.to_vec())).collect()
    }

    /// The writes of the changed sectors, and only these. They count as written from here on.
    pub(crate) fn take_dirty(&mut self, plan: &mut Plan) {
        self.dirty_sectors().into_iter().for_each(|(at, raw)| plan.write(at, raw));
        self.dirty.clear();
    }
}

/// The bytes of an empty table: unused entries, padded with zeros.
pub(crate) fn empty_table(layout: &Layout) -> Vec<u8> {
    let bytes = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    let mut raw = vec![0; bytes(layout.table_bytes())];
    raw[..bytes(4 * u64::from(layout.entries))].fill(0xff);
    raw
}
