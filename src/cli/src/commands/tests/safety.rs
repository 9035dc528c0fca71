//! What destroys: by full uuid or with `--yes`, and nothing at all if one of the names is wrong.

use super::{VDI, agent, failure, methods, run, vdi, willing};
use catena_rpc::Outcome;
use catena_types::ErrorName;
use serde_json::json;

const OTHER: &str = "0b1d9c44-0000-4000-8000-000000000002";

fn two_disks(method: &str, name: &str) -> Outcome {
    match (method, name) {
        ("VDI.get_record", "web01" | VDI) => Ok(vdi(VDI, "web01")),
        ("VDI.get_record", "web02" | OTHER) => Ok(vdi(OTHER, "web02")),
        ("VDI.get_record", _) => Err(failure(ErrorName::VdiMissing)),
        ("VDI.destroy", OTHER) => Err(failure(ErrorName::VdiInUse)),
        ("VDI.destroy", VDI) => Ok(json!({})),
        other => panic!("{other:?}"),
    }
}

/// Runs a command; returns exit code or error text, and what was destroyed.
fn destroyed_by(line: &str) -> (Result<String, (u8, String)>, Vec<String>) {
    let (agent, log) = agent(|call| two_disks(&call.method, call.params["vdi"].as_str().unwrap()));
    let (done, text) = run(&agent, line);
    let destroyed = log.lock().unwrap().iter().filter(|(method, _)| method == "VDI.destroy").count();
    let log = log.lock().unwrap();
    let names =
        log[log.len() - destroyed..].iter().map(|(_, params)| params["vdi"].as_str().unwrap().to_owned());
    (done.map(|_| text).map_err(|error| (error.exit_code(), error.render(false))), names.collect())
}

#[test]
fn a_label_needs_a_yes() {
    let (refused, destroyed) = destroyed_by("vdi destroy web01");
    let (code, text) = refused.unwrap_err();
    assert_eq!((code, destroyed.len()), (2, 0));
    assert!(text.contains(&format!("hint: it means {VDI}: give that uuid, or --yes")), "{text}");
    assert!(destroyed_by("vdi destroy 0b1d9c44").0.is_err(), "a prefix is no full uuid");
    assert_eq!(destroyed_by("vdi destroy web01 --yes"), (Ok(String::new()), vec![VDI.to_owned()]));
    assert_eq!(destroyed_by(&format!("vdi destroy {VDI}")).1, [VDI]);
    assert_eq!(destroyed_by(&format!("vdi destroy {}", VDI.to_uppercase())).1, Vec::<String>::new());
}

#[test]
fn nothing_is_destroyed_when_one_name_is_wrong() {
    let (refused, destroyed) = destroyed_by(&format!("vdi destroy {VDI} nothing --yes"));
    assert_eq!((refused.unwrap_err().0, destroyed.len()), (3, 0));
}

#[test]
fn several_are_destroyed_once_each_and_named_when_one_fails() {
    let (done, destroyed) = destroyed_by(&format!("--json vdi destroy web01 {VDI} --yes"));
    assert_eq!(done.unwrap(), format!("{{\"schema_version\":1,\"destroyed\":[\"{VDI}\"]}}\n"));
    assert_eq!(destroyed, [VDI]);
    let (failed, destroyed) = destroyed_by(&format!("vdi destroy {VDI} {OTHER}"));
    let (code, text) = failed.unwrap_err();
    assert_eq!((code, destroyed), (4, vec![VDI.to_owned(), OTHER.to_owned()]));
    assert!(text.contains(&format!("destroyed before: {VDI}")), "{text}");
}

#[test]
fn an_sr_is_never_destroyed_without_a_yes() {
    let (agent, log) = agent(willing);
    let (refused, _) = run(&agent, "sr destroy 12345678-0000-4000-8000-0000000000aa");
    assert_eq!(refused.unwrap_err().exit_code(), 2);
    assert!(methods(&log).is_empty());
    assert!(run(&agent, "sr destroy disks --yes").0.is_ok());
    assert_eq!(methods(&log), ["SR.destroy"]);
}
