//! `catena job ...`: long work that is under way or was.

use crate::client::{Client, read, read_field};
use crate::errors::{CliError, Exit};
use crate::jobs;
use crate::output::table::Rows;
use crate::output::{Output, progress, record};
use crate::times;
use catena_rpc::{Job, JobParams, ListParams};
use clap::{Args, Subcommand};
use serde_json::Value;

/// The verbs of `job`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List jobs
    List,
    /// Show a job
    Show(Id),
    /// Wait for a job's end; fails if the job fails
    Wait(Id),
    /// Cancel a job
    Cancel(Id),
}

/// Which job.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// The job's id
    #[arg(value_name = "ID")]
    job: String,
}

/// Does what `command` says.
pub(crate) fn run(command: JobCommand, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    match command {
        JobCommand::List => list(agent, out)?,
        JobCommand::Show(id) => show(&agent.call("Job.get", &params(id))?, out)?,
        JobCommand::Wait(id) => {
            let job: Job = read(&agent.call("Job.get", &params(id))?)?;
            let job = jobs::wait(agent, out, job)?;
            show(&serde_json::to_value(job).map_err(CliError::bad_answer)?, out)?;
        }
        JobCommand::Cancel(id) => {
            let document = agent.call("Job.cancel", &params(id))?;
            out.show(&document, || Ok(String::new()))?;
        }
    }
    Ok(Exit::OK)
}

fn params(id: Id) -> JobParams {
    JobParams { job: id.job, timeout_seconds: None }
}

fn show(document: &Value, out: &mut Output) -> Result<(), CliError> {
    out.show(document, || Ok(record::render(document)))
}

fn list(agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let document = agent.call("Job.list", &ListParams::default())?;
    out.show(&document, || {
        let mut rows = Rows::new(&["ID", "KIND", "STATE", "PHASE", "PROGRESS", "UPDATED"]);
        for job in read_field::<Vec<Job>>(&document, "jobs")? {
            let progress = progress::percent(&job).map(progress::text_bar).unwrap_or_default();
            rows.push([
                job.id,
                record::word(&job.kind),
                record::word(&job.state),
                job.phase,
                progress,
                times::shown(&job.updated),
            ]);
        }
        Ok(rows.render())
    })
}
