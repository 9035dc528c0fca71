//! Every interleaving of a few writes, commits, a give-up and a death of the process, with a power cut after each: on the real
//! image, over a storage of which any part of what is not flushed may survive. The rules are dropped one by one, by whoever drives
//! the image, and each time something is lost.
//!
//! Two blocks of two sectors; a value is the number of the write that made it, 0 is what the parent holds.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../../../../tests/harness/explore.rs"]
mod explore;
mod store;

use crate::create::{CreateSpec, ParentSpec, create};
use crate::dirty::UnderWay;
use crate::image::{Image, Mode};
use crate::layout::Slot;
use catena_blockio::Container;
use catena_chain::{Commit, Layer, LiveLayer, Noted, Plan, Step};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, ImageId, SectorSet};
use explore::{Explored, Steps};
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use store::Store;

const PARENT: u8 = 0;
/// What stood in the storage before.
const GARBAGE: u8 = 200;
/// The sectors that are written: block and sector.
const PLACES: [(usize, usize); 3] = [(0, 0), (0, 1), (1, 0)];

/// A rule that is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    None,
    /// D1: pointers right behind the data.
    Barrier,
    /// D3: bitmaps as they are in memory when they are written.
    BitsFromMemory,
    /// D2: a slot is used again before the clear of its name is durable.
    WaitBeforeReuse,
    /// D2: the same, where a writer that was killed had cleared it.
    BarrierAfterKill,
    /// D9: a flush is answered when the pointers are written.
    BarrierAfterPointers,
    /// D7: acknowledged without a note.
    Note,
    /// D7: what a commit will store is struck from the notes when it begins.
    NoteUntilStored,
}

/// What the plan under way is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum For {
    /// A flush: what was acknowledged when it began, and how many notes it stores.
    Commit([[u8; 2]; 2], usize),
    /// These sectors of a block; both, or the first.
    GiveUp(usize, usize),
}

#[derive(Clone)]
struct Running {
    plan: Plan,
    number: u64,
    next: usize,
    purpose: For,
}

/// All there is.
struct State {
    store: Arc<Store>,
    image: Image,
    /// What stands in `pending`.
    notes: Vec<Noted>,
    /// Block, sector and value of a write whose data have landed and that was not acknowledged.
    writing: Option<(usize, usize, u8)>,
    running: Option<Running>,
    /// What was acknowledged when the last commit began: its pointers are written, and the next barrier makes them durable.
    written: Option<[[u8; 2]; 2]>,
    /// What was acknowledged last.
    now: [[u8; 2]; 2],
    /// What may be found after a power cut.
    allowed: [[BTreeSet<u8>; 2]; 2],
    writes: u8,
    give_ups: u8,
    deaths: u8,
}

fn image_of(image: &Image, store: &Arc<Store>) -> Image {
    Image {
        container: store.clone(),
        footer: image.footer.clone(),
        footers: image.footers,
        header: image.header.clone(),
        layout: image.layout,
        bat: image.bat.clone(),
        batmap: image.batmap.clone(),
        bitmaps: Mutex::new(image.bitmaps().clone()),
        data_end: AtomicU64::new(image.data_end().0),
        writer: image.writer.clone(),
    }
}

impl Clone for State {
    fn clone(&self) -> Self {
        let store = self.store.fork();
        Self {
            image: image_of(&self.image, &store),
            store,
            notes: self.notes.clone(),
            writing: self.writing,
            running: self.running.clone(),
            written: self.written,
            now: self.now,
            allowed: self.allowed.clone(),
            ..*self
        }
    }
}

fn block(index: usize) -> BlockIndex {
    BlockIndex(u32::try_from(index).unwrap())
}

fn data_at(slot: Slot, sector: usize) -> FileOffset {
    FileOffset(slot.data_at().0 + sector as u64 * 512)
}

impl State {
    /// An empty leaf on a device with room for two blocks, which held something else before.
    fn new() -> Self {
        let parent = ParentSpec { id: ImageId::from_bytes([9; 16]), name: "base".to_owned(), timestamp: 2 };
        let spec = CreateSpec {
            id: ImageId::from_bytes([7; 16]),
            virtual_size: Bytes(2 * BLOCK_BYTES),
            parent: Some(parent),
            table_size: None,
            fixed: false,
            hidden: false,
            timestamp: 1,
        };
        let store = Store::new(2 * 4104 * 512 + (16 << 10));
        create(&*store, &spec).unwrap();
        let mut image = Image::open(store.clone(), Mode::ReadWrite).unwrap();
        let space = &mut image.writer().unwrap().space;
        let mut sketch = space.clone();
        for _ in 0..2 {
            let slot = sketch.next().unwrap();
            sketch.take(slot);
            store.write_at(&[0xff; 512], slot.bitmap_at()).unwrap();
            store.write_at(&[GARBAGE; 1024], slot.data_at()).unwrap();
        }
        assert!(sketch.next().is_err(), "two blocks and no more");
        store.flush().unwrap();
        let allowed = [[(); 2]; 2].map(|row| row.map(|()| BTreeSet::from([PARENT])));
        let now = [[PARENT; 2]; 2];
        Self {
            store,
            image,
            now,
            allowed,
            notes: Vec::new(),
            writing: None,
            running: None,
            written: None,
            writes: 0,
            give_ups: 0,
            deaths: 0,
        }
    }

