//! What the front does with a request: admits it, finds whose it is, relays it or answers itself.
//!
//! Every request has a thread of its own (see `session`), so anything here may wait for a keeper. Nothing here touches storage.

use crate::access::Access;
use crate::launch::Starter;
use crate::phase::Phase;
use crate::resolve;
use crate::routes::{self, Method, Own, Route};
use crate::srd::Store;
use crate::supervise::Sr;
use crate::table::Table;
use catena_rpc::{Outcome, Reply, SCHEMA_VERSION, Text};
use catena_types::{ErrorName, Failure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// How long figures of served disks are waited for.
const FIGURES: Duration = Duration::from_secs(2);

/// The parameters of a request.
pub(crate) type Params = Map<String, Value>;

/// The front.
pub(crate) struct Front {
    /// Started with `--root`.
    pub(crate) private: bool,
    /// What a private agent leaves out.
    pub(crate) skipped: Vec<&'static str>,
    /// The known SRs.
    pub(crate) table: Table,
    /// What is remembered of them.
    pub(crate) store: Store,
    /// Starts their keepers.
    pub(crate) starter: Arc<Starter>,
    /// When the front was started.
    pub(crate) started: Instant,
    /// Connections that are open, or have requests under way.
    pub(crate) connections: Arc<AtomicUsize>,
    /// The front is about to end: no keeper is started any more.
    pub(crate) stopping: AtomicBool,
}

/// The method of that name, if the caller may call it.
pub(crate) fn admit(access: Access, name: &str) -> Result<&'static Method, Failure> {
    let method = routes::find(name).ok_or_else(|| {
        Failure::new(ErrorName::Unsupported, format!("no such method: {name}"))
            .hint("`Agent.schema` names the methods")
    })?;
    if access == Access::Read && !method.for_readers {
        let text = format!("{name} is not for readers");
        return Err(
            Failure::new(ErrorName::BadRequest, text).hint("root and the members of the group may call it")
        );
    }
    Ok(method)
}

impl Front {
    /// Carries out a request.
    pub(crate) fn answer(&self, access: Access, method: &Method, params: Value, fds: Vec<OwnedFd>) -> Reply {
        let params = if params.is_null() { json!({}) } else { params };
        catena_rpc::check_params(method.name, &params)?;
        let Value::Object(mut params) = params else {
            return Err(bad_request("the parameters are not an object"));
        };
        match method.route {
            Route::Front(own) => self.own(access, own, params).map(Text::from),
            Route::Sr => {
                let sr = self.named_sr(&mut params)?;
                relay(&sr, method, params, fds)
            }
            Route::Vdi => self.relay_by_vdi(method, params, fds),
            Route::Job => {
                let sr = resolve::job(&self.table.all(), text(&params, "job")?)?;
                relay(&sr, method, params, fds)
            }
            Route::All(_) if is_given(&params, "vdi") => self.relay_by_vdi(method, params, fds),
            Route::All(_) if is_given(&params, "sr") => {
                let sr = self.named_sr(&mut params)?;
                relay(&sr, method, params, fds)
            }
            Route::All(array) => Ok(self.list_of_all(method, array, &params)),
        }
    }

    fn own(&self, access: Access, own: Own, mut params: Params) -> Outcome {
        match own {
            Own::Version => {
                Ok(json!({"schema_version": SCHEMA_VERSION, "version": env!("CARGO_PKG_VERSION")}))
            }
            Own::Schema => Ok(catena_rpc::schema()),
            Own::Stats => Ok(self.stats()),
            // The session has subscribed the connection.
            Own::Subscribe => Ok(json!({})),
            Own::SrList => self.sr_list(&mut params),
            Own::SrRecord => Ok(self.sr_record(&self.named_sr(&mut params)?)),
            Own::SrCreate => self.create(access, params),
            Own::SrIntroduce => self.introduce(access, params),
            Own::SrProbe => self.probe(access, params),
            Own::SrAttach => self.attach(params),
            Own::SrDetach => self.detach(params),
            Own::SrForget => self.forget(params),
            Own::SrDestroy => self.destroy(params),
            Own::SrGrow => self.grow(access, params),
            Own::VdiCopy => self.copy(params),
        }
    }

