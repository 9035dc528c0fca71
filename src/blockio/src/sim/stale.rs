//! What somebody else has left on a device, and what a discarded range may read as: bytes that nobody may ever get to see.

/// It repeats like this. No sector of it is made of one byte, as those of most tests are.
pub(super) const STALE: [u8; 8] = *b"\xaastale\x55\xaa";

/// Where in these bytes, some sectors, one begins that holds such bytes: at its beginning or at its end, what is between them being
/// nobody's business.
pub fn find_stale(bytes: &[u8]) -> Option<usize> {
    let sector = |bytes: &[u8]| bytes.starts_with(&STALE) || bytes.ends_with(&STALE);
    bytes.chunks(512).position(sector).map(|sector| sector * 512)
}

/// So many of them.
pub(super) fn stale(len: usize) -> Vec<u8> {
    STALE.iter().copied().cycle().take(len).collect()
}
