//! Memory for direct I/O: bytes on the heap whose first one is aligned to a page.
//!
//! Invariant: the visible slice begins at a multiple of [`AlignedBuf::ALIGNMENT`], which no device asks more than. Called by
//! the direct path of this crate and by whoever moves large pieces of data between containers.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A zeroed buffer of fixed length, aligned to [`AlignedBuf::ALIGNMENT`] bytes.
pub struct AlignedBuf {
    // Longer than asked, so that an aligned run of the asked length lies in it. A vector's memory does not move while its
    // capacity stays.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// The alignment of the first byte, in bytes.
    pub const ALIGNMENT: usize = 4096;

    /// `len` bytes of zeros.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT - 1];
        let start = bytes.as_ptr().addr().wrapping_neg() % Self::ALIGNMENT;
        Self { bytes, start, len }
    }

    /// The length that it was made with.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len() - (Self::ALIGNMENT - 1)
    }

    /// Shows the first `len` bytes, at most its capacity, with what is in them.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(self.capacity());
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_aligned_zeroed_and_of_the_asked_length() {
        let buffers: Vec<_> = (0..200).map(|i| AlignedBuf::zeroed(i * 37)).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.len(), i * 37);
            assert_eq!(buffer.as_ptr().addr() % AlignedBuf::ALIGNMENT, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }
}
