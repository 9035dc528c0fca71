//! The CHS geometry that a footer carries, computed as XenServer's tools do.
//!
//! It is derived from the size and must be computed anew whenever the size changes. The arithmetic is 64 bits wide:
//! with 32 bits a disk of 2 TiB would get the geometry of an empty one.

use catena_types::{Bytes, SECTOR_BYTES};

/// Sectors of the largest geometry, 65535/16/255.
const MAX_SECTORS: u64 = 65_535 * 16 * 255;

/// Cylinders, heads and sectors per track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cylinders: u16,
    pub(crate) heads: u8,
    pub(crate) sectors: u8,
}

impl Geometry {
    /// The geometry of a disk of `size`.
    pub(crate) fn of(size: Bytes) -> Self {
        let total = size.0.div_ceil(SECTOR_BYTES).clamp(1, MAX_SECTORS);
        let few = (total / 17).div_ceil(1024).max(4);
        let (sectors, heads, tracks) = if total >= 65_535 * 16 * 63 {
            (255, 16, total / 255)
        } else if few <= 16 && total / 17 < few * 1024 {
            (17, few, total / 17)
        } else if total / 31 < 16 * 1024 {
            (31, 16, total / 31)
        } else {
            (63, 16, total / 63)
        };
        Self {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    /// As the four bytes of a footer.
    pub(crate) const fn to_u32(self) -> u32 {
        let [high, low] = self.cylinders.to_be_bytes();
        u32::from_be_bytes([high, low, self.heads, self.sectors])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn agrees_with_the_golden_table() {
        for (mib, cylinders, heads, sectors) in [
            (2, 60, 4, 17),
            (4, 120, 4, 17),
            (10, 301, 4, 17),
            (20, 602, 4, 17),
            (504, 1024, 16, 63),
            (1000, 2031, 16, 63),
            (1024, 2080, 16, 63),
            (2048, 4161, 16, 63),
            (4096, 8322, 16, 63),
            (8192, 16_644, 16, 63),
            (10_240, 20_805, 16, 63),
            (16_384, 33_288, 16, 63),
            (40_960, 20_560, 16, 255),
            (102_400, 51_400, 16, 255),
            (130_000, 65_254, 16, 255),
            (130_048, 65_278, 16, 255),
            (131_072, 65_535, 16, 255),
            (1_048_576, 65_535, 16, 255),
            (2040 * 1024, 65_535, 16, 255),
        ] {
            assert_eq!(Geometry::of(Bytes(mib * MIB)), Geometry { cylinders, heads, sectors }, "{mib} MiB");
        }
        let hundred = Geometry::of(Bytes(100 * MIB));
        let product = u32::from(hundred.cylinders) * u32::from(hundred.heads) * u32::from(hundred.sectors);
        assert_eq!(product, 204_612);
    }

    #[test]
    fn vendor_bug_geometry_overflow_at_two_tebibytes() {
        for size in [2u64 << 40, 4 << 40, u64::MAX] {
            assert_eq!(Geometry::of(Bytes(size)).cylinders, u16::MAX, "{size}");
        }
        assert_eq!(Geometry::of(Bytes(0)), Geometry { cylinders: 0, heads: 4, sectors: 17 });
    }

    #[test]
    fn packs_into_the_field() {
        let geometry = Geometry { cylinders: 2080, heads: 16, sectors: 63 };
        assert_eq!(geometry.to_u32(), 0x0820_103f);
    }
}
