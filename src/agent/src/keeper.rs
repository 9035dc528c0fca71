//! The link to one keeper: requests out, answers back by their ids, events on the side.
//!
//! Nobody ever waits for a keeper to *take* a request: a thread of the link sends what stands in a bounded queue, so a keeper
//! that reads no more costs its callers an error or their own time-out, never the front. When the link ends, every request
//! that is under way learns at once that its outcome is unknown.

use catena_rpc::{Id, Message, Reader, Request, Text, Writer};
use catena_types::{ErrorName, Failure};
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

/// How many requests may wait to be sent.
const QUEUE: usize = 256;

/// Why a keeper gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The keeper refused or failed.
    #[error("{0}")]
    Refused(Failure),
    /// The keeper was gone before the request was sent: nothing was done.
    #[error("its keeper is gone")]
    Gone,
    /// The keeper ended while the request was under way: whether it was carried out is unknown.
    #[error("its keeper ended while the request was under way")]
    Died,
    /// No answer in time, or too many requests wait already.
    #[error("its keeper does not answer")]
    Silent,
}

impl CallError {
    /// As the client of the SR `sr` gets it.
    pub(crate) fn into_failure(self, sr: impl std::fmt::Display) -> Failure {
        let why = self.to_string();
        let failure = match self {
            Self::Refused(failure) => return failure,
            Self::Gone => Failure::new(ErrorName::SrUnavailable, format!("SR {sr}: {why}"))
                .hint("try again: it is being restarted"),
            Self::Died => {
                Failure::new(ErrorName::SrUnavailable, format!("SR {sr}: {why}; the outcome is unknown"))
                    .hint("repeat the request with the same request_id, or look what was done")
            }
            Self::Silent => Failure::new(ErrorName::SrUnavailable, format!("SR {sr}: {why}"))
                .hint("its storage may hang; see the log"),
        };
        failure.retry().object("sr", sr)
    }
}

/// A link; ends with the keeper, or when it is closed.
#[derive(Debug)]
pub(crate) struct Link {
    queue: SyncSender<(Request, Vec<OwnedFd>)>,
    writer: Writer,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    calls: Mutex<Calls>,
    ended: Condvar,
}

#[derive(Debug)]
struct Calls {
    last_id: u64,
    open: bool,
    waiting: HashMap<u64, (usize, Sender<Answer>)>,
}

/// What became of a request, with the number its sender gave it.
pub(crate) type Answer = (usize, Result<Text, CallError>);

/// A request under way; when dropped, its answer is no longer waited for.
#[derive(Debug)]
pub(crate) struct Pending {
    id: u64,
    shared: Arc<Shared>,
}

/// A request under way, and where its answer arrives.
#[derive(Debug)]
pub(crate) struct Ticket {
    _pending: Pending,
    answer: Receiver<Answer>,
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Takes up the near end of a keeper's socket. `on_event` gets the content of its `event` notifications.
    pub(crate) fn open(stream: UnixStream, on_event: impl Fn(&Value) + Send + 'static) -> io::Result<Self> {
        let (reader, writer) = catena_rpc::split_for_answers(stream);
        let calls = Calls { last_id: 0, open: true, waiting: HashMap::new() };
        let shared = Arc::new(Shared { calls: Mutex::new(calls), ended: Condvar::new() });
        let (queue, requests) = sync_channel(QUEUE);
        let (sender, receiver) = (writer.clone(), Arc::clone(&shared));
        thread::Builder::new().name("to keeper".into()).spawn(move || send_all(&requests, &sender))?;
        let end = writer.clone();
        thread::Builder::new().name("from keeper".into()).spawn(move || {
            receive_all(reader, &receiver, on_event);
            end.shutdown();
            let mut calls = receiver.calls();
            calls.open = false;
            // Who waits sees its channel end.
            calls.waiting.clear();
            receiver.ended.notify_all();
        })?;
        Ok(Self { queue, writer, shared })
    }

    /// Sends a request with its descriptors, without waiting for anything.
    pub(crate) fn begin(&self, method: &str, params: Value, fds: Vec<OwnedFd>) -> Result<Ticket, CallError> {
        let (answers, answer) = channel();
        Ok(Ticket { _pending: self.begin_as(0, method, params, fds, answers)?, answer })
    }

    /// The same for one of several requests, whose answers arrive in one channel, each with the request's `number`. A
    /// keeper that ends drops its sender.
    pub(crate) fn begin_as(
        &self,
        number: usize,
        method: &str,
        params: Value,
        fds: Vec<OwnedFd>,
        answers: Sender<Answer>,
    ) -> Result<Pending, CallError> {
        let mut calls = self.shared.calls();
        if !calls.open {
            return Err(CallError::Gone);
        }
        calls.last_id += 1;
        let id = calls.last_id;
        let request = Request { id: Id::Number(id), method: method.to_owned(), params };
        // Under the lock, so that requests are sent in the order of their ids.
        self.queue.try_send((request, fds)).map_err(|error| match error {
            TrySendError::Full(_) => CallError::Silent,
            TrySendError::Disconnected(_) => CallError::Gone,
        })?;
        calls.waiting.insert(id, (number, answers));
        drop(calls);
        Ok(Pending { id, shared: Arc::clone(&self.shared) })
    }