    /// What a reader finds in the image now.
    fn read(&self, index: usize, sector: usize) -> u8 {
        if !self.image.ownership(block(index)).unwrap().to_set().contains(sector) {
            return PARENT;
        }
        let at = self.image.locate(block(index)).unwrap().at.0 + sector as u64 * 512;
        self.store.values(FileOffset(at)).last().unwrap()[0]
    }

    /// The sectors that are being given up, which nobody reads.
    fn is_held(&self, index: usize, sector: usize) -> bool {
        let held = |running: &Running| matches!(running.purpose, For::GiveUp(of, last) if of == index && sector <= last);
        self.running.as_ref().is_some_and(held)
    }

    /// What is wrong with this state, if anything is.
    fn fault(&self) -> Option<String> {
        for (index, sector) in PLACES {
            let (found, now) = (self.read(index, sector), self.now[index][sector]);
            // Data that have landed may be seen before they are acknowledged.
            let other =
                self.writing.filter(|&(b, s, _)| (b, s) == (index, sector)).map(|(_, _, value)| value);
            if found != now && Some(found) != other && !self.is_held(index, sector) {
                return Some(format!("block {index} sector {sector} reads {found}, not {now}"));
            }
        }
        self.fault_after_power_cut()
    }

    fn fault_after_power_cut(&self) -> Option<String> {
        for table in self.store.values(self.image.layout.table_at) {
            let entry =
                |index: usize| u32::from_be_bytes(table[index * 4..index * 4 + 4].try_into().unwrap());
            if entry(0) == entry(1) && entry(0) != u32::MAX {
                return Some("two blocks at one place after a power cut".to_owned());
            }
            for (index, sector) in PLACES {
                let slot = Slot(entry(index));
                let mut found = BTreeSet::from([PARENT]);
                if slot.0 != u32::MAX {
                    let bits = self.store.values(slot.bitmap_at());
                    let owned = |bits: &Arc<[u8; 512]>| SectorSet::from_bitmap(bits).contains(sector);
                    if bits.iter().all(owned) {
                        found.clear();
                    }
                    if bits.iter().any(owned) {
                        found.extend(self.store.values(data_at(slot, sector)).iter().map(|bytes| bytes[0]));
                    }
                }
                let allowed = &self.allowed[index][sector];
                if let Some(wrong) = found.difference(allowed).next() {
                    let text = format!(
                        "block {index} sector {sector} may read {wrong} after a power cut, not {allowed:?}"
                    );
                    return Some(text);
                }
            }
        }
        None
    }

    fn start_write(&mut self, index: usize, sector: usize, dropped: Dropped) -> Option<()> {
        let placed = LiveLayer::place(&mut self.image, block(index)).ok()?;
        if dropped != Dropped::BarrierAfterKill {
            placed.first.run(&*self.store).unwrap();
        }
        self.writes += 1;
        let value = self.writes;
        self.store.write_at(&[value; 512], FileOffset(placed.at.0 + sector as u64 * 512)).unwrap();
        self.allowed[index][sector].insert(value);
        self.writing = Some((index, sector, value));
        Some(())
    }

    fn acknowledge(&mut self, dropped: Dropped) -> Option<()> {
        let (index, sector, value) = self.writing.take()?;
        let sectors = SectorSet::of(sector..sector + 1);
        LiveLayer::wrote(&mut self.image, block(index), &sectors).unwrap();
        let noted = self.image.noted().into_iter();
        let noted = noted.filter(|noted| noted.block == block(index) && noted.sectors.contains(sector));
        if dropped != Dropped::Note {
            self.notes.extend(noted.map(|noted| Noted { sectors: sectors.clone(), ..noted }));
        }
        self.now[index][sector] = value;
        Some(())
    }

    fn begin_commit(&mut self, dropped: Dropped) -> Option<()> {
        let Commit { plan, number } = self.image.begin_store().unwrap()?;
        let covers = self.notes.len();
        self.running = Some(Running { plan, number, next: 0, purpose: For::Commit(self.now, covers) });
        if dropped == Dropped::NoteUntilStored {
            self.notes.clear();
        }
        Some(())
    }

