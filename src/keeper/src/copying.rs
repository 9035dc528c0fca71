//! `VDI.copy`: the content of a disk, snapshot or base copy becomes a disk of its own, without a parent. The chain is leased, so that
//! it stays as it is; the copy is a job, and appears with its commit.

use crate::dispatch::params;
use crate::failures::{bad_request, from_trouble};
use crate::hands::{ready_chain, ready_new};
use crate::images::{empty_bytes, new_image};
use crate::long::{LongJob, Script};
use crate::owner::{Call, Given, Owner, Running};
use crate::streams::{Arriving, trouble};
use catena_control::{Answer, Request};
use catena_rpc::VdiCopyParams;
use catena_sr_api::Access;
use catena_types::{Bytes, Failure, ImageRecord, Made, VdiUuid, Work};
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

impl Owner {
    /// `VDI.copy` within this SR.
    pub(crate) fn vdi_copy(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiCopyParams = params(&call.request)?;
        if asked.sr.is_some_and(|sr| sr != self.sr.uuid.to_string()) {
            return Err(bad_request("the copy is to be made in another SR"));
        }
        let chain = self.chain_to_read(&asked.vdi)?;
        let source = self.catalog.state().vdi_of(chain[0].id);
        let label = asked.name_label.or_else(|| source.map(|vdi| vdi.name_label.clone()));
        let (vdi, image) = (VdiUuid::random(), new_image(None, chain[0].virtual_size));
        let mut job = self.new_job(Work::Copy { vdi, image: chain[0].id }, asked.request_id);
        job.phase = "copying".to_owned();
        self.hold_space(job.id, &image.container, most_bytes(&chain))?;
        self.begin(&mut job, vec![Made { image: image.id, container: image.container.clone() }])?;
        let long = self.or_undo(&job, |owner| {
            owner.store.create_container(&image.container, Bytes(0))?;
            let container = ready_new(&*owner.store, &image.container)?;
            let (handed, below) = ready_chain(&*owner.store, &chain, Access::ReadOnly)?;
            let created = Timestamp::now().as_second();
            let request = Request::Copy { chain: handed, id: image.id, image_format: image.format, created };
            let fds = below.into_iter().chain([container]).collect();
            let script: Script = Box::new(move |session| match session.call(&request, fds)? {
                Answer::Imported { source } => Ok(json!(source.virtual_size)),
                _ => Err(trouble()),
            });
            LongJob::start(job.id, &owner.mailbox, script).map_err(|trouble| from_trouble(&trouble))
        })?;
        let lease = chain.iter().map(|image| image.id).collect();
        self.track(&job, Running { long, lease, cancelled: false });
        self.arriving.insert(job.id, Arriving { image, name_label: label.unwrap_or_default() });
        self.job_document(job.id).map(Given::Answer)
    }
}

/// What a copy of the chain takes at most.
fn most_bytes(chain: &[Arc<ImageRecord>]) -> Bytes {
    let all: u64 = chain.iter().map(|image| image.allocated.0).sum();
    let size = chain.first().map_or(Bytes(0), |leaf| leaf.virtual_size);
    Bytes(all.min(size.0) + empty_bytes(size).0)
}
