//! The keeper's side of a long job, as the chain crate wants it: progress goes out; a stop, another pace or the keeper's end
//! comes in.
//!
//! A pace takes effect at the next batch: the I/O class is that of the thread that runs the job, and the threads of a batch are
//! made by it for that batch, so they inherit it. For the batch that runs, the keeper sets it from outside.

use crate::pacing::Bucket;
use crate::trouble::stream_error;
use crate::{crash, privileges};
use catena_chain::{Error, Progress as Control};
use catena_control::{Channel, Pace, Packet, Progress, Reply, Request};
use catena_types::{Bytes, GuestOffset};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How often a job that has no checkpoints says how far it is.
const NEWS_EVERY: Duration = Duration::from_millis(250);

/// Watches over one job.
pub(crate) struct Supervisor<'a> {
    channel: &'a Channel,
    progress: Progress,
    said: Instant,
    stopped: bool,
    bucket: Bucket,
    begun: Instant,
}

impl<'a> Supervisor<'a> {
    /// Of a job that has just begun.
    pub(crate) fn new(channel: &'a Channel) -> Self {
        let begun = Instant::now();
        let bucket = Bucket::new(Bytes(0));
        Self { channel, progress: Progress::default(), said: begun, stopped: false, bucket, begun }
    }

    /// Of a job that has just begun and keeps to a pace.
    pub(crate) fn paced(channel: &'a Channel, pace: Pace) -> Self {
        let mut supervisor = Self::new(channel);
        supervisor.pace(pace);
        supervisor
    }

    /// From here on. A job that cannot have its class runs all the same; the log says so, and the keeper asks the kernel.
    fn pace(&mut self, pace: Pace) {
        if let Err(error) = privileges::set_io_class(pace.class) {
            tracing::warn!(class = %pace.class, %error, "the I/O class cannot be set");
        }
        self.bucket.set_rate(pace.rate, self.begun.elapsed());
    }

    /// Whether the keeper wants the job to go on. A keeper that has gone does not.
    pub(crate) fn wanted(&mut self) -> bool {
        while !self.stopped {
            match self.channel.poll::<Request>() {
                Ok(None) => break,
                Ok(Some(Some(Packet { message: Request::Stop, .. }) | None)) | Err(_) => self.stopped = true,
                Ok(Some(Some(Packet { message: Request::Pace(pace), .. }))) => self.pace(pace),
                Ok(Some(Some(_))) => tracing::warn!("a request while another one runs is ignored"),
            }
        }
        !self.stopped
    }

    /// Has the keeper make the container that is being filled larger: at least `wanted` bytes. Returns what it has then.
    ///
    /// # Errors
    /// `Stopped` when the keeper wants no more, `ENOSPC` where the storage has no more.
    pub(crate) fn enlarged(&mut self, wanted: Bytes) -> Result<Bytes, Error> {
        if !self.wanted() || self.channel.send(&Reply::Wants { size: wanted }, &[]).is_err() {
            return Err(Error::Stopped);
        }
        loop {
            match self.channel.receive::<Request>() {
                Ok(Some(Packet { message: Request::Enlarged { size }, .. })) if size >= wanted => {
                    return Ok(size);
                }
                Ok(Some(Packet { message: Request::Enlarged { .. }, .. })) => {
                    return Err(Error::io("making room for the new image")(Errno::ENOSPC.into()));
                }
                Ok(Some(Packet { message: Request::Pace(pace), .. })) => self.pace(pace),
                _ => {
                    self.stopped = true;
                    return Err(Error::Stopped);
                }
            }
        }
    }

    /// Waits until the stream behind `fd` is ready for `events`, or has come to an end.
    ///
    /// # Errors
    /// `Stopped` as soon as the keeper wants no more, so that a stream that stands still holds nobody up; `Io` after `patience`.
    pub(crate) fn ready(
        &mut self,
        fd: BorrowedFd<'_>,
        events: PollFlags,
        patience: Option<Duration>,
    ) -> Result<(), Error> {
        let timeout = patience
            .map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        while self.wanted() {
            let mut both = [PollFd::new(fd, events), PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            match poll(&mut both, timeout) {
                Ok(0) => return Err(stream_error("waiting for the stream")(io::ErrorKind::TimedOut.into())),
                // Errors and ends are events too: the next read or write tells which.
                Ok(_) if both[0].any().unwrap_or(true) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(stream_error("waiting for the stream")(error.into())),
            }
        }
        Err(Error::Stopped)
    }

    /// All that is to be done is done, for a job that could not know its total.
    pub(crate) fn all_done(&mut self) {
        self.total(self.progress.bytes_done);
    }

    /// So much is to be done.
    pub(crate) fn total(&mut self, total: Bytes) {
        self.progress.bytes_total = total;
        self.say();
    }

    /// So much more is done, by a job without checkpoints; an error if the keeper wants no more.
    pub(crate) fn advance(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.progress.bytes_done.0 += bytes.0;
        if self.said.elapsed() >= NEWS_EVERY {
            self.say();
        }
        if self.wanted() { Ok(()) } else { Err(Error::Stopped) }
    }

    fn say(&mut self) {
        self.said = Instant::now();
        if self.channel.send(&Reply::Progress(self.progress), &[]).is_err() {
            self.stopped = true;
        }
    }
}

impl Control for Supervisor<'_> {
    fn planned(&mut self, total: Bytes) {
        self.total(total);
    }

    fn allowance(&mut self) -> Bytes {
        self.bucket.allowance()
    }

    fn go_on(&mut self, upcoming: Bytes) -> bool {
        crash::BATCH.pass();
        while self.wanted() {
            let wait = self.bucket.wait(self.begun.elapsed());
            if wait.is_zero() {
                self.bucket.spend(upcoming, self.begun.elapsed());
                return true;
            }
            // A message ends the wait: it may be another rate.
            self.stopped = self.channel.wait(wait).is_err();
        }
        false
    }

    fn checkpoint(&mut self, cursor: GuestOffset, done: Bytes) -> Result<(), Error> {
        crash::CHECKPOINT.pass();
        self.progress.cursor = cursor.0;
        self.progress.bytes_done = done;
        self.say();
        Ok(())
    }
}
