//! The owner thread: one loop that takes mail and changes the SR. Everything that has state is in [`Owner`], and only this
//! thread has it.

use crate::adoption::Serving;
use crate::arrival::Arriving;
use crate::coalescing::Current;
use crate::demand::Demand;
use crate::failures::from_catalog;
use crate::holds::Holds;
use crate::in_use::Lingering;
use crate::long::{LongJob, News};
use crate::priority::Priority;
use crate::published::{Board, Live, SrFacts};
use crate::serving::Heard;
use crate::tree::Rows;
use crate::worker::SmallWorker;
use catena_catalog::{Catalog, Change, Error as CatalogError};
use catena_coalesce::{Candidates, Tree};
use catena_rpc::{GrowReport, Id, Message, Notification, Reply, Request, Response, ServedDisk, Writer};
use catena_sr_api::Store;
use catena_types::{Bytes, EventRecord, Failure, ImageId, JobId, JobRecord, JobState, Severity, VdiUuid};
use jiff::{Timestamp, Zoned};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// After so long without mail the catalog is tidied, where something was written.
const QUIET: Duration = Duration::from_millis(500);
/// Calls that come one behind the other keep merges, and disks whose process has died, waiting no longer than this.
const BUSY: Duration = Duration::from_millis(50);
/// Who asks for figures gets none of the storage that are older.
const FRESH: Duration = Duration::from_secs(1);
/// And so often in any case: rows expire, and the clock that deadlines are reckoned from may have been set.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// What the owner is sent.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A client's request.
    Call(Call),
    /// A long job has news.
    Long(JobId, News),
    /// The thread of a job wants so many bytes more for a container than the job was promised.
    MayTake {
        /// The job.
        job: JobId,
        /// The container that is to grow.
        container: String,
        /// By how much.
        bytes: Bytes,
        /// Whether it may.
        answer: Sender<bool>,
    },
    /// The container of a disk in use has grown, or not.
    Extended(JobId, Result<(), Failure>),
    /// The containers of a job's removal steps are gone, or not.
    Removed(JobId, Result<(), Failure>),
    /// The storage was made larger, or not.
    Grown(JobId, Result<GrowReport, Failure>),
    /// The process of a served disk is heard of, under the incarnation that it had.
    Served(VdiUuid, u64, Heard),
    /// Figures of a served disk are wanted, or of all.
    Figures(Option<VdiUuid>, Sender<Vec<ServedDisk>>),
    /// The front has gone: end.
    FrontGone,
}

/// A request that is to be answered once.
#[derive(Debug)]
pub(crate) struct Call {
    /// The request.
    pub(crate) request: Request,
    /// What came with it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What an operation says to its caller.
pub(crate) enum Given {
    /// This.
    Answer(serde_json::Value),
    /// Nothing yet: the answer comes later.
    Later,
    /// Nothing yet: the call is to be tried again when the chain of this VDI may have got shorter.
    Again(VdiUuid),
    /// Nothing yet: the call is to be tried again when the process of this VDI has gone, or will not go.
    AfterStop(VdiUuid),
    /// This, and then the keeper ends.
    Farewell(serde_json::Value),
}

/// A long job under way.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its thread and process.
    pub(crate) long: LongJob,
    /// Images that must not change meanwhile.
    pub(crate) lease: BTreeSet<ImageId>,
    /// Whether a client has cancelled it.
    pub(crate) cancelled: bool,
}

/// A client waiting for the end of a job.
#[derive(Debug)]
pub(crate) struct JobWaiter {
    pub(crate) id: Id,
    pub(crate) job: JobId,
    pub(crate) deadline: Option<Instant>,
}

