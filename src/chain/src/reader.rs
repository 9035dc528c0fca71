//! Reading a chain of layers as the one disk that it is.
//!
//! Invariants: what a read returns is, for each sector, what the topmost layer that owns it holds, or zero (D6). A chain
//! owns its layers jointly and never writes. Reads may be made from several threads. Whoever changes what a layer of the
//! chain owns calls [`Chain::invalidate`] or [`Chain::invalidate_all`] with no read of the range under way.

use crate::error::Error;
use crate::layer::{Extent, Layer};
use crate::map::{ChainMap, resolve};
use crate::mixed::{Owner, Run, Slot};
use crate::units::{by_block, len, sector_bytes, sectors_touched};
use catena_types::{BlockIndex, Bytes, FileOffset, GuestOffset};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory for blocks with several owners, unless the caller says otherwise.
pub const DEFAULT_MAP_BUDGET: Bytes = Bytes(64 << 20);

/// A chain of layers that can be read.
pub struct Chain {
    /// Leaf first; the index is the slot.
    layers: Vec<Arc<dyn Layer>>,
    map: Mutex<ChainMap>,
}

/// Neighbouring bytes of the disk with one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub at: GuestOffset,
    /// How long it is.
    pub len: Bytes,
    /// The layer that holds it; `None` reads as zero.
    pub owner: Owner,
}

/// Bytes of a read that lie in one piece in one container.
struct Request {
    slot: Slot,
    at: FileOffset,
    buf: Range<usize>,
}

impl Chain {
    /// A chain of these layers, the leaf first. At least one, at most 65535.
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Result<Self, Error> {
        Self::with_budget(layers, DEFAULT_MAP_BUDGET)
    }

    /// As [`new`](Self::new), with a bound of the memory for blocks whose sectors have several owners.
    pub fn with_budget(layers: Vec<Arc<dyn Layer>>, budget: Bytes) -> Result<Self, Error> {
        let last = layers.len().checked_sub(1).and_then(Slot::new);
        let (Some(leaf), Some(_)) = (layers.first(), last) else {
            return Err(Error::OutOfRange(format!("{} layers do not make a chain", layers.len())));
        };
        let map = Mutex::new(ChainMap::new(leaf.virtual_size().blocks(), budget));
        Ok(Self { layers, map })
    }

    /// Size of the disk: the leaf's.
    pub fn virtual_size(&self) -> Bytes {
        self.layers[0].virtual_size()
    }

    /// The layer of a slot that this chain gave out.
    pub fn layer(&self, slot: Slot) -> &Arc<dyn Layer> {
        &self.layers[slot.index()]
    }

    /// Fills `buf` with what the disk holds from `at`, which need not be aligned to anything.
    pub fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<(), Error> {
        let range = self.check(at, buf.len() as u64)?;
        let mut start = 0;
        let mut waiting: Option<Request> = None;
        for (block, bytes) in by_block(range) {
            for run in self.runs(block, sectors_touched(&bytes))? {
                let of_run = sector_bytes(&run.sectors);
                let inside = of_run.start.max(bytes.start)..of_run.end.min(bytes.end);
                let target = start..start + inside.len();
                start = target.end;
                let Some(slot) = run.owner else {
                    buf[target].fill(0);
                    continue;
                };
                let request = self.place_of(slot, block, inside, target, buf)?;
                waiting = match waiting.take() {
                    Some(first) if first.continues_with(&request) => {
                        Some(Request { buf: first.buf.start..request.buf.end, ..first })
                    }
                    Some(first) => {
                        self.fetch(&first, buf)?;
                        Some(request)
                    }
                    None => Some(request),
                };
            }
        }
        waiting.map_or(Ok(()), |last| self.fetch(&last, buf))
    }

