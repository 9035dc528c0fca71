//! The merge of a leaf that a guest writes: the process that serves the disk moves what the leaf owns into the leaf's parent, as the
//! coalesce worker's one task, and the keeper decides how it ends.
//!
//! ```text
//!  [commit] job ─▶ move_down ─▶ moved ... moved, 0 left ─▶ [commit] vdi -> parent, leaf is garbage ─▶ end_move(complete) ─▶ visible
//!                    │  pause, cancel, an operation on the chain, a failure
//!                    └──────────────────────────▶ end_move(keep) ─▶ [commit] the job waits
//! ```
//!
//! Invariants: from before the first until after the last message the catalog says that a process may have both images open for
//! writing ([`JobRecord::is_open_move`]), so whoever takes over gets both, and nobody else writes to either (D8, D12, D14). What
//! a process has open is brought to what the catalog says whenever it is heard of, and after every commit (`settle`): a crash
//! between any two messages is answered there. Called by the worker (`coalescing`), for every call (`dispatch`), and when a
//! process is taken up (`adoption`).

use crate::coalescing::{Current, task_of_work};
use crate::crash::{self, Phase};
use crate::failures::from_catalog;
use crate::hands::ready;
use crate::owner::{Mail, Owner};
use crate::published::Live;
use crate::serving::{Heard, Link, Move, Served, silent};
use crate::tree::Rows;
use catena_catalog::Change;
use catena_coalesce::{Task, need};
use catena_control::{Ask, Handed, Progress};
use catena_sr_api::Access;
use catena_types::{
    AttachMode, Bytes, ErrorName, Failure, ImageId, JobId, JobKind, JobRecord, JobState, VdiUuid, Work,
};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rest after a process has refused to end a move.
const REST: Duration = Duration::from_secs(5);
/// The rest before a process whose answer is missing is asked anew what it serves.
const BREATH: Duration = Duration::from_millis(50);
/// How often the catalog notes how far a move is. Nothing depends on it: what is left is what the leaf owns.
const NOTED: Duration = Duration::from_secs(1);

/// What is to become of a move that a process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The disk points at the parent: the leaf is let go.
    Completes,
    /// It is what the worker does, or is to do.
    GoesOn(JobId),
    /// The leaf is the only image that is written again.
    Ends,
}

impl Owner {
    /// Disks whose process is there, writes, and reads through what the catalog says (D15): it can merge their leaf. Not while it is
    /// failing, or while it is not known which size the leaf has.
    pub(crate) fn movable(&self) -> BTreeSet<VdiUuid> {
        let state = self.catalog.state();
        let writes =
            |vdi: &VdiUuid| state.attachments.get(vdi).is_some_and(|row| row.mode == AttachMode::ReadWrite);
        let agrees = |vdi: &VdiUuid, chain: &Vec<ImageId>| {
            let leaf = state.vdis.get(vdi).map(|row| row.image);
            leaf.is_some_and(|leaf| state.chain(leaf).map(|image| &image.id).eq(chain))
        };
        let disks = self.serving.disks.iter().filter(|(vdi, served)| {
            served.link.is_some()
                && !served.is_stopping()
                && served.failing.why.is_none()
                && self.refuse_while_resizing(**vdi).is_ok()
                && served.chain.as_ref().is_some_and(|chain| writes(vdi) && agrees(vdi, chain))
        });
        disks.map(|(vdi, _)| *vdi).collect()
    }

    /// The job whose merge the disk's process has open, or may have, as the catalog says.
    pub(crate) fn open_move(&self, vdi: VdiUuid) -> Option<&Arc<JobRecord>> {
        let of_disk =
            |job: &&Arc<JobRecord>| matches!(job.work, Work::LeafMerge { vdi: of, .. } if of == vdi);
        self.catalog.state().unfinished().filter(of_disk).find(|job| job.is_open_move())
    }

    /// The moves that processes have open, or may have: as the catalog says, and as they do.
    pub(crate) fn open_moves(&self) -> Vec<Task> {
        let jobs = self.catalog.state().unfinished().filter(|job| job.is_open_move());
        let mut open: Vec<Task> = jobs.filter_map(|job| task_of_work(&job.work)).collect();
        for (vdi, served) in &self.serving.disks {
            if let (Some(Move { into, .. }), Some(chain)) = (served.moving, &served.chain)
                && let Some(from) = chain.first().copied()
            {
                let task = Task::LeafMerge { vdi: *vdi, from, into };
                if !open.contains(&task) {
                    open.push(task);
                }
            }
        }
        open
    }

