//! All there is, and what the guest and the storage do.

use super::super::super::deciding::{To, goes_to};
use super::super::super::locks::{Access, Locks};
use super::images::{Bits, Commit, Image, Wait};
use super::merge::{Merge, Stage};
use catena_chain::Known;
use catena_types::{BLOCK_SECTORS, BlockIndex, SectorSet};

/// How far it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Bounds {
    pub(super) writes: u8,
    pub(super) flushes: u8,
    pub(super) deaths: u8,
    /// Merges that are ended before they are over.
    pub(super) ends: u8,
    pub(super) merges: u8,
}

/// A rule that is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    None,
    /// D1: bits of P after its data.
    DataFirst,
    /// D1: bits are durable by the barrier of the next commit.
    NextBarrier,
    /// D1: bits of L are cleared when those of P are durable.
    StoredFirst,
    /// D2: what was cleared is punched when that is durable.
    ClearFirst,
    /// D3: bits that are written are of the image, not of the memory.
    BitsOfImage,
    /// D7: what P gets is noted before it is answered.
    Note,
    /// D7: until it is stored.
    NoteUntilStored,
    /// D7: nothing is noted of L of which bits are cleared.
    NothingNotedOfLeaf,
    /// D9: a flush covers both images.
    FlushBoth,
    /// What was written before a window has its lock is no newer than what it copies then.
    SinceTheLock,
    /// The leaf takes over nothing, from the start.
    LeafTakesNothing,
    /// Writes that were under way at the start have ended before the leaf's sectors are counted.
    Settle,
    /// What is just being written is not copied.
    NotWhatIsBeingWritten,
    /// What was written since is not given up.
    NotWhatWasWritten,
    /// Nobody writes there while the leaf's bits are cleared.
    LockToClear,
    /// In the end writes to the window are held back: the merge ends.
    HoldBack,
    /// D14: what is on its way to P is stored before P is given up.
    LeaveStored,
}

impl Dropped {
    pub(super) const ALL: [Self; 17] = [
        Self::DataFirst,
        Self::NextBarrier,
        Self::StoredFirst,
        Self::ClearFirst,
        Self::BitsOfImage,
        Self::Note,
        Self::NoteUntilStored,
        Self::NothingNotedOfLeaf,
        Self::FlushBoth,
        Self::SinceTheLock,
        Self::LeafTakesNothing,
        Self::Settle,
        Self::NotWhatIsBeingWritten,
        Self::NotWhatWasWritten,
        Self::LockToClear,
        Self::HoldBack,
        Self::LeaveStored,
    ];
}

pub(super) const LEAF: usize = 0;
pub(super) const INTO: usize = 1;
/// What nobody owns reads as this.
const BELOW: u8 = 0;
/// What the leaf owns at first; 2 likewise.
const OLD: u8 = 1;
/// The first write.
const FIRST: u8 = 3;
/// What stands where nobody has written, where a write was copied while it landed, and where space was given back.
const GARBAGE: u8 = 13;
pub(super) const TORN: u8 = 14;
pub(super) const PUNCHED: u8 = 15;
/// The block.
pub(super) const BLOCK: BlockIndex = BlockIndex(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum At {
    /// It waits for its lock, or has just got it.
    Start,
    /// Its data are on their way to this image.
    Landing(usize),
}

/// A write under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Task {
    pub(super) value: u8,
    pub(super) sector: usize,
    pub(super) at: At,
}

/// A flush under way: what was answered before it, and how far each image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flush {
    before: [u8; 2],
    pub(super) waits: [Wait; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) left: Bounds,
    pub(super) images: [Image; 2],
    pub(super) tasks: Vec<Task>,
    pub(super) locks: Locks,
    next_value: u8,
    pub(super) flush: Option<Flush>,
    /// The job is open.
    pub(super) merge: Option<Merge>,
    /// The catalog says that it is over: the leaf is not in the chain any more.
    pub(super) completed: bool,
    /// What was answered last, and what may be found after a power cut.
    now: [u8; 2],
    allowed: [u16; 2],
}

/// Steps that can be taken, by name; `Err` is a fault.
pub(super) type Steps = super::explore::Steps<State>;

/// Our two sectors among all.
pub(super) fn set_of(bits: Bits) -> SectorSet {
    let mut set = SectorSet::empty();
    (0..2).filter(|&sector| bits[sector]).for_each(|sector| set.insert(sector..sector + 1));
    set
}

pub(super) fn bits_of(set: &SectorSet) -> Bits {
    [set.contains(0), set.contains(1)]
}

