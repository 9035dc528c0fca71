//! Disks whose storage has failed under the process that serves them. Of what it was storing nobody knows any more what lasts,
//! so it writes nothing from then on and every request that would is answered with an error; reads go on.
//!
//! ```text
//!  serving ─ the storage fails ─▶ failing ─ a rest ─▶ tried ─ works ─▶ ended, and another process takes over
//!                                    ▲                  └─ does not ─┐
//!                                    └─────── a longer rest ─────────┘
//! ```
//!
//! The next process stores what was acknowledged (D8), as after a death; what the failed flush was to make durable may be lost,
//! and the client was told so by that flush. A storage that fails again and again is tried more and more seldom. To try is to
//! read something of every image of the chain and to flush the leaf, in a thread that nobody waits for. Called by `adoption`.

use crate::adoption::end_now;
use crate::owner::{Mail, Owner};
use crate::serving::Heard;
use catena_sr_api::{Access, Store};
use catena_types::{ErrorName, Failure, Severity, VdiUuid};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::pread;
use nix::unistd::fdatasync;
use std::time::{Duration, Instant};

/// The first rest.
const REST: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(60);
/// After so long without a failure the next one is a first one.
const CALM: Duration = Duration::from_secs(600);

/// How a disk's storage fails, if it does.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    /// What its process said; none while all is well.
    pub(crate) why: Option<String>,
    /// When the storage is tried.
    try_at: Option<Instant>,
    /// Rests so far; they outlive the process that failed.
    rests: u32,
    /// When it failed last.
    last: Option<Instant>,
}

impl Failing {
    /// Nothing has failed.
    pub(crate) const fn not() -> Self {
        Self { why: None, try_at: None, rests: 0, last: None }
    }

    /// The process writes nothing any more. Whether that is new.
    fn begin(&mut self, why: &str, now: Instant) -> bool {
        if self.why.is_some() {
            // Nobody hears of a try that an earlier connection has begun.
            if self.try_at.is_none() {
                self.rest(now);
            }
            return false;
        }
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM) {
            self.rests = 0;
        }
        self.why = Some(why.to_owned());
        self.last = Some(now);
        self.rest(now);
        true
    }

    /// Another process serves the disk, and writes.
    fn end(&mut self) {
        (self.why, self.try_at) = (None, None);
    }

    fn rest(&mut self, now: Instant) {
        self.try_at = Some(now + (REST * (1 << self.rests.min(10))).min(LONGEST));
        self.rests += 1;
    }

    /// When the storage is to be tried.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.try_at.filter(|_| self.why.is_some())
    }

    /// Whether that is now; then it is under way.
    fn begin_try(&mut self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now) && self.try_at.take().is_some()
    }
}

impl Owner {
    /// The process says that its storage has failed, or that it has not.
    pub(crate) fn note_failing(&mut self, vdi: VdiUuid, why: Option<&str>) {
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return };
        let Some(why) = why else { return served.failing.end() };
        if !served.failing.begin(why, Instant::now()) {
            return;
        }
        let text = format!("the storage failed, and nothing is written any more until it works again: {why}");
        let event = self.event(Severity::Error, "vdi.storage_failed", Some(vdi), None, text);
        if let Err(failure) = self.commit(vec![event]) {
            tracing::error!(%vdi, %failure, "that the storage of a disk has failed could not be recorded");
        }
    }

    /// Tries the storage of those that fail, where it is time.
    pub(crate) fn look_after_failing(&mut self) {
        let now = Instant::now();
        let served = self.serving.disks.iter_mut().filter(|(_, served)| !served.is_stopping());
        let due = served
            .filter(|(_, served)| served.link.is_some())
            .filter_map(|(vdi, served)| served.failing.begin_try(now).then_some((*vdi, served.incarnation)));
        for (vdi, incarnation) in due.collect::<Vec<_>>() {
            self.try_storage(vdi, incarnation);
        }
    }

    fn try_storage(&self, vdi: VdiUuid, incarnation: u64) {
        let state = self.catalog.state();
        let Some(row) = state.vdis.get(&vdi) else { return };
        let chain: Vec<String> = state.chain(row.image).map(|image| image.container.clone()).collect();
        let (store, mailbox) = (self.store.clone(), self.mailbox.clone());
        std::thread::spawn(move || {
            let works = try_chain(&*store, &chain).map_err(|failure| failure.to_string());
            // Without an owner the keeper is ending.
            let _ = mailbox.send(Mail::Served(vdi, incarnation, Heard::Tried(works)));
        });
    }

    /// The storage of a disk that fails was tried: where it works, another process takes over.
    pub(crate) fn tried(&mut self, vdi: VdiUuid, works: Result<(), String>) {
        let is_undecided = self.serving.is_undecided(vdi);
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return };
        if served.failing.why.is_none() || served.is_stopping() {
            return;
        }
        if let Err(why) = works {
            tracing::info!(%vdi, why, "the storage of a disk still fails");
            return served.failing.rest(Instant::now());
        }
        if is_undecided {
            // D20: nobody takes over from a member of an undecided set.
            return served.failing.rest(Instant::now());
        }
        let pid = served.pid;
        let text = "the storage works again: another datapath takes over";
        let event = self.event(Severity::Info, "vdi.storage_works", Some(vdi), None, text);
        if let Err(failure) = self.commit(vec![event]) {
            tracing::error!(%vdi, %failure, "that the storage of a disk works again could not be recorded");
        }
        end_now(pid);
    }
}

/// A page, where direct I/O can put it.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Whether the next process could open the chain, leaf first: the beginning of each image can be read from the storage, and the leaf be
/// flushed. Else the present one would be ended for nothing, and reads with it. Nothing is written, so that somebody else has the
/// leaf open for writing does not matter (D11).
fn try_chain(store: &dyn Store, chain: &[String]) -> Result<(), Failure> {
    let failed = |container: &str| {
        let container = container.to_owned();
        move |errno: Errno| Failure::new(ErrorName::IoError, format!("{container}: {errno}"))
    };
    for (at, container) in chain.iter().enumerate() {
        let access = if at == 0 { Access::ReadWrite } else { Access::ReadOnly };
        let fd = store.activate(container, access)?;
        // What the system has in memory says nothing; a file system without direct I/O has no more than that.
        let _ = fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_DIRECT));
        let mut page = Box::new(Page([0; 4096]));
        pread(&fd, &mut page.0, 0).map_err(failed(container))?;
        if at == 0 {
            fdatasync(&fd).map_err(failed(container))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_that_fails_again_and_again_is_tried_more_and_more_seldom() {
        let mut failing = Failing::not();
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..9 {
            assert!(failing.begin("broken", now) && !failing.begin("broken", now), "it fails once");
            let at = failing.deadline().unwrap();
            assert!(!failing.begin_try(at - Duration::from_nanos(1)) && failing.begin_try(at));
            assert!(!failing.begin_try(at) && failing.deadline().is_none(), "it is tried once");
            rests.push((at - now).as_secs());
            failing.end();
            now = at;
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += CALM + REST;
        assert!(failing.begin("broken", now));
        assert_eq!(failing.deadline(), Some(now + REST), "what is long ago does not count");
        assert!(failing.begin_try(now + REST) && !failing.begin("broken", now));
        assert_eq!(failing.deadline(), Some(now + REST * 2), "taken up anew, it is tried anew");
        failing.end();
        assert_eq!(failing.deadline(), None);
    }
}
