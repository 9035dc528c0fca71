//! What a keeper asks, on its way to the disk.
//!
//! Images that come with a question are opened in a thread of the engine, where the storage may take its time; the questions
//! behind it wait, requests do not. Called by the event loop.

use super::control::{Answer, Keepers};
use super::core::Core;
use super::disk::Change;
use super::opening;
use crate::trouble::{from_io, trouble};
use crate::{crash, privileges};
use anyhow::anyhow;
use catena_blockio::lock_exclusive;
use catena_control::{Ask, Handed, Limits, Stats, Told, Trouble, TroubleKind};
use catena_types::{Bytes, ImageId};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far the end is.
#[derive(Debug)]
enum End {
    /// Nobody wants it.
    No,
    /// The disk is closing; the answer of this number is that it has.
    Asked(u64),
    /// It has closed, or could not.
    Closed(Result<(), Trouble>),
}

/// A question whose images are being opened, and where they are going to be.
struct Opening {
    asker: u32,
    change: Arc<Mutex<Option<Result<Change, Trouble>>>>,
}

/// The way of questions.
pub(crate) struct Changes {
    read_only: bool,
    opening: Option<Opening>,
    /// Since when writes are held back.
    paused: Option<Instant>,
    /// How often they were.
    pauses: u64,
    longest_pause: Duration,
    /// Changes that the disk was asked for so far.
    asked: u64,
    /// Those that it has answered.
    answered: u64,
    end: End,
}

impl Changes {
    /// Nothing was asked.
    pub(crate) const fn new(read_only: bool) -> Self {
        Self {
            read_only,
            opening: None,
            paused: None,
            pauses: 0,
            longest_pause: Duration::ZERO,
            asked: 0,
            answered: 0,
            end: End::No,
        }
    }

    /// Takes in what the keeper asks, up to a question whose images have to be opened first.
    pub(crate) fn take_in(&mut self, keepers: &mut Keepers, core: &mut Core) {
        if core.called.take().is_some() {
            self.opened(keepers, core);
        }
        // What is asked while the disk or a device of it grows waits until it has: the leaf, or its footer, is in other hands.
        while self.opening.is_none()
            && core.disk.takes_questions()
            && let Some((ask, fds)) = keepers.next()
        {
            self.question(ask, fds, keepers, core);
        }
    }

    fn question(&mut self, ask: Ask, fds: Vec<OwnedFd>, keepers: &mut Keepers, core: &mut Core) {
        let asker = keepers.asker();
        let change = match ask {
            Ask::Hello => return keepers.owe(asker, Answer::Hello),
            Ask::Stats => return keepers.owe(asker, Answer::Stats),
            _ if self.is_ending() => Err(is_being_closed()),
            Ask::Stop => return self.stop(keepers, core),
            Ask::Quiesce { generation } => Ok(Change::Quiesce { generation }),
            Ask::Resume { generation, swap } => Ok(Change::Resume { generation, swap }),
            Ask::Limit(limits) => return keepers.owe(asker, Answer::Ready(limit(&limits, core))),
            Ask::Patch { patches } => Ok(Change::Patch { patches }),
            Ask::SetHidden { hidden } => Ok(Change::SetHidden { hidden }),
            Ask::Grow { size } => Ok(Change::Grow { size }),
            Ask::Prepare { generation, leaf } => {
                return self.open(asker, core, move || prepare(generation, &leaf, fds));
            }
            Ask::Relink { generation, chain } => {
                let present = core.disk.hello().chain.first().copied();
                let leaf = if self.read_only { None } else { present };
                return self.open(asker, core, move || relink(generation, chain, leaf, fds));
            }
            // A keeper that has adopted us asks for what is open already: the image is in our hands.
            Ask::MoveDown { generation, into, rate } if core.disk.hello().moving_into == Some(into.id) => {
                Ok(Change::MoveOn { generation, rate })
            }
            Ask::MoveDown { generation, into, rate } => {
                return self.open(asker, core, move || move_down(generation, &into, rate, fds));
            }
            Ask::Watermark { room, chunk } => Ok(Change::Watermark { room, chunk }),
            Ask::Enlarged { image, size } => Ok(Change::Enlarged { image, size }),
            Ask::EndMove { generation, complete } => Ok(Change::EndMove { generation, complete }),
        };
        match change {
            Ok(change) => self.ask(asker, change, keepers, core),
            Err(trouble) => keepers.owe(asker, Answer::Ready(Err(trouble))),
        }
    }

    fn open(
        &mut self,
        asker: u32,
        core: &mut Core,
        open: impl FnOnce() -> Result<Change, Trouble> + Send + 'static,
    ) {
        let change = Arc::default();
        self.opening = Some(Opening { asker, change: Arc::clone(&change) });
        core.call(move || {
            *change.lock().unwrap_or_else(PoisonError::into_inner) = Some(open());
            Ok(())
        });
    }

