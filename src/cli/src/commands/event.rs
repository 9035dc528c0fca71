//! `catena event ...`: what happened.

use crate::client::{Client, read_field};
use crate::errors::{CliError, Exit};
use crate::output::table::Rows;
use crate::output::{Output, record};
use crate::times;
use catena_rpc::{Event, EventListParams};
use clap::{Args, Subcommand};
use jiff::Timestamp;

/// The verbs of `event`.
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// List events, the latest last
    List(List),
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
    let EventCommand::List(List { since }) = command;
    let params =
        EventListParams { since: since.as_ref().map(Timestamp::to_string), ..EventListParams::default() };
    let document = agent.call("Event.list", &params)?;
    out.show(&document, || {
        let mut rows = Rows::new(&["TIME", "SEVERITY", "KIND", "MESSAGE"]);
        for event in read_field::<Vec<Event>>(&document, "events")? {
            rows.push([event.time, record::word(&event.severity), event.kind, event.message]);
        }
        Ok(rows.render())
    })?;
    Ok(Exit::OK)
}
