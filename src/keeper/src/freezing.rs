//! Chains that jobs read as they are at one instant: of a detached disk, a snapshot or a base copy its own; of a disk that a guest
//! writes what it was at that instant, kept below a new leaf (D13). A detached disk gets that leaf when somebody comes to write it
//! while the job still reads.
//!
//! ```text
//!  vdi ─▶ L ─▶ ...    pause, [commit], resume    vdi ─▶ A ─▶ L ─▶ ...    L and all below are read, the guest writes to A
//! ```
//! It is a snapshot without a VDI: the same job and the same pause, so a crash is answered in the same way. From its [commit]
//! on L is an ordinary base copy. The reader's lease keeps it from being merged; when the job is over, however it ended,
//! nothing is to be undone and the worker merges L in its turn. Called by export, copy and attach.

use crate::images::new_image;
use crate::lookup::no_such_vdi;
use crate::owner::{Given, Owner};
use crate::serving::silent;
use catena_catalog::Change;
use catena_types::{
    AttachMode, Bytes, CHAIN_LIMIT, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId, Severity,
    VdiKind, VdiRecord, VdiUuid, Work,
};
use serde_json::json;
use std::sync::Arc;

/// What is to be read.
enum Origin {
    /// An image that nobody writes.
    Still(ImageId),
    /// The leaf of a disk that a guest writes; its chain has room for another.
    Written(VdiUuid, ImageId),
}

