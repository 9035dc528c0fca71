//! `catena generate ...`: what is made of the grammar for packages. Hidden; no agent is asked.

use crate::complete;
use crate::errors::{CliError, Exit};
use crate::grammar::grammar;
use crate::output::Output;
use clap::{Args, Command, Subcommand};
use clap_complete::env::Shells;
use clap_mangen::Man;
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
    let mut grammar = grammar();
    grammar.build();
    pages(&grammar, "NOTES", directory)
}

/// The page of `command` and those of all below it. What stands at the end of its help is the section `last`.
fn pages(command: &Command, last: &str, directory: &Path) -> io::Result<()> {
    let page =
        Man::new(command.clone()).source(concat!("Catena ", env!("CARGO_PKG_VERSION"))).manual("Catena");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\n", &format!(".SH {last}\n"));
    fs::write(directory.join(page.get_filename()), text)?;
    let visible = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    visible.into_iter().try_for_each(|verb| pages(verb, "EXAMPLES", directory))
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
