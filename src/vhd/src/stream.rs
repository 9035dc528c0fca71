//! A VHD that comes as a stream: what can be known from its beginning, and what its last bytes must be.
//!
//! Pure: bytes in, a map out; whoever reads the stream takes the blocks as they come by. Metadata that do not come before
//! [`HEAD_LIMIT`] are refused, for what lies before them would have to be kept. The parsing is as strict as that of an image in
//! a container, and nothing is allocated that the bytes at hand do not justify.

use crate::bytes::u32_at;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, Footer, RawFooter};
use crate::header::{HEADER_BYTES, Header};
use crate::layout::{Layout, Slot};
use crate::open::{MAX_ENTRIES, MAX_SIZE};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES};

/// Where footer copy, header and block table must end.
const HEAD_LIMIT: u64 = 32 << 20;
/// The entry of a block that has no place.
const UNUSED: u32 = u32::MAX;

/// What the beginning of a stream tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHead {
    /// Nothing before so many bytes from the beginning are there.
    Needs(usize),
    /// All that must be known before the first block.
    Known(StreamMap),
}

/// A VHD with blocks, as its head describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamMap {
    /// Size of the virtual disk.
    pub virtual_size: Bytes,
    /// The parent of a differencing image: its id and the name that the header has.
    pub parent: Option<(ImageId, String)>,
    /// Where the blocks come in the stream, ascending by position, without overlap.
    pub places: Vec<StreamPlace>,
}

/// The place of a block in a stream: 512 bytes of bitmap, then the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPlace {
    /// Which block of the disk.
    pub block: BlockIndex,
    /// Position of its bitmap.
    pub bitmap_at: FileOffset,
}

/// What the last bytes of a stream tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEnd {
    /// Where in the stream the footer begins.
    pub at: FileOffset,
    /// What kind of disk it ends.
    pub kind: DiskKind,
    /// Size of the virtual disk.
    pub virtual_size: Bytes,
}

/// Reads the beginning of a VHD with blocks. Called again with more bytes while it [needs](StreamHead::Needs) them.
///
/// # Errors
/// `Damaged` names the check that failed; `Unsupported` is a VHD that can only be read from a file.
pub fn read_stream_head(head: &[u8]) -> Result<StreamHead> {
    let Some(raw) = head.first_chunk::<512>() else { return Ok(StreamHead::Needs(512)) };
    Footer::sound(raw, FileOffset(0))?;
    let footer = Footer::parse(raw, FileOffset(0))?;
    if footer.kind == DiskKind::Fixed {
        return Err(Error::damaged("footer_copy", FileOffset(0), "a fixed VHD has its footer at the end"));
    }
    let header_end = within_limit(footer.header_at.0.saturating_add(HEADER_BYTES))?;
    let Some(raw) = head.get(..header_end).and_then(<[u8]>::last_chunk::<1024>) else {
        return Ok(StreamHead::Needs(header_end));
    };
    let header = Header::parse(raw, footer.header_at)?;
    if footer.size.0 > MAX_SIZE || header.entries > MAX_ENTRIES {
        return Err(Error::Unsupported(format!("a VHD of {}", footer.size)));
    }
    if footer.size.blocks() > header.entries {
        let detail = "the block table is too short for the disk";
        return Err(Error::damaged("table_short", header.table_at, detail));
    }
    let table_end = header.table_at.0.saturating_add(4 * u64::from(footer.size.blocks()));
    let table_end = within_limit(table_end)?;
    let table_at = usize::try_from(header.table_at.0).unwrap_or(usize::MAX);
    let Some(table) = head.get(table_at..table_end) else { return Ok(StreamHead::Needs(table_end)) };
    let parent = (footer.kind == DiskKind::Differencing).then(|| (header.parent, header.parent_name()));
    let places = places(table, headers_end(&footer, &header))?;
    Ok(StreamHead::Known(StreamMap { virtual_size: footer.size, parent, places }))
}

fn within_limit(end: u64) -> Result<usize> {
    let refused = || Error::Unsupported("a VHD stream whose tables come late: import it from a file".into());
    usize::try_from(end).ok().filter(|_| end <= HEAD_LIMIT).ok_or_else(refused)
}

/// The first sector after the metadata.
fn headers_end(footer: &Footer, header: &Header) -> u64 {
    let layout = Layout {
        header_at: footer.header_at,
        table_at: header.table_at,
        entries: header.entries,
        batmap: !footer.is_foreign() && footer.creator_version >= 0x0001_0002,
        locators_end: 0,
    };
    if footer.is_foreign() { layout } else { layout.with_locators(&header.locators) }.headers_end_sector()
}

/// The places that a block table names, in the order of the stream.
fn places(table: &[u8], headers_end: u64) -> Result<Vec<StreamPlace>> {
    let entries = table.chunks_exact(4).map(|raw| u32_at(raw, 0));
    let mut slots: Vec<(Slot, BlockIndex)> = (0..)
        .map(BlockIndex)
        .zip(entries)
        .filter(|&(_, entry)| entry != UNUSED)
        .map(|(b, e)| (Slot(e), b))
        .collect();
    slots.sort_unstable_by_key(|&(slot, _)| slot);
    let mut free = headers_end;
    for &(slot, _) in &slots {
        if u64::from(slot.0) < free {
            let check = if free == headers_end { "block_over_headers" } else { "block_overlap" };
            return Err(Error::damaged(check, slot.bitmap_at(), "a block overlaps what is before it"));
        }
        free = slot.end_sector();
    }
    Ok(slots.into_iter().map(|(slot, block)| StreamPlace { block, bitmap_at: slot.bitmap_at() }).collect())
}

