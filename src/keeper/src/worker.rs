//! A `catena-datapath worker` process: started beside the running program, spoken to over its standard input, ended by
//! closing that. One request at a time.

use crate::failures::from_channel;
use catena_control::{
    Answered, Channel, ChannelError, Packet, Progress, Reply, Request, Trouble, TroubleKind,
};
use catena_types::Bytes;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Who hears what a worker says of its running request.
pub(crate) trait Listener {
    /// The request is on its way.
    fn sent(&mut self, _channel: &Channel) {}

    /// How far it is.
    fn progress(&mut self, _news: Progress) {}

    /// What it fills must have so many bytes to go on: gives what it has then, less where there is no more.
    fn enlarge(&mut self, _wanted: Bytes) -> Bytes {
        Bytes(0)
    }
}

/// Nobody.
impl Listener for () {}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    /// `None` once it has been told to end.
    channel: Option<Channel>,
}

impl Worker {
    /// Starts one.
    pub(crate) fn start() -> Result<Self, Trouble> {
        let (ours, theirs) = Channel::pair().map_err(|error| from_channel(&error))?;
        let child = Command::new(program().map_err(|error| cannot_start(&error))?)
            .arg("worker")
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| cannot_start(&error))?;
        Ok(Self { child, channel: Some(ours) })
    }

    /// The worker, unless its process has ended while it had nothing to do.
    fn if_alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A handle to speak of the running job to this worker, for another thread.
    pub(crate) fn handle(&self) -> Result<Channel, Trouble> {
        self.channel()?.try_clone().map_err(|error| from_channel(&error))
    }

    /// Sends the request with its descriptors, which are closed here as soon as they are sent: the worker's copy of a lock
    /// is then the only one (D11). Until the answer comes `listener` hears what the worker says.
    pub(crate) fn call(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        listener: &mut dyn Listener,
    ) -> Answered {
        let channel = self.channel()?;
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let sent = channel.send(request, &borrowed);
        drop(borrowed);
        drop(fds);
        sent.map_err(|error| from_channel(&error))?;
        listener.sent(channel);
        loop {
            match channel.receive::<Reply>() {
                Ok(Some(Packet { message: Reply::Progress(news), .. })) => listener.progress(news),
                Ok(Some(Packet { message: Reply::Wants { size }, .. })) => {
                    let enlarged = Request::Enlarged { size: listener.enlarge(size) };
                    channel.send(&enlarged, &[]).map_err(|error| from_channel(&error))?;
                }
                Ok(Some(Packet { message: Reply::End { outcome }, .. })) => return outcome,
                Ok(None) => return Err(died()),
                Err(error) => return Err(from_channel(&error)),
            }
        }
    }

    fn channel(&self) -> Result<&Channel, Trouble> {
        self.channel.as_ref().ok_or_else(died)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.shutdown();
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "a worker could not be waited for");
        }
    }
}

/// The small worker of an SR: kept, and replaced when it has died.
#[derive(Debug, Default)]
pub(crate) struct SmallWorker(Option<Worker>);

impl SmallWorker {
    /// Whether none is kept: the last call broke it.
    pub(crate) const fn is_gone(&self) -> bool {
        self.0.is_none()
    }

    /// Calls the worker, starting one if there is none. One that breaks in the middle is replaced at the next call; the
    /// request is not repeated, since nobody knows how far it came.
    pub(crate) fn call(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Answered {
        let kept = self.0.take().and_then(Worker::if_alive);
        let mut worker = kept.map_or_else(Worker::start, Ok)?;
        let answered = worker.call(request, fds, &mut ());
        let broken = matches!(&answered, Err(trouble) if trouble.kind == TroubleKind::Internal);
        if !broken {
            self.0 = Some(worker);
        }
        answered
    }
}

/// Tells the worker behind the handle something about its running job, without ever waiting for it: it may stand still, in a
/// request that its disk does not answer. False if it has to be said again; a worker that is gone needs no telling.
pub(crate) fn tell(worker: &Channel, request: &Request) -> bool {
    match worker.try_send(request) {
        Ok(said) => said,
        Err(ChannelError::Io(_)) => true,
        Err(error) => {
            tracing::warn!(%error, "a worker could not be told anything");
            true
        }
    }
}

/// The program beside this one that handles image bytes.
pub(crate) fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("catena-datapath"))
}

fn cannot_start(error: &io::Error) -> Trouble {
    Trouble { kind: TroubleKind::Internal, message: format!("catena-datapath cannot be started: {error}") }
}

fn died() -> Trouble {
    Trouble { kind: TroubleKind::Internal, message: "the datapath worker ended unexpectedly".to_owned() }
}
