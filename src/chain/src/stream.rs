//! Reads much of a chain in order, several chunks ahead: for exports and for copies into a new image.
//!
//! Invariant: pieces come in the order of the disk and cover the range without gaps; memory is bounded by the chunks in
//! flight. Ranges that nobody owns are told as such and never read, so that what is written from them can be sparse.

use crate::error::Error;
use crate::pool::IN_FLIGHT;
use crate::reader::{Chain, Span};
use crate::units::{by_block, len};
use catena_blockio::AlignedBuf;
use catena_types::{BlockIndex, Bytes, GuestOffset};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Zeros that are read along with the data around them, to save a request.
const JOINED_GAP: u64 = 64 << 10;
/// The most that one chunk may hold; with the chunks in flight, 64 MiB.
const MAX_CHUNK: u64 = 8 << 20;

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// So many zeros, which no layer owns.
    Zero(Bytes),
    /// At most a chunk of bytes. They may contain zeros.
    Data(&'a [u8]),
}

/// Calls `each` with all of `range`, in order, on the calling thread. Data come in pieces of at most `chunk` bytes (between
/// 4 KiB and 8 MiB) that do not cross a multiple of it. The first error, of a read or of `each`, ends it.
pub fn stream(
    chain: &Chain,
    range: Range<GuestOffset>,
    chunk: Bytes,
    mut each: impl FnMut(GuestOffset, Piece<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let chunk = chunk.0.clamp(4096, MAX_CHUNK);
    chain.check(range.start, range.end.0.saturating_sub(range.start.0))?;
    let (jobs, queue) = channel::<Job>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        let queue = &queue;
        for _ in 0..IN_FLIGHT {
            thread::Builder::new()
                .spawn_scoped(scope, move || serve(chain, queue))
                .map_err(Error::io("starting a thread"))?;
        }
        let result = deliver(&jobs, Stretches { chain, range, chunk, ready: VecDeque::new() }, &mut each);
        // Without a sender the threads end.
        drop(jobs);
        result
    })
}

/// The blocks of the disk of which some layer owns something, ascending: those in which [`stream`] delivers data.
pub fn owned_blocks(chain: &Chain) -> Result<Vec<BlockIndex>, Error> {
    let mut blocks = Vec::new();
    for span in chain.extents(GuestOffset(0)..GuestOffset(chain.virtual_size().0))? {
        let span = span?;
        if span.owner.is_some() {
            let end = GuestOffset(span.at.0 + span.len.0);
            let fresh = by_block(span.at..end).map(|(block, _)| block);
            let last = blocks.last().copied();
            blocks.extend(fresh.filter(|block| last != Some(*block)));
        }
    }
    Ok(blocks)
}

/// A part of the disk: to be read, or known to be zero.
struct Stretch {
    at: GuestOffset,
    len: u64,
    data: bool,
}

/// The stretches of a range, worked out chunk by chunk. Zeros are joined across chunks, data are not.
struct Stretches<'a> {
    chain: &'a Chain,
    /// What has not been looked at yet.
    range: Range<GuestOffset>,
    chunk: u64,
    ready: VecDeque<Stretch>,
}

impl Stretches<'_> {
    fn next(&mut self) -> Result<Option<Stretch>, Error> {
        self.look()?;
        let Some(mut first) = self.ready.pop_front() else { return Ok(None) };
        if !first.data {
            self.look()?;
            while self.ready.front().is_some_and(|next| !next.data) {
                first.len += self.ready.pop_front().map_or(0, |next| next.len);
                self.look()?;
            }
        }
        Ok(Some(first))
    }

    /// Sees to it that something is ready unless all has been looked at.
    fn look(&mut self) -> Result<(), Error> {
        if !self.ready.is_empty() || self.range.start >= self.range.end {
            return Ok(());
        }
        let border = (self.range.start.0 / self.chunk + 1) * self.chunk;
        let end = self.range.end.min(GuestOffset(border));
        for span in self.chain.extents(self.range.start..end)? {
            self.take(&span?);
        }
        self.range.start = end;
        Ok(())
    }

    /// Adds a span of the chunk. Data that lie close together become one stretch.
    fn take(&mut self, span: &Span) {
        let data = span.owner.is_some();
        if data
            && let Some([before, gap]) = last_two(&mut self.ready)
            && before.data
            && !gap.data
            && gap.len <= JOINED_GAP
        {
            before.len += gap.len;
            self.ready.pop_back();
        }
        match self.ready.back_mut() {
            Some(last) if last.data == data => last.len += span.len.0,
            _ => self.ready.push_back(Stretch { at: span.at, len: span.len.0, data }),
        }
    }
}

fn last_two(stretches: &mut VecDeque<Stretch>) -> Option<[&mut Stretch; 2]> {
    let mut from_the_end = stretches.iter_mut().rev();
    let last = from_the_end.next()?;
    Some([from_the_end.next()?, last])
}

struct Job {
    at: GuestOffset,
    len: usize,
    buffer: AlignedBuf,
    answer: SyncSender<(AlignedBuf, Result<(), Error>)>,
}

/// A stretch that was asked for and not yet delivered.
enum Expected {
    Zero(Stretch),
    Data(Stretch, Receiver<(AlignedBuf, Result<(), Error>)>),
}

/// Does jobs until there are no more.
fn serve(chain: &Chain, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut job) = job else { return };
        let result = chain.read(job.at, &mut job.buffer[..job.len]);
        // Nobody listens after an error: then the result is of no use.
        let _ = job.answer.send((job.buffer, result));
    }
}

/// Keeps the threads busy and hands over what they read, in order.
fn deliver(
    jobs: &Sender<Job>,
    mut stretches: Stretches<'_>,
    each: &mut impl FnMut(GuestOffset, Piece<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let gone = || Error::io("reading ahead")(std::io::Error::other("the reading threads are gone"));
    let mut expected: VecDeque<Expected> = VecDeque::new();
    let mut buffers: Vec<AlignedBuf> =
        (0..IN_FLIGHT).map(|_| AlignedBuf::zeroed(len(stretches.chunk))).collect();
    loop {
        while expected.len() < 2 * IN_FLIGHT
            && let Some(buffer) = buffers.pop()
        {
            let Some(stretch) = stretches.next()? else {
                buffers.push(buffer);
                break;
            };
            expected.push_back(if stretch.data {
                let (answer, result) = sync_channel(1);
                jobs.send(Job { at: stretch.at, len: len(stretch.len), buffer, answer })
                    .map_err(|_| gone())?;
                Expected::Data(stretch, result)
            } else {
                buffers.push(buffer);
                Expected::Zero(stretch)
            });
        }
        match expected.pop_front() {
            None => return Ok(()),
            Some(Expected::Zero(stretch)) => each(stretch.at, Piece::Zero(Bytes(stretch.len)))?,
            Some(Expected::Data(stretch, result)) => {
                let (buffer, result) = result.recv().map_err(|_| gone())?;
                result?;
                each(stretch.at, Piece::Data(&buffer[..len(stretch.len)]))?;
                buffers.push(buffer);
            }
        }
    }
}
