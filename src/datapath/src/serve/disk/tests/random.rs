//! Random requests against a model, in any order of completion; then with the power cut and the process killed at every step.

use super::chains::{BLOCKS, On, SIZE, chain_on, content, device_for, owned, shows_nothing_stale};
use super::model::Model;
use super::rig::{Rig, bytes, gated, id, image, leaf, make, part, world, write};
use crate::serve::disk::Change;
use crate::serve::work::{Outcome, Work};
use catena_blockio::Container;
use catena_blockio::sim::{Call, Errno, Fault, Rng, SimDisk, SimWorld, seeds};
use catena_chain::{Error, Progress, copy};
use catena_control::{News, Told};
use catena_types::{BLOCK_BYTES, Bytes, GuestOffset, ImageId, Severity};
use catena_vhd::{CheckOptions, Mode, check};
use std::fs::File;
use std::sync::Arc;

/// Somewhere on the disk: often near the same few places, so that requests overlap, often not aligned.
fn place(rng: &mut Rng, longest: u64) -> (u64, u32) {
    // Some of them before the end of a block, so that requests have several.
    let near =
        [0, 1, 2, 3, 4].map(|n| n * SIZE / 5).into_iter().chain([BLOCK_BYTES - 9000, 2 * BLOCK_BYTES - 700]);
    let near = near.collect::<Vec<_>>()[usize::try_from(rng.below(7)).unwrap()];
    let unit = [1, 512, 4096][usize::try_from(rng.below(3)).unwrap()];
    let at = (near + rng.below(longest)).min(SIZE - 1) / unit * unit;
    let len = (1 + rng.below(longest)).next_multiple_of(unit).min(SIZE - at);
    (at, u32::try_from(len).unwrap())
}

fn work(rng: &mut Rng) -> Work {
    let fua = rng.below(6) == 0;
    match rng.below(20) {
        0..8 => {
            let (at, len) = place(rng, 20_000);
            let tag = u8::try_from(rng.below(255)).unwrap() + 1;
            let data: Vec<u8> = (0..len).map(|n| tag ^ u8::try_from(n / 512 % 7).unwrap()).collect();
            write(at, &data, fua)
        }
        8..13 => {
            let (at, len) = place(rng, 100_000);
            Work::Read { at, len }
        }
        13..15 => {
            let (at, len) = place(rng, 100_000);
            Work::Trim { at, len, fua }
        }
        15..17 => {
            let (at, len) = place(rng, 60_000);
            Work::Zeroes { at, len, fua, no_hole: rng.coin(), fast: false }
        }
        17 => {
            let (at, len) = place(rng, 60_000);
            Work::Status { at, len, one: rng.coin() }
        }
        _ => Work::Flush,
    }
}

/// A merge that nobody stops.
struct GoOn;

impl Progress for GoOn {
    fn planned(&mut self, _total: Bytes) {}

    fn go_on(&mut self, _upcoming: Bytes) -> bool {
        true
    }

    fn checkpoint(&mut self, _cursor: GuestOffset, _done: Bytes) -> Result<(), Error> {
        Ok(())
    }
}

/// A disk under random requests.
struct Run {
    rig: Rig,
    model: Model,
    rng: Rng,
    world: Arc<SimWorld>,
    pending: File,
    /// The images that the catalog names, root first, by their number in the world, and how many there are in all.
    chain: Vec<usize>,
    disks: Vec<Arc<SimDisk>>,
    generation: u64,
    /// A leaf merge is open, as the catalog says.
    moving: bool,
    /// Whether the storage is full now and then.
    fills: bool,
    on: On,
    /// Devices that are to be larger, and how large.
    wishes: Vec<(ImageId, Bytes)>,
    seed: u64,
}

