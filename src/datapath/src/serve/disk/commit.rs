//! Group commit: what many writes have noted goes to an image with one barrier between data and pointers.
//!
//! ```text
//!   flush, FUA, 1 s, 256 blocks, no room in pending ──▶ begin ──▶ barrier, pointers ──▶ end: clear pending
//!                                                          ▲             │   │ storage full: run again later
//!             somebody waits for the pointers, or 1 s ─────┤             └── answer whom the one before has covered
//!                                                          └── whoever comes meanwhile waits for the next
//! ```
//!
//! A commit has one barrier. It is behind the data of what the commit covers, before its pointers (D1), and behind the pointers
//! that the commit before has written: those are durable then, and who waited for them is answered. So in a row of commits each
//! costs one barrier; the last of the row takes another, which is a commit of nothing. What stands in `pending` only outlives the
//! process, so it is cleared when the pointers are written (D7).
//!
//! Each image that is written has its own; whoever wants all to be durable waits for one of each (D9). Giving sectors up takes
//! turns with it. After a failure nothing is known of what is stored: writes and flushes fail until the disk is opened again, when
//! what `pending` holds is stored anew.

use super::task::Task;
use super::write::{Growth, is_full};
use super::{Disk, Waiting};
use crate::crash;
use crate::serve::work::Trouble;
use catena_blockio::{Container, Engine, Op};
use catena_chain::{Commit, Error, Plan, Slot};
use catena_control::News;
use catena_types::BlockIndex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long something may be noted and not stored.
const AGE: Duration = Duration::from_secs(1);
/// So many blocks are stored at once.
const BLOCKS: usize = 256;

/// What is waiting for a commit of one image, and the one under way.
#[derive(Default)]
pub(super) struct Commits {
    running: Option<Running>,
    /// The last commit has written pointers that no barrier has made durable yet: the requests that wait for that.
    written: Option<Vec<usize>>,
    /// Requests that a commit must cover which begins from now on.
    waiters: Vec<usize>,
    /// Requests that have sectors to give up.
    give_ups: Vec<usize>,
    /// Data were written since the last commit began.
    pub(super) unflushed: bool,
    noted_since: Option<Instant>,
    /// The time has come.
    due: bool,
    /// Writes are going to be held back, or are, and that needs a commit.
    for_hold: bool,
    gave_up_last: bool,
}

struct Running {
    commit: Commit,
    plan: Arc<Plan>,
    gives_up: bool,
    covers: Vec<usize>,
    /// Of a commit, the new ones that it stores; of a give-up, all.
    blocks: Vec<BlockIndex>,
    for_hold: bool,
    /// The storage was full; it is run again.
    full: bool,
}

impl Commits {
    /// Something was noted.
    pub(super) fn noted(&mut self) {
        self.noted_since.get_or_insert_with(Instant::now);
    }

    /// When a commit begins, if nobody asks for one before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.noted_since.filter(|_| self.running.is_none()).map(|since| since + AGE)
    }

    /// The time is `now`.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            (self.due, self.noted_since) = (true, None);
        }
    }

    /// A commit of what there is now is wanted by whoever holds writes back.
    pub(super) const fn want_for_hold(&mut self) {
        self.for_hold = true;
    }

    /// Whether what was wanted for a hold is still to come.
    pub(super) fn owes_hold(&self) -> bool {
        self.for_hold || self.running.as_ref().is_some_and(|running| running.for_hold)
    }

    /// Whether pointers are written that are not durable.
    pub(super) const fn are_written_only(&self) -> bool {
        self.written.is_some()
    }

    /// Who waits for the pointers that are written.
    pub(super) fn take_written(&mut self) -> Option<Vec<usize>> {
        self.written.take()
    }

    /// Whether a commit waits for space.
    pub(super) fn is_full(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.full)
    }

    /// Whether nothing is on its way and nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        let waits = !self.waiters.is_empty() || !self.give_ups.is_empty();
        self.running.is_none() && self.written.is_none() && !waits && !self.unflushed
    }

    /// Begins a commit as soon as that can be; whether that was not so before.
    pub(super) const fn hurry(&mut self) -> bool {
        !std::mem::replace(&mut self.due, true)
    }

    fn is_wanted(&self) -> bool {
        let awaited = self.written.as_ref().is_some_and(|covers| !covers.is_empty());
        self.due || self.for_hold || awaited || !self.waiters.is_empty()
    }

    /// Answers the request when all that was answered before is durable.
    fn wait(&mut self, index: usize) {
        match &mut self.running {
            // Nothing has come since it began.
            Some(running) if !self.unflushed && !running.gives_up => running.covers.push(index),
            _ => self.waiters.push(index),
        }
    }

    /// All who wait, after a failure.
    fn take_all(&mut self) -> Vec<usize> {
        let mut all = std::mem::take(&mut self.waiters);
        all.append(&mut self.give_ups);
        all.extend(self.written.take().unwrap_or_default());
        if let Some(running) = &mut self.running {
            all.append(&mut running.covers);
        }
        all
    }

    /// The request does not wait any more.
    fn forget(&mut self, index: usize) {
        let covers = self.running.as_mut().map(|running| &mut running.covers);
        for list in [&mut self.waiters, &mut self.give_ups].into_iter().chain(covers).chain(&mut self.written)
        {
            list.retain(|&waiter| waiter != index);
        }
    }
}

