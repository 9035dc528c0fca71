//! Names to objects: a uuid, a unique prefix of one (8 characters or more) or a unique label means an SR or a VDI; the first
//! eight digits of a job's id mean its SR.
//!
//! A name that means several things is refused, and so is a label or prefix while a keeper that might know another meaning is
//! silent: acting on the wrong disk is worse than not acting. A full uuid needs no such care. Called by `front`.

use crate::fanout;
use crate::phase::Phase;
use crate::routes::PATIENCE;
use crate::supervise::Sr;
use catena_rpc::{Resolved, Text};
use catena_types::{ErrorName, Failure, SrUuid, VdiUuid};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The shortest prefix of a uuid that is taken for one.
const PREFIX: usize = 8;

/// The SR that `name` means.
pub(crate) fn sr(srs: &[Arc<Sr>], name: &str) -> Result<Arc<Sr>, Failure> {
    let names: Vec<(String, String)> =
        srs.iter().map(|sr| sr.entry()).map(|entry| (entry.uuid.to_string(), entry.name_label)).collect();
    match meanings(name, &names)[..] {
        [one] => Ok(Arc::clone(&srs[one])),
        [] => Err(Failure::new(ErrorName::SrUnavailable, format!("there is no SR '{name}' here"))
            .hint(unknown("`catena sr list` names the SRs", name))
            .object("sr", name)),
        ref several => Err(ambiguous("SR", name, several.iter().map(|&at| names[at].clone()))),
    }
}

/// Which of the `(uuid, label)` pairs a name means: the one whose uuid it is, or all that begin so or are labelled so.
fn meanings(name: &str, names: &[(String, String)]) -> Vec<usize> {
    let numbered = || names.iter().enumerate();
    if let Ok(uuid) = name.parse::<SrUuid>() {
        let uuid = uuid.to_string();
        if let Some((at, _)) = numbered().find(|(_, (own, _))| *own == uuid) {
            return vec![at];
        }
    }
    let prefix = name.to_ascii_lowercase();
    let fits = |uuid: &str, label: &str| label == name || (name.len() >= PREFIX && uuid.starts_with(&prefix));
    numbered().filter(|(_, (uuid, label))| fits(uuid, label)).map(|(at, _)| at).collect()
}

/// What to do about a name that means nothing; it may be a prefix that is too short to be taken for one.
fn unknown(list: &str, name: &str) -> String {
    let digits = |c: char| c.is_ascii_hexdigit() || c == '-';
    if name.len() < PREFIX && name.chars().all(digits) {
        format!("{list}; the beginning of a uuid counts from {PREFIX} digits on")
    } else {
        list.to_owned()
    }
}

fn ambiguous(what: &str, name: &str, meanings: impl Iterator<Item = (String, String)>) -> Failure {
    let list: Vec<String> = meanings.map(|(uuid, label)| format!("{uuid} ({label})")).collect();
    let text = format!("'{name}' is ambiguous, it means the {what}s {}", list.join(", "));
    Failure::new(ErrorName::BadRequest, text).hint("use the uuid")
}

/// The VDI (or image) that `name` means, and its SR, among the SRs given.
pub(crate) fn vdi(srs: &[Arc<Sr>], name: &str) -> Result<(Arc<Sr>, VdiUuid), Failure> {
    vdi_within(srs, name, PATIENCE)
}

