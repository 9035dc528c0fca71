//! What a merge takes where containers have an explicit size: its parent is made large enough, once, before the first byte moves.
//!
//! ```text
//!  plan ─▶ measured ─▶ promised ─▶ [commit] sizes ─▶ parent grown, footer at its end ─▶ [commit] ─▶ the mover, or the disk's process
//! ```
//! How much that is the images say, whose maps are read: a base copy gets what it will use, the leaf of a disk that is served, or of any
//! disk where allocation is thick, the size in which every block has a place; where allocation is dynamic, what comes from the leaf. Where that is not free, a leaf that nobody writes is first
//! cut to what it uses, and its extents are the parent's. What is missing then is remembered, and the plan holds the merge until so
//! much is free. When a merge has ended early its parent is cut again, and a leaf that was cut gets its size back as soon as there is
//! room, or when it is attached.

use crate::coalescing::task_of_work;
use crate::crash::{self, Phase};
use crate::failures::{from_trouble, to_trouble};
use crate::hands::ready;
use crate::holds::{Claim, Gift};
use crate::images::unexpected;
use crate::long::{LongJob, Script};
use crate::merges::phase_of;
use crate::owner::{Owner, Running};
use crate::sizing::{self, Call, Target};
use catena_catalog::Change;
use catena_coalesce::Task;
use catena_control::{Answer, Request, Trouble};
use catena_sr_api::{Access, Store};
use catena_types::{
    Allocation, Bytes, Effects, ErrorName, Failure, ImageId, ImageRecord, JobRecord, Resized, Step, Work,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A container that cannot be cut now is tried again after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is done before a merge begins.
#[derive(Debug)]
pub(crate) struct Room {
    into: ImageRecord,
    /// What its container has, and what it gets.
    sizes: (Bytes, Bytes),
    /// The leaf, what its container has, and to what it is cut.
    cut: Option<(ImageRecord, Bytes, Bytes)>,
}

impl Room {
    /// The containers that change their size.
    pub(crate) fn changes(&self) -> Vec<Resized> {
        let resized = |image: &ImageRecord, before| Resized {
            image: image.id,
            container: image.container.clone(),
            before,
        };
        let cut = self.cut.iter().map(|(leaf, before, _)| resized(leaf, *before));
        std::iter::once(resized(&self.into, self.sizes.0)).chain(cut).collect()
    }

    /// What is to be promised for it.
    pub(crate) fn claim(&self) -> Claim {
        let gift = |(leaf, before, after): &(ImageRecord, Bytes, Bytes)| Gift {
            container: leaf.container.clone(),
            before: *before,
            bytes: Bytes(before.0 - after.0),
        };
        let (before, after) = self.sizes;
        let bytes = Bytes(after.0.saturating_sub(before.0));
        Claim { container: self.into.container.clone(), before, bytes, gift: self.cut.as_ref().map(gift) }
    }

    /// Makes it. A leaf that was cut for nothing gets back what it had.
    fn make(&self, store: &dyn Store, call: &mut Call<'_>) -> Result<(), Failure> {
        if let Some((leaf, ..)) = &self.cut {
            sizing::deflate(store, leaf, call)?;
        }
        let grown = sizing::grow_to(store, &self.into, self.sizes.1, call);
        if let (Err(_), Some((leaf, before, _))) = (&grown, &self.cut)
            && let Err(failure) = sizing::grow_to(store, leaf, *before, call)
        {
            tracing::warn!(container = leaf.container, %failure, "a leaf does not get its size back");
        }
        grown
    }
}

impl Owner {
    /// What must be done so that the merge has room; `None` if it has. Where too much is missing the plan is told how much.
    pub(crate) fn room_of(&mut self, task: Task) -> Result<Option<Room>, Failure> {
        let Some(into) = task.target().filter(|_| self.is_sized()) else { return Ok(None) };
        let (from, into) = (self.image(task.image())?.clone(), self.image(into)?.clone());
        let (from_uses, wanted) = self.wanted_by(task, &from, &into)?;
        let has = self.store.info(&into.container)?.length;
        let size = self.store.round(wanted);
        if size <= has {
            return Ok(None);
        }
        let mut room = Room { into, sizes: (has, size), cut: None };
        let free = self.unpromised(self.store.space()?.allocatable);
        let need = |owner: &Self, room: &Room| room.claim().left(|container| owner.taken(container));
        if need(self, &room) > free
            && let Some(uses) = from_uses
        {
            let (before, after) = (self.store.info(&from.container)?.length, self.store.round(uses));
            room.cut = (after < before).then(|| (from.clone(), before, after));
        }
        let need = need(self, &room);
        let enough = self.need_space(need);
        if enough.is_err() {
            self.lacking.insert(from.id, (room.into.id, need));
        }
        enough.map(|()| Some(room))
    }

    /// What the leaf uses, where it may be cut to that, and what the parent must have.
    fn wanted_by(
        &mut self,
        task: Task,
        from: &ImageRecord,
        into: &ImageRecord,
    ) -> Result<(Option<Bytes>, Bytes), Failure> {
        let virtual_size = from.virtual_size.max(into.virtual_size);
        let full = self.sizes_of(&ImageRecord { virtual_size, ..into.clone() })?.full;
        let served = self.is_served(task);
        if served && self.target_of(from.id) == Target::Full {
            return Ok((None, full));
        }
        let (from_uses, wanted) = self.measure_merge(from, into)?;
        if served {
            // The guest goes on to write meanwhile: what that takes is asked for when it does.
            return Ok((None, wanted));
        }
        Ok(match task {
            Task::LeafMerge { .. } if self.policy().allocation == Allocation::Thick => {
                (Some(from_uses), wanted.max(full))
            }
            Task::LeafMerge { .. } => (Some(from_uses), wanted),
            _ => (None, wanted),
        })
    }

    /// What the one uses of its container, and what the other will use once it has taken all of it in.
    fn measure_merge(&mut self, from: &ImageRecord, into: &ImageRecord) -> Result<(Bytes, Bytes), Failure> {
        let from = ready(&*self.store, from, Access::ReadOnly)?;
        let into = ready(&*self.store, into, Access::ReadOnly)?;
        let request = Request::Room { from: from.handed, into: into.handed };
        match self.small.call(&request, vec![from.fd, into.fd]).map_err(|trouble| from_trouble(&trouble))? {
            Answer::Room { from, into } => Ok((from, into)),
            _ => Err(unexpected()),
        }
    }

    /// Whether the task merges the leaf of a disk that is attached.
    pub(crate) fn is_served(&self, task: Task) -> bool {
        matches!(task, Task::LeafMerge { vdi, .. } if self.catalog.state().attachments.contains_key(&vdi))
    }

    /// Has the room made in a thread. The job's row names the containers already.
    pub(crate) fn make_room(&mut self, job: &JobRecord, room: Room) -> Result<(), Failure> {
        self.hold_claim(job.id, room.claim())?;
        let store = Arc::clone(&self.store);
        let script: Script = Box::new(move |session| {
            let mut call = |request: &Request, fds: Vec<OwnedFd>| session.call(request, fds);
            let made = room.make(&*store, &mut call);
            made.map(|()| Value::Null).map_err(|failure| to_trouble(&failure))
        });
        let long = LongJob::start(job.id, &self.mailbox, script).map_err(|trouble| from_trouble(&trouble))?;
        self.track(job, Running { long, lease: BTreeSet::new(), cancelled: false });
        Ok(())
    }

    /// The room is made, or cannot be. The merge goes on, unless something else came up meanwhile.
    pub(crate) fn room_made(
        &mut self,
        mut job: JobRecord,
        task: Task,
        end: Result<Value, Trouble>,
        cancelled: bool,
    ) {
        if let Err(trouble) = end {
            return self.merge_failed(job, from_trouble(&trouble));
        }
        crash::pass(job.work.kind(), Phase::Grown);
        job.effects.sizes.clear();
        let live = self.is_served(task);
        let can = match task {
            Task::LeafMerge { vdi, .. } if live => self.movable().contains(&vdi),
            _ => true,
        };
        if cancelled || !can || !self.parked.is_empty() || !self.still_wanted(task) {
            return self.merge_stopped(job, cancelled);
        }
        if let Work::LeafMerge { live: row, .. } = &mut job.work {
            *row = live;
        }
        phase_of(&job).clone_into(&mut job.phase);
        let mut changes = self.measurements(&[task.image(), task.target().unwrap_or(task.image())]);
        changes.push(Change::PutJob(job.clone()));
        if let Err(failure) = self.commit(changes) {
            return self.merge_failed(job, failure);
        }
        if let Some(current) = &mut self.current {
            current.growing = false;
        }
        self.begin_merge(job);
    }

    /// Whether the parent has no more than it uses when the task is done.
    pub(crate) fn fits_at_rest(&self, task: Task) -> bool {
        match task {
            Task::Merge { .. } => true,
            Task::LeafMerge { .. } => !self.is_served(task) && self.policy().allocation != Allocation::Thick,
            Task::Remove { .. } => false,
        }
    }

    /// What merges were found to need, for the plan.
    pub(crate) fn known_needs(&self) -> impl Iterator<Item = (ImageId, Bytes)> {
        self.lacking.iter().map(|(from, (_, need))| (*from, *need))
    }

    /// A merge has ended early: its parent is cut again when the worker has nothing to do with it, and its leaf gets back what it had.
    pub(crate) fn leave_room(&mut self, job: &JobRecord) {
        let Some(task) = task_of_work(&job.work).filter(|_| self.is_sized()) else { return };
        let is_full = |image: &ImageId| self.target_of(*image) == Target::Full;
        let leaf = Some(task.image()).filter(is_full);
        let now = Instant::now();
        self.roomy.extend(task.target().into_iter().chain(leaf).map(|image| (image, now)));
    }

    /// Gives containers that merges have left with another size the one that they are to have, unless the next merge needs them so.
    pub(crate) fn fit_roomy(&mut self, ready: &[Task]) {
        let now = Instant::now();
        let next = |image: &ImageId| {
            ready.iter().any(|task| task.target() == Some(*image) || task.image() == *image)
        };
        let due: Vec<ImageId> = self
            .roomy
            .iter()
            .filter(|(image, at)| **at <= now && !next(image))
            .map(|(image, _)| *image)
            .collect();
        // Those that are cut first: they make room for the others.
        let (full, fitted) = due.into_iter().partition(|image| self.target_of(*image) == Target::Full);
        for image in Vec::into_iter(fitted).chain::<Vec<ImageId>>(full) {
            self.roomy.remove(&image);
            let done = match self.target_of(image) {
                // In no job, so that no commit follows which would say what it takes now.
                Target::Fitted => self.deflate(image).and_then(|()| self.remeasure(&[image])),
                Target::Full => self.refill(image),
                Target::Roomy => Ok(()),
            };
            if let Err(failure) = done {
                if !is_lack(&failure) {
                    tracing::warn!(sr = %self.sr.uuid, %image, %failure, "a container does not get its size for now");
                }
                self.roomy.insert(image, now + PATIENCE);
            }
        }
    }

    /// Makes a leaf full again that was cut for a merge, where there is room.
    fn refill(&mut self, image: ImageId) -> Result<(), Failure> {
        let row = self.image(image)?.clone();
        let Some(vdi) = self.catalog.state().vdi_of(image).map(|row| row.uuid) else { return Ok(()) };
        let (has, full) = (sizing::length(&*self.store, &row)?, self.sizes_of(&row)?.full);
        if has >= full {
            return Ok(());
        }
        self.need_space(Bytes(full.0 - has.0))?;
        let effects = Effects { steps: vec![Step::Inflate { image }], ..Effects::default() };
        let job = JobRecord { committed: true, effects, ..self.new_job(Work::Detach { vdi }, None) };
        let id = job.id;
        self.commit(vec![Change::PutJob(job)])?;
        self.run_steps(id);
        Ok(())
    }
}

/// Whether a merge could not begin because of space alone.
pub(crate) fn is_lack(failure: &Failure) -> bool {
    failure.name == ErrorName::NoSpace
}