impl Disk {
    /// Answers the request when all that was answered before is durable, in every image that is written.
    pub(super) fn wait_for_all(&mut self, index: usize, task: &mut Task) {
        (task.durable, task.awaits) = (false, 0);
        for target in self.targets.iter_mut() {
            target.commits.wait(index);
            task.awaits += 1;
        }
    }

    /// Answers it when what was written to this image is.
    pub(super) fn wait_for(&mut self, slot: Slot, index: usize, task: &mut Task) {
        (task.durable, task.awaits) = (false, 1);
        if let Some(target) = self.targets.get_mut(slot) {
            target.commits.waiters.push(index);
        }
    }

    /// Gives up what the request wants to give up of the image.
    pub(super) fn wait_for_give_up(&mut self, slot: Slot, index: usize, task: &mut Task) {
        (task.given_up, task.durable, task.awaits) = (false, false, 1);
        if let Some(target) = self.targets.get_mut(slot) {
            target.commits.give_ups.push(index);
        }
    }

    /// Begins what is to be begun. Whether that has woken somebody at once.
    pub(super) fn pump_commits(&mut self, engine: &mut dyn Engine) -> bool {
        let mut woken = false;
        for slot in self.targets.slots() {
            woken |= self.pump_commits_of(slot, engine);
        }
        woken
    }

    fn pump_commits_of(&mut self, slot: Slot, engine: &mut dyn Engine) -> bool {
        let Some((target, pending)) = self.targets.get(slot).zip(self.pending.as_ref()) else { return false };
        let commits = &target.commits;
        if commits.running.is_some() || self.sealing.is_some() || self.failed.is_some() {
            return false;
        }
        // Writes that are held back wait for one barrier: nothing else is begun but what they need to come to an end.
        let in_need = !self.room.is_empty() || !commits.give_ups.is_empty();
        if self.holds_commits_back() && !commits.for_hold && !in_need {
            return false;
        }
        let noted = pending.noted(target.image);
        // Room in `pending` is everybody's.
        let wanted = commits.is_wanted() || noted >= BLOCKS || noted > 0 && !self.room.is_empty();
        let commit_first = wanted && commits.gave_up_last;
        if !commit_first && !commits.give_ups.is_empty() {
            if self.gives_up_what_is_noted(slot) {
                return self.begin_commit(slot, engine);
            }
            return self.begin_give_up(slot, engine);
        }
        if !wanted {
            return false;
        }
        if noted == 0 && !commits.unflushed && !commits.are_written_only() {
            return self.nothing_to_commit(slot);
        }
        self.begin_commit(slot, engine)
    }

    /// Whether sectors that are to be given up may be noted: then they are stored first.
    fn gives_up_what_is_noted(&mut self, slot: Slot) -> bool {
        let Some((target, pending)) = self.targets.get(slot).zip(self.pending.as_ref()) else { return false };
        let tasks = &mut self.tasks;
        target.commits.give_ups.iter().any(|&index| {
            let sets = tasks.get_mut(index).map(|task| &task.give_up);
            sets.is_some_and(|sets| sets.iter().any(|(block, _)| pending.notes(target.image, *block)))
        })
    }

