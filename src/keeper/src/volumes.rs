//! Storage whose containers must be sized: what the owner does about that in its operations (`sizing` has the rules). On storage whose
//! containers grow by themselves nothing here does anything.
//!
//! A container grows in a job whose row names it until it is done; it is cut by a step after a commit ([`Step::Deflate`]), when no guest
//! waits for it.

use crate::owner::Owner;
use crate::serving::silent;
use crate::sizing::{self, Role, Sizes, Target};
use catena_catalog::Change;
use catena_control::Ask;
use catena_sr_api::Sizing;
use catena_types::{
    Allocation, AttachMode, AttachmentRecord, BLOCK_BYTES, Bytes, Effects, ErrorName, Failure, ImageId,
    ImageRecord, ImageState, JobId, JobRecord, JobState, Resized, Step, VdiKind, VdiRecord, VdiUuid, Work,
};

/// What a block's bitmap takes beside it, with what aligns it.
const BITMAP_BYTES: u64 = 4096;

impl Owner {
    /// Whether containers must be sized.
    pub(crate) fn is_sized(&self) -> bool {
        self.store.capabilities().sizing == Sizing::Explicit
    }

    /// The sizes of containers for images like this one.
    pub(crate) fn sizes_of(&mut self, image: &ImageRecord) -> Result<Sizes, Failure> {
        let small = &mut self.small;
        Sizes::of(&*self.store, image, &mut |request, fds| small.call(request, fds))
    }

    /// The size that an image is to have, as things are.
    pub(crate) fn target_of(&self, image: ImageId) -> Target {
        match self.catalog.state().vdi_of(image) {
            Some(vdi) => self.leaf_target(vdi),
            None => sizing::target(Role::Base, false, self.allocation()),
        }
    }

    /// How large the containers of images are that nobody writes.
    pub(crate) fn allocation(&self) -> Allocation {
        self.policy().allocation
    }

    /// The size that the leaf of this VDI is to have.
    pub(crate) fn leaf_target(&self, vdi: &VdiRecord) -> Target {
        let role = if vdi.kind == VdiKind::Disk { Role::Disk } else { Role::Snapshot };
        sizing::target(role, self.is_written(vdi.uuid), self.allocation())
    }

    /// Says in the row of an image that is to be made how large its container is to be.
    pub(crate) fn size_new(&mut self, image: &mut ImageRecord, target: Target) -> Result<(), Failure> {
        if self.is_sized() {
            let chunk = self.store.round(self.policy().chunk_of(image.virtual_size));
            image.allocated = self.sizes_of(image)?.get(target, chunk);
        }
        Ok(())
    }

    /// The same for new leaves of these VDIs, as large as those are to be. Where there is no room for that now, but there will be when the
    /// `bases` below them are cut, they are made empty and grow after that. Refused where there is no room in the end either. Those that
    /// grow as they fill are made empty where what they would take is short.
    pub(crate) fn size_leaves(
        &mut self,
        leaves: &mut [(&VdiRecord, &mut ImageRecord)],
        bases: &[&ImageRecord],
        others: Bytes,
    ) -> Result<(), Failure> {
        if !self.is_sized() {
            return Ok(());
        }
        let total = |leaves: &[(&VdiRecord, &mut ImageRecord)]| {
            Bytes(others.0 + leaves.iter().map(|(_, leaf)| leaf.allocated.0).sum::<u64>())
        };
        for (vdi, leaf) in &mut *leaves {
            self.size_new(leaf, self.leaf_target(vdi))?;
        }
        let free = self.unpromised(self.store.space()?.allocatable);
        if total(leaves) > self.to_fill()? {
            for (vdi, leaf) in &mut *leaves {
                if self.leaf_target(vdi) == Target::Roomy {
                    self.size_new(leaf, Target::Fitted)?;
                }
            }
        }
        let need = total(leaves);
        if need <= free {
            return Ok(());
        }
        for (vdi, _) in &*leaves {
            if self.is_written(vdi.uuid) {
                // Its blocks are on the image afterwards, so that it says what it needs.
                self.while_paused(vdi.uuid, |_, _| Ok(()))?;
            }
        }
        let mut gain = Bytes(0);
        for base in bases {
            let small = &mut self.small;
            let needed = sizing::needed(&*self.store, base, &mut |request, fds| small.call(request, fds))?;
            gain.0 += sizing::length(&*self.store, base)?.0.saturating_sub(needed.0);
        }
        if need.0 > free.0 + gain.0 {
            return self.need_space(Bytes(need.0 - gain.0));
        }
        leaves.iter_mut().try_for_each(|(_, leaf)| self.size_new(leaf, Target::Fitted))
    }

