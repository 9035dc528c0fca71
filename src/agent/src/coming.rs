//! SRs that come to this host: created or introduced, and what a look at a location shows.
//!
//! As in `lifecycle`: a new keeper does it, then `sr.d` says so, then the client is told; the keeper stays that of the SR. Two
//! requests never make an SR of one location at the same time, and a repeated one has one effect.

use crate::access::Access;
use crate::front::{Front, Params, bad_request, read};
use crate::launch::Keeper;
use crate::lifecycle::{alone, not_remembered, wire};
use crate::phase::Phase;
use crate::routes::PATIENCE;
use crate::srd::{MadeBy, SrEntry};
use crate::supervise::Sr;
use crate::table::taken;
use catena_rpc::{Job, Outcome, SrCreateParams, SrIntroduceParams, SrProbeParams, SrProbed};
use catena_types::{ErrorName, Failure, JobState, SrUuid};
use serde_json::{Value, json};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

impl Front {
    /// `SR.create`.
    pub(crate) fn create(&self, access: Access, params: Params) -> Outcome {
        let mut params: SrCreateParams = read(params)?;
        let mut entry = self.entry_at(access, &params.kind, &params.location, &params.devices)?;
        entry.name_label.clone_from(&params.name_label);
        (params.location, params.devices) = (entry.location.clone(), Vec::new());
        let request_id = params.request_id.clone();
        // A crash after the SR was made and before it is remembered: the repeated request names the same SR, and its keeper
        // finds it made.
        if let Some(key) = &request_id {
            entry.uuid = SrUuid::of_key(&format!("{key} {}", entry.location));
        }
        self.bring_in(entry, "SR.create", wire(&params)?, request_id, false)
    }

    /// `SR.introduce`.
    pub(crate) fn introduce(&self, access: Access, params: Params) -> Outcome {
        let mut params: SrIntroduceParams = read(params)?;
        let mut entry = self.entry_at(access, &params.kind, &params.location, &params.devices)?;
        entry.name_label = params.name_label.clone().unwrap_or_default();
        (params.location, params.devices) = (entry.location.clone(), Vec::new());
        if params.dry_run {
            if let Some(sr) = self.table.at(&entry.location) {
                answered_or_refused(&sr, None)?;
            }
            let (keeper, started) = self.starter.start(&entry, self.table.elsewhere(&entry.location))?;
            let outcome = keeper.first_call(started, "SR.introduce", wire(&params)?);
            keeper.end();
            return outcome.map_err(|error| error.into_failure(entry.uuid));
        }
        let request_id = params.request_id.clone();
        self.bring_in(entry, "SR.introduce", wire(&params)?, request_id, true)
    }

    /// `SR.probe`.
    pub(crate) fn probe(&self, access: Access, params: Params) -> Outcome {
        let params: SrProbeParams = read(params)?;
        let entry = self.entry_at(access, &params.kind, &params.location, &params.devices)?;
        let mut probed = self.look(&entry)?;
        probed.known = self.table.at(&entry.location).is_some_and(|sr| Some(sr.uuid()) == probed.uuid);
        wire(&probed)
    }

    /// What is at the location of an SR.
    fn look(&self, entry: &SrEntry) -> Result<SrProbed, Failure> {
        let (keeper, started) = self.starter.start(entry, Vec::new())?;
        let outcome = keeper.first_call(started, "SR.probe", json!({}));
        keeper.end();
        let document = outcome.map_err(|error| error.into_failure(entry.uuid))?;
        serde_json::from_value(document).map_err(|error| nonsense("SR.probe", &error.to_string()))
    }

