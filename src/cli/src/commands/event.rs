//! `catena event ...`: what happened.

use crate::client::{Client, read, read_field};
use crate::errors::{CliError, Exit};
use crate::output::table::Rows;
use crate::output::{Output, printable, record};
use crate::times;
use catena_rpc::{Event, EventListParams};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

/// The verbs of `event`.
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// List events, the latest last
    List(List),
    /// Print events as they happen, a line each, until Ctrl-C
    Watch,
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only later ones: 2030-01-31T07:00:00Z, 07:00, or 1h
    #[arg(long, value_name = "TIME", value_parser = times::since)]
    since: Option<Timestamp>,
}

/// Does what `command` says.
pub(crate) fn run(command: &EventCommand, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    match command {
        EventCommand::List(List { since }) => list(since.as_ref(), agent, out)?,
        EventCommand::Watch => watch(agent, out)?,
    }
    Ok(Exit::OK)
}

fn list(since: Option<&Timestamp>, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let params = EventListParams { since: since.map(Timestamp::to_string), ..EventListParams::default() };
    let document = agent.call("Event.list", &params)?;
    out.show(&document, || {
        let mut rows = Rows::new(&["TIME", "SEVERITY", "KIND", "ABOUT", "MESSAGE"]);
        for event in read_field::<Vec<Event>>(&document, "events")? {
            let (time, about) = (times::shown(&event.time), about(&event));
            rows.push([time, record::word(&event.severity), event.kind, about, event.message]);
        }
        Ok(rows.render())
    })
}

/// Prints each event at once, as a line or as a document of its own. Ends with a signal, with the agent, or when nobody reads
/// any more.
fn watch(agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    agent.call("Event.subscribe", &json!({}))?;
    out.say("watching; Ctrl-C ends it");
    loop {
        let document = agent.next_event()?;
        out.show(&document, || Ok(line(&read(&document)?)))?;
        if !out.stream()? {
            return Ok(());
        }
    }
}

/// `2030-01-01T00:00:00Z  info      vdi.created           91aa7f02  web01 created`.
fn line(event: &Event) -> String {
    let severity = record::word(&event.severity);
    let (kind, message) = (printable(&event.kind), printable(&event.message));
    format!("{}  {severity:<8}  {kind:<20}  {}  {message}\n", times::shown(&event.time), about(event))
}

/// What it concerns, by as many digits as name it: the VDI, or else the SR.
fn about(event: &Event) -> String {
    let uuid = event.vdi.map_or_else(|| event.sr.to_string(), |vdi| vdi.to_string());
    uuid.chars().take(8).collect()
}
