//! Sparse bytes in memory: what a simulated disk holds, as readers see it or as a power cut would leave it.
//!
//! Invariant: bytes past the size are zero. Pages are shared between copies until they are written, so that a copy for one
//! of thousands of crash images costs little.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit of storage; what holds no page reads as zero.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

#[derive(Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
    size: u64,
}

impl Content {
    /// Zeros.
    pub(super) fn of_size(size: u64) -> Self {
        Self { pages: BTreeMap::new(), size }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the pages that are there.
    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Fills `buf`; zeros from the end on.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) {
        let held = self.size.saturating_sub(at).min(buf.len() as u64);
        // At most the length of the buffer.
        let (mut rest, past_end) = buf.split_at_mut(usize::try_from(held).unwrap_or(0));
        past_end.fill(0);
        let mut at = at;
        while !rest.is_empty() {
            let (skip, len) = in_page(at, rest.len() as u64);
            let (part, after) = rest.split_at_mut(len);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => part.copy_from_slice(&page[skip..skip + len]),
                None => part.fill(0),
            }
            rest = after;
            at += len as u64;
        }
    }

    /// Writes, and grows to the end of what is written.
    pub(super) fn write(&mut self, data: &[u8], at: u64) {
        if data.is_empty() {
            return;
        }
        let mut rest = data;
        let mut at = at;
        while !rest.is_empty() {
            let (skip, len) = in_page(at, rest.len() as u64);
            let (part, after) = rest.split_at(len);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[skip..skip + len].copy_from_slice(part);
            rest = after;
            at += len as u64;
        }
        self.size = self.size.max(at);
    }

    /// Zeros from `start` to `end`; whole pages are let go. The size stays.
    pub(super) fn zero(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let touched: Vec<u64> =
            self.pages.range(start / PAGE..=(end - 1) / PAGE).map(|(&page, _)| page).collect();
        for index in touched {
            let first = start.max(index * PAGE);
            let (skip, len) = in_page(first, end - first);
            if len == PAGE_BYTES {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                Arc::make_mut(page)[skip..skip + len].fill(0);
            }
        }
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_size(&mut self, size: u64) {
        self.zero(size, self.size);
        self.size = size;
    }
}

/// The offset of `at` in its page, and how much of `len` lies in that page.
fn in_page(at: u64, len: u64) -> (usize, usize) {
    let skip = at % PAGE;
    let len = len.min(PAGE - skip);
    // Both are at most a page.
    (usize::try_from(skip).unwrap_or(0), usize::try_from(len).unwrap_or(PAGE_BYTES))
}
