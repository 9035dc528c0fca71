//! The life of an SR on this host: create, introduce, attach, grow, detach, forget, destroy.
//!
//! The keeper does it, then `sr.d` says so, then the client is told. A crash between the first two leaves an SR that `sr.d` does
//! not name yet (introduce it) or still names (it fails to attach; forget it). One such request at a
//! time for each SR; others are told to try again.

use crate::access::Access;
use crate::front::{Front, Params, bad_request, read};
use crate::keeper::CallError;
use crate::launch::Keeper;
use crate::phase::Phase;
use crate::routes::PATIENCE;
use crate::srd::{MadeBy, SrEntry};
use crate::supervise::Sr;
use crate::table::taken;
use catena_rpc::{
    GrowReport, Job, Outcome, SrCreateParams, SrGrowParams, SrIntroduceParams, SrParams, SrProbeParams,
    SrProbed,
};
use catena_types::{ErrorName, Failure, JobState, SrUuid};
use serde_json::{Value, json};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};

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

    /// `SR.attach`.
    pub(crate) fn attach(&self, mut params: Params) -> Outcome {
        let sr = self.named_sr(&mut params)?;
        let params: SrParams = read(params)?;
        let _alone = alone(&sr)?;
        self.refuse_while_stopping()?;
        // First the wish: an SR that cannot be attached now shows as failed, and is tried again at the next start.
        self.remember_attach(&sr, true)?;
        sr.start(&self.starter, params.take_over)?;
        sr.wait_started()?;
        Ok(json!({}))
    }

    /// `SR.detach`.
    pub(crate) fn detach(&self, mut params: Params) -> Outcome {
        let sr = self.named_sr(&mut params)?;
        let _alone = alone(&sr)?;
        match sr.stop("SR.detach", json!({})) {
            // A keeper that died over it is gone all the same, and is not restarted.
            Ok(()) | Err(CallError::Died | CallError::Gone) => {}
            Err(error) => return Err(sr.failure(error)),
        }
        self.remember_attach(&sr, false)?;
        Ok(json!({}))
    }

    /// `SR.forget`.
    pub(crate) fn forget(&self, mut params: Params) -> Outcome {
        let request_id = request_id(&params);
        let sr = match self.named_sr(&mut params) {
            Err(failure) => return self.gone_before("SR.forget", request_id.as_deref(), failure),
            Ok(sr) => sr,
        };
        let _alone = alone(&sr)?;
        let entry = sr.entry();
        if sr.state().phase != Phase::Detached {
            let text = format!("SR {} ({}) is not detached", entry.uuid, entry.name_label);
            return Err(Failure::new(ErrorName::SrInUse, text)
                .hint(format!("first: catena sr detach {}", entry.uuid))
                .object("sr", entry.uuid));
        }
        self.drop_entry("SR.forget", request_id.as_deref(), entry.uuid)?;
        Ok(json!({}))
    }

    /// `SR.destroy`.
    pub(crate) fn destroy(&self, mut params: Params) -> Outcome {
        let request_id = request_id(&params);
        let sr = match self.named_sr(&mut params) {
            Err(failure) => return self.gone_before("SR.destroy", request_id.as_deref(), failure),
            Ok(sr) => sr,
        };
        let _alone = alone(&sr)?;
        self.refuse_while_stopping()?;
        let was_wanted = sr.state().phase != Phase::Detached;
        if let Err(failure) = sr.start(&self.starter, false).and_then(|()| sr.wait_started()) {
            self.settle(&sr, was_wanted);
            return Err(failure);
        }
        let request = request_id.as_ref().map_or_else(|| json!({}), |id| json!({"request_id": id}));
        if let Err(error) = sr.stop("SR.destroy", request) {
            let failure = sr.failure(error);
            self.settle(&sr, was_wanted);
            return Err(failure);
        }
        crate::points::SR_DESTROYED.pass();
        self.drop_entry("SR.destroy", request_id.as_deref(), sr.uuid())?;
        Ok(json!({}))
    }

    /// `SR.grow`: the keeper does it, then `sr.d` names the new devices; the answer is a job that is over. After a crash between the
    /// two the SR is found by what its devices hold, and a repetition of the request brings `sr.d` up to date.
    pub(crate) fn grow(&self, access: Access, mut params: Params) -> Outcome {
        let sr = self.named_sr(&mut params)?;
        let mut params: SrGrowParams = read(params)?;
        params.devices = self.device_paths(access, &params.devices)?;
        let _alone = alone(&sr)?;
        let link = sr.link()?;
        let call = |method, params| {
            let answer = link.call(method, params, Vec::new(), None);
            answer.map(|answer| answer.value()).map_err(|error| sr.failure(error))
        };
        let begun = call("SR.grow", wire(&params)?)?;
        let job = call("Job.wait", json!({"job": begun["id"]}))?;
        let grown: Option<GrowReport> = serde_json::from_value(job["result"].clone()).ok();
        let mut entry = sr.entry();
        if let Some(GrowReport { devices, .. }) = grown
            && entry.on_devices
            && devices != entry.devices()
        {
            entry.location = devices.join(",");
            self.store.save(&entry).map_err(|error| not_remembered(entry.uuid, &error))?;
            sr.set_entry(entry);
        }
        Ok(job)
    }

    /// Brings an SR that was not destroyed, or not introduced anew, back to how it was.
    fn settle(&self, sr: &Arc<Sr>, was_wanted: bool) {
        let result = if was_wanted {
            sr.start(&self.starter, false)
        } else {
            sr.stop("SR.detach", json!({})).map_err(|error| sr.failure(error))
        };
        if let Err(failure) = result {
            tracing::warn!(sr = %sr.uuid(), %failure, "an SR is not as it was");
        }
    }

    /// Writes down whether the SR is to be attached when the agent starts.
    fn remember_attach(&self, sr: &Sr, attach: bool) -> Result<(), Failure> {
        let mut entry = sr.entry();
        if entry.attach != attach {
            entry.attach = attach;
            self.store.save(&entry).map_err(|error| not_remembered(entry.uuid, &error))?;
            sr.set_entry(entry);
        }
        Ok(())
    }

    /// The answer to a request that names an unknown SR: if it is the one that made the SR unknown, it has done so.
    fn gone_before(&self, method: &str, request_id: Option<&str>, failure: Failure) -> Outcome {
        match request_id {
            Some(key) if self.store.was_gone(method, key) => Ok(json!({})),
            _ => Err(failure),
        }
    }

    /// Makes an SR unknown. First the note for a repeated request, then the effect: see `gone`.
    fn drop_entry(&self, method: &str, request_id: Option<&str>, uuid: SrUuid) -> Result<(), Failure> {
        if let Some(key) = request_id {
            self.store.note_gone(method, key).map_err(|error| not_remembered(uuid, &error))?;
        }
        self.store.remove(uuid).map_err(|error| not_remembered(uuid, &error))?;
        self.table.remove(uuid);
        tracing::info!(sr = %uuid, "SR forgotten");
        Ok(())
    }

    /// The answer that the request of this key was given when it made an SR known.
    fn answer_to(&self, request_id: &str) -> Option<Value> {
        let made_by = |sr: &Arc<Sr>| sr.entry().made_by.filter(|made| made.request_id == request_id);
        let made = self.table.all().iter().find_map(made_by)?;
        serde_json::from_str(&made.answer).ok()
    }

    fn refuse_while_stopping(&self) -> Result<(), Failure> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Failure::new(ErrorName::TryAgain, "the agent is about to end"));
        }
        Ok(())
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
    fn device_paths(&self, access: Access, devices: &[String]) -> Result<Vec<String>, Failure> {
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

/// The client's key for retries.
fn request_id(params: &Params) -> Option<String> {
    params.get("request_id").and_then(Value::as_str).map(str::to_owned)
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

/// The right to change the life of an SR.
fn alone(sr: &Sr) -> Result<MutexGuard<'_, ()>, Failure> {
    match sr.lifecycle.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            let text = format!("SR {} is just being attached, detached, destroyed or made larger", sr.uuid());
            Err(Failure::new(ErrorName::TryAgain, text).object("sr", sr.uuid()))
        }
    }
}

