//! The program: its arguments, and the worker's loop.

use crate::{crash, privileges, serve, worker};
use anyhow::Context;
use catena_control::Channel;
use clap::{Parser, Subcommand};
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Handles image bytes for a keeper. Started by catena-keeper; not meant to be run by hand.
#[derive(Debug, Parser)]
#[command(name = "catena-datapath", version, arg_required_else_help = true)]
struct Arguments {
    /// Print the names that CATENA_CRASH_AT takes, one a line.
    #[arg(long)]
    list_crash_points: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Take requests over the socketpair on standard input.
    Worker,
    /// Serve one disk over NBD, with the descriptors of these numbers.
    Serve(Box<serve::Arguments>),
}

/// Runs the program.
pub fn main() -> ExitCode {
    catena_types::arm_crash_points();
    let arguments = Arguments::parse();
    if arguments.list_crash_points {
        for point in crash::ALL {
            println!("{}", point.0);
        }
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("CATENA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let result = match arguments.role {
        Some(Role::Worker) => work(),
        Some(Role::Serve(arguments)) => serve::run(&arguments),
        None => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> anyhow::Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be used")?;
    privileges::drop_privileges().context("privileges cannot be dropped")?;
    worker::serve(&Channel::from_fd(stdin)).context("the keeper cannot be heard")
}