    /// Who owns what in `range`, as maximal spans, ascending and without gaps. A failed walk of a block ends it.
    pub fn extents(
        &self,
        range: Range<GuestOffset>,
    ) -> Result<impl Iterator<Item = Result<Span, Error>> + '_, Error> {
        let range = self.check(range.start, range.end.0.saturating_sub(range.start.0))?;
        let mut spans = by_block(range)
            .flat_map(|(block, bytes)| match self.runs(block, sectors_touched(&bytes)) {
                Ok(runs) => runs.into_iter().map(|run| Ok(span(block, &bytes, &run))).collect(),
                Err(error) => vec![Err(error)],
            })
            .peekable();
        let mut failed = false;
        Ok(std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let first = spans.next()?;
            failed = first.is_err();
            Some(first.map(|mut span| {
                while let Some(Ok(next)) = spans.next_if(|next| continues(&span, next)) {
                    span.len.0 += next.len.0;
                }
                span
            }))
        }))
    }

    /// The ownership of the block has changed in one of the layers.
    pub fn invalidate(&self, block: BlockIndex) {
        self.map().invalidate(block);
    }

    /// The ownership of any block may have changed.
    pub fn invalidate_all(&self) {
        self.map().invalidate_all();
    }

    /// The range of a request, or why it cannot be.
    pub(crate) fn check(&self, at: GuestOffset, length: u64) -> Result<Range<GuestOffset>, Error> {
        let size = self.virtual_size();
        match at.0.checked_add(length) {
            Some(end) if end <= size.0 => Ok(at..GuestOffset(end)),
            _ => Err(Error::OutOfRange(format!("{length} bytes at {} of a disk of {} bytes", at.0, size.0))),
        }
    }

    /// The owners of the sectors, from the map or by a walk that the map then keeps.
    fn runs(&self, block: BlockIndex, sectors: Range<usize>) -> Result<Vec<Run>, Error> {
        let generation = {
            let mut map = self.map();
            if let Some(runs) = map.lookup(block, sectors.clone()) {
                return Ok(runs.collect());
            }
            map.generation()
        };
        // The walk reads from storage, so it runs outside the lock.
        let resolved = resolve(self.layers.iter().map(|layer| &**layer), block)?;
        let runs = resolved.runs(sectors).collect();
        self.map().insert(block, resolved, generation);
        Ok(runs)
    }

    /// What has to be read for `inside` (bytes of the block) into `buf[target]`. What the container does not have is zeroed.
    fn place_of(
        &self,
        slot: Slot,
        block: BlockIndex,
        inside: Range<usize>,
        target: Range<usize>,
        buf: &mut [u8],
    ) -> Result<Request, Error> {
        let Some(Extent { at, len: present }) = self.layer(slot).locate(block) else {
            return Err(Error::Damaged { block, problem: "sectors are owned and have no place".to_owned() });
        };
        let there = len(u64::from(present)).clamp(inside.start, inside.end) - inside.start;
        buf[target.start + there..target.end].fill(0);
        Ok(Request {
            slot,
            at: FileOffset(at.0 + inside.start as u64),
            buf: target.start..target.start + there,
        })
    }

    fn fetch(&self, request: &Request, buf: &mut [u8]) -> Result<(), Error> {
        if request.buf.is_empty() {
            return Ok(());
        }
        self.layer(request.slot)
            .container()
            .read_at(&mut buf[request.buf.clone()], request.at)
            .map_err(Error::io("reading from an image"))
    }

    /// The map. A panic elsewhere leaves it whole: every change of it is made after all that can fail.
    fn map(&self) -> MutexGuard<'_, ChainMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    /// Whether one read can serve both.
    fn continues_with(&self, next: &Self) -> bool {
        self.slot == next.slot
            && self.buf.end == next.buf.start
            && self.at.0 + self.buf.len() as u64 == next.at.0
    }
}

/// The part of a run that lies in `bytes` of the block.
fn span(block: BlockIndex, bytes: &Range<usize>, run: &Run) -> Span {
    let of_run = sector_bytes(&run.sectors);
    let (start, end) = (of_run.start.max(bytes.start) as u64, of_run.end.min(bytes.end) as u64);
    Span { at: GuestOffset(block.start().0 + start), len: Bytes(end - start), owner: run.owner }
}

fn continues(span: &Span, next: &Result<Span, Error>) -> bool {
    matches!(next, Ok(next) if next.owner == span.owner)
}