    /// Makes a container large enough for every block of its image, if it is not. The job's row is written; it names the container from
    /// before it grows until its image is brought to the new size.
    pub(crate) fn inflate(
        &mut self,
        job: &mut JobRecord,
        image: &ImageRecord,
        to: Bytes,
    ) -> Result<(), Failure> {
        let before = sizing::length(&*self.store, image)?;
        if before >= to {
            return Ok(());
        }
        self.need_space(Bytes(to.0 - before.0))?;
        job.effects.sizes = vec![Resized { image: image.id, container: image.container.clone(), before }];
        self.commit(vec![Change::PutJob(job.clone())])?;
        sizing::JOURNALED.pass();
        match self.writer_of(image.id) {
            Some(vdi) => {
                self.store.grow(&image.container, to)?;
                sizing::GROWN.pass();
                self.tell_enlarged(vdi, image)?;
            }
            None => {
                let small = &mut self.small;
                sizing::grow_to(&*self.store, image, to, &mut |request, fds| small.call(request, fds))?;
            }
        }
        sizing::INFLATED.pass();
        job.effects.sizes.clear();
        let row = self.measured(self.image(image.id)?);
        self.commit(vec![Change::PutImage(row), Change::PutJob(job.clone())])
    }

    /// D12: the process that writes an image makes use of what its container has now.
    fn tell_enlarged(&mut self, vdi: VdiUuid, image: &ImageRecord) -> Result<(), Failure> {
        let size = sizing::length(&*self.store, image)?;
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        served.link(vdi)?.ask(&Ask::Enlarged { image: image.id, size }, Vec::new()).map(drop)
    }

    /// The same for a leaf that is about to be written by a guest.
    pub(crate) fn inflate_for_writing(
        &mut self,
        job: &mut JobRecord,
        image: &ImageRecord,
    ) -> Result<(), Failure> {
        if !self.is_inflated() {
            return Ok(());
        }
        let full = self.sizes_of(image)?.full;
        self.inflate(job, image, full).map_err(|failure| match failure.name {
            ErrorName::NoSpace => Failure { name: ErrorName::OverProvisionedAttach, ..failure }
                .hint("delete what is not needed, make the storage larger, or attach with --read-only"),
            _ => failure,
        })
    }

    /// Whether what a guest writes has room for every block.
    fn is_inflated(&self) -> bool {
        self.is_sized() && self.allocation() != Allocation::Dynamic
    }

    /// Makes the container of a detached leaf large enough for so many bytes that are to be written into it without an attachment. The
    /// job, if it grows for that, has the step by which it is cut again: to be run when they are written, or after a crash.
    pub(crate) fn make_room_in(
        &mut self,
        vdi: VdiUuid,
        image: &ImageRecord,
        length: Bytes,
    ) -> Result<Option<JobId>, Failure> {
        if !self.is_sized() {
            return Ok(None);
        }
        let (now, full) = (sizing::length(&*self.store, image)?, self.sizes_of(image)?.full);
        let blocks = length.0 / BLOCK_BYTES + 2;
        let more = blocks.saturating_mul(BLOCK_BYTES + BITMAP_BYTES);
        let to = self.store.round(Bytes(now.0.saturating_add(more))).min(full);
        if to <= now {
            return Ok(None);
        }
        self.need_space(Bytes(to.0 - now.0))?;
        let grows = Resized { image: image.id, container: image.container.clone(), before: now };
        let effects = Effects { steps: self.deflating(image.id), sizes: vec![grows], ..Effects::default() };
        let mut job = JobRecord { committed: true, effects, ..self.new_job(Work::Detach { vdi }, None) };
        let id = job.id;
        self.commit(vec![Change::PutJob(job.clone())])?;
        let small = &mut self.small;
        if let Err(failure) =
            sizing::grow_to(&*self.store, image, to, &mut |request, fds| small.call(request, fds))
        {
            self.run_steps(id);
            return Err(failure);
        }
        job.effects.sizes.clear();
        // The row that is there says what to do as well: the leaf is cut again, now or when the row can be written.
        self.commit(vec![Change::PutJob(job)]).inspect_err(|_| self.run_steps(id))?;
        Ok(Some(id))
    }

    /// Refuses what [`Self::inflate_for_writing`] would refuse, before anything is done.
    pub(crate) fn may_inflate(&mut self, image: &ImageRecord) -> Result<(), Failure> {
        if !self.is_inflated() {
            return Ok(());
        }
        let (full, now) = (self.sizes_of(image)?.full, sizing::length(&*self.store, image)?);
        self.need_space(Bytes(full.0.saturating_sub(now.0))).map_err(|failure| {
            Failure { name: ErrorName::OverProvisionedAttach, ..failure }
                .hint("delete what is not needed, make the storage larger, or attach with --read-only")
        })
    }

