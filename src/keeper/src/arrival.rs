//! A disk on its way in: an import or a copy fills its image in a process of its own, and it appears with the commit of that job.
//!
//! A container of explicit size begins with what is known of its content, grows while it is filled where that was too little, and
//! gets the size of a disk at rest in the end. So a pipe, of which nothing is known, comes in like everything else.

use crate::failures::{from_trouble, to_trouble};
use crate::hands::ready_new;
use crate::images::{container_name, unexpected};
use crate::long::{Line, LongJob, Script, Session};
use crate::operations::new_vdi;
use crate::owner::{Given, Owner, Running};
use crate::sizing::{self, Sizes};
use crate::streams::trouble;
use catena_catalog::Change;
use catena_control::{Answer, Request, Trouble};
use catena_sr_api::Store;
use catena_types::{
    Allocation, BLOCK_BYTES, Bytes, ErrorName, Failure, ImageId, ImageRecord, JobRecord, Made, Severity,
    VdiKind, VdiUuid, Work,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A container that turns out too small grows by so much, or by a quarter of what it has if that is more: each time costs a good part
/// of a second.
const CHUNK: Bytes = Bytes(256 << 20);

/// A disk on its way in: its rows, but for what is known only in the end.
#[derive(Debug, Clone)]
pub(crate) struct Arriving {
    /// Its image. A size of 0 is not known yet.
    pub(crate) image: ImageRecord,
    /// Its name.
    pub(crate) name_label: String,
}

/// What fills it: a request that is answered with [`Answer::Imported`].
pub(crate) struct Filling {
    /// The request.
    pub(crate) request: Request,
    /// Its descriptors, but for the last one, the new container.
    pub(crate) fds: Vec<OwnedFd>,
    /// What its failure means to who asked for the disk.
    pub(crate) meaning: fn(Trouble) -> Trouble,
}

impl Owner {
    /// Begins the job by which a new disk comes in. `need` is what it will take, as far as that is known. Answers with the job.
    pub(crate) fn begin_arrival(
        &mut self,
        work: Work,
        mut new: Arriving,
        need: Bytes,
        request_id: Option<String>,
        lease: BTreeSet<ImageId>,
        filling: impl FnOnce(&Self) -> Result<Filling, Failure>,
    ) -> Result<Given, Failure> {
        let mut job = self.new_job(work, request_id);
        job.phase = "copying".to_owned();
        new.image.container = container_name(&*self.store, &new.image);
        let container = new.image.container.clone();
        let tub = self.tub(&new.image)?;
        let size = tub.as_ref().map_or(Bytes(0), |tub| tub.first_size(need));
        self.hold_space(job.id, &container, if tub.is_some() { size } else { need })?;
        self.begin(&mut job, vec![Made { image: new.image.id, container: container.clone() }])?;
        let long = self.or_undo(&job, |owner| {
            owner.store.create_container(&container, size)?;
            let filling = filling(owner)?;
            let fd = ready_new(&*owner.store, &container)?;
            let script: Script = Box::new(move |session| fill(session, filling, fd, tub.as_ref()));
            LongJob::start(job.id, &owner.mailbox, script).map_err(|trouble| from_trouble(&trouble))
        })?;
        self.track(&job, Running { long, lease, cancelled: false });
        self.arriving.insert(job.id, new);
        self.job_document(job.id).map(Given::Answer)
    }

    /// The commit of a disk that has come in.
    pub(crate) fn arrive(
        &mut self,
        mut job: JobRecord,
        vdi: VdiUuid,
        arriving: Arriving,
        size: &Value,
    ) -> Result<(), Failure> {
        let virtual_size = Bytes(size.as_u64().ok_or_else(unexpected)?);
        let image = self.measured(&ImageRecord { virtual_size, ..arriving.image });
        let row = new_vdi(vdi, image.id, arriving.name_label, VdiKind::Disk);
        let word = if matches!(job.work, Work::Copy { .. }) { "copied" } else { "imported" };
        let text = format!("disk of {virtual_size} {word}");
        let event = self.event(Severity::Info, &format!("vdi.{word}"), Some(vdi), Some(&job), text);
        job.committed = true;
        job.answer = Some(json!({"uuid": vdi}));
        self.finish(job, vec![Change::PutImage(image), Change::PutVdi(row), event])
    }

    /// The new container, if its size is explicit.
    fn tub(&mut self, image: &ImageRecord) -> Result<Option<Tub>, Failure> {
        if !self.is_sized() {
            return Ok(None);
        }
        let known = image.virtual_size.0 > 0;
        let virtual_size = image.virtual_size.max(Bytes(BLOCK_BYTES));
        let sizes = self.sizes_of(&ImageRecord { virtual_size, ..image.clone() })?;
        let (store, allocation) = (Arc::clone(&self.store), self.policy().allocation);
        let full = known.then_some(sizes.full);
        Ok(Some(Tub { store, image: image.clone(), allocation, empty: sizes.empty, full }))
    }
}

/// A new container of explicit size, as the thread sees it that has it filled.
struct Tub {
    store: Arc<dyn Store>,
    image: ImageRecord,
    allocation: Allocation,
    /// What an image without blocks takes.
    empty: Bytes,
    /// What the disk takes when every block is there, if its size is known.
    full: Option<Bytes>,
}

impl Tub {
    /// The size that it is made with, where its content will take so much.
    fn first_size(&self, need: Bytes) -> Bytes {
        let enough = self.store.round(Bytes(self.empty.0.saturating_add(need.0)));
        match (self.full, self.allocation) {
            (Some(full), Allocation::Thick) => full,
            (Some(full), _) => enough.min(full),
            (None, _) => enough,
        }
    }

    /// Makes it larger, to `wanted` bytes at least, if the owner and the storage give that. What it has then.
    fn enlarge(&self, line: &Line, wanted: Bytes) -> Result<Bytes, Failure> {
        let name = &self.image.container;
        let has = self.store.info(name)?.length;
        let generous = Bytes(has.0 + CHUNK.0.max(has.0 / 4)).min(self.full.unwrap_or(Bytes(u64::MAX)));
        for size in [self.store.round(generous.max(wanted)), self.store.round(wanted)] {
            if line.may_take(name, Bytes(size.0.saturating_sub(has.0))) {
                self.store.grow(name, size)?;
                break;
            }
        }
        Ok(self.store.info(name)?.length)
    }

    /// All has come in: it gets the size of a disk at rest.
    fn settle(&self, virtual_size: Bytes, session: &mut Session<'_>, line: &Line) -> Result<(), Failure> {
        let image = ImageRecord { virtual_size, ..self.image.clone() };
        let mut call = |request: &Request, fds: Vec<OwnedFd>| session.call(request, fds);
        if self.allocation != Allocation::Thick {
            return sizing::deflate(&*self.store, &image, &mut call);
        }
        let full = Sizes::of(&*self.store, &image, &mut call)?.full;
        if self.store.info(&image.container)?.length > full {
            sizing::deflate(&*self.store, &image, &mut call)?;
        }
        let missing = Bytes(full.0.saturating_sub(self.store.info(&image.container)?.length.0));
        if !line.may_take(&image.container, missing) {
            let text = format!("there is no room for the disk at its full size: {missing} more are needed");
            return Err(Failure::new(ErrorName::NoSpace, text));
        }
        sizing::grow_to(&*self.store, &image, full, &mut call)
    }
}

/// Fills the container; the size of its disk is the answer.
fn fill(
    session: &mut Session<'_>,
    filling: Filling,
    container: OwnedFd,
    tub: Option<&Tub>,
) -> Result<Value, Trouble> {
    let line = session.line();
    let fds = filling.fds.into_iter().chain([container]).collect();
    let mut enlarge = |wanted| {
        match &tub {
        None => Bytes(0),
        Some(tub) => tub.enlarge(&line, wanted).unwrap_or_else(|failure| {
            tracing::warn!(%failure, container = tub.image.container, "a container that is filled cannot grow");
            Bytes(0)
        }),
    }
    };
    let filled = session.call_filling(&filling.request, fds, &mut enlarge);
    let Answer::Imported { source } = filled.map_err(filling.meaning)? else { return Err(trouble()) };
    if let Some(tub) = tub {
        tub.settle(source.virtual_size, session, &line).map_err(|failure| to_trouble(&failure))?;
    }
    Ok(json!(source.virtual_size))
}
