//! The footer: 512 bytes at the end of every VHD, with a copy at offset 0 of dynamic and differencing ones.
//!
//! [`Footer::sound`] answers whether 512 bytes are a footer at all (cookie and checksum); only then a reader may not fall
//! back to another copy. [`Footer::parse`] validates. Bytes that have no meaning here are preserved.

use crate::bytes::{checksum, put, put_u32, put_u64, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use catena_types::{Bytes, FileOffset, ImageId};

/// Bytes of a footer.
pub(crate) const FOOTER_BYTES: u64 = 512;
/// A field that means "none".
pub(crate) const NONE: u64 = u64::MAX;
/// The creator version that is written: 1.3.
const CREATOR_VERSION: u32 = 0x0001_0003;
/// The creator version of footers for other programs: that of Hyper-V in Windows 10.
const PORTABLE_VERSION: u32 = 0x000a_0000;
/// Seconds from 1970 to 2000, where the format's clock begins.
const EPOCH: i64 = 946_684_800;
const COOKIE: &[u8; 8] = b"conectix";
const POISON: &[u8; 8] = b"v_poison";
const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;

/// The bytes of a footer.
pub(crate) type RawFooter = [u8; 512];

/// What kind of disk an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// All bytes are there, in order.
    Fixed,
    /// Blocks are allocated when written; what is missing reads as zero.
    Dynamic,
    /// Blocks are allocated when written; what is missing is read from the parent.
    Differencing,
}

/// A validated footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) kind: DiskKind,
    pub(crate) id: ImageId,
    pub(crate) size: Bytes,
    pub(crate) original_size: Bytes,
    pub(crate) hidden: bool,
    /// Seconds since 2000.
    pub(crate) timestamp: u32,
    /// Position of the dynamic header; without meaning for fixed disks.
    pub(crate) header_at: FileOffset,
    pub(crate) creator: [u8; 4],
    pub(crate) creator_version: u32,
    raw: RawFooter,
}

/// Fields of a footer as they were read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) features: u32,
    pub(crate) geometry: u32,
    pub(crate) saved_state: u8,
    pub(crate) hidden: u8,
    pub(crate) reserved_used: bool,
}

/// A time as the format stores it: seconds since 2000-01-01 UTC, from seconds since 1970.
pub fn vhd_timestamp(unix_seconds: i64) -> u32 {
    u32::try_from(unix_seconds.saturating_sub(EPOCH).max(0)).unwrap_or(u32::MAX)
}

impl Footer {
    /// A new footer as XenServer's tools write it.
    pub(crate) fn new(kind: DiskKind, id: ImageId, size: Bytes, timestamp: u32, hidden: bool) -> Self {
        let mut raw = [0; 512];
        put(&mut raw, 0, COOKIE);
        put_u32(&mut raw, 8, 2);
        put_u32(&mut raw, 12, 0x0001_0000);
        let header_at = if kind == DiskKind::Fixed { NONE } else { FOOTER_BYTES };
        put_u64(&mut raw, 16, header_at);
        put_u32(&mut raw, 24, timestamp);
        put(&mut raw, 28, b"tap\0");
        put_u32(&mut raw, 32, CREATOR_VERSION);
        put_u64(&mut raw, 40, size.0);
        put_u64(&mut raw, 48, size.0);
        put_u32(&mut raw, 56, Geometry::of(size).to_u32());
        let number = match kind {
            DiskKind::Fixed => 2,
            DiskKind::Dynamic => 3,
            DiskKind::Differencing => 4,
        };
        put_u32(&mut raw, 60, number);
        put(&mut raw, 68, &id.to_bytes());
        Self {
            kind,
            id,
            size,
            original_size: size,
            hidden,
            timestamp,
            header_at: FileOffset(header_at),
            creator: *b"tap\0",
            creator_version: CREATOR_VERSION,
            raw,
        }
    }

