//! Where a command's data goes: a buffer that becomes stdout when the command has succeeded.
//!
//! Everything said besides the data goes to stderr at once, unless `--quiet` or `--json` ask for silence.

pub(crate) mod dot;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod record;
pub(crate) mod table;
pub(crate) mod tree;

use crate::errors::CliError;
use catena_rpc::Text;
use progress::Progress;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// The output of one command.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    data: String,
}

impl Output {
    /// An empty output.
    pub(crate) const fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, data: String::new() }
    }

    /// Whether one JSON document is wanted.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether only data and errors are wanted.
    pub(crate) const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The result of a command: `document` as JSON, or what `text` makes of it.
    pub(crate) fn show(
        &mut self,
        document: &Value,
        text: impl FnOnce() -> Result<String, CliError>,
    ) -> Result<(), CliError> {
        if self.json {
            self.data.push_str(&json::document(document)?);
        } else {
            self.data.push_str(&text()?);
        }
        Ok(())
    }

    /// The same for a long document, which is looked into only where people read.
    pub(crate) fn show_text(
        &mut self,
        document: &Text,
        text: impl FnOnce(&Value) -> Result<String, CliError>,
    ) -> Result<(), CliError> {
        self.data.push_str(&if self.json { json::text(document)? } else { text(&document.value())? });
        Ok(())
    }

    /// Adds plain data.
    pub(crate) fn push(&mut self, text: &str) {
        self.data.push_str(text);
    }

    /// Says something to the person at the terminal.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            eprintln!("{text}");
        }
    }

    /// A progress line, which stays invisible where nobody looks.
    pub(crate) fn progress(&self) -> Progress {
        let wanted = !self.quiet && !self.json && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Progress::new(wanted && io::stderr().is_terminal())
    }

    /// What has been collected, taken out.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.data)
    }

    /// Writes what has been collected to stdout. A reader who has seen enough is no error.
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        self.stream().map(drop)
    }

    /// The same for a command that goes on printing; whether anybody still reads.
    pub(crate) fn stream(&mut self) -> Result<bool, CliError> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(self.take().as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(CliError::Stdout(error)),
        }
    }
}

/// A label for a terminal: whatever could move the cursor is replaced.
pub(crate) fn printable(label: &str) -> String {
    label.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