    /// The SR that the parameter `sr` names, which becomes its uuid.
    pub(crate) fn named_sr(&self, params: &mut Params) -> Result<Arc<Sr>, Failure> {
        let sr = resolve::sr(&self.table.all(), text(params, "sr")?)?;
        params.insert("sr".to_owned(), json!(sr.uuid()));
        Ok(sr)
    }

    fn relay_by_vdi(&self, method: &Method, mut params: Params, fds: Vec<OwnedFd>) -> Reply {
        let among =
            if is_given(&params, "sr") { vec![self.named_sr(&mut params)?] } else { self.table.all() };
        match home(&among, &mut params) {
            Ok(sr) => relay(&sr, method, params, fds),
            Err(missing)
                if missing.name == ErrorName::VdiMissing
                    && is_given(&params, "request_id")
                    && fds.is_empty() =>
            {
                repeated(&among, method, &params, missing)
            }
            Err(failure) => Err(failure),
        }
    }

    fn stats(&self) -> Value {
        let srs: Vec<Value> = self.table.all().iter().map(|sr| {
            let state = sr.state();
            json!({"sr": sr.uuid(), "state": state.phase.name(), "keeper_pid": state.keeper_pid, "restarts": state.restarts})
        }).collect();
        json!({
            "schema_version": SCHEMA_VERSION,
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "root": self.private,
            "skipped": self.skipped,
            "connections": self.connections.load(Ordering::SeqCst),
            "srs": srs,
            "disks": self.served_disks(),
        })
    }

    /// Figures of all disks that are served, as far as they can be had now.
    fn served_disks(&self) -> Vec<Value> {
        let running: Vec<Arc<Sr>> =
            self.table.all().into_iter().filter(|sr| sr.state().phase == Phase::Attached).collect();
        let replies = crate::fanout::ask(&running, "Keeper.figures", |_| json!({}), FIGURES, |_| false);
        let found = replies.into_iter().filter_map(|reply| reply.outcome.ok()).map(|text| text.value());
        found
            .filter_map(|mut answer| serde_json::from_value(answer["disks"].take()).ok())
            .flat_map(|disks: Vec<Value>| disks)
            .collect()
    }

    /// Starts the keepers of all SRs that are to be attached. Does not wait for them.
    pub(crate) fn attach_all(&self) {
        for sr in self.table.all() {
            if sr.entry().attach
                && let Err(failure) = sr.start(&self.starter, false)
            {
                tracing::error!(sr = %sr.uuid(), %failure, "not attached");
            }
        }
    }

    /// Ends all keepers in order; waits for at most `limit`. Those that are not done by then end with this process, as after
    /// a crash.
    pub(crate) fn stop_all(&self, limit: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let (sender, stopped) = channel();
        let mut left = 0;
        for sr in self.table.all() {
            if sr.state().phase == Phase::Detached {
                continue;
            }
            let sender = sender.clone();
            let stop = move || {
                // Not a detach: disks that are attached stay so, and their processes go on.
                if let Err(error) = sr.stop("Keeper.end", json!({})) {
                    tracing::warn!(sr = %sr.uuid(), %error, "not detached in order");
                }
                // Nobody listens when the time is over.
                let _ = sender.send(());
            };
            left += usize::from(thread::Builder::new().name("stop".to_owned()).spawn(stop).is_ok());
        }
        let deadline = Instant::now() + limit;
        while left > 0 && stopped.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {
            left -= 1;
        }
        if left > 0 {
            tracing::warn!(keepers = left, "keepers are left that have not ended in time");
        }
    }
}

/// The SR of the VDIs that a request names, whose names become uuids: `vdi`, one or a list, and its `snapshot`.
fn home(among: &[Arc<Sr>], params: &mut Params) -> Result<Arc<Sr>, Failure> {
    let (sr, vdi) = match params.get("vdi") {
        Some(Value::Array(names)) => home_of_all(among, names)?,
        _ => resolve::vdi(among, text(params, "vdi")?).map(|(sr, uuid)| (sr, json!(uuid)))?,
    };
    params.insert("vdi".to_owned(), vdi);
    if is_given(params, "snapshot") {
        let (other, uuid) = resolve::vdi(among, text(params, "snapshot")?)?;
        same(&sr, &other)?;
        params.insert("snapshot".to_owned(), json!(uuid));
    }
    Ok(sr)
}

