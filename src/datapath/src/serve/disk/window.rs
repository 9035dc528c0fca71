//! One window of a leaf merge: some sectors on their way from the leaf L to the image P below it.
//!
//! ```text
//!   Picking ──▶ [lock] ──▶ Placing ──▶ Copying ──▶ Noting ──▶ Storing ──▶ [lock] ──▶ Clearing
//!   which L     first,     in P        its data    its bits   P durable   else, now  L's bits durably clear
//!   owns        if held                in P        in memory
//! ```
//!
//! It is a request among the others, of which nobody hears. At first a window disturbs nobody: what a guest writes there meanwhile
//! stays in L, for a later window. When that has cost as much as it may, writes to the window are held back until it is through.
//! Between any two stages before the last it can be dropped: P then holds copies that L hides.

use super::deciding::{may_be_copied, may_be_disturbed, may_be_given_up};
use super::locks::Access;
use super::moving::MoveStage;
use super::task::{Poll, Stage, Step, Task};
use super::write::is_full;
use super::{Disk, Waiting};
use crate::serve::work::{Outcome, Trouble};
use catena_blockio::{AlignedBuf, Completion, Container, Engine, Op};
use catena_chain::{Extent, Known, Slot};
use catena_types::{BLOCK_SECTORS, BlockIndex, FileOffset, SECTOR_BYTES, SectorSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Blocks that are counted in one turn, and bitmaps that are read at once for that.
const COUNTED: usize = 4096;
const LOOKED_AT: usize = 32;

/// Sectors on their way.
#[derive(Default)]
pub(super) struct Window {
    stage: WindowStage,
    /// Its blocks, until it is known what the leaf owns of them.
    picked: Vec<BlockIndex>,
    parts: Vec<Part>,
    /// Writes are held back from the start.
    holds: bool,
    /// Parts that have got their place.
    placed: usize,
    /// The image below has none for the next.
    no_room: bool,
    copied: Option<io::Result<()>>,
}

/// What of one block.
struct Part {
    block: BlockIndex,
    /// What is copied.
    sectors: SectorSet,
    /// What a guest has written to the leaf since.
    written: SectorSet,
    to: FileOffset,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum WindowStage {
    #[default]
    Picking,
    Locking,
    Placing,
    Copying,
    Noting,
    Storing,
    Stopping,
    Clearing,
}

/// Bytes from one place to another.
struct Copy {
    from: FileOffset,
    to: FileOffset,
    length: usize,
}

impl Window {
    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.sectors.count() as u64 * SECTOR_BYTES).sum()
    }

    /// The container of the image below is too small.
    pub(super) const fn finds_no_room(&mut self) {
        self.no_room = true;
    }

    /// Whether it is.
    pub(super) const fn found_no_room(&self) -> bool {
        self.no_room
    }

    /// A guest writes this to the leaf, now or in a moment.
    pub(super) fn disturb(&mut self, block: BlockIndex, sectors: Range<usize>) {
        if let Some(part) = self.parts.iter_mut().find(|part| part.block == block) {
            part.written.insert(sectors);
        }
    }
}

