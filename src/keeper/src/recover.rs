//! What is done when an SR is opened, before its first request: every job row that a crash has left is answered.
//!
//! First the processes of attached disks are taken up, and told what the catalog says; those that have died get successors when
//! all of this is done.
//!
//! | the row says | answer |
//! |---|---|
//! | header bytes planned (D5) | they are written again: the header may be torn |
//! | containers that were made larger | their images are brought to that size; what is done with them comes later |
//! | not committed, makes containers | they are removed, the job has failed |
//! | not committed, an attach | its process is ended, its attachment removed |
//! | not committed, a container that grew under a guest | nothing is left to do; its disk asks anew |
//! | not committed, a resize | the leaf's own size decides: it has grown, or the job has failed |
//! | not committed, a merge | its mover's locks are waited for; it waits for its turn, with its cursor |
//! | not committed, a merge that a disk's process carries out | goes on, if that lives; else with its successor (`live_merge`) |
//! | committed, steps left | they are done |

use crate::hands::ready;
use crate::owner::Owner;
use catena_catalog::Change;
use catena_sr_api::{Access, Error};
use catena_types::{ErrorName, Failure, HeaderPatch, ImageId, JobRecord, JobState, Step, Work};

impl Owner {
    /// Answers what a crash has left.
    pub(crate) fn recover(&mut self) -> Result<(), Failure> {
        let mut left: Vec<JobRecord> = self
            .catalog
            .state()
            .unfinished()
            .filter(|job| !job.state.is_over())
            .map(|job| (**job).clone())
            .collect();
        self.adopt_served()?;
        for job in &mut left {
            self.mend_headers(job)?;
            if let Err(failure) = self.mend_sizes(job) {
                // The copy of the footer counts until it can be done.
                tracing::error!(job = job.id, %failure, "an image is not brought to the size of its container");
            }
        }
        let is_resize = |job: &JobRecord| matches!(job.work, Work::Resize { .. }) && !job.committed;
        let (resizes, others): (Vec<_>, Vec<_>) = left.into_iter().partition(is_resize);
        for job in others {
            // Those that adoption has dealt with may have changed.
            let job = self.catalog.state().jobs.get(&job.id).map_or(job, |row| (**row).clone());
            tracing::info!(sr = %self.sr.uuid, job = job.id, committed = job.committed, "a job was interrupted");
            if job.committed || matches!(job.work, Work::Merge { .. } | Work::LeafMerge { .. }) {
                self.requeue(job)?;
            } else if matches!(job.work, Work::Attach { .. }) {
                self.undo_attach(job, &interrupted());
            } else if self.is_extended(&job) {
                self.forget_extension(&job)?;
            } else {
                self.undo_interrupted(job);
            }
        }
        // Last: a disk whose process has died gets another one for that, which opens what movers may have been writing to until now.
        for job in resizes {
            tracing::info!(sr = %self.sr.uuid, job = job.id, "a resize was interrupted");
            self.recover_resize(job);
        }
        if self.catalog.was_interrupted() {
            self.relabel_all();
        }
        Ok(())
    }

    /// Undoes a job that nobody was answered: who repeats the request means it to be carried out.
    pub(crate) fn undo_interrupted(&mut self, job: JobRecord) {
        let job = JobRecord { request_id: None, ..job };
        self.undo(job, JobState::Failed, &interrupted());
    }

    /// D5: a crash between the first and the last write of a header leaves it torn, and it has no second copy but the row.
    fn mend_headers(&mut self, job: &JobRecord) -> Result<(), Failure> {
        let patches: Vec<HeaderPatch> = job
            .effects
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Reparent { patches, .. } => Some(patches.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        // An image that a process has open was mended by that process; one that does not answer costs its own chain only.
        let mut patches = patches;
        patches.retain(|patch| self.writer_of(patch.image).is_none() && self.is_there(patch.image));
        // What is stale is planned anew by the step.
        self.apply_patches(&patches).map(drop)
    }

    /// Whether the image has a container. A predecessor may have come to remove that of garbage and not its row, and any may have been
    /// lost meanwhile: that costs its own chain only.
    fn is_there(&self, image: ImageId) -> bool {
        let row = self.catalog.state().images.get(&image);
        row.is_some_and(|row| !matches!(self.store.info(&row.container), Err(Error::Missing(_))))
    }

    /// A crash between the growth of a container and the move of the footer leaves an old one, or none, at its end.
    fn mend_sizes(&mut self, job: &mut JobRecord) -> Result<(), Failure> {
        if job.effects.sizes.is_empty() {
            return Ok(());
        }
        self.settle_sizes(job)?;
        self.commit(vec![Change::PutJob(job.clone())])
    }

    /// The worker takes the job up again. A mover that outlived its keeper may still be landing its last request: nobody reads
    /// the two images before its locks are free (D11, D15).
    fn requeue(&mut self, job: JobRecord) -> Result<(), Failure> {
        if self.current.is_some_and(|current| current.job == job.id) || job.state.is_over() {
            return Ok(());
        }
        if !job.committed
            && !job.is_open_move()
            && let Work::Merge { from, into, .. } | Work::LeafMerge { from, into, .. } = &job.work
        {
            for image in [from, into] {
                // What a disk's process writes is in no mover's hands.
                let row = self.catalog.state().images.get(image).cloned();
                if let Some(row) = row.filter(|row| self.writer_of(row.id).is_none() && self.is_there(row.id))
                {
                    drop(ready(&*self.store, &row, Access::ReadWrite)?);
                }
            }
            self.leave_room(&job);
        }
        let job = JobRecord { state: JobState::Queued, phase: "waiting".to_owned(), ..job };
        self.commit(vec![Change::PutJob(job)])
    }
}

fn interrupted() -> Failure {
    Failure::new(ErrorName::TryAgain, "the job was interrupted by the end of its keeper")
        .hint("start it again")
}
