//! `catena coalesce ...`: the worker that shortens chains.

use crate::client::{Client, read, read_field};
use crate::errors::{CliError, Exit};
use crate::output::progress::{describe, duration, percent, text_bar};
use crate::output::table::Rows;
use crate::output::{Output, record};
use crate::times;
use catena_rpc::{CoalesceParams, CoalesceState, CoalesceStatus, Job, ListParams, Sr};
use catena_types::Bytes;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::time::Duration;

/// How often a display is brought up to date.
const PERIOD: Duration = Duration::from_secs(1);

/// The verbs of `coalesce`.
#[derive(Debug, Subcommand)]
pub(crate) enum CoalesceCommand {
    /// Show what the workers do, and why not more
    Status(Status),
    /// Wake the worker; with --wait exits with 0 when nothing is left to do, 1 if it failed, 75 if it has to wait
    Run(Run),
    /// Stop merging
    Pause(Pause),
    /// Go on merging
    Resume(Name),
}

/// Whose status.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Only this SR
    sr: Option<String>,
    /// Go on showing it, whenever it changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Which worker to wake.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The SR
    sr: String,
    /// Wait until it has nothing left to do
    #[arg(long)]
    wait: bool,
}

/// Which worker to stop.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The SR
    sr: String,
    /// Until then: 2030-01-31T07:00:00Z, 07:00, or 1h; for good by default
    #[arg(long, value_name = "TIME", value_parser = times::until)]
    until: Option<Timestamp>,
}

/// Which SR.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The SR
    sr: String,
}

/// Does what `command` says.
pub(crate) fn run(command: CoalesceCommand, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let params = |sr: String| CoalesceParams { sr, until: None, wait: false };
    match command {
        CoalesceCommand::Status(Status { sr, watch: false }) => status(sr, agent, out)?,
        CoalesceCommand::Status(Status { sr, watch: true }) => watch(sr.as_deref(), agent, out)?,
        CoalesceCommand::Run(Run { sr, wait: true }) => return run_to_end(&sr, agent, out),
        CoalesceCommand::Run(Run { sr, wait: false }) => {
            let document = agent.call("Coalesce.run", &params(sr))?;
            out.show(&document, || table(std::slice::from_ref(&document), agent))?;
        }
        CoalesceCommand::Pause(Pause { sr, until }) => {
            let params = CoalesceParams { until: until.map(|time| time.to_string()), ..params(sr) };
            let document = agent.call("Coalesce.pause", &params)?;
            out.show(&document, || Ok(String::new()))?;
        }
        CoalesceCommand::Resume(Name { sr }) => {
            let document = agent.call("Coalesce.resume", &params(sr))?;
            out.show(&document, || Ok(String::new()))?;
        }
    }
    Ok(Exit::OK)
}

fn status(sr: Option<String>, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let document = agent.call("Coalesce.status", &ListParams { sr, vdi: None })?;
    out.show(&document, || table(&read_field::<Vec<Value>>(&document, "srs")?, agent))
}

/// Shows the status again and again: redrawn on a terminal, elsewhere, and as JSON, whenever it has changed. Ends with a signal,
/// with the agent, or when nobody reads any more.
fn watch(sr: Option<&str>, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let redraw = io::stdout().is_terminal() && !out.is_json();
    let mut shown = String::new();
    loop {
        status(sr.map(str::to_owned), agent, out)?;
        let text = out.take();
        if text != shown {
            let lead = if redraw { "\x1b[H\x1b[J" } else { "" };
            out.push(&format!("{lead}{text}"));
            if !out.stream()? {
                return Ok(());
            }
            shown = text;
        }
        agent.interrupt().clone().pause(PERIOD)?;
    }
}

/// Waits until the worker has nothing left to do, showing what it is at.
fn run_to_end(sr: &str, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let params = CoalesceParams { sr: sr.to_owned(), until: None, wait: true };
    let ticket = agent.start("Coalesce.run", &params, &[])?;
    let progress = out.progress();
    let document = loop {
        if let Some(document) = agent.wait(ticket, PERIOD)? {
            break document;
        }
        let params = ListParams { sr: Some(sr.to_owned()), vdi: None };
        let all: Vec<CoalesceStatus> = read_field(&agent.call("Coalesce.status", &params)?, "srs")?;
        match all.first() {
            Some(CoalesceStatus { current: Some(job), .. }) => progress.show(job),
            Some(status) => progress.note(&status.reason.text),
            None => {}
        }
    };
    drop(progress);
    let status: CoalesceStatus = read(&document)?;
    out.show(&document, || Ok(String::new()))?;
    out.say(&status.reason.text);
    Ok(exit(&status))
}

/// What the state of a worker that was waited for means to a script.
fn exit(status: &CoalesceStatus) -> Exit {
    match status.state {
        CoalesceState::Idle => Exit::OK,
        CoalesceState::Blocked if status.reason.code == "failed" => Exit::FAILED,
        CoalesceState::Backoff | CoalesceState::Blocked | CoalesceState::Paused | CoalesceState::Running => {
            Exit::TRY_AGAIN
        }
    }
}

/// The workers' states as a table, with the names of their SRs.
fn table(statuses: &[Value], agent: &mut Client) -> Result<String, CliError> {
    let statuses: Vec<CoalesceStatus> = read(&json!(statuses))?;
    let srs: Vec<Sr> = read_field(&agent.call("SR.list", &ListParams::default())?, "srs")?;
    Ok(render(&statuses, &srs))
}

fn render(statuses: &[CoalesceStatus], srs: &[Sr]) -> String {
    let mut rows = Rows::new(&["SR", "STATE", "REASON", "CURRENT", "QUEUE", ">UNMERGED", ">RECLAIMABLE"]);
    for status in statuses {
        let sr = srs.iter().find(|sr| sr.uuid == status.sr);
        rows.push([
            sr.map_or_else(|| status.sr.to_string(), |sr| sr.name_label.clone()),
            record::word(&status.state),
            status.reason.text.clone(),
            status.current.as_ref().map_or_else(|| "-".to_owned(), |job| current(job) + &class(status)),
            queue(status),
            status.unmerged_images.to_string(),
            status.reclaimable_bytes.to_string(),
        ]);
    }
    rows.render()
}

/// `merge [====>     ] 43 %, 85.0 MiB/s, 7 s left`.
fn current(job: &Job) -> String {
    let Some(percent) = percent(job) else { return format!("{} {}", record::word(&job.kind), describe(job)) };
    let mut text = format!("{} {}", record::word(&job.kind), text_bar(percent));
    if job.rate != Bytes(0) {
        text.push_str(&format!(", {}/s", job.rate));
    }
    if let Some(seconds) = job.eta_seconds {
        text.push_str(&format!(", {} left", duration(seconds)));
    }
    text
}

/// The I/O class in effect, and whether that means anything.
fn class(status: &CoalesceStatus) -> String {
    match (status.io_class, status.io_class_honoured) {
        (None, _) => String::new(),
        (Some(class), Some(false)) => format!(", {class} (the disk's scheduler heeds no classes)"),
        (Some(class), _) => format!(", {class}"),
    }
}

fn queue(status: &CoalesceStatus) -> String {
    let bytes: u64 = status.queue.iter().map(|plan| plan.bytes.0).sum();
    match status.queue.len() {
        0 => "-".to_owned(),
        1 => format!("1 merge, {}", Bytes(bytes)),
        many => format!("{many} merges, {}", Bytes(bytes)),
    }
}
