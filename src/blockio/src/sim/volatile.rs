//! One simulated disk's bytes: what is durable, what readers see, and the changes in between.
//!
//! Invariant: `view` is `durable` with all of `pending` applied in order. A flush applies them to `durable`; a power cut
//! applies some of them to a copy of it.

use super::content::Content;
use super::rng::Rng;
use crate::container::Sizing;
use std::io;
use std::sync::Arc;

/// What a disk writes whole or not at all, in bytes.
const ATOM: u64 = 512;

/// A change that is not durable yet.
#[derive(Clone)]
pub(super) enum Change {
    /// These bytes at this offset.
    Write { at: u64, data: Arc<[u8]> },
    /// Zeros from `start` to `end`.
    Zero { start: u64, end: u64 },
    /// Cut or extended to this size.
    SetSize(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { at, data } => content.write(data, *at),
            Self::Zero { start, end } => content.zero(*start, *end),
            Self::SetSize(size) => content.set_size(*size),
        }
    }

    /// Its first half in whole sectors; nothing of what is never done by halves.
    pub(super) fn first_half(&self) -> Option<Self> {
        match self {
            Self::Write { at, data } => {
                let half = data.len() / 1024 * 512;
                (half > 0).then(|| Self::Write { at: *at, data: data[..half].into() })
            }
            Self::Zero { start, end } => {
                Some(Self::Zero { start: *start, end: start + (end - start) / 2 / ATOM * ATOM })
            }
            Self::SetSize(_) => None,
        }
    }

    /// Applies a random part of it: any sectors of a write, any stretch of zeros; a size whole.
    fn tear(&self, content: &mut Content, rng: &mut Rng) {
        match self {
            Self::Write { at, data } => {
                let end = at + data.len() as u64;
                for_random_sectors(*at, end, rng, |start, stop| {
                    // Both lie in the data.
                    let part =
                        usize::try_from(start - at).unwrap_or(0)..usize::try_from(stop - at).unwrap_or(0);
                    content.write(&data[part], start);
                });
                // The size is metadata: it may be there before the data that made it.
                if content.size() < end && rng.coin() {
                    content.set_size(end);
                }
            }
            Self::Zero { start, end } => {
                let cut = (end - start).div_ceil(ATOM) + 1;
                let (a, b) = (rng.below(cut) * ATOM, rng.below(cut) * ATOM);
                content.zero(start + a.min(b), (start + a.max(b)).min(*end));
            }
            Self::SetSize(size) => content.set_size(*size),
        }
    }
}

/// Calls `keep` with the runs of a random subset of the sectors that `start..end` touches.
fn for_random_sectors(start: u64, end: u64, rng: &mut Rng, mut keep: impl FnMut(u64, u64)) {
    let mut run = None;
    let mut at = start;
    while at < end {
        if rng.coin() {
            run.get_or_insert(at);
        } else if let Some(from) = run.take() {
            keep(from, at);
        }
        at = end.min((at / ATOM + 1) * ATOM);
    }
    if let Some(from) = run {
        keep(from, end);
    }
}

/// The state of one disk.
#[derive(Clone)]
pub(super) struct Volatile {
    pub(super) sizing: Sizing,
    durable: Content,
    view: Content,
    pending: Vec<Change>,
    /// The error of the first flush that failed on this open container.
    flush_error: Option<i32>,
}

impl Volatile {
    /// A disk of zeros, durably.
    pub(super) fn new(sizing: Sizing, size: u64) -> Self {
        Self::durably(sizing, Content::of_size(size))
    }

    fn durably(sizing: Sizing, content: Content) -> Self {
        Self { sizing, durable: content.clone(), view: content, pending: Vec::new(), flush_error: None }
    }

    /// Its owner has made it larger: durable, whatever becomes of what was written.
    pub(super) fn enlarge(&mut self, size: u64) {
        self.durable.extend_with_stale(size);
        self.view.extend_with_stale(size);
    }

    /// What readers see.
    pub(super) fn view(&self) -> &Content {
        &self.view
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.view);
        self.pending.push(change);
    }

    /// A barrier that the plan has let through or not. After one that failed all later ones fail, as those of a file do.
    pub(super) fn flush(&mut self, admitted: io::Result<()>) -> io::Result<()> {
        if let Err(error) = admitted {
            self.flush_error = self.flush_error.or(error.raw_os_error());
            return Err(error);
        }
        if let Some(errno) = self.flush_error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
        Ok(())
    }

    /// The disk after a power cut. How much of the volatile survives is drawn once for the cut, from nothing to everything,
    /// so that "only the last" and "all but the first" come up in long sequences too.
    pub(super) fn after_power_cut(&self, rng: &mut Rng) -> Self {
        let mut content = self.durable.clone();
        let mut changes: Vec<&Change> = self.pending.iter().collect();
        rng.shuffle(&mut changes);
        let survival = rng.below(5);
        for change in changes {
            if rng.below(4) >= survival {
                continue;
            }
            if rng.coin() { change.apply(&mut content) } else { change.tear(&mut content, rng) }
        }
        Self::durably(self.sizing, content)
    }

    /// The disk as the next process finds it.
    pub(super) fn after_process_kill(&self) -> Self {
        Self { flush_error: None, ..self.clone() }
    }
}
