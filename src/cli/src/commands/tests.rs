//! The verbs against a made-up agent: what they ask, what they print, how they exit.

mod files;
mod lists;
mod safety;

use crate::errors::{CliError, Exit};
use crate::testing::{Call, FakeAgent};
use catena_rpc::Outcome;
use catena_types::{ErrorName, Failure};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const SR: &str = "12345678-0000-4000-8000-0000000000aa";
const VDI: &str = "0b1d9c44-0000-4000-8000-000000000001";

/// What was asked: method and parameters.
type Log = Arc<Mutex<Vec<(String, Value)>>>;

/// An agent that answers as `answer` says and remembers what it was asked.
fn agent(mut answer: impl FnMut(&Call) -> Outcome + Send + 'static) -> (FakeAgent, Log) {
    let log = Log::default();
    let remember = Arc::clone(&log);
    let agent = FakeAgent::new(move |call| {
        remember.lock().unwrap().push((call.method.clone(), call.params.clone()));
        answer(call)
    });
    (agent, log)
}

fn methods(log: &Log) -> Vec<String> {
    log.lock().unwrap().iter().map(|(method, _)| method.clone()).collect()
}

fn failure(name: ErrorName) -> Failure {
    Failure::new(name, "no")
}

fn job(state: &str, result: &Value) -> Value {
    json!({
        "id": "12345678-1", "kind": "import", "sr": SR, "phase": "copying", "bytes_done": 1 << 20, "bytes_total": 4 << 20,
        "rate": 0, "eta_seconds": null, "state": state, "error": null, "result": result,
        "created": "2030-01-01T00:00:00Z", "updated": "2030-01-01T00:00:05Z",
    })
}

fn vdi(uuid: &str, label: &str) -> Value {
    json!({
        "uuid": uuid, "sr": SR, "name_label": label, "name_description": "", "image": uuid, "container": "c.vhd",
        "format": "vhd", "virtual_size": 10_u64 << 30, "own_bytes": 8192, "shared_bytes": 5_690_831_667_u64, "depth": 2,
        "is_a_snapshot": false, "snapshot_of": null, "created": "2030-01-01T00:00:00Z", "attached": null, "state": "ok",
        "other_config": {},
    })
}

fn sr() -> Value {
    json!({
        "uuid": SR, "name_label": "disks", "type": "file", "state": "attached", "allocation": "thin", "location": "/srv",
        "physical_size": 1_u64 << 40, "physical_utilisation": 5_690_831_667_u64, "virtual_allocation": 10_u64 << 30,
        "free_space": 1_u64 << 39, "vdi_count": 3, "image_count": 5, "reflink": false,
    })
}

fn coalesce_status(state: &str, code: &str) -> Value {
    json!({
        "sr": SR, "state": state, "reason": {"code": code, "text": "why"}, "current": null, "queue": [],
        "unmerged_images": 0, "reclaimable_bytes": 0,
    })
}

/// Runs `line` (words separated by blanks) and expects success.
fn text(agent: &FakeAgent, line: &str) -> String {
    match run(agent, line) {
        (Ok(Exit::OK), text) => text,
        (other, _) => panic!("{line}: {other:?}"),
    }
}

fn run(agent: &FakeAgent, line: &str) -> (Result<Exit, CliError>, String) {
    agent.run(&line.split_whitespace().collect::<Vec<_>>())
}

/// An agent that has an answer for everything.
fn willing(call: &Call) -> Outcome {
    Ok(match call.method.as_str() {
        "SR.create" | "VDI.create" => json!({"uuid": VDI}),
        "SR.introduce" if call.params["dry_run"] == true => json!({"images": [], "findings": []}),
        "SR.probe" => json!({"location": "/srv", "found": "empty", "known": false, "images": [], "text": ""}),
        "SR.introduce" | "SR.scan" => job("done", &json!({})),
        "SR.check" => job("done", &json!({"findings": [], "clean": true})),
        "SR.trim" => job("done", &json!({"freed": 4096, "images": 1, "skipped": []})),
        "SR.grow" => {
            let devices = ["/dev/a"];
            job("done", &json!({"physical_size": 4096, "grown_by": 0, "free_space": 0, "devices": devices}))
        }
        "SR.list" => json!({"srs": [sr()]}),
        "SR.get_record" | "SR.stat" => sr(),
        "SR.set_policy" => {
            json!({"sr": SR, "policy": {"coalesce.rate": 1 << 20, "coalesce.window": "always"}})
        }
        "VDI.list" => json!({"vdis": [vdi(VDI, "web01")]}),
        "VDI.get_record" => vdi(VDI, "web01"),
        "VDI.get_tree" => json!({"roots": []}),
        "VDI.snapshot" | "VDI.clone" => json!({"vdis": [VDI, SR]}),
        "VDI.import" => job("done", &json!({"uuid": VDI})),
        "VDI.export" => job("done", &json!({"bytes": 1 << 20})),
        "Coalesce.status" => json!({"srs": [coalesce_status("idle", "no_work")]}),
        "Coalesce.run" | "Coalesce.pause" | "Coalesce.resume" => coalesce_status("idle", "no_work"),
        "Job.list" => json!({"jobs": [job("running", &Value::Null)]}),
        "Job.get" | "Job.wait" | "Job.cancel" => job("done", &Value::Null),
        "Event.list" => json!({"events": [{
            "id": "12345678-9", "time": "2030-01-01T00:00:00Z", "kind": "vdi.created", "severity": "info", "sr": SR,
            "vdi": VDI, "job": null, "message": "web01 created",
        }]}),
        _ => json!({}),
    })
}

