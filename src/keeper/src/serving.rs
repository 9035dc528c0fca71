//! The processes that serve attached disks, as their keeper sees them: started here, spoken to over their control sockets, left
//! alone when the keeper ends.
//!
//! A process has a session of its own and no bond with the keeper but the socket, so it survives keeper and front; a keeper that
//! was started anew connects to it again (`adoption`). A thread for each connection reads it: answers go to whoever asked, news to
//! the owner's mailbox.
//!
//! The owner waits for answers, and everybody waits for the owner. So it first makes sure that somebody is there who answers at
//! all ([`MOMENT`]), and asks one that owes an answer nothing more: a process that hangs costs its SR a moment, once.

use crate::failing::Failing;
use crate::failures::{from_channel, from_trouble};
use crate::owner::Mail;
use crate::rundir::Sockets;
use catena_control::{Ask, Channel, Handed, Hello, Packet, Said, Told, Trouble};
use catena_types::{Bytes, ErrorName, Failure, ImageId, VdiUuid};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a process may think about a question.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to say that it is there, which no storage has a part in.
const MOMENT: Duration = Duration::from_secs(2);

/// What the owner hears of a process that serves a disk.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It has answered for the first time since it was connected to.
    Greeting,
    /// Its storage, which had failed, was tried.
    Tried(Result<(), String>),
    /// What it says unasked.
    News(catena_control::News),
    /// Its connection is closed.
    Gone,
    /// It has ended, in this way.
    Ended(String),
    /// Said by the keeper itself: what it tells of a move is about the one of this number from here on.
    Moves(u64),
}

/// A leaf merge that a process has open, and with it a second image that it writes (D14).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    /// That image.
    pub(crate) into: ImageId,
    /// The number that it was asked for with.
    pub(crate) generation: u64,
    /// The rate that the process was told; none yet of one that was taken over.
    pub(crate) rate: Option<Bytes>,
    /// Whether what the process tells is about this one: what it told of an earlier one may still be on its way.
    pub(crate) heard: bool,
    /// It has said that the leaf durably owns nothing.
    pub(crate) emptied: bool,
    /// When it is tried again to bring it to what the catalog says, if that has failed.
    pub(crate) retry_at: Option<Instant>,
    /// When the catalog last noted how far it is.
    pub(crate) noted: Instant,
}

impl Move {
    /// One that is heard of for the first time.
    pub(crate) fn of(into: ImageId, generation: u64) -> Self {
        Self {
            into,
            generation,
            rate: None,
            heard: true,
            emptied: false,
            retry_at: None,
            noted: Instant::now(),
        }
    }
}

/// A disk that is being served, or should be.
#[derive(Debug)]
pub(crate) struct Served {
    /// Counts processes and connections: what is heard of an earlier one does not count.
    pub(crate) incarnation: u64,
    /// How to talk to the process; none while there is none, or it does not answer.
    pub(crate) link: Option<Link>,
    /// A process that was connected to and has not answered yet. It is not connected to again: when it answers it is taken up.
    pub(crate) knock: Option<Link>,
    /// It was told to stop, or is to be told, and somebody waits for it until then.
    pub(crate) stop_by: Option<Instant>,
    /// The process, as it said; 0 before.
    pub(crate) pid: u32,
    /// The images that the process has open, leaf first. While it is not known, it may be any.
    pub(crate) chain: Option<Vec<ImageId>>,
    /// The move that the process has open.
    pub(crate) moving: Option<Move>,
    /// It has said that the storage is full, so that writes wait.
    pub(crate) full: bool,
    /// The last number given to a change of its chain.
    pub(crate) generation: u64,
    /// How often in a row it was tried to find or start a process.
    pub(crate) attempts: u32,
    /// When that is tried again.
    pub(crate) retry_at: Option<Instant>,
    /// How the last process has ended.
    pub(crate) ended: Option<String>,
    /// Whether its storage has failed.
    pub(crate) failing: Failing,
}

