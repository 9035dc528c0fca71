//! Every attached disk has a process that serves what the catalog says: found when the keeper starts, brought to the catalog,
//! replaced when it has died.
//!
//! ```text
//!            connect, hello          brought to the catalog
//!  unknown ─────────────────▶ heard ───────────────────────▶ serving
//!     ▲  ├─ nobody listens ─▶ dead ── started anew ──▶ heard     │ gone, silent, disagrees
//!     │  └─ no answer ─▶ knocked at ── it answers ──▶ heard      │
//!     └──────────────────────────────────────────────────────────┘ tried again after a rest
//! ```
//!
//! Nobody waits for one that was knocked at: its answer is mail, whenever it comes.
//!
//! What a process has prepared, what it holds back and through which images it reads is decided by the catalog alone (D20): a
//! keeper that was killed between two messages is answered here. A row of another boot is void, and so is everything in memory
//! that belonged to it.

use crate::coalescing::task_of_work;
use crate::hands::{ready, ready_chain};
use crate::images::unexpected;
use crate::owner::{Call, Owner};
use crate::rundir::RunDir;
use crate::serving::{Heard, Link, Move, PATIENCE, Served, Start, silent};
use catena_catalog::Change;
use catena_control::{Ask, Found, Handed, Hello, News, Pause, found};
use catena_sr_api::Access;
use catena_types::{
    AttachMode, AttachmentRecord, ErrorName, Failure, ImageId, ImageRecord, ImageState, JobId, Severity,
    VdiUuid,
};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a process that was just started may take to open its images and to take over from its predecessor.
const START: Duration = Duration::from_secs(30);
/// How long one that somebody wants something of may take to say what it is serving.
const SECOND_TRY: Duration = Duration::from_secs(2);
/// How long one may take that is only looked after: most answer at once, and of the others we hear.
const GLANCE: Duration = Duration::from_millis(20);
/// The rest after a connection broke, in which the end of a process of ours is heard of.
pub(crate) const BREATH: Duration = Duration::from_millis(50);
/// The longest rest between two tries.
const REST: Duration = Duration::from_secs(30);
/// How often it is tried to learn what became of a commit.
const UNDECIDED: Duration = Duration::from_secs(1);
/// After so many tries in vain it is an event.
const VAIN: u32 = 4;

/// The disks that are being served, and where.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Their directories.
    pub(crate) dir: RunDir,
    /// This boot of the host.
    pub(crate) boot: String,
    /// Those that have an attachment.
    pub(crate) disks: BTreeMap<VdiUuid, Served>,
    /// Disks that are held back until it is known whether their job has committed.
    pub(crate) undecided: Vec<(JobId, Pause)>,
    /// Calls that wait for the end of a disk's process.
    pub(crate) stopping: Vec<(VdiUuid, Call)>,
    last_incarnation: u64,
}

impl Serving {
    /// None yet.
    pub(crate) const fn new(dir: RunDir, boot: String) -> Self {
        Self {
            dir,
            boot,
            disks: BTreeMap::new(),
            undecided: Vec::new(),
            stopping: Vec::new(),
            last_incarnation: 0,
        }
    }

    /// Whether the disk is held back until it is known what became of a commit.
    pub(crate) fn is_undecided(&self, vdi: VdiUuid) -> bool {
        self.undecided.iter().any(|(_, pause)| pause.holds(vdi))
    }

    /// When a disk without a process is to be looked after next, or one that ends will not be waited for any more.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let undecided = (!self.undecided.is_empty()).then(|| Instant::now() + UNDECIDED);
        let stops = self.stopping.iter().filter_map(|(vdi, _)| self.disks.get(vdi)?.stop_by);
        let lost = self.disks.values().filter_map(|served| served.retry_at);
        let failing = self.disks.values().filter_map(|served| served.failing.deadline());
        let moves = self.disks.values().filter_map(|served| served.moving?.retry_at);
        lost.chain(failing).chain(moves).chain(stops).chain(undecided).min()
    }
}

