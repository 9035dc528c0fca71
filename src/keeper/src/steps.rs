//! What is left to do after a commit. Every step may be repeated: a crash in the middle is answered by doing it again.

use crate::crash::{self, Phase};
use crate::failures::from_trouble;
use crate::hands::ready;
use crate::images::unexpected;
use crate::owner::{Mail, Owner};
use crate::serving::silent;
use catena_catalog::Change;
use catena_control::{Answer, Ask, Request};
use catena_sr_api::Access;
use catena_types::{
    ErrorName, Failure, HeaderPatch, ImageId, ImageState, JobId, JobRecord, JobState, Step, VdiUuid, Work,
};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

/// Headers changed with one request to the worker.
const BATCH: usize = 32;

impl Owner {
    /// Does what is left of a committed job. What fails stays in the row and is tried again later; removals go on in a thread
    /// of their own and end in the mailbox.
    pub(crate) fn run_steps(&mut self, id: JobId) {
        let mut outcome = self.try_steps(id);
        if outcome.is_err() && self.small.is_gone() {
            // It died with what it was doing half done, which nobody needs to see for as long as a step that fails rests.
            outcome = self.try_steps(id);
        }
        if let Err(failure) = outcome {
            tracing::error!(sr = %self.sr.uuid, job = id, %failure, "a step after a commit failed and is tried again");
            self.postpone_steps(id, failure);
        }
    }

    fn try_steps(&mut self, id: JobId) -> Result<(), Failure> {
        let job = self.catalog.state().jobs.get(&id).map(|row| (**row).clone());
        job.map_or(Ok(()), |job| self.steps_of(job))
    }

    fn steps_of(&mut self, mut job: JobRecord) -> Result<(), Failure> {
        while let Some(step) = job.effects.steps.first().cloned() {
            match step {
                Step::SetHidden { image, hidden } => {
                    self.set_hidden(image, hidden)?;
                    self.stale.insert(image);
                }
                Step::Reparent { images, patches } => {
                    self.reparent(&mut job, &images, patches)?;
                    self.stale.extend(images);
                }
                Step::Deflate { image } => self.deflate(image)?,
                Step::Inflate { image } => self.inflate_late(&mut job, image)?,
                Step::Remove { .. } => {
                    self.start_removal(&job);
                    return Ok(());
                }
            }
            job.effects.steps.remove(0);
            crash::pass(job.work.kind(), Phase::Stepped);
        }
        if job.work == Work::Repair {
            return self.check_again(&job);
        }
        self.finish(job, Vec::new())
    }

    fn set_hidden(&mut self, image: ImageId, hidden: bool) -> Result<(), Failure> {
        let Some(row) = self.catalog.state().images.get(&image).cloned() else { return Ok(()) };
        if let Some(vdi) = self.writer_of(image) {
            return self.set_hidden_there(vdi, image, hidden);
        }
        let one = ready(&*self.store, &row, Access::ReadWrite)?;
        let request = Request::SetHidden { image: one.handed, hidden };
        self.small.call(&request, vec![one.fd]).map_err(|trouble| from_trouble(&trouble))?;
        Ok(())
    }

    /// D12: the disk's process does it, where that is its leaf alone. Where the disk has another leaf by now, the process has not said
    /// yet that it writes to that.
    fn set_hidden_there(&mut self, vdi: VdiUuid, image: ImageId, hidden: bool) -> Result<(), Failure> {
        let is_leaf = self.catalog.state().vdis.get(&vdi).is_some_and(|row| row.image == image);
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        let chain = served.chain.as_ref().and_then(|chain| chain.first());
        if !is_leaf || served.moving.is_some() || chain != Some(&image) {
            return Err(silent(vdi));
        }
        served.link(vdi)?.ask(&Ask::SetHidden { hidden }, Vec::new()).map(drop)
    }