impl Run {
    fn new(seed: u64, on: On) -> Self {
        let world = world();
        let mut rng = Rng::new(seed);
        let count = 1 + usize::try_from(rng.below(4)).unwrap();
        let empty = rng.coin();
        let disks = chain_on(on, &world, &mut rng, count, empty);
        let pending = tempfile::tempfile().unwrap();
        let model = Model::new(content(&disks), owned(&disks[..count - 1]));
        let mut rig = Rig::open(&disks, &pending, seed);
        if on == On::SmallDevices {
            rig.ask(Change::Watermark { room: Bytes(BLOCK_BYTES), chunk: Bytes(1 << 20) });
        }
        let chain = (0..count).collect();
        Self {
            rig,
            model,
            rng,
            world,
            pending,
            chain,
            disks,
            generation: 0,
            moving: false,
            fills: false,
            on,
            wishes: Vec::new(),
            seed,
        }
    }

    /// Those of the world that make the chain.
    fn chain_of(&self, world: &[Arc<SimDisk>]) -> Vec<Arc<SimDisk>> {
        self.chain.iter().map(|&n| world[n].clone()).collect()
    }

    fn submit(&mut self) {
        let work = work(&mut self.rng);
        // What a trim does while a leaf merge is open depends on how far that is.
        if !self.moving || !matches!(work, Work::Trim { .. }) {
            self.submit_work(work);
        }
    }

    fn submit_work(&mut self, work: Work) {
        // Answers that come at once must find the request in the model.
        let next = self.rig.next_number();
        self.model.comes(next, &work);
        self.rig.submit(work);
        self.take_answers();
    }

    fn take_answers(&mut self) {
        self.rig.news.retain(|news| match news {
            News::Grow { image, size } => {
                self.wishes.push((*image, *size));
                false
            }
            _ => true,
        });
        for (request, outcome) in std::mem::take(&mut self.rig.answered) {
            assert!(!matches!(outcome, Outcome::Failed(_)), "seed {}: request {request} failed", self.seed);
            if let Some(expected) = self.model.answered(request) {
                let read = bytes(outcome);
                let differs = read.iter().zip(&expected).position(|(a, b)| a != b);
                assert!(
                    read == expected,
                    "seed {}: request {request} read {} bytes of {}, different from {differs:?} on",
                    self.seed,
                    read.len(),
                    expected.len()
                );
            }
        }
    }

    fn step(&mut self) {
        self.rig.step();
        self.take_answers();
        if self.rng.below(12) == 0 {
            self.grant();
        }
    }

    /// Makes a device larger, as its keeper does some time after it was asked to. Where a merge or a snapshot has come in between,
    /// nobody writes there any more.
    fn grant(&mut self) {
        if !self.rig.disk.takes_questions() {
            return;
        }
        let hello = self.rig.disk.hello();
        while let Some((image, size)) = self.wishes.pop() {
            if hello.chain.first() == Some(&image) || hello.moving_into == Some(image) {
                let number = (0..self.disks.len()).find(|&n| id(n) == image).unwrap();
                self.disks[number].enlarge(size);
                self.rig.ask(Change::Enlarged { image, size });
                return self.take_answers();
            }
        }
    }

    /// Waits until questions are taken: until a device that is larger is made use of.
    fn take_questions(&mut self, look: &mut impl FnMut(&mut Self)) {
        let patience = self.rig.lab.steps + 20_000;
        while !self.rig.disk.takes_questions() {
            assert!(self.rig.lab.steps < patience, "seed {}: never enlarged: {}", self.seed, self.state());
            self.fill(false);
            self.rig.step();
            self.take_answers();
            look(self);
        }
    }

    /// Asks for something when questions are taken.
    fn ask(&mut self, change: Change, look: &mut impl FnMut(&mut Self)) {
        self.take_questions(look);
        self.rig.ask(change);
        self.take_answers();
    }

    /// An image that another is merged into is made as large as it may become, as a keeper does before.
    fn inflate(&self, number: usize) {
        if self.on == On::SmallDevices {
            self.disks[number].enlarge(device_for(BLOCKS));
        }
    }

    /// For messages.
    fn state(&self) -> String {
        let wishes = self.wishes.len();
        let widens = !self.rig.disk.takes_questions();
        format!(
            "{}, {wishes} devices are to be larger, one is being made use of: {widens}",
            self.rig.lab.state()
        )
    }

