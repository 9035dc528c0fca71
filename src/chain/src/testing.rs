//! A layer on a simulated disk, with a format of its own that is small enough to be obviously right, and what the tests
//! of a chain compare with.
//!
//! On disk: sector *i* names the place of block *i* (0: none, else its number plus one), little-endian; place *p* begins at
//! sector 64 + *p* x 4104: seven unused sectors, the bitmap, the data. It keeps the order of D1 and D2.

use crate::error::Error;
use crate::layer::{Extent, Layer, LayerMut, Ownership};
use crate::units::{SECTOR, len};
use catena_blockio::Container;
use catena_blockio::sim::SimDisk;
use catena_types::{BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const TABLE: usize = 64;
const PLACE_SECTORS: u64 = 8 + BLOCK_SECTORS as u64;

#[derive(Clone)]
struct Entry {
    place: u32,
    /// The table on disk names the place.
    linked: bool,
    owned: SectorSet,
    /// The bitmap on disk.
    stored: SectorSet,
}

#[derive(Clone)]
pub(crate) struct TestLayer {
    disk: Arc<SimDisk>,
    size: Bytes,
    blocks: BTreeMap<BlockIndex, Entry>,
    places: u32,
    /// Blocks of which the container holds only so many bytes.
    pub(crate) short: BTreeMap<BlockIndex, u32>,
}

impl TestLayer {
    pub(crate) fn create(disk: Arc<SimDisk>, size: Bytes) -> Self {
        Self { disk, size, blocks: BTreeMap::new(), places: 0, short: BTreeMap::new() }
    }

    /// What another process, or a machine after a power cut, finds on the disk.
    pub(crate) fn open(disk: Arc<SimDisk>, size: Bytes) -> Self {
        let mut layer = Self::create(disk, size);
        for index in 0..TABLE {
            let mut sector = [0; SECTOR];
            layer.disk.read_at(&mut sector, FileOffset(index as u64 * SECTOR_BYTES)).unwrap();
            let Some(place) = u32::from_le_bytes(sector[..4].try_into().unwrap()).checked_sub(1) else {
                continue;
            };
            let mut bitmap = [0; SECTOR];
            layer.disk.read_at(&mut bitmap, bitmap_at(place)).unwrap();
            let owned = SectorSet::from_bitmap(&bitmap);
            let entry = Entry { place, linked: true, stored: owned.clone(), owned };
            layer.blocks.insert(BlockIndex(u32::try_from(index).unwrap()), entry);
            layer.places = layer.places.max(place + 1);
        }
        layer
    }

    /// The disk.
    pub(crate) fn disk(&self) -> &Arc<SimDisk> {
        &self.disk
    }

    fn link(&self, block: BlockIndex, named: u32) -> Result<(), Error> {
        let mut sector = [0; SECTOR];
        sector[..4].copy_from_slice(&named.to_le_bytes());
        self.disk.write_at(&sector, FileOffset(u64::from(block.0) * SECTOR_BYTES)).map_err(Error::io("table"))
    }

    fn barrier(&self) -> Result<(), Error> {
        self.disk.flush().map_err(Error::io("barrier"))
    }

    fn store_bitmap(&mut self, block: BlockIndex) -> Result<(), Error> {
        let entry = self.blocks.get_mut(&block).unwrap();
        self.disk.write_at(&entry.owned.to_bitmap(), bitmap_at(entry.place)).map_err(Error::io("bitmap"))?;
        entry.stored = entry.owned.clone();
        Ok(())
    }
}

fn bitmap_at(place: u32) -> FileOffset {
    FileOffset((TABLE as u64 + u64::from(place) * PLACE_SECTORS + 7) * SECTOR_BYTES)
}

fn data_at(place: u32) -> FileOffset {
    FileOffset(bitmap_at(place).0 + SECTOR_BYTES)
}

impl Layer for TestLayer {
    fn virtual_size(&self) -> Bytes {
        self.size
    }

    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error> {
        let owned = self.blocks.get(&block).map(|entry| entry.owned.clone());
        Ok(owned.map_or(Ownership::Nothing, Ownership::from_set))
    }

    fn locate(&self, block: BlockIndex) -> Option<Extent> {
        let whole = u32::try_from(BLOCK_BYTES).unwrap();
        let len = self.short.get(&block).copied().unwrap_or(whole);
        self.blocks.get(&block).map(|entry| Extent { at: data_at(entry.place), len })
    }

    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.blocks.range(from..).next().map(|(&block, _)| block)
    }

    fn container(&self) -> &dyn Container {
        &*self.disk
    }
}

impl LayerMut for TestLayer {
    fn place(&mut self, block: BlockIndex) -> Result<FileOffset, Error> {
        let entry = self.blocks.entry(block).or_insert_with(|| {
            self.places += 1;
            let (owned, stored) = (SectorSet::empty(), SectorSet::empty());
            Entry { place: self.places - 1, linked: false, owned, stored }
        });
        Ok(data_at(entry.place))
    }