fn vdi_within(srs: &[Arc<Sr>], name: &str, patience: Duration) -> Result<(Arc<Sr>, VdiUuid), Failure> {
    let reachable: Vec<Arc<Sr>> = srs.iter().filter(|sr| is_reachable(sr)).map(Arc::clone).collect();
    let exact = name.parse::<VdiUuid>().is_ok();
    let enough = |value: &Text| exact && !matches(value).is_empty();
    let replies = fanout::ask(&reachable, "Keeper.resolve", |_| json!({"name": name}), patience, enough);
    let mut found = Vec::new();
    let mut silent = None;
    for reply in &replies {
        match &reply.outcome {
            Ok(value) => found.extend(matches(value).into_iter().map(|one| (Arc::clone(&reply.sr), one))),
            // One that is being restarted may know it as well as one that is silent; not so one that has refused its SR meanwhile.
            Err(failure) if (reply.silent || failure.retry) && is_reachable(&reply.sr) => {
                silent = Some(failure);
            }
            Err(failure) => tracing::warn!(sr = %reply.sr.uuid(), %failure, "a name was not looked up"),
        }
    }
    match (found.len(), silent) {
        (1, None) => {}
        (1, Some(_)) if exact => {}
        (0 | 1, Some(failure)) => {
            let text = format!("what '{name}' means cannot be said now: {}", failure.message);
            return Err(Failure { message: text, ..failure.clone() }.hint("use the uuid, or try again"));
        }
        (0, None) => return Err(missing(srs, name)),
        _ => {
            return Err(ambiguous(
                "VDI",
                name,
                found.into_iter().map(|(_, one)| (one.uuid.to_string(), one.name_label)),
            ));
        }
    }
    found.pop().map(|(sr, one)| (sr, one.uuid)).ok_or_else(|| missing(srs, name))
}

/// Whether there is, or is about to be, a keeper to be asked.
fn is_reachable(sr: &Sr) -> bool {
    !matches!(sr.state().phase, Phase::Detached | Phase::Failed)
}

fn matches(value: &Text) -> Vec<Resolved> {
    serde_json::from_value(value.value()["matches"].take()).unwrap_or_default()
}

fn missing(srs: &[Arc<Sr>], name: &str) -> Failure {
    let failure =
        Failure::new(ErrorName::VdiMissing, format!("there is no VDI '{name}'")).object("vdi", name);
    let away: Vec<String> =
        srs.iter().filter(|sr| sr.state().phase != Phase::Attached).map(|sr| sr.entry().name_label).collect();
    let hint = unknown("`catena vdi list` names the VDIs", name);
    if away.is_empty() {
        failure.hint(hint)
    } else {
        failure.hint(format!("{hint}; not attached, so not asked: {}", away.join(", ")))
    }
}