fn home_of_all(among: &[Arc<Sr>], names: &[Value]) -> Result<(Arc<Sr>, Value), Failure> {
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let name = name.as_str().ok_or_else(|| bad_request("the parameter 'vdi' lists what is no text"))?;
        found.push(resolve::vdi(among, name)?);
    }
    let (first, _) = found.first().ok_or_else(|| bad_request("the parameter 'vdi' names nothing"))?;
    let first = Arc::clone(first);
    found.iter().try_for_each(|(other, _)| same(&first, other))?;
    Ok((first, found.iter().map(|(_, uuid)| json!(uuid)).collect()))
}

fn same(one: &Sr, other: &Sr) -> Result<(), Failure> {
    if one.uuid() == other.uuid() {
        return Ok(());
    }
    let text = format!("the VDIs are in different SRs: {} and {}", one.uuid(), other.uuid());
    Err(bad_request(text).hint("name VDIs of one SR"))
}

/// Sends a request to the keeper of an SR and waits for its answer.
pub(crate) fn relay(sr: &Sr, method: &Method, params: Params, fds: Vec<OwnedFd>) -> Reply {
    let result = sr.link()?.call(method.name, Value::Object(params), fds, method.patience);
    result.map_err(|error| sr.failure(error))
}

/// A repeated request may name a VDI that its first run has destroyed. The keeper that carried it out still knows its answer;
/// to all others the VDI is as unknown as to us. One that cannot answer now may be the one: then nothing is `missing` yet.
pub(crate) fn repeated(among: &[Arc<Sr>], method: &Method, params: &Params, missing: Failure) -> Reply {
    let params = Value::Object(params.clone());
    let mut why = missing;
    for reply in crate::fanout::ask(among, method.name, |_| params.clone(), routes::PATIENCE, |_| true) {
        match reply.outcome {
            Ok(answer) => return Ok(answer),
            Err(failure) if failure.retry => why = failure,
            Err(_) => {}
        }
    }
    Err(why)
}

/// The text of a parameter.
pub(crate) fn text<'a>(params: &'a Params, name: &str) -> Result<&'a str, Failure> {
    params
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| bad_request(format!("the parameter '{name}' is missing or no text")))
}

/// Reads the parameters of a method as what they should be.
pub(crate) fn read<T: DeserializeOwned>(params: Params) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(params))
        .map_err(|error| bad_request(format!("parameters: {error}")).hint("`Agent.schema` describes them"))
}

/// A request that cannot be understood.
pub(crate) fn bad_request(message: impl Into<String>) -> Failure {
    Failure::new(ErrorName::BadRequest, message)
}