impl Owner {
    /// Takes up the processes of a predecessor, first of all when an SR is opened: those that hold back writes wait for it.
    pub(crate) fn adopt_served(&mut self) -> Result<(), Failure> {
        let rows: Vec<Arc<AttachmentRecord>> = self.catalog.state().attachments.values().cloned().collect();
        let mut changes = Vec::new();
        for row in rows {
            if row.boot == self.serving.boot {
                self.serving.disks.insert(row.vdi, Served::unknown());
                continue;
            }
            changes.push(Change::RemoveAttachment(row.vdi));
            changes.extend(self.without_move(row.vdi));
            changes.extend(self.left_full(&row));
            let text = "the host was started anew: the disk is not attached any more";
            changes.push(self.event(Severity::Warning, "vdi.detached", Some(row.vdi), None, text));
        }
        if !changes.is_empty() {
            self.commit(changes)?;
        }
        self.take_in_unknown()?;
        // All are asked before the first is waited for: those that hang cost an SR that is opened some seconds together.
        let until = Instant::now() + SECOND_TRY;
        for vdi in Vec::from_iter(self.serving.disks.keys().copied()) {
            if let Err(failure) = self.knock(vdi) {
                tracing::warn!(%vdi, %failure, "a disk's datapath cannot be spoken to");
            }
        }
        for vdi in Vec::from_iter(self.serving.disks.keys().copied()) {
            match self.take_up_running(vdi, until.saturating_duration_since(Instant::now())) {
                Ok(true) => tracing::info!(%vdi, "a disk's datapath was taken over from the last keeper"),
                Ok(false) => {}
                Err(failure) => tracing::warn!(%vdi, %failure, "a disk's datapath could not be taken over"),
            }
        }
        Ok(())
    }

    /// Directories of our disks that no row speaks of: what a detach has not come to remove goes; a process that the catalog has lost,
    /// because it was made anew from the images, is attached again.
    fn take_in_unknown(&mut self) -> Result<(), Failure> {
        let state = self.catalog.state();
        let ours = |vdi: &VdiUuid| state.vdis.contains_key(vdi) && !state.attachments.contains_key(vdi);
        for vdi in Vec::from_iter(self.serving.dir.list().into_iter().filter(ours)) {
            let Ok(Some(channel)) = self.serving.dir.connect(vdi) else {
                if let Err(error) = self.serving.dir.remove(vdi) {
                    tracing::warn!(%vdi, %error, "the directory of a disk that is not served was not removed");
                }
                continue;
            };
            let incarnation = self.next_incarnation();
            let read_only = match Link::open(channel, vdi, incarnation, &self.mailbox)?.hello(SECOND_TRY) {
                Ok(hello) => hello.read_only,
                Err(failure) => {
                    tracing::error!(%vdi, %failure, "a process serves a disk that is not attached, and is left alone");
                    continue;
                }
            };
            let row = AttachmentRecord {
                vdi,
                mode: if read_only { AttachMode::ReadOnly } else { AttachMode::ReadWrite },
                count: 1,
                boot: self.serving.boot.clone(),
                since: Timestamp::now(),
            };
            let text = "a process that serves the disk was found: the disk is attached";
            let event = self.event(Severity::Warning, "vdi.attached", Some(vdi), None, text);
            self.commit(vec![Change::PutAttachment(row), event])?;
            self.serving.disks.insert(vdi, Served::unknown());
        }
        Ok(())
    }

    /// Looks after disks without a process, where it is time.
    pub(crate) fn look_after_served(&mut self) {
        self.decide_pauses();
        self.look_after_failing();
        let now = Instant::now();
        let due = |served: &Served| served.retry_at.is_some_and(|at| at <= now);
        let due: Vec<VdiUuid> =
            self.serving.disks.iter().filter(|(_, served)| due(served)).map(|(vdi, _)| *vdi).collect();
        for vdi in due {
            if let Err(failure) = self.find_or_replace_within(vdi, GLANCE) {
                tracing::error!(%vdi, %failure, "a disk is attached and has no datapath");
                self.rest_served(vdi, &failure);
            }
        }
    }

