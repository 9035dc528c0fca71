//! Parent locators: the eight places of a header that say, each in its own spelling, where the parent is.
//!
//! Three are written, `MacX`, `W2ku` and `W2ru`, and as XenServer does all three hold the same *relative* path: parents lie in
//! the directory of their children. Names outside ASCII are written as real UTF-8 and UTF-16. Nothing here resolves
//! a path: parents are found by the catalog.

use crate::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::error::{Error, Result};
use catena_types::{FileOffset, SECTOR_BYTES};

/// Bytes of one locator in the header.
pub(crate) const LOCATOR_BYTES: usize = 24;
/// How many there are.
pub(crate) const LOCATORS: usize = 8;
/// The longest text that is read; a path of 4096 bytes fits in UTF-16.
const MAX_TEXT: u64 = 8192;

/// How a locator is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    /// A `file://` URL in UTF-8, without escapes.
    MacX,
    /// A Windows path in UTF-16, meant to be absolute.
    W2ku,
    /// A relative Windows path in UTF-16.
    W2ru,
    /// One of the spellings that were given up, which nobody can read any more.
    Deprecated(u32),
}

/// Those that are written, in their order.
pub(crate) const WRITTEN: [Platform; 3] = [Platform::MacX, Platform::W2ku, Platform::W2ru];

impl Platform {
    const fn code(self) -> u32 {
        match self {
            Self::MacX => 0x4D61_6358,
            Self::W2ku => 0x5732_6B75,
            Self::W2ru => 0x5732_7275,
            Self::Deprecated(code) => code,
        }
    }

    const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0x4D61_6358 => Self::MacX,
            0x5732_6B75 => Self::W2ku,
            0x5732_7275 => Self::W2ru,
            0x4D61_6320 | 0x5769_326B | 0x5769_3272 => Self::Deprecated(code),
            _ => return None,
        })
    }

    /// The text of a parent called `name` in the directory of its child.
    pub(crate) fn text(self, name: &str) -> Vec<u8> {
        match self {
            Self::MacX => format!("file://./{name}").into_bytes(),
            _ => format!(".\\{name}").encode_utf16().flat_map(u16::to_le_bytes).collect(),
        }
    }

    /// The path that the text of a locator says, with `/` between its parts; `None` where it cannot be read.
    pub(crate) fn decode(self, text: &[u8]) -> Option<String> {
        let path = match self {
            Self::MacX => {
                let url = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
                return Some(url.strip_prefix("file://").unwrap_or(url).to_owned());
            }
            Self::W2ku | Self::W2ru => {
                let units: Vec<u16> =
                    text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                String::from_utf16(&units).ok()?
            }
            Self::Deprecated(_) => return None,
        };
        let path = path.trim_end_matches('\0').replace('\\', "/");
        let drive = path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic();
        Some(if drive { path[2..].to_owned() } else { path })
    }
}

/// One used locator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Locator {
    pub(crate) platform: Platform,
    /// Bytes that are reserved for the text, 0 where the field makes no sense.
    pub(crate) space: u64,
    /// Bytes of the text.
    pub(crate) len: u32,
    /// Where the text is.
    pub(crate) at: FileOffset,
}

impl Locator {
    /// From the 24 bytes of a header at position `at`; `None` for an unused place.
    pub(crate) fn parse(raw: &[u8], at: FileOffset) -> Result<Option<Self>> {
        let code = u32_at(raw, 0);
        if code == 0 {
            return Ok(None);
        }
        let Some(platform) = Platform::from_code(code) else {
            return Err(Error::damaged("locator_code", at, format!("unknown parent locator {code:#010x}")));
        };
        // The specification counts sectors, the programs write bytes.
        let space = match u64::from(u32_at(raw, 4)) {
            sectors if sectors < SECTOR_BYTES => sectors * SECTOR_BYTES,
            bytes if bytes % SECTOR_BYTES == 0 => bytes,
            _ => 0,
        };
        Ok(Some(Self { platform, space, len: u32_at(raw, 8), at: FileOffset(u64_at(raw, 16)) }))
    }

    /// As the 24 bytes of a header.
    pub(crate) fn encode(&self) -> [u8; LOCATOR_BYTES] {
        let mut raw = [0; LOCATOR_BYTES];
        put_u32(&mut raw, 0, self.platform.code());
        put_u32(&mut raw, 4, u32::try_from(self.space).unwrap_or(0));
        put_u32(&mut raw, 8, self.len);
        put_u64(&mut raw, 16, self.at.0);
        raw
    }

    /// The first byte after the reserved space.
    pub(crate) const fn end(&self) -> u64 {
        self.at.0.saturating_add(self.space)
    }

    /// Bytes of text to read, `None` where there is nothing sensible.
    pub(crate) fn readable(&self) -> Option<usize> {
        let len = u64::from(self.len);
        (len > 0 && len <= self.space && len <= MAX_TEXT).then(|| usize::try_from(len).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_vendor() {
        assert_eq!(Platform::MacX.text("v1024.vhd"), b"file://./v1024.vhd");
        assert_eq!(Platform::W2ku.text("v.vhd"), b".\0\\\0v\0.\0v\0h\0d\0");
        assert_eq!(Platform::W2ku.text("v.vhd"), Platform::W2ru.text("v.vhd"));
    }

    #[test]
    fn names_outside_ascii_survive() {
        for platform in WRITTEN {
            let text = platform.text("größe 日本 🦀.vhd");
            assert_eq!(platform.decode(&text).unwrap(), "./größe 日本 🦀.vhd");
        }
    }

    #[test]
    fn foreign_texts_are_read() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert_eq!(Platform::W2ku.decode(&wide("C:\\disks\\base.vhd\0")).unwrap(), "/disks/base.vhd");
        assert_eq!(Platform::W2ru.decode(&wide("..\\base.vhd")).unwrap(), "../base.vhd");
        assert_eq!(Platform::MacX.decode(b"file:///srv/base.vhd").unwrap(), "/srv/base.vhd");
        assert_eq!(Platform::MacX.decode(&[0xff, 0xfe]), None);
        assert_eq!(Platform::W2ku.decode(&wide("\u{e9}:").repeat(1)).unwrap(), "\u{e9}:");
    }

    #[test]
    fn the_space_may_be_in_sectors_or_in_bytes() {
        let mut raw = Locator { platform: Platform::MacX, space: 1024, len: 4, at: FileOffset(99) }.encode();
        assert_eq!(Locator::parse(&raw, FileOffset(0)).unwrap().unwrap().space, 1024);
        put_u32(&mut raw, 4, 2);
        assert_eq!(Locator::parse(&raw, FileOffset(0)).unwrap().unwrap().space, 1024);
        put_u32(&mut raw, 4, 1000);
        assert_eq!(Locator::parse(&raw, FileOffset(0)).unwrap().unwrap().readable(), None);
        put_u32(&mut raw, 0, 0x1234_5678);
        assert!(Locator::parse(&raw, FileOffset(0)).is_err());
        assert_eq!(Locator::parse(&[0; 24], FileOffset(0)).unwrap(), None);
    }
}
