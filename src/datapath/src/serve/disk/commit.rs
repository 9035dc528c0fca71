//! Group commit: what many writes have noted goes to the image with one barrier between data and pointers.
//!
//! ```text
//!   flush, FUA, 1 s, 256 blocks, no room in pending ──▶ begin ──▶ plan runs elsewhere ──▶ end: answer, clear pending
//!                                                          ▲              │ storage full: run again later
//!                                                          └── whoever comes meanwhile waits for the next
//! ```
//!
//! Whatever was answered before a commit begins is durable when it ends (D9). Giving sectors up takes turns with it. After a
//! failure nothing is known of what is stored: writes and flushes fail until the disk is opened again, when what `pending` holds
//! is stored anew.

use super::write::is_full;
use super::{Disk, Waiting};
use crate::crash;
use crate::serve::work::Trouble;
use catena_blockio::{Container, Engine, Op};
use catena_chain::{Commit, Error, Plan};
use catena_control::News;
use catena_types::BlockIndex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long something may be noted and not stored.
const AGE: Duration = Duration::from_secs(1);
/// So many blocks are stored at once.
const BLOCKS: usize = 256;

/// What is waiting for a commit, and the one under way.
#[derive(Default)]
pub(super) struct Commits {
    running: Option<Running>,
    /// Requests that a commit must cover which begins from now on.
    waiters: Vec<usize>,
    /// Requests that wait for room in `pending`.
    pub(super) room: Vec<usize>,
    /// Requests that have sectors to give up.
    give_ups: Vec<usize>,
    /// Data were written since the last commit began.
    pub(super) unflushed: bool,
    noted_since: Option<Instant>,
    /// The time has come.
    due: bool,
    /// Writes are being held back, and all must be durable.
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
        self.due |= self.deadline().is_some_and(|deadline| deadline <= now);
    }

    /// Answers the request when all that was answered before is durable.
    pub(super) fn wait(&mut self, index: usize) {
        self.waiters.push(index);
    }

    /// Gives up what the request wants to give up.
    pub(super) fn give_up(&mut self, index: usize) {
        self.give_ups.push(index);
    }

    /// Everything must be durable, since writes are held back.
    pub(super) fn want_for_hold(&mut self) {
        self.for_hold = true;
    }

    /// It is.
    pub(super) const fn is_enough_for_hold(&mut self) {
        self.for_hold = false;
    }

    /// Whether a commit waits for space.
    pub(super) fn is_full(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.full)
    }

    fn is_wanted(&self) -> bool {
        self.due || self.for_hold || !self.waiters.is_empty() || !self.room.is_empty()
    }

    /// All who wait, after a failure.
    fn take_all(&mut self) -> Vec<usize> {
        let mut all = std::mem::take(&mut self.waiters);
        all.append(&mut self.room);
        all.append(&mut self.give_ups);
        all
    }
}

impl Disk {
    /// Begins what is to be begun. Whether that has woken somebody at once.
    pub(super) fn pump_commits(&mut self, engine: &mut dyn Engine) -> bool {
        let Some(pending) = &self.pending else { return self.nothing_to_commit() };
        if self.commits.running.is_some() || self.failed.is_some() {
            return false;
        }
        let noted = pending.noted();
        let wanted = self.commits.is_wanted() || noted >= BLOCKS;
        let commit_first = wanted && self.commits.gave_up_last;
        if !commit_first && !self.commits.give_ups.is_empty() {
            if self.gives_up_what_is_noted() {
                return self.begin_commit(engine);
            }
            return self.begin_give_up(engine);
        }
        if !wanted {
            return false;
        }
        if noted == 0 && !self.commits.unflushed {
            return self.nothing_to_commit();
        }
        self.begin_commit(engine)
    }

    /// Whether sectors that are to be given up may be noted: then they are stored first.
    fn gives_up_what_is_noted(&mut self) -> bool {
        let Some(pending) = &self.pending else { return false };
        let tasks = &mut self.tasks;
        self.commits.give_ups.iter().any(|&index| {
            let sets = tasks.get_mut(index).map(|task| &task.give_up);
            sets.is_some_and(|sets| sets.iter().any(|(block, _)| pending.notes(*block)))
        })
    }

    /// All that was answered is durable already.
    fn nothing_to_commit(&mut self) -> bool {
        let waiters = std::mem::take(&mut self.commits.waiters);
        self.commits.due = false;
        let for_hold = std::mem::take(&mut self.commits.for_hold);
        let woken = !waiters.is_empty() || for_hold;
        self.covered(waiters);
        if for_hold {
            self.held_is_durable();
        }
        woken
    }

