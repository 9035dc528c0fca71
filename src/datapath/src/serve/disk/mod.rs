//! The disk that is served: a state machine between requests, images and what the keeper wants.
//!
//! It never waits. Requests come in by [`submit`](Disk::submit), what takes time goes to the [`Engine`] and comes back by
//! [`completed`](Disk::completed), the time by [`tick`](Disk::tick); answers are collected afterwards. The owner is one event
//! loop, which calls [`Engine::kick`] when it has given the disk all that there was.
//!
//! * [`layers`]: the images; [`locks`]: which requests go together; [`task`]: what a request goes through.
//! * [`fetch`], [`write`], [`zero`]: reading, writing, giving up. [`commit`] and [`pending`]: what makes it last.
//! * [`space`]: what waits for space; [`widen`]: devices that become larger; [`change`], [`sealing`]: snapshots, merges, the end.
//! * [`moving`], [`window`], [`deciding`]: the merge of the leaf into the image below it, which is then written too ([`target`]).
//!
//! Invariants: what is answered as written is in `pending` or on the image (D7); nothing is in two requests' hands that exclude
//! each other; a request is answered once.

mod change;
mod commit;
mod deciding;
mod enlarge;
mod fetch;
mod layers;
mod locks;
mod moving;
mod open;
mod pending;
mod sealing;
mod slab;
mod space;
mod status;
mod target;
mod task;
mod widen;
mod window;
mod write;
mod zero;

#[cfg(test)]
mod tests;

pub(crate) use change::Change;
pub(crate) use layers::{Leaf, Part};
pub(crate) use open::Opening;

use crate::serve::work::{Outcome, Trouble, Work};
use catena_blockio::{Completion, Engine, Op, Pool};
use catena_chain::Slot;
use catena_control::{Holding, News};
use catena_types::{Bytes, FileOffset, VdiUuid};
use change::{Prepared, Questions, weight};
use enlarge::Enlarging;
use fetch::{Fetch, Learning};
use layers::Layers;
use locks::{Access, Locks};
use moving::Moving;
use pending::Pending;
use slab::Slab;
use space::Space;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Instant;
use target::Targets;
use task::{Kind, Poll, Stage, Step, Task};
use widen::{Watermark, Widening};

/// The most bytes of requests that the disk takes at a time.
const IN_FLIGHT: u64 = 64 << 20;
/// The most blocks that one status answer, or one look ahead, is about.
const STATUS_BLOCKS: u64 = 256;

/// What an operation that was submitted is for.
enum Waiting {
    /// A run of a request's data.
    Data { task: usize, part: usize, range: Range<usize> },
    /// A bitmap.
    Bitmap { slot: Slot, at: FileOffset },
    /// The data of a request's next piece.
    Piece { task: usize },
    /// What an image needs before more of it is used.
    Growth { slot: Slot },
    /// The commit of an image that is under way.
    Commit { slot: Slot },
    /// Something that the keeper has asked for.
    Answer { question: u64 },
    /// A larger form of an image.
    Larger,
    /// The barrier of the leaf that was replaced in that state of the chain.
    Sealed { question: u64, epoch: u64 },
    /// A window of a leaf merge.
    Copied { task: usize },
    /// The end of writing to the image that the leaf was to be emptied into.
    Left,
}

/// The disk.
pub(crate) struct Disk {
    vdi: VdiUuid,
    layers: Layers,
    pool: Pool,
    /// There while there is a leaf.
    pending: Option<Pending>,
    tasks: Slab<Task>,
    waiting: Slab<Waiting>,
    locks: Locks,
    /// Requests that may be able to go on.
    ready: VecDeque<usize>,
    learning: HashMap<(Slot, FileOffset), Learning>,
    /// The images that are written.
    targets: Targets,
    /// Requests that wait for room in `pending`.
    room: Vec<usize>,
    /// The leaf that was replaced is being made durable: the requests that wait for that.
    sealing: Option<Vec<usize>>,
    space: Space,
    waits_when_full: bool,
    /// Why nothing is written any more.
    failed: Option<String>,
    /// What is prepared, and what writes are held back for.
    holding: Holding<Prepared>,
    held: VecDeque<(u64, Work)>,
    /// Requests that have got their lock while writes are held back.
    frozen: Vec<usize>,
    /// Requests that have begun to change the disk, have not come to the end of that, and do not wait for space.
    changing: usize,
    enlarging: Option<Enlarging>,
    watermark: Option<Watermark>,
    widening: Option<Widening>,
    moving: Option<Moving>,
    /// Counts the states of the chain, and how many requests work with each.
    epoch: u64,
    in_epoch: BTreeMap<u64, usize>,
    questions: Questions,
    news: Vec<News>,
    in_flight: u64,
    /// Requests that have ended, with their weight.
    done: Vec<(u64, u64, Outcome)>,
}