/// The owner of an SR.
pub(crate) struct Owner {
    pub(crate) sr: SrFacts,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) catalog: Catalog,
    pub(crate) small: SmallWorker,
    pub(crate) mailbox: Sender<Mail>,
    pub(crate) front: Writer,
    pub(crate) board: Arc<Board>,
    pub(crate) live: BTreeMap<JobId, Live>,
    pub(crate) running: BTreeMap<JobId, Running>,
    /// The images that the coalesce worker may have something to do with.
    pub(crate) candidates: Candidates,
    /// What the coalesce worker does now.
    pub(crate) current: Option<Current>,
    /// The priority of the merge that runs.
    pub(crate) priority: Option<Priority>,
    /// Calls that wait for a running merge to stop.
    pub(crate) parked: Vec<Call>,
    /// Calls that wait for chains to get shorter.
    pub(crate) wanting: Vec<(VdiUuid, Call)>,
    /// Disks on their way in.
    pub(crate) arriving: BTreeMap<JobId, Arriving>,
    pub(crate) job_waiters: Vec<JobWaiter>,
    pub(crate) run_waiters: Vec<Id>,
    pub(crate) leaving: bool,
    /// The last answer, given when the SR is closed.
    pub(crate) farewell: Option<(Id, serde_json::Value)>,
    /// The SR is to be unmade when the owner ends.
    pub(crate) destroyed: bool,
    /// It was said that this storage has no place for labels.
    pub(crate) no_labels: bool,
    /// The disks that are attached.
    pub(crate) serving: Serving,
    /// What running jobs will still take.
    pub(crate) holds: Holds,
    /// Merges that have no room: into which image, and how many bytes they need.
    pub(crate) lacking: BTreeMap<ImageId, (ImageId, Bytes)>,
    /// Images that merges have left in containers of another size than they are to have, and when these may get it.
    pub(crate) roomy: BTreeMap<ImageId, Instant>,
    /// Images in use whose containers are to be larger.
    pub(crate) demands: BTreeMap<ImageId, Demand>,
    /// Containers that could not be let go.
    pub(crate) lingering: Lingering,
    /// What containers take that the catalog does not know.
    pub(crate) beside: Bytes,
    /// Images that were written since their rows were: the next commit measures them.
    pub(crate) stale: BTreeSet<ImageId>,
    /// When the images that guests write were last measured.
    pub(crate) served_measured: Instant,
    /// Whether the figures of the storage may have changed since they were asked for.
    pub(crate) stat_due: Cell<bool>,
    /// Committed jobs with steps left whose rows could not say that these are tried again, and when they are.
    pub(crate) unsaid: BTreeMap<JobId, Timestamp>,
    /// When a catalog whose storage has failed is tried next.
    pub(crate) ailing: Option<Instant>,
    /// Something was written since the catalog was last tidied.
    untidy: bool,
}

impl Owner {
    /// The owner of an opened SR; nothing is started yet.
    pub(crate) fn new(
        sr: SrFacts,
        store: Box<dyn Store>,
        catalog: Catalog,
        mailbox: Sender<Mail>,
        front: Writer,
        serving: Serving,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::from(store);
        let board = Arc::new(Board::new(&sr, catalog.state().clone()));
        let candidates = Candidates::of(&Rows(catalog.state()));
        Self {
            sr,
            store,
            catalog,
            small: SmallWorker::default(),
            mailbox,
            front,
            board,
            live: BTreeMap::new(),
            running: BTreeMap::new(),
            candidates,
            current: None,
            priority: None,
            parked: Vec::new(),
            wanting: Vec::new(),
            arriving: BTreeMap::new(),
            job_waiters: Vec::new(),
            run_waiters: Vec::new(),
            leaving: false,
            farewell: None,
            destroyed: false,
            no_labels: false,
            serving,
            holds: Holds::default(),
            lacking: BTreeMap::new(),
            roomy: BTreeMap::new(),
            demands: BTreeMap::new(),
            lingering: Lingering::default(),
            beside: Bytes(0),
            stale: BTreeSet::new(),
            served_measured: Instant::now(),
            stat_due: Cell::new(true),
            unsaid: BTreeMap::new(),
            ailing: None,
            untidy: true,
        }
    }

    /// Takes mail until the front has gone or the SR was detached; then closes the SR.
    pub(crate) fn run(mut self, mail: &Receiver<Mail>) {
        if let Err(failure) = self.measure_all() {
            tracing::warn!(sr = %self.sr.uuid, %failure, "what the images take could not be measured");
        }
        // What a crash has left.
        self.keep_active();
        let mut looked_around = Instant::now();
        while !self.leaving {
            match mail.try_recv() {
                Ok(one) => {
                    if looked_around.elapsed() >= BUSY {
                        self.look_around();
                        looked_around = Instant::now();
                    }
                    self.take(one);
                }
                Err(_) => {
                    self.rest(mail);
                    looked_around = Instant::now();
                }
            }
        }
        self.end();
    }

    /// Starts what can start.
    fn look_around(&mut self) {
        self.renew_catalog();
        self.look_after_served();
        self.go_on_detaching();
        self.meet_demands();
        self.coalesce();
        self.answer_waiters();
        self.publish();
        // Steps that were queued have been done, as those of a job that was interrupted.
        self.keep_active();
    }

    /// Nothing is in the mailbox: start what can start, then wait.
    fn rest(&mut self, mail: &Receiver<Mail>) {
        // What ends after this moment may have been missed below, and what ended before was not.
        let looked = Zoned::now();
        self.look_around();
        let quiet = if self.untidy { QUIET } else { HOUSEKEEPING };
        let sooner = self.next_deadline(&looked).filter(|patience| *patience < quiet);
        match mail.recv_timeout(sooner.unwrap_or(quiet)) {
            Ok(one) => self.take(one),
            Err(RecvTimeoutError::Timeout) if sooner.is_some() => {}
            Err(RecvTimeoutError::Timeout) => self.tidy(),
            Err(RecvTimeoutError::Disconnected) => self.leaving = true,
        }
    }