impl Disk {
    /// Moves the merge's own request on.
    pub(super) fn step_move(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Step {
        let poll = match (task.learns(), task.trouble.take()) {
            (Some(Poll::Pending), trouble) => {
                task.trouble = trouble;
                Poll::Pending
            }
            (_, Some(trouble)) => Poll::Failed(trouble),
            (Some(failed), None) => failed,
            // It stands on a list of those that wait, and must not end before it is taken from there.
            (None, None) if task.awaits > 0 => Poll::Pending,
            (None, None) => self.step_stages(index, task, engine),
        };
        match poll {
            Poll::Pending => Step::Wait,
            Poll::Ready => Step::End(Outcome::Done),
            Poll::Failed(trouble) => {
                self.move_fails(trouble == Trouble::NoSpace);
                Step::End(Outcome::Failed(trouble))
            }
        }
    }

    fn step_stages(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        loop {
            let Some(moving) = &self.moving else { return Poll::Ready };
            let (leaf, into, stage) = (moving.leaf, moving.into, moving.window.stage);
            if let MoveStage::Surveying(_) = moving.stage {
                return self.count_leaf(index, task, leaf, engine);
            }
            if self.move_is_ending() && self.may_drop_window(index, into, stage) {
                return Poll::Ready;
            }
            let next = match stage {
                WindowStage::Picking => self.pick(index, task, leaf, engine),
                WindowStage::Locking if self.locks.has(index) => Ok(self.locked_window()),
                WindowStage::Placing => self.place_window(index, task, into, engine),
                WindowStage::Copying => self.take_copy(into),
                WindowStage::Noting => self.note_window(index, task, into, engine),
                WindowStage::Storing if task.durable => Ok(self.stored_window(index, into)),
                WindowStage::Stopping if self.locks.has(index) => self.clear_window(index, task, leaf),
                WindowStage::Clearing if task.given_up => return self.moved_window(),
                WindowStage::Locking
                | WindowStage::Storing
                | WindowStage::Stopping
                | WindowStage::Clearing => Err(Poll::Pending),
            };
            match (next, &mut self.moving) {
                (Ok(next), Some(moving)) => moving.window.stage = next,
                (Ok(_), None) => return Poll::Ready,
                (Err(poll), _) => return poll,
            }
        }
    }

    /// Whether nobody has the request on a list of those that wait, and nothing of it is on its way.
    fn may_drop_window(&self, index: usize, into: Slot, stage: WindowStage) -> bool {
        match stage {
            WindowStage::Picking
            | WindowStage::Locking
            | WindowStage::Noting
            | WindowStage::Storing
            | WindowStage::Stopping => true,
            WindowStage::Placing => {
                let growth = self.targets.get(into).and_then(|target| target.growth.as_ref());
                growth.is_none_or(|growth| !growth.is_waited_for_by(index))
            }
            WindowStage::Copying | WindowStage::Clearing => false,
        }
    }

    /// Counts what the leaf owns. First all of that is made durable, and what a predecessor that was killed had cleared (D2).
    fn count_leaf(&mut self, index: usize, task: &mut Task, leaf: Slot, engine: &mut dyn Engine) -> Poll {
        match task.stage {
            Stage::Start => {
                task.stage = Stage::Durable;
                self.targets.get_mut(leaf).into_iter().for_each(|target| target.commits.unflushed = true);
                self.wait_for(leaf, index, task);
                return Poll::Pending;
            }
            Stage::Durable if !task.durable => return Poll::Pending,
            _ => task.stage = Stage::Pieces,
        }
        let Some(MoveStage::Surveying(mut counted)) = self.moving.as_ref().map(|moving| moving.stage) else {
            return Poll::Ready;
        };
        let (mut at, mut looked_at) = (counted, 0);
        for _ in 0..COUNTED {
            if self.move_is_ending() {
                return Poll::Ready;
            }
            let Some((image, moving)) = self.layers.written(leaf).zip(self.moving.as_mut()) else {
                return Poll::Failed(Trouble::Io);
            };
            let Some(block) = image.layer.next_block(at).filter(|_| looked_at < LOOKED_AT) else { break };
            at = block.next();
            match image.layer.known(block) {
                Ok(Known::At(place)) => {
                    looked_at += 1;
                    self.learn(index, task, leaf, block, place, engine);
                }
                Ok(known) if looked_at == 0 => {
                    moving.left.add(block, owned(&known).count());
                    counted = at;
                }
                Ok(_) => {}
                Err(error) => return self.cannot_move(&error.to_string()),
            }
        }
        let over = looked_at == 0
            && self.layers.written(leaf).is_none_or(|image| image.layer.next_block(at).is_none());
        let Some(moving) = &mut self.moving else { return Poll::Ready };
        moving.stage = MoveStage::Surveying(counted);
        if over {
            moving.stage = MoveStage::Moving;
            moving.owned = moving.left.bytes();
            return Poll::Ready;
        }
        if looked_at == 0 {
            // Others have their turn first.
            moving.wake = Some(Instant::now());
        }
        Poll::Pending
    }

    fn cannot_move(&self, message: &str) -> Poll {
        self.note_failure(&format!("a leaf merge: {message}"));
        Poll::Failed(Trouble::Io)
    }

    /// Finds out what is to be moved next, and whether writes are held back for it.
    fn pick(
        &mut self,
        index: usize,
        task: &mut Task,
        leaf: Slot,
        engine: &mut dyn Engine,
    ) -> Result<WindowStage, Poll> {
        let Some(moving) = &mut self.moving else { return Err(Poll::Ready) };
        if moving.window.picked.is_empty() {
            moving.window.picked = moving.left.window();
        }
        let mut owns = Vec::new();
        for block in moving.window.picked.clone() {
            owns.push((block, owned(&self.know(index, task, leaf, block, engine)?)));
        }
        let Some(moving) = &mut self.moving else { return Err(Poll::Ready) };
        let bytes = owns.iter().map(|(_, owned)| owned.count() as u64 * SECTOR_BYTES).sum();
        let mut holds = !may_be_disturbed(moving.copied, bytes, moving.left.bytes(), moving.owned);
        let parts = |holds: bool| -> Vec<Part> {
            let part = |(block, owned): &(BlockIndex, SectorSet)| {
                let sectors = may_be_copied(owned, &self.locks.changing(*block), holds);
                Part { block: *block, sectors, written: SectorSet::empty(), to: FileOffset(0) }
            };
            owns.iter().map(part).filter(|part| !part.sectors.is_empty()).collect()
        };
        moving.window.parts = parts(holds);
        if moving.window.parts.is_empty() {
            // All of it is just being written: its turn comes after that.
            holds = true;
            moving.window.parts = parts(holds);
        }
        moving.window.holds = holds;
        if moving.window.parts.is_empty() {
            return Err(Poll::Ready);
        }
        if holds {
            self.lock_window(index);
            return Ok(WindowStage::Locking);
        }
        Ok(WindowStage::Placing)
    }

    /// Asks for the blocks of the window. Whoever reads or writes there ends first.
    fn lock_window(&mut self, index: usize) {
        let Some(moving) = &self.moving else { return };
        let first = |block: BlockIndex| u64::from(block.0) * BLOCK_SECTORS as u64;
        let parts = moving.window.parts.iter();
        let blocks = parts.map(|part| first(part.block)..first(part.block.next())).collect();
        self.locks.acquire_all(index, blocks, Access::Exclusive);
    }

    /// Whoever was before the window has ended, and what he wrote is copied with the rest: from here on all of it gets through, so the
    /// merge ends.
    fn locked_window(&mut self) -> WindowStage {
        for part in self.moving.iter_mut().flat_map(|moving| &mut moving.window.parts) {
            part.written = SectorSet::empty();
        }
        WindowStage::Placing
    }

    /// Finds places in the image below, then begins to copy.
    fn place_window(
        &mut self,
        index: usize,
        task: &mut Task,
        into: Slot,
        engine: &mut dyn Engine,
    ) -> Result<WindowStage, Poll> {
        while let Some((number, block)) = self.moving.as_ref().and_then(|moving| {
            let number = moving.window.placed;
            moving.window.parts.get(number).map(|part| (number, part.block))
        }) {
            let to = self.place_block(index, task, into, block, engine)?;
            let Some(moving) = &mut self.moving else { return Err(Poll::Ready) };
            moving.window.parts[number].to = to;
            moving.window.placed += 1;
        }
        let Some(moving) = &mut self.moving else { return Err(Poll::Ready) };
        moving.copied += moving.window.bytes();
        let mut copies = Vec::new();
        for part in &moving.window.parts {
            let Some(from) = self.layers.locate(moving.leaf, part.block) else {
                let message = format!("block {} has no place in the leaf", part.block.0);
                return Err(self.cannot_move(&message));
            };
            copies_of(&part.sectors, from, part.to, &mut copies);
        }
        let (from, to) = (self.layers.container(moving.leaf), self.layers.container(into));
        let Some((from, to)) = from.cloned().zip(to.cloned()) else { return Err(Poll::Failed(Trouble::Io)) };
        let run = move || copies.iter().try_for_each(|copy| copy.run(&*from, &to));
        self.start(Waiting::Copied { task: index }, Op::Call(Box::new(run)), engine);
        Ok(WindowStage::Copying)
    }

    /// The data of the window are in the image below, or could not be brought there.
    pub(super) fn copied(&mut self, index: usize, completion: Completion) {
        if let Some(moving) = &mut self.moving {
            moving.window.copied = Some(completion.result);
        }
        self.ready.push_back(index);
    }

    fn take_copy(&mut self, into: Slot) -> Result<WindowStage, Poll> {
        let copied = self.moving.as_mut().and_then(|moving| moving.window.copied.take());
        let Some(result) = copied else { return Err(Poll::Pending) };
        self.targets.get_mut(into).into_iter().for_each(|target| target.commits.unflushed = true);
        match result {
            Ok(()) => Ok(WindowStage::Noting),
            Err(error) if is_full(error.raw_os_error()) => Err(Poll::Failed(Trouble::NoSpace)),
            Err(error) => Err(self.cannot_move(&error.to_string())),
        }
    }

    /// Notes the copies, for the next commit of the image below: a barrier behind the data, then its bits, then another barrier
    /// (D1). They are not acknowledged to anybody, so `pending` has nothing of them.
    fn note_window(
        &mut self,
        index: usize,
        task: &mut Task,
        into: Slot,
        engine: &mut dyn Engine,
    ) -> Result<WindowStage, Poll> {
        let blocks: Vec<BlockIndex> =
            self.moving.iter().flat_map(|moving| moving.window.parts.iter().map(|part| part.block)).collect();
        for (number, block) in blocks.into_iter().enumerate() {
            self.know(index, task, into, block, engine)?;
            let extent = self.layers.locate(into, block);
            let Some((image, moving)) = self.layers.written(into).zip(self.moving.as_ref()) else {
                return Err(Poll::Ready);
            };
            let part = &moving.window.parts[number];
            let mut new = may_be_given_up(&part.sectors, &part.written);
            new.remove(sectors_in(extent)..BLOCK_SECTORS);
            if let Err(error) = image.layer.wrote(block, &new) {
                return Err(self.cannot_move(&error.to_string()));
            }
            // There may have been a commit since the copy was made; another one stores this also where the window comes no further.
            self.targets.get_mut(into).into_iter().for_each(|target| target.commits.unflushed = true);
        }
        self.wait_for(into, index, task);
        Ok(WindowStage::Storing)
    }

    /// The copies are durable, with what points at them.
    fn stored_window(&mut self, index: usize, into: Slot) -> WindowStage {
        let Some(moving) = &self.moving else { return WindowStage::Stopping };
        if let Some(target) = self.targets.get_mut(into) {
            for part in &moving.window.parts {
                target.new_blocks.remove(&part.block);
            }
        }
        if !moving.window.holds {
            self.lock_window(index);
        }
        WindowStage::Stopping
    }

    /// Has the leaf give up what is durable below and was not written since (D1, D2: after a power cut one of the two has it). Nobody
    /// reads or writes there until that is durable: a later write goes to the image below, and must not be hidden by a bit of the
    /// leaf that comes back (D7).
    fn clear_window(&mut self, index: usize, task: &mut Task, leaf: Slot) -> Result<WindowStage, Poll> {
        let Some(moving) = &self.moving else { return Err(Poll::Ready) };
        let parts = moving.window.parts.iter();
        let sets = parts.map(|part| (part.block, may_be_given_up(&part.sectors, &part.written)));
        task.give_up = sets.filter(|(_, set)| !set.is_empty()).collect();
        if task.give_up.is_empty() {
            return Err(Poll::Ready);
        }
        self.wait_for_give_up(leaf, index, task);
        Ok(WindowStage::Clearing)
    }

    fn moved_window(&mut self) -> Poll {
        let Some(moving) = &mut self.moving else { return Poll::Ready };
        let mut sectors = 0;
        for part in &moving.window.parts {
            let gone = may_be_given_up(&part.sectors, &part.written).count();
            moving.left.take(part.block, gone);
            sectors += gone as u64;
        }
        moving.moved(sectors * SECTOR_BYTES, Instant::now());
        Poll::Ready
    }
}

/// What is known of a block, as a set.
fn owned(known: &Known) -> SectorSet {
    match known {
        Known::Everything => SectorSet::full(),
        Known::Sectors(set) => (**set).clone(),
        Known::Nothing | Known::At(_) => SectorSet::empty(),
    }
}

/// Sectors of a block that lie inside the disk.
fn sectors_in(extent: Option<Extent>) -> usize {
    extent.map_or(0, |extent| usize::try_from(u64::from(extent.len) / SECTOR_BYTES).unwrap_or(0))
}

/// Adds what is to be copied of one block.
fn copies_of(sectors: &SectorSet, from: Extent, to: FileOffset, copies: &mut Vec<Copy>) {
    let inside = sectors_in(Some(from));
    for run in sectors.runs().take_while(|run| run.start < inside) {
        let at = run.start as u64 * SECTOR_BYTES;
        let length = (run.end.min(inside) - run.start) * 512;
        copies.push(Copy { from: FileOffset(from.at.0 + at), to: FileOffset(to.0 + at), length });
    }
}

impl Copy {
    fn run(&self, from: &dyn Container, to: &Arc<dyn Container>) -> io::Result<()> {
        let mut buf = AlignedBuf::zeroed(self.length);
        from.read_at(&mut buf, self.from)?;
        to.write_at(&buf, self.to)
    }
}
