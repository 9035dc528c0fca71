//! A disk, its images on simulated storage, and an engine whose operations end when a test says so.
//!
//! Plans are carried out step by step too: a container that is used by a thread of the engine waits before each call until it is
//! that thread's turn. So a run is a function of its seed, and anything may happen between two steps of a commit.

use crate::serve::disk::{Change, Disk, Leaf, Opening, Part};
use crate::serve::work::{Outcome, Segment, Work};
use catena_blockio::sim::{Rng, SimDisk, SimWorld};
use catena_blockio::{AlignedBuf, Completion, Container, Engine, Op, Sizing};
use catena_control::{News, Told};
use catena_types::{Bytes, FileOffset, ImageId, VdiUuid};
use catena_vhd::{CreateSpec, Image, Mode, ParentSpec, create};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What a thread says before each call, and at its end.
type Said = Option<io::Result<()>>;

thread_local! {
    /// Set in threads of the engine: say that a call is about to be made, and wait for the word.
    static TURN: RefCell<Option<(Sender<Said>, Receiver<()>)>> = const { RefCell::new(None) };
}

/// A container that waits for its turn.
struct Gated(Arc<dyn Container>);

impl Gated {
    fn wait() -> io::Result<()> {
        TURN.with_borrow(|turn| {
            let Some((tell, go)) = turn else { return Ok(()) };
            let gone = |_| io::Error::other("the test is over");
            tell.send(None).map_err(|_| io::Error::other("the test is over"))?;
            go.recv().map_err(gone)
        })
    }
}