    /// Waits until no trim is under way.
    fn trims_end(&mut self, look: &mut impl FnMut(&mut Self)) {
        let patience = self.rig.lab.steps + 20_000;
        while self.model.trims() {
            assert!(self.rig.lab.steps < patience, "seed {}: never trimmed: {}", self.seed, self.state());
            self.step();
            look(self);
            self.rig.wait();
            self.take_answers();
        }
    }

    /// Whether the leaf has told that it owns nothing any more.
    fn is_moved(&self) -> bool {
        self.rig.news.iter().any(is_over)
    }

    /// Begins to empty the leaf into the image below it.
    fn begin_move(&mut self, look: &mut impl FnMut(&mut Self)) {
        let Some(below) = self.chain.len().checked_sub(2) else { return };
        if self.moving {
            return;
        }
        self.fill(false);
        self.trims_end(look);
        self.take_questions(look);
        if self.fills && self.rng.coin() {
            self.fill(true);
        }
        self.rig.news.clear();
        self.generation += 1;
        self.inflate(self.chain[below]);
        let into = leaf(&self.disks[self.chain[below]]);
        self.moving = true;
        self.rig.ask(Change::MoveDown { generation: self.generation, into, rate: Bytes(0) });
        self.take_answers();
        look(self);
    }

    /// Ends that: the leaf is dropped if it was told that it owns nothing, or not all the same.
    fn end_move(&mut self, look: &mut impl FnMut(&mut Self)) {
        if !self.moving {
            return;
        }
        let patience = self.rig.lab.steps + 20_000;
        let to_the_end = self.rng.coin();
        while to_the_end && !self.is_moved() {
            assert!(self.rig.told.iter().all(Result::is_ok), "seed {}: {:?}", self.seed, self.rig.told);
            assert!(self.rig.lab.steps < patience, "seed {}: never moved: {}", self.seed, self.state());
            self.fill(false);
            self.submit();
            for _ in 0..8 {
                self.step();
                look(self);
            }
        }
        self.take_questions(look);
        let complete = self.is_moved() && self.rng.below(4) > 0;
        if complete {
            self.chain.pop();
            self.moving = false;
        }
        let asked = self.rig.told.len();
        self.generation += 1;
        self.rig.ask(Change::EndMove { generation: self.generation, complete });
        look(self);
        // The answer to the beginning may be due too.
        let due = self.rig.disk.hello().moving_into.is_some() || self.rig.told.len() == asked;
        while due && self.rig.disk.hello().moving_into.is_some() {
            assert!(self.rig.lab.steps < patience, "seed {}: never ended: {}", self.seed, self.state());
            self.fill(false);
            let work = work(&mut self.rng);
            if !matches!(work, Work::Trim { .. }) {
                self.submit_work(work);
            }
            for _ in 0..8 {
                self.step();
                look(self);
            }
        }
        self.moving = false;
        let below = self.chain_of(&self.disks);
        self.model.set_below(owned(&below[..below.len() - 1]));
    }

    /// Puts a new leaf on top, or changes its mind about that. What is trimmed depends on the leaf, so nothing is meanwhile; and
    /// reads go past writes that are held back, so there are only such or such.
    fn snapshot(&mut self, look: &mut impl FnMut(&mut Self)) {
        self.end_move(look);
        self.fill(false);
        self.trims_end(look);
        let quiesced =
            |run: &Self| run.rig.told.iter().filter(|told| matches!(told, Ok(Told::Quiesced { .. }))).count();
        let before = quiesced(self);
        self.generation += 1;
        let generation = self.generation;
        let (top, new) = (self.chain[self.chain.len() - 1], self.on.leaf(&self.world));
        make(&new, self.disks.len(), Some(top), Bytes(SIZE));
        let number = self.disks.len();
        self.disks.push(new.clone());
        let old_leaf = gated(&self.disks[top]);
        self.ask(Change::Prepare { generation, leaf: leaf(&new), old_leaf }, look);
        self.ask(Change::Quiesce { generation }, look);
        let reads = self.rng.coin();
        let patience = self.rig.lab.steps + 5000;
        while quiesced(self) == before {
            assert!(self.rig.lab.steps < patience, "seed {}: never quiesced: {}", self.seed, self.state());
            self.submit_some(reads);
            for _ in 0..4 {
                self.step();
                look(self);
            }
            // A commit may have found the storage full before.
            self.rig.wait();
            self.take_answers();
            look(self);
        }
        self.take_questions(look);
        let swap = self.rng.below(4) > 0;
        if swap {
            let below = self.chain_of(&self.disks);
            self.model.set_below(owned(&below));
            self.chain.push(number);
        }
        look(self);
        self.rig.ask(Change::Resume { generation, swap });
        self.take_answers();
        look(self);
    }

