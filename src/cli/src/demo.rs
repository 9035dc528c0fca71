//! `catena demo`: everything on a private agent in a temporary directory, in under a minute.
//!
//! The demonstration runs the very commands it prints, through the same code as a shell would, and believes nothing: every
//! disk is exported again and its SHA-256 compared. It ends with 0 only if all of it held; the agent and the directory are gone
//! afterwards in any case.

mod adopt;
mod agent;
mod archive;
mod chain;
mod disks;
mod hash;
mod live;
mod remote;
mod stage;

use crate::errors::{CliError, Exit};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::output::tree::flatten;
use anyhow::{Context, Result};
use catena_rpc::Node;
use catena_types::Bytes;
use stage::Stage;
use std::time::Instant;

/// What the steps hand to each other.
struct Demo {
    stage: Stage,
    /// What the images of an SR took, at moments worth comparing.
    space: Vec<(String, Bytes)>,
}

/// Plays the demonstration to its end, or to the first thing that does not hold.
pub(crate) fn run(interrupt: &Interrupt, out: &Output) -> Result<Exit, CliError> {
    if out.is_json() {
        return Err(CliError::bad_request("the demonstration is for people: leave out --json"));
    }
    play(interrupt, out.is_quiet()).map_err(|error| into_cli_error(&error))?;
    Ok(Exit::OK)
}

fn play(interrupt: &Interrupt, quiet: bool) -> Result<()> {
    let started = Instant::now();
    let mut demo = Demo { stage: Stage::open(interrupt, quiet)?, space: Vec::new() };
    if let Err(error) = demo.all_steps() {
        let log = demo.stage.agent_log();
        // Where the end fails too, the first error is the one to tell.
        let _ = demo.stage.close();
        return Err(match into_cli_error(&error) {
            CliError::Demo(text) => CliError::Demo(format!("{text} {log}")).into(),
            other => other.into(),
        });
    }
    let voice = demo.stage.voice();
    demo.stage.close().context("stopping the agent and removing its directory")?;
    voice.say(&format!(
        "\nAll of it held, in {:.1} s. The agent is stopped and its directory removed.",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// An interruption stays one; any other failure of a command is a failure of the demonstration.
fn into_cli_error(error: &anyhow::Error) -> CliError {
    match error.downcast_ref::<CliError>() {
        Some(CliError::Interrupted) => CliError::Interrupted,
        Some(CliError::Demo(text)) => CliError::Demo(text.clone()),
        _ => CliError::Demo(format!("{error:#}")),
    }
}

impl Demo {
    fn all_steps(&mut self) -> Result<()> {
        let adopted = self.adopt()?;
        let golden = self.make_disks()?;
        self.clone_forty_times(&golden)?;
        let chain = self.snapshot_to_the_limit()?;
        self.merge_the_chain(&chain)?;
        self.serve_a_disk()?;
        self.merge_what_was_adopted(&adopted)?;
        self.look_back()
    }

    /// Remembers what the images of `sr` take now.
    fn note_space(&mut self, moment: &str, sr: &str) -> Result<()> {
        let roots = self.roots(sr)?;
        let taken = flatten(&roots).iter().map(|node| node.own_bytes.0).sum();
        self.space.push((format!("{sr}, {moment}"), Bytes(taken)));
        Ok(())
    }

    /// The trees of an SR.
    fn roots(&self, sr: &str) -> Result<Vec<Node>> {
        let document = self.stage.json(&["vdi", "tree", sr])?;
        serde_json::from_value(document["roots"].clone()).context("a tree that cannot be read")
    }

    fn look_back(&mut self) -> Result<()> {
        self.stage.title("What is left, and what it takes");
        self.stage.run(&["vdi", "tree", adopt::SR])?;
        self.stage.run(&["vdi", "tree", chain::DISK])?;
        self.stage.voice().say("What the images took:");
        for (moment, taken) in &self.space {
            self.stage.voice().say(&format!("  {moment:32} {taken:>10}"));
        }
        self.stage.run(&["sr", "list"])?;
        for sr in [adopt::SR, disks::SR] {
            self.stage.run(&["sr", "check", sr]).with_context(|| format!("{sr} is not in order"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_types::{ErrorName, Failure};

    #[test]
    fn whatever_fails_is_told_but_an_interruption_stays_one() {
        let interrupted = anyhow::Error::from(CliError::Interrupted).context("`catena vdi export`");
        assert_eq!(into_cli_error(&interrupted).exit_code(), 130);
        let failed: CliError = Failure::new(ErrorName::NoSpace, "full").into();
        let failed = into_cli_error(&anyhow::Error::from(failed).context("`catena vdi import`"));
        assert_eq!(failed.exit_code(), 1);
        assert_eq!(failed.to_string(), "the demonstration failed: `catena vdi import`: full");
    }
}
