//! Writing: sectors that are written in part are read first, then piece by piece a place, the data, and the note of it.
//!
//! The order is D7's: the data have landed, then the sectors are owned in memory and noted in `pending`, then the
//! request is answered. A kill in between leaves data that nobody points at, or a note of what is there. Which image a piece
//! goes to is decided when it gets its place, and stays so until it is noted.

use super::deciding::{To, goes_to};
use super::fetch::{Fetch, gather};
use super::task::{Edge, Kind, Poll, Stage, Task, by_block, index};
use super::{Disk, Waiting};
use crate::crash;
use crate::serve::work::Trouble;
use catena_blockio::{AlignedBuf, Completion, Engine, Op};
use catena_chain::{Known, Noted, Plan, Slot};
use catena_types::{BlockIndex, FileOffset, SECTOR_BYTES, SectorSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

const SECTOR: usize = 512;
/// The most zeros that are written at once, in sectors.
pub(super) const ZEROS: usize = 2048;

/// Neighbouring sectors of one block that are to be written.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) block: BlockIndex,
    pub(super) sectors: Range<usize>,
    /// Where its bytes stand in the request's buffer; `None` for zeros.
    pub(super) source: Option<usize>,
    pub(super) state: PieceState,
    /// The image that it goes to, once it has a place.
    pub(super) to: Option<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceState {
    /// It needs a place.
    Waiting,
    /// Its data are on their way.
    Landing,
    /// They are there and not noted.
    Landed,
}

impl Piece {
    pub(super) const fn new(block: BlockIndex, sectors: Range<usize>, source: Option<usize>) -> Self {
        Self { block, sectors, source, state: PieceState::Waiting, to: None }
    }
}

/// What must be done to an image before more of it is used; see [`Placed::first`](catena_chain::Placed).
pub(super) struct Growth {
    block: BlockIndex,
    plan: Arc<Plan>,
    waiters: Vec<usize>,
    pub(super) state: GrowthState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrowthState {
    UnderWay,
    /// It failed, and is tried again by whoever needs it next.
    Failed,
}

impl Growth {
    /// Whether the request is one of those.
    pub(super) fn is_waited_for_by(&self, index: usize) -> bool {
        self.waiters.contains(&index)
    }

    /// Those who wait for it.
    pub(super) fn into_waiters(self) -> Vec<usize> {
        self.waiters
    }
}

impl Task {
    /// Makes the edges and pieces of a write from its bytes.
    pub(super) fn lay_out_write(&mut self, data: AlignedBuf) {
        let whole = self.sectors();
        let (start, end) = (whole.start * SECTOR_BYTES, whole.end * SECTOR_BYTES);
        let before = index(self.range.start - start);
        let length = index(self.range.end - self.range.start);
        let aligned = (start, end) == (self.range.start, self.range.end);
        self.buf = Some(if aligned {
            data
        } else {
            let mut buf = AlignedBuf::zeroed(index(end - start));
            buf[before..before + length].copy_from_slice(&data[..length]);
            buf
        });
        self.edges.extend(edges(&self.range, |sector| index((sector - whole.start) * SECTOR_BYTES)));
        let mut source = 0;
        for (block, sectors) in by_block(start..end) {
            let length = sectors.len() * SECTOR;
            self.pieces.push_back(Piece::new(block, sectors, Some(source)));
            source += length;
        }
    }
}

/// The sectors that a range touches and does not cover; `to` says where a sector stands in the request's buffer.
pub(super) fn edges(range: &Range<u64>, to: impl Fn(u64) -> usize) -> Vec<Edge> {
    let (first, last) = (range.start / SECTOR_BYTES, range.end.saturating_sub(1) / SECTOR_BYTES);
    let mut edges = Vec::new();
    for sector in if first == last { vec![first] } else { vec![first, last] } {
        let start = sector * SECTOR_BYTES;
        let fresh =
            index(range.start.saturating_sub(start))..index(range.end.min(start + SECTOR_BYTES) - start);
        if fresh != (0..SECTOR) {
            edges.push(Edge { sector, to: to(sector), fresh });
        }
    }
    edges
}

impl Disk {
    /// Reads what stands around the bytes of sectors that are written in part.
    pub(super) fn fill_edges(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        while let Some(edge) = task.edges.front() {
            let start = edge.sector * SECTOR_BYTES;
            if task.fetch.is_none() {
                task.fetch = Some(Fetch::of(start..start + SECTOR_BYTES));
            }
            let poll = self.fetch(index, task, engine);
            if poll != Poll::Ready {
                return poll;
            }
            let (Some(edge), Some(fetch), Some(buf)) =
                (task.edges.pop_front(), task.fetch.take(), &mut task.buf)
            else {
                return Poll::Failed(Trouble::Io);
            };
            let mut old = [0; SECTOR];
            gather(fetch.into_segments(), &mut old);
            let sector = &mut buf[edge.to..edge.to + SECTOR];
            sector[..edge.fresh.start].copy_from_slice(&old[..edge.fresh.start]);
            sector[edge.fresh.end..].copy_from_slice(&old[edge.fresh.end..]);
        }
        Poll::Ready
    }

    /// Writes the pieces, one after the other.
    pub(super) fn write_pieces(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        while let Some(piece) = task.pieces.front().cloned() {
            if let Some(trouble) = task.trouble.take() {
                return Poll::Failed(trouble);
            }
            let poll = match piece.state {
                _ if self.failed.is_some() => Poll::Failed(Trouble::Io),
                PieceState::Waiting => self.place_piece(index, task, &piece, engine),
                PieceState::Landing => Poll::Pending,
                PieceState::Landed => self.note_piece(index, task, &piece, engine),
            };
            match poll {
                Poll::Ready => drop(task.pieces.pop_front()),
                other => return other,
            }
        }
        Poll::Ready
    }

    /// Makes sure that what a written image owns of the block is in memory: nothing may be noted before.
    pub(super) fn know(
        &mut self,
        index: usize,
        task: &mut Task,
        slot: Slot,
        block: BlockIndex,
        engine: &mut dyn Engine,
    ) -> Result<Known, Poll> {
        if let Some(poll) = task.learns() {
            return Err(poll);
        }
        let Some(image) = self.layers.written(slot) else {
            return Err(Poll::Failed(Trouble::ReadOnly));
        };
        match image.layer.known(block) {
            Ok(Known::At(at)) => {
                self.learn(index, task, slot, block, at, engine);
                Err(Poll::Pending)
            }
            Ok(known) => Ok(known),
            Err(error) => {
                self.note_failure(&format!("an image that is written cannot be read: {error}"));
                Err(Poll::Failed(Trouble::Io))
            }
        }
    }

    fn place_piece(&mut self, index: usize, task: &mut Task, piece: &Piece, engine: &mut dyn Engine) -> Poll {
        let placed = self.route(index, task, piece, engine).and_then(|(slot, piece)| {
            Ok((slot, self.place_block(index, task, slot, piece.block, engine)?, piece))
        });
        match placed {
            Ok((slot, at, piece)) => {
                let at = FileOffset(at.0 + piece.sectors.start as u64 * SECTOR_BYTES);
                self.send_piece(index, task, &piece, (slot, at), engine)
            }
            Err(poll) => poll,
        }
    }

    /// Which image the piece goes to: the leaf, or the one that it is being emptied into. A piece of which only a part goes there is
    /// cut, and the rest comes after it.
    fn route(
        &mut self,
        index: usize,
        task: &mut Task,
        piece: &Piece,
        engine: &mut dyn Engine,
    ) -> Result<(Slot, Piece), Poll> {
        let Some(leaf) = self.layers.leaf_slot() else { return Err(Poll::Failed(Trouble::ReadOnly)) };
        let mut piece = piece.clone();
        let Some(into) = self.writes_into() else { return Ok((leaf, piece)) };
        let known = self.know(index, task, leaf, piece.block, engine)?;
        let (to, length) = goes_to(&known, &piece.sectors);
        if length < piece.sectors.len() {
            let middle = piece.sectors.start + length;
            let source = piece.source.map(|source| source + length * SECTOR);
            let rest = Piece::new(piece.block, middle..piece.sectors.end, source);
            piece.sectors.end = middle;
            task.pieces[0] = piece.clone();
            task.pieces.insert(1, rest);
        }
        if to == To::Into {
            return Ok((into, piece));
        }
        self.moving.iter_mut().for_each(|moving| moving.window.disturb(piece.block, piece.sectors.clone()));
        Ok((leaf, piece))
    }

    /// A place for the block in an image that is written: where its first sector lies, once it may be written to.
    pub(super) fn place_block(
        &mut self,
        index: usize,
        task: &mut Task,
        slot: Slot,
        block: BlockIndex,
        engine: &mut dyn Engine,
    ) -> Result<FileOffset, Poll> {
        self.know(index, task, slot, block, engine)?;
        let Some((image, target)) = self.layers.written(slot).zip(self.targets.get_mut(slot)) else {
            return Err(Poll::Failed(Trouble::ReadOnly));
        };
        let placed_before = image.layer.locate(block).is_some();
        if let Some(growth) = &mut target.growth
            && (!placed_before || growth.block == block)
        {
            growth.waiters.push(index);
            if growth.state == GrowthState::Failed {
                self.run_growth(slot, engine);
            }
            return Err(Poll::Pending);
        }
        let placed = match image.layer.place(block) {
            Ok(placed) => placed,
            Err(error) => {
                if task.kind == Kind::Move && is_full(error.raw_os_error()) {
                    self.moving.iter_mut().for_each(|moving| moving.window.finds_no_room());
                }
                return Err(self.on_write_error(index, task, error.raw_os_error(), &error.to_string()));
            }
        };
        if !placed_before {
            target.new_blocks.insert(block);
        }
        if !placed.first.is_empty() {
            let plan = Arc::new(placed.first);
            target.growth = Some(Growth { block, plan, waiters: vec![index], state: GrowthState::Failed });
            self.run_growth(slot, engine);
            return Err(Poll::Pending);
        }
        Ok(placed.at)
    }

    fn send_piece(
        &mut self,
        index: usize,
        task: &mut Task,
        piece: &Piece,
        (slot, at): (Slot, FileOffset),
        engine: &mut dyn Engine,
    ) -> Poll {
        let length = piece.sectors.len() * SECTOR;
        let buf = match piece.source {
            Some(_) => task.buf.take(),
            None => Some(task.zeros.take().unwrap_or_else(|| AlignedBuf::zeroed(ZEROS * SECTOR))),
        };
        let (Some(buf), Some(image)) = (buf, self.layers.written(slot)) else {
            return Poll::Failed(Trouble::Io);
        };
        let start = piece.source.unwrap_or(0);
        let op = Op::Write { container: image.container.clone(), at, buf, range: start..start + length };
        if let Some(piece) = task.pieces.front_mut() {
            (piece.state, piece.to) = (PieceState::Landing, Some(slot));
        }
        // Until the request has ended, the image stays one that is written.
        self.enter_epoch(task);
        self.start(Waiting::Piece { task: index }, op, engine);
        Poll::Pending
    }

    /// The data of a piece have landed, or not.
    pub(super) fn landed(&mut self, waiter: usize, completion: Completion) {
        let Some(mut task) = self.tasks.take(waiter) else { return };
        let Some(piece) = task.pieces.front_mut() else { return self.tasks.put_back(waiter, task) };
        match piece.source {
            Some(_) => task.buf = completion.buf,
            None => task.zeros = completion.buf,
        }
        match completion.result {
            Ok(()) => {
                piece.state = PieceState::Landed;
                if let Some(target) = piece.to.and_then(|slot| self.targets.get_mut(slot)) {
                    target.commits.unflushed = true;
                }
                self.went_well(&mut task);
            }
            Err(error) => {
                piece.state = PieceState::Waiting;
                let poll = self.on_write_error(waiter, &mut task, error.raw_os_error(), &error.to_string());
                if let Poll::Failed(trouble) = poll {
                    task.trouble = Some(trouble);
                }
            }
        }
        self.tasks.put_back(waiter, task);
        self.ready.push_back(waiter);
    }

    /// Notes what is new of a piece whose data are there (D7).
    fn note_piece(&mut self, index: usize, task: &mut Task, piece: &Piece, engine: &mut dyn Engine) -> Poll {
        let Some(slot) = piece.to else { return Poll::Failed(Trouble::Io) };
        let known = match self.know(index, task, slot, piece.block, engine) {
            Ok(known) => known,
            Err(poll) => return poll,
        };
        let written = SectorSet::of(piece.sectors.clone());
        let sectors = match known {
            Known::Everything => return Poll::Ready,
            Known::Sectors(set) => written.minus(&set),
            Known::Nothing | Known::At(_) => written,
        };
        if sectors.is_empty() {
            return Poll::Ready;
        }
        let (image, target) = (self.layers.written(slot), self.targets.get_mut(slot));
        let Some(((image, target), pending)) = image.zip(target).zip(self.pending.as_mut()) else {
            return Poll::Failed(Trouble::ReadOnly);
        };
        if !pending.has_room(target.image, piece.block) {
            self.room.push(index);
            return Poll::Pending;
        }
        let new = target.new_blocks.contains(&piece.block);
        let place = image.layer.locate(piece.block).map_or(FileOffset(0), |extent| extent.at);
        let noted = Noted { block: piece.block, place, new, sectors };
        crash::SERVE_LANDED.pass();
        if let Err(error) = image.layer.wrote(piece.block, &noted.sectors) {
            self.note_failure(&format!("an image takes no change: {error}"));
            return Poll::Failed(Trouble::Io);
        }
        pending.note(target.image, &noted);
        crash::SERVE_NOTED.pass();
        target.commits.noted();
        self.layers.own(slot, piece.block, piece.sectors.clone());
        Poll::Ready
    }

    /// What comes of a write that failed: it waits for space, or fails.
    pub(super) fn on_write_error(
        &mut self,
        index: usize,
        task: &mut Task,
        errno: Option<i32>,
        message: &str,
    ) -> Poll {
        self.watch_room();
        if task.kind == Kind::Move {
            return Poll::Failed(if is_full(errno) { Trouble::NoSpace } else { Trouble::Io });
        }
        if !is_full(errno) {
            self.note_failure(&format!("writing failed: {message}"));
            self.went_well(task);
            return Poll::Failed(Trouble::Io);
        }
        if !self.waits_when_full && !self.awaits_device() {
            return Poll::Failed(Trouble::NoSpace);
        }
        self.park(index, task);
        Poll::Pending
    }

    /// Does what an image needs before more of it is used.
    pub(super) fn run_growth(&mut self, slot: Slot, engine: &mut dyn Engine) {
        let growth = self.targets.get_mut(slot).and_then(|target| target.growth.as_mut());
        let Some((growth, image)) = growth.zip(self.layers.written(slot)) else { return };
        growth.state = GrowthState::UnderWay;
        let (plan, container) = (growth.plan.clone(), image.container.clone());
        self.start(Waiting::Growth { slot }, Op::Call(Box::new(move || plan.run(&*container))), engine);
    }

    /// It is done, or not.
    pub(super) fn grown(&mut self, slot: Slot, result: io::Result<()>) {
        let Some(target) = self.targets.get_mut(slot) else { return };
        let Some(mut growth) = target.growth.take() else { return };
        let waiters = std::mem::take(&mut growth.waiters);
        let Err(error) = result else { return self.ready.extend(waiters) };
        growth.state = GrowthState::Failed;
        target.growth = Some(growth);
        for waiter in waiters {
            let Some(mut task) = self.tasks.take(waiter) else { continue };
            let poll = self.on_write_error(waiter, &mut task, error.raw_os_error(), &error.to_string());
            if let Poll::Failed(trouble) = poll {
                task.trouble = Some(trouble);
                self.ready.push_back(waiter);
            }
            self.tasks.put_back(waiter, task);
        }
    }

    /// Reads for the edges of a request that has any, then writes its pieces.
    pub(super) fn step_write(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        if task.stage == Stage::Edges {
            match self.fill_edges(index, task, engine) {
                Poll::Ready => task.stage = Stage::Pieces,
                other => return other,
            }
        }
        self.write_pieces(index, task, engine)
    }
}

/// Whether the storage said that it is full.
pub(super) fn is_full(errno: Option<i32>) -> bool {
    use nix::errno::Errno;
    errno.is_some_and(|errno| matches!(Errno::from_raw(errno), Errno::ENOSPC | Errno::EDQUOT))
}
