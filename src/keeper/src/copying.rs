//! `VDI.copy`: the content of a disk, snapshot or base copy becomes a disk of its own, without a parent. The chain is leased,
//! so that it stays as it is, and a disk that a guest writes is first frozen (`freezing`); the copy is a job, and appears with
//! its commit.
//!
//! Into another SR it goes through a pipe: the front asks the keeper of the origin what it is ([`copy_origin`]), gives the
//! reading end to the keeper of the copy ([`copy_receive`]) and the writing end to an export of the origin. What comes is a VHD
//! with a footer at its end, so a stream that ends early is never taken for a disk.
//!
//! [`copy_origin`]: Owner::copy_origin
//! [`copy_receive`]: Owner::copy_receive

use crate::arrival::{Arriving, Filling};
use crate::dispatch::params;
use crate::failures::bad_request;
use crate::failures::from_trouble;
use crate::hands::ready_chain;
use crate::images::{empty_bytes, new_image, unexpected};
use crate::owner::{Call, Given, Owner};
use crate::streams::descriptor;
use catena_control::{Answer, ImportFormat, Request, Trouble, TroubleKind};
use catena_rpc::{CopyOrigin, KeeperOrigin, KeeperReceive, VdiCopyParams};
use catena_sr_api::Access;
use catena_types::{Bytes, Failure, ImageRecord, VdiUuid, Work};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Owner {
    /// `VDI.copy` within this SR.
    pub(crate) fn vdi_copy(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiCopyParams = params(&call.request)?;
        if asked.sr.is_some_and(|sr| sr != self.sr.uuid.to_string()) {
            return Err(bad_request("the copy is to be made in another SR"));
        }
        if let Some(again) = self.wait_to_keep(&asked.vdi, asked.wait)? {
            return Ok(again);
        }
        let origin = self.origin(&asked.vdi)?;
        // A disk in use is not frozen for a copy that has no place.
        self.need_space(origin.bytes)?;
        let chain = self.chain_to_keep(&asked.vdi)?;
        let image = new_image(None, chain[0].virtual_size);
        let work = Work::Copy { vdi: VdiUuid::random(), image: chain[0].id };
        let lease = chain.iter().map(|image| image.id).collect();
        let (id, image_format) = (image.id, image.format);
        let new = Arriving { image, name_label: asked.name_label.unwrap_or(origin.name_label) };
        self.begin_arrival(work, new, origin.bytes, asked.request_id, lease, |owner| {
            let (handed, fds) = ready_chain(&*owner.store, &chain, Access::ReadOnly)?;
            let created = Timestamp::now().as_second();
            let request = Request::Copy { chain: handed, id, image_format, created };
            Ok(Filling { request, fds, meaning: |trouble| trouble })
        })
    }

    /// `Keeper.copy_origin`: what the front must know to have a VDI or image of this SR copied into another one. Refused where the
    /// export that follows would be.
    pub(crate) fn copy_origin(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: KeeperOrigin = params(&call.request)?;
        if let Some(again) = self.wait_to_keep(&asked.vdi, asked.wait)? {
            return Ok(again);
        }
        let origin = self.origin(&asked.vdi)?;
        Ok(Given::Answer(serde_json::to_value(origin).unwrap_or_default()))
    }

    /// `Keeper.copy_receive`: a copy from another SR comes in. A new job is answered as `{"begun": JOB}`, so that the front can tell
    /// it from that of a repeated request, for which nothing is to be sent.
    pub(crate) fn copy_receive(&mut self, call: &mut Call) -> Result<Given, Failure> {
        let asked: KeeperReceive = params(&call.request)?;
        let stream = descriptor(call, asked.fd)?;
        let image = new_image(None, Bytes(0));
        let work = Work::Copy { vdi: VdiUuid::random(), image: asked.origin.image };
        let request = Request::Import {
            format: ImportFormat::Vhd,
            id: image.id,
            image_format: image.format,
            created: Timestamp::now().as_second(),
        };
        let new = Arriving { image, name_label: asked.origin.name_label };
        let need = asked.origin.bytes;
        let begun = self.begin_arrival(work, new, need, asked.request_id, BTreeSet::new(), |_| {
            Ok(Filling { request, fds: vec![stream], meaning: incomplete })
        })?;
        Ok(match begun {
            Given::Answer(job) => Given::Answer(json!({"begun": job})),
            other => other,
        })
    }

    fn origin(&mut self, uuid: &str) -> Result<CopyOrigin, Failure> {
        let image = self.image_named(uuid)?;
        let chain = self.chain_that_can_be_kept(uuid)?;
        let vdi = self.catalog.state().vdi_of(image);
        let name_label = vdi.map(|vdi| vdi.name_label.clone()).unwrap_or_default();
        let taken = self.used_by(&chain)?;
        let size = chain.first().map_or(Bytes(0), |leaf| leaf.virtual_size);
        // What a copy takes at most.
        let bytes = Bytes(taken.0.min(size.0) + empty_bytes(size).0);
        Ok(CopyOrigin { image, bytes, name_label })
    }

    /// What these images hold, together.
    fn used_by(&mut self, chain: &[Arc<ImageRecord>]) -> Result<Bytes, Failure> {
        // What a guest writes may have grown since its row was written.
        let allocated: Vec<u64> = chain.iter().map(|image| self.measured(image).allocated.0).collect();
        if !self.is_sized() {
            return Ok(Bytes(allocated.iter().sum()));
        }
        // A container may be larger than its image.
        let wanted: Vec<(&str, Access)> =
            chain.iter().map(|image| (image.container.as_str(), Access::ReadOnly)).collect();
        let fds = self.store.activate_all(&wanted)?;
        let formats = chain.iter().map(|image| image.format).collect();
        let reports = match self.small.call(&Request::Inspect { formats }, fds) {
            Ok(Answer::Reports { reports }) => reports,
            Ok(_) => return Err(unexpected()),
            Err(trouble) => return Err(from_trouble(&trouble)),
        };
        let used = reports.into_iter().zip(allocated).map(|(report, allocated)| match report {
            Ok(report) => report.needs.0,
            // One that a guest changes just now may not be read whole.
            Err(_) => allocated,
        });
        Ok(Bytes(used.sum()))
    }
}

/// The stream is our own: one that is no whole VHD has been cut off, and its sender knows why.
fn incomplete(trouble: Trouble) -> Trouble {
    match trouble.kind {
        TroubleKind::Damaged | TroubleKind::Unsupported | TroubleKind::Unsafe => Trouble {
            kind: TroubleKind::Io,
            message: format!(
                "reading the origin has failed, the job of its export says why ({})",
                trouble.message
            ),
        },
        _ => trouble,
    }
}