impl Disk {
    /// Takes a request. The caller has asked [`can_take`](Self::can_take) before it has read it from the socket.
    pub(crate) fn submit(&mut self, request: u64, work: Work, engine: &mut dyn Engine) {
        self.in_flight += weight(&work);
        let changes = !matches!(work, Work::Read { .. } | Work::Cache { .. } | Work::Status { .. });
        let refused = match (&work, changes) {
            _ if self.is_stopping() => Some(Outcome::Failed(Trouble::ShuttingDown)),
            (Work::Flush, _) if self.layers.leaf().is_none() => Some(Outcome::Done),
            (_, true) if self.layers.leaf().is_none() => Some(Outcome::Failed(Trouble::ReadOnly)),
            (_, true) if self.failed.is_some() => Some(Outcome::Failed(Trouble::Io)),
            _ => None,
        };
        if let Some(outcome) = refused {
            self.done.push((request, weight(&work), outcome));
        } else if changes && self.holds_back() {
            self.held.push_back((request, work));
        } else {
            self.admit(request, work);
        }
        self.run(engine);
    }

    /// An operation has ended.
    pub(crate) fn completed(&mut self, completion: Completion, engine: &mut dyn Engine) {
        let token = usize::try_from(completion.token).unwrap_or(usize::MAX);
        match self.waiting.remove(token) {
            Some(Waiting::Data { task, part, range }) => self.fetched(task, part, range, completion),
            Some(Waiting::Bitmap { slot, at }) => self.learned(slot, at, completion),
            Some(Waiting::Piece { task }) => self.landed(task, completion),
            Some(Waiting::Growth { slot }) => self.grown(slot, completion.result),
            Some(Waiting::Commit { slot }) => self.committed(slot, completion.result),
            Some(Waiting::Answer { question }) => self.called(question, completion.result),
            Some(Waiting::Larger) => self.grew(completion.result),
            Some(Waiting::Sealed { question, epoch }) => self.sealed(question, epoch, completion.result),
            Some(Waiting::Copied { task }) => self.copied(task, completion),
            Some(Waiting::Left) => self.sealed_into(completion.result),
            None => {}
        }
        self.run(engine);
    }

    /// The requests that have ended since the last call.
    pub(crate) fn finished(&mut self) -> Vec<(u64, Outcome)> {
        let done = std::mem::take(&mut self.done);
        self.in_flight -= done.iter().map(|(_, weight, _)| weight).sum::<u64>();
        done.into_iter().map(|(request, _, outcome)| (request, outcome)).collect()
    }

    /// Whether another request may be read from a socket.
    pub(crate) const fn can_take(&self) -> bool {
        self.in_flight < IN_FLIGHT
    }

    /// Where buffers for requests come from, and where those of answers go.
    pub(crate) const fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Size of the disk.
    pub(crate) fn size(&self) -> Bytes {
        self.layers.size()
    }