    fn wrote(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<(), Error> {
        let entry = self.blocks.get_mut(&block).expect("placed");
        entry.owned = entry.owned.union(sectors);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let changed = self.blocks.iter().filter(|(_, entry)| entry.owned != entry.stored);
        let changed: Vec<(BlockIndex, bool, u32)> =
            changed.map(|(&block, entry)| (block, entry.linked, entry.place)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        for (block, _, _) in changed.iter().filter(|(_, linked, _)| !linked) {
            self.store_bitmap(*block)?;
        }
        self.barrier()?;
        for &(block, linked, place) in &changed {
            if linked {
                self.store_bitmap(block)?;
            } else {
                self.link(block, place + 1)?;
                self.blocks.get_mut(&block).unwrap().linked = true;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.commit()?;
        self.barrier()
    }

    fn give_up(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<(), Error> {
        self.commit()?;
        let mut empty = Vec::new();
        for (block, set) in sectors {
            let Some(entry) = self.blocks.get_mut(block) else { continue };
            entry.owned = entry.owned.minus(set);
            if entry.owned.is_empty() {
                empty.push((*block, entry.place));
            }
            self.store_bitmap(*block)?;
        }
        self.barrier()?;
        for &(block, _) in &empty {
            self.link(block, 0)?;
            self.blocks.remove(&block);
        }
        self.barrier()?;
        for &(_, place) in &empty {
            self.disk.punch(data_at(place), Bytes(BLOCK_BYTES)).map_err(Error::io("punch"))?;
        }
        Ok(())
    }
}

/// What a test puts into a layer: sectors of the disk and a tag that tells this write from all others.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) sectors: Range<u64>,
    pub(crate) tag: u8,
}

/// The content of a layer, as a plain table, and its size in sectors.
#[derive(Clone)]
pub(crate) struct Model {
    /// The size of the disk.
    pub(crate) sectors: u64,
    /// The tag of each sector that is owned, also past the size.
    pub(crate) owned: Vec<Option<u8>>,
}

impl std::fmt::Debug for Model {
    /// As runs: first sector, last sector, tag.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut runs: Vec<(u64, u64, u8)> = Vec::new();
        for (sector, tag) in (0..).zip(&self.owned).filter_map(|(sector, tag)| Some((sector, (*tag)?))) {
            match runs.last_mut() {
                Some(last) if last.1 + 1 == sector && last.2 == tag => last.1 = sector,
                _ => runs.push((sector, sector, tag)),
            }
        }
        write!(f, "{} sectors, {runs:?}", self.sectors)
    }
}

impl Model {
    pub(crate) fn new(sectors: u64, puts: &[Put]) -> Self {
        let end = puts.iter().map(|put| put.sectors.end).max();
        let mut owned = vec![None; len(end.unwrap_or(0))];
        for put in puts {
            owned[len(put.sectors.start)..len(put.sectors.end)].fill(Some(put.tag));
        }
        Self { sectors, owned }
    }

    pub(crate) fn size(&self) -> Bytes {
        Bytes(self.sectors * SECTOR_BYTES)
    }

    /// The layer that holds this, made durable.
    pub(crate) fn layer(&self, disk: Arc<SimDisk>) -> TestLayer {
        let mut layer = TestLayer::create(disk, self.size());
        for (block, tags) in (0..).zip(self.owned.chunks(BLOCK_SECTORS)) {
            let mut set = SectorSet::empty();
            for sector in (0..tags.len()).filter(|&sector| tags[sector].is_some()) {
                set.insert(sector..sector + 1);
            }
            if set.is_empty() {
                continue;
            }
            let place = layer.place(BlockIndex(block)).unwrap();
            for run in set.runs() {
                let mut data = Vec::with_capacity(run.len() * SECTOR);
                for sector in run.clone() {
                    let number = u64::from(block) * BLOCK_SECTORS as u64 + sector as u64;
                    data.extend_from_slice(&content(tags[sector].unwrap(), number));
                }
                layer.disk.write_at(&data, FileOffset(place.0 + (run.start * SECTOR) as u64)).unwrap();
            }
            layer.wrote(BlockIndex(block), &set).unwrap();
        }
        layer.flush().unwrap();
        layer
    }
}

/// The bytes of a sector with this tag; tag 0 is zeros.
pub(crate) fn content(tag: u8, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [tag; SECTOR];
    if tag != 0 {
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
    }
    bytes
}

/// The layer (counted from the leaf) and the tag that a chain of these shows at a sector: D6 in two lines.
pub(crate) fn shown(chain: &[&Model], sector: u64) -> Option<(usize, u8)> {
    let visible = chain.iter().take_while(|layer| sector < layer.sectors);
    let tag = |layer: &&Model| layer.owned.get(len(sector)).copied().flatten();
    visible.enumerate().find_map(|(index, layer)| tag(layer).map(|tag| (index, tag)))
}

/// The bytes that a chain of these shows.
pub(crate) fn disk_of(chain: &[&Model]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len(chain[0].size().0));
    for sector in 0..chain[0].sectors {
        bytes.extend_from_slice(&content(shown(chain, sector).map_or(0, |(_, tag)| tag), sector));
    }
    bytes
}

/// Fails with the first sector that differs.
pub(crate) fn assert_same(read: &[u8], expected: &[u8], what: &str) {
    assert_eq!(read.len(), expected.len(), "{what}");
    if read == expected {
        return;
    }
    let differs = read.chunks(SECTOR).zip(expected.chunks(SECTOR)).position(|(a, b)| a != b);
    if let Some(sector) = differs {
        let at = sector * SECTOR;
        panic!("{what}: sector {sector} holds {:?}, not {:?}", &read[at..at + 12], &expected[at..at + 12]);
    }
}
