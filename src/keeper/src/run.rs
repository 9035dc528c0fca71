//! The program: its arguments, its socket, its two threads.

use crate::owner::{Call, Mail, Owner};
use crate::published::Board;
use crate::start::{Begun, Starter};
use crate::{crash, figures, lookup};
use anyhow::Context;
use catena_rpc::{Incoming, Message, Reader, Response, Text, Writer, split};
use catena_sr_api::Plugin;
use clap::Parser;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// The owner of one SR. Started by catenad, spoken to over standard input; not meant to be run by hand.
#[derive(Debug, Parser)]
#[command(name = "catena-keeper", version)]
struct Arguments {
    /// Print the names that CATENA_CRASH_AT takes, one a line.
    #[arg(long)]
    list_crash_points: bool,
}

/// Runs the keeper with these back ends until its front has gone.
pub fn run(plugins: &'static [&'static dyn Plugin]) -> ExitCode {
    catena_types::arm_crash_points();
    if Arguments::parse().list_crash_points {
        for point in crash::all().chain(plugins.iter().flat_map(|plugin| plugin.crash_points())) {
            println!("{}", point.0);
        }
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("CATENA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match serve(plugins) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(plugins: &'static [&'static dyn Plugin]) -> anyhow::Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be used")?;
    let (mut reader, front) = split(UnixStream::from(stdin));
    let (mailbox, mail) = channel();
    let Some(owner) = begin(plugins, &mut reader, &front, &mailbox)? else { return Ok(()) };
    // Recovery has changed things since the board was made, and the reader is quicker than the owner.
    owner.publish();
    let board = Arc::clone(&owner.board);
    std::thread::spawn(move || read(reader, &front, &board, &mailbox));
    owner.run(&mail);
    Ok(())
}

/// Speaks with the front until an SR is open; `None` where the front wanted no more than to look.
fn begin(
    plugins: &'static [&'static dyn Plugin],
    reader: &mut Reader,
    front: &Writer,
    mailbox: &Sender<Mail>,
) -> anyhow::Result<Option<Owner>> {
    let mut starter = Starter::new(plugins, mailbox.clone(), front.clone());
    while let Some(Incoming { message, .. }) = reader.next_message().context("the front cannot be heard")? {
        let Ok(Message::Request(request)) = message else { continue };
        let begun = starter.step(&request);
        let (outcome, owner) = match begun {
            Ok(Begun::Said(value)) => (Ok(value), None),
            Ok(Begun::Opened(value, owner)) => (Ok(value), Some(owner)),
            Err(failure) => (Err(failure), None),
        };
        front
            .send(&Message::Response(Response { id: request.id, outcome: outcome.map(Text::from) }), &[])
            .context("the front has gone")?;
        if let Some(owner) = owner {
            return Ok(Some(*owner));
        }
    }
    Ok(None)
}

/// Answers lists and records from the snapshot and mails everything else to the owner.
fn read(mut reader: Reader, front: &Writer, board: &Arc<Board>, mailbox: &Sender<Mail>) {
    while let Ok(Some(Incoming { message, fds })) = reader.next_message() {
        let Ok(Message::Request(request)) = message else { continue };
        if figures::take_up(board, &request, front, mailbox) {
            continue;
        }
        if let Some(outcome) = lookup::answer(&board.read(), &request) {
            let response = Message::Response(Response { id: request.id, outcome });
            if front.send(&response, &[]).is_err() {
                break;
            }
        } else if mailbox.send(Mail::Call(Call { request, fds })).is_err() {
            return;
        }
    }
    // Without an owner there is nobody left to tell.
    let _ = mailbox.send(Mail::FrontGone);
}