    /// When [`tick`](Self::tick) is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let commits = self.targets.iter().filter_map(|target| target.commits.deadline());
        commits.chain(self.space.deadline()).chain(self.moving_deadline()).min()
    }

    /// The time is `now`.
    pub(crate) fn tick(&mut self, now: Instant, engine: &mut dyn Engine) {
        self.targets.iter_mut().for_each(|target| target.commits.tick(now));
        self.tick_moving(now);
        self.retry(now, engine);
        self.run(engine);
    }

    /// What happened unasked since the last call.
    pub(crate) fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Why nothing is written any more, if so.
    #[cfg(test)]
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    fn admit(&mut self, request: u64, work: Work) {
        let weight = weight(&work);
        let most = STATUS_BLOCKS * catena_types::BLOCK_BYTES;
        let mut task = match work {
            Work::Read { at, len } => Task::new(request, Kind::Read, at, len.into()),
            Work::Cache { at, len } => Task::new(request, Kind::Cache, at, u64::from(len).min(most)),
            Work::Status { at, len, one } => {
                Task::new(request, Kind::Status { one }, at, u64::from(len).min(most))
            }
            Work::Flush => Task::new(request, Kind::Flush, 0, 0),
            Work::Write { at, len, data, fua } => {
                let mut task = Task::new(request, Kind::Write, at, len.into());
                task.fua = fua;
                if len > 0 {
                    task.lay_out_write(data);
                }
                task
            }
            Work::Trim { at, len, fua } => {
                let mut task = Task::new(request, Kind::Trim, at, len.into());
                task.fua = fua;
                task
            }
            Work::Zeroes { at, len, fua, no_hole, fast } => {
                let mut task = Task::new(request, Kind::Zeroes { no_hole }, at, len.into());
                task.fua = fua;
                task.stage = if fast { Stage::Check } else { Stage::Start };
                task.lay_out_zeroes();
                task
            }
        };
        task.weight = weight;
        let sectors = task.sectors();
        let access = if task.changes() { Access::Exclusive } else { Access::Shared };
        let index = self.tasks.insert(task);
        if sectors.is_empty() || self.locks.acquire(index, sectors, access) {
            self.ready.push_back(index);
        }
    }

    /// Moves on whatever can go on.
    fn run(&mut self, engine: &mut dyn Engine) {
        loop {
            while !self.is_growing()
                && let Some(index) = self.ready.pop_front()
            {
                self.advance(index, engine);
            }
            self.pump_growth(engine);
            let widening = !self.is_growing() && self.pump_widening();
            let committing = self.pump_commits(engine);
            let moving = !self.is_growing() && self.pump_moving(engine);
            let holding = self.pump_hold(engine);
            let further = widening || committing || moving || holding;
            if (self.ready.is_empty() || self.is_growing()) && !further {
                return self.watch_room();
            }
        }
    }

    fn advance(&mut self, index: usize, engine: &mut dyn Engine) {
        let Some(mut task) = self.tasks.take(index) else { return };
        let outcome = loop {
            match self.step(index, &mut task, engine) {
                Step::Again => {}
                Step::Wait => return self.tasks.put_back(index, task),
                Step::End(outcome) => break outcome,
            }
        };
        self.end(index, task, outcome);
    }

    fn end(&mut self, index: usize, mut task: Task, outcome: Outcome) {
        self.release(index);
        self.leave_epoch(&mut task);
        if task.changes() && task.started && !task.parked && task.stage != Stage::Durable {
            self.changing -= 1;
        }
        self.went_well(&mut task);
        for buf in [task.buf.take(), task.zeros.take()].into_iter().flatten() {
            self.pool.give(buf);
        }
        self.tasks.free(index);
        if task.kind == Kind::Move {
            return self.move_task_ends();
        }
        self.done.push((task.request, task.weight, outcome));
    }

    /// Those who have waited for the sectors of the request go on.
    fn release(&mut self, index: usize) {
        let mut granted = Vec::new();
        self.locks.release(index, &mut granted);
        self.ready.extend(granted);
    }

    /// One step of a request that has its lock.
    fn step(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Step {
        if task.kind == Kind::Move {
            return self.step_move(index, task, engine);
        }
        if let Some(trouble) = task.trouble.take() {
            return Step::End(Outcome::Failed(trouble));
        }
        if self.failed.is_some() && task.changes() && task.is_between_operations() {
            return Step::End(Outcome::Failed(Trouble::Io));
        }
        if task.parked || !self.may_start(index, task) {
            return Step::Wait;
        }
        match task.kind {
            Kind::Read => self.step_read(index, task, engine),
            Kind::Cache | Kind::Status { .. } => self.step_status(index, task, engine),
            Kind::Write | Kind::Zeroes { .. } | Kind::Trim | Kind::Flush => {
                self.step_change(index, task, engine)
            }
            Kind::Move => Step::Wait,
        }
    }

    /// Lets a request begin that has its lock, unless writes are held back.
    fn may_start(&mut self, index: usize, task: &mut Task) -> bool {
        if !task.started && !task.sectors().is_empty() && !self.locks.has(index) {
            // Woken for nothing.
            return false;
        }
        if !task.started && task.changes() {
            if self.is_quiescing() {
                self.frozen.push(index);
                return false;
            }
            self.changing += 1;
        }
        task.started = true;
        true
    }

    fn step_read(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Step {
        if task.stage == Stage::Start {
            task.stage = Stage::Pieces;
            task.fetch = Some(Fetch::of(task.range.clone()));
        }
        match self.fetch(index, task, engine) {
            Poll::Pending => Step::Wait,
            Poll::Failed(trouble) => Step::End(Outcome::Failed(trouble)),
            Poll::Ready => {
                let segments = task.fetch.take().map(Fetch::into_segments).unwrap_or_default();
                Step::End(Outcome::Data(segments))
            }
        }
    }

    fn step_change(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Step {
        let poll = match task.stage {
            Stage::Start => {
                task.stage = if task.kind == Kind::Trim { Stage::Window } else { Stage::Edges };
                return Step::Again;
            }
            Stage::Check => self.check_fast(index, task, engine),
            Stage::Edges | Stage::Pieces => self.step_write(index, task, engine),
            Stage::Window => self.plan_window(index, task, engine),
            Stage::GiveUp if task.given_up => Poll::Ready,
            Stage::Durable if task.durable => return Step::End(Outcome::Done),
            Stage::GiveUp | Stage::Durable => Poll::Pending,
        };
        match poll {
            Poll::Pending => Step::Wait,
            Poll::Failed(trouble) => Step::End(Outcome::Failed(trouble)),
            Poll::Ready => self.next_stage(index, task),
        }
    }

    /// What comes after a stage that is over.
    fn next_stage(&mut self, index: usize, task: &mut Task) -> Step {
        if task.stage == Stage::Check {
            task.stage = Stage::Start;
            return Step::Again;
        }
        if task.stage == Stage::Window {
            task.stage = Stage::Pieces;
            return Step::Again;
        }
        if task.stage == Stage::Pieces && !task.give_up.is_empty() {
            let Some(slot) = task.give_up_of else { return Step::End(Outcome::Failed(Trouble::ReadOnly)) };
            if !self.may_give_up(slot) {
                // It has waited for space, and no change of the chain waits for that: what it found out is no longer so.
                task.give_up.clear();
                (task.cursor, task.stage) = (task.range.start, Stage::Window);
                return Step::Again;
            }
            task.stage = Stage::GiveUp;
            self.wait_for_give_up(slot, index, task);
            return Step::Wait;
        }
        if matches!(task.kind, Kind::Zeroes { .. } | Kind::Trim) && !Self::windows_are_over(task) {
            task.stage = Stage::Window;
            return Step::Again;
        }
        if task.fua || task.kind == Kind::Flush {
            task.stage = Stage::Durable;
            // It changes nothing more and reads nothing more: a hold covers it, and neither that nor a change of the chain waits until
            // it is answered, which a hold may put off.
            self.changing -= 1;
            self.release(index);
            self.leave_epoch(task);
            self.wait_for_all(index, task);
            return Step::Wait;
        }
        Step::End(Outcome::Done)
    }

    /// Has it done elsewhere.
    fn start(&mut self, waiting: Waiting, op: Op, engine: &mut dyn Engine) {
        let token = self.waiting.insert(waiting);
        engine.submit(token as u64, op);
    }

    /// From here on the request works with the chain as it is.
    fn enter_epoch(&mut self, task: &mut Task) {
        if task.epoch.is_none() {
            task.epoch = Some(self.epoch);
            *self.in_epoch.entry(self.epoch).or_default() += 1;
        }
    }

    /// The request has nothing in its hands that the chain must keep.
    fn leave_epoch(&mut self, task: &mut Task) {
        let Some(epoch) = task.epoch.take() else { return };
        if let Some(count) = self.in_epoch.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.in_epoch.remove(&epoch);
                self.answer_retired();
            }
        }
    }

    /// For the log: the client is told no more than that it failed.
    fn note_failure(&self, message: &str) {
        tracing::warn!(leaf = ?self.layers.leaf_slot(), "{message}");
    }
}