    /// A new footer for other programs: with the creator whose disks all of them take to be as large as the footer says, and for
    /// whom XenServer's extensions (a batmap) are not looked for.
    pub(crate) fn portable(kind: DiskKind, id: ImageId, size: Bytes, timestamp: u32) -> Self {
        let mut new = Self::new(kind, id, size, timestamp, false);
        (new.creator, new.creator_version) = (*b"win ", PORTABLE_VERSION);
        put(&mut new.raw, 28, b"win ");
        put_u32(&mut new.raw, 32, PORTABLE_VERSION);
        put(&mut new.raw, 36, b"Wi2k");
        new
    }

    /// Whether these bytes are a footer: cookie and checksum.
    pub(crate) fn sound(raw: &RawFooter, at: FileOffset) -> Result<()> {
        if &raw[..8] != COOKIE && &raw[..8] != POISON {
            return Err(Error::damaged("footer_cookie", at, "no footer here"));
        }
        let stored = u32_at(raw, CHECKSUM_AT);
        if stored == checksum(raw, CHECKSUM_AT) || Self::hidden_was_not_summed(raw) {
            return Ok(());
        }
        Err(Error::damaged("footer_checksum", at, "the footer's checksum is wrong"))
    }

    /// Versions 0.1 and 1.1 of XenServer's tools set the hidden flag and left the checksum as it was.
    fn hidden_was_not_summed(raw: &RawFooter) -> bool {
        let old = matches!(u32_at(raw, 32), 0x0000_0001 | 0x0001_0001) && raw[28..31] == *b"tap";
        let mut visible = *raw;
        visible[HIDDEN_AT] = 0;
        old && u32_at(raw, CHECKSUM_AT) == checksum(&visible, CHECKSUM_AT)
    }