impl Served {
    /// A disk of which nothing is known yet.
    pub(crate) const fn unknown() -> Self {
        Self {
            incarnation: 0,
            link: None,
            knock: None,
            stop_by: None,
            pid: 0,
            chain: None,
            moving: None,
            full: false,
            generation: 0,
            attempts: 0,
            retry_at: None,
            ended: None,
            failing: Failing::not(),
        }
    }

    /// The link, which must be there.
    pub(crate) fn link(&mut self, vdi: VdiUuid) -> Result<&mut Link, Failure> {
        self.link.as_mut().ok_or_else(|| silent(vdi))
    }

    /// Whether who waits for its end has something to do: tell it to stop, fetch its last answer, or give up.
    pub(crate) fn ends(&self, now: Instant) -> bool {
        let goes_on = |link: &Link| !link.is_told_to_stop() || link.is_gone();
        self.stop_by.is_none_or(|by| now >= by) || self.link.as_ref().is_some_and(goes_on)
    }

    /// A number for the next change of the chain.
    pub(crate) const fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Whether its end is being waited for.
    pub(crate) fn is_stopping(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_told_to_stop)
    }

    /// The process is heard to have gone. One that did not begin to serve is not tried again any sooner for that.
    pub(crate) fn went(&mut self, after: Duration) {
        let rests = self.retry_at.filter(|_| self.attempts > 0);
        self.lose(after);
        self.retry_at = rests.or(self.retry_at);
    }

    /// The link broke, or cannot be relied on: whatever the process does next, it is asked again before it is told anything.
    pub(crate) fn lose(&mut self, after: Duration) {
        (self.link, self.knock) = (None, None);
        self.retry_at = Some(Instant::now() + after);
    }
}

/// A connection to a process. Questions are answered in order.
#[derive(Debug)]
pub(crate) struct Link {
    channel: Channel,
    answers: Receiver<Result<Told, Trouble>>,
    /// Answers that nobody waits for, or not any more.
    owed: usize,
    /// Somebody has waited for one of them in vain.
    is_late: bool,
    told_to_stop: bool,
    gone: Arc<AtomicBool>,
    /// The process, once it was told to stop.
    ending: Arc<OnceLock<Process>>,
    vdi: VdiUuid,
}

impl Link {
    /// Takes up a connection. What is heard over it reaches the mailbox under this incarnation.
    pub(crate) fn open(
        channel: Channel,
        vdi: VdiUuid,
        incarnation: u64,
        mailbox: &Sender<Mail>,
    ) -> Result<Self, Failure> {
        let reader = channel.try_clone().map_err(|error| from_trouble(&from_channel(&error)))?;
        let (sender, answers) = self::channel();
        let gone = Arc::new(AtomicBool::new(false));
        let ending: Arc<OnceLock<Process>> = Arc::default();
        let (mailbox, is_gone, process) = (mailbox.clone(), Arc::clone(&gone), Arc::clone(&ending));
        std::thread::spawn(move || {
            listen(&reader, &sender, &mailbox, vdi, incarnation);
            // It closes the connection before the last of its files: who detaches may unmount what they lie on.
            if let Some(process) = process.get() {
                process.ends_within(PATIENCE);
            }
            is_gone.store(true, Ordering::SeqCst);
            drop(sender);
            // Without an owner the keeper is ending, here and below.
            let _ = mailbox.send(Mail::Served(vdi, incarnation, Heard::Gone));
        });
        Ok(Self { channel, answers, owed: 0, is_late: false, told_to_stop: false, gone, ending, vdi })
    }

    /// Whether the process has closed the connection, and has ended if it was told to.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Whether the process is there, and has answered every question.
    pub(crate) fn is_sound(&mut self) -> bool {
        !self.is_gone() && !self.is_owed()
    }

    /// Whether an answer is missing that somebody has waited for in vain.
    pub(crate) fn is_owed(&mut self) -> bool {
        while self.owed > 0 && self.answers.try_recv().is_ok() {
            self.owed -= 1;
        }
        self.is_late &= self.owed > 0;
        self.is_late
    }