/// The footer in the last bytes of a stream: 512 of them, or the 511 that Virtual PC once wrote; `None` if there is none.
///
/// # Errors
/// `Unsupported` for a sound footer of a kind that is not handled.
pub fn read_stream_end(tail: &[u8], length: Bytes) -> Result<Option<StreamEnd>> {
    let short = (length.0 + 1).is_multiple_of(SECTOR_BYTES);
    for len in if short { &[512, 511][..] } else { &[512] } {
        let Some(from) = tail.len().checked_sub(*len) else { continue };
        let at = FileOffset(length.0.saturating_sub(*len as u64));
        let mut raw: RawFooter = [0; 512];
        raw[..*len].copy_from_slice(&tail[from..]);
        if Footer::sound(&raw, at).is_ok() {
            let footer = Footer::parse(&raw, at)?;
            return Ok(Some(StreamEnd { at, kind: footer.kind, virtual_size: footer.size }));
        }
    }
    Ok(None)
}

impl StreamPlace {
    /// Bytes of the block's data that are part of a disk of `size`.
    pub fn data_len(&self, size: Bytes) -> usize {
        let left = size.0.saturating_sub(self.block.start().0).min(BLOCK_BYTES);
        usize::try_from(left).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;
    use crate::bytes::put_u32;
    use crate::footer::vhd_timestamp;
    use crate::portable::{Portable, fixed_footer};
    use proptest::prelude::*;

    const SIZE: Bytes = Bytes(12 << 20);
    /// Where the table begins in what we export.
    const TABLE: usize = 1536;

    fn head() -> Vec<u8> {
        let vhd = Portable::new(ImageId::random(), SIZE, vhd_timestamp(0)).unwrap();
        vhd.head(&[BlockIndex(4), BlockIndex(0)]).unwrap()
    }

    fn seal(bytes: &mut [u8], at: usize) {
        put_u32(bytes, at, 0);
        let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        put_u32(bytes, at, sum);
    }

    /// As a reader asks for it: more and more, until there is enough. Each time it must be more.
    fn read(stream: &[u8]) -> Result<StreamHead> {
        let mut there = 0;
        loop {
            match read_stream_head(&stream[..there])? {
                StreamHead::Needs(more) => {
                    assert!(more > there, "{more} is no more than {there}");
                    if more > stream.len() {
                        return Ok(StreamHead::Needs(more));
                    }
                    there = more;
                }
                known @ StreamHead::Known(_) => return Ok(known),
            }
        }
    }

    fn check_of(stream: &[u8]) -> &'static str {
        match read(stream).unwrap_err() {
            Error::Damaged { check, .. } => check,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn blocks_are_known_in_the_order_in_which_they_come() {
        let StreamHead::Known(map) = read(&head()).unwrap() else { panic!("a whole head") };
        assert_eq!((map.virtual_size, map.parent), (SIZE, None));
        let blocks: Vec<_> = map.places.iter().map(|place| place.block.0).collect();
        assert_eq!(blocks, [4, 0]);
        assert!(map.places[0].bitmap_at.0 + 512 + BLOCK_BYTES <= map.places[1].bitmap_at.0);
    }

    #[test]
    fn blocks_do_not_lie_over_each_other_or_over_the_tables() {
        let first = u32_at(&head(), TABLE + 16);
        for (entry, check) in
            [(first, "block_overlap"), (first + 4096, "block_overlap"), (2, "block_over_headers")]
        {
            let mut head = head();
            put_u32(&mut head, TABLE + 4, entry);
            assert_eq!(check_of(&head), check, "{entry}");
        }
    }

    #[test]
    fn tables_that_come_too_late_are_not_waited_for() {
        for (at, seal_at, range) in [(16, 64, 0..512), (528, 36, 512..1536)] {
            let mut head = head();
            head[at..at + 8].copy_from_slice(&(HEAD_LIMIT + 512).to_be_bytes());
            seal(&mut head[range], seal_at);
            let refused = read(&head).unwrap_err();
            assert!(matches!(refused, Error::Unsupported(_)), "{refused}");
        }
        let fixed = fixed_footer(ImageId::random(), SIZE, 0).unwrap();
        assert_eq!(check_of(&fixed), "footer_copy");
    }

    #[test]
    fn the_end_tells_where_the_disk_ended() {
        let footer = fixed_footer(ImageId::random(), SIZE, 0).unwrap();
        let end = read_stream_end(&footer, Bytes(SIZE.0 + 512)).unwrap().unwrap();
        assert_eq!((end.at.0, end.kind, end.virtual_size), (SIZE.0, DiskKind::Fixed, SIZE));
        // Virtual PC's are a byte shorter, and stand one byte later in the last 512.
        let mut old = [0; 512];
        old[1..].copy_from_slice(&footer[..511]);
        let end = read_stream_end(&old, Bytes(SIZE.0 + 511)).unwrap().unwrap();
        assert_eq!(end.at.0, SIZE.0);
        assert_eq!(read_stream_end(&old, Bytes(SIZE.0 + 512)).unwrap(), None);
        assert_eq!(read_stream_end(&footer[..100], Bytes(100)).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_head_makes_a_reader_wait_for_ever(changes in proptest::collection::vec((0..1600usize, any::<u8>()), 1..6)) {
            let mut head = head();
            for (at, byte) in changes {
                head[at] = byte;
            }
            seal(&mut head[..512], 64);
            seal(&mut head[512..1536], 36);
            drop(read(&head));
        }
    }
}
