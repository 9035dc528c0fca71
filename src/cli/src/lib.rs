//! The command line: a thin client of the agent's socket.
//!
//! `catena NOUN VERB` is parsed (`args`), asked of the agent (`client`, `jobs`), and shown as text or as one JSON document
//! (`output`). stdout carries data only and is written once, when the command has succeeded; talk and errors go to stderr.
//! The command line opens the files that images are read from and written to; the agent is handed descriptors. Called by
//! `src/bin/catena.rs` and, with captured output, by the demonstration.

mod args;
mod client;
mod commands;
mod complete;
mod demo;
mod errors;
mod examples;
mod files;
mod grammar;
mod interrupt;
mod jobs;
mod output;
#[cfg(test)]
mod testing;
mod times;

use args::{Cli, Noun};
use client::Client;
use errors::{CliError, Exit};
use interrupt::Interrupt;
use output::Output;
use std::process::ExitCode;

/// Runs the command line of this process and says how it is to exit.
pub fn main() -> ExitCode {
    complete::answer_shell();
    let cli = match grammar::parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help goes to stdout with 0, a usage error (and help that nobody asked for) to stderr with 2.
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 2 } else { 0 });
        }
    };
    let json = cli.global.json;
    let mut out = Output::new(json, cli.global.quiet);
    let done = Interrupt::install()
        .and_then(|interrupt| execute(cli, &interrupt, &mut out))
        .and_then(|exit| out.flush().map(|()| exit));
    match done {
        Ok(Exit(code)) => ExitCode::from(code),
        Err(error) => {
            eprint!("{}", error.render(json));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Does what `cli` asks; the data for stdout is left in `out`.
fn execute(cli: Cli, interrupt: &Interrupt, out: &mut Output) -> Result<Exit, CliError> {
    let socket = cli.global.socket_path(std::env::var_os("CATENA_SOCKET"));
    let connect = || Client::connect(&socket, interrupt);
    match cli.noun {
        Noun::Sr(command) => commands::sr::run(command, &mut connect()?, out),
        Noun::Vdi(command) => commands::vdi::run(command, &mut connect()?, out),
        Noun::Coalesce(command) => commands::coalesce::run(command, &mut connect()?, out),
        Noun::Job(command) => commands::job::run(command, &mut connect()?, out),
        Noun::Event(command) => commands::event::run(&command, &mut connect()?, out),
        Noun::Generate(command) => commands::generate::run(&command, out),
        Noun::Demo => demo::run(interrupt, out),
    }
}