    /// What can wait until nobody wants anything.
    fn tidy(&mut self) {
        self.untidy = false;
        if let Err(error) = self.catalog.idle() {
            self.note_catalog(&error);
            tracing::warn!(sr = %self.sr.uuid, %error, "housekeeping of the catalog failed");
        }
        self.measure_served(HOUSEKEEPING);
        // Others fill and free the storage too, and what waits for space has no other message.
        self.stat_due.set(true);
        self.refresh_stat();
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Call(call) => self.handle(call),
            Mail::Long(job, News::Progress(progress)) => self.progressed(job, progress),
            Mail::Long(job, News::End(end)) => self.long_ended(job, end),
            Mail::MayTake { job, container, bytes, answer } => {
                // A thread that has given up needs no answer.
                let _ = answer.send(self.promise_more(job, &container, bytes));
            }
            Mail::Extended(job, result) => self.extended(job, &result),
            Mail::Removed(job, result) => self.removed(job, result),
            Mail::Grown(job, result) => self.storage_grown(job, result),
            Mail::Served(vdi, incarnation, heard) => self.heard(vdi, incarnation, heard),
            Mail::Figures(of, to) => {
                self.measure_served(FRESH);
                self.publish();
                // Who asked may have given up.
                let _ = to.send(self.figures(of));
            }
            Mail::FrontGone => self.leaving = true,
        }
        self.go_on_detaching();
        self.meet_demands();
        self.publish();
        // Nobody waits for it.
        self.keep_active();
    }

    /// Commits changes; on success events go to the front. An unknown outcome is resolved before anything else happens (D19):
    /// the rewritten catalog's content decides whether the changes took effect.
    pub(crate) fn commit(&mut self, mut changes: Vec<Change>) -> Result<(), Failure> {
        self.stat_due.set(true);
        self.untidy = true;
        self.measure_stale(&mut changes);
        let labelled = self.label(&mut changes);
        let events: Vec<EventRecord> = changes.iter().filter_map(event_of).collect();
        let mut touched = self.touched(&changes);
        let wanted = changes.clone();
        let ids = match self.catalog.commit(changes) {
            Ok(ids) => ids,
            Err(CatalogError::OutcomeUnknown { .. }) => {
                tracing::error!(sr = %self.sr.uuid, "a commit has an unknown outcome; the catalog is rewritten");
                if let Err(error) = self.catalog.resolve_unknown() {
                    self.note_catalog(&error);
                    return Err(from_catalog(&error));
                }
                if !self.took_effect(&wanted) {
                    self.relabel(&labelled.taken);
                    let what = "the catalog could not be written; nothing was changed";
                    return Err(
                        Failure::new(catena_types::ErrorName::IoError, what).hint("look at the storage")
                    );
                }
                Vec::new()
            }
            Err(error) => {
                self.note_catalog(&error);
                self.relabel(&labelled.taken);
                return Err(from_catalog(&error));
            }
        };
        if wanted.iter().any(|change| {
            matches!(change, Change::PutMeta(_) | Change::PutAttachment(_) | Change::RemoveAttachment(_))
        }) {
            // What merges need depends on who uses a disk, and on the policy.
            self.lacking.clear();
        }
        for change in &wanted {
            // What a job is promised ends when it does not run any more.
            if let Change::PutJob(job) = change
                && job.state != JobState::Running
            {
                self.holds.release(job.id);
            }
        }
        touched.extend(self.touched(&wanted));
        let tree = Rows(self.catalog.state());
        for image in touched {
            self.candidates.touched(&tree, image);
            self.lacking.retain(|from, (into, _)| *from != image && *into != image);
        }
        self.relabel(&labelled.left);
        self.stale.extend(labelled.left);
        for (mut event, id) in events.into_iter().zip(ids) {
            event.id = id;
            self.notify(&event);
        }
        Ok(())
    }

    /// The images that the changes are about, as the catalog has them now: with their parents, and those that VDIs point at.
    fn touched(&self, changes: &[Change]) -> BTreeSet<ImageId> {
        let state = self.catalog.state();
        let tree = Rows(state);
        let images = changes.iter().flat_map(|change| match change {
            Change::PutImage(image) => [Some(image.id), tree.parent(image.id).map(|parent| parent.id)],
            Change::RemoveImage(id) => [Some(*id), tree.parent(*id).map(|parent| parent.id)],
            Change::PutVdi(vdi) => [Some(vdi.image), state.vdis.get(&vdi.uuid).map(|row| row.image)],
            Change::RemoveVdi(uuid) => [state.vdis.get(uuid).map(|row| row.image), None],
            _ => [None, None],
        });
        images.flatten().collect()
    }

    fn took_effect(&self, changes: &[Change]) -> bool {
        let state = self.catalog.state();
        changes.iter().all(|change| match change {
            Change::PutJob(job) => state.jobs.get(&job.id).is_some_and(|row| **row == *job),
            Change::PutImage(image) => state.images.get(&image.id).is_some_and(|row| **row == *image),
            Change::PutVdi(vdi) => state.vdis.get(&vdi.uuid).is_some_and(|row| **row == *vdi),
            Change::RemoveImage(id) => !state.images.contains_key(id),
            Change::RemoveVdi(id) => !state.vdis.contains_key(id),
            Change::PutAttachment(put) => state.attachments.get(&put.vdi).is_some_and(|row| **row == *put),
            Change::RemoveAttachment(vdi) => !state.attachments.contains_key(vdi),
            Change::RemoveJob(id) => !state.jobs.contains_key(id),
            Change::PutMeta(meta) => *state.meta == *meta,
            Change::Event(_) => true,
        })
    }

    /// Sends an event to those who watch.
    pub(crate) fn notify(&self, event: &EventRecord) {
        notify(&self.front, event);
    }

    /// An event row of now.
    pub(crate) fn event(
        &self,
        severity: Severity,
        kind: &str,
        vdi: Option<VdiUuid>,
        job: Option<&JobRecord>,
        message: impl Into<String>,
    ) -> Change {
        let message = message.into();
        tracing::info!(sr = %self.sr.uuid, kind, vdi = vdi.map(|id| id.to_string()), job = job.map(|job| job.id), message);
        Change::Event(EventRecord {
            id: 0,
            time: Timestamp::now(),
            kind: kind.to_owned(),
            severity,
            sr: self.sr.uuid,
            vdi,
            job: job.map(|job| job.id),
            message,
        })
    }

    /// Answers a request.
    pub(crate) fn answer(&self, id: Id, outcome: Reply) {
        if let Err(error) = self.front.send(&Message::Response(Response { id, outcome }), &[]) {
            tracing::debug!(%error, "an answer could not be sent to the front");
        }
    }

    /// Publishes what lists and records are answered from.
    pub(crate) fn publish(&self) {
        self.refresh_stat();
        self.board.publish(&self.sr, self.catalog.state(), &self.live, self.moment());
    }

    fn end(mut self) {
        let named = self.wanting.drain(..).chain(self.serving.stopping.drain(..));
        let calls = self.parked.drain(..).chain(named.map(|(_, call)| call));
        let ids: Vec<Id> = calls.map(|call| call.request.id).chain(self.run_waiters.drain(..)).collect();
        let going = Failure::new(catena_types::ErrorName::SrUnavailable, "the SR is being detached").retry();
        for id in ids {
            self.answer(id, Err(going.clone()));
        }
        // Dropping a running job stops its process and waits for it: after this nobody writes to the SR.
        self.running.clear();
        if let Some(group) = &self.sr.group {
            group.remove();
        }
        let closed = self.catalog.close().map_err(|error| from_catalog(&error));
        let unmade = closed.and_then(|()| if self.destroyed { unmake(&*self.store) } else { Ok(()) });
        if let Err(failure) = &unmade {
            tracing::error!(sr = %self.sr.uuid, %failure, "the SR could not be closed cleanly");
        }
        if let Some((id, value)) = self.farewell {
            let response = Message::Response(Response { id, outcome: unmade.map(|()| value.into()) });
            if let Err(error) = self.front.send(&response, &[]) {
                tracing::debug!(%error, "the last answer could not be sent");
            }
        }
    }
}

/// Sends an event to those who watch.
pub(crate) fn notify(front: &Writer, event: &EventRecord) {
    let params = serde_json::to_value(crate::views::event(event)).unwrap_or_default();
    let message = Message::Notification(Notification { method: "event".to_owned(), params });
    if let Err(error) = front.send(&message, &[]) {
        tracing::debug!(%error, "an event could not be sent to the front");
    }
}

/// Removes what makes the location an SR, and what its repairs have saved.
fn unmake(store: &dyn Store) -> Result<(), Failure> {
    crate::saved::remove_all(store.catalog_dir())
        .map_err(|error| Failure::new(catena_types::ErrorName::IoError, error.to_string()))?;
    Ok(store.destroy()?)
}

fn event_of(change: &Change) -> Option<EventRecord> {
    match change {
        Change::Event(event) => Some(event.clone()),
        _ => None,
    }
}