    /// Submits something that reads, or something that changes the disk.
    fn submit_some(&mut self, reads: bool) {
        let work = work(&mut self.rng);
        let is_read = matches!(work, Work::Read { .. } | Work::Status { .. });
        if is_read == reads && !matches!(work, Work::Trim { .. }) {
            self.submit_work(work);
        }
    }

    /// Merges an image into its parent, as a worker does, and has it dropped.
    fn merge(&mut self, look: &mut impl FnMut(&mut Self)) {
        self.end_move(look);
        if self.chain.len() < 3 {
            return;
        }
        self.fill(false);
        let index = 1 + usize::try_from(self.rng.below(self.chain.len() as u64 - 2)).unwrap();
        let [parent, child] = [index - 1, index].map(|n| self.disks[self.chain[n]].clone());
        self.inflate(self.chain[index - 1]);
        let [parent_container, child]: [Arc<dyn Container>; 2] = [parent.clone(), child];
        let source = image(&child, Mode::ReadOnly);
        let mut target = image(&parent_container, Mode::ReadWrite);
        copy(&source, &mut target, GuestOffset(0), &mut GoOn).unwrap();
        target.close().unwrap();
        self.take_questions(look);
        self.chain.remove(index);
        self.generation += 1;
        let top = self.chain.len() - 1;
        let link = |(n, &number): (usize, &usize)| (id(number), (n == index - 1).then(|| part(&parent)));
        let below = self.chain[..top].iter().enumerate().map(link).rev().collect();
        self.rig.ask(Change::Relink { generation: self.generation, below });
        look(self);
    }

    /// The storage is full from now on, or not any more.
    fn fill(&mut self, full: bool) {
        self.world.heal();
        if full {
            self.world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).forever());
        }
        self.rig.wait();
        self.take_answers();
    }

    /// Some requests, and some steps between them; `look` is called after each step.
    fn go(&mut self, requests: usize, mut look: impl FnMut(&mut Self)) {
        for _ in 0..requests {
            self.submit();
            for _ in 0..self.rng.below(6) {
                self.step();
                look(self);
            }
            match self.rng.below(30) {
                0 => self.snapshot(&mut look),
                1 => self.merge(&mut look),
                8..11 => self.begin_move(&mut look),
                11..13 => self.end_move(&mut look),
                2..5 if self.fills => self.fill(true),
                5..8 if self.fills => self.fill(false),
                _ => {}
            }
            if self.rng.below(10) == 0 {
                self.rig.wait();
                self.take_answers();
            }
        }
        for _ in 0..if self.fills { 3 } else { 1 } {
            self.fill(false);
            let patience = self.rig.lab.steps + 20_000;
            while !self.rig.lab.is_idle() || !self.wishes.is_empty() {
                assert!(self.rig.lab.steps < patience, "seed {}: never ended: {}", self.seed, self.state());
                self.step();
                look(self);
            }
        }
    }
}

pub(super) fn sound(disks: &[Arc<SimDisk>], what: &str) {
    for disk in disks {
        let problems = check(&**disk as &dyn Container, &CheckOptions::default()).unwrap();
        let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{what}: {errors:?}");
    }
}

const DEVICES: [On; 2] = [On::Devices, On::SmallDevices];

#[test]
fn random_requests_read_what_was_written() {
    random_requests(&[On::Files], 20);
}

#[test]
fn random_requests_read_what_was_written_on_devices() {
    random_requests(&DEVICES, 20);
}