    /// Lets a new keeper create or introduce an SR and keeps it as the SR's keeper.
    fn bring_in(
        &self,
        entry: SrEntry,
        method: &str,
        params: Value,
        request_id: Option<String>,
        by_job: bool,
    ) -> Outcome {
        self.refuse_while_stopping()?;
        if let Some(answer) = request_id.as_deref().and_then(|id| self.answer_to(id)) {
            return Ok(answer);
        }
        // An SR that is known and could not be attached may be introduced again: so a lost catalog is made anew.
        let (_claim, known) = match by_job {
            true => self.table.claim_any(&entry.location)?,
            false => (self.table.claim(&entry.location)?, None),
        };
        let _alone = known.as_deref().map(alone).transpose()?;
        if let Some(sr) = &known
            && let Some(answer) = answered_or_refused(sr, request_id.as_deref())?
        {
            return Ok(answer);
        }
        // A keeper that tries to attach it meanwhile would be in the way.
        let tried = known.as_ref().filter(|sr| sr.is_tried_again());
        if let Some(sr) = tried {
            sr.stop("SR.detach", json!({})).map_err(|error| sr.failure(error))?;
        }
        let outcome = self.make(entry, method, params, request_id, known.clone());
        if let Some(sr) = tried
            && sr.state().phase == Phase::Detached
        {
            self.settle(sr, true);
        }
        outcome
    }

    /// The same for a location that nobody else brings in.
    fn make(
        &self,
        mut entry: SrEntry,
        method: &str,
        params: Value,
        request_id: Option<String>,
        known: Option<Arc<Sr>>,
    ) -> Outcome {
        let by_job = method == "SR.introduce";
        let (keeper, started) = self.starter.start(&entry, self.table.elsewhere(&entry.location))?;
        let outcome = keeper.first_call(started, method, params);
        let made = outcome.map_err(|error| error.into_failure(entry.uuid)).and_then(|answer| {
            let uuid = if by_job { introduced(&answer) } else { created(&answer) }?;
            Ok((uuid, answer))
        });
        let (uuid, answer) = match made {
            Ok((Some(uuid), answer)) => (uuid, answer),
            Ok((None, answer)) => {
                keeper.end();
                return Ok(answer);
            }
            Err(failure) => {
                keeper.end();
                return Err(failure);
            }
        };
        crate::points::SR_MADE.pass();
        entry.uuid = uuid;
        if entry.name_label.is_empty() {
            entry.name_label = label_of(&keeper, &entry);
        }
        entry.made_by = request_id.map(|request_id| MadeBy { request_id, answer: answer.to_string() });
        self.take_in(entry, keeper, known)?;
        Ok(answer)
    }

    /// Remembers an SR and supervises the keeper that has made it.
    fn take_in(&self, entry: SrEntry, keeper: Keeper, known: Option<Arc<Sr>>) -> Result<(), Failure> {
        let uuid = entry.uuid;
        let known = known.filter(|sr| sr.uuid() == uuid);
        if known.is_none() && self.table.contains(uuid) {
            keeper.end();
            let text = format!("{} is the SR {uuid}, which is known at another location", entry.location);
            return Err(Failure::new(ErrorName::SrExists, text).object("sr", uuid));
        }
        if let Err(error) = self.store.save(&entry) {
            keeper.end();
            return Err(not_remembered(uuid, &error).hint(format!(
                "then: catena sr introduce --type {} --{} {}",
                entry.kind,
                if entry.on_devices { "devices" } else { "location" },
                entry.location
            )));
        }
        tracing::info!(sr = %uuid, location = entry.location, "SR taken in");
        let sr = known.unwrap_or_else(|| Arc::new(Sr::new(entry.clone())));
        sr.set_entry(entry);
        self.table.insert(&sr);
        sr.adopt(&self.starter, keeper)
    }

    /// A new SR at the location or on the devices that a request names; without a name yet.
    fn entry_at(
        &self,
        access: Access,
        kind: &str,
        location: &str,
        devices: &[String],
    ) -> Result<SrEntry, Failure> {
        let location = match (location, devices) {
            ("", []) => return Err(bad_request("neither a location nor devices are named")),
            (one, []) => self.location(access, one)?,
            ("", several) => self.device_paths(access, several)?.join(","),
            _ => return Err(bad_request("an SR has either a location or devices")),
        };
        Ok(SrEntry {
            uuid: SrUuid::random(),
            kind: kind.to_owned(),
            name_label: String::new(),
            location,
            on_devices: !devices.is_empty(),
            attach: true,
            made_by: None,
        })
    }

    /// Devices as they are kept.
    pub(crate) fn device_paths(&self, access: Access, devices: &[String]) -> Result<Vec<String>, Failure> {
        if let Some(path) = devices.iter().find(|path| path.contains(',')) {
            return Err(bad_request(format!("'{path}' has a comma, which stands between devices")));
        }
        devices.iter().map(|path| self.location(access, path)).collect()
    }

