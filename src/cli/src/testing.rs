//! A made-up agent for the tests of this crate: a thread behind a Unix socket in a temporary directory.

use crate::args::Cli;
use crate::client::Client;
use crate::errors::{CliError, Exit};
use crate::interrupt::Interrupt;
use crate::output::Output;
use catena_rpc::{Id, Message, Outcome, Request, Response, split};
use clap::Parser;
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use tempfile::TempDir;

type Handler = Box<dyn FnMut(Call, &mut dyn FnMut(Id, Outcome)) + Send>;

/// A request as the made-up agent sees it.
pub(crate) struct Call {
    pub(crate) id: Id,
    pub(crate) method: String,
    pub(crate) params: Value,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What the agent's thread and its owner share.
#[derive(Default)]
struct Connections {
    closing: bool,
    open: Vec<UnixStream>,
}

/// The agent; dropping it ends its connections and its thread.
pub(crate) struct FakeAgent {
    dir: TempDir,
    connections: Arc<Mutex<Connections>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// An agent that answers every request with what `answer` makes of it.
    pub(crate) fn new(mut answer: impl FnMut(&Call) -> Outcome + Send + 'static) -> Self {
        Self::with_replies(move |call, reply| {
            let outcome = answer(&call);
            reply(call.id, outcome);
        })
    }

    /// An agent whose handler chooses which requests to answer, and when.
    pub(crate) fn with_replies(
        handler: impl FnMut(Call, &mut dyn FnMut(Id, Outcome)) + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let connections = Arc::<Mutex<Connections>>::default();
        let (shared, mut handler): (_, Handler) = (Arc::clone(&connections), Box::new(handler));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                {
                    let mut connections = shared.lock().unwrap();
                    if connections.closing {
                        return;
                    }
                    connections.open.push(stream.try_clone().unwrap());
                }
                serve(stream, &mut handler);
            }
        });
        Self { dir, connections, thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket(), &Interrupt::default()).unwrap()
    }

    /// Runs a command line against this agent: its exit code or error, and what it put on stdout.
    pub(crate) fn run(&self, arguments: &[&str]) -> (Result<Exit, CliError>, String) {
        let socket = self.socket();
        let line =
            ["catena", "--socket", socket.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
        let cli = Cli::try_parse_from(line).unwrap();
        let mut out = Output::new(cli.global.json, true);
        let done = crate::execute(cli, &Interrupt::default(), &mut out);
        (done, out.take())
    }
}

/// Answers one connection to its end.
fn serve(stream: UnixStream, handler: &mut Handler) {
    let (mut reader, writer) = split(stream);
    while let Ok(Some(incoming)) = reader.next_message() {
        let Ok(Message::Request(Request { id, method, params })) = incoming.message else { return };
        handler(Call { id, method, params, fds: incoming.fds }, &mut |id, outcome| {
            // A client that has gone away is part of some tests.
            let _ = writer.send(&Message::Response(Response { id, outcome: outcome.map(Into::into) }), &[]);
        });
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.closing = true;
        for stream in &connections.open {
            // It may have ended already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(connections);
        // Wakes the thread from `accept`; a thread that has panicked does not listen any more.
        let _ = UnixStream::connect(self.socket());
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}
