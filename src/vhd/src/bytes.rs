//! Big-endian fields in byte arrays, and the checksum that all structures of the format share.
//!
//! Offsets are constants of the format and lie inside the array that is passed.

/// The u16 at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The u32 at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

/// The u64 at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}

/// Puts `field` at `at`.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Puts a u32 at `at`.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

/// Puts a u64 at `at`.
pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_be_bytes());
}

/// The complement of the sum of all bytes.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)))
}

/// The same with the four bytes at `field`, where the checksum itself stands, taken as zero.
pub(crate) fn checksum(bytes: &[u8], field: usize) -> u32 {
    let own = bytes[field..field + 4].iter().fold(0u32, |sum, &byte| sum + u32::from(byte));
    sum(bytes).wrapping_add(own)
}
