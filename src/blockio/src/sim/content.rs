//! Sparse bytes in memory: what a simulated disk holds, as readers see it or as a power cut would leave it.
//!
//! Invariant: bytes past the size are zero. Pages are shared between copies until they are written, so that a copy for one
//! of thousands of crash images costs little; what others have left on a device takes no page before it is written over.

use super::stale::STALE;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// The unit of storage; what holds no page reads as zero or, where others were before, as what they have left.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

type Page = Arc<[u8; PAGE_BYTES]>;

/// A page without anything, and one that others have left.
static EMPTY: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));
static USED: LazyLock<Page> = LazyLock::new(|| Arc::new(std::array::from_fn(|at| STALE[at % STALE.len()])));

#[derive(Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Page>,
    /// The pages in which others were, in numbers.
    used: Vec<Range<u64>>,
    size: u64,
}

impl Content {
    /// Zeros.
    pub(super) fn of_size(size: u64) -> Self {
        Self { pages: BTreeMap::new(), used: Vec::new(), size }
    }

    /// Extends it with what others have left there.
    pub(super) fn extend_with_stale(&mut self, size: u64) {
        let (from, to) = (self.size, size.max(self.size));
        self.used.push(from.div_ceil(PAGE)..to / PAGE);
        let (head, tail) = (from.next_multiple_of(PAGE).min(to), to / PAGE * PAGE);
        for (start, end) in [(from, head), (tail.max(from), to)] {
            let (skip, len) = in_page(start, end - start);
            self.write(&USED[skip..skip + len], start);
        }
        self.size = to;
    }

    /// What stands in a page that nobody has written to.
    fn unwritten(&self, page: u64) -> &'static Page {
        if self.used.iter().any(|range| range.contains(&page)) { &USED } else { &EMPTY }
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
            let page = self.pages.get(&(at / PAGE)).unwrap_or_else(|| self.unwritten(at / PAGE));
            part.copy_from_slice(&page[skip..skip + len]);
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
            let unwritten = self.unwritten(at / PAGE);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::clone(unwritten));
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
        let (from, to) = (start / PAGE, (end - 1) / PAGE + 1);
        let written = self.pages.range(from..to).map(|(&page, _)| page);
        let used = self.used.iter().flat_map(|range| range.start.max(from)..range.end.min(to));
        for index in written.chain(used).collect::<Vec<_>>() {
            let first = start.max(index * PAGE);
            let (skip, len) = in_page(first, end - first);
            let unwritten = self.unwritten(index);
            if len == PAGE_BYTES && Arc::ptr_eq(unwritten, &EMPTY) {
                self.pages.remove(&index);
            } else if len == PAGE_BYTES {
                self.pages.insert(index, Arc::clone(&EMPTY));
            } else {
                let page = self.pages.entry(index).or_insert_with(|| Arc::clone(unwritten));
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