    /// Makes headers name the parents that the catalog names. D5: the new bytes are in the job row before the first of them is
    /// written; a patch of the same image in an older row is dropped in the same transaction, so that it can never be
    /// written over this one.
    fn reparent(
        &mut self,
        job: &mut JobRecord,
        images: &[ImageId],
        planned: Vec<HeaderPatch>,
    ) -> Result<(), Failure> {
        let patches = if planned.is_empty() { self.plan_patches(job, images)? } else { planned };
        crash::pass(job.work.kind(), Phase::Planned);
        let stale = self.apply_patches(&patches)?;
        if stale.is_empty() {
            return Ok(());
        }
        // The others are written. Whoever made the disk larger meanwhile has written a header of his own.
        let patches = self.plan_patches(job, &stale)?;
        match self.apply_patches(&patches)?.first() {
            None => Ok(()),
            Some(image) => {
                let text = "the header of an image changes while it is to name another parent";
                Err(Failure::new(ErrorName::TryAgain, text).object("image", image))
            }
        }
    }

    fn plan_patches(&mut self, job: &mut JobRecord, images: &[ImageId]) -> Result<Vec<HeaderPatch>, Failure> {
        let mut patches = Vec::new();
        for batch in images.chunks(BATCH) {
            let (mut asked, mut fds) = (Vec::new(), Vec::new());
            for id in batch {
                let Some(row) = self.catalog.state().images.get(id).cloned() else { continue };
                let Some(parent) = row.parent else { continue };
                let one = ready(&*self.store, &row, Access::ReadOnly)?;
                asked.push((one.handed, self.parent(parent)?));
                fds.push(one.fd);
            }
            let answer = self.small.call(&Request::PlanReparent { images: asked }, fds);
            match answer.map_err(|trouble| from_trouble(&trouble))? {
                Answer::Patches { patches: some } => patches.extend(some),
                _ => return Err(unexpected()),
            }
        }
        if let Some(Step::Reparent { images: of, patches: row }) = job.effects.steps.first_mut() {
            (*of, *row) = (images.to_vec(), patches.clone());
        }
        let mut changes = self.without_older_patches(job.id, images);
        changes.push(Change::PutJob(job.clone()));
        self.commit(changes)?;
        Ok(patches)
    }

    pub(crate) fn without_older_patches(&self, but: JobId, images: &[ImageId]) -> Vec<Change> {
        let mut changes = Vec::new();
        for row in self.catalog.state().unfinished().filter(|row| row.id != but && !row.state.is_over()) {
            let mut job = (**row).clone();
            for step in &mut job.effects.steps {
                if let Step::Reparent { images: theirs, patches } = step {
                    theirs.retain(|image| !images.contains(image));
                    patches.retain(|patch| !images.contains(&patch.image));
                }
            }
            if job != **row {
                changes.push(Change::PutJob(job));
            }
        }
        changes
    }