impl State {
    /// A leaf that owns these sectors, durably, on an image that owns none.
    pub(super) fn new(owned: Bits, left: Bounds) -> Self {
        let of_leaf = [0, 1].map(|sector| if owned[usize::from(sector)] { OLD + sector } else { GARBAGE });
        let now = [0, 1].map(|sector| if owned[usize::from(sector)] { OLD + sector } else { BELOW });
        Self {
            left,
            images: [Image::new(of_leaf, owned), Image::new([GARBAGE; 2], [false; 2])],
            tasks: Vec::new(),
            locks: Locks::default(),
            next_value: FIRST,
            flush: None,
            merge: None,
            completed: false,
            now,
            allowed: now.map(|value| 1 << value),
        }
    }

    pub(super) fn offer(&self, steps: &mut Steps, name: String, step: impl FnOnce(&mut Self)) {
        self.venture(steps, name, |next| {
            step(next);
            Ok(())
        });
    }

    pub(super) fn venture(
        &self,
        steps: &mut Steps,
        name: String,
        step: impl FnOnce(&mut Self) -> Result<(), String>,
    ) {
        let mut next = self.clone();
        let outcome = step(&mut next);
        steps.push((name, outcome.map(|()| next)));
    }

    /// Whether writes go to P, where the leaf does not own.
    pub(super) fn writes_into(&self) -> bool {
        self.merge.as_ref().is_some_and(|merge| merge.stage != Stage::Leaving)
    }

    /// The images that are written.
    pub(super) fn is_target(&self, image: usize) -> bool {
        match image {
            LEAF => !self.completed,
            _ => self.completed || self.merge.is_some(),
        }
    }

    /// Everything that can happen next.
    pub(super) fn next(&self, dropped: Dropped) -> Steps {
        let mut steps = Steps::new();
        if self.left.writes > 0 && self.tasks.len() < 2 {
            for sector in 0..2 {
                self.offer(&mut steps, format!("write {} to {sector}", self.next_value), |next| {
                    next.comes(sector);
                });
            }
        }
        for (index, task) in self.tasks.iter().enumerate() {
            let Task { value, at, .. } = *task;
            match at {
                At::Start if self.locks.has(usize::from(value)) => {
                    self.offer(&mut steps, format!("{value} gets its place"), |next| {
                        next.route(index, dropped);
                    });
                }
                At::Start => {}
                At::Landing(_) => {
                    self.offer(&mut steps, format!("{value} is answered"), |next| {
                        next.answer(index, dropped);
                    });
                }
            }
        }
        if self.flush.is_none() && self.left.flushes > 0 {
            self.offer(&mut steps, "flush".to_owned(), |next| next.begin_flush(dropped));
        }
        for image in [LEAF, INTO].into_iter().filter(|&image| self.is_target(image)) {
            self.commit_steps(image, dropped, &mut steps);
        }
        self.merge_steps(dropped, &mut steps);
        if self.left.deaths > 0 {
            self.venture(&mut steps, "kill".to_owned(), Self::die);
        }
        steps
    }

    fn comes(&mut self, sector: usize) {
        let value = self.next_value;
        self.left.writes -= 1;
        self.next_value += 1;
        self.allowed[sector] |= 1 << value;
        self.tasks.push(Task { value, sector, at: At::Start });
        let sectors = sector as u64..sector as u64 + 1;
        self.locks.acquire(usize::from(value), sectors, Access::Exclusive);
    }

    fn route(&mut self, index: usize, dropped: Dropped) {
        let sector = self.tasks[index].sector;
        let mut to = if self.completed { INTO } else { LEAF };
        if self.writes_into() && dropped != Dropped::LeafTakesNothing {
            let known = Known::Sectors(Box::new(set_of(self.images[LEAF].owns())));
            to = match goes_to(&known, &(sector..sector + 1)) {
                (To::Leaf, 1) => LEAF,
                (To::Into, 1) => INTO,
                other => unreachable!("{other:?} of one sector"),
            };
        }
        if let Some(merge) = self.merge.as_mut().filter(|_| to == LEAF) {
            merge.disturb(sector);
        }
        self.tasks[index].at = At::Landing(to);
    }

    /// Its data have landed.
    fn answer(&mut self, index: usize, dropped: Dropped) {
        let Task { value, sector, at: At::Landing(to) } = self.tasks.remove(index) else { return };
        self.images[to].data[sector].put(value);
        self.images[to].unflushed = true;
        self.images[to].wrote(sector, dropped != Dropped::Note);
        self.now[sector] = value;
        self.locks.release(usize::from(value), &mut Vec::new());
    }

    fn begin_flush(&mut self, dropped: Dropped) {
        self.left.flushes -= 1;
        let wait = |image: usize| match self.images[image].commit {
            _ if !self.is_target(image) => Wait::Over,
            _ if dropped == Dropped::FlushBoth && image == INTO => Wait::Over,
            // Nothing has come since it began.
            Some(_) if !self.images[image].unflushed => Wait::Running,
            _ => Wait::Next,
        };
        self.flush = Some(Flush { before: self.now, waits: [wait(LEAF), wait(INTO)] });
        self.end_flush();
    }