impl Container for Gated {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        Self::wait()?;
        self.0.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        Self::wait()?;
        self.0.write_at(buf, at)
    }

    fn flush(&self) -> io::Result<()> {
        Self::wait()?;
        self.0.flush()
    }

    fn size(&self) -> io::Result<Bytes> {
        self.0.size()
    }

    fn set_size(&self, size: Bytes) -> io::Result<()> {
        Self::wait()?;
        self.0.set_size(size)
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        Self::wait()?;
        self.0.punch(at, len)
    }

    fn release(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        Self::wait()?;
        self.0.release(at, len)
    }

    fn clone_range(&self, _: FileOffset, _: &dyn Container, _: FileOffset, _: Bytes) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        self.0.allocated()
    }

    fn sizing(&self) -> Sizing {
        self.0.sizing()
    }

    fn alignment(&self) -> usize {
        self.0.alignment()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A call in a thread of its own.
struct Calling {
    token: u64,
    go: Sender<()>,
    /// `None`: about to do something; else it has ended.
    told: Receiver<Said>,
}

/// What was submitted and has not ended.
pub(super) struct Lab {
    rng: Rng,
    ops: Vec<(u64, Op)>,
    calls: Vec<Calling>,
    done: Vec<Completion>,
    file: File,
    /// Steps made.
    pub(super) steps: u64,
}

impl Lab {
    fn new(seed: u64) -> Self {
        let (ops, calls, done) = (Vec::new(), Vec::new(), Vec::new());
        Self { rng: Rng::new(seed), ops, calls, done, file: tempfile::tempfile().unwrap(), steps: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.calls.is_empty() && self.done.is_empty()
    }

    /// For messages.
    pub(super) fn state(&self) -> String {
        format!("{} operations and {} plans are under way", self.ops.len(), self.calls.len())
    }

    /// Carries out something.
    fn step(&mut self) {
        self.steps += 1;
        let choices = self.ops.len() + self.calls.len();
        if choices == 0 {
            return;
        }
        let choice = usize::try_from(self.rng.below(choices as u64)).unwrap();
        if choice >= self.ops.len() {
            self.step_call(choice - self.ops.len());
        } else {
            self.step_op(choice);
        }
    }

    fn step_op(&mut self, index: usize) {
        let (token, op) = self.ops.swap_remove(index);
        let (result, buf) = match op {
            Op::Read { container, at, mut buf, range } => (container.read_at(&mut buf[range], at), buf),
            Op::Write { container, at, buf, range } => (container.write_at(&buf[range], at), buf),
            Op::Call(_) => unreachable!("calls have threads"),
        };
        self.done.push(Completion { token, result, buf: Some(buf) });
    }

    fn step_call(&mut self, index: usize) {
        let call = &self.calls[index];
        call.go.send(()).unwrap();
        if let Some(result) = call.told.recv().unwrap() {
            let token = self.calls.swap_remove(index).token;
            self.done.push(Completion { token, result, buf: None });
        }
    }
}

impl Engine for Lab {
    fn submit(&mut self, token: u64, op: Op) {
        let Op::Call(call) = op else { return self.ops.push((token, op)) };
        let (tell, told) = channel();
        let (go, wait) = channel();
        std::thread::spawn(move || {
            TURN.set(Some((tell.clone(), wait)));
            let result = call();
            // Nobody listens where the test has killed the process.
            let _ = tell.send(Some(result));
        });
        match told.recv().unwrap() {
            None => self.calls.push(Calling { token, go, told }),
            Some(result) => self.done.push(Completion { token, result, buf: None }),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completed(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn name(&self) -> &'static str {
        "lab"
    }
}

pub(super) fn id(n: usize) -> ImageId {
    ImageId::from_bytes([u8::try_from(n).unwrap() + 1; 16])
}

/// Makes an empty image.
pub(super) fn make(disk: &SimDisk, n: usize, parent: Option<usize>, size: Bytes) {
    let parent = parent.map(|p| ParentSpec { id: id(p), name: format!("{p}.vhd"), timestamp: 0 });
    let spec = CreateSpec {
        id: id(n),
        virtual_size: size,
        parent,
        table_size: None,
        fixed: false,
        hidden: false,
        timestamp: 1,
    };
    create(disk, &spec).unwrap();
}

pub(super) fn image(container: &Arc<dyn Container>, mode: Mode) -> Image {
    Image::open(container.clone(), mode).unwrap()
}

pub(super) fn gated(disk: &Arc<SimDisk>) -> Arc<dyn Container> {
    Arc::new(Gated(disk.clone()))
}

pub(super) fn part(disk: &Arc<SimDisk>) -> Part {
    let container = gated(disk);
    let image = image(&container, Mode::ReadOnly);
    Part { id: image.info().id, layer: Arc::new(image), container }
}

pub(super) fn leaf(disk: &Arc<SimDisk>) -> Leaf {
    let container = gated(disk);
    let image = image(&container, Mode::ReadWrite);
    Leaf { id: image.info().id, layer: Box::new(image), container }
}

/// A disk that is served.
pub(super) struct Rig {
    pub(super) disk: Disk,
    pub(super) lab: Lab,
    pub(super) answered: Vec<(u64, Outcome)>,
    pub(super) told: Vec<Result<Told, catena_control::Trouble>>,
    pub(super) news: Vec<News>,
    next: u64,
}

impl Rig {
    /// Serves these images, root first.
    pub(super) fn open(disks: &[Arc<SimDisk>], pending: &File, seed: u64) -> Self {
        Self::open_with(disks, pending, seed, true)
    }

    /// The same while a leaf merge is open.
    pub(super) fn open_moving(disks: &[Arc<SimDisk>], pending: &File, seed: u64) -> Self {
        let top = disks.len() - 1;
        let opening = Opening {
            vdi: VdiUuid::from_bytes([1; 16]),
            boot: [2; 16],
            leaf: Some((leaf(&disks[top]), pending.try_clone().unwrap().into())),
            into: Some((leaf(&disks[top - 1]), gated(&disks[top - 1]))),
            below: (0..top - 1).rev().map(|n| part(&disks[n])).collect(),
            waits_when_full: true,
        };
        Self::serve(opening, seed)
    }

    pub(super) fn open_with(
        disks: &[Arc<SimDisk>],
        pending: &File,
        seed: u64,
        waits_when_full: bool,
    ) -> Self {
        let top = disks.len() - 1;
        let opening = Opening {
            vdi: VdiUuid::from_bytes([1; 16]),
            boot: [2; 16],
            leaf: Some((leaf(&disks[top]), pending.try_clone().unwrap().into())),
            into: None,
            below: (0..top).rev().map(|n| part(&disks[n])).collect(),
            waits_when_full,
        };
        Self::serve(opening, seed)
    }

    /// Serves these images for reading only.
    pub(super) fn open_read_only(disks: &[Arc<SimDisk>]) -> Self {
        let (vdi, boot) = (VdiUuid::from_bytes([1; 16]), [2; 16]);
        let below = disks.iter().rev().map(part).collect();
        Self::serve(Opening { vdi, boot, leaf: None, into: None, below, waits_when_full: true }, 1)
    }

    fn serve(opening: Opening, seed: u64) -> Self {
        let disk = Disk::open(opening).unwrap();
        let (answered, told, news) = (Vec::new(), Vec::new(), Vec::new());
        Self { disk, lab: Lab::new(seed), answered, told, news, next: 0 }
    }

    /// Gives the disk something to do; the number by which it is answered.
    pub(super) fn submit(&mut self, work: Work) -> u64 {
        self.next += 1;
        self.disk.submit(self.next, work, &mut self.lab);
        self.collect();
        self.next
    }

    /// The number that the next request gets.
    pub(super) const fn next_number(&self) -> u64 {
        self.next + 1
    }

    pub(super) fn ask(&mut self, change: Change) {
        self.disk.ask(change, &mut self.lab);
        self.collect();
    }

    /// One step of the storage.
    pub(super) fn step(&mut self) {
        self.lab.step();
        self.collect();
    }

    fn collect(&mut self) {
        loop {
            let mut done = Vec::new();
            self.lab.completed(&mut done);
            if done.is_empty() {
                break;
            }
            for completion in done {
                self.disk.completed(completion, &mut self.lab);
            }
        }
        self.answered.append(&mut self.disk.finished());
        self.told.append(&mut self.disk.answers());
        self.news.append(&mut self.disk.news());
    }

    /// Until no plan is under way.
    pub(super) fn settle_plans(&mut self) {
        while !self.lab.calls.is_empty() {
            self.lab.step_call(0);
            self.collect();
        }
    }

    /// Until nothing but plans is under way.
    pub(super) fn settle_data(&mut self) {
        while !self.lab.ops.is_empty() {
            self.lab.step_op(0);
            self.collect();
        }
    }

    /// Until nothing is under way but the first of so many plans.
    pub(super) fn settle_all_but(&mut self, plans: usize) {
        while !self.lab.ops.is_empty() || self.lab.calls.len() > plans {
            self.settle_data();
            if self.lab.calls.len() > plans {
                self.lab.step_call(plans);
                self.collect();
            }
        }
    }

    /// Until the plan that is under way has been carried out.
    pub(super) fn end_plan(&mut self) {
        let token = self.lab.calls[0].token;
        while let Some(index) = self.lab.calls.iter().position(|call| call.token == token) {
            self.lab.step_call(index);
        }
        self.collect();
    }

    /// Until writes are held back.
    pub(super) fn hold(&mut self) {
        while !self.disk.holds_back() {
            assert!(!self.lab.is_idle(), "never held back");
            self.step();
        }
    }

    /// Until nothing is under way.
    pub(super) fn settle(&mut self) {
        while !self.lab.is_idle() {
            self.step();
        }
    }

    /// The time goes on by two seconds.
    pub(super) fn wait(&mut self) {
        self.disk.tick(std::time::Instant::now() + std::time::Duration::from_secs(2), &mut self.lab);
        self.collect();
    }

    /// Does it and waits for its outcome.
    pub(super) fn done(&mut self, work: Work) -> Outcome {
        let request = self.submit(work);
        self.settle();
        self.outcome(request).expect("answered")
    }

    pub(super) fn outcome(&mut self, request: u64) -> Option<Outcome> {
        let index = self.answered.iter().position(|(number, _)| *number == request)?;
        Some(self.answered.swap_remove(index).1)
    }

    pub(super) fn read(&mut self, at: u64, len: u32) -> Vec<u8> {
        bytes(self.done(Work::Read { at, len }))
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> Outcome {
        self.done(write(at, data, false))
    }
}

pub(super) fn write(at: u64, data: &[u8], fua: bool) -> Work {
    let mut buf = AlignedBuf::zeroed(data.len());
    buf.copy_from_slice(data);
    Work::Write { at, len: u32::try_from(data.len()).unwrap(), data: buf, fua }
}

/// The bytes of a read.
pub(super) fn bytes(outcome: Outcome) -> Vec<u8> {
    let Outcome::Data(segments) = outcome else { panic!("{outcome:?}") };
    let mut all = Vec::new();
    for segment in segments {
        match segment {
            Segment::Bytes { buf, range } => all.extend_from_slice(&buf[range]),
            Segment::Zeros(len) => all.resize(all.len() + len, 0),
        }
    }
    all
}

pub(super) fn world() -> Arc<SimWorld> {
    SimWorld::new()
}