fn not_remembered(sr: SrUuid, error: &std::io::Error) -> Failure {
    let text = format!("it was done, but the file of SR {sr} cannot be changed: {error}");
    Failure::new(ErrorName::IoError, text).hint("mend the directory of the SR files").object("sr", sr)
}

fn wire(params: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(params).map_err(|error| bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, bare_front, front};

    fn params(value: Value) -> Params {
        match value {
            Value::Object(params) => params,
            other => panic!("{other}"),
        }
    }

    fn creating(request_id: &str) -> Params {
        params(json!({"type": "file", "name_label": "a", "location": "/srv//a/", "request_id": request_id}))
    }

    fn job(sr: SrUuid, state: &str) -> Value {
        json!({"id": "00000000-1", "kind": "introduce", "sr": sr, "phase": "", "bytes_done": 0, "bytes_total": 0,
            "rate": 0, "eta_seconds": null, "state": state, "error": null, "created": "", "updated": ""})
    }

    fn remembered(front: &Front) -> Vec<SrEntry> {
        front.store.load().unwrap().0
    }

    #[test]
    fn a_created_sr_is_remembered_and_kept_by_its_keeper() {
        let uuid = SrUuid::random();
        let script = Script::new().answer("SR.create", json!({"uuid": uuid}));
        let (front, _directory) = bare_front([script.clone()]);
        let answer = front.create(Access::Root, creating("r")).unwrap();
        assert_eq!(answer, json!({"uuid": uuid}));
        let entry = remembered(&front).pop().unwrap();
        assert_eq!((entry.uuid, entry.location.as_str(), entry.attach), (uuid, "/srv/a", true));
        assert_eq!(front.table.all()[0].state().phase, Phase::Attached);
        assert_eq!(front.create(Access::Root, creating("r")), Ok(answer));
        assert_eq!(front.create(Access::Root, creating("s")).unwrap_err().name, ErrorName::SrExists);
        assert_eq!(script.methods(), ["Keeper.start", "SR.create"]);
    }

    #[test]
    fn a_refused_creation_leaves_nothing() {
        let script = Script::new().refuse("SR.create", Failure::new(ErrorName::SrNotEmpty, "foreign"));
        let (front, _directory) = bare_front([script, Script::new().die("SR.create")]);
        assert_eq!(front.create(Access::Root, creating("r")).unwrap_err().name, ErrorName::SrNotEmpty);
        assert_eq!(front.create(Access::Root, creating("r")).unwrap_err().name, ErrorName::SrUnavailable);
        assert!(remembered(&front).is_empty() && front.table.all().is_empty());
    }

    #[test]
    fn only_root_names_a_location_and_only_a_plain_one() {
        let (front, _directory) = bare_front([Script::new()]);
        let refused = front.create(Access::Change, creating("r")).unwrap_err();
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

    #[test]
    fn an_introduced_sr_keeps_the_uuid_and_label_it_has() {
        let uuid = SrUuid::random();
        let script = Script::new()
            .answer("SR.introduce", job(uuid, "done"))
            .answer("SR.get_record", json!({"name_label": "old name"}));
        let failing = Script::new().answer("SR.introduce", job(uuid, "failed"));
        let (front, _directory) = bare_front([failing, script.clone(), script]);
        let introduce = |location: &str, dry_run: bool| {
            let value = json!({"type": "file", "location": location, "dry_run": dry_run});
            front.introduce(Access::Root, params(value))
        };
        assert_eq!(introduce("/srv/a", false).unwrap()["state"], "failed");
        assert!(remembered(&front).is_empty());
        assert_eq!(introduce("/srv/a", false).unwrap()["sr"], json!(uuid));
        let entry = remembered(&front).pop().unwrap();
        assert_eq!((entry.uuid, entry.name_label.as_str()), (uuid, "old name"));
        // The same SR under another path.
        assert_eq!(introduce("/mnt/a", false).unwrap_err().name, ErrorName::SrExists);
        introduce("/mnt/b", true).unwrap();
        assert_eq!(remembered(&front).len(), 1);
        assert_eq!(front.table.all().len(), 1);
    }

    #[test]
    fn detach_attach_and_forget_are_remembered() {
        let (front, _directory) = front([Script::new()]);
        let sr = || params(json!({"sr": "a"}));
        assert_eq!(front.forget(sr()).unwrap_err().name, ErrorName::SrInUse);
        front.detach(sr()).unwrap();
        front.detach(sr()).unwrap();
        assert!(!remembered(&front)[0].attach);
        front.attach(sr()).unwrap();
        front.attach(sr()).unwrap();
        assert!(remembered(&front)[0].attach);
        front.detach(sr()).unwrap();
        front.forget(sr()).unwrap();
        assert!(remembered(&front).is_empty() && front.table.all().is_empty());
    }

    #[test]
    fn a_refused_destroy_leaves_the_sr_as_it_was() {
        let script = Script::new().refuse("SR.destroy", Failure::new(ErrorName::SrNotEmpty, "2 VDIs"));
        let (front, _directory) = front([script.clone()]);
        let sr = || params(json!({"sr": "a"}));
        assert_eq!(front.destroy(sr()).unwrap_err().name, ErrorName::SrNotEmpty);
        assert_eq!(front.table.all()[0].state().phase, Phase::Attached);
        front.detach(sr()).unwrap();
        assert_eq!(front.destroy(sr()).unwrap_err().name, ErrorName::SrNotEmpty);
        assert_eq!(front.table.all()[0].state().phase, Phase::Detached);
        assert!(!remembered(&front)[0].attach);
        assert_eq!(script.methods().pop().unwrap(), "SR.detach");
    }

    #[test]
    fn devices_that_an_sr_has_got_are_remembered() {
        let uuid = SrUuid::random();
        let result =
            json!({"physical_size": 2, "grown_by": 1, "free_space": 1, "devices": ["/dev/a", "/dev/b"]});
        let mut over = job(uuid, "done");
        over["result"] = result;
        let script = Script::new()
            .answer("SR.create", json!({"uuid": uuid}))
            .answer("SR.grow", job(uuid, "running"))
            .answer("Job.wait", over);
        let (front, _directory) = bare_front([script.clone()]);
        let create = json!({"type": "lvm", "name_label": "a", "devices": ["/dev/a"]});
        front.create(Access::Root, params(create)).unwrap();
        let grow = |access, device: &str| front.grow(access, params(json!({"sr": "a", "devices": [device]})));
        assert!(grow(Access::Change, "/dev/b").unwrap_err().message.contains("root"));
        assert_eq!(grow(Access::Root, "b").unwrap_err().name, ErrorName::BadRequest);
        assert_eq!(grow(Access::Root, "/dev//b").unwrap()["state"], "done");
        assert_eq!(remembered(&front)[0].devices(), ["/dev/a", "/dev/b"]);
        assert_eq!(front.table.all()[0].entry().devices(), ["/dev/a", "/dev/b"]);
        assert_eq!(
            script.calls().iter().find(|call| call.method == "SR.grow").unwrap().params["devices"],
            json!(["/dev/b"])
        );
    }

    #[test]
    fn a_destroyed_sr_is_forgotten_attached_or_not() {
        let script = Script::new();
        let (front, _directory) = front([script.clone(), script.clone()]);
        let sr = |name: &str| params(json!({"sr": name, "request_id": "r"}));
        front.detach(sr("b")).unwrap();
        front.destroy(sr("a")).unwrap();
        front.destroy(sr("b")).unwrap();
        assert!(remembered(&front).is_empty() && front.table.all().is_empty());
        assert_eq!(script.calls().pop().unwrap().params, json!({"request_id": "r"}));
    }

    #[test]
    fn one_change_of_life_at_a_time() {
        let (front, _directory) = front([Script::new()]);
        let srs = front.table.all();
        let _held = srs[0].lifecycle.lock().unwrap();
        let refused = front.detach(params(json!({"sr": "a"}))).unwrap_err();
        assert_eq!(refused.name, ErrorName::TryAgain);
    }
}