    /// Answers the flush, if it is over: what was answered before it is durable, or something newer.
    pub(super) fn end_flush(&mut self) {
        let Some(flush) = self.flush.take_if(|flush| flush.waits == [Wait::Over; 2]) else { return };
        for sector in 0..2 {
            let before = flush.before[sector];
            let newer = !0 << before.max(FIRST - 1) << 1;
            self.allowed[sector] &= newer | 1 << before;
        }
    }

    fn commit_steps(&self, image: usize, dropped: Dropped, steps: &mut Steps) {
        let name = ["L", "P"][image];
        match self.images[image].commit {
            Some(step) => {
                let what = if step == Commit::Barrier { "bits are written" } else { "commit ends" };
                self.offer(steps, format!("{name}'s {what}"), |next| {
                    if let Some([before, covered]) = next.images[image].step_commit(dropped) {
                        next.wake(image, Wait::Written, before);
                        next.wake(image, Wait::Running, covered);
                        next.end_flush();
                        next.is_durable(dropped);
                    }
                });
            }
            None if self.is_clearing(image) => {}
            None if self.is_waited_for(image) || self.images[image].has_notes() || self.is_hurried(image) => {
                self.offer(steps, format!("{name}'s commit begins"), |next| {
                    next.images[image].begin_commit(dropped);
                    next.wake(image, Wait::Next, Wait::Running);
                });
            }
            None => {}
        }
    }

    fn waits(&mut self, image: usize) -> impl Iterator<Item = &mut Wait> {
        let flush = self.flush.iter_mut().map(move |flush| &mut flush.waits[image]);
        flush.chain(self.merge.iter_mut().filter_map(move |merge| merge.wait_of(image)))
    }

    fn wake(&mut self, image: usize, from: Wait, to: Wait) {
        self.waits(image).filter(|wait| **wait == from).for_each(|wait| *wait = to);
    }

    pub(super) fn is_waited_for(&self, image: usize) -> bool {
        self.clone().waits(image).any(|wait| matches!(wait, Wait::Next | Wait::Written))
    }

    /// The process dies. Its successor stores what was answered, and goes on with the merge.
    fn die(&mut self) -> Result<(), String> {
        self.left.deaths -= 1;
        if (0..2).any(|image| !self.is_target(image) && self.images[image].is_pending()) {
            return Err("something is pending of an image that is not written any more".to_owned());
        }
        for image in [LEAF, INTO] {
            if self.is_target(image) {
                self.images[image].succeed();
            }
        }
        let tasks = std::mem::take(&mut self.tasks);
        (self.locks, self.flush) = (Locks::default(), None);
        self.merge = self.merge.take().map(|_| Merge::default());
        for sector in 0..2 {
            let found = self.read(sector);
            let new = tasks.iter().any(|task| task.sector == sector && task.value == found);
            if found != self.now[sector] && !new {
                return Err(format!("after a kill sector {sector} reads {found}, not {}", self.now[sector]));
            }
            self.now[sector] = found;
        }
        Ok(())
    }

    /// What a reader finds.
    pub(super) fn read(&self, sector: usize) -> u8 {
        let [leaf, into] = &self.images;
        if !self.completed && leaf.owns()[sector] {
            leaf.data[sector].now
        } else if into.owns()[sector] {
            into.data[sector].now
        } else {
            BELOW
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_at_rest(&self) -> bool {
        self.merge.is_none() && self.tasks.is_empty() && self.flush.is_none()
    }

    /// What is wrong with this state, if anything is.
    pub(super) fn fault(&self) -> Option<String> {
        for sector in 0..2 {
            let (found, now) = (self.read(sector), self.now[sector]);
            if found != now && !self.is_changing(sector) {
                return Some(format!("sector {sector} reads {found}, not {now}"));
            }
            let may = self.may_be_read(sector);
            let wrong = may & !self.allowed[sector];
            if wrong != 0 {
                let wrong = wrong.trailing_zeros();
                return Some(format!("sector {sector} may read {wrong} after a power cut"));
            }
        }
        None
    }

    /// Whether somebody has the sector for himself, so that nobody reads it.
    fn is_changing(&self, sector: usize) -> bool {
        self.locks.changing(BLOCK).contains(sector)
    }

    /// All that the sector may read as after a power cut.
    fn may_be_read(&self, sector: usize) -> u16 {
        let [leaf, into] = &self.images;
        let mut may = 0;
        let [mut through, owned] = leaf.may_own(sector);
        if self.completed {
            through = true;
        } else if owned {
            may |= leaf.data[sector].may;
        }
        if through {
            let [clear, set] = into.may_own(sector);
            may |= if set { into.data[sector].may } else { 0 };
            may |= if clear { 1 << BELOW } else { 0 };
        }
        may
    }

    /// The sectors that the window has for itself.
    pub(super) fn lock_block(&mut self, owner: usize) {
        self.locks.acquire(owner, 0..BLOCK_SECTORS as u64, Access::Exclusive);
    }
}
