//! Documents of all SRs together: what each keeper says, merged, and the front's own word for SRs without a keeper.
//!
//! A merged document has `unavailable` (`[{sr, error}]`) where an SR that should be attached gave nothing, so a script can
//! tell an empty list from an incomplete one.

use crate::fanout::{self, Reply};
use crate::front::{Front, Params};
use crate::phase::Phase;
use crate::routes::{Method, PATIENCE};
use crate::supervise::Sr;
use catena_rpc::{Outcome, SCHEMA_VERSION, SrState, Text};
use catena_types::{Bytes, Failure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many events a list has, if the client does not say.
const EVENTS: u64 = 1000;

impl Front {
    /// `SR.list`.
    pub(crate) fn sr_list(&self, params: &mut Params) -> Outcome {
        let named = params.get("sr").is_some_and(|sr| !sr.is_null());
        let srs = if named { vec![self.named_sr(params)?] } else { self.table.all() };
        Ok(json!({"schema_version": SCHEMA_VERSION, "srs": records(&srs)}))
    }

    /// `SR.get_record`.
    pub(crate) fn sr_record(&self, sr: &Arc<Sr>) -> Value {
        records(std::slice::from_ref(sr)).pop().unwrap_or_default()
    }

    /// A list of which each keeper has a part, in the array of this name.
    pub(crate) fn list_of_all(&self, method: &Method, array: &str, params: &Params) -> Text {
        let mut wanted = self.table.all();
        wanted.retain(|sr| sr.state().phase != Phase::Detached);
        let patience = method.patience.unwrap_or(PATIENCE);
        let replies =
            fanout::ask(&wanted, method.name, |_| Value::Object(params.clone()), patience, |_| false);
        let limit = params.get("limit").and_then(Value::as_u64).unwrap_or(EVENTS);
        merged(array, replies, usize::try_from(limit).unwrap_or(usize::MAX))
    }
}

/// Joins the arrays; events become sorted by time, and only the latest `limit` stay.
fn merged(array: &str, replies: Vec<Reply>, limit: usize) -> Text {
    let (mut items, mut unavailable) = (Vec::new(), Vec::new());
    for reply in replies {
        match reply.outcome {
            Ok(part) => items.extend(part.fields().get(array).map(Text::items).unwrap_or_default()),
            Err(error) => unavailable.push(json!({"sr": reply.sr.uuid(), "error": error})),
        }
    }
    if array == "events" {
        // Without the zone's letter texts sort as times do, with or without a fraction. All are UTC.
        items.sort_by_cached_key(|event| {
            event.value()["time"].as_str().unwrap_or("").trim_end_matches('Z').to_owned()
        });
        items.drain(..items.len().saturating_sub(limit));
    }
    let mut document =
        BTreeMap::from([("schema_version", Text::of(&SCHEMA_VERSION)), (array, Text::of(&items))]);
    if !unavailable.is_empty() {
        document.insert("unavailable", Text::of(&unavailable));
    }
    Text::of(&document)
}

/// The records of SRs: the keeper's where it answers, else what the front knows.
fn records(srs: &[Arc<Sr>]) -> Vec<Value> {
    let replies = fanout::ask(srs, "SR.get_record", |sr| json!({"sr": sr.uuid()}), PATIENCE, |_| false);
    let records = replies.into_iter().map(|reply| match reply.outcome {
        Ok(record) => record.value(),
        Err(failure) => own_record(&reply.sr, failure),
    });
    records.collect()
}

/// The record of an SR whose keeper says nothing.
fn own_record(sr: &Sr, failure: Failure) -> Value {
    let entry = sr.entry();
    let state = sr.state();
    let (word, error) = match state.phase {
        Phase::Detached => (SrState::Detached, None),
        _ => (SrState::Failed, Some(state.error.unwrap_or(failure))),
    };
    let devices = entry.devices();
    let record = catena_rpc::Sr {
        uuid: entry.uuid,
        name_label: entry.name_label,
        kind: entry.kind,
        state: word,
        allocation: "thin".to_owned(),
        devices,
        location: entry.location,
        physical_size: Bytes(0),
        physical_utilisation: Bytes(0),
        virtual_allocation: Bytes(0),
        free_space: Bytes(0),
        vdi_count: 0,
        image_count: 0,
        reflink: false,
        policy: None,
        io_device: None,
        io_scheduler: None,
        io_class_honoured: None,
        io_group: None,
        io_weight: None,
        error,
    };
    serde_json::to_value(record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, attached, detached};
    use catena_types::ErrorName;

    fn reply(outcome: Outcome) -> Reply {
        Reply { sr: detached("x"), outcome: outcome.map(Text::from), silent: false }
    }

    #[test]
    fn arrays_are_joined_and_gaps_are_named() {
        let gone = Failure::new(ErrorName::SrUnavailable, "gone");
        let replies = vec![
            reply(Ok(json!({"vdis": [1, 2]}))),
            reply(Err(gone)),
            reply(Ok(json!({"vdis": [3]}))),
            reply(Ok(json!({}))),
        ];
        let bad = replies[1].sr.uuid();
        let document = merged("vdis", replies, 1).value();
        assert_eq!(document["vdis"], json!([1, 2, 3]));
        assert_eq!(document["schema_version"], SCHEMA_VERSION);
        assert_eq!(document["unavailable"][0]["sr"], json!(bad));
        assert_eq!(document["unavailable"][0]["error"]["name"], "sr_unavailable");
        assert!(!merged("vdis", vec![], 1).fields().contains_key("unavailable"));
    }

    #[test]
    fn events_are_sorted_by_time_and_the_latest_stay() {
        let times = |times: &[&str]| times.iter().map(|time| json!({"time": time})).collect::<Vec<_>>();
        let one = times(&["2026-01-01T00:00:00Z", "2026-01-01T00:00:01.5Z"]);
        let two = times(&["2025-12-31T23:59:59Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:01.45Z"]);
        let document =
            merged("events", vec![reply(Ok(json!({"events": one}))), reply(Ok(json!({"events": two})))], 4);
        let sorted = times(&[
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:01Z",
            "2026-01-01T00:00:01.45Z",
            "2026-01-01T00:00:01.5Z",
        ]);
        assert_eq!(document.value()["events"], Value::Array(sorted));
    }

    #[test]
    fn every_sr_has_a_record() {
        let good = attached("good", Script::new().answer("SR.get_record", json!({"state": "attached"})));
        let dead = attached("dead", Script::new().die("SR.get_record"));
        let off = detached("off");
        let records = records(&[good, dead, off]);
        assert_eq!(records[0], json!({"state": "attached"}));
        let dead: catena_rpc::Sr = serde_json::from_value(records[1].clone()).unwrap();
        assert_eq!(dead.state, SrState::Failed);
        assert_eq!(dead.error.unwrap().name, ErrorName::SrUnavailable);
        let off: catena_rpc::Sr = serde_json::from_value(records[2].clone()).unwrap();
        assert_eq!((off.state, off.error, off.name_label.as_str()), (SrState::Detached, None, "off"));
    }
}