    fn rest_served(&mut self, vdi: VdiUuid, failure: &Failure) {
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return };
        served.attempts += 1;
        served.link = None;
        served.retry_at = Some(Instant::now() + (BREATH * (1 << served.attempts.min(10))).min(REST));
        if served.attempts == VAIN {
            self.rest_move_of(vdi, failure);
            let text = format!("the disk is attached and has no datapath: {failure}");
            let event = self.event(Severity::Error, "vdi.unserved", Some(vdi), None, text);
            if let Err(failure) = self.commit(vec![event]) {
                tracing::error!(%vdi, %failure, "an event could not be recorded");
            }
        }
    }

    /// Connects to the disk's process, or starts one if there is none. One that did not answer before is not waited for again.
    pub(crate) fn find_or_replace(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let knocked = self.serving.disks.get(&vdi).is_some_and(|served| served.knock.is_some());
        self.find_or_replace_within(vdi, if knocked { Duration::ZERO } else { SECOND_TRY })
    }

    fn find_or_replace_within(&mut self, vdi: VdiUuid, patience: Duration) -> Result<(), Failure> {
        if self.serving.is_undecided(vdi) {
            // D20: no successor for a member while the set is undecided.
            return Err(silent(vdi));
        }
        if self.take_up_running(vdi, patience)? {
            return Ok(());
        }
        if let Some(served) = self.serving.disks.get_mut(&vdi).filter(|served| served.attempts == 0) {
            let ended = served.ended.take();
            let how = ended.unwrap_or_else(|| "it was not started by this keeper".to_owned());
            let text = format!("the datapath has died ({how}); another takes over");
            let event = self.event(Severity::Warning, "vdi.datapath_died", Some(vdi), None, text);
            self.commit(vec![event])?;
        }
        self.start_serving(vdi)
    }

    /// Connects to the disk's process, unless that was done, and asks what it is serving; false if there is none.
    pub(crate) fn knock(&mut self, vdi: VdiUuid) -> Result<bool, Failure> {
        let knocked = |served: &Served| served.knock.as_ref().is_some_and(|link| !link.is_gone());
        if self.serving.disks.get(&vdi).is_some_and(knocked) {
            return Ok(true);
        }
        let channel = match self.serving.dir.connect(vdi) {
            Ok(channel) => channel,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(silent(vdi)),
            Err(error) => return Err(local(vdi, "its control socket", &error)),
        };
        let incarnation = self.next_incarnation();
        let served = self.serving.disks.entry(vdi).or_insert_with(Served::unknown);
        match channel {
            Some(channel) => {
                let link = Link::open(channel, vdi, incarnation, &self.mailbox)?;
                served.incarnation = incarnation;
                link.put(&Ask::Hello, &[])?;
                (served.link, served.knock) = (None, Some(link));
                Ok(true)
            }
            None => {
                served.chain = Some(Vec::new());
                (served.link, served.knock, served.moving) = (None, None, None);
                served.retry_at = Some(Instant::now());
                Ok(false)
            }
        }
    }

    /// Connects to the disk's process and takes it up; false if there is none. One that does not answer stays knocked at.
    fn take_up_running(&mut self, vdi: VdiUuid, patience: Duration) -> Result<bool, Failure> {
        if !self.knock(vdi)? {
            return Ok(false);
        }
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| not_attached(vdi))?;
        let mut link = served.knock.take().ok_or_else(|| silent(vdi))?;
        match link.greeting(patience)? {
            Some(hello) => self.take_up(vdi, link, &hello).map(|()| true),
            None => {
                served.knock = Some(link);
                Err(silent(vdi))
            }
        }
    }

    const fn next_incarnation(&mut self) -> u64 {
        self.serving.last_incarnation += 1;
        self.serving.last_incarnation
    }

    /// Starts a process for a disk that has none, from what the catalog says.
    pub(crate) fn start_serving(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let read_only = self.attachment(vdi)?.mode == AttachMode::ReadOnly;
        let chain = self.chain_to_serve(vdi)?;
        let pending = self.serving.dir.pending(vdi).map_err(|error| local(vdi, "its record", &error))?;
        let pending = pending.ok_or_else(|| {
            // D8: what was acknowledged and stood there is not known any more.
            let what = "the record of the writes that this disk's datapath has acknowledged is gone";
            Failure::new(ErrorName::VdiUnavailable, what)
                .hint("end its clients and detach it; what was not flushed may be lost")
                .object("vdi", vdi)
        })?;
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let (handed, mut fds) = ready_chain(&*self.store, &chain, access)?;
        let moving_into = self.open_move(vdi).and_then(|job| task_of_work(&job.work)?.target());
        let second = chain.iter().position(|row| moving_into == Some(row.id));
        if let Some(at) = second {
            // D8: what its predecessor acknowledged may stand in `pending` for both.
            fds[at] = ready(&*self.store, &chain[at], Access::ReadWrite)?.fd;
        }
        let sockets = self.serving.dir.listen(vdi).map_err(|error| local(vdi, "its sockets", &error))?;
        let incarnation = self.next_incarnation();
        let images = handed.into_iter().zip(fds).collect();
        let moving_into = second.and(moving_into);
        let start = Start { vdi, read_only, sockets, pending, images, moving_into };
        let pid =
            start.run(incarnation, &self.mailbox).map_err(|error| local(vdi, "its datapath", &error))?;
        self.take_up_started(vdi, incarnation).inspect_err(|_| end_now(pid))
    }

    /// Takes up a process that was just started, under the incarnation that it was started with.
    fn take_up_started(&mut self, vdi: VdiUuid, incarnation: u64) -> Result<(), Failure> {
        let channel = self.serving.dir.connect(vdi).map_err(|error| local(vdi, "its datapath", &error))?;
        let channel = channel.ok_or_else(|| silent(vdi))?;
        let mut link = Link::open(channel, vdi, incarnation, &self.mailbox)?;
        let served = self.serving.disks.entry(vdi).or_insert_with(Served::unknown);
        (served.incarnation, served.knock) = (incarnation, None);
        link.put(&Ask::Hello, &[])?;
        let hello = link.greeting(START)?.ok_or_else(|| silent(vdi))?;
        self.take_up(vdi, link, &hello)
    }

    fn attachment(&self, vdi: VdiUuid) -> Result<&AttachmentRecord, Failure> {
        self.catalog.state().attachments.get(&vdi).map(|row| &**row).ok_or_else(|| not_attached(vdi))
    }

    /// The chain of an attached disk, leaf first, as the catalog has it.
    fn chain_to_serve(&self, vdi: VdiUuid) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        let state = self.catalog.state();
        let row = state.vdis.get(&vdi).ok_or_else(|| crate::lookup::no_such_vdi(&vdi.to_string()))?;
        self.check_usable(vdi, row.image)?;
        Ok(state.chain(row.image).cloned().collect())
    }

    /// Takes up a process that has said what it is serving, and brings it to what the catalog says.
    fn take_up(&mut self, vdi: VdiUuid, link: Link, hello: &Hello) -> Result<(), Failure> {
        let read_only = self.attachment(vdi)?.mode == AttachMode::ReadOnly;
        if hello.vdi != vdi || hello.read_only != read_only {
            return Err(unexpected().object("vdi", vdi));
        }
        let served = self.serving.disks.entry(vdi).or_insert_with(Served::unknown);
        served.pid = hello.pid;
        served.link = Some(link);
        served.chain = Some(hello.chain.clone());
        served.moving = hello.moving_into.map(|into| Move::of(into, hello.generation));
        served.full = false;
        served.generation = served.generation.max(hello.generation);
        self.bring_to_catalog(vdi, hello).inspect_err(|_| self.lose_served(vdi, BREATH))?;
        if let Err(failure) = self.limit_served(vdi) {
            // Without its limits is better than not at all; a link that broke is noticed by whoever needs it next.
            tracing::warn!(%vdi, %failure, "a datapath does not take its limits");
        }
        self.tell_watermark(vdi);
        if let Some(served) = self.serving.disks.get_mut(&vdi).filter(|served| served.link.is_some()) {
            (served.attempts, served.retry_at, served.ended) = (0, None, None);
        }
        self.note_failing(vdi, hello.failed.as_deref());
        self.note_served(vdi);
        Ok(())
    }

    /// Answers what the process has not heard of, and makes it read through the right images.
    fn bring_to_catalog(&mut self, vdi: VdiUuid, hello: &Hello) -> Result<(), Failure> {
        if let Err(failure) = self.settle_move(vdi) {
            // One that cannot be ended now is tried again; whether it says nothing at all shows below.
            tracing::error!(%vdi, %failure, "a leaf merge is not brought to what the catalog says");
        }
        let leaf = self.chain_to_serve(vdi)?.first().map(|image| image.id).ok_or_else(|| silent(vdi))?;
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| not_attached(vdi))?;
        // With a move that is over the leaf is another.
        let hello = &Hello { chain: served.chain.clone().unwrap_or_default(), ..hello.clone() };
        let mut now = found(hello, leaf);
        if let Found::Resume { generation, swap } = now {
            let link = served.link(vdi)?;
            link.ask(&Ask::Resume { generation, swap }, Vec::new())?;
            let hello = link.hello(PATIENCE)?;
            now = found(&hello, leaf);
            served.chain = Some(hello.chain);
        }
        if now != Found::Serves {
            tracing::error!(%vdi, "a datapath writes to another image than the catalog says, and is ended");
            end_now(served.pid);
            return Err(unexpected().object("vdi", vdi));
        }
        self.relink(vdi).map(drop)
    }

    /// Makes the process read through the images that the catalog names; false if it does already.
    fn relink(&mut self, vdi: VdiUuid) -> Result<bool, Failure> {
        let rows = self.chain_to_serve(vdi)?;
        let wanted: Vec<ImageId> = rows.iter().map(|row| row.id).collect();
        let served = self.serving.disks.get_mut(&vdi).ok_or_else(|| not_attached(vdi))?;
        let old = served.chain.clone().unwrap_or_default();
        if old == wanted {
            return Ok(false);
        }
        let anew = changed_below(&old, &wanted);
        let (mut chain, mut fds) = (Vec::new(), Vec::new());
        for row in &rows {
            let open = anew.contains(&row.id);
            if open {
                fds.push(ready(&*self.store, row, Access::ReadOnly)?.fd);
            }
            chain.push((Handed { id: row.id, format: row.format, any: false }, open));
        }
        let generation = served.next_generation();
        served.link(vdi)?.ask(&Ask::Relink { generation, chain }, fds)?;
        served.chain = Some(wanted);
        Ok(true)
    }

    /// Tells every process whose chain has changed with the last commit. One that does not take it up is asked again later; what
    /// it still reads stays.
    pub(crate) fn relink_served(&mut self) {
        let linked = self.serving.disks.iter().filter(|(_, served)| served.link.is_some());
        let linked = linked.filter(|(_, served)| !served.is_stopping());
        for vdi in Vec::from_iter(linked.map(|(vdi, _)| *vdi)) {
            match self.relink(vdi) {
                Ok(true) => self.note_served(vdi),
                Ok(false) => {}
                Err(failure) => {
                    tracing::error!(%vdi, %failure, "a datapath does not change its chain");
                    self.lose_served(vdi, Duration::from_secs(1));
                }
            }
        }
    }

    /// The disk whose process has this image open for writing, or may have.
    pub(crate) fn writer_of(&self, image: ImageId) -> Option<VdiUuid> {
        let state = self.catalog.state();
        let is_writer = |(vdi, served): &(&VdiUuid, &Served)| {
            let writes = state.attachments.get(vdi).is_some_and(|row| row.mode == AttachMode::ReadWrite);
            let leaf = match &served.chain {
                Some(chain) => chain.first().copied(),
                None => state.vdis.get(vdi).map(|row| row.image),
            };
            writes && (leaf == Some(image) || self.may_move_into(**vdi, image))
        };
        self.serving.disks.iter().find(is_writer).map(|(vdi, _)| *vdi)
    }

    /// Images that nothing needs but that a process may still read.
    pub(crate) fn still_read(&self) -> BTreeSet<ImageId> {
        let images = &self.catalog.state().images;
        let garbage = |id: &&ImageId| images.get(id).is_some_and(|row| row.state == ImageState::Garbage);
        let mut read = BTreeSet::new();
        for served in self.serving.disks.values() {
            match &served.chain {
                Some(chain) => read.extend(chain.iter().filter(garbage)),
                None => read.extend(images.keys().filter(garbage)),
            }
        }
        read
    }

    /// What is heard of a process.
    pub(crate) fn heard(&mut self, vdi: VdiUuid, incarnation: u64, heard: Heard) {
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return };
        if served.incarnation != incarnation {
            return tracing::debug!(%vdi, ?heard, "news of an earlier datapath");
        }
        match heard {
            Heard::Greeting if served.knock.is_some() => served.retry_at = Some(Instant::now()),
            Heard::Greeting => {}
            // Who waits for its end fetches its last answer.
            Heard::Gone if served.is_stopping() => {}
            Heard::Gone => served.went(BREATH),
            Heard::Ended(how) => {
                served.ended = Some(how);
                if !served.is_stopping() {
                    served.went(Duration::ZERO);
                }
            }
            Heard::Tried(works) => self.tried(vdi, works),
            Heard::News(news @ (News::StorageFull | News::StorageFree)) => {
                served.full = news == News::StorageFull;
                self.tell_news(vdi, news);
            }
            Heard::News(News::Moved { done, left }) => self.move_progressed(vdi, done, left),
            Heard::News(News::MoveFailed { message }) => self.move_failed(vdi, &message),
            Heard::News(News::Grow { image, size }) => self.wants_room(vdi, image, size),
            Heard::News(news) => self.tell_news(vdi, news),
            Heard::Moves(generation) => {
                let open = served.moving.as_mut();
                open.into_iter().for_each(|open| open.heard |= open.generation == generation);
            }
        }
    }

    fn tell_news(&mut self, vdi: VdiUuid, news: News) {
        let (severity, kind, text) = match news {
            News::StorageFull => {
                let why = self.lacks_room(vdi).unwrap_or_else(|| "the storage is full".to_owned());
                (Severity::Error, "vdi.storage_full", format!("writes wait for space: {why}"))
            }
            News::StorageFree => {
                (Severity::Info, "vdi.storage_free", "there is space again: writes go on".to_owned())
            }
            News::StorageFailed { message } => return self.note_failing(vdi, Some(&message)),
            News::Moved { .. } | News::MoveFailed { .. } | News::Grow { .. } => return,
        };
        let event = self.event(severity, kind, Some(vdi), None, text);
        if let Err(failure) = self.commit(vec![event]) {
            tracing::error!(%vdi, %failure, "what a datapath said could not be recorded");
        }
    }

    /// The process is asked anew what it serves before it is told anything.
    pub(crate) fn lose_served(&mut self, vdi: VdiUuid, after: Duration) {
        if let Some(served) = self.serving.disks.get_mut(&vdi) {
            served.lose(after);
        }
    }

    /// Says in the disk's directory what is served.
    pub(crate) fn note_served(&self, vdi: VdiUuid) {
        let (Some(served), Ok(row)) = (self.serving.disks.get(&vdi), self.attachment(vdi)) else { return };
        let state = json!({
            "vdi": vdi, "sr": self.sr.uuid, "mode": row.mode, "boot": row.boot, "since": row.since.to_string(),
            "pid": served.pid, "generation": served.generation, "chain": served.chain,
        });
        if let Err(error) = self.serving.dir.write_state(vdi, &state) {
            tracing::warn!(%vdi, %error, "the state of a served disk could not be written");
        }
    }
}

