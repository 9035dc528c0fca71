//! The keeper's side of a long job, as the chain crate wants it: progress goes out, a stop or the keeper's end comes in.

use crate::crash;
use catena_chain::{Error, Progress as Control};
use catena_control::{Channel, Packet, Progress, Reply, Request};
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
}

impl<'a> Supervisor<'a> {
    /// Of a job that has just begun.
    pub(crate) fn new(channel: &'a Channel) -> Self {
        Self { channel, progress: Progress::default(), said: Instant::now(), stopped: false }
    }

    /// Whether the keeper wants the job to go on. A keeper that has gone does not.
    pub(crate) fn wanted(&mut self) -> bool {
        if !self.stopped {
            match self.channel.poll::<Request>() {
                Ok(None) => {}
                Ok(Some(Some(Packet { message: Request::Stop, .. }) | None)) | Err(_) => self.stopped = true,
                Ok(Some(Some(_))) => tracing::warn!("a request while another one runs is ignored"),
            }
        }
        !self.stopped
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
                Ok(0) => return Err(Error::io("waiting for the stream")(io::ErrorKind::TimedOut.into())),
                // Errors and ends are events too: the next read or write tells which.
                Ok(_) if both[0].any().unwrap_or(true) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::io("waiting for the stream")(error.into())),
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

    fn go_on(&mut self, _upcoming: Bytes) -> bool {
        crash::BATCH.pass();
        self.wanted()
    }

    fn checkpoint(&mut self, cursor: GuestOffset, done: Bytes) -> Result<(), Error> {
        crash::CHECKPOINT.pass();
        self.progress.cursor = cursor.0;
        self.progress.bytes_done = done;
        self.say();
        Ok(())
    }
}