    /// Tells it something whose answer nobody waits for.
    pub(crate) fn tell(&mut self, ask: &Ask) -> Result<(), Failure> {
        if self.told_to_stop || self.is_owed() {
            return Err(silent(self.vdi));
        }
        self.put(ask, &[])?;
        self.owed += 1;
        Ok(())
    }

    /// Whether it was told to stop: that is its last answer.
    pub(crate) const fn is_told_to_stop(&self) -> bool {
        self.told_to_stop
    }

    /// Tells it to stop, the process with this number as it said itself; its answer is to be fetched when it has gone.
    pub(crate) fn stop(&mut self, pid: u32) -> Result<(), Failure> {
        if let Some(process) = Process::of(pid) {
            // It stays what it was told first: the connection is that of one process.
            let _ = self.ending.set(process);
        }
        self.put(&Ask::Stop, &[])?;
        self.told_to_stop = true;
        Ok(())
    }

    /// Sends a question, whose answer is to be fetched before the next one is asked. The descriptors are the caller's to close.
    pub(crate) fn put(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        match self.channel.try_send_with(ask, fds) {
            Ok(true) => Ok(()),
            Ok(false) => Err(silent(self.vdi)),
            Err(error) => Err(lost(self.vdi, &from_channel(&error).message)),
        }
    }

    /// The answer to the last question.
    pub(crate) fn answer(&mut self, patience: Duration) -> Result<Told, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(_) if self.owed > 0 => self.owed -= 1,
                Ok(answer) => {
                    return answer.map_err(|trouble| from_trouble(&trouble).object("vdi", self.vdi));
                }
                Err(RecvTimeoutError::Timeout) => {
                    (self.owed, self.is_late) = (self.owed + 1, true);
                    return Err(silent(self.vdi));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(lost(self.vdi, "it has closed the connection"));
                }
            }
        }
    }

    /// A question and its answer, if there is somebody who answers.
    pub(crate) fn ask(&mut self, ask: &Ask, fds: Vec<OwnedFd>) -> Result<Told, Failure> {
        if self.told_to_stop || self.is_owed() {
            return Err(silent(self.vdi));
        }
        // What it was told it may have to do first.
        self.hello(if self.owed > 0 { PATIENCE } else { MOMENT })?;
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let sent = self.put(ask, &borrowed);
        drop(borrowed);
        // D11: the process's copy of a lock is the only one from here on.
        drop(fds);
        sent?;
        self.answer(PATIENCE)
    }

    /// What the process is serving.
    pub(crate) fn hello(&mut self, patience: Duration) -> Result<Hello, Failure> {
        self.put(&Ask::Hello, &[])?;
        match self.answer(patience)? {
            Told::Hello(hello) => Ok(hello),
            _ => Err(crate::images::unexpected()),
        }
    }

    /// The first answer after [`put`](Self::put) has asked for it; none if it has not come in time, and then it may be waited
    /// for again.
    pub(crate) fn greeting(&mut self, patience: Duration) -> Result<Option<Hello>, Failure> {
        match self.answers.recv_timeout(patience) {
            Ok(Ok(Told::Hello(hello))) => Ok(Some(hello)),
            Ok(Ok(_)) => Err(crate::images::unexpected()),
            Ok(Err(trouble)) => Err(from_trouble(&trouble).object("vdi", self.vdi)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(lost(self.vdi, "it has closed the connection")),
        }
    }

    /// Waits until the process closes the connection, and has ended if it was told to; false if it does not in time.
    pub(crate) fn ends_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

/// A process whose end can be waited for, whoever started it.
#[derive(Debug)]
struct Process(OwnedFd);

impl Process {
    /// The process with this number; none if there is none.
    fn of(pid: u32) -> Option<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        pidfd_open(number, PidfdFlags::empty()).ok().map(Self)
    }

    /// Waits until it has ended and has nothing open any more, but not forever.
    fn ends_within(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Ends the thread that reads; the process lives on.
        self.channel.shutdown();
    }
}