pub(crate) fn is_given(params: &Params, name: &str) -> bool {
    params.get(name).is_some_and(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, front};
    use catena_types::VdiUuid;

    fn ask(front: &Front, method: &str, params: Value) -> Outcome {
        let answer = front.answer(Access::Root, admit(Access::Root, method)?, params, Vec::new())?;
        Ok(answer.value())
    }

    fn knowing(vdi: VdiUuid) -> Script {
        let one = json!({"uuid": vdi, "name_label": "web", "is_image": false});
        Script::new().answer("Keeper.resolve", json!({"matches": [one]}))
    }

    fn ignorant() -> Script {
        Script::new().answer("Keeper.resolve", json!({"matches": []}))
    }

    #[test]
    fn readers_and_unknown_methods_are_turned_away() {
        assert!(admit(Access::Read, "VDI.list").is_ok());
        assert_eq!(admit(Access::Read, "VDI.destroy").unwrap_err().name, ErrorName::BadRequest);
        assert!(admit(Access::Change, "VDI.destroy").is_ok());
        let unknown = admit(Access::Root, "VDI.fly").unwrap_err();
        assert_eq!(
            (unknown.name, unknown.message.as_str()),
            (ErrorName::Unsupported, "no such method: VDI.fly")
        );
    }

    #[test]
    fn a_request_reaches_the_keeper_of_its_sr_with_names_made_uuids() {
        let (a, b) = (Script::new(), Script::new());
        let (front, _directory) = front([a.clone(), b.clone()]);
        let b_uuid = resolve::sr(&front.table.all(), "b").unwrap().uuid();
        ask(&front, "VDI.create", json!({"sr": "b", "virtual_size": 1, "request_id": "r"})).unwrap();
        let call = b.calls().pop().unwrap();
        assert_eq!(call.method, "VDI.create");
        assert_eq!(call.params, json!({"sr": b_uuid, "virtual_size": 1, "request_id": "r"}));
        let job = format!("{}-3", &b_uuid.to_string()[..8]);
        ask(&front, "Job.get", json!({"job": job})).unwrap();
        assert_eq!(b.calls().pop().unwrap().params, json!({"job": job}));
        assert_eq!(a.methods(), ["Keeper.start", "SR.attach"]);
        for params in [json!({}), json!({"sr": 1}), json!({"sr": ""}), json!([])] {
            assert_eq!(ask(&front, "SR.stat", params).unwrap_err().name, ErrorName::BadRequest);
        }
        assert_eq!(ask(&front, "SR.stat", json!({"sr": "c"})).unwrap_err().name, ErrorName::SrUnavailable);
    }

    #[test]
    fn a_request_reaches_the_keeper_of_its_vdi() {
        let vdi = VdiUuid::random();
        let (a, b) = (ignorant(), knowing(vdi).answer("VDI.get_tree", json!({"roots": [1]})));
        let (front, _directory) = front([a.clone(), b.clone()]);
        ask(&front, "VDI.snapshot", json!({"vdi": "web"})).unwrap();
        assert_eq!(b.calls().pop().unwrap().params, json!({"vdi": vdi}));
        let tree = ask(&front, "VDI.get_tree", json!({"vdi": "web", "sr": null})).unwrap();
        assert_eq!(tree, json!({"roots": [1]}));
        assert_eq!(a.methods(), ["Keeper.start", "SR.attach", "Keeper.resolve", "Keeper.resolve"]);
    }

    #[test]
    fn lists_are_of_one_sr_or_of_all() {
        let list = |n: u64| Script::new().answer("VDI.list", json!({"vdis": [n]}));
        let (front, _directory) = front([list(1), list(2)]);
        let mut all = ask(&front, "VDI.list", Value::Null).unwrap()["vdis"].as_array().unwrap().clone();
        all.sort_by_key(Value::as_u64);
        assert_eq!(all, [json!(1), json!(2)]);
        assert_eq!(ask(&front, "VDI.list", json!({"sr": "b"})).unwrap()["vdis"], json!([2]));
        assert_eq!(ask(&front, "SR.list", Value::Null).unwrap()["srs"].as_array().unwrap().len(), 2);
        assert_eq!(ask(&front, "SR.list", json!({"sr": "a"})).unwrap()["srs"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_repeated_destroy_gets_the_answer_that_its_keeper_kept() {
        let unknown = Failure::new(ErrorName::VdiMissing, "never seen");
        let (front, _directory) = front([
            ignorant().refuse("VDI.destroy", unknown),
            ignorant().answer("VDI.destroy", json!({"kept": true})),
        ]);
        let vdi = VdiUuid::random();
        let again = ask(&front, "VDI.destroy", json!({"vdi": vdi, "request_id": "r"}));
        assert_eq!(again, Ok(json!({"kept": true})));
        let first = ask(&front, "VDI.destroy", json!({"vdi": vdi})).unwrap_err();
        assert_eq!(first.name, ErrorName::VdiMissing);
    }

    #[test]
    fn a_repeated_destroy_is_to_be_tried_again_while_its_keeper_may_be_away() {
        let unknown = Failure::new(ErrorName::VdiMissing, "never seen");
        let (front, _directory) =
            front([ignorant().refuse("VDI.destroy", unknown), ignorant().die("VDI.destroy")]);
        let again = ask(&front, "VDI.destroy", json!({"vdi": VdiUuid::random(), "request_id": "r"}));
        assert!(again.unwrap_err().retry);
    }

    #[test]
    fn a_stop_ends_keepers_in_order_and_does_not_wait_for_the_stuck() {
        let (good, stuck) = (Script::new(), Script::new().ignore("Keeper.end"));
        let (front, _directory) = front([good.clone(), stuck]);
        front.stop_all(Duration::from_millis(300));
        assert_eq!(good.methods().pop().unwrap(), "Keeper.end");
        let refused = ask(&front, "SR.attach", json!({"sr": "a"})).unwrap_err();
        assert_eq!(refused.name, ErrorName::TryAgain);
        // What was to be attached at the next start still is.
        assert!(front.store.load().unwrap().0.iter().all(|entry| entry.attach));
    }
}
