//! One connection to the agent: requests out, answers matched by their id, several under way if need be.
//!
//! The socket has a short read time-out, so that a wait notices signals. Used by every command.

use crate::errors::CliError;
use crate::interrupt::{Interrupt, Patience};
use catena_rpc::{Id, Message, Notification, Reader, Reply, Request, Text, WireError, Writer};
use catena_types::{ErrorName, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a signal may go unnoticed.
const TICK: Duration = Duration::from_millis(100);

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Client {
    reader: Reader,
    writer: Writer,
    last_id: u64,
    /// Answers that came while another was waited for.
    early: HashMap<u64, Reply>,
    /// What the agent told unasked, oldest first.
    news: VecDeque<Notification>,
    interrupt: Interrupt,
}

/// A request that was sent; its answer can be waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket(u64);

impl Client {
    /// Connects to the socket. No agent there is `sr_unavailable`, with a hint how to start one.
    pub(crate) fn connect(socket: &Path, interrupt: &Interrupt) -> Result<Self, CliError> {
        let (reader, writer) = catena_rpc::connect(socket).map_err(|error| no_agent(socket, &error))?;
        reader.stream().set_read_timeout(Some(TICK)).map_err(|error| broken(&error))?;
        Ok(Self {
            reader,
            writer,
            last_id: 0,
            early: HashMap::new(),
            news: VecDeque::new(),
            interrupt: interrupt.clone(),
        })
    }

    /// Asks and waits for the answer; a signal ends the wait.
    pub(crate) fn call(&mut self, method: &str, params: &impl Serialize) -> Result<Value, CliError> {
        self.call_for_text(method, params).map(|text| text.value())
    }

    /// The same for a long answer, which is not looked into.
    pub(crate) fn call_for_text(&mut self, method: &str, params: &impl Serialize) -> Result<Text, CliError> {
        let ticket = self.start(method, params, &[])?;
        self.finish(ticket, Patience::FirstSignal)
    }

    /// Asks, passing descriptors along, and waits for the answer even after a first signal: for what must not be left
    /// without knowing what became of it.
    pub(crate) fn call_to_end(
        &mut self,
        method: &str,
        params: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, CliError> {
        let ticket = self.start(method, params, fds)?;
        self.finish(ticket, Patience::SecondSignal).map(|text| text.value())
    }

    /// Sends a request.
    pub(crate) fn start(
        &mut self,
        method: &str,
        params: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Ticket, CliError> {
        self.last_id += 1;
        let params = serde_json::to_value(params).map_err(CliError::bad_answer)?;
        let request = Request { id: Id::Number(self.last_id), method: method.to_owned(), params };
        self.writer.send(&Message::Request(request), fds).map_err(|error| broken(&error))?;
        Ok(Ticket(self.last_id))
    }

    /// Waits for the answer for at most `limit`; `None` if it has not come.
    pub(crate) fn wait(&mut self, ticket: Ticket, limit: Duration) -> Result<Option<Value>, CliError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(outcome) = self.early.remove(&ticket.0) {
                return outcome.map(|text| Some(text.value())).map_err(CliError::from);
            }
            self.interrupt.check(Patience::FirstSignal)?;
            if Instant::now() >= end {
                return Ok(None);
            }
            self.receive()?;
        }
    }

    fn finish(&mut self, ticket: Ticket, patience: Patience) -> Result<Text, CliError> {
        loop {
            if let Some(outcome) = self.early.remove(&ticket.0) {
                return outcome.map_err(CliError::from);
            }
            self.interrupt.check(patience)?;
            self.receive()?;
        }
    }

    /// Waits for the next event after `Event.subscribe`; a signal ends the wait.
    pub(crate) fn next_event(&mut self) -> Result<Value, CliError> {
        loop {
            match self.news.pop_front() {
                Some(news) if news.method == "event" => return Ok(news.params),
                // The agent says why it will tell no more.
                Some(news) if news.method == "error" => return Err(read::<Failure>(&news.params)?.into()),
                Some(_) => {}
                None => {
                    self.interrupt.check(Patience::FirstSignal)?;
                    self.receive()?;
                }
            }
        }
    }

    /// Takes in one message, or none within a tick.
    fn receive(&mut self) -> Result<(), CliError> {
        match self.reader.next_message() {
            Ok(Some(incoming)) => match incoming.message {
                Ok(Message::Response(response)) => match (response.id, response.outcome) {
                    (Id::Number(id), outcome) => {
                        self.early.insert(id, outcome);
                        Ok(())
                    }
                    // The agent could not read an id: what it refuses is the connection or its last line.
                    (_, Err(failure)) => Err(failure.into()),
                    (_, Ok(_)) => Ok(()),
                },
                Ok(Message::Notification(news)) => {
                    self.news.push_back(news);
                    Ok(())
                }
                Ok(_) => Ok(()),
                Err(failure) => Err(CliError::bad_answer(failure)),
            },
            Ok(None) => Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(WireError::Io(error)) => Err(broken(&error)),
            Err(error) => Err(CliError::bad_answer(error)),
        }
    }

    /// The signals of this process.
    pub(crate) const fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// Reads a document; what does not fit is an error that names the field.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, CliError> {
    T::deserialize(value).map_err(CliError::bad_answer)
}

/// Reads one field of a document.
pub(crate) fn read_field<T: DeserializeOwned>(value: &Value, field: &str) -> Result<T, CliError> {
    read(value.get(field).unwrap_or(&Value::Null))
}

fn no_agent(socket: &Path, error: &io::Error) -> CliError {
    let hint = if error.kind() == io::ErrorKind::PermissionDenied {
        "root and the members of the group catena may use it"
    } else {
        "start it with `systemctl start catenad`, or name its socket with --socket or --root"
    };
    let message = format!("no agent answers at {}: {error}", socket.display());
    Failure::new(ErrorName::SrUnavailable, message).hint(hint).retry().into()
}

fn broken(error: &io::Error) -> CliError {
    Failure::new(ErrorName::SrUnavailable, format!("the connection to the agent ended: {error}"))
        .hint("the outcome is not known: look with `catena job list` before you repeat the command")
        .retry()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeAgent;
    use serde_json::json;

    #[test]
    fn nobody_at_the_socket_exits_3_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let error = Client::connect(&dir.path().join("none"), &Interrupt::default()).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.render(false).contains("hint: start it with `systemctl start catenad`"));
    }

    #[test]
    fn answers_may_come_in_any_order() {
        let mut held = None;
        let agent = FakeAgent::with_replies(move |request, reply| {
            if request.method == "slow" {
                held = Some(request.id);
            } else {
                if let Some(id) = held.take() {
                    reply(id, Ok(json!("slow")));
                }
                reply(request.id, Ok(json!("fast")));
            }
        });
        let mut client = agent.client();
        let slow = client.start("slow", &json!({}), &[]).unwrap();
        assert!(client.wait(slow, Duration::ZERO).unwrap().is_none());
        assert_eq!(client.call("fast", &json!({})).unwrap(), json!("fast"));
        assert_eq!(client.wait(slow, Duration::ZERO).unwrap(), Some(json!("slow")));
    }

    #[test]
    fn a_signal_ends_a_wait_and_the_end_of_the_agent_too() {
        let agent = FakeAgent::with_replies(|_, _| {});
        let mut client = agent.client();
        client.interrupt().raise();
        assert!(matches!(client.call("x", &json!({})), Err(CliError::Interrupted)));
        client.interrupt().raise();
        assert!(matches!(client.call_to_end("x", &json!({}), &[]), Err(CliError::Interrupted)));

        let mut client = agent.client();
        drop(agent);
        assert_eq!(client.call("x", &json!({})).unwrap_err().exit_code(), 3);
    }
}
