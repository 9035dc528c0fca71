//! Threads that wait so that the event loop need not.
//!
//! ```text
//!  assign ──▶ queue ──▶ a thread waits for it ──▶ done, and the signal is set ──▶ collect
//! ```
//!
//! Invariants: the signal is set while `done` holds something, and of the crew's doing only then, as both change under one
//! lock; a job that a thread has taken is answered, even if it panics. One thread is always there, so that no job is stuck;
//! more are made when there is work for them. When the crew is dropped, jobs under way are waited for and the others never
//! begin. Owned by the engines.

use super::Completion;
use super::transfer::Transfer;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// As many are waited for at a time.
const THREADS: usize = 8;

/// What a thread can do.
pub(super) enum Job {
    Transfer(Transfer),
    Call { token: u64, call: Box<dyn FnOnce() -> io::Result<()> + Send> },
}

/// The threads and what goes to and fro.
pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Completion>>,
    signal: EventFd,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closing: bool,
}

impl Crew {
    pub(super) fn new() -> io::Result<Self> {
        let signal = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (queue, work, done) = (Mutex::default(), Condvar::new(), Mutex::default());
        let mut crew = Self { shared: Arc::new(Shared { queue, work, done, signal }), threads: Vec::new() };
        crew.grow()?;
        Ok(crew)
    }

    /// Takes the jobs of a batch.
    pub(super) fn assign(&mut self, batch: &mut Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        let (to_wake, to_make) = {
            let mut queue = locked(&self.shared.queue);
            queue.jobs.extend(batch.drain(..));
            let unserved = queue.jobs.len().saturating_sub(queue.idle);
            (queue.jobs.len().min(queue.idle), unserved.min(THREADS - self.threads.len()))
        };
        (0..to_wake).for_each(|_| self.shared.work.notify_one());
        // With fewer threads than could be, all is done a little later.
        let _ = (0..to_make).try_for_each(|_| self.grow());
    }

    fn grow(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("io".to_owned()).spawn(move || shared.work_on())?;
        self.threads.push(thread);
        Ok(())
    }

    /// Moves what is done, and clears the signal.
    pub(super) fn collect(&self, into: &mut Vec<Completion>) {
        let mut done = locked(&self.shared.done);
        if !done.is_empty() {
            self.clear_signal();
            into.append(&mut done);
        }
    }

    /// Moves what is done. The signal stays: for whoever lets others set it too.
    pub(super) fn take_done(&self, into: &mut Vec<Completion>) {
        into.append(&mut locked(&self.shared.done));
    }

    /// Followed by a look at all that may have set it.
    pub(super) fn clear_signal(&self) {
        // It waits for nothing: not set is an error here, and no harm.
        let _ = self.shared.signal.read();
    }

    /// Readable while something is done and not collected.
    pub(super) fn signal(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        locked(&self.shared.queue).closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work_on(&self) {
        while let Some(job) = self.next() {
            let completion = job.run();
            self.finish(completion);
        }
    }

    /// Waits for a job; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut queue = locked(&self.queue);
        loop {
            if queue.closing {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn finish(&self, completion: Completion) {
        let mut done = locked(&self.done);
        if done.is_empty() {
            // Its count is far from what would make this wait.
            let _ = self.signal.write(1);
        }
        done.push(completion);
    }
}

impl Job {
    fn run(self) -> Completion {
        match self {
            Self::Transfer(transfer) => transfer.wait(),
            Self::Call { token, call } => {
                // A thread that died of it would never answer, and the disk would stand still.
                let result = catch_unwind(AssertUnwindSafe(call))
                    .unwrap_or_else(|_| Err(io::Error::other("a call panicked")));
                Completion { token, result, buf: None }
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
