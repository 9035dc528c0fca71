//! The block allocation table in memory: one page for each 512-byte sector of the table.
//!
//! A page is the sector as it is on disk, padding included, so that only touched sectors are ever written back and what
//! another program put into the padding survives. An entry is set here only when it may be written (D1).
//!
//! The table of a large disk has megabytes, and a chain has many: who attaches one reads of each table only the pieces that are
//! asked for. All others read it whole. A piece that is known stays known, and is not read again.

use crate::error::{Error, Result};
use crate::layout::{ENTRIES_PER_SECTOR, Layout, SECTOR, Slot};
use crate::page::{Page, UNUSED};
use catena_blockio::{AlignedBuf, Container};
use catena_chain::{Extent, Plan};
use catena_types::{BlockIndex, FileOffset, SECTOR_BYTES};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Sectors of the table that are read at once: a large table is read in a few requests.
const READ_SECTORS: usize = 2048;
/// Sectors of a piece: 8 GiB of a disk in 16 KiB. A random read has to wait for one of each image at most.
const PIECE_SECTORS: usize = 32;
const PIECE_ENTRIES: usize = PIECE_SECTORS * ENTRIES_PER_SECTOR;

/// The block table of one image.
#[derive(Debug, Default, Clone)]
pub(crate) struct Bat {
    at: FileOffset,
    blocks: u32,
    pieces: Vec<OnceLock<Box<[Page]>>>,
    /// Pages that differ from the disk.
    dirty: BTreeSet<usize>,
}

/// What a table says of a block without being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It has this place, or none.
    Known(Option<Slot>),
    /// It depends on this piece.
    In(Extent),
}

impl Bat {
    /// Of the first `blocks` blocks, none of which is known. Their number has been checked against the size of the container.
    pub(crate) fn unread(layout: &Layout, blocks: u32) -> Self {
        let pieces = vec![OnceLock::new(); (blocks as usize).div_ceil(PIECE_ENTRIES)];
        Self { at: layout.table_at, blocks, pieces, dirty: BTreeSet::new() }
    }

    /// Reads the entries of the first `blocks` blocks.
    pub(crate) fn load(container: &dyn Container, layout: &Layout, blocks: u32) -> Result<Self> {
        let new = Self::unread(layout, blocks);
        let count = new.pages();
        let mut buf = AlignedBuf::zeroed(count.min(READ_SECTORS) * SECTOR);
        for first in (0..count).step_by(READ_SECTORS) {
            let take = (count - first).min(READ_SECTORS) * SECTOR;
            let at = FileOffset(layout.table_at.0 + first as u64 * SECTOR_BYTES);
            container.read_at(&mut buf[..take], at).map_err(Error::io("reading the block table"))?;
            let pieces = buf[..take].chunks(PIECE_SECTORS * SECTOR);
            pieces.zip(first / PIECE_SECTORS..).for_each(|(raw, piece)| new.learn_piece(piece, raw));
        }
        Ok(new)
    }

    /// How many pages there are.
    fn pages(&self) -> usize {
        (self.blocks as usize).div_ceil(ENTRIES_PER_SECTOR)
    }

    /// Where a piece of the table is.
    fn piece_at(&self, piece: usize) -> Extent {
        let first = piece * PIECE_SECTORS;
        let sectors = (self.pages() - first).min(PIECE_SECTORS);
        let at = FileOffset(self.at.0 + first as u64 * SECTOR_BYTES);
        Extent { at, len: u32::try_from(sectors * SECTOR).unwrap_or(0) }
    }

    fn learn_piece(&self, piece: usize, raw: &[u8]) {
        // Who comes second brings nothing new.
        let _ = self.pieces[piece].set(raw.chunks_exact(SECTOR).map(Page::parse).collect());
    }

    /// Takes up the bytes of the piece that decides on the block. Ignored if it is known.
    pub(crate) fn learn(&self, block: BlockIndex, raw: &[u8]) -> Result<()> {
        let piece = block.index() / PIECE_ENTRIES;
        if raw.len() != self.piece_at(piece).len as usize {
            return Err(Error::OutOfRange("a piece of the block table has another length".into()));
        }
        self.learn_piece(piece, raw);
        Ok(())
    }