    /// Gives sectors up whose values the parent durably has.
    fn begin_give_up(&mut self, index: usize, last: usize, dropped: Dropped) -> Option<()> {
        let stable = (0..=last).all(|sector| self.allowed[index][sector].len() == 1);
        let written = self.writing.is_some_and(|(of, sector, _)| of == index && sector <= last);
        if !stable || written || (0..=last).all(|sector| self.now[index][sector] == PARENT) {
            return None;
        }
        // The second is the last of the block: the others do not count.
        let set = if last == 1 { SectorSet::full() } else { SectorSet::of(0..last + 1) };
        let sectors = [(block(index), set)];
        let Commit { plan, number } = self.image.begin_give_up(&sectors).ok()?;
        self.allowed[index][..=last].iter_mut().for_each(|values| values.extend([PARENT]));
        if dropped == Dropped::WaitBeforeReuse {
            let commit = Commit { plan: plan.clone(), number };
            self.image.end_give_up(commit, true).unwrap();
        }
        self.give_ups += 1;
        self.running = Some(Running { plan, number, next: 0, purpose: For::GiveUp(index, last) });
        Some(())
    }

    /// Does the next step of the plan, or ends it.
    fn advance(&mut self, dropped: Dropped) -> Option<()> {
        let mut running = self.running.take()?;
        let Some(step) = running.plan.steps().get(running.next).cloned() else {
            self.end(running, dropped);
            return Some(());
        };
        running.next += 1;
        let first_barrier = running.plan.steps().iter().position(|step| *step == Step::Barrier);
        let is_first = first_barrier.is_some_and(|first| first + 1 == running.next);
        match step {
            Step::Write { at, .. } if dropped == Dropped::BitsFromMemory && self.bits_at(at).is_some() => {
                self.store.write_at(&self.bits_at(at).unwrap().to_bitmap(), at).unwrap();
            }
            Step::Write { at, bytes } => self.store.write_at(&bytes, at).unwrap(),
            Step::Barrier if dropped == Dropped::Barrier && is_first => {}
            Step::Barrier => self.store.flush().unwrap(),
            Step::Punch { at, len } | Step::Release { at, len } => self.store.punch(at, len).unwrap(),
            Step::SetSize(_) => panic!("of a device"),
        }
        self.running = Some(running);
        Some(())
    }

    /// The bits in memory of the block whose bitmap stands there.
    fn bits_at(&self, at: FileOffset) -> Option<SectorSet> {
        let index =
            (0..2).find(|&index| self.image.slot(block(index)).is_some_and(|slot| slot.bitmap_at() == at))?;
        Some(self.image.ownership(block(index)).unwrap().to_set())
    }

    fn end(&mut self, running: Running, dropped: Dropped) {
        let commit = Commit { plan: running.plan, number: running.number };
        let ends_with_barrier = commit.plan.ends_with_barrier();
        if commit.plan.has_barrier()
            && let Some(before) = self.written.take()
        {
            self.is_durable(before);
        }
        match running.purpose {
            For::Commit(before, covers) => {
                self.image.end_commit(commit, true).unwrap();
                if dropped != Dropped::NoteUntilStored {
                    self.notes.drain(..covers);
                }
                if ends_with_barrier || dropped == Dropped::BarrierAfterPointers {
                    self.is_durable(before);
                } else {
                    self.written = Some(before);
                }
            }
            For::GiveUp(index, last) => {
                if dropped != Dropped::WaitBeforeReuse {
                    self.image.end_give_up(commit, true).unwrap();
                }
                for sector in 0..=last {
                    self.now[index][sector] = PARENT;
                    self.allowed[index][sector] = BTreeSet::from([PARENT]);
                }
            }
        }
    }

    /// What was acknowledged before a flush is there, or something newer.
    fn is_durable(&mut self, before: [[u8; 2]; 2]) {
        for (index, sector) in PLACES {
            let (before, now) = (before[index][sector], self.now[index][sector]);
            self.allowed[index][sector].retain(|&value| value >= before || value == now);
        }
    }

    /// The process dies; its successor opens the image and takes over what was noted.
    fn die(&mut self) -> Option<String> {
        let mut image = Image::open(self.store.clone(), Mode::ReadWrite).unwrap();
        if let Err(error) = image.restore(&self.notes) {
            return Some(format!("after a kill: {error}"));
        }
        let held = PLACES.map(|(index, sector)| self.is_held(index, sector));
        self.image = image;
        (self.running, self.written) = (None, None);
        if let Some(fault) = self.fault()
            && !held.contains(&true)
        {
            return Some(format!("after a kill, {fault}"));
        }
        for ((index, sector), held) in PLACES.into_iter().zip(held) {
            let found = self.read(index, sector);
            if held && !self.allowed[index][sector].contains(&found) {
                return Some(format!("after a kill, block {index} sector {sector} reads {found}"));
            }
            self.now[index][sector] = found;
        }
        self.writing = None;
        self.deaths += 1;
        None
    }

