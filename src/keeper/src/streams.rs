//! Operations that move a disk's bytes through a descriptor that the client passed: import, export, and the read and write of
//! detached disks. This host opens no path that a request names.

use crate::arrival::{Arriving, Filling};
use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::{bad_request, from_trouble, of_source, of_target};
use crate::hands::ready_chain;
use crate::images::{empty_bytes, new_image, unexpected};
use crate::long::{LongJob, Script};
use crate::owner::{Call, Given, Owner, Running};
use catena_control::{Answer, ExportFormat, ImportFormat, Request, Trouble, TroubleKind};
use catena_rpc::{ReadWriteParams, VdiExportParams, VdiImportParams};
use catena_sr_api::Access;
use catena_types::{AttachMode, BLOCK_BYTES, Bytes, ErrorName, Failure, JobRecord, JobState, VdiUuid, Work};
use jiff::Timestamp;
use nix::libc;
use nix::sys::stat::fstat;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

impl Owner {
    /// `VDI.import`: a stream becomes a disk. A failed import leaves nothing.
    pub(crate) fn vdi_import(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: VdiImportParams = params(&call.request)?;
        let format = match asked.format.as_deref() {
            None | Some("auto") => ImportFormat::Auto,
            Some("raw") => ImportFormat::Raw,
            Some("vhd") => ImportFormat::Vhd,
            Some(other) => return Err(unknown_format(other, "auto, raw or vhd")),
        };
        let stream = descriptor(call, asked.fd)?;
        let work = Work::Import { vdi: VdiUuid::random() };
        let image = new_image(None, Bytes(0));
        let request = Request::Import {
            format,
            id: image.id,
            image_format: image.format,
            created: Timestamp::now().as_second(),
        };
        let (new, need) = (Arriving { image, name_label: asked.name_label }, bytes_of(&stream));
        self.begin_arrival(work, new, need, asked.request_id, BTreeSet::new(), |_| {
            Ok(Filling { request, fds: vec![stream], meaning: |trouble| trouble })
        })
    }

    /// `VDI.export`: the content of a VDI or of a base copy, as it is now, goes to a stream. The chain is leased: nothing merges
    /// into it or removes it meanwhile. A guest that writes the disk goes on.
    pub(crate) fn vdi_export(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: VdiExportParams = params(&call.request)?;
        let format = match asked.format.as_deref() {
            None | Some("raw") => ExportFormat::Raw,
            Some("vhd") => ExportFormat::Vhd,
            Some("vhd-fixed") => ExportFormat::VhdFixed,
            Some(other) => return Err(unknown_format(other, "raw, vhd or vhd-fixed")),
        };
        if let Some(again) = self.wait_to_keep(&asked.vdi, asked.wait)? {
            return Ok(again);
        }
        let stream = descriptor(call, asked.fd)?;
        let chain = self.chain_to_keep(&asked.vdi)?;
        let mut job = self.new_job(Work::Export { image: chain[0].id }, asked.request_id);
        job.phase = "copying".to_owned();
        self.begin(&mut job, Vec::new())?;
        let lease = chain.iter().map(|image| image.id).collect();
        let long = self.or_undo(&job, |owner| {
            let (handed, fds) = ready_chain(&*owner.store, &chain, Access::ReadOnly)?;
            let request = Request::Export { chain: handed, format };
            let fds = std::iter::once(stream).chain(fds).collect();
            let script: Script = Box::new(move |session| match session.call(&request, fds)? {
                Answer::Moved { bytes } => Ok(json!({"bytes": bytes})),
                _ => Err(trouble()),
            });
            LongJob::start(job.id, &owner.mailbox, script).map_err(|trouble| from_trouble(&trouble))
        })?;
        self.track(&job, Running { long, lease, cancelled: false });
        self.job_document(job.id).map(Given::Answer)
    }

