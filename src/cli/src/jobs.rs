//! Awaiting long work: the agent answers with a job at once, and this waits for the job's end while it shows how far it is.
//!
//! The first Ctrl-C cancels the job and waits until it has ended, so that nothing half done is left; a second gives up.

use crate::client::{Client, read};
use crate::errors::CliError;
use crate::output::Output;
use catena_rpc::{Job, JobParams};
use catena_types::{ErrorName, Failure, JobState};
use serde::Serialize;
use std::os::fd::BorrowedFd;

/// How long one `Job.wait` may take; progress is drawn in between.
const STEP_SECONDS: u64 = 1;

/// Starts work that is answered with a job and waits until it is done. A failed job is its failure.
pub(crate) fn run(
    agent: &mut Client,
    out: &Output,
    method: &str,
    params: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<Job, CliError> {
    // Not given up at the first signal: without its number the job could not be cancelled.
    let job: Job = read(&agent.call_to_end(method, params, fds)?)?;
    let id = job.id.clone();
    match wait(agent, out, job) {
        Err(CliError::Interrupted) => cancel(agent, &id),
        done => done,
    }
}

/// Waits until `job` is done; a signal ends the wait and leaves the job alone.
pub(crate) fn wait(agent: &mut Client, out: &Output, mut job: Job) -> Result<Job, CliError> {
    let progress = out.progress();
    while !job.state.is_over() {
        progress.show(&job);
        job = read(&agent.call("Job.wait", &wait_params(&job.id))?)?;
    }
    outcome(job)
}

/// Cancels a job and waits for its end. One that had taken effect already is done, and its result is told.
fn cancel(agent: &mut Client, id: &str) -> Result<Job, CliError> {
    let params = JobParams { job: id.to_owned(), timeout_seconds: None };
    match agent.call_to_end("Job.cancel", &params, &[]) {
        // Refused, for instance because the job is past its commit: its end tells more than the refusal.
        Ok(_) | Err(CliError::Failure(_)) => {}
        Err(other) => return Err(other),
    }
    loop {
        let job: Job = read(&agent.call_to_end("Job.wait", &wait_params(id), &[])?)?;
        match job.state {
            JobState::Cancelled => return Err(CliError::Interrupted),
            state if state.is_over() => return outcome(job),
            _ => {}
        }
    }
}

fn wait_params(id: &str) -> JobParams {
    JobParams { job: id.to_owned(), timeout_seconds: Some(STEP_SECONDS) }
}

/// What the end of a job means to who waited for it.
fn outcome(job: Job) -> Result<Job, CliError> {
    match (job.state, job.error) {
        (JobState::Failed, Some(failure)) => Err(failure.into()),
        (JobState::Failed, None) => {
            Err(Failure::new(ErrorName::IoError, format!("job {} failed", job.id)).into())
        }
        (JobState::Cancelled, _) => Err(CliError::Cancelled(job.id)),
        (_, error) => Ok(Job { error, ..job }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::progress::tests::job;
    use crate::testing::{Call, FakeAgent};
    use catena_rpc::Outcome;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    fn document(state: JobState, error: Option<Failure>) -> Outcome {
        Ok(serde_json::to_value(Job { state, error, ..job(1, 2) }).unwrap())
    }

    /// Runs an import against an agent whose job goes through `states`, one a wait.
    fn import(mut states: Vec<JobState>, error: Option<Failure>) -> Result<Job, CliError> {
        states.reverse();
        let agent = FakeAgent::new(move |call: &Call| match call.method.as_str() {
            "VDI.import" => document(JobState::Queued, None),
            "Job.wait" => {
                assert_eq!(call.params, json!({"job": "12345678-1", "timeout_seconds": 1}));
                let state = states.pop().unwrap();
                document(state, if state == JobState::Failed { error.clone() } else { None })
            }
            other => panic!("{other}"),
        });
        run(&mut agent.client(), &Output::new(false, true), "VDI.import", &json!({}), &[])
    }

    #[test]
    fn a_job_is_waited_for_to_its_end() {
        assert_eq!(
            import(vec![JobState::Running, JobState::Running, JobState::Done], None).unwrap().state,
            JobState::Done
        );
        let full = Failure::new(ErrorName::NoSpace, "4096 bytes missing");
        assert_eq!(import(vec![JobState::Running, JobState::Failed], Some(full)).unwrap_err().exit_code(), 5);
        assert_eq!(import(vec![JobState::Failed], None).unwrap_err().exit_code(), 1);
        assert!(
            matches!(import(vec![JobState::Cancelled], None), Err(CliError::Cancelled(id)) if id == "12345678-1")
        );
    }

    /// An agent whose job runs until somebody tries to cancel it, and is then in the state `end`; a signal comes with the first
    /// wait.
    fn interrupted(
        end: JobState,
        work: impl FnOnce(&mut Client) -> Result<Job, CliError>,
    ) -> (Result<Job, CliError>, Vec<String>) {
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&calls);
        let signals = Arc::<Mutex<Option<crate::interrupt::Interrupt>>>::default();
        let raise = Arc::clone(&signals);
        let agent = FakeAgent::with_replies(move |call, reply| {
            let cancelled = log.lock().unwrap().iter().any(|method| method == "Job.cancel");
            log.lock().unwrap().push(call.method.clone());
            if call.method == "Job.wait" && !cancelled {
                // Not answered: only the signal ends this wait.
                raise.lock().unwrap().as_ref().unwrap().raise();
                return;
            }
            let state = if call.method == "Job.wait" { end } else { JobState::Running };
            reply(call.id, document(state, None));
        });
        let mut client = agent.client();
        *signals.lock().unwrap() = Some(client.interrupt().clone());
        let done = work(&mut client);
        drop(agent);
        let calls = calls.lock().unwrap().clone();
        (done, calls)
    }

    #[test]
    fn ctrl_c_cancels_the_job_and_waits_for_its_end() {
        let (done, calls) = interrupted(JobState::Cancelled, |client| {
            run(client, &Output::new(false, true), "VDI.export", &Value::Null, &[])
        });
        assert!(matches!(done, Err(CliError::Interrupted)));
        assert_eq!(calls, ["VDI.export", "Job.wait", "Job.cancel", "Job.wait"]);
    }

    #[test]
    fn a_job_that_was_done_before_ctrl_c_came_is_done() {
        let import =
            |client: &mut Client| run(client, &Output::new(false, true), "VDI.import", &Value::Null, &[]);
        assert_eq!(interrupted(JobState::Done, import).0.unwrap().state, JobState::Done);
        assert_eq!(interrupted(JobState::Failed, import).0.unwrap_err().exit_code(), 1);
    }

    #[test]
    fn ctrl_c_leaves_alone_a_job_that_is_only_watched() {
        let (done, calls) =
            interrupted(JobState::Cancelled, |client| wait(client, &Output::new(false, true), job(1, 2)));
        assert!(matches!(done, Err(CliError::Interrupted)));
        assert_eq!(calls, ["Job.wait"]);
    }
}