    /// Whether the disk's process may have this image open as the second that it writes.
    pub(crate) fn may_move_into(&self, vdi: VdiUuid, image: ImageId) -> bool {
        let said = self.serving.disks.get(&vdi).and_then(|served| served.moving);
        said.is_some_and(|open| open.into == image)
            || self
                .open_move(vdi)
                .is_some_and(|job| matches!(job.work, Work::LeafMerge { into, .. } if into == image))
    }

    /// Begins a merge whose row is written. The process is the only one that writes to the leaf.
    pub(crate) fn start_move(&mut self, job: JobRecord) {
        let Work::LeafMerge { vdi, .. } = job.work else { return };
        if let Err(failure) = self.begin_move(&job) {
            let open = self.serving.disks.get(&vdi).is_some_and(|served| served.moving.is_some());
            self.merge_failed(if open { job } else { closed(&job) }, failure);
        }
    }

    /// Has the process begin. The job's row says already that it may have.
    fn begin_move(&mut self, job: &JobRecord) -> Result<(), Failure> {
        let Work::LeafMerge { vdi, into, .. } = job.work else { return Ok(()) };
        let need = self.need_of_move(job);
        let into_row = self.image(into)?.clone();
        self.hold_space(job.id, &into_row.container, need)?;
        let parent = ready(&*self.store, &into_row, Access::ReadWrite)?;
        let rate = self.policy().rate;
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        let generation = served.next_generation();
        served.moving = Some(Move { rate: Some(rate), heard: false, ..Move::of(into, generation) });
        // What the process has said of an earlier move is in the mailbox by now, and before this.
        let mark = Mail::Served(vdi, served.incarnation, Heard::Moves(generation));
        let _ = self.mailbox.send(mark);
        let (pid, ask) = (served.pid, Ask::MoveDown { generation, into: parent.handed, rate });
        if let Err(failure) = served.link(vdi)?.ask(&ask, vec![parent.fd]) {
            // One that has refused has nothing open; of one that says nothing it is not known.
            if served.link.as_mut().is_some_and(Link::is_sound) {
                served.moving = None;
            } else {
                served.lose(BREATH);
            }
            return Err(failure);
        }
        self.live.insert(job.id, Live::new(pid));
        crash::pass(JobKind::LeafMerge, Phase::Begun);
        Ok(())
    }

    /// What the parent may grow by; nothing where it has its size already. Where there is room for less the leaf gives back behind itself.
    fn need_of_move(&self, job: &JobRecord) -> Bytes {
        let (Some(task), moment) = (task_of_work(&job.work), self.moment()) else { return Bytes(0) };
        let owned = self.image(task.image()).map_or(Bytes(0), |row| row.allocated);
        let roomy = !self.is_sized() && moment.free.0 >= owned.0.saturating_mul(2);
        if roomy { owned } else { need(&Rows(self.catalog.state()), &moment, task) }
    }

    /// Brings the moves of all processes to what the catalog says.
    pub(crate) fn settle_moves(&mut self) {
        let now = Instant::now();
        let due = |(vdi, served): &(&VdiUuid, &Served)| {
            let open = served.moving;
            served.link.is_some()
                && !served.is_stopping()
                && open.map_or_else(
                    || self.open_move(**vdi).is_some(),
                    |open| open.retry_at.is_none_or(|at| at <= now),
                )
        };
        let disks = self.serving.disks.iter().filter(due);
        for vdi in Vec::from_iter(disks.map(|(vdi, _)| *vdi)) {
            if let Err(failure) = self.settle_move(vdi) {
                tracing::error!(%vdi, %failure, "a leaf merge is not brought to what the catalog says");
            }
        }
    }

    /// Brings what the disk's process moves to what the catalog says. The process is there.
    pub(crate) fn settle_move(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let open = self.serving.disks.get(&vdi).and_then(|served| served.moving);
        let Some(open) = open else { return self.record_end(vdi, false) };
        self.resolve_doubt(vdi)?;
        match self.fate(vdi, open.into) {
            Fate::Completes => {
                let ended = self.end_move(vdi, true);
                self.conclude_move(vdi);
                ended
            }
            Fate::GoesOn(job) => {
                self.take_up_move(vdi, job)?;
                self.tell_rate(vdi)?;
                if open.emptied { self.finish_move(vdi) } else { Ok(()) }
            }
            Fate::Ends => {
                self.end_move(vdi, false)?;
                self.record_end(vdi, false)
            }
        }
    }

    /// D19: while the outcome of a commit is unknown nobody knows at which image the disk points.
    fn resolve_doubt(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let resolved = self.catalog.resolve_unknown().map_err(|error| from_catalog(&error));
        resolved.inspect_err(|_| self.rest_move(vdi))
    }