    /// Everything that can happen next, by name; `Err` is a fault.
    fn next(&self, dropped: Dropped) -> Steps<Self> {
        let mut found = Vec::new();
        let mut offer = |name: String, step: &dyn Fn(&mut Self) -> Option<()>| {
            let mut next = self.clone();
            if step(&mut next).is_some() {
                found.push((name, Ok(next)));
            }
        };
        if self.writing.is_none() && self.writes < 3 {
            for (index, sector) in PLACES.into_iter().filter(|&(index, sector)| !self.is_held(index, sector))
            {
                offer(format!("write {index}.{sector}"), &|next| next.start_write(index, sector, dropped));
            }
        }
        if self.writing.is_some() {
            offer("acknowledge".to_owned(), &|next| next.acknowledge(dropped));
        }
        if self.running.is_some() {
            offer("step".to_owned(), &|next| next.advance(dropped));
        } else {
            if !self.image.noted().is_empty() || self.allowed.iter().flatten().any(|values| values.len() > 1)
            {
                offer("flush".to_owned(), &|next| next.begin_commit(dropped));
            }
            if self.give_ups < 1 {
                for (index, last) in [(0, 1), (0, 0)] {
                    offer(format!("give up {index}.0-{last}"), &|next| {
                        next.begin_give_up(index, last, dropped)
                    });
                }
            }
        }
        if self.deaths < 1 {
            let mut next = self.clone();
            let fault = next.die();
            found.push(("die".to_owned(), fault.map_or(Ok(next), Err)));
        }
        found
    }

    /// Whether nothing is under way.
    const fn is_at_rest(&self) -> bool {
        self.writing.is_none() && self.running.is_none()
    }
}

/// Two states with the same hash go on in the same way.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.store.hash(hasher);
        let writer = self.image.writer.as_ref().unwrap();
        for index in 0..2 {
            let bits = |set: &SectorSet| (set.contains(0), set.contains(1));
            let dirty = writer.dirty.get(&block(index)).map(|dirty| {
                let bits = (bits(&dirty.stored), bits(&dirty.on_way), bits(&dirty.noted));
                (dirty.slot, dirty.fresh, dirty.linking, bits)
            });
            (dirty, self.image.bat.get(block(index))).hash(hasher);
        }
        let emptied = match &writer.under_way {
            Some((_, UnderWay::GiveUp { emptied, .. })) => emptied.clone(),
            _ => Vec::new(),
        };
        let free: Vec<Slot> = writer.space.free().collect();
        (emptied, free, writer.frees_are_durable, writer.under_way.is_some()).hash(hasher);
        for noted in &self.notes {
            (noted.block, noted.place.0, noted.new, noted.sectors.contains(0), noted.sectors.contains(1))
                .hash(hasher);
        }
        let running = self.running.as_ref().map(|running| (running.next, running.purpose.clone()));
        (running, self.written, self.writing, self.now, &self.allowed).hash(hasher);
        (self.writes, self.give_ups, self.deaths).hash(hasher);
    }
}

/// Goes through all states. Gives how many there are, or the shortest way to a fault, or to where nothing comes to an end any
/// more.
fn explore(dropped: Dropped) -> Result<usize, String> {
    // A state is looked at once, and not for each way that leads there: all that a power cut may leave of it is read.
    let next = |state: &State| match state.fault() {
        Some(fault) => vec![("there".to_owned(), Err(fault))],
        None => state.next(dropped),
    };
    let Explored { states, restless } = explore::explore(State::new(), next, State::is_at_rest)?;
    restless.map_or(Ok(states), |way| Err(format!("without an end: {way}")))
}

#[test]
fn nothing_is_lost_in_any_order() {
    let states = explore(Dropped::None).unwrap_or_else(|fault| panic!("{fault}"));
    println!("{states} states");
    assert!(states > 10_000, "only {states} states");
}

#[test]
fn without_any_one_rule_something_is_lost() {
    for dropped in [
        Dropped::Barrier,
        Dropped::BarrierAfterPointers,
        Dropped::BitsFromMemory,
        Dropped::WaitBeforeReuse,
        Dropped::BarrierAfterKill,
        Dropped::Note,
        Dropped::NoteUntilStored,
    ] {
        let fault = explore(dropped).expect_err(&format!("{dropped:?} is not needed"));
        println!("{dropped:?}: {fault}");
    }
}
