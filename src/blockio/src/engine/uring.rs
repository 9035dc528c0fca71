//! The engine of a ring that the kernel works on: a batch of requests is one system call.
//!
//! ```text
//!  submit ──▶ the ring's queue ──kick──▶ the kernel ──▶ the ring's completions ──completed──▶ the owner
//!     │              ▲                                        │
//!     └── full ──▶ waiting                                    └── came back short, or is to be tried again ──▶ the crew
//! ```
//!
//! Invariants: a transfer stays in `flights`, with its memory and its container, from before the kernel hears of it until the
//! kernel has answered, also when the engine is dropped; no more are in flight than there is room for answers, so none is lost.
//! The ring can read and write, nothing else: what a system call filter forbids to the process cannot be had through the ring.

use super::crew::{Crew, Job};
use super::transfer::{Direction, Transfer};
use super::{Completion, Engine, Op};
use crate::container::Sizing;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::libc;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Requests that are handed to the kernel at a time.
const BATCH: u32 = 256;
/// Requests that are in flight at a time, and answers that there is room for.
const FLIGHTS: u32 = 1024;

/// See [`UringEngine::patience`].
const PATIENCE: u8 = 16;

/// How a ring lets its owner know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// The kernel's part of an answer is done when the owner asks for it, in one go for all (from Linux 6.1 on).
    WhenAsked,
    /// It interrupts the owner for each.
    AsTheyCome,
}

/// The engine of a ring.
pub(super) struct UringEngine {
    ring: IoUring,
    flights: Flights,
    /// What the ring has no room for.
    waiting: VecDeque<Transfer>,
    /// Its signal is the ring's too.
    crew: Crew,
    batch: Vec<Job>,
    done: Vec<Completion>,
    /// Looks in vain until the signal is cleared. To clear it at each of them would be a system call for nothing, as they are
    /// many and the signal is seldom set; and never to clear it would wake the owner for ever.
    patience: u8,
}

impl UringEngine {
    /// The best ring that this kernel makes.
    pub(super) fn new() -> io::Result<Self> {
        Self::answering(Answers::WhenAsked).or_else(|_| Self::answering(Answers::AsTheyCome))
    }

    pub(super) fn answering(answers: Answers) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(FLIGHTS).setup_r_disabled();
        if answers == Answers::WhenAsked {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        let ring: IoUring = builder.build(BATCH)?;
        let crew = Crew::new()?;
        // To watch the ring itself does not do: work that is left for its owner wakes no epoll.
        ring.submitter().register_eventfd(crew.signal().as_raw_fd())?;
        let codes = [opcode::Read::CODE, opcode::Write::CODE];
        ring.submitter().register_restrictions(&mut codes.map(Restriction::sqe_op))?;
        ring.submitter().register_enable_rings()?;
        let (flights, waiting) = (Flights::default(), VecDeque::new());
        Ok(Self { ring, flights, waiting, crew, batch: Vec::new(), done: Vec::new(), patience: 0 })
    }

    fn take(&mut self, mut transfer: Transfer) {
        if transfer.is_long_copy() {
            return self.batch.push(Job::Transfer(transfer));
        }
        let Some(fd) = transfer.bare() else { return self.batch.push(Job::Transfer(transfer)) };
        if let Some(error) = beyond_the_device(&transfer) {
            return self.done.push(transfer.end(Err(error)));
        }
        match u32::try_from(transfer.rest().len()) {
            Ok(_) if self.flights.count() >= FLIGHTS as usize => self.waiting.push_back(transfer),
            Ok(len) => self.fly(transfer, fd, len),
            Err(_) => self.batch.push(Job::Transfer(transfer)),
        }
    }

    fn fly(&mut self, mut transfer: Transfer, fd: RawFd, len: u32) {
        let (memory, at) = (transfer.rest().as_mut_ptr(), transfer.rest_at().0);
        let entry = match transfer.direction {
            Direction::Read => opcode::Read::new(types::Fd(fd), memory, len).offset(at).build(),
            Direction::Write => opcode::Write::new(types::Fd(fd), memory, len).offset(at).build(),
        };
        let entry = entry.user_data(self.flights.add(transfer));
        if !self.push(&entry) {
            // The queue is full: the kernel empties it. Where it cannot now, a thread does what has no place.
            let _ = self.tell_kernel();
            if !self.push(&entry) {
                let transfer = self.flights.remove(entry.get_user_data());
                self.batch.extend(transfer.map(Job::Transfer));
            }
        }
    }