    /// Writes planned bytes. The headers may be torn by an earlier try. Gives the images that have got another block table since
    /// it was planned, for which it must be planned anew; the others are all written.
    pub(crate) fn apply_patches(&mut self, patches: &[HeaderPatch]) -> Result<Vec<ImageId>, Failure> {
        // D12: what a process has open for writing is written by that process.
        let (mut here, mut there, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        for patch in patches {
            match self.writer_of(patch.image) {
                Some(vdi) => there.push((vdi, patch.clone())),
                None => here.push(patch),
            }
        }
        for (vdi, patch) in there {
            let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
            let image = patch.image;
            match served.link(vdi)?.ask(&Ask::Patch { patches: vec![patch] }, Vec::new()) {
                Ok(_) => {}
                Err(failure) if failure.name == ErrorName::BadRequest => stale.push(image),
                Err(failure) => return Err(failure),
            }
        }
        for batch in here.chunks(BATCH) {
            let (mut wanted, mut fds) = (Vec::new(), Vec::new());
            for patch in batch {
                let Some(row) = self.catalog.state().images.get(&patch.image).cloned() else { continue };
                if row.state == ImageState::Garbage {
                    // Nobody looks for its parent, and its container may be gone.
                    continue;
                }
                fds.push(ready(&*self.store, &row, Access::ReadWrite)?.fd);
                wanted.push((*patch).clone());
            }
            let answer = self.small.call(&Request::ApplyPatches { patches: wanted }, fds);
            match answer.map_err(|trouble| from_trouble(&trouble))? {
                Answer::Patched { stale: some } => stale.extend(some),
                _ => return Err(unexpected()),
            }
        }
        Ok(stale)
    }

    fn start_removal(&self, job: &JobRecord) {
        let containers: Vec<String> = removals(job).map(|(_, container)| container.clone()).collect();
        let (store, mailbox, id) = (Arc::clone(&self.store), self.mailbox.clone(), job.id);
        std::thread::spawn(move || {
            let names: Vec<&str> = containers.iter().map(String::as_str).collect();
            let result = store.remove_all(&names);
            // Without an owner the keeper is ending; the row says what is left.
            let _ = mailbox.send(Mail::Removed(id, result.map_err(Failure::from)));
        });
    }

    /// The containers are gone, durably: now the rows go.
    pub(crate) fn removed(&mut self, id: JobId, result: Result<(), Failure>) {
        let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        crash::pass(job.work.kind(), Phase::Stepped);
        let changes = removals(&job).map(|(image, _)| Change::RemoveImage(*image)).collect();
        if let Err(failure) = result.and_then(|()| self.finish(job, changes)) {
            tracing::error!(sr = %self.sr.uuid, job = id, %failure, "a removal failed and is tried again");
            self.postpone_steps(id, failure);
        }
        self.merge_over(id);
    }

    fn postpone_steps(&mut self, id: JobId, failure: Failure) {
        let Some(mut job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { return };
        job.attempts += 1;
        job.state = JobState::Queued;
        job.error = Some(failure);
        job.retry_at = Some(Timestamp::now() + back_off(job.attempts));
        job.updated = Timestamp::now();
        if let Err(failure) = self.commit(vec![Change::PutJob(job)]) {
            tracing::error!(job = id, %failure, "a failed step could not be recorded");
            self.try_later(id);
        }
        self.merge_over(id);
    }

    /// The steps of a job are tried again, whatever its row says.
    pub(crate) fn try_later(&mut self, id: JobId) {
        self.unsaid.insert(id, Timestamp::now() + back_off(1));
    }

    /// One of those that may be tried now.
    pub(crate) fn unsaid_due(&self) -> Option<JobId> {
        let now = Timestamp::now();
        // While the catalog cannot be written nothing can be finished.
        let mut due = self.unsaid.iter().filter(|(_, at)| **at <= now && self.ailing.is_none());
        due.next().map(|(id, _)| *id)
    }

    /// The catalog is as its storage has it, which may not be what this owner believed: committed jobs that nobody carries out any more
    /// are finished. A removal goes on in its thread, and says so.
    pub(crate) fn find_unsaid(&mut self) {
        let is_removal = |job: &JobRecord| matches!(job.effects.steps.first(), Some(Step::Remove { .. }));
        let rows = self.catalog.state().unfinished();
        let left = rows.filter(|job| job.committed && job.state == JobState::Running && !is_removal(job));
        let left = left.map(|job| job.id).filter(|id| !self.running.contains_key(id));
        for id in Vec::from_iter(left) {
            self.unsaid.insert(id, Timestamp::now());
        }
    }
}

/// How long a job rests after so many failures: 10 s, doubling, an hour at most.
pub(crate) fn back_off(attempts: u32) -> SignedDuration {
    SignedDuration::from_secs((5_i64 << attempts.min(10)).min(3600))
}

fn removals(job: &JobRecord) -> impl Iterator<Item = (&ImageId, &String)> {
    job.effects.steps.iter().filter_map(|step| match step {
        Step::Remove { image, container } => Some((image, container)),
        _ => None,
    })
}