    fn fate(&self, vdi: VdiUuid, into: ImageId) -> Fate {
        if self.catalog.state().vdis.get(&vdi).is_some_and(|row| row.image == into) {
            return Fate::Completes;
        }
        let now = Timestamp::now();
        let goes_on = |job: &&Arc<JobRecord>| {
            let task = task_of_work(&job.work);
            let turn = match self.current {
                Some(current) => current.job == job.id,
                None => !job.state.is_over() && job.retry_at.is_none_or(|at| at <= now),
            };
            turn && task.is_some_and(|task| task.target() == Some(into) && self.still_wanted(task))
        };
        self.open_move(vdi).filter(goes_on).map_or(Fate::Ends, |job| Fate::GoesOn(job.id))
    }

    /// The worker goes on with a move that a process has open: its keeper or the process itself was replaced.
    fn take_up_move(&mut self, vdi: VdiUuid, id: JobId) -> Result<(), Failure> {
        if self.current.is_some() {
            return Ok(());
        }
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return Ok(()) };
        let Work::LeafMerge { from, into, .. } = job.work else { return Ok(()) };
        let need = self.need_of_move(&job);
        let job = JobRecord { state: JobState::Running, phase: "moving".to_owned(), retry_at: None, ..job };
        self.commit(vec![Change::PutJob(job)])?;
        self.current = Some(Current { job: id, task: Task::LeafMerge { vdi, from, into }, growing: false });
        let pid = self.serving.disks.get(&vdi).map_or(0, |served| served.pid);
        self.live.insert(id, Live::new(pid));
        let container = self.image(into)?.container.clone();
        if let Err(failure) = self.hold_space(id, &container, need) {
            tracing::warn!(job = id, %failure, "a merge goes on without space that is promised to it");
        }
        Ok(())
    }

    /// The process moves at the rate of the policy.
    fn tell_rate(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let rate = self.policy().rate;
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return Ok(()) };
        let Some(open) = served.moving.filter(|open| open.rate != Some(rate)) else { return Ok(()) };
        let format = self.catalog.state().images.get(&open.into).map(|row| row.format);
        let format = format.ok_or_else(|| silent(vdi))?;
        let into = Handed { id: open.into, format, any: false };
        let generation = served.next_generation();
        let told = served.link(vdi)?.ask(&Ask::MoveDown { generation, into, rate }, Vec::new());
        match told {
            Ok(_) => served.moving = Some(Move { generation, rate: Some(rate), ..open }),
            Err(_) => self.rest_move(vdi),
        }
        told.map(drop)
    }

    /// A process did not do what it was asked: it is asked again later, and first what it serves if it said nothing at all.
    fn rest_move(&mut self, vdi: VdiUuid) {
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return };
        if !served.link.as_mut().is_some_and(Link::is_sound) {
            served.lose(BREATH);
        }
        if let Some(open) = &mut served.moving {
            open.retry_at = Some(Instant::now() + REST);
        }
    }

    fn end_move(&mut self, vdi: VdiUuid, complete: bool) -> Result<(), Failure> {
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        let Some(open) = served.moving else { return Ok(()) };
        if served.full && !complete {
            // It ends when the writes that are under way have ended, and they wait for space.
            self.rest_move(vdi);
            let text = "the storage is full: writes to the disk wait for space, and a merge of its leaf ends after them";
            let hint = "free space on the SR, or make it larger";
            return Err(Failure::new(ErrorName::NoSpace, text).hint(hint).retry().object("vdi", vdi));
        }
        let ask = Ask::EndMove { generation: open.generation, complete };
        let ended = served.link(vdi).and_then(|link| link.ask(&ask, Vec::new()));
        if let Err(failure) = ended {
            self.rest_move(vdi);
            return Err(failure);
        }
        served.moving = None;
        let below = |chain: &Vec<ImageId>| chain.iter().position(|image| *image == open.into);
        if complete && let Some(chain) = &mut served.chain {
            let above = below(chain).unwrap_or(0);
            chain.drain(..above);
        }
        self.note_served(vdi);
        crash::pass(JobKind::LeafMerge, if complete { Phase::Released } else { Phase::Closed });
        Ok(())
    }

    /// The process has let go of the parent, and so does the catalog.
    fn record_end(&mut self, vdi: VdiUuid, cancelled: bool) -> Result<(), Failure> {
        let Some(job) = self.open_move(vdi).map(|job| closed(job)) else { return Ok(()) };
        self.live.remove(&job.id);
        if cancelled || job.state == JobState::Running {
            self.merge_stopped(job, cancelled);
            return Ok(());
        }
        self.leave_room(&job);
        self.commit(vec![Change::PutJob(job)])
    }

    /// What says that no process has the disk's move open any more: it has ended with all of it durable, or with the host.
    pub(crate) fn without_move(&self, vdi: VdiUuid) -> Option<Change> {
        let waits = |job: JobRecord| match job.state {
            JobState::Running => {
                JobRecord { state: JobState::Queued, phase: "waiting".to_owned(), retry_at: None, ..job }
            }
            _ => job,
        };
        self.open_move(vdi).map(|job| Change::PutJob(waits(closed(job))))
    }

    /// D14: ends the move that the disk's process has open, if it has one. On failure it goes on.
    pub(crate) fn close_move(&mut self, vdi: VdiUuid, cancelled: bool) -> Result<(), Failure> {
        if self.serving.disks.get(&vdi).is_some_and(|served| served.link.is_none()) {
            self.find_or_replace(vdi)?;
        }
        let Some(served) = self.serving.disks.get(&vdi) else { return Ok(()) };
        if let Some(open) = served.moving {
            self.resolve_doubt(vdi)?;
            if self.fate(vdi, open.into) == Fate::Completes {
                return self.settle_move(vdi);
            }
            self.end_move(vdi, false)?;
        }
        self.record_end(vdi, cancelled)
    }

    /// The process says how far it is.
    pub(crate) fn move_progressed(&mut self, vdi: VdiUuid, done: Bytes, left: Bytes) {
        let under_way = self.current.filter(|current| current.leaf_merge_of() == Some(vdi));
        let Some(id) = under_way.map(|current| current.job) else { return };
        let served = self.serving.disks.get_mut(&vdi);
        let Some(open) = served.and_then(|served| served.moving.as_mut()).filter(|open| open.heard) else {
            return;
        };
        open.emptied = left.0 == 0;
        let due = open.noted.elapsed() >= NOTED;
        if due {
            open.noted = Instant::now();
        }
        let total = Bytes(done.0.saturating_add(left.0));
        let progress = Progress { cursor: 0, bytes_done: done, bytes_total: total };
        self.goes_on(id, progress);
        if due {
            self.merge_progressed(id, progress);
        }
        if left.0 == 0
            && let Err(failure) = self.finish_move(vdi)
        {
            tracing::error!(%vdi, %failure, "a leaf merge is over, and cannot be ended yet");
        }
    }

    /// The process cannot go on with it: the merge has failed, and is tried again later. What it has open is ended by what comes next.
    pub(crate) fn move_failed(&mut self, vdi: VdiUuid, message: &str) {
        let heard =
            self.serving.disks.get(&vdi).and_then(|served| served.moving).is_some_and(|open| open.heard);
        if heard {
            self.rest_move_of(vdi, &Failure::new(ErrorName::IoError, message).object("vdi", vdi));
        }
    }

    /// The leaf durably owns nothing, and never will again: **the commit**, and the process lets go of it.
    fn finish_move(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let Some(job) = self.open_move(vdi).map(|job| (**job).clone()) else { return Ok(()) };
        crash::pass(JobKind::LeafMerge, Phase::Made);
        match self.commit_merge(job.clone()) {
            Ok(()) => {}
            Err(failure) if self.catalog.is_doubtful() => {
                self.rest_move(vdi);
                return Err(failure);
            }
            Err(failure) => self.merge_failed(job, failure),
        }
        self.settle_move(vdi)
    }

    /// What is left to do of a merge that has committed.
    fn conclude_move(&mut self, vdi: VdiUuid) {
        let of_disk = |job: &&Arc<JobRecord>| {
            let runs = job.committed && job.state == JobState::Running;
            runs && matches!(job.work, Work::LeafMerge { vdi: of, .. } if of == vdi)
        };
        let Some(id) = self.catalog.state().unfinished().find(of_disk).map(|job| job.id) else { return };
        self.live.remove(&id);
        self.run_steps(id);
        self.merge_over(id);
    }

    /// The worker does something else for a while. What is open stays so until a process says otherwise.
    pub(crate) fn rest_move_of(&mut self, vdi: VdiUuid, failure: &Failure) {
        if self.current.is_some_and(|current| current.leaf_merge_of() == Some(vdi))
            && let Some(job) = self.open_move(vdi).map(|job| (**job).clone())
        {
            self.live.remove(&job.id);
            self.merge_failed(job, failure.clone());
        }
    }
}

/// The row of a move that no process has open any more.
fn closed(job: &JobRecord) -> JobRecord {
    let mut job = job.clone();
    if let Work::LeafMerge { live, .. } = &mut job.work {
        *live = false;
    }
    job
}