    fn begin_commit(&mut self, engine: &mut dyn Engine) -> bool {
        let Some((leaf, pending)) = self.layers.leaf().zip(self.pending.as_mut()) else { return false };
        let commit = match leaf.layer.begin_commit() {
            Ok(Some(commit)) => commit,
            Ok(None) => return false,
            Err(error) => return self.fail(&error.to_string()),
        };
        let noted = pending.blocks();
        pending.begin_commit();
        let blocks = noted.into_iter().filter(|block| self.new_blocks.contains(block)).collect();
        let commits = &mut self.commits;
        let covers = std::mem::take(&mut commits.waiters);
        let for_hold = std::mem::take(&mut commits.for_hold);
        (commits.unflushed, commits.due, commits.gave_up_last) = (false, false, false);
        commits.noted_since = None;
        self.run_commit(commit, false, covers, blocks, for_hold, engine);
        true
    }

    fn begin_give_up(&mut self, engine: &mut dyn Engine) -> bool {
        let covers = std::mem::take(&mut self.commits.give_ups);
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
        let Some(leaf) = self.layers.leaf() else { return false };
        // D2: nobody reads or writes these blocks: the requests have them locked.
        match leaf.layer.begin_give_up(&sets) {
            Ok(commit) => {
                self.commits.gave_up_last = true;
                let blocks = sets.into_iter().map(|(block, _)| block).collect();
                self.run_commit(commit, true, covers, blocks, false, engine);
                true
            }
            Err(error) => {
                self.commits.give_ups = covers;
                self.fail(&error.to_string())
            }
        }
    }

    fn run_commit(
        &mut self,
        mut commit: Commit,
        gives_up: bool,
        covers: Vec<usize>,
        blocks: Vec<BlockIndex>,
        for_hold: bool,
        engine: &mut dyn Engine,
    ) {
        let plan = Arc::new(std::mem::take(&mut commit.plan));
        self.commits.running =
            Some(Running { commit, plan, gives_up, covers, blocks, for_hold, full: false });
        self.send_commit(engine);
    }

    /// Has the plan of the commit run, for the first time or again.
    fn send_commit(&mut self, engine: &mut dyn Engine) {
        let Some((running, leaf)) = self.commits.running.as_mut().zip(self.layers.leaf()) else { return };
        running.full = false;
        let (plan, container) = (running.plan.clone(), leaf.container.clone());
        let run = move || plan.run(&*container).map_err(|error| really_full(error, &*container));
        self.start(Waiting::Commit, Op::Call(Box::new(run)), engine);
    }

    /// Tries a commit again that had found the storage full.
    pub(super) fn retry_commit(&mut self, engine: &mut dyn Engine) {
        if self.commits.is_full() {
            self.send_commit(engine);
        }
    }

    /// A commit or a give-up has been run.
    pub(super) fn committed(&mut self, result: io::Result<()>) {
        let Some(mut running) = self.commits.running.take() else { return };
        if let Err(error) = &result
            && is_full(error.raw_os_error())
        {
            running.full = true;
            if !self.waits_when_full && !running.gives_up {
                for index in std::mem::take(&mut running.covers) {
                    self.trouble(index, Trouble::NoSpace);
                }
            }
            self.commits.running = Some(running);
            return self.storage_is_full();
        }
        let Running { commit, gives_up, covers, blocks, for_hold, .. } = running;
        let ended = self.layers.leaf().map_or(Ok(()), |leaf| {
            if gives_up {
                leaf.layer.end_give_up(commit, result.is_ok())
            } else {
                leaf.layer.end_commit(commit, result.is_ok())
            }
        });
        if let Err(error) = result.map_err(Error::io("storing what was written")).and(ended) {
            self.commits.waiters.extend(covers);
            self.commits.for_hold |= for_hold;
            self.fail(&with_source(&error));
            return;
        }
        if gives_up {
            blocks.into_iter().for_each(|block| self.layers.forget(block));
        } else {
            if let Some(pending) = &mut self.pending {
                crash::SERVE_STORED.pass();
                pending.end_commit();
            }
            for block in blocks {
                self.new_blocks.remove(&block);
            }
            self.ready.extend(std::mem::take(&mut self.commits.room));
        }
        self.covered(covers);
        if for_hold {
            self.held_is_durable();
        }
        self.maybe_free();
    }

    /// These requests have what they waited for.
    fn covered(&mut self, waiters: Vec<usize>) {
        for index in waiters {
            if let Some(task) = self.tasks.get_mut(index) {
                (task.durable, task.given_up) = (true, true);
                self.ready.push_back(index);
            }
        }
    }

    /// Nothing is known any more of what is stored: all who wait are told, and whoever comes. Returns true, as somebody is woken.
    fn fail(&mut self, message: &str) -> bool {
        self.failed = Some(message.to_owned());
        self.news.push(News::StorageFailed { message: message.to_owned() });
        let growing = self.growth.take().map(super::write::Growth::into_waiters).unwrap_or_default();
        for index in self.commits.take_all().into_iter().chain(growing) {
            self.trouble(index, Trouble::Io);
        }
        self.fail_parked(Trouble::Io);
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