    /// Validates a sound footer.
    pub(crate) fn parse(raw: &RawFooter, at: FileOffset) -> Result<Self> {
        if &raw[..8] == POISON {
            return Err(Error::Unsupported(
                "an interrupted resize of another program must be reverted first".into(),
            ));
        }
        let version = u32_at(raw, 12);
        if version != 0x0001_0000 {
            return Err(Error::Unsupported(format!("VHD format version {version:#x}")));
        }
        let kind = match u32_at(raw, 60) {
            2 => DiskKind::Fixed,
            3 => DiskKind::Dynamic,
            4 => DiskKind::Differencing,
            other => return Err(Error::Unsupported(format!("VHD disk type {other}"))),
        };
        let creator = [raw[28], raw[29], raw[30], raw[31]];
        let creator_version = u32_at(raw, 32);
        if creator.starts_with(b"tap") && (creator_version == 1 || creator_version > CREATOR_VERSION) {
            return Err(Error::Unsupported(format!("images of creator version {creator_version:#x}")));
        }
        let header_at = u64_at(raw, 16);
        if kind != DiskKind::Fixed && header_at < FOOTER_BYTES {
            return Err(Error::damaged("footer_data_offset", at, "the header would overlap the footer"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&raw[68..84]);
        Ok(Self {
            kind,
            id: ImageId::from_bytes(id),
            size: Bytes(u64_at(raw, 48)),
            original_size: Bytes(u64_at(raw, 40)),
            hidden: raw[HIDDEN_AT] != 0,
            timestamp: u32_at(raw, 24),
            header_at: FileOffset(header_at),
            creator,
            creator_version,
            raw: *raw,
        })
    }

    /// The bytes, with size, geometry, hidden flag and checksum as they are now.
    pub(crate) fn encode(&self) -> RawFooter {
        let mut raw = self.raw;
        put_u64(&mut raw, 40, self.original_size.0);
        put_u64(&mut raw, 48, self.size.0);
        if self.size.0 != u64_at(&self.raw, 48) {
            put_u32(&mut raw, 56, Geometry::of(self.size).to_u32());
        }
        if self.hidden != (raw[HIDDEN_AT] != 0) {
            raw[HIDDEN_AT] = u8::from(self.hidden);
        }
        let sum = checksum(&raw, CHECKSUM_AT);
        put_u32(&mut raw, CHECKSUM_AT, sum);
        raw
    }

    /// The same footer with every field that must have a certain value having it.
    #[must_use]
    pub(crate) fn normalised(&self) -> Self {
        let mut new = self.clone();
        put_u32(&mut new.raw, 8, u32_at(&self.raw, 8) & 1 | 2);
        let geometry = Geometry::of(self.size).to_u32();
        if u32_at(&self.raw, 56) > geometry {
            put_u32(&mut new.raw, 56, geometry);
        }
        new.raw[84] = self.raw[84].min(1);
        new.raw[HIDDEN_AT] = u8::from(self.hidden);
        new
    }

    /// Whether another family of programs made the image. Such an image is never written.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.creator.starts_with(b"tap")
    }

    /// The fields that matter to nobody but a check.
    pub(crate) fn fields(&self) -> Fields {
        Fields {
            features: u32_at(&self.raw, 8),
            geometry: u32_at(&self.raw, 56),
            saved_state: self.raw[84],
            hidden: self.raw[HIDDEN_AT],
            reserved_used: self.raw[HIDDEN_AT + 1..].iter().any(|&byte| byte != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer::new(DiskKind::Dynamic, ImageId::random(), Bytes(4 << 20), 7, false)
    }

    #[test]
    fn survives_a_round_trip_and_keeps_what_it_does_not_know() {
        let mut raw = footer().encode();
        raw[200] = 0x5a;
        let sum = checksum(&raw, CHECKSUM_AT);
        put_u32(&mut raw, CHECKSUM_AT, sum);
        Footer::sound(&raw, FileOffset(0)).unwrap();
        let mut parsed = Footer::parse(&raw, FileOffset(0)).unwrap();
        assert_eq!(parsed.encode(), raw);
        parsed.hidden = true;
        let hidden = parsed.encode();
        assert_eq!((hidden[200], hidden[HIDDEN_AT]), (0x5a, 1));
        Footer::sound(&hidden, FileOffset(0)).unwrap();
    }

    #[test]
    fn an_old_hidden_flag_outside_the_checksum_is_tolerated() {
        let mut raw = footer().encode();
        put_u32(&mut raw, 32, 0x0001_0001);
        let sum = checksum(&raw, CHECKSUM_AT);
        put_u32(&mut raw, CHECKSUM_AT, sum);
        raw[HIDDEN_AT] = 1;
        Footer::sound(&raw, FileOffset(0)).unwrap();
        put_u32(&mut raw, 32, CREATOR_VERSION);
        assert!(Footer::sound(&raw, FileOffset(0)).is_err(), "new versions sum the flag");
    }

    #[test]
    fn versions_that_are_not_understood_are_refused() {
        for (field, value) in [(32, 1), (32, 0x0001_0004), (12, 0x0002_0000), (60, 5), (60, 0)] {
            let mut raw = footer().encode();
            put_u32(&mut raw, field, value);
            assert!(
                matches!(Footer::parse(&raw, FileOffset(0)), Err(Error::Unsupported(_))),
                "{field}={value:#x}"
            );
        }
        let mut raw = footer().encode();
        put(&mut raw, 0, POISON);
        let sum = checksum(&raw, CHECKSUM_AT);
        put_u32(&mut raw, CHECKSUM_AT, sum);
        Footer::sound(&raw, FileOffset(0)).unwrap();
        assert!(matches!(Footer::parse(&raw, FileOffset(0)), Err(Error::Unsupported(_))));
    }

    #[test]
    fn timestamps_count_from_2000() {
        assert_eq!(vhd_timestamp(EPOCH + 5), 5);
        assert_eq!(vhd_timestamp(0), 0);
        assert_eq!(vhd_timestamp(i64::MAX), u32::MAX);
    }
}
