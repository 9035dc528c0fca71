//! The dynamic header: 1024 bytes that say where the block table is and who the parent is.
//!
//! It has no second copy and is two sectors long (D5). What decides where blocks are (table offset, number of entries,
//! checksum) lies in its first sector; what names the parent lies in both.

use crate::bytes::{checksum, put, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::footer::NONE;
use crate::locator::{LOCATOR_BYTES, LOCATORS, Locator};
use catena_types::{FileOffset, ImageId};

/// Bytes of the header.
pub(crate) const HEADER_BYTES: u64 = 1024;
/// The only block size that is handled, 2 MiB.
const BLOCK_SIZE: u32 = 2 << 20;
const COOKIE: &[u8; 8] = b"cxsparse";
const TABLE_AT: usize = 16;
const ENTRIES_AT: usize = 28;
const CHECKSUM_AT: usize = 36;
const PARENT_AT: usize = 40;
const PARENT_TIME_AT: usize = 56;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;
const LOCATORS_AT: usize = 576;

/// The bytes of a header.
pub(crate) type RawHeader = [u8; 1024];
/// The places for locators.
pub(crate) type Locators = [Option<Locator>; LOCATORS];

/// A validated header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Position of the block table.
    pub(crate) table_at: FileOffset,
    /// Entries of the block table.
    pub(crate) entries: u32,
    pub(crate) parent: ImageId,
    pub(crate) parent_timestamp: u32,
    pub(crate) locators: Locators,
    raw: RawHeader,
}

impl Header {
    /// A new header for a disk without parent.
    pub(crate) fn new(table_at: FileOffset, entries: u32) -> Self {
        let mut raw = [0; 1024];
        put(&mut raw, 0, COOKIE);
        put_u64(&mut raw, 8, NONE);
        put_u32(&mut raw, 24, 0x0001_0000);
        put_u32(&mut raw, 32, BLOCK_SIZE);
        let parent = ImageId::from_bytes([0; 16]);
        let new = Self { table_at, entries, parent, parent_timestamp: 0, locators: [None; LOCATORS], raw };
        new.with_table(table_at, entries)
    }

    /// Validates the header that was read from `at`.
    pub(crate) fn parse(raw: &RawHeader, at: FileOffset) -> Result<Self> {
        let damaged = |check, detail: &str| Err(Error::damaged(check, at, detail));
        if &raw[..8] != COOKIE {
            return damaged("header_cookie", "no dynamic header here");
        }
        if u32_at(raw, CHECKSUM_AT) != checksum(raw, CHECKSUM_AT) {
            return damaged("header_checksum", "the header's checksum is wrong");
        }
        if u32_at(raw, 24) != 0x0001_0000 || u64_at(raw, 8) != NONE {
            return damaged("header_version", "the header's version or data offset is wrong");
        }
        let block = u32_at(raw, 32);
        if block != BLOCK_SIZE {
            return Err(Error::Unsupported(format!("blocks of {block} bytes")));
        }
        let table_at = FileOffset(u64_at(raw, TABLE_AT));
        if table_at.0 == 0 || table_at.0 > NONE / 2 {
            return damaged("header_table_offset", "the block table's position makes no sense");
        }
        let mut parent = [0; 16];
        parent.copy_from_slice(&raw[PARENT_AT..PARENT_AT + 16]);
        let mut locators = [None; LOCATORS];
        for (place, raw) in locators.iter_mut().zip(raw[LOCATORS_AT..].chunks_exact(LOCATOR_BYTES)) {
            *place = Locator::parse(raw, at)?;
        }
        Ok(Self {
            table_at,
            entries: u32_at(raw, ENTRIES_AT),
            parent: ImageId::from_bytes(parent),
            parent_timestamp: u32_at(raw, PARENT_TIME_AT),
            locators,
            raw: *raw,
        })
    }

    /// The same header with a block table elsewhere. Only its first sector differs.
    #[must_use]
    pub(crate) fn with_table(&self, table_at: FileOffset, entries: u32) -> Self {
        let mut new = self.clone();
        (new.table_at, new.entries) = (table_at, entries);
        put_u64(&mut new.raw, TABLE_AT, table_at.0);
        put_u32(&mut new.raw, ENTRIES_AT, entries);
        new.seal()
    }

    /// The same header with another parent.
    pub(crate) fn with_parent(
        &self,
        id: ImageId,
        timestamp: u32,
        name: &str,
        locators: Locators,
    ) -> Result<Self> {
        let text: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        if text.len() > NAME_BYTES {
            return Err(Error::OutOfRange(format!("the name of the parent is too long for a VHD: '{name}'")));
        }
        let mut new = self.clone();
        (new.parent, new.parent_timestamp, new.locators) = (id, timestamp, locators);
        put(&mut new.raw, PARENT_AT, &id.to_bytes());
        put_u32(&mut new.raw, PARENT_TIME_AT, timestamp);
        new.raw[NAME_AT..NAME_AT + NAME_BYTES].fill(0);
        put(&mut new.raw, NAME_AT, &text);
        for (place, locator) in new.raw[LOCATORS_AT..].chunks_exact_mut(LOCATOR_BYTES).zip(&locators) {
            place.copy_from_slice(&locator.map_or([0; LOCATOR_BYTES], |locator| locator.encode()));
        }
        Ok(new.seal())
    }

    fn seal(mut self) -> Self {
        let sum = checksum(&self.raw, CHECKSUM_AT);
        put_u32(&mut self.raw, CHECKSUM_AT, sum);
        self
    }

    /// The name of the parent's file; what is not UTF-16 is replaced.
    pub(crate) fn parent_name(&self) -> String {
        let units = (NAME_AT..NAME_AT + NAME_BYTES).step_by(2).map(|at| u16_at(&self.raw, at));
        char::decode_utf16(units.take_while(|&unit| unit != 0))
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect()
    }

    /// Whether bytes that must be zero are not.
    pub(crate) fn reserved_used(&self) -> bool {
        self.raw[60..64].iter().chain(&self.raw[768..]).any(|&byte| byte != 0)
    }

    /// The bytes.
    pub(crate) const fn raw(&self) -> &RawHeader {
        &self.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locator::Platform;

    #[test]
    fn survives_a_round_trip_and_keeps_what_it_does_not_know() {
        let mut raw = *Header::new(FileOffset(1536), 9).raw();
        raw[900] = 0x5a;
        let sum = checksum(&raw, CHECKSUM_AT);
        put_u32(&mut raw, CHECKSUM_AT, sum);
        let parsed = Header::parse(&raw, FileOffset(512)).unwrap();
        let mut locators = [None; LOCATORS];
        locators[2] = Some(Locator { platform: Platform::MacX, space: 512, len: 9, at: FileOffset(4096) });
        let child = parsed.with_parent(ImageId::random(), 5, "größe.vhd", locators).unwrap();
        let again = Header::parse(child.raw(), FileOffset(512)).unwrap();
        assert_eq!(again, child);
        assert_eq!((again.parent_name().as_str(), again.raw()[900]), ("größe.vhd", 0x5a));
        assert!(parsed.with_parent(ImageId::random(), 5, &"x".repeat(257), locators).is_err());
    }

    #[test]
    fn a_longer_table_changes_the_first_sector_only() {
        let old = Header::new(FileOffset(1536), 9);
        let new = old.with_table(FileOffset(9 << 20), 4000);
        assert_eq!(old.raw()[512..], new.raw()[512..]);
        Header::parse(new.raw(), FileOffset(512)).unwrap();
    }
}
