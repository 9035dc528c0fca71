//! For the tests: keepers that are threads and follow a script.

use crate::events::Hub;
use crate::front::Front;
use crate::launch::{Launcher, Starter};
use crate::srd::{SrEntry, Store};
use crate::supervise::Sr;
use crate::table::Table;
use catena_rpc::{Message, Notification, Outcome, Response};
use catena_types::{Failure, SrUuid};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// What a keeper does with a method.
#[derive(Debug, Clone)]
enum Act {
    Answer(Outcome),
    Ignore,
    Die,
    Tell(Value),
}

/// A request that a keeper got.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) params: Value,
    pub(crate) fds: usize,
}

/// What a keeper does. Without a word on a method it answers `{}`; `SR.detach` and `SR.destroy` end it, unless refused.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    acts: BTreeMap<String, Act>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn answer(mut self, method: &str, result: Value) -> Self {
        self.acts.insert(method.to_owned(), Act::Answer(Ok(result)));
        self
    }

    pub(crate) fn refuse(mut self, method: &str, failure: Failure) -> Self {
        self.acts.insert(method.to_owned(), Act::Answer(Err(failure)));
        self
    }

    pub(crate) fn ignore(mut self, method: &str) -> Self {
        self.acts.insert(method.to_owned(), Act::Ignore);
        self
    }

    pub(crate) fn die(mut self, method: &str) -> Self {
        self.acts.insert(method.to_owned(), Act::Die);
        self
    }

    /// Answers `{}`, after an event.
    pub(crate) fn tell(mut self, method: &str, event: Value) -> Self {
        self.acts.insert(method.to_owned(), Act::Tell(event));
        self
    }

    /// What its keepers got so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The names of the methods that its keepers got so far.
    pub(crate) fn methods(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.method).collect()
    }

    /// Follows the script until the socket ends; returns what was asked.
    pub(crate) fn serve(&self, stream: UnixStream) -> JoinHandle<Vec<Call>> {
        let script = self.clone();
        thread::spawn(move || {
            script.follow(stream);
            script.calls()
        })
    }

    fn follow(&self, stream: UnixStream) {
        let (mut reader, writer) = catena_rpc::split(stream);
        while let Ok(Some(incoming)) = reader.next_message() {
            let Ok(Message::Request(request)) = incoming.message else { panic!("{incoming:?}") };
            let (method, params) = (request.method, request.params);
            self.calls.lock().unwrap().push(Call { method: method.clone(), params, fds: incoming.fds.len() });
            let outcome = match self.acts.get(&method) {
                Some(Act::Die) => return,
                Some(Act::Ignore) => continue,
                Some(Act::Answer(outcome)) => outcome.clone(),
                Some(Act::Tell(event)) => {
                    let event = Notification { method: "event".into(), params: event.clone() };
                    writer.send(&Message::Notification(event), &[]).unwrap();
                    Ok(json!({}))
                }
                None => Ok(json!({})),
            };
            let ends = outcome.is_ok() && matches!(&*method, "SR.detach" | "SR.destroy" | "Keeper.end");
            let sent = writer
                .send(&Message::Response(Response { id: request.id, outcome: outcome.map(Into::into) }), &[]);
            if ends || sent.is_err() {
                return;
            }
        }
    }
}

/// Starts threads that follow the scripts, one after the other, the last one for ever.
#[derive(Debug)]
pub(crate) struct Scripts(Mutex<VecDeque<Script>>);

impl Launcher for Scripts {
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)> {
        let (near, far) = UnixStream::pair()?;
        let mut scripts = self.0.lock().unwrap();
        let script = if scripts.len() > 1 { scripts.pop_front() } else { scripts.front().cloned() };
        script.ok_or(io::ErrorKind::NotFound)?.serve(far);
        Ok((near, None))
    }
}

/// Starts keepers that follow the scripts.
pub(crate) fn starter(scripts: impl IntoIterator<Item = Script>) -> Arc<Starter> {
    Arc::new(Starter {
        groups: false,
        run_dir: std::path::PathBuf::new(),
        socket_group: None,
        launcher: Box::new(Scripts(Mutex::new(scripts.into_iter().collect()))),
        host_id: "host".into(),
        boot_id: "boot".into(),
        hub: Arc::new(Hub::default()),
    })
}

/// What is known of an SR of that name.
pub(crate) fn entry(label: &str) -> SrEntry {
    SrEntry {
        uuid: SrUuid::random(),
        kind: "file".into(),
        name_label: label.into(),
        location: format!("/srv/{label}"),
        on_devices: false,
        attach: true,
        made_by: None,
    }
}

/// A detached SR.
pub(crate) fn detached(label: &str) -> Arc<Sr> {
    Arc::new(Sr::new(entry(label)))
}

/// An SR whose keeper follows the script.
pub(crate) fn attached(label: &str, script: Script) -> Arc<Sr> {
    let sr = detached(label);
    sr.start(&starter([script]), false).unwrap();
    sr.wait_started().unwrap();
    sr
}

/// A front without SRs whose keepers will follow the scripts, and its directory.
pub(crate) fn bare_front(scripts: impl IntoIterator<Item = Script>) -> (Front, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let front = Front {
        private: false,
        skipped: Vec::new(),
        table: Table::default(),
        store: Store::open(&directory.path().join("sr.d")).unwrap(),
        starter: starter(scripts),
        started: Instant::now(),
        connections: Arc::default(),
        stopping: false.into(),
    };
    (front, directory)
}

/// The same, with attached SRs "a", "b", ...: one for each script.
pub(crate) fn front<const N: usize>(scripts: [Script; N]) -> (Front, tempfile::TempDir) {
    let (front, directory) = bare_front(scripts);
    for label in ["a", "b", "c"].into_iter().take(N) {
        let sr = detached(label);
        front.store.save(&sr.entry()).unwrap();
        front.table.insert(&sr);
        sr.start(&front.starter, false).unwrap();
        sr.wait_started().unwrap();
    }
    (front, directory)
}
