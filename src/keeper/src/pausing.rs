//! Holding back the writes of attached disks for one commit: a snapshot or a clone of disks in use.
//!
//! ```text
//!  prepare (new leaf) ─▶ quiesce all ─▶ [commit] ─▶ resume: swap where the VDI points at the new leaf, keep where it does not
//!         └── any failure before the commit ──────▶ resume: keep
//! ```
//!
//! How a pause ends is never remembered: it is read from the catalog, here as after a crash (`adoption`). While the outcome of the
//! commit is unknown, the pause goes on (D19, D20).

use crate::failures::from_catalog;
use crate::hands::ready;
use crate::images::{empty_bytes, unexpected};
use crate::owner::Owner;
use crate::serving::{Link, PATIENCE, Served, silent};
use catena_control::{Ask, Member, Pause, Told};
use catena_sr_api::Access;
use catena_types::{
    BLOCK_BYTES, ErrorName, Failure, ImageRecord, JobId, JobRecord, JobState, VdiRecord, VdiUuid,
};
use std::time::{Duration, Instant};

/// Changes that a commit of a pause may have, for each disk of it.
const CHANGES: usize = 8;
/// How long a set may take to hold back its writes: one that hangs costs the others no more.
const QUIESCE: Duration = Duration::from_secs(5);
/// The rest before a process whose answer is missing is asked anew.
const BREATH: Duration = Duration::from_millis(50);

impl Owner {
    /// Holds back the writes of those of the disks that guests write, each with the leaf that it is to get. On failure nothing is
    /// held back. One that is attached for reading has nothing to hold back.
    pub(crate) fn pause(&mut self, disks: &[(VdiUuid, ImageRecord)]) -> Result<Pause, Failure> {
        let written = |(vdi, _): &&(VdiUuid, ImageRecord)| self.is_written(*vdi);
        let attached: Vec<(VdiUuid, ImageRecord)> = disks.iter().filter(written).cloned().collect();
        if attached.is_empty() {
            return Ok(Pause::default());
        }
        // D22: what may take long is done before anybody waits.
        self.catalog.make_room(CHANGES * disks.len()).map_err(|error| from_catalog(&error))?;
        let mut pause = Pause::default();
        let held = self.prepare(&attached, &mut pause).and_then(|()| self.quiesce(&mut pause));
        match held {
            Ok(()) => Ok(pause),
            Err(failure) => {
                self.end_pause_of(&pause);
                Err(failure)
            }
        }
    }

    fn prepare(&mut self, disks: &[(VdiUuid, ImageRecord)], pause: &mut Pause) -> Result<(), Failure> {
        for (vdi, image) in disks {
            if self.serving.disks.get(vdi).is_none_or(|served| served.link.is_none()) {
                self.find_or_replace(*vdi)?;
            }
            let leaf = ready(&*self.store, image, Access::ReadWrite)?;
            // D12: through which the present leaf is read once it is under the new one.
            let state = self.catalog.state();
            let present = state.vdis.get(vdi).and_then(|row| state.images.get(&row.image));
            let present = ready(&*self.store, present.ok_or_else(|| silent(*vdi))?, Access::ReadOnly)?;
            let served = self.serving.disks.get_mut(vdi).ok_or_else(|| silent(*vdi))?;
            let generation = served.next_generation();
            pause.add(*vdi, image.id, generation);
            served
                .link(*vdi)?
                .ask(&Ask::Prepare { generation, leaf: leaf.handed }, vec![leaf.fd, present.fd])?;
        }
        Ok(())
    }

    /// All are told before the first is waited for: the instants of the set lie close together.
    fn quiesce(&mut self, pause: &mut Pause) -> Result<(), Failure> {
        let mut asked = Vec::new();
        let mut outcome = Ok(());
        for Member { vdi, generation, .. } in pause.members() {
            let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
            let put = served.link(vdi).and_then(|link| link.put(&Ask::Quiesce { generation }, &[]));
            match put {
                Ok(()) => asked.push(vdi),
                Err(failure) => {
                    outcome = Err(failure);
                    break;
                }
            }
        }
        // Every question is answered before the next one is asked, also where the set has failed already.
        let deadline = Instant::now() + QUIESCE;
        for vdi in asked {
            let left = deadline.saturating_duration_since(Instant::now());
            let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
            let answer = served.link(vdi).and_then(|link| link.answer(left));
            outcome = outcome.and(match answer {
                Ok(Told::Quiesced { .. }) => {
                    pause.is_quiesced(vdi);
                    Ok(())
                }
                Ok(_) => Err(unexpected()),
                Err(failure) => Err(failure),
            });
        }
        outcome
    }

    /// D20: refuses to commit unless every process of the set is there and has held back its writes since it said so.
    pub(crate) fn still_paused(&self, pause: &Pause) -> Result<(), Failure> {
        let link = |vdi| self.serving.disks.get(&vdi).and_then(|served| served.link.as_ref());
        let objection = pause.objection(|vdi| link(vdi).is_some_and(|link| !link.is_gone()));
        objection.map_or(Ok(()), |vdi| Err(silent(vdi)))
    }