    /// Sends a request and waits for its answer, for at most `patience` where there is one.
    pub(crate) fn call(
        &self,
        method: &str,
        params: Value,
        fds: Vec<OwnedFd>,
        patience: Option<Duration>,
    ) -> Result<Text, CallError> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        self.begin(method, params, fds)?.wait(deadline)
    }

    /// Ends the link; the keeper sees the end of its input.
    pub(crate) fn close(&self) {
        self.writer.shutdown();
    }

    /// Waits for the end of the link, for at most `limit` where there is one; whether it has ended.
    pub(crate) fn wait_ended(&self, limit: Option<Duration>) -> bool {
        let calls = self.shared.calls();
        match limit {
            None => {
                drop(
                    self.shared
                        .ended
                        .wait_while(calls, |calls| calls.open)
                        .unwrap_or_else(PoisonError::into_inner),
                );
                true
            }
            Some(limit) => {
                let waited = self.shared.ended.wait_timeout_while(calls, limit, |calls| calls.open);
                !waited.unwrap_or_else(PoisonError::into_inner).0.open
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ticket {
    /// Waits for the answer, until `deadline` where there is one. A late answer is dropped.
    pub(crate) fn wait(self, deadline: Option<Instant>) -> Result<Text, CallError> {
        let (_, result) = match deadline {
            None => self.answer.recv().map_err(|_| CallError::Died)?,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.answer.recv_timeout(left).map_err(|error| match error {
                    RecvTimeoutError::Disconnected => CallError::Died,
                    RecvTimeoutError::Timeout => CallError::Silent,
                })?
            }
        };
        result
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.calls().waiting.remove(&self.id);
    }
}

fn send_all(requests: &Receiver<(Request, Vec<OwnedFd>)>, writer: &Writer) {
    for (request, fds) in requests {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if writer.send(&Message::Request(request), &borrowed).is_err() {
            // The receiving thread learns of it, and ends the link.
            writer.shutdown();
            return;
        }
    }
}

/// Hands answers to those who wait, until the keeper is gone or talks nonsense.
fn receive_all(mut reader: Reader, shared: &Shared, on_event: impl Fn(&Value)) {
    loop {
        let incoming = match reader.next_message() {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "the link to a keeper failed"),
        };
        match incoming.message {
            Ok(Message::Response(response)) => {
                let waiting = match response.id {
                    Id::Number(id) => shared.calls().waiting.remove(&id),
                    Id::Text(_) | Id::Null => None,
                };
                if let Some((number, answers)) = waiting {
                    // Who has lost patience meanwhile does not listen.
                    let _ = answers.send((number, response.outcome.map_err(CallError::Refused)));
                }
            }
            Ok(Message::Notification(notification)) if notification.method == "event" => {
                on_event(&notification.params);
            }
            Ok(other) => tracing::warn!(?other, "a keeper sent what the front does not know"),
            Err(failure) => return tracing::error!(%failure, "a keeper sent what is no message"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Script;
    use serde_json::json;

    #[test]
    fn answers_find_their_callers_in_any_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let link = Link::open(near, |_| {}).unwrap();
        let (mut reader, writer) = catena_rpc::split(far);
        let first = link.begin("a", json!({}), vec![]).unwrap();
        let second = link.begin("b", json!({}), vec![]).unwrap();
        let mut requests = Vec::new();
        for _ in 0..2 {
            match reader.next_message().unwrap().unwrap().message.unwrap() {
                Message::Request(request) => requests.push(request),
                other => panic!("{other:?}"),
            }
        }
        for request in requests.into_iter().rev() {
            let outcome = Ok(json!(request.method));
            writer
                .send(
                    &Message::Response(catena_rpc::Response {
                        id: request.id,
                        outcome: outcome.map(Into::into),
                    }),
                    &[],
                )
                .unwrap();
        }
        assert_eq!(first.wait(None), Ok(json!("a").into()));
        assert_eq!(second.wait(None), Ok(json!("b").into()));
        assert!(link.shared.calls().waiting.is_empty());
    }

    #[test]
    fn the_end_of_a_keeper_is_told_to_all_who_wait_and_to_all_who_come() {
        let (near, far) = UnixStream::pair().unwrap();
        let link = Link::open(near, |_| {}).unwrap();
        let ticket = link.begin("a", json!({}), vec![]).unwrap();
        drop(far);
        assert_eq!(ticket.wait(None), Err(CallError::Died));
        assert!(link.wait_ended(None));
        assert_eq!(link.call("b", json!({}), vec![], None), Err(CallError::Gone));
    }

    #[test]
    fn a_keeper_that_reads_nothing_is_silent_and_costs_no_caller_more_than_its_patience() {
        let (near, far) = UnixStream::pair().unwrap();
        let link = Link::open(near, |_| {}).unwrap();
        let params = json!({"text": "x".repeat(100_000)});
        let silent = (0..2 * QUEUE)
            .map(|_| link.call("a", params.clone(), vec![], Some(Duration::ZERO)))
            .filter(|outcome| *outcome == Err(CallError::Silent))
            .count();
        assert_eq!(silent, 2 * QUEUE);
        assert!(link.shared.calls().waiting.is_empty());
        drop(far);
    }

    #[test]
    fn descriptors_and_refusals_pass() {
        let (near, far) = UnixStream::pair().unwrap();
        let link = Link::open(near, |_| {}).unwrap();
        let script = Script::new().refuse("b", Failure::new(ErrorName::NoSpace, "full")).serve(far);
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        link.call("a", json!({"fd": 0}), vec![file], None).unwrap();
        let refused = link.call("b", json!({}), vec![], None).unwrap_err();
        assert!(matches!(&refused, CallError::Refused(failure) if failure.name == ErrorName::NoSpace));
        assert_eq!(refused.into_failure("x").message, "full");
        drop(link);
        let calls = script.join().unwrap();
        assert_eq!(calls.iter().map(|call| call.fds).collect::<Vec<_>>(), [1, 0]);
    }
}
