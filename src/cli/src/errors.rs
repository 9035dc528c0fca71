//! What a command can end with, and how that is told: a line and a hint on stderr, or one JSON document, and an exit code.
//!
//! The exit codes are those of [`ErrorName`]; 130 is an interruption. Used by every module of the command line.

use crate::output::json;
use catena_types::{ErrorName, Failure};
use serde_json::{Map, Value, json};
use std::io;
use std::path::Path;

/// The exit code of a command that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    /// Success.
    pub(crate) const OK: Self = Self(0);
    /// It failed.
    pub(crate) const FAILED: Self = Self(1);
    /// A check found something wrong.
    pub(crate) const NOT_CLEAN: Self = Self(7);
    /// It may work later.
    pub(crate) const TRY_AGAIN: Self = Self(75);
}

const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The agent (or the command line itself) refuses or failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// Somebody cancelled the job.
    #[error("job {0} was cancelled")]
    Cancelled(String),
    /// The data cannot be written to stdout.
    #[error("cannot write to stdout: {0}")]
    Stdout(#[source] io::Error),
    /// The demonstration found something that does not hold.
    #[error("the demonstration failed: {0}")]
    Demo(String),
}

impl CliError {
    /// A request that makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Failure::new(ErrorName::BadRequest, message).into()
    }

    /// An answer that this program cannot read.
    pub(crate) fn bad_answer(why: impl std::fmt::Display) -> Self {
        Failure::new(ErrorName::IoError, format!("the agent's answer makes no sense: {why}"))
            .hint("use the catena of the same version as catenad")
            .into()
    }

    /// A file that cannot be used.
    pub(crate) fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        Failure::new(ErrorName::IoError, format!("cannot {doing} {}: {error}", path.display())).into()
    }

    /// The exit code of the process.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Failure(failure) => failure.name.exit_code(),
            Self::Interrupted | Self::Cancelled(_) => INTERRUPTED,
            Self::Stdout(_) | Self::Demo(_) => 1,
        }
    }

    /// What goes to stderr, with its last newline.
    pub(crate) fn render(&self, json: bool) -> String {
        if json {
            // The document is an object, so this cannot fail; an empty line would still leave the exit code.
            return json::document(&self.document()).unwrap_or_default();
        }
        let mut text = format!("catena: {}\n", one_line(&self.to_string()));
        if let Self::Failure(Failure { hint, .. }) = self
            && !hint.is_empty()
        {
            text.push_str(&format!("hint: {}\n", one_line(hint)));
        }
        text
    }

    fn document(&self) -> Value {
        let error = match self {
            Self::Failure(failure) => {
                let mut error = match serde_json::to_value(failure) {
                    Ok(Value::Object(fields)) => fields,
                    _ => Map::new(),
                };
                error.insert("code".to_owned(), failure.name.code().into());
                Value::Object(error)
            }
            other => json!({"name": other.name(), "message": other.to_string()}),
        };
        json!({"error": error})
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Failure(failure) => failure.name.name(),
            Self::Interrupted => "interrupted",
            Self::Cancelled(_) => "cancelled",
            Self::Stdout(_) => "stdout",
            Self::Demo(_) => "demo",
        }
    }
}

/// Labels and paths in a message may hold anything; an error is one line and moves no cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_line_and_a_hint() {
        let error = CliError::from(
            Failure::new(ErrorName::ChainTooLong, "web01 has 30\nimages")
                .hint("catena coalesce run disks --wait"),
        );
        assert_eq!(
            error.render(false),
            "catena: web01 has 30 images\nhint: catena coalesce run disks --wait\n"
        );
        assert_eq!(error.exit_code(), 6);
        assert_eq!(CliError::bad_request("no").render(false), "catena: no\n");
    }

    #[test]
    fn exit_codes_are_those_of_the_table() {
        for (name, code) in [
            (ErrorName::SrInUse, 4),
            (ErrorName::NoSpace, 5),
            (ErrorName::VdiMissing, 3),
            (ErrorName::VdiLoad, 7),
            (ErrorName::Unsupported, 8),
            (ErrorName::BadRequest, 2),
            (ErrorName::TryAgain, 75),
            (ErrorName::IoError, 1),
        ] {
            assert_eq!(CliError::from(Failure::new(name, "x")).exit_code(), code, "{name:?}");
        }
        assert_eq!(CliError::Interrupted.exit_code(), 130);
        assert_eq!(CliError::Cancelled("a-1".to_owned()).exit_code(), 130);
    }

    #[test]
    fn an_error_document_has_the_code_and_the_version() {
        let error: CliError = Failure::new(ErrorName::NoSpace, "full").object("bytes_missing", 7).into();
        let text = error.render(true);
        assert!(text.starts_with("{\"schema_version\":1,") && text.ends_with("}\n"), "{text}");
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["error"]["name"], "no_space");
        assert_eq!(document["error"]["code"], 44);
        assert_eq!(document["error"]["objects"]["bytes_missing"], "7");
        let document: Value = serde_json::from_str(&CliError::Interrupted.render(true)).unwrap();
        assert_eq!(document["error"]["name"], "interrupted");
    }
}
