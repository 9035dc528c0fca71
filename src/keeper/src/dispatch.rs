//! From a request to the operation that answers it, and what must stop before it may begin.

use crate::failures::bad_request;
use crate::lookup;
use crate::owner::{Call, Given, Owner};
use catena_coalesce::Task;
use catena_rpc::Request;
use catena_types::{ErrorName, Failure, ImageId, JobId, VdiUuid};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;

/// The parameters of a request, checked.
pub(crate) fn params<T: DeserializeOwned>(request: &Request) -> Result<T, Failure> {
    let value = if request.params.is_null() { serde_json::json!({}) } else { request.params.clone() };
    serde_json::from_value(value).map_err(|error| bad_request(format!("{}: {error}", request.method)))
}

/// Methods whose answer is a job.
pub(crate) fn answers_with_a_job(method: &str) -> bool {
    matches!(
        method,
        "VDI.import"
            | "VDI.export"
            | "SR.check"
            | "SR.scan"
            | "SR.trim"
            | "SR.grow"
            | "SR.introduce"
            | "VDI.copy"
            | "Keeper.copy_receive"
    )
}

/// Methods that must wait while images are being mended.
fn touches_disks(method: &str) -> bool {
    method.starts_with("VDI.")
        || matches!(method, "SR.scan" | "SR.check" | "SR.trim" | "SR.destroy" | "Keeper.copy_receive")
}

impl Owner {
    /// Handles one call: at once, or after the merge that is in its way has stopped.
    pub(crate) fn handle(&mut self, mut call: Call) {
        if let Some(outcome) = lookup::answer(&self.board.read(), &call.request) {
            return self.answer(call.request.id, outcome);
        }
        let given = match self.remembered(&call) {
            Some(given) => given,
            None => {
                if touches_disks(&call.request.method) && self.is_mending() {
                    return self.parked.push(call);
                }
                if let Some(job) = self.in_the_way(&call.request) {
                    if let Some(running) = self.running.get(&job) {
                        running.long.stop();
                    }
                    return self.parked.push(call);
                }
                self.close_moves(&call.request).and_then(|()| self.operate(&mut call))
            }
        };
        match given {
            Ok(Given::Answer(value)) => {
                // Who has the answer sees the change in every list.
                self.publish();
                self.answer(call.request.id, Ok(value.into()));
            }
            Ok(Given::Later) => {}
            Ok(Given::Again(vdi)) => self.wanting.push((vdi, call)),
            Ok(Given::AfterStop(vdi)) => self.serving.stopping.push((vdi, call)),
            Ok(Given::Farewell(value)) => {
                self.farewell = Some((call.request.id, value));
                self.leaving = true;
            }
            Err(failure) => self.answer(call.request.id, Err(failure)),
        }
    }

    fn operate(&mut self, call: &mut Call) -> Result<Given, Failure> {
        match call.request.method.as_str() {
            "SR.stat" => self.sr_stat(),
            "SR.scan" => self.sr_scan(call),
            "SR.check" => self.sr_check(call),
            "SR.set_policy" => self.sr_set_policy(call),
            "SR.trim" => self.sr_trim(call),
            "SR.grow" => self.sr_grow(call),
            "SR.detach" => self.sr_detach(),
            "Keeper.end" => Ok(Given::Farewell(serde_json::json!({}))),
            "SR.destroy" => self.sr_destroy(),
            "VDI.create" => self.vdi_create(call),
            "VDI.attach" => self.vdi_attach(call),
            "VDI.detach" => self.vdi_detach(call),
            "VDI.snapshot" => self.vdi_snapshot(call),
            "VDI.clone" => self.vdi_clone(call),
            "VDI.revert" => self.vdi_revert(call),
            "VDI.resize" => self.vdi_resize(call),
            "VDI.set" => self.vdi_set(call),
            "VDI.copy" => self.vdi_copy(call),
            "Keeper.copy_origin" => self.copy_origin(call),
            "Keeper.copy_receive" => self.copy_receive(call),
            "VDI.destroy" => self.vdi_destroy(call),
            "VDI.import" => self.vdi_import(call),
            "VDI.export" => self.vdi_export(call),
            "VDI.read" => self.vdi_read(call),
            "VDI.write" => self.vdi_write(call),
            "Coalesce.run" => self.coalesce_run(call),
            "Coalesce.pause" => self.coalesce_pause(call, true),
            "Coalesce.resume" => self.coalesce_pause(call, false),
            "Job.get" => {
                let asked: catena_rpc::JobParams = params(&call.request)?;
                let id = self.job_id(&asked.job)?;
                self.job_document(id).map(Given::Answer)
            }
            "Job.wait" => self.job_wait(call),
            "Job.cancel" => self.job_cancel(call),
            "Event.list" => self.event_list(call),
            other => Err(Failure::new(ErrorName::Unsupported, format!("there is no method {other} here"))),
        }
    }

    /// The running merge that must stop before the call may begin: a leaf merge of the disk that the call is about (D13, D14),
    /// any merge of a chain that is to be read frozen.
    fn in_the_way(&self, request: &Request) -> Option<JobId> {
        let current = self.current.as_ref()?;
        self.running.get(&current.job)?;
        self.is_in_the_way(current.task, request).then_some(current.job)
    }

    /// D14: ends the leaf merges of disks in use that are in the call's way. They begin again when nothing is any more.
    fn close_moves(&mut self, request: &Request) -> Result<(), Failure> {
        for task in self.open_moves() {
            if let Task::LeafMerge { vdi, .. } = task
                && self.is_in_the_way(task, request)
            {
                self.close_move(vdi, false)?;
            }
        }
        Ok(())
    }

    fn is_in_the_way(&self, merge: Task, request: &Request) -> bool {
        let chain = || {
            let named = request.params.get("vdi").and_then(Value::as_str);
            named.map(|named| self.chain_of(named)).unwrap_or_default()
        };
        let merged = match merge {
            Task::LeafMerge { vdi, .. } => Some(vdi),
            _ => None,
        };
        match request.method.as_str() {
            "VDI.snapshot" | "VDI.clone" | "VDI.revert" | "VDI.resize" | "VDI.destroy" | "VDI.read"
            | "VDI.write" => merged.is_some_and(|merged| named_vdis(request).any(|named| named == merged)),
            "VDI.attach" => merged.is_some() && chain().contains(&merge.image()),
            "VDI.export" | "VDI.copy" | "Keeper.copy_origin" => {
                let chain = chain();
                [Some(merge.image()), merge.target()].iter().flatten().any(|image| chain.contains(image))
            }
            "SR.check" => true,
            // On devices it is about what no image has.
            "SR.trim" => !self.is_sized(),
            _ => false,
        }
    }

    /// The images of the chain that a VDI's or image's uuid names; none if it names nothing.
    fn chain_of(&self, uuid: &str) -> BTreeSet<ImageId> {
        let state = self.catalog.state();
        let leaf = uuid
            .parse()
            .ok()
            .map(|vdi: VdiUuid| state.vdis.get(&vdi).map_or(ImageId(vdi.0), |row| row.image));
        leaf.map(|leaf| state.chain(leaf).map(|image| image.id).collect()).unwrap_or_default()
    }
}

/// The VDIs that `vdi` names: one, or a list.
fn named_vdis(request: &Request) -> impl Iterator<Item = VdiUuid> {
    let named = request.params.get("vdi");
    let several = named.and_then(Value::as_array).into_iter().flatten();
    several.chain(named).filter_map(|name| name.as_str()?.parse().ok())
}