    /// A long job that is no merge has ended; if badly, it is recorded as `otherwise`.
    pub(crate) fn stream_ended(
        &mut self,
        mut job: JobRecord,
        end: Result<Value, Failure>,
        otherwise: JobState,
    ) {
        let arriving = self.arriving.remove(&job.id);
        if let Some(live) = self.live.get(&job.id) {
            job.bytes_total = live.progress.bytes_total;
            job.bytes_done = live.progress.bytes_done;
        }
        let end = end.map_err(|failure| match job.work {
            Work::Import { .. } => of_source(failure),
            Work::Export { .. } => of_target(failure),
            _ => failure,
        });
        let result = end.and_then(|answer| {
            crash::pass(job.work.kind(), Phase::Made);
            match (&job.work, arriving) {
                (Work::Import { vdi } | Work::Copy { vdi, .. }, Some(arriving)) => {
                    self.arrive(job.clone(), *vdi, arriving, &answer)
                }
                (Work::Repair, _) => self.repair_went_on(job.clone(), answer),
                (Work::Trim, _) => self.trimmed(job.clone(), answer),
                _ => {
                    job.answer = Some(answer);
                    self.finish(job.clone(), Vec::new())
                }
            }
        });
        if let Err(failure) = result {
            tracing::warn!(job = job.id, %failure, "a job failed");
            self.undo(job, otherwise, &failure);
        }
    }

    /// `VDI.read`: a range of a detached disk goes to a stream.
    pub(crate) fn vdi_read(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: ReadWriteParams = params(&call.request)?;
        let chain = self.chain_to_read(&asked.vdi)?;
        let stream = descriptor(call, asked.fd)?;
        let (handed, fds) = ready_chain(&*self.store, &chain, Access::ReadOnly)?;
        let request = Request::Read { chain: handed, offset: asked.offset, length: asked.length };
        self.moved(&request, stream, fds)
    }

    /// `VDI.write`: a range of a detached disk comes from a stream; durable when answered.
    pub(crate) fn vdi_write(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: ReadWriteParams = params(&call.request)?;
        let (vdi, leaf) = self.disk(&asked.vdi)?;
        self.refuse_attached(vdi.uuid, &[AttachMode::ReadOnly, AttachMode::ReadWrite])?;
        if self.running.values().any(|running| running.lease.contains(&leaf.id)) {
            let failure = Failure::new(ErrorName::VdiInUse, "another job reads this disk as it is now");
            return Err(failure
                .hint("`catena job list` names it; try again when it is done")
                .retry()
                .object("vdi", vdi.uuid));
        }
        self.need_space(asked.length)?;
        let stream = descriptor(call, asked.fd)?;
        let chain: Vec<_> = self.catalog.state().chain(vdi.image).cloned().collect();
        let grown = self.make_room_in(vdi.uuid, &leaf, asked.length)?;
        let given = ready_chain(&*self.store, &chain, Access::ReadWrite).and_then(|(handed, fds)| {
            let request = Request::Write { chain: handed, offset: asked.offset, length: asked.length };
            self.moved(&request, stream, fds)
        });
        if let Some(job) = grown {
            self.run_steps(job);
        }
        self.remeasure(&[leaf.id])?;
        given
    }

    fn moved(&mut self, request: &Request, stream: OwnedFd, fds: Vec<OwnedFd>) -> Result<Given, Failure> {
        let fds = std::iter::once(stream).chain(fds).collect();
        match self.small.call(request, fds).map_err(|trouble| from_trouble(&trouble))? {
            Answer::Moved { bytes } => Ok(Given::Answer(json!({"bytes": bytes}))),
            _ => Err(unexpected()),
        }
    }
}

/// What a disk of the stream's content will take, as far as that can be known: nothing is known of a pipe, and the import of one
/// fails when the storage is full.
fn bytes_of(stream: &OwnedFd) -> Bytes {
    match fstat(stream) {
        Ok(status) if status.st_mode & libc::S_IFMT == libc::S_IFREG => {
            let length = u64::try_from(status.st_size).unwrap_or(0);
            let data = u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512);
            let bitmaps = data.div_ceil(BLOCK_BYTES) * 4096;
            Bytes(data.min(length) + bitmaps + empty_bytes(Bytes(length).round_up(BLOCK_BYTES)).0)
        }
        _ => Bytes(0),
    }
}

/// The descriptor that the parameters name; it is taken out of the call.
pub(crate) fn descriptor(call: &mut Call, index: u32) -> Result<OwnedFd, Failure> {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if index >= call.fds.len() {
        return Err(bad_request(format!("the message has no descriptor {index}")));
    }
    Ok(call.fds.swap_remove(index))
}

fn unknown_format(name: &str, known: &str) -> Failure {
    Failure::new(ErrorName::Unsupported, format!("'{name}' is not a supported format")).hint(known)
}

/// A worker answered something else than it was asked.
pub(crate) fn trouble() -> Trouble {
    Trouble {
        kind: TroubleKind::Internal,
        message: "the datapath worker gave an unexpected answer".to_owned(),
    }
}