    /// The leaf of a VDI whose attach is undone, which may have grown for that: for the row of a job that has failed.
    pub(crate) fn inflated(&self, vdi: VdiUuid, job: &JobRecord) -> Vec<Resized> {
        if !job.effects.sizes.is_empty() {
            // Where its footer was is not where the container ends.
            return job.effects.sizes.clone();
        }
        let state = self.catalog.state();
        let leaf = state.vdis.get(&vdi).and_then(|row| state.images.get(&row.image));
        let written = leaf.filter(|_| self.is_sized() && self.is_written(vdi));
        let grown = written.and_then(|leaf| {
            let before = sizing::length(&*self.store, leaf).ok()?;
            Some(Resized { image: leaf.id, container: leaf.container.clone(), before })
        });
        grown.into_iter().collect()
    }

    /// Makes room in a leaf for the blocks of a disk that is to have another size, if it is to take every block of that.
    pub(crate) fn inflate_for_growth(
        &mut self,
        job: &mut JobRecord,
        leaf: &ImageRecord,
        size: Bytes,
    ) -> Result<(), Failure> {
        if !self.is_sized() || self.target_of(leaf.id) != Target::Full {
            return Ok(());
        }
        let full = self.sizes_of(&ImageRecord { virtual_size: size, ..leaf.clone() })?.full;
        self.inflate(job, leaf, full)
    }

    /// The job that cuts a leaf whose attachment has ended without a detach.
    pub(crate) fn left_full(&mut self, attachment: &AttachmentRecord) -> Option<Change> {
        let leaf = self.catalog.state().vdis.get(&attachment.vdi).map(|vdi| vdi.image)?;
        let effects = Effects { steps: self.deflating(leaf), ..Effects::default() };
        if effects.steps.is_empty() || attachment.mode == AttachMode::ReadOnly {
            return None;
        }
        let job = self.new_job(Work::Detach { vdi: attachment.vdi }, None);
        Some(Change::PutJob(JobRecord { committed: true, state: JobState::Queued, effects, ..job }))
    }

    /// The steps by which a leaf that nobody writes any more loses what it does not need.
    pub(crate) fn deflating(&self, image: ImageId) -> Vec<Step> {
        if self.is_sized() { vec![Step::Deflate { image }] } else { Vec::new() }
    }

    /// The step of a leaf that was made smaller than it is to be.
    pub(crate) fn inflating(&mut self, leaf: &ImageRecord, vdi: VdiUuid) -> Result<Vec<Step>, Failure> {
        let Some(vdi) = self.catalog.state().vdis.get(&vdi).cloned().filter(|_| self.is_sized()) else {
            return Ok(Vec::new());
        };
        let wanted = self.leaf_target(&vdi);
        let is_small = wanted == Target::Full && leaf.allocated < self.sizes_of(leaf)?.full;
        Ok(if is_small { vec![Step::Inflate { image: leaf.id }] } else { Vec::new() })
    }

    /// [`Step::Deflate`].
    pub(crate) fn deflate(&mut self, image: ImageId) -> Result<(), Failure> {
        let Some(row) = self.catalog.state().images.get(&image).cloned() else { return Ok(()) };
        let is_there = !matches!(row.state, ImageState::Garbage | ImageState::Missing);
        // What a merge writes is its business.
        let is_merged = self.current.is_some_and(|current| current.images().any(|one| one == image));
        if !self.is_sized()
            || !is_there
            || row.foreign
            || is_merged
            || self.target_of(image) != Target::Fitted
        {
            return Ok(());
        }
        if let Some(vdi) = self.writer_of(image) {
            // D12: it has not said yet that it writes to its new leaf.
            return Err(silent(vdi));
        }
        let small = &mut self.small;
        sizing::deflate(&*self.store, &row, &mut |request, fds| small.call(request, fds))?;
        self.stale.insert(image);
        Ok(())
    }

    /// [`Step::Inflate`] of a committed job.
    pub(crate) fn inflate_late(&mut self, job: &mut JobRecord, image: ImageId) -> Result<(), Failure> {
        let Some(row) = self.catalog.state().images.get(&image).cloned() else { return Ok(()) };
        if !self.is_sized() || self.target_of(image) != Target::Full {
            return Ok(());
        }
        // What an earlier try has left.
        self.settle_sizes(job)?;
        let full = self.sizes_of(&row)?.full;
        self.inflate(job, &row, full)
    }

    /// Brings images to the sizes of their containers which a job was making larger when it ended or was interrupted, and cuts them
    /// again where they are not to be full. The row names none of them any more.
    pub(crate) fn settle_sizes(&mut self, job: &mut JobRecord) -> Result<(), Failure> {
        for Resized { image, before, .. } in &job.effects.sizes {
            let Some(row) = self.catalog.state().images.get(image).cloned() else { continue };
            match self.writer_of(*image) {
                Some(vdi) => self.tell_enlarged(vdi, &row)?,
                None => {
                    let small = &mut self.small;
                    sizing::settle(&*self.store, &row, *before, &mut |request, fds| {
                        small.call(request, fds)
                    })?;
                }
            }
            self.stale.insert(*image);
        }
        job.effects.sizes.clear();
        Ok(())
    }
}