    /// Ends a pause as the catalog says. Where that is not known, the writes stay held back, and the job waits for the answer.
    pub(crate) fn settle(&mut self, job: JobId, pause: Pause) {
        if self.catalog.is_doubtful() {
            self.serving.undecided.push((job, pause));
        } else {
            self.end_pause_of(&pause);
        }
    }

    fn end_pause_of(&mut self, pause: &Pause) {
        let mut told = Vec::new();
        for member in pause.members() {
            let Member { vdi, leaf, generation, .. } = member;
            let swap = member.swaps(self.catalog.state().vdis.get(&vdi).map(|row| row.image));
            // One that ends was asked nothing.
            let Some(served) = self.serving.disks.get_mut(&vdi).filter(|served| !served.is_stopping()) else {
                continue;
            };
            let owed = served.link(vdi).and_then(|link| {
                let owed = link.is_owed();
                link.put(&Ask::Resume { generation, swap }, &[]).map(|()| owed)
            });
            match owed {
                Ok(false) => told.push((vdi, swap.then_some(leaf))),
                // One that owes an answer already is not waited for again.
                _ => served.lose(BREATH),
            }
        }
        for (vdi, leaf) in told {
            let Some(served) = self.serving.disks.get_mut(&vdi) else { continue };
            match (served.link(vdi).and_then(|link| link.answer(PATIENCE)), leaf) {
                (Ok(_), Some(leaf)) => {
                    served.chain.get_or_insert_default().insert(0, leaf);
                    self.note_served(vdi);
                }
                (Ok(_), None) => {}
                (Err(failure), _) => {
                    tracing::error!(%vdi, %failure, "a datapath does not say that it goes on, and is asked anew");
                    served.lose(BREATH);
                }
            }
        }
    }

    /// Ends what is undecided, once the catalog can say how.
    pub(crate) fn decide_pauses(&mut self) {
        if self.serving.undecided.is_empty() {
            return;
        }
        if let Err(error) = self.catalog.resolve_unknown() {
            return tracing::error!(sr = %self.sr.uuid, %error, "the outcome of a commit is still unknown");
        }
        for (id, pause) in std::mem::take(&mut self.serving.undecided) {
            self.end_pause_of(&pause);
            let Some(job) = self.catalog.state().jobs.get(&id).map(|row| (**row).clone()) else { continue };
            if job.committed {
                self.run_steps(id);
            } else {
                self.undo_unanswered(job);
            }
        }
    }

    fn undo_unanswered(&mut self, job: JobRecord) {
        let why = Failure::new(ErrorName::IoError, "the catalog could not be written; nothing was changed");
        self.undo(JobRecord { request_id: None, ..job }, JobState::Failed, &why);
    }

    /// Whether a clone of the disk may hang from its leaf's parent. The leaf of a disk that is being written is asked at an instant
    /// without writes.
    pub(crate) fn is_bare_disk(&mut self, vdi: &VdiRecord, leaf: &ImageRecord) -> Result<bool, Failure> {
        if !self.is_written(vdi.uuid) {
            return self.is_bare(leaf);
        }
        let surely_owns = self.measured(leaf).allocated.0 > empty_bytes(leaf.virtual_size).0 + BLOCK_BYTES;
        if leaf.foreign || surely_owns || !self.reads_right_below(leaf) {
            return Ok(false);
        }
        self.while_paused(vdi.uuid, |leaf_is_empty, _| Ok(leaf_is_empty))
    }

    /// Refuses what the process of a disk is to do that has been told to stop: it answers nothing more.
    pub(crate) fn refuse_while_ending(&self, vdi: VdiUuid) -> Result<(), Failure> {
        if !self.serving.disks.get(&vdi).is_some_and(Served::is_stopping) {
            return Ok(());
        }
        let failure = Failure::new(ErrorName::VdiInUse, "the disk is being detached");
        Err(failure.hint("try again in a moment").retry().object("vdi", vdi))
    }

    /// Does something with the process of a disk while its writes are held back, knowing whether its leaf owns nothing. They go on
    /// afterwards, whatever came of it.
    pub(crate) fn while_paused<T>(
        &mut self,
        vdi: VdiUuid,
        act: impl FnOnce(bool, &mut Link) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.refuse_while_ending(vdi)?;
        if self.serving.disks.get(&vdi).is_none_or(|served| served.link.is_none()) {
            self.find_or_replace(vdi)?;
        }
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| silent(vdi))?;
        let generation = served.next_generation();
        let link = served.link(vdi)?;
        let outcome = match link.ask(&Ask::Quiesce { generation }, Vec::new()) {
            Ok(Told::Quiesced { leaf_is_empty }) => act(leaf_is_empty, link),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(failure),
        };
        let resumed = link.ask(&Ask::Resume { generation, swap: false }, Vec::new());
        if let Err(failure) = resumed {
            served.lose(BREATH);
            return Err(failure);
        }
        outcome
    }
}