/// The images that must be opened anew when a process that reads through `old` is to read through `wanted`: those that it does not
/// have, and those that have taken in what is gone.
fn changed_below(old: &[ImageId], wanted: &[ImageId]) -> BTreeSet<ImageId> {
    let mut anew: BTreeSet<ImageId> = wanted.iter().filter(|id| !old.contains(id)).copied().collect();
    for (at, _) in old.iter().enumerate().filter(|(_, id)| !wanted.contains(id)) {
        anew.extend(old[at..].iter().find(|id| wanted.contains(id)));
    }
    anew
}

/// Ends a process without asking it.
pub(crate) fn end_now(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1
        && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
    {
        tracing::debug!(pid, %error, "a datapath could not be killed");
    }
}

/// Something of this host, not of the storage, has failed.
pub(crate) fn local(vdi: VdiUuid, what: &str, error: &io::Error) -> Failure {
    Failure::new(ErrorName::IoError, format!("the disk cannot be served: {what}: {error}"))
        .hint("look at the agent's run directory and its log")
        .object("vdi", vdi)
}

/// It is not.
pub(crate) fn not_attached(vdi: VdiUuid) -> Failure {
    Failure::new(ErrorName::VdiUnavailable, "the disk is not attached")
        .hint("`catena vdi list` says which are")
        .object("vdi", vdi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_taken_in_another_image_is_opened_anew() {
        let id = |number| ImageId::from_bytes([number; 16]);
        let set = |numbers: &[u8]| numbers.iter().map(|number| id(*number)).collect::<BTreeSet<_>>();
        let ids = |numbers: &[u8]| numbers.iter().map(|number| id(*number)).collect::<Vec<_>>();
        let anew = |old: &[u8], wanted: &[u8]| changed_below(&ids(old), &ids(wanted));
        assert_eq!(anew(&[1, 2, 3, 4], &[1, 2, 3, 4]), set(&[]));
        assert_eq!(anew(&[1, 2, 3, 4], &[1, 3, 4]), set(&[3]));
        assert_eq!(anew(&[1, 2, 3, 4], &[1, 4]), set(&[4]));
        assert_eq!(anew(&[1, 2, 3, 4, 5], &[1, 3, 5]), set(&[3, 5]));
        assert_eq!(anew(&[1, 2], &[1, 9, 2]), set(&[9]));
    }
}