#[test]
fn every_verb_prints_one_document_with_the_version_first() {
    let (agent, _) = agent(willing);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.raw");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    for line in [
        "sr create --type file --name a --location /srv",
        "sr introduce --type file --location /srv",
        "sr introduce --type file --location /srv --dry-run",
        "sr probe --type file --location /srv",
        "sr list",
        "sr show a",
        "sr stat a",
        "sr scan a",
        "sr check a",
        "sr policy a coalesce.rate=1MiB",
        "sr check a --repair",
        "sr check a --repair --yes",
        "sr trim a",
        "sr grow a --devices /dev/b",
        "sr attach a",
        "sr detach a",
        "sr forget a",
        "sr destroy a --yes",
        "vdi create --sr a --size 1GiB --name b",
        "vdi list",
        "vdi show b",
        "vdi tree",
        "vdi snapshot b",
        "vdi clone b",
        "vdi destroy b --yes",
        &format!("vdi import {file} --sr a"),
        &format!("vdi export b {file}.1"),
        &format!("vdi write b {file}"),
        &format!("vdi read b --length 1 {file}.2"),
        "coalesce status",
        "coalesce run a",
        "coalesce run a --wait",
        "coalesce pause a",
        "coalesce resume a",
        "job list",
        "job show 12345678-1",
        "job wait 12345678-1",
        "job cancel 12345678-1",
        "event list",
    ] {
        let text = text(&agent, &format!("--json {line}"));
        assert!(text.starts_with("{\"schema_version\":1"), "{line}: {text}");
        assert_eq!(text.lines().count(), 1, "{line}");
        serde_json::from_str::<Value>(&text).unwrap();
    }
}

#[test]
fn what_makes_something_prints_its_uuid_and_nothing_else() {
    let (agent, log) = agent(willing);
    assert_eq!(text(&agent, "sr create --type file --name a --location /srv"), format!("{VDI}\n"));
    assert_eq!(text(&agent, "sr introduce --type file --location /srv"), format!("{SR}\n"));
    assert_eq!(text(&agent, "vdi create --sr a --size 512MiB --name b"), format!("{VDI}\n"));
    assert_eq!(text(&agent, "vdi clone b --count 2"), format!("{VDI}\n{SR}\n"));
    assert_eq!(text(&agent, "sr detach a"), "");
    let log = log.lock().unwrap();
    assert_eq!(log[0].1, json!({"type": "file", "name_label": "a", "location": "/srv"}));
    assert_eq!(
        log[2].1,
        json!({"sr": "a", "virtual_size": 512 << 20, "name_label": "b", "name_description": ""})
    );
    assert_eq!(log[3].1, json!({"vdi": "b", "count": 2, "wait": false}));
}

#[test]
fn a_relative_location_is_made_absolute() {
    let (agent, log) = agent(willing);
    text(&agent, "sr create --type file --name a --location some/dir");
    let expected = std::env::current_dir().unwrap().join("some/dir");
    assert_eq!(log.lock().unwrap()[0].1["location"], expected.to_str().unwrap());
}

#[test]
fn the_exit_code_of_a_check_tells_whether_all_is_well() {
    let report = json!({"clean": false, "findings": [
        {"severity": "error", "object": "a.vhd", "problem": "footer damaged", "repair": "restore it"},
    ]});
    let (agent, _) = agent(move |_| Ok(job("done", &report)));
    let (exit, text) = run(&agent, "sr check a");
    assert_eq!(exit.unwrap(), Exit::NOT_CLEAN);
    assert_eq!(
        text,
        "SEVERITY  OBJECT  PROBLEM         REPAIR\nerror     a.vhd   footer damaged  restore it\n"
    );
}

#[test]
fn waiting_for_the_worker_exits_by_what_is_left() {
    for (state, code, exit) in [
        ("idle", "no_work", 0),
        ("blocked", "failed", 1),
        ("backoff", "failed", 75),
        ("blocked", "no_space", 75),
        ("paused", "paused", 75),
    ] {
        let (agent, _) = agent(move |_| Ok(coalesce_status(state, code)));
        assert_eq!(run(&agent, "coalesce run a --wait").0.unwrap(), Exit(exit), "{state} {code}");
    }
}

#[test]
fn a_refusal_is_passed_on_and_prints_no_data() {
    let (agent, _) = agent(|_| Err(failure(ErrorName::ChainTooLong).hint("merge")));
    for line in ["vdi snapshot a", "--json vdi list"] {
        let (error, text) = run(&agent, line);
        assert_eq!(error.unwrap_err().exit_code(), 6);
        assert_eq!(text, "");
    }
}