    /// The images that came with a question are open, or cannot be.
    fn opened(&mut self, keepers: &mut Keepers, core: &mut Core) {
        let Some(Opening { asker, change }) = self.opening.take() else { return };
        match change.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Ok(_)) if self.is_ending() => keepers.owe(asker, Answer::Ready(Err(is_being_closed()))),
            Some(Ok(change)) => self.ask(asker, change, keepers, core),
            Some(Err(trouble)) => keepers.owe(asker, Answer::Ready(Err(trouble))),
            None => {
                let trouble = trouble(TroubleKind::Internal, "the images could not be opened");
                keepers.owe(asker, Answer::Ready(Err(trouble)));
            }
        }
    }

    /// Has the disk closed.
    pub(crate) fn stop(&mut self, keepers: &mut Keepers, core: &mut Core) {
        if !self.is_ending() {
            self.end = End::Asked(self.asked + 1);
            self.ask(keepers.asker(), Change::Stop, keepers, core);
        }
    }

    fn ask(&mut self, asker: u32, change: Change, keepers: &mut Keepers, core: &mut Core) {
        self.asked += 1;
        keepers.owe(asker, Answer::FromDisk);
        core.disk.ask(change, &mut *core.engine);
    }

    /// Passes on the answers, and what there is to tell.
    pub(crate) fn answer(&mut self, keepers: &mut Keepers, core: &mut Core, connections: usize) {
        for news in core.disk.news() {
            keepers.tell(news);
        }
        for answer in core.disk.answers() {
            self.answered += 1;
            if matches!(self.end, End::Asked(number) if self.answered == number) {
                self.end = End::Closed(answer.clone().map(drop));
            }
            crash::SERVE_ANSWER.pass();
            keepers.disk_answers(answer);
        }
        // What was written is stored before writes are held back, and the answer to a resume comes when the old leaf is let go of:
        // writes go on before the one and after the other.
        if core.disk.is_quiescing() {
            self.paused.get_or_insert_with(Instant::now);
        } else if let Some(since) = self.paused.take() {
            self.pauses += 1;
            self.longest_pause = self.longest_pause.max(since.elapsed());
        }
        keepers.answer(|answer| match answer {
            Answer::Hello => Told::Hello(core.disk.hello()),
            _ => Told::Stats(Box::new(self.stats(core, connections))),
        });
    }

    fn stats(&self, core: &Core, connections: usize) -> Stats {
        let mut stats = Stats {
            queue_depth: core.under_way.len() as u64,
            connections: connections as u64,
            pauses: self.pauses,
            longest_pause_us: u64::try_from(self.longest_pause.as_micros()).unwrap_or(u64::MAX),
            engine: core.engine.name().to_owned(),
            ..Stats::default()
        };
        core.figures.tell(&mut stats);
        stats
    }

    /// Whether no more requests are to be taken.
    pub(crate) const fn is_ending(&self) -> bool {
        !matches!(self.end, End::No)
    }

    /// How it has ended, once it has.
    pub(crate) fn end(&self) -> Option<anyhow::Result<()>> {
        match &self.end {
            End::Closed(Ok(())) => Some(Ok(())),
            End::Closed(Err(trouble)) => Some(Err(anyhow!("{trouble}"))),
            End::No | End::Asked(_) => None,
        }
    }
}

/// Limits from now on. The class is that of all threads of the process, which has a group of its own.
fn limit(limits: &Limits, core: &mut Core) -> Result<Told, Trouble> {
    core.limiter.set(limits, core.now);
    if let Some(class) = limits.class {
        privileges::set_group_io_class(class)
            .map_err(|error| from_io("setting the I/O class")(error.into()))?;
    }
    Ok(Told::Done)
}

/// The next leaf, and the container through which the present one is read from then on.
fn prepare(generation: u64, handed: &Handed, fds: Vec<OwnedFd>) -> Result<Change, Trouble> {
    let Ok([leaf, old]) = <[OwnedFd; 2]>::try_from(fds) else { return Err(wrong_descriptors()) };
    let old_leaf = opening::container(old)?;
    Ok(Change::Prepare { generation, leaf: opening::leaf(handed, leaf)?, old_leaf })
}

/// The image that the leaf is to be emptied into, which nobody else may be writing (D11).
fn move_down(generation: u64, handed: &Handed, rate: Bytes, fds: Vec<OwnedFd>) -> Result<Change, Trouble> {
    let Ok([into]) = <[OwnedFd; 1]>::try_from(fds) else { return Err(wrong_descriptors()) };
    if !lock_exclusive(&into).map_err(from_io("locking an image"))? {
        let message = format!("image {} is being written by another process", handed.id);
        return Err(trouble(TroubleKind::Io, message));
    }
    Ok(Change::MoveDown { generation, into: opening::leaf(handed, into)?, rate })
}

/// The images below the leaf, or all of them where there is no leaf; those that are marked come with a descriptor.
fn relink(
    generation: u64,
    mut chain: Vec<(Handed, bool)>,
    leaf: Option<ImageId>,
    fds: Vec<OwnedFd>,
) -> Result<Change, Trouble> {
    if let Some(leaf) = leaf {
        let stays = chain.first().is_some_and(|(first, marked)| first.id == leaf && !marked);
        if !stays {
            return Err(trouble(TroubleKind::WrongImage, "the leaf cannot be exchanged in this way"));
        }
        chain.remove(0);
    }
    if chain.iter().filter(|(_, marked)| *marked).count() != fds.len() {
        return Err(wrong_descriptors());
    }
    let mut fds = fds.into_iter();
    let mut below = Vec::with_capacity(chain.len());
    for (handed, marked) in chain {
        let fd = if marked { fds.next() } else { None };
        below.push((handed.id, fd.map(|fd| opening::part(&handed, fd)).transpose()?));
    }
    Ok(Change::Relink { generation, below })
}

fn wrong_descriptors() -> Trouble {
    trouble(TroubleKind::Internal, "the descriptors are not those of the question")
}

fn is_being_closed() -> Trouble {
    trouble(TroubleKind::Stopped, "the disk is being closed")
}