impl Owner {
    /// The chain of a VDI, or of an image by its uuid, as it is now. It stays so while it is leased: the caller does that before
    /// anything else is begun. A disk that a guest writes gets a new leaf.
    pub(crate) fn chain_to_keep(&mut self, uuid: &str) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        let still = match self.origin_of(uuid)? {
            Origin::Still(image) => image,
            Origin::Written(vdi, _) => self.freeze(vdi)?,
        };
        self.whole_chain(still)
    }

    /// The chain that [`Self::chain_to_keep`] would give, if it were asked now. Changes nothing, and refuses what that would.
    pub(crate) fn chain_that_can_be_kept(&mut self, uuid: &str) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        let (Origin::Still(image) | Origin::Written(_, image)) = self.origin_of(uuid)?;
        self.whole_chain(image)
    }

    /// The word that the call waits for merges, where the disk needs a new leaf, its chain has no room for one, the client wants to
    /// wait and merges can help. A refusal where they cannot; any other comes with what is to be done.
    pub(crate) fn wait_to_keep(&mut self, uuid: &str, wait: bool) -> Result<Option<Given>, Failure> {
        let is_too_long = |failure: Failure| failure.name == ErrorName::ChainTooLong;
        if !wait || !self.origin_of(uuid).is_err_and(is_too_long) {
            return Ok(None);
        }
        let image = self.image_named(uuid)?;
        let vdi = self.catalog.state().vdi_of(image).map_or(VdiUuid(image.0), |vdi| vdi.uuid);
        let (vdi, leaf) = self.disk(&vdi.to_string())?;
        self.room_above(&vdi, &leaf, wait)
    }

    fn origin_of(&mut self, uuid: &str) -> Result<Origin, Failure> {
        let image = self.image_named(uuid)?;
        let vdi = self.catalog.state().vdi_of(image).map(|vdi| vdi.uuid);
        let Some(vdi) = vdi.filter(|vdi| self.is_written(*vdi)) else {
            return Ok(Origin::Still(image));
        };
        let (vdi, leaf) = self.disk(&vdi.to_string())?;
        // As with a clone: what the guest sees through a leaf that owns nothing is what lies below it.
        if let Some(parent) = leaf.parent
            && self.image(parent)?.virtual_size == leaf.virtual_size
            && self.is_bare_disk(&vdi, &leaf)?
        {
            return Ok(Origin::Still(parent));
        }
        self.room_above(&vdi, &leaf, false)?;
        Ok(Origin::Written(vdi.uuid, leaf.id))
    }

    /// Puts a new leaf on top of the leaf of a disk that a guest writes; answers with the old one, which nobody writes any more.
    fn freeze(&mut self, uuid: VdiUuid) -> Result<ImageId, Failure> {
        let (vdi, leaf) = self.disk(&uuid.to_string())?;
        let still = leaf.id;
        let mut job = self.new_job(Work::Snapshot { vdi: uuid, others: Vec::new() }, None);
        let mut images = [new_image(Some(still), leaf.virtual_size)];
        self.size_leaves(&mut [(&vdi, &mut images[0])], &[&leaf], Bytes(0))?;
        let moved = VdiRecord { image: images[0].id, ..vdi.clone() };
        self.make(&mut job, &mut images, std::slice::from_ref(&moved))?;
        let [above] = images;
        let text = "what the disk holds now is kept for a job that reads it";
        let changes = vec![
            Change::PutVdi(moved),
            Change::PutImage(above.clone()),
            self.event(Severity::Info, "vdi.frozen", Some(uuid), Some(&job), text),
        ];
        self.become_bases(job, vec![(vdi, leaf)], changes, json!({"vdis": []}), &[(uuid, above)])?;
        match self.writer_of(still) {
            // D12: it has not said that it writes to its new leaf.
            Some(vdi) => Err(silent(vdi)),
            None => Ok(still),
        }
    }

    /// D13: the disk is about to be written. Where a job reads it as it is now, it gets a new leaf first, and the job keeps what is
    /// below. Refused where that cannot be: a snapshot has no leaf but its own, a chain may be at its limit, and a job that looks at
    /// the whole SR counts on its images.
    pub(crate) fn leave_to_readers(&mut self, vdi: &VdiRecord, leaf: ImageId) -> Result<(), Failure> {
        let state = self.catalog.state();
        let readers: Vec<JobId> = self
            .running
            .iter()
            .filter(|(_, running)| running.lease.contains(&leaf))
            .map(|(id, _)| *id)
            .collect();
        if readers.is_empty() {
            return Ok(());
        }
        let streams = |id: &JobId| {
            let work = state.jobs.get(id).map(|job| &job.work);
            matches!(work, Some(Work::Export { .. } | Work::Copy { .. }))
        };
        let depth = state.chain(leaf).count();
        let why = if !readers.iter().all(streams) {
            String::new()
        } else if vdi.kind == VdiKind::Snapshot {
            ", and it is a snapshot".to_owned()
        } else if depth >= CHAIN_LIMIT {
            format!(", and its chain has no room for another image: it has {depth}")
        } else {
            return self.freeze(vdi.uuid).map(drop);
        };
        let message = format!("another job reads this disk as it is now{why}");
        let hint = "`catena job list` names it; try again when it is done";
        Err(Failure::new(ErrorName::VdiInUse, message).hint(hint).retry().object("vdi", vdi.uuid))
    }

    /// The chain of a VDI, or of an image by its uuid, that nobody writes.
    pub(crate) fn chain_to_read(&self, uuid: &str) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        let leaf = self.image_named(uuid)?;
        if let Some(vdi) = self.catalog.state().vdi_of(leaf) {
            self.refuse_attached(vdi.uuid, &[AttachMode::ReadWrite])?;
        }
        self.whole_chain(leaf)
    }

    /// The image that a VDI's uuid or its own names.
    pub(crate) fn image_named(&self, uuid: &str) -> Result<ImageId, Failure> {
        let state = self.catalog.state();
        let named: VdiUuid = uuid.parse().map_err(|_| no_such_vdi(uuid))?;
        let image = state.vdis.get(&named).map_or(ImageId(named.0), |vdi| vdi.image);
        state.images.get(&image).map(|row| row.id).ok_or_else(|| no_such_vdi(uuid))
    }

    /// The image's chain, itself first. An image that a merge has begun to write into has no content of its own until that merge is
    /// done.
    fn whole_chain(&self, leaf: ImageId) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        let state = self.catalog.state();
        let row = self.image(leaf)?;
        let vdi = state.vdi_of(leaf).map_or(VdiUuid(leaf.0), |vdi| vdi.uuid);
        let refuse = |text: &str| {
            Failure::new(ErrorName::VdiUnavailable, format!("{}: {text}", row.container))
                .object("image", leaf)
        };
        match row.state {
            ImageState::Mixed => return Err(refuse("a merge into it has begun; only its child reads right")),
            ImageState::Garbage => return Err(no_such_vdi(&leaf.to_string())),
            ImageState::Orphan if row.parent.is_some_and(|parent| !state.images.contains_key(&parent)) => {
                return Err(refuse("its parent is not in this SR"));
            }
            _ => self.check_usable(vdi, leaf)?,
        }
        Ok(state.chain(leaf).cloned().collect())
    }
}