/// Of these, the one that comes with the seed: each of them in a row of seeds.
fn of_seed(on: &[On], seed: u64) -> On {
    on[usize::try_from(seed % on.len() as u64).unwrap()]
}

/// Requests, snapshots and merges in any order.
fn random_requests(on: &[On], count: u64) {
    for seed in seeds("random requests", count) {
        let mut run = Run::new(seed, of_seed(on, seed));
        run.fills = seed % 4 < 2;
        run.go(60, |_| {});
        assert!(run.model.is_done(), "seed {seed}: a request was never answered");
        let whole = run.rig.read(0, u32::try_from(SIZE).unwrap());
        run.model.check(&whole, false, &format!("seed {seed}, at the end"));
        run.rig.ask(Change::Stop);
        run.rig.settle();
        assert!(run.rig.told.iter().all(Result::is_ok), "seed {seed}: {:?}", run.rig.told);
        assert_eq!(run.rig.disk.hello().chain, run.chain.iter().rev().map(|&n| id(n)).collect::<Vec<_>>());
        let disks = run.chain_of(&run.world.after_process_kill());
        sound(&disks, &format!("seed {seed}"));
        run.model.check(&content(&disks), false, &format!("seed {seed}, closed"));
        shows_nothing_stale(&disks, &format!("seed {seed}, closed"));
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut_at_every_step() {
    power_cuts(&[On::Files], 2);
}

#[test]
fn what_was_flushed_survives_a_power_cut_at_every_step_on_devices() {
    power_cuts(&DEVICES, 2);
}

fn power_cuts(on: &[On], count: u64) {
    for seed in seeds("power cut", count) {
        let mut run = Run::new(seed, of_seed(on, seed));
        run.go(25, |run| {
            let what = format!("seed {seed}, power cut after step {}", run.rig.lab.steps);
            let disks = run.world.after_power_cut(seed ^ run.rig.lab.steps << 20);
            let disks = run.chain_of(&disks);
            sound(&disks, &what);
            run.model.check(&content(&disks), true, &what);
            shows_nothing_stale(&disks, &what);
        });
    }
}

#[test]
fn what_was_answered_survives_the_death_of_the_process_at_every_step() {
    deaths(&[On::Files], 2);
}

#[test]
fn what_was_answered_survives_the_death_of_the_process_at_every_step_on_devices() {
    deaths(&DEVICES, 2);
}

fn deaths(on: &[On], count: u64) {
    for seed in seeds("death", count) {
        let mut run = Run::new(seed, of_seed(on, seed));
        run.go(25, |run| {
            let what = format!("seed {seed}, killed after step {}", run.rig.lab.steps);
            let world = run.world.after_process_kill();
            let disks = run.chain_of(&world);
            let pending = copy_of(&run.pending);
            let mut successor = if run.moving {
                Rig::open_moving(&disks, &pending, seed)
            } else {
                Rig::open(&disks, &pending, seed)
            };
            let whole = successor.read(0, u32::try_from(SIZE).unwrap());
            run.model.check(&whole, false, &what);
            assert!(matches!(successor.done(Work::Flush), Outcome::Done), "{what}");
            // It also takes a leaf merge up.
            if run.moving {
                successor.ask(Change::MoveOn { generation: u64::MAX, rate: Bytes(0) });
            }
            successor.settle();
            assert!(!run.moving || successor.news.iter().any(is_over), "{what}: {:?}", successor.news);
            drop(successor);
            sound(&disks, &what);
            assert!(!run.moving || content(&disks[..disks.len() - 1]) == whole, "{what}: moved");
            // The successor's flush covers what its predecessor has answered.
            let after = run.chain_of(&disks[0].world().after_power_cut(seed));
            run.model.check(&content(&after), false, &format!("{what}, and the power cut after"));
        });
    }
}

/// Whether it says that the leaf owns nothing any more.
const fn is_over(news: &News) -> bool {
    matches!(news, News::Moved { left: Bytes(0), .. })
}

/// The file as a process that dies now leaves it.
fn copy_of(file: &File) -> File {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = tempfile::tempfile().unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    copy
}
