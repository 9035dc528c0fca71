//! The stage of the demonstration: a private agent, and commands that are printed and run.

use super::agent::PrivateAgent;
use super::hash;
use crate::args::Cli;
use crate::errors::{CliError, Exit};
use crate::interrupt::{Interrupt, Patience};
use crate::output::Output;
use anyhow::{Context, Result, anyhow, bail, ensure};
use catena_types::Failure;
use clap::Parser;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The most lines of a command's output that are shown.
const SHOWN_LINES: usize = 12;

/// Says things on stdout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice {
    quiet: bool,
}

/// A private agent and what is needed to talk to it.
pub(super) struct Stage {
    agent: PrivateAgent,
    interrupt: Interrupt,
    voice: Voice,
    steps: u32,
}

impl Voice {
    /// One paragraph. A reader who has gone away does not stop the demonstration.
    pub(super) fn say(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}

impl Stage {
    /// Starts the `catenad` beside this program.
    pub(super) fn open(interrupt: &Interrupt, quiet: bool) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?.with_file_name("catenad");
        let agent = PrivateAgent::start(&program, interrupt)?;
        let voice = Voice { quiet };
        voice.say(&format!("A private agent runs in {}.", agent.root().display()));
        Ok(Self { agent, interrupt: interrupt.clone(), voice, steps: 0 })
    }

    /// Stops the agent and removes its directory.
    pub(super) fn close(self) -> Result<()> {
        self.agent.stop()
    }

    /// The last lines of the agent's log.
    pub(super) fn agent_log(&self) -> String {
        self.agent.log_tail()
    }

    pub(super) const fn voice(&self) -> Voice {
        self.voice
    }

    /// Makes a directory below the agent's.
    pub(super) fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.agent.root().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A path for a scratch file.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.agent.root().join(name)
    }

    /// Begins a step.
    pub(super) fn title(&mut self, text: &str) {
        self.steps += 1;
        self.voice.say(&format!("\n{}. {text}", self.steps));
    }

    /// Prints a command, runs it, prints what it prints. It has to exit with 0.
    pub(super) fn run(&self, line: &[&str]) -> Result<String> {
        self.run_as(&line.join(" "), line)
    }

    /// The same, for a command that is too long to print as it is.
    pub(super) fn run_as(&self, shown: &str, line: &[&str]) -> Result<String> {
        self.voice.say(&format!("$ catena {shown}"));
        let text = self.succeed(line, self.voice)?;
        if !text.is_empty() {
            self.voice.say(&abridged(text.trim_end()));
        }
        Ok(text)
    }

    /// Runs a command without a word about it.
    pub(super) fn quietly(&self, line: &[&str]) -> Result<String> {
        self.succeed(line, Voice { quiet: true })
    }

    fn succeed(&self, line: &[&str], voice: Voice) -> Result<String> {
        let named = || format!("`catena {}`", line[..line.len().min(4)].join(" "));
        match self.execute(line, voice).with_context(named)? {
            (Exit::OK, text) => Ok(text),
            (Exit(code), text) => bail!("{} exited with {code}: {text}", named()),
        }
    }

    /// The JSON document that a command prints.
    pub(super) fn json(&self, line: &[&str]) -> Result<Value> {
        let text = self.quietly(&[&["--json"], line].concat())?;
        serde_json::from_str(&text).with_context(|| format!("`catena {}` printed no JSON", line.join(" ")))
    }

    /// A number of the JSON document that a command prints.
    pub(super) fn number(&self, line: &[&str], field: &str) -> Result<u64> {
        self.json(line)?[field].as_u64().ok_or_else(|| anyhow!("{field} is missing in `{}`", line.join(" ")))
    }

    /// Prints and runs a command that has to be refused; returns why it was.
    pub(super) fn refused(&self, line: &[&str]) -> Result<Failure> {
        self.voice.say(&format!("$ catena {}", line.join(" ")));
        let error = match self.execute(line, self.voice) {
            Ok(_) => bail!("`catena {}` was not refused", line.join(" ")),
            Err(error) => error.downcast::<CliError>()?,
        };
        match error {
            CliError::Failure(failure) => {
                let error = CliError::Failure(failure.clone());
                self.voice.say(&format!("{}(exit code {})", error.render(false), error.exit_code()));
                Ok(failure)
            }
            other => Err(other.into()),
        }
    }

    /// Exports a disk, snapshot or base copy and compares its content with `sha256`.
    pub(super) fn verify(&self, what: &str, vdi: &str, sha256: &str) -> Result<()> {
        let file = self.scratch("export.raw");
        self.quietly(&["vdi", "export", vdi, text(&file)?])?;
        let found = hash::of_file(&file)?;
        fs::remove_file(&file).context("cannot remove the export")?;
        ensure!(found == sha256, "{what} ({vdi}) reads {found} and should read {sha256}");
        self.voice.say(&format!("{what}: SHA-256 {}... as it should be", &found[..16]));
        Ok(())
    }

    fn execute(&self, line: &[&str], voice: Voice) -> Result<(Exit, String)> {
        self.interrupt.check(Patience::FirstSignal)?;
        let root = text(self.agent.root())?;
        let cli = Cli::try_parse_from([&["catena", "--root", root], line].concat())?;
        let mut out = Output::new(cli.global.json, voice.quiet);
        let exit = crate::execute(cli, &self.interrupt, &mut out)?;
        Ok((exit, out.take()))
    }
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))
}

/// The first and last lines of a long text.
fn abridged(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= SHOWN_LINES {
        return text.to_owned();
    }
    let hidden = lines.len() - SHOWN_LINES + 1;
    let head = lines[..SHOWN_LINES - 3].join("\n");
    format!("{head}\n... {hidden} more lines ...\n{}", lines[lines.len() - 2..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_outputs_keep_their_ends() {
        let text = |count: usize| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!(abridged(&text(12)), text(12));
        assert_eq!(abridged(&text(41)), "1\n2\n3\n4\n5\n6\n7\n8\n9\n... 30 more lines ...\n40\n41");
    }
}