fn listen(
    channel: &Channel,
    answers: &Sender<Result<Told, Trouble>>,
    mailbox: &Sender<Mail>,
    vdi: VdiUuid,
    incarnation: u64,
) {
    let mut is_first = true;
    loop {
        match channel.receive::<Said>() {
            Ok(Some(Packet { message: Said::Answer(answer), .. })) => {
                // Nobody waits if the link was given up.
                let _ = answers.send(answer);
                if std::mem::take(&mut is_first) {
                    let _ = mailbox.send(Mail::Served(vdi, incarnation, Heard::Greeting));
                }
            }
            Ok(Some(Packet { message: Said::News(news), .. })) => {
                let _ = mailbox.send(Mail::Served(vdi, incarnation, Heard::News(news)));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%vdi, %error, "what a datapath says cannot be understood");
                return;
            }
        }
    }
}

/// What a process is started with.
#[derive(Debug)]
pub(crate) struct Start {
    /// The disk.
    pub(crate) vdi: VdiUuid,
    /// For reading only.
    pub(crate) read_only: bool,
    /// Its sockets.
    pub(crate) sockets: Sockets,
    /// D7.
    pub(crate) pending: File,
    /// The chain, leaf first.
    pub(crate) images: Vec<(Handed, OwnedFd)>,
    /// Of them the one that a predecessor moved the leaf into, and that is written too.
    pub(crate) moving_into: Option<ImageId>,
}

impl Start {
    /// Starts the process in a session of its own. All descriptors are its alone when this returns (D11). How it ends reaches the
    /// mailbox under this incarnation, if the keeper lives to see it.
    pub(crate) fn run(self, incarnation: u64, mailbox: &Sender<Mail>) -> io::Result<u32> {
        let mut command = Command::new(crate::worker::program()?);
        command.arg("serve").arg("--vdi").arg(self.vdi.to_string());
        let mut kept: Vec<RawFd> = Vec::new();
        let mut hand = |command: &mut Command, option: &str, fd: RawFd, rest: &str| {
            kept.push(fd);
            command.arg(option).arg(format!("{fd}{rest}"));
        };
        hand(&mut command, "--nbd", self.sockets.nbd.as_raw_fd(), "");
        hand(&mut command, "--control", self.sockets.control.as_raw_fd(), "");
        hand(&mut command, "--pending", self.pending.as_raw_fd(), "");
        for (image, fd) in &self.images {
            let rest = format!(":{}:{}", image.id, image.format.extension());
            hand(&mut command, "--image", fd.as_raw_fd(), &rest);
        }
        if self.read_only {
            command.arg("--read-only");
        }
        if let Some(image) = self.moving_into {
            command.arg("--moving-into").arg(image.to_string());
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec this calls setsid and fcntl, which are async-signal-safe, and allocates nothing; the
        // descriptors are open, since `self` holds them until after the start.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                for fd in &kept {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let (pid, vdi, mailbox) = (child.id(), self.vdi, mailbox.clone());
        std::thread::spawn(move || collect(child, vdi, incarnation, &mailbox));
        Ok(pid)
    }
}

/// Waits for the end of a process that this keeper has started.
fn collect(mut child: Child, vdi: VdiUuid, incarnation: u64, mailbox: &Sender<Mail>) {
    let how = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => format!("it cannot be waited for: {error}"),
    };
    let _ = mailbox.send(Mail::Served(vdi, incarnation, Heard::Ended(how)));
}

/// The process does not answer.
pub(crate) fn silent(vdi: VdiUuid) -> Failure {
    Failure::new(ErrorName::VdiUnavailable, "the process that serves this disk does not answer")
        .hint("its storage may hang; see the log, and try again")
        .retry()
        .object("vdi", vdi)
}

fn lost(vdi: VdiUuid, why: &str) -> Failure {
    Failure::new(ErrorName::VdiUnavailable, format!("the process that serves this disk is gone: {why}"))
        .hint("it is being replaced; try again in a moment")
        .retry()
        .object("vdi", vdi)
}
