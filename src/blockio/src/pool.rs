//! Buffers that are used again, so that a request costs neither a mapping nor a memset.
//!
//! Invariant: what is kept unused never exceeds the bound; what is in use is bounded by the owner, who counts it. Owned by
//! the event loop of a disk that is being served.

use crate::buffer::AlignedBuf;
use catena_types::Bytes;

/// The smallest buffer, in bytes.
const SMALLEST: usize = 4096;
/// Powers of two from the smallest up to 32 MiB, the longest request of a client.
const CLASSES: usize = 14;

/// Unused buffers, by size.
pub struct Pool {
    classes: [Vec<AlignedBuf>; CLASSES],
    kept: usize,
    most: usize,
}

impl Pool {
    /// Keeps at most so much unused.
    pub fn new(most: Bytes) -> Self {
        let most = usize::try_from(most.0).unwrap_or(usize::MAX);
        Self { classes: Default::default(), kept: 0, most }
    }

    /// A buffer of `len` bytes. They are whatever was last in it: fill them before anybody sees them.
    pub fn take(&mut self, len: usize) -> AlignedBuf {
        let class = class_of(len);
        let found = self.classes.get_mut(class).and_then(Vec::pop);
        let mut buf = match found {
            Some(buf) => {
                self.kept -= buf.capacity();
                buf
            }
            None if class < CLASSES => AlignedBuf::zeroed(SMALLEST << class),
            None => AlignedBuf::zeroed(len),
        };
        buf.set_len(len);
        buf
    }

    /// Takes a buffer back, whether it is from here or not.
    pub fn give(&mut self, buf: AlignedBuf) {
        let capacity = buf.capacity();
        let class = class_of(capacity);
        if class < CLASSES && capacity == SMALLEST << class && capacity <= self.most - self.kept {
            self.kept += capacity;
            self.classes[class].push(buf);
        }
    }
}

/// Which list holds buffers of this length; `CLASSES` or more: none does.
fn class_of(len: usize) -> usize {
    (len.div_ceil(SMALLEST).max(1) as u64).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_any_length_of_its_class() {
        let mut pool = Pool::new(Bytes(1 << 20));
        for (first, second) in [(0, 4096), (1, 4096), (4097, 8192), (1 << 19, (1 << 18) + 1)] {
            let mut buf = pool.take(first);
            assert_eq!(buf.len(), first);
            let address = buf.as_ptr();
            buf.fill(7);
            pool.give(buf);
            let again = pool.take(second);
            assert_eq!((again.as_ptr(), again.len()), (address, second));
            assert!(again[..first.min(second)].iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn no_more_is_kept_than_asked_and_no_odd_size() {
        let mut pool = Pool::new(Bytes(3 * 4096));
        let taken: Vec<_> = (0..5).map(|_| pool.take(4096)).collect();
        taken.into_iter().for_each(|buf| pool.give(buf));
        assert_eq!((pool.kept, pool.classes[0].len()), (3 * 4096, 3));
        for _ in 0..3 {
            assert_eq!(pool.take(100).len(), 100);
        }
        assert_eq!(pool.kept, 0);
        pool.give(AlignedBuf::zeroed(5000));
        let huge = pool.take(33 << 20);
        assert_eq!(huge.len(), 33 << 20);
        pool.give(huge);
        assert_eq!(pool.kept, 0);
    }
}
