//! Long jobs: a thread with a worker process of its own, which reports to the owner's mailbox.
//!
//! The thread runs a script of requests and touches no catalog. Its process ends with it; the owner knows that the
//! process's locks are free when the end of the script is in the mailbox, because it is sent after the process was reaped.

use crate::cgroup::Group;
use crate::ioclass;
use crate::owner::Mail;
use crate::worker::{self, Worker};
use catena_control::{Answered, Channel, Pace, Progress, Request, Trouble};
use catena_types::JobId;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

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
}

impl Session<'_> {
    /// One request to the process; its progress goes to the owner.
    pub(crate) fn call(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Answered {
        let (mailbox, job) = (self.mailbox, self.job);
        self.worker.call(request, fds, |progress| tell(mailbox, job, News::Progress(progress)))
    }

    /// Progress that the script itself has made.
    pub(crate) fn progress(&self, progress: Progress) {
        tell(self.mailbox, self.job, News::Progress(progress));
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
    thread: Option<JoinHandle<()>>,
}

impl LongJob {
    /// Starts the process and the thread.
    pub(crate) fn start(job: JobId, mailbox: &Sender<Mail>, script: Script) -> Result<Self, Trouble> {
        let mut worker = Worker::start()?;
        let (handle, pid) = (worker.handle()?, worker.pid());
        let alive = Arc::new(Mutex::new(true));
        let (mailbox, ending) = (mailbox.clone(), Arc::clone(&alive));
        let thread = std::thread::spawn(move || {
            let mut session = Session { worker: &mut worker, mailbox: &mailbox, job };
            let end = script(&mut session);
            *ending.lock().unwrap_or_else(PoisonError::into_inner) = false;
            drop(worker);
            tell(&mailbox, job, News::End(end));
        });
        Ok(Self { handle, pid, alive, thread: Some(thread) })
    }

    /// Asks it to stop; its end comes to the mailbox. May be said again: one that stands still may not have heard it.
    pub(crate) fn stop(&self) {
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
