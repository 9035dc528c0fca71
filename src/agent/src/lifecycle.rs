//! The life of an SR on this host: attach, grow, detach, forget, destroy; it begins in `coming`.
//!
//! The keeper does it, then `sr.d` says so, then the client is told. A crash between the first two leaves an SR that `sr.d` does
//! not name yet (introduce it) or still names (it fails to attach; forget it). One such request at a
//! time for each SR; others are told to try again.

use crate::access::Access;
use crate::front::{Front, Params, bad_request, read};
use crate::keeper::CallError;
use crate::phase::Phase;
use crate::supervise::Sr;
use catena_rpc::{GrowReport, Outcome, SrGrowParams, SrParams};
use catena_types::{ErrorName, Failure, SrUuid};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};

impl Front {
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
    pub(crate) fn settle(&self, sr: &Arc<Sr>, was_wanted: bool) {
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
    pub(crate) fn answer_to(&self, request_id: &str) -> Option<Value> {
        let made_by = |sr: &Arc<Sr>| sr.entry().made_by.filter(|made| made.request_id == request_id);
        let made = self.table.all().iter().find_map(made_by)?;
        serde_json::from_str(&made.answer).ok()
    }

    pub(crate) fn refuse_while_stopping(&self) -> Result<(), Failure> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Failure::new(ErrorName::TryAgain, "the agent is about to end"));
        }
        Ok(())
    }
}

/// The client's key for retries.
fn request_id(params: &Params) -> Option<String> {
    params.get("request_id").and_then(Value::as_str).map(str::to_owned)
}

/// The right to change the life of an SR.
pub(crate) fn alone(sr: &Sr) -> Result<MutexGuard<'_, ()>, Failure> {
    match sr.lifecycle.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            let text = format!("SR {} is just being attached, detached, destroyed or made larger", sr.uuid());
            Err(Failure::new(ErrorName::TryAgain, text).object("sr", sr.uuid()))
        }
    }
}

pub(crate) fn not_remembered(sr: SrUuid, error: &std::io::Error) -> Failure {
    let text = format!("it was done, but the file of SR {sr} cannot be changed: {error}");
    Failure::new(ErrorName::IoError, text).hint("mend the directory of the SR files").object("sr", sr)
}

pub(crate) fn wire(params: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(params).map_err(|error| bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::srd::SrEntry;
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
