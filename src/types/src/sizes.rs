//! Sizes, offsets and the limits of the system. Units are bytes unless the name says otherwise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bytes in a sector, the unit of ownership.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes in a block, the unit of allocation (VHD's only usable block size).
pub const BLOCK_BYTES: u64 = 2 << 20;
/// Sectors in a block.
pub const BLOCK_SECTORS: usize = 4096;
/// The most images a chain may have, the leaf included.
pub const CHAIN_LIMIT: usize = 30;
/// The depth from which a chain is warned about.
pub const CHAIN_WARNING: usize = 24;
/// The smallest virtual disk.
pub const VHD_MIN_SIZE: Bytes = Bytes(2 << 20);
/// The largest virtual disk a VHD can hold when fully written (2040 GiB).
pub const VHD_MAX_SIZE: Bytes = Bytes(2040 << 30);

/// A length in bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A position on the virtual disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestOffset(pub u64);

/// A position in a container (a file or a block device), in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileOffset(pub u64);

/// The number of a 2 MiB block of the virtual disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u32);

impl BlockIndex {
    /// Where the block begins on the virtual disk.
    pub const fn start(self) -> GuestOffset {
        GuestOffset(self.0 as u64 * BLOCK_BYTES)
    }

    /// The block that follows.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The block as an index into a table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl GuestOffset {
    /// The block the offset lies in, and the offset inside that block in bytes. Offsets are at most a disk's size,
    /// so the block number fits (2^32 blocks are 8 PiB).
    pub fn split(self) -> (BlockIndex, u64) {
        let block = u32::try_from(self.0 / BLOCK_BYTES).unwrap_or(u32::MAX);
        (BlockIndex(block), self.0 % BLOCK_BYTES)
    }
}

impl Bytes {
    /// How many blocks hold this many bytes.
    pub fn blocks(self) -> u32 {
        u32::try_from(self.0.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)
    }

    /// Rounded up to a multiple of `unit` (which is not zero).
    pub const fn round_up(self, unit: u64) -> Self {
        Self(self.0.div_ceil(unit) * unit)
    }
}

impl fmt::Display for Bytes {
    /// For people: `512 B`, `8.0 KiB`, `5.3 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        let mut tenths = u128::from(self.0) * 10;
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths = (tenths + 512) / 1024;
            unit += 1;
        }
        let text = if unit == 0 {
            format!("{} B", self.0)
        } else {
            format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
        };
        f.pad(&text)
    }
}

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: give bytes, or a number with KiB, MiB, GiB or TiB")]
pub struct SizeError(pub String);

impl FromStr for Bytes {
    type Err = SizeError;

    /// Plain bytes, or a whole number with a binary unit: `512MiB`, `10GiB`, `2TiB`.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let number: u64 = trimmed[..digits].parse().map_err(|_| error())?;
        let shift = match trimmed[digits..].trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_units_only() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("512MiB", 512 << 20), ("10GiB", 10 << 30), ("2TiB", 2 << 40)]
        {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "10GB", "1 0", "99999999TiB", "0x10"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (8192, "8.0 KiB"), (5_690_831_667, "5.3 GiB")] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn offsets_split_into_block_and_rest() {
        assert_eq!(GuestOffset(5 * BLOCK_BYTES + 7).split(), (BlockIndex(5), 7));
        assert_eq!(BlockIndex(5).start(), GuestOffset(5 * BLOCK_BYTES));
        assert_eq!(Bytes(BLOCK_BYTES + 1).blocks(), 2);
    }
}
