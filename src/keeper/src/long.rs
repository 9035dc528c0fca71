//! Long jobs: a thread with a worker process of its own, which reports to the owner's mailbox.
//!
//! The thread runs a script of requests and touches no catalog. Its process ends with it; the owner knows that the
//! process's locks are free when the end of the script is in the mailbox, because it is sent after the process was reaped.

use crate::cgroup::Group;
use crate::ioclass;
use crate::owner::Mail;
use crate::worker::{self, Worker};
use catena_control::{Answered, Channel, Pace, Progress, Request, Trouble};
use catena_types::{Bytes, JobId};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a thread that waits for its owner looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// News of a long job.
#[derive(Debug)]
pub(crate) enum News {
    /// It goes on.
    Progress(Progress),
    /// It is over, and so is its process.
    End(Result<serde_json::Value, Trouble>),
}

/// What a script speaks to.
pub(crate) struct Session<'a> {
    worker: &'a mut Worker,
    mailbox: &'a Sender<Mail>,
    job: JobId,
    wanted: Arc<AtomicBool>,
}

impl Session<'_> {
    /// One request to the process; its progress goes to the owner.
    pub(crate) fn call(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Answered {
        self.call_filling(request, fds, &mut |_| Bytes(0))
    }

    /// The same for a request that fills a container: if that has an explicit size and is too small, `enlarge` is asked for so many
    /// bytes at least, and says what it has then.
    pub(crate) fn call_filling(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        enlarge: &mut dyn FnMut(Bytes) -> Bytes,
    ) -> Answered {
        let mut ear = Ear { mailbox: self.mailbox, job: self.job, wanted: &self.wanted, enlarge };
        self.worker.call(request, fds, &mut ear)
    }

    /// A line to the owner.
    pub(crate) fn line(&self) -> Line {
        Line { mailbox: self.mailbox.clone(), job: self.job, wanted: Arc::clone(&self.wanted) }
    }

    /// Whether the job is to go on. A script that makes no calls asks.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Progress that the script itself has made.
    pub(crate) fn progress(&self, progress: Progress) {
        tell(self.mailbox, self.job, News::Progress(progress));
    }
}

/// Asks the owner, in the name of a job.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    mailbox: Sender<Mail>,
    job: JobId,
    wanted: Arc<AtomicBool>,
}

impl Line {
    /// Whether the job may take so many bytes more for the container: it is promised them then. Not if it is to stop.
    pub(crate) fn may_take(&self, container: &str, bytes: Bytes) -> bool {
        let (answer, heard) = channel();
        let asked = Mail::MayTake { job: self.job, container: container.to_owned(), bytes, answer };
        let mut asked = self.mailbox.send(asked).is_ok();
        while asked && self.wanted.load(Ordering::Relaxed) {
            // An owner that is ending stops its jobs, and answers nobody.
            match heard.recv_timeout(LOOK) {
                Ok(granted) => return granted,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => asked = false,
            }
        }
        false
    }
}

/// Hears the process of a session.
struct Ear<'a> {
    mailbox: &'a Sender<Mail>,
    job: JobId,
    wanted: &'a AtomicBool,
    enlarge: &'a mut dyn FnMut(Bytes) -> Bytes,
}

impl worker::Listener for Ear<'_> {
    /// A stop that came before the request was heard by nobody.
    fn sent(&mut self, channel: &Channel) {
        if !self.wanted.load(Ordering::SeqCst) {
            worker::tell(channel, &Request::Stop);
        }
    }

    fn progress(&mut self, news: Progress) {
        tell(self.mailbox, self.job, News::Progress(news));
    }

    fn enlarge(&mut self, wanted: Bytes) -> Bytes {
        (self.enlarge)(wanted)
    }
}

/// What a long job does; its result is the job's answer to the client.
pub(crate) type Script = Box<dyn FnOnce(&mut Session<'_>) -> Result<serde_json::Value, Trouble> + Send>;

/// A running long job.
#[derive(Debug)]
pub(crate) struct LongJob {
    handle: Channel,
    pid: u32,
    /// Whether the number is still that of its process, which is not reaped then.
    alive: Arc<Mutex<bool>>,
    /// Whether it is to go on.
    wanted: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LongJob {
    /// Starts the process and the thread.
    pub(crate) fn start(job: JobId, mailbox: &Sender<Mail>, script: Script) -> Result<Self, Trouble> {
        let mut worker = Worker::start()?;
        let (handle, pid) = (worker.handle()?, worker.pid());
        let alive = Arc::new(Mutex::new(true));
        let wanted = Arc::new(AtomicBool::new(true));
        let (mailbox, ending, goes_on) = (mailbox.clone(), Arc::clone(&alive), Arc::clone(&wanted));
        let thread = std::thread::spawn(move || {
            let mut session = Session { worker: &mut worker, mailbox: &mailbox, job, wanted: goes_on };
            let end = script(&mut session);
            *ending.lock().unwrap_or_else(PoisonError::into_inner) = false;
            drop(worker);
            tell(&mailbox, job, News::End(end));
        });
        Ok(Self { handle, pid, alive, wanted, thread: Some(thread) })
    }

    /// Asks it to stop; its end comes to the mailbox. May be said again: one that stands still may not have heard it.
    pub(crate) fn stop(&self) {
        // In this order: whoever has not sent his request yet says it once more behind that.
        self.wanted.store(false, Ordering::SeqCst);
        worker::tell(&self.handle, &Request::Stop);
    }

    /// Gives a merge another pace: its threads have the class at once, so that a batch that starves is helped too; the rest it
    /// takes up with its next batch. False if it has to be said again.
    pub(crate) fn pace(&self, pace: Pace) -> bool {
        if !worker::tell(&self.handle, &Request::Pace(pace)) {
            return false;
        }
        self.while_alive("a batch that runs keeps its I/O class", |pid| ioclass::set_class(pid, pace.class));
        true
    }

    /// Puts its process into a control group, with this weight.
    pub(crate) fn join(&self, group: &Group, weight: u64) {
        self.while_alive("a merge runs outside of its control group", |pid| {
            group.weigh(weight)?;
            group.take(pid)
        });
    }

    /// Does something to its process, which nobody needs so much that a failure would matter.
    fn while_alive(&self, otherwise: &str, act: impl FnOnce(u32) -> io::Result<()>) {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if *alive && let Err(error) = act(self.pid) {
            tracing::warn!(pid = self.pid, %error, "{otherwise}");
        }
    }

    /// Its process.
    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for LongJob {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a job panicked");
        }
    }
}

fn tell(mailbox: &Sender<Mail>, job: JobId, news: News) {
    // Without an owner the keeper is ending, and nobody wants the news.
    let _ = mailbox.send(Mail::Long(job, news));
}