/// The SR that a job's id names.
pub(crate) fn job(srs: &[Arc<Sr>], id: &str) -> Result<Arc<Sr>, Failure> {
    let missing = || {
        Failure::new(ErrorName::VdiMissing, format!("there is no job '{id}'"))
            .hint("`catena job list` names the jobs")
            .object("job", id)
    };
    let (digits, number) = id.split_once('-').ok_or_else(missing)?;
    if digits.len() != PREFIX || number.parse::<u64>().is_err() {
        return Err(missing());
    }
    srs.iter().find(|sr| sr.uuid().to_string().starts_with(digits)).map(Arc::clone).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, attached, detached};

    fn names() -> Vec<(String, String)> {
        [
            ("11111111-aaaa-4000-8000-000000000001", "one"),
            ("11111111-bbbb-4000-8000-000000000002", "two"),
            ("22222222-aaaa-4000-8000-000000000003", "two"),
            ("33333333-aaaa-4000-8000-000000000004", "11111111-aaaa-4000-8000-000000000001"),
            ("44444444-aaaa-4000-8000-000000000005", "22222222"),
        ]
        .map(|(uuid, label)| (uuid.to_owned(), label.to_owned()))
        .to_vec()
    }

    #[test]
    fn a_name_means_a_uuid_a_prefix_or_a_label() {
        let table: [(&str, &[usize]); 9] = [
            ("one", &[0]),
            ("two", &[1, 2]),
            ("11111111-bbbb-4000-8000-000000000002", &[1]),
            ("11111111-BBBB-4000-8000-000000000002", &[1]),
            ("11111111-AA", &[0]),
            ("11111111", &[0, 1]),
            ("33333333", &[3]),
            ("1111111", &[]),
            ("22222222", &[2, 4]),
        ];
        for (name, expected) in table {
            assert_eq!(meanings(name, &names()), expected, "{name}");
        }
        // A label that looks like another's uuid does not take its name away.
        assert_eq!(meanings("11111111-aaaa-4000-8000-000000000001", &names()), [0]);
    }

    #[test]
    fn an_unknown_sr_and_an_ambiguous_one_are_told_apart() {
        let srs = [detached("a"), detached("b"), detached("b")];
        assert_eq!(sr(&srs, "a").unwrap().uuid(), srs[0].uuid());
        assert_eq!(sr(&srs, "c").unwrap_err().name, ErrorName::SrUnavailable);
        let failure = sr(&srs, "b").unwrap_err();
        assert_eq!(failure.name, ErrorName::BadRequest);
        assert!(failure.message.contains(&srs[1].uuid().to_string()), "{failure}");
        assert!(failure.message.contains(&srs[2].uuid().to_string()), "{failure}");
    }

    fn knowing(vdis: &[(VdiUuid, &str)]) -> Script {
        let matches: Vec<_> = vdis
            .iter()
            .map(|(uuid, label)| json!({"uuid": uuid, "name_label": label, "is_image": false}))
            .collect();
        Script::new().answer("Keeper.resolve", json!({"matches": matches}))
    }

    #[test]
    fn vdis_are_looked_for_in_all_attached_srs() {
        let (one, two) = (VdiUuid::random(), VdiUuid::random());
        let empty = attached("empty", knowing(&[]));
        let a = attached("a", knowing(&[(one, "web")]));
        let b = attached("b", knowing(&[(two, "web")]));
        let off = detached("off");
        let (sr, uuid) = vdi(&[Arc::clone(&empty), Arc::clone(&a)], "web").unwrap();
        assert_eq!((sr.uuid(), uuid), (a.uuid(), one));
        let failure = vdi(&[a, b], "web").unwrap_err();
        assert_eq!(failure.name, ErrorName::BadRequest);
        assert!(failure.message.contains(&format!("{two} (web)")), "{failure}");
        let failure = vdi(&[empty, off], "web").unwrap_err();
        assert_eq!(failure.name, ErrorName::VdiMissing);
        assert!(failure.hint.contains("off"), "{}", failure.hint);
    }

    #[test]
    fn while_a_keeper_is_silent_only_a_full_uuid_is_believed() {
        let one = VdiUuid::random();
        let srs = [
            attached("silent", Script::new().ignore("Keeper.resolve")),
            attached("a", knowing(&[(one, "web")])),
        ];
        assert_eq!(vdi_within(&srs, &one.to_string(), Duration::from_secs(3600)).unwrap().1, one);
        let failure = vdi_within(&srs, "web", Duration::from_millis(50)).unwrap_err();
        assert_eq!((failure.name, failure.retry), (ErrorName::SrUnavailable, true));
    }

    #[test]
    fn a_vdi_is_not_missing_while_a_keeper_that_may_know_it_is_restarted() {
        let passing = Failure::new(ErrorName::SrUnavailable, "it is being restarted").retry();
        let srs = [attached("b", Script::new().refuse("Keeper.resolve", passing))];
        let failure = vdi(&srs, &VdiUuid::random().to_string()).unwrap_err();
        assert_eq!((failure.name, failure.retry), (ErrorName::SrUnavailable, true));
    }

    #[test]
    fn a_job_is_found_by_the_digits_of_its_sr() {
        let srs = [detached("a"), detached("b")];
        let digits = srs[1].uuid().to_string()[..8].to_owned();
        assert_eq!(job(&srs, &format!("{digits}-7")).unwrap().uuid(), srs[1].uuid());
        for id in ["", "7", "zzzzzzzz-7", &digits, &format!("{digits}-x"), &format!("{}-7", &digits[..7])] {
            assert_eq!(job(&srs, id).unwrap_err().name, ErrorName::VdiMissing, "{id}");
        }
    }
}
