//! `VDI.set`: names and free keys of a VDI. They are in the catalog alone, so one commit is all of it; limits among them are
//! told to the process that serves the disk afterwards.

use crate::crash::{self, Phase};
use crate::dispatch::params;
use crate::failures::bad_request;
use crate::lookup::{no_such_vdi, vdi_uuid};
use crate::owner::{Call, Given, Owner};
use crate::qos;
use catena_catalog::Change;
use catena_rpc::VdiSetParams;
use catena_types::{Failure, JobKind, JobState, Severity, VdiRecord, Work};
use serde_json::json;

/// The most bytes that the names and free keys of one VDI may have together: a record must fit into a line of the wire.
const TEXT_LIMIT: usize = 64 << 10;

impl Owner {
    /// `VDI.set`: what is given is changed, all of it or nothing.
    pub(crate) fn vdi_set(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiSetParams = params(&call.request)?;
        let uuid = vdi_uuid(&asked.vdi)?;
        let before = self.catalog.state().vdis.get(&uuid).ok_or_else(|| no_such_vdi(&asked.vdi))?;
        let after = changed(before, &asked)?;
        let keys_before = before.other_config.clone();
        let mut job = self.new_job(Work::Set { vdi: uuid }, asked.request_id);
        job.state = JobState::Done;
        job.phase = "done".to_owned();
        job.committed = true;
        job.answer = Some(json!({}));
        let event =
            self.event(Severity::Info, "vdi.changed", Some(uuid), Some(&job), "names or keys changed");
        self.commit(vec![Change::PutVdi(after), Change::PutJob(job), event])?;
        crash::pass(JobKind::Set, Phase::Committed);
        self.qos_changed(uuid, &keys_before);
        Ok(Given::Answer(json!({})))
    }
}

fn changed(before: &VdiRecord, asked: &VdiSetParams) -> Result<VdiRecord, Failure> {
    let mut after = before.clone();
    if asked.name_label.is_none() && asked.name_description.is_none() && asked.other_config.is_empty() {
        return Err(bad_request("there is nothing to set: name_label, name_description or other_config"));
    }
    if let Some(label) = &asked.name_label {
        after.name_label.clone_from(label);
    }
    if let Some(description) = &asked.name_description {
        after.name_description.clone_from(description);
    }
    for (key, value) in &asked.other_config {
        match value.as_str() {
            _ if key.is_empty() => return Err(bad_request("a key of other_config has no name")),
            "" => drop(after.other_config.remove(key)),
            _ => {
                qos::check(key, value).map_err(bad_request)?;
                after.other_config.insert(key.clone(), value.clone());
            }
        }
    }
    let keys: usize = after.other_config.iter().map(|(key, value)| key.len() + value.len()).sum();
    let length = after.name_label.len() + after.name_description.len() + keys;
    if length > TEXT_LIMIT {
        return Err(bad_request(format!("names and keys of {length} bytes, and {TEXT_LIMIT} are the limit")));
    }
    Ok(after)
}