    /// A location as it is kept: absolute, without detours. Compared as text: a look at the storage might hang.
    fn location(&self, access: Access, location: &str) -> Result<String, Failure> {
        if access != Access::Root && !self.private {
            return Err(bad_request("only root may name a location"));
        }
        let path = Path::new(location);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(bad_request(format!("'{location}' is not an absolute path without '..'")));
        }
        let plain: PathBuf = path.components().collect();
        Ok(plain.to_string_lossy().into_owned())
    }
}

/// Refuses an SR that a keeper has, or is about to have, but for the request that has brought it back before a crash: its new
/// catalog has the answer. An SR that is just being attached may be about to fail, and is waited for.
fn answered_or_refused(sr: &Sr, request_id: Option<&str>) -> Result<Option<Value>, Failure> {
    match sr.settled().phase {
        Phase::Detached | Phase::Failed => Ok(None),
        Phase::Starting | Phase::Waiting | Phase::Attached | Phase::Stopping => {
            let repeated = |id| {
                let params = json!({"request_id": id});
                let answer = sr.link().ok()?.call("SR.introduce", params, Vec::new(), Some(PATIENCE));
                answer.ok().map(|answer| answer.value())
            };
            let answer = request_id.and_then(repeated).filter(|answer| introduced(answer).is_ok());
            answer.map(Some).ok_or_else(|| taken(sr))
        }
    }
}

/// What `SR.create` has made.
fn created(answer: &Value) -> Result<Option<SrUuid>, Failure> {
    let uuid = answer["uuid"].as_str().and_then(|text| text.parse().ok());
    uuid.map(Some).ok_or_else(|| nonsense("SR.create", "no uuid"))
}

/// What the job of `SR.introduce` has made; nothing, if it failed.
fn introduced(answer: &Value) -> Result<Option<SrUuid>, Failure> {
    let job: Job = serde_json::from_value(answer.clone())
        .map_err(|error| nonsense("SR.introduce", &error.to_string()))?;
    Ok((job.state == JobState::Done).then_some(job.sr))
}

fn nonsense(method: &str, why: &str) -> Failure {
    Failure::new(ErrorName::IoError, format!("the keeper's answer to {method} makes no sense: {why}"))
}

/// The label that an introduced SR has, or the name of its directory.
fn label_of(keeper: &Keeper, entry: &SrEntry) -> String {
    let record = keeper.link.call("SR.get_record", json!({"sr": entry.uuid}), Vec::new(), Some(PATIENCE));
    let label = record.ok().and_then(|record| record.value()["name_label"].as_str().map(str::to_owned));
    label.filter(|label| !label.is_empty()).unwrap_or_else(|| {
        Path::new(&entry.location)
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, bare_front};

    #[test]
    fn only_root_names_a_location_and_only_a_plain_one() {
        let (front, _directory) = bare_front([Script::new()]);
        let Value::Object(creating) = json!({"type": "file", "name_label": "a", "location": "/srv/a"}) else {
            unreachable!("an object")
        };
        let refused = front.create(Access::Change, creating).unwrap_err();
        assert!(refused.message.contains("root"), "{refused}");
        for location in ["srv/a", "", "/srv/../a"] {
            let text = front.location(Access::Root, location).unwrap_err().message;
            assert!(text.contains("absolute"), "{text}");
        }
        let at = |location: &str, devices: &[&str]| {
            let devices: Vec<String> = devices.iter().copied().map(str::to_owned).collect();
            front.entry_at(Access::Root, "lvm", location, &devices).map(|entry| entry.location)
        };
        assert_eq!(at("", &["/dev//sdb", "/dev/sdc"]).unwrap(), "/dev/sdb,/dev/sdc");
        for (location, devices) in [("", &[][..]), ("/a", &["/b"]), ("", &["/a,/b"]), ("", &["sdb"])] {
            assert_eq!(
                at(location, devices).unwrap_err().name,
                ErrorName::BadRequest,
                "{location} {devices:?}"
            );
        }
    }
}
