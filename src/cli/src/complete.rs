//! What the shell offers for the names of SRs, VDIs and jobs: asked of the agent that the command line names.
//!
//! A completion never fails and never waits long: without an agent there are no candidates. What it offers needs no quotes:
//! a label that does, or that is not unique, is offered as its uuid, with the label beside it where the shell shows such.

use crate::args::Global;
use crate::client::{Client, read_field};
use crate::grammar;
use crate::interrupt::Interrupt;
use catena_rpc::{Job, ListParams, Sr, Vdi};
use catena_types::Policy;
use clap_complete::CompletionCandidate;
use clap_complete::env::CompleteEnv;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The variable by which a shell asks for completions.
pub(crate) const VARIABLE: &str = "CATENA_COMPLETE";

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers a shell that asks for completions, and ends; returns if none does. Called before anything else.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(grammar::grammar).var(VARIABLE).complete();
}

/// SRs.
pub(crate) fn srs() -> Vec<CompletionCandidate> {
    let srs: Vec<Sr> = ask("SR.list", "srs");
    let names: Vec<_> = srs.into_iter().map(|sr| (sr.uuid.to_string(), sr.name_label)).collect();
    named(&names)
}

/// Disks and snapshots.
pub(crate) fn vdis() -> Vec<CompletionCandidate> {
    let vdis: Vec<Vdi> = ask("VDI.list", "vdis");
    let names: Vec<_> = vdis.into_iter().map(|vdi| (vdi.uuid.to_string(), vdi.name_label)).collect();
    named(&names)
}

/// SRs, disks and snapshots.
pub(crate) fn srs_and_vdis() -> Vec<CompletionCandidate> {
    let mut all = srs();
    all.extend(vdis());
    all
}

/// What may be set of a policy, up to the value.
pub(crate) fn policy_keys() -> Vec<CompletionCandidate> {
    let key = |(name, values): &(&str, &'static str)| {
        CompletionCandidate::new(format!("{name}=")).help(Some((*values).into()))
    };
    Policy::KEYS.iter().map(key).collect()
}

/// Jobs.
pub(crate) fn jobs() -> Vec<CompletionCandidate> {
    let jobs: Vec<Job> = ask("Job.list", "jobs");
    jobs.into_iter().map(|job| CompletionCandidate::new(job.id).help(Some(job.phase.into()))).collect()
}

/// A candidate for each of the `(uuid, label)` pairs, and the uuids once more behind the labels.
fn named(names: &[(String, String)]) -> Vec<CompletionCandidate> {
    let unique = |label: &str| names.iter().filter(|(_, other)| other == label).count() == 1;
    let (mut labels, mut uuids) = (Vec::new(), Vec::new());
    for (uuid, label) in names {
        if is_plain(label) && unique(label) {
            labels.push(CompletionCandidate::new(label).help(Some(uuid.clone().into())));
        }
        uuids.push(CompletionCandidate::new(uuid).help(Some(label.clone().into())));
    }
    labels.extend(uuids);
    labels
}

/// Whether every shell takes the text as one word as it is.
fn is_plain(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '@' | '/'))
}

/// The list that the agent has in the array of this name; empty where it has none.
fn ask<T: DeserializeOwned>(method: &str, array: &str) -> Vec<T> {
    let socket = global(std::env::args_os()).socket_path(std::env::var_os("CATENA_SOCKET"));
    let list = || {
        let mut agent = Client::connect(&socket, &Interrupt::default())?;
        let ticket = agent.start(method, &ListParams::default(), &[])?;
        let document = agent.wait(ticket, PATIENCE)?.unwrap_or_default();
        read_field(&document, array)
    };
    list().unwrap_or_default()
}

/// The global options of the line that is being completed, as far as it is typed.
fn global(words: impl Iterator<Item = OsString>) -> Global {
    let mut global = Global { socket: None, root: None, json: false, quiet: false };
    let mut words = words.skip_while(|word| word != "--").skip(1);
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let (option, value) = match text.split_once('=') {
            Some((option, value)) => (option, Some(PathBuf::from(value))),
            None if text == "--socket" || text == "--root" => (&*text, words.next().map(PathBuf::from)),
            None => continue,
        };
        match option {
            "--socket" => global.socket = value,
            "--root" => global.root = value,
            _ => {}
        }
    }
    global
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_unique_and_needs_no_quotes() {
        let pair = |uuid: &str, label: &str| (uuid.to_owned(), label.to_owned());
        let names = vec![
            pair("1", "web"),
            pair("2", "two words"),
            pair("3", "twin"),
            pair("4", "twin"),
            pair("5", ""),
        ];
        let offered: Vec<String> =
            named(&names).iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect();
        assert_eq!(offered, ["web", "1", "2", "3", "4", "5"]);
        for bad in ["$(reboot)", "-x", "a b", "a;b", "a\nb", "é"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn the_agent_is_the_one_that_the_line_names() {
        let socket =
            |line: &str| global(line.split(' ').map(OsString::from)).socket_path(None).display().to_string();
        assert_eq!(socket("/bin/catena -- catena --root /r sr show"), "/r/run/catena/agent.sock");
        assert_eq!(socket("/bin/catena -- catena sr show --socket=/s"), "/s");
        assert_eq!(socket("/bin/catena -- catena sr show --root"), "/run/catena/agent.sock");
    }
}
