//! Events from keepers to the connections that subscribed.
//!
//! A keeper never waits for a client: each subscriber has a queue of [`QUEUE`] events and a thread that sends them. One whose
//! queue is full is dropped: it gets what was queued, then an `error` notification, and its connection is closed, so that it
//! knows to ask `Event.list` for what it missed.

use catena_rpc::{Message, Notification, Writer};
use catena_types::{ErrorName, Failure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How many events may wait for one subscriber.
const QUEUE: usize = 1024;

/// The subscribers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    last: u64,
    queues: BTreeMap<u64, SyncSender<Value>>,
}

/// A connection's wish to get events; ends when dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    number: u64,
}

impl Hub {
    /// Sends every event from now on to the connection, until the subscription is dropped.
    pub(crate) fn subscribe(self: &Arc<Self>, writer: Writer) -> io::Result<Subscription> {
        let (queue, events) = sync_channel(QUEUE);
        thread::Builder::new().name("events".to_owned()).spawn(move || forward(&events, &writer))?;
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.last += 1;
        let number = subscribers.last;
        subscribers.queues.insert(number, queue);
        Ok(Subscription { hub: Arc::clone(self), number })
    }

    /// Queues an event for every subscriber. Never waits.
    pub(crate) fn publish(&self, event: &Value) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.queues.retain(|number, queue| match queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!(subscriber = number, "a subscriber is too slow and is dropped");
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.hub.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.queues.remove(&self.number);
    }
}

/// The thread of one subscriber. The queue ends when the subscriber was dropped, or is gone and hears no more anyway.
fn forward(events: &Receiver<Value>, writer: &Writer) {
    let tell = |method: &str, params: Value| {
        writer.send(&Message::Notification(Notification { method: method.to_owned(), params }), &[])
    };
    let mut alive = true;
    for event in events {
        alive = tell("event", event).is_ok();
        if !alive {
            break;
        }
    }
    if alive {
        let failure =
            Failure::new(ErrorName::TryAgain, "events came faster than they were read, some are lost")
                .hint("subscribe again and ask Event.list for what was missed");
        // A client that is gone needs no explanation.
        let _ = tell("error", serde_json::to_value(failure).unwrap_or_default());
    }
    writer.shutdown();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixStream;

    fn connection() -> (catena_rpc::Reader, Writer) {
        let (near, far) = UnixStream::pair().unwrap();
        (catena_rpc::split(far).0, catena_rpc::split(near).1)
    }

    fn next(reader: &mut catena_rpc::Reader) -> Option<Notification> {
        match reader.next_message().unwrap()?.message.unwrap() {
            Message::Notification(notification) => Some(notification),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_subscriber_gets_every_event_until_it_leaves() {
        let hub = Arc::new(Hub::default());
        let (mut one, one_writer) = connection();
        let (mut two, two_writer) = connection();
        let _first = hub.subscribe(one_writer).unwrap();
        let second = hub.subscribe(two_writer).unwrap();
        hub.publish(&json!({"id": 1}));
        assert_eq!(next(&mut one).unwrap().params, json!({"id": 1}));
        assert_eq!(next(&mut two).unwrap().params, json!({"id": 1}));
        drop(second);
        hub.publish(&json!({"id": 2}));
        assert_eq!(next(&mut one).unwrap().params, json!({"id": 2}));
        assert_eq!(next(&mut two).unwrap().method, "error");
        assert_eq!(next(&mut two), None);
    }

    #[test]
    fn a_slow_subscriber_is_dropped_with_an_error_and_never_waited_for() {
        let hub = Arc::new(Hub::default());
        let (mut slow, writer) = connection();
        let _subscription = hub.subscribe(writer).unwrap();
        // The socket itself takes some hundred KiB before the queue fills.
        let text = "x".repeat(4096);
        for id in 0..QUEUE + 500 {
            hub.publish(&json!({"id": id, "text": text}));
        }
        assert!(hub.subscribers.lock().unwrap().queues.is_empty());
        let mut got = 0;
        let last = loop {
            let notification = next(&mut slow).unwrap();
            if notification.method != "event" {
                break notification;
            }
            assert_eq!(notification.params["id"], got);
            got += 1;
        };
        assert!(got >= QUEUE);
        assert_eq!(last.params["name"], "try_again");
        assert_eq!(next(&mut slow), None);
    }
}
