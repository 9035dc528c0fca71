//! `VDI.copy`: within an SR its keeper does it. Into another SR the front connects an export of the one keeper with the other
//! keeper's intake by a pipe, and has no part in what flows.
//!
//! ```text
//!  origin's keeper ──VDI.export──▶ worker ══ pipe ══▶ worker ◀──Keeper.copy_receive── copy's keeper: the client's job
//! ```
//! If either end fails or is cancelled, or this process dies, the other end sees the pipe break: no copy is left.

use crate::front::{Front, Params, is_given, relay, repeated, text};
use crate::supervise::Sr;
use crate::{resolve, routes};
use catena_rpc::{CopyOrigin, KeeperReceive, Outcome};
use catena_types::{ErrorName, Failure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::pipe;
use std::os::fd::OwnedFd;

impl Front {
    /// Copies a VDI; answers with the job.
    pub(crate) fn copy(&self, mut params: Params) -> Outcome {
        let method = routes::find("VDI.copy").ok_or_else(unknown)?;
        let all = self.table.all();
        let (home, uuid) = match resolve::vdi(&all, text(&params, "vdi")?) {
            Err(missing) if missing.name == ErrorName::VdiMissing && is_given(&params, "request_id") => {
                return repeated(&all, method, &params, missing).map(|answer| answer.value());
            }
            found => found?,
        };
        params.insert("vdi".to_owned(), json!(uuid));
        let target = if is_given(&params, "sr") { Some(self.named_sr(&mut params)?) } else { None };
        match target {
            Some(target) if target.uuid() != home.uuid() => copy_between(&home, &target, &params),
            _ => relay(&home, method, params, Vec::new()).map(|job| job.value()),
        }
    }
}

fn copy_between(home: &Sr, target: &Sr, params: &Params) -> Outcome {
    let vdi =
        json!({"vdi": text(params, "vdi")?, "wait": params.get("wait").is_some_and(|wait| *wait == true)});
    let given = |name: &str| params.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut origin: CopyOrigin = understood(call(home, "Keeper.copy_origin", vdi.clone(), None)?)?;
    if let Some(label) = given("name_label") {
        origin.name_label = label;
    }
    let (reader, writer) = pipe().map_err(|error| no_pipe(&error))?;
    let receive = KeeperReceive { origin, request_id: given("request_id"), fd: 0 };
    let receive = serde_json::to_value(receive).unwrap_or_default();
    let mut job = call(target, "Keeper.copy_receive", receive, Some(reader.into()))?;
    let Some(job) = job.get_mut("begun").map(Value::take) else {
        // The request was repeated: its first run sends.
        return Ok(job);
    };
    crate::points::COPY_BEGUN.pass();
    let mut export = vdi;
    export["format"] = json!("vhd");
    export["fd"] = json!(0);
    if let Err(failure) = call(home, "VDI.export", export, Some(writer.into())) {
        // Without a sender it would fail by itself; this is only the sooner end.
        if let Err(error) = call(target, "Job.cancel", json!({"job": job["id"]}), None) {
            tracing::warn!(%error, "a copy that has no origin was not cancelled");
        }
        return Err(failure);
    }
    Ok(job)
}

fn call(sr: &Sr, method: &str, params: Value, fd: Option<OwnedFd>) -> Outcome {
    let result = sr.link()?.call(method, params, fd.into_iter().collect(), None);
    result.map(|answer| answer.value()).map_err(|error| sr.failure(error))
}

fn understood<T: DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::new(ErrorName::IoError, format!("a keeper's answer makes no sense: {error}"))
    })
}

fn no_pipe(error: &std::io::Error) -> Failure {
    Failure::new(ErrorName::IoError, format!("no pipe between two SRs: {error}")).retry()
}

fn unknown() -> Failure {
    Failure::new(ErrorName::Unsupported, "no such method")
}