    /// All that was answered is durable already.
    fn nothing_to_commit(&mut self, slot: Slot) -> bool {
        let Some(target) = self.targets.get_mut(slot) else { return false };
        let waiters = std::mem::take(&mut target.commits.waiters);
        target.commits.due = false;
        let for_hold = std::mem::take(&mut target.commits.for_hold);
        let woken = !waiters.is_empty() || for_hold;
        self.covered(waiters);
        woken
    }

    fn begin_commit(&mut self, slot: Slot, engine: &mut dyn Engine) -> bool {
        let (image, target) = (self.layers.written(slot), self.targets.get_mut(slot));
        let Some(((image, target), pending)) = image.zip(target).zip(self.pending.as_mut()) else {
            return false;
        };
        let commit = match image.layer.begin_store() {
            Ok(Some(commit)) => commit,
            Ok(None) => return false,
            Err(error) => return self.fail(&error.to_string()),
        };
        let noted = pending.blocks(target.image);
        pending.begin_commit(target.image);
        let blocks = noted.into_iter().filter(|block| target.new_blocks.contains(block)).collect();
        let commits = &mut target.commits;
        let covers = std::mem::take(&mut commits.waiters);
        let for_hold = std::mem::take(&mut commits.for_hold);
        (commits.unflushed, commits.due, commits.gave_up_last) = (false, false, false);
        commits.noted_since = None;
        self.run_commit(slot, Running::new(commit, false, covers, blocks, for_hold), engine);
        true
    }

    fn begin_give_up(&mut self, slot: Slot, engine: &mut dyn Engine) -> bool {
        let (image, target) = (self.layers.written(slot), self.targets.get_mut(slot));
        let Some((image, target)) = image.zip(target) else { return false };
        let covers = std::mem::take(&mut target.commits.give_ups);
        let mut sets = Vec::new();
        for &index in &covers {
            sets.append(
                &mut self
                    .tasks
                    .get_mut(index)
                    .map(|task| std::mem::take(&mut task.give_up))
                    .unwrap_or_default(),
            );
        }
        // D2: nobody reads or writes these blocks: the requests have them locked.
        match image.layer.begin_give_up(&sets) {
            Ok(commit) => {
                target.commits.gave_up_last = true;
                let blocks = sets.into_iter().map(|(block, _)| block).collect();
                self.run_commit(slot, Running::new(commit, true, covers, blocks, false), engine);
                true
            }
            Err(error) => {
                target.commits.give_ups = covers;
                self.fail(&error.to_string())
            }
        }
    }

    fn run_commit(&mut self, slot: Slot, running: Running, engine: &mut dyn Engine) {
        if let Some(target) = self.targets.get_mut(slot) {
            target.commits.running = Some(running);
        }
        self.send_commit(slot, engine);
    }

    /// Has the plan of the commit run, for the first time or again.
    fn send_commit(&mut self, slot: Slot, engine: &mut dyn Engine) {
        let running = self.targets.get_mut(slot).and_then(|target| target.commits.running.as_mut());
        let Some((running, image)) = running.zip(self.layers.written(slot)) else { return };
        running.full = false;
        let (plan, container) = (running.plan.clone(), image.container.clone());
        let run = move || plan.run(&*container).map_err(|error| really_full(error, &*container));
        self.start(Waiting::Commit { slot }, Op::Call(Box::new(run)), engine);
    }

    /// Tries the commits again that had found the storage full.
    pub(super) fn retry_commits(&mut self, engine: &mut dyn Engine) {
        for slot in self.targets.slots() {
            if self.targets.get(slot).is_some_and(|target| target.commits.is_full()) {
                self.send_commit(slot, engine);
            }
        }
    }