    /// Reads what decides on the block, if it is not known.
    pub(crate) fn look_up(&self, container: &dyn Container, block: BlockIndex) -> Result<Option<Slot>> {
        loop {
            match self.entry(block) {
                Entry::Known(slot) => return Ok(slot),
                Entry::In(Extent { at, len }) => {
                    let mut raw = AlignedBuf::zeroed(len as usize);
                    container.read_at(&mut raw, at).map_err(Error::io("reading the block table"))?;
                    self.learn(block, &raw)?;
                }
            }
        }
    }

    /// How many blocks the disk has.
    pub(crate) const fn blocks(&self) -> u32 {
        self.blocks
    }

    fn page(&self, number: usize) -> Option<&Page> {
        self.pieces.get(number / PIECE_SECTORS)?.get()?.get(number % PIECE_SECTORS)
    }

    /// What is known of the place of the block.
    pub(crate) fn entry(&self, block: BlockIndex) -> Entry {
        let number = block.index() / ENTRIES_PER_SECTOR;
        match self.page(number) {
            _ if block.0 >= self.blocks => Entry::Known(None),
            None => Entry::In(self.piece_at(number / PIECE_SECTORS)),
            Some(page) => {
                let entry = page.get(block.index() % ENTRIES_PER_SECTOR);
                Entry::Known((entry != UNUSED).then_some(Slot(entry)))
            }
        }
    }

    /// The place of the block. None, too, in a piece that is not known.
    pub(crate) fn get(&self, block: BlockIndex) -> Option<Slot> {
        match self.entry(block) {
            Entry::Known(slot) => slot,
            Entry::In(_) => None,
        }
    }

    /// Changes the place of a block of the disk; on disk when what [`take_dirty`](Self::take_dirty) tells is done.
    pub(crate) fn set(&mut self, block: BlockIndex, slot: Option<Slot>) {
        let number = block.index() / ENTRIES_PER_SECTOR;
        let piece = self.pieces.get_mut(number / PIECE_SECTORS).and_then(OnceLock::get_mut);
        if let Some(page) = piece.and_then(|pages| pages.get_mut(number % PIECE_SECTORS)) {
            page.set(block.index() % ENTRIES_PER_SECTOR, slot.map_or(UNUSED, |slot| slot.0));
            self.dirty.insert(number);
        }
    }

    /// The blocks at or after `from` that have a place, ascending. Without those in pieces that are not known.
    pub(crate) fn used(&self, from: BlockIndex) -> impl Iterator<Item = (BlockIndex, Slot)> + '_ {
        let first = from.index() / ENTRIES_PER_SECTOR;
        let pages = (first..self.pages()).filter_map(|number| Some((number, self.page(number)?)));
        let entries = pages.flat_map(|(page, entries)| {
            entries.used().map(move |(number, entry)| (page * ENTRIES_PER_SECTOR + number, Slot(entry)))
        });
        entries
            .filter_map(|(block, slot)| Some((BlockIndex(u32::try_from(block).ok()?), slot)))
            .filter(move |&(block, _)| block >= from && block.0 < self.blocks)
    }

    /// The first block at or after `from` that is in a piece that is not known.
    pub(crate) fn next_unknown(&self, from: BlockIndex) -> Option<BlockIndex> {
        let first = from.index() / PIECE_ENTRIES;
        let piece = (first..self.pieces.len()).find(|&piece| self.pieces[piece].get().is_none())?;
        let block = BlockIndex(u32::try_from(piece * PIECE_ENTRIES).ok()?).max(from);
        (block.0 < self.blocks).then_some(block)
    }

    /// A sector of the table: its place and its bytes.
    fn sector(&self, number: usize) -> (FileOffset, [u8; SECTOR]) {
        let raw = self.page(number).map_or([0xff; SECTOR], Page::encode);
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