    /// `false` if the queue is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the memory belongs to a buffer in `flights`, which moves neither it nor lets it go before the kernel has
        // answered; the descriptor belongs to the container beside it.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Hands over what is in the queue, and has the kernel finish what it has answers for.
    fn tell_kernel(&self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the kernel's answers.
    fn harvest(&mut self) {
        for answer in self.ring.completion() {
            let Some(mut transfer) = self.flights.remove(answer.user_data()) else { continue };
            let result = answer.result();
            if result < 0 {
                match Errno::from_raw(result.wrapping_neg()) {
                    Errno::EINTR | Errno::EAGAIN => self.batch.push(Job::Transfer(transfer)),
                    errno => self.done.push(transfer.end(Err(errno.into()))),
                }
                continue;
            }
            transfer.done += result.unsigned_abs() as usize;
            if transfer.rest().is_empty() {
                self.done.push(transfer.end(Ok(())));
            } else {
                // The end of a file, or a storage that is full: the container knows what that means.
                self.batch.push(Job::Transfer(transfer));
            }
        }
    }

    /// Takes what others have done; whether there was anything.
    fn look(&mut self, into: &mut Vec<Completion>) -> bool {
        let before = into.len();
        self.crew.take_done(into);
        self.harvest();
        if self.is_kernel_needed() {
            // Where it fails, the next kick tells.
            let _ = self.tell_kernel();
            self.harvest();
        }
        if !self.waiting.is_empty() {
            self.refill();
            let _ = self.tell_kernel();
        }
        self.crew.assign(&mut self.batch);
        into.append(&mut self.done);
        into.len() > before
    }

    /// Takes up what waited for room.
    fn refill(&mut self) {
        while self.flights.count() < FLIGHTS as usize {
            let Some(transfer) = self.waiting.pop_front() else { return };
            self.take(transfer);
        }
    }

    /// Whether the kernel has to be told of requests, or asked for answers.
    fn is_kernel_needed(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, token: u64, op: Op) {
        match op.into_job(token) {
            Job::Transfer(transfer) => match transfer.copied() {
                Ok(completion) => self.done.push(completion),
                Err(transfer) => self.take(transfer),
            },
            call @ Job::Call { .. } => self.batch.push(call),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.crew.assign(&mut self.batch);
        if !self.is_kernel_needed() {
            return Ok(());
        }
        match self.tell_kernel() {
            // It has no memory for more, and what is in flight gives some back: `completed` tries again.
            Err(error) if is_passing(&error) && self.flights.count() > self.ring.submission().len() => Ok(()),
            outcome => outcome,
        }
    }

    fn completed(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
        if self.look(into) {
            self.patience = 0;
        } else if self.patience > 0 {
            self.patience -= 1;
        } else {
            // Cleared before a look at what it stands for: what comes after the look sets it again.
            self.crew.clear_signal();
            self.patience = if self.look(into) { 0 } else { PATIENCE };
        }
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.crew.signal()
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for UringEngine {
    /// Waits until the kernel has let go of all memory. What it was not told of never begins.
    fn drop(&mut self) {
        loop {
            self.harvest();
            let unheard = self.ring.submission().len();
            if self.flights.count() <= unheard {
                return;
            }
            // SAFETY: no argument is passed; it hands over nothing and waits for one answer.
            let outcome = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, GET_ANSWERS, None) };
            if outcome.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted && !is_passing(&error)) {
                // Another thread than the ring's own, say. The kernel may still write to this memory, so nobody else gets it.
                return std::mem::forget(std::mem::take(&mut self.flights));
            }
        }
    }
}

/// `IORING_ENTER_GETEVENTS`.
const GET_ANSWERS: u32 = 1;

/// Errors of a kernel that is short of memory or has answers that nobody has taken.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

/// The error of a write past the end of a container of fixed size, which must change nothing; the kernel would write the part
/// that fits.
fn beyond_the_device(transfer: &Transfer) -> Option<io::Error> {
    if transfer.direction == Direction::Read || transfer.container.sizing() == Sizing::Automatic {
        return None;
    }
    let end = transfer.at.0.saturating_add(transfer.range.len() as u64);
    match transfer.container.size() {
        Ok(size) if end <= size.0 => None,
        Ok(_) => Some(Errno::ENOSPC.into()),
        Err(error) => Some(error),
    }
}

/// Transfers under numbers that are used again.
#[derive(Default)]
struct Flights {
    slots: Vec<Option<Transfer>>,
    free: Vec<usize>,
}

impl Flights {
    fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn add(&mut self, transfer: Transfer) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(transfer);
        slot as u64
    }

    fn remove(&mut self, number: u64) -> Option<Transfer> {
        let slot = usize::try_from(number).ok()?;
        let transfer = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(transfer)
    }
}