    /// A commit or a give-up has been run.
    pub(super) fn committed(&mut self, slot: Slot, result: io::Result<()>) {
        let Some(target) = self.targets.get_mut(slot) else { return };
        let Some(mut running) = target.commits.running.take() else { return };
        if let Err(error) = &result
            && is_full(error.raw_os_error())
        {
            running.full = true;
            let told = !self.waits_when_full && !running.gives_up;
            let fails = if told { std::mem::take(&mut running.covers) } else { Vec::new() };
            target.commits.running = Some(running);
            for index in fails {
                self.targets.iter_mut().for_each(|target| target.commits.forget(index));
                self.trouble(index, Trouble::NoSpace);
            }
            return self.storage_is_full();
        }
        let Running { commit, plan, gives_up, covers, blocks, for_hold, .. } = running;
        let ended = self.layers.written(slot).map_or(Ok(()), |image| {
            if gives_up {
                image.layer.end_give_up(commit, result.is_ok())
            } else {
                image.layer.end_commit(commit, result.is_ok())
            }
        });
        if let Err(error) = result.map_err(Error::io("storing what was written")).and(ended) {
            target.commits.waiters.extend(covers);
            target.commits.for_hold |= for_hold;
            self.fail(&with_source(&error));
            return;
        }
        // The pointers of the commit before were written when this one began.
        let before = if plan.has_barrier() { target.commits.take_written() } else { None };
        if gives_up {
            blocks.into_iter().for_each(|block| self.layers.forget(block));
            self.covered(covers);
        } else {
            self.stored(slot, &plan, covers, &blocks);
        }
        self.covered(before.unwrap_or_default());
        self.maybe_free();
    }

    /// What a commit was to store is on the image, and durable if its plan ends with a barrier.
    fn stored(&mut self, slot: Slot, plan: &Plan, covers: Vec<usize>, blocks: &[BlockIndex]) {
        let Some(target) = self.targets.get_mut(slot) else { return };
        for block in blocks {
            target.new_blocks.remove(block);
        }
        if let Some(pending) = &mut self.pending {
            crash::SERVE_STORED.pass();
            pending.end_commit(target.image);
        }
        self.ready.extend(std::mem::take(&mut self.room));
        if plan.ends_with_barrier() {
            self.covered(covers);
        } else {
            target.commits.written = Some(covers);
            target.commits.noted();
        }
    }

    /// These requests have what they waited for, of one image.
    pub(super) fn covered(&mut self, waiters: Vec<usize>) {
        for index in waiters {
            if let Some(task) = self.tasks.get_mut(index) {
                task.awaits = task.awaits.saturating_sub(1);
                if task.awaits == 0 {
                    (task.durable, task.given_up) = (true, true);
                    self.ready.push_back(index);
                }
            }
        }
    }

    /// Nothing is known any more of what is stored: all who wait are told, and whoever comes. Returns true, as somebody is woken.
    pub(super) fn fail(&mut self, message: &str) -> bool {
        self.failed = Some(message.to_owned());
        self.news.push(News::StorageFailed { message: message.to_owned() });
        let mut waiting = std::mem::take(&mut self.room);
        waiting.append(&mut self.sealing.take().unwrap_or_default());
        for target in self.targets.iter_mut() {
            waiting.append(&mut target.commits.take_all());
            waiting.extend(target.growth.take().map(Growth::into_waiters).unwrap_or_default());
        }
        for index in waiting {
            self.trouble(index, Trouble::Io);
        }
        self.fail_parked(Trouble::Io);
        self.wake_move();
        self.hold_has_failed();
        true
    }

    /// Ends a request that waits, badly.
    pub(super) fn trouble(&mut self, index: usize, trouble: Trouble) {
        if let Some(task) = self.tasks.get_mut(index) {
            task.trouble = Some(trouble);
            self.ready.push_back(index);
        }
    }
}

impl Running {
    fn new(
        mut commit: Commit,
        gives_up: bool,
        covers: Vec<usize>,
        blocks: Vec<BlockIndex>,
        for_hold: bool,
    ) -> Self {
        let plan = Arc::new(std::mem::take(&mut commit.plan));
        Self { commit, plan, gives_up, covers, blocks, for_hold, full: false }
    }
}

/// After a barrier that failed every later one fails, and to run the plan again would promise what nobody knows. So an error that
/// says "full" counts as one only if a barrier works.
fn really_full(error: io::Error, container: &dyn Container) -> io::Error {
    if !is_full(error.raw_os_error()) {
        return error;
    }
    container.flush().err().map_or(error, |error| io::Error::other(error.to_string()))
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
