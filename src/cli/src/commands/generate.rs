//! `catena generate ...`: what is made of the grammar for packages. Hidden; no agent is asked.

use crate::complete;
use crate::errors::{CliError, Exit};
use crate::grammar::grammar;
use crate::output::Output;
use clap::{Args, Subcommand};
use clap_complete::env::Shells;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The shells and the files where they look for completions of `catena`.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "catena"), ("zsh", "_catena"), ("fish", "catena.fish")];

/// The verbs of `generate`.
#[derive(Debug, Subcommand)]
pub(crate) enum GenerateCommand {
    /// Write a manual page for each command
    Man(Into),
    /// Write completions for bash (catena), zsh (_catena) and fish (catena.fish)
    Completions(Into),
    /// Print the JSON Schema of the wire
    Schema,
}

/// Where to.
#[derive(Debug, Args)]
pub(crate) struct Into {
    /// A directory, made if need be
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Does what `command` says.
pub(crate) fn run(command: &GenerateCommand, out: &mut Output) -> Result<Exit, CliError> {
    match command {
        GenerateCommand::Man(Into { directory }) => write_into(directory, man)?,
        GenerateCommand::Completions(Into { directory }) => write_into(directory, completions)?,
        GenerateCommand::Schema => {
            let schema = catena_rpc::schema();
            out.show(&schema, || {
                serde_json::to_string_pretty(&schema).map(|text| text + "\n").map_err(CliError::bad_answer)
            })?;
        }
    }
    Ok(Exit::OK)
}

fn write_into(directory: &Path, write: fn(&Path) -> io::Result<()>) -> Result<(), CliError> {
    fs::create_dir_all(directory)
        .and_then(|()| write(directory))
        .map_err(|error| CliError::file("write into", directory, &error))
}

fn man(directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(grammar(), directory)
}

/// Short scripts that ask the program itself while the user types.
fn completions(directory: &Path) -> io::Result<()> {
    let shells = Shells::builtins();
    for (name, file) in COMPLETIONS {
        let shell = shells.completer(name).ok_or(io::ErrorKind::Unsupported)?;
        let mut script = Vec::new();
        shell.write_registration(complete::VARIABLE, "catena", "catena", "catena", &mut script)?;
        fs::write(directory.join(file), script)?;
    }
    Ok(())
}
