//! The batmap: one bit for each block all of whose sectors are owned, so that their bitmaps need not be read.
//!
//! A hint that may be stale in one direction only: a set bit must be true. Therefore (D4) it is durably clear while the image
//! is open for writing and is written back when the image is sealed; one with a bad checksum counts as clear. Blocks that
//! its checksum does not cover are never marked.

use crate::bytes::{put, put_u32, put_u64, sum, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::footer::Footer;
use crate::layout::{Layout, SECTOR, batmap_window};
use catena_blockio::Container;
use catena_chain::Plan;
use catena_types::{BlockIndex, Bytes, FileOffset, SECTOR_BYTES};

const COOKIE: &[u8; 8] = b"tdbatmap";
/// The version that is written; 1.1 summed signed bytes, and is taken as clear.
const VERSION: u32 = 0x0001_0002;

/// What the disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// There is no place for a batmap.
    Absent,
    /// Nothing usable; the text says why.
    Unusable(&'static str),
    /// A valid one without any bit.
    Clear,
    /// A valid one.
    Set,
}

/// The batmap of one image.
#[derive(Debug, Clone)]
pub(crate) struct Batmap {
    at: FileOffset,
    stored: Stored,
    header: [u8; SECTOR],
    bits: Vec<u8>,
    /// Bytes that the checksum covers.
    window: usize,
}

/// Whether an image has a place for a batmap: all of XenServer's since version 1.2, older ones if it is there.
pub(crate) fn is_present(container: &dyn Container, footer: &Footer, header_at: FileOffset) -> Result<bool> {
    if footer.is_foreign() || footer.creator_version < 0x0001_0001 {
        return Ok(false);
    }
    if footer.creator_version >= 0x0001_0002 {
        return Ok(true);
    }
    let mut cookie = [0; 8];
    container.read_at(&mut cookie, header_at).map_err(Error::io("looking for a batmap"))?;
    Ok(&cookie == COOKIE)
}

impl Batmap {
    /// Why a batmap is unusable whose clearing or writing was interrupted.
    pub(crate) const BAD_CHECKSUM: &'static str = "the batmap's checksum is wrong";

    /// No batmap.
    pub(crate) const fn absent() -> Self {
        Self { at: FileOffset(0), stored: Stored::Absent, header: [0; 512], bits: Vec::new(), window: 0 }
    }

    /// A new one without any bit.
    pub(crate) fn new(layout: &Layout, size: Bytes) -> Self {
        let mut header = [0; 512];
        put(&mut header, 0, COOKIE);
        put_u64(&mut header, 8, layout.batmap_at().0);
        let map_sectors = layout.batmap_bytes() / SECTOR_BYTES;
        put_u32(&mut header, 16, u32::try_from(map_sectors).unwrap_or(u32::MAX));
        put_u32(&mut header, 20, VERSION);
        let bits = vec![0; usize::try_from(layout.batmap_bytes()).unwrap_or(usize::MAX)];
        let mut new = Self { at: layout.batmap_header_at(), stored: Stored::Clear, header, bits, window: 0 };
        new.resize(size);
        new
    }

    /// Reads the batmap of a disk of `size`; its place lies inside the container.
    pub(crate) fn load(container: &dyn Container, layout: &Layout, size: Bytes) -> Result<Self> {
        if !layout.batmap {
            return Ok(Self::absent());
        }
        let mut new = Self::new(layout, size);
        let mut header = [0; 512];
        container.read_at(&mut header, new.at).map_err(Error::io("reading the batmap's header"))?;
        let mut bits = vec![0; new.bits.len()];
        container.read_at(&mut bits, layout.batmap_at()).map_err(Error::io("reading the batmap"))?;
        new.stored = new.judge(&header, &bits);
        if &header[..8] == COOKIE {
            // The marker and the key hash of other programs are kept.
            new.header[28..].copy_from_slice(&header[28..]);
        }
        if new.stored == Stored::Set {
            new.bits = bits;
            new.bits[new.window..].fill(0);
        }
        Ok(new)
    }

    /// Whether the header of a batmap is where this layout has it, and says the same.
    pub(crate) fn lies_at(container: &dyn Container, layout: &Layout) -> Result<bool> {
        let mut header = [0; SECTOR];
        container
            .read_at(&mut header, layout.batmap_header_at())
            .map_err(Error::io("reading the batmap's header"))?;
        let map_sectors = layout.batmap_bytes() / SECTOR_BYTES;
        Ok(&header[..8] == COOKIE
            && u64_at(&header, 8) == layout.batmap_at().0
            && u64::from(u32_at(&header, 16)) == map_sectors)
    }

    fn judge(&self, header: &[u8; 512], bits: &[u8]) -> Stored {
        if &header[..8] != COOKIE {
            Stored::Unusable("no batmap where one must be")
        } else if u32_at(header, 20) != VERSION {
            Stored::Unusable("the batmap's version is not 1.2")
        } else if u64_at(header, 8) != u64_at(&self.header, 8)
            || u32_at(header, 16) < u32_at(&self.header, 16)
        {
            Stored::Unusable("the batmap's place or size is wrong")
        } else if u32_at(header, 24) != sum(&bits[..self.window]) {
            Stored::Unusable(Self::BAD_CHECKSUM)
        } else if bits.iter().all(|&byte| byte == 0) {
            Stored::Clear
        } else {
            Stored::Set
        }
    }

    /// What the disk holds.
    pub(crate) const fn stored(&self) -> Stored {
        self.stored
    }

    /// Whether all sectors of the block are owned, as far as is known.
    pub(crate) fn contains(&self, block: BlockIndex) -> bool {
        let byte = block.index() / 8;
        byte < self.window && self.bits[byte] & (0x80 >> (block.index() % 8)) != 0
    }

    /// Notes in memory whether all sectors of the block are owned.
    pub(crate) fn mark(&mut self, block: BlockIndex, full: bool) {
        let byte = block.index() / 8;
        if byte < self.window {
            let mask = 0x80 >> (block.index() % 8);
            self.bits[byte] = if full { self.bits[byte] | mask } else { self.bits[byte] & !mask };
        }
    }

    /// Adapts the part that the checksum covers to a new virtual size.
    pub(crate) fn resize(&mut self, size: Bytes) {
        self.window = usize::try_from(batmap_window(size)).unwrap_or(usize::MAX).min(self.bits.len());
    }

    /// Plans to clear the batmap on disk unless it is clear. What is written needs a barrier.
    pub(crate) fn clear_on_disk(&mut self, plan: &mut Plan) {
        if !matches!(self.stored, Stored::Absent | Stored::Clear) {
            plan.write(self.at, self.to_clear_bytes());
            self.stored = Stored::Clear;
        }
    }

    /// Plans to write what is known; all of it must be durable.
    pub(crate) fn write_back(&mut self, plan: &mut Plan) {
        if self.stored != Stored::Absent && self.bits.iter().any(|&byte| byte != 0) {
            plan.write(self.at, self.encode(&self.bits));
            self.stored = Stored::Set;
        }
    }

    /// Header and map as they are on disk.
    fn encode(&self, bits: &[u8]) -> Vec<u8> {
        let mut raw = self.header.to_vec();
        put_u32(&mut raw, 24, sum(&bits[..self.window]));
        raw.extend_from_slice(bits);
        raw
    }

    /// The same bits and marker in another place, clear on disk.
    pub(crate) fn moved_to(&self, layout: &Layout, size: Bytes) -> Self {
        if self.stored == Stored::Absent {
            return Self::absent();
        }
        let mut new = Self::new(layout, size);
        new.header[28..].copy_from_slice(&self.header[28..]);
        self.marked().for_each(|block| new.mark(block, true));
        new
    }

    /// The bytes of one without any bit.
    pub(crate) fn to_clear_bytes(&self) -> Vec<u8> {
        self.encode(&vec![0; self.bits.len()])
    }

    /// The blocks that are marked.
    pub(crate) fn marked(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let bytes = self.bits[..self.window].iter().enumerate().filter(|(_, byte)| **byte != 0);
        bytes.flat_map(|(at, _)| {
            let first = u32::try_from(at * 8).unwrap_or(u32::MAX - 8);
            (first..first + 8).map(BlockIndex).filter(|&block| self.contains(block))
        })
    }
}
