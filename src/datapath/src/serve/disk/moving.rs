//! Leaf merge of a disk that is served: its leaf L is emptied into the image P below it, while both are written.
//!
//! ```text
//!             older requests     all that L owns     window by window,          L durably
//!             have ended         is counted          see `window`               owns nothing
//!   Settling ───────────────▶ Surveying ─────────▶ Moving ─────────────────▶ Over ──complete──▶ [P, ...]
//!      └─────────────────────────┴────────┬───────────┴───────────────────────┘
//!                                         │ not complete
//!                                         ▼   older requests have ended, P durable
//!                                      Leaving ────────────────────────────────▶ Sealing ──▶ [L, P, ...], P only read
//! ```
//!
//! What goes where, what may be copied and what given up stands in [`deciding`](super::deciding). [L, P, ...] reads right at every
//! instant, so there is nothing to undo: a merge that is ended, or whose process dies, is taken up by what L still owns (D14).
//!
//! Why from the start L takes over nothing: what it owns is durable after the one commit with which the survey begins, and stays
//! so. So nothing is ever noted of L of which bits are cleared (D7), and the merge ends.

use super::change::sealed;
use super::deciding::Left;
use super::task::{Kind, Task};
use super::window::Window;
use super::{Disk, Leaf, Waiting};
use crate::trouble::{from_chain, trouble};
use catena_blockio::{Container, Engine, Op};
use catena_chain::Slot;
use catena_control::{News, Told, TroubleKind};
use catena_types::{BlockIndex, Bytes, ImageId};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the keeper is told how far it is.
const TELL: Duration = Duration::from_millis(250);
/// How long after a refusal of a full storage it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// By this the mover's requests are known; nobody is answered.
const NOBODY: u64 = u64::MAX;

/// A leaf merge that is open.
pub(super) struct Moving {
    /// The image that is emptied.
    pub(super) leaf: Slot,
    /// The image that it is emptied into.
    pub(super) into: Slot,
    image: ImageId,
    /// Through which that image was read before, and is again if the merge is not completed (D12).
    reader: Arc<dyn Container>,
    pub(super) stage: MoveStage,
    /// What is being moved.
    pub(super) window: Window,
    /// The request that does it.
    task: Option<usize>,
    pub(super) left: Left,
    /// Bytes that the leaf owned when they were counted, bytes copied since, and bytes moved.
    pub(super) owned: u64,
    pub(super) copied: u64,
    done: u64,
    rate: Bytes,
    /// Before this nothing more is moved.
    pub(super) wake: Option<Instant>,
    told: Option<Instant>,
    /// It goes no further until the keeper says so.
    stuck: bool,
    ending: Option<Ending>,
}

/// See the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MoveStage {
    /// Requests of states of the chain before this one are still under way: some write to the leaf what it did not own.
    Settling(u64),
    /// Blocks before this one are counted.
    Surveying(BlockIndex),
    Moving,
    Over,
    /// Requests of states of the chain before this one are still under way: some write to the image below.
    Leaving(u64),
    Sealing,
}

/// The question by which it ends.
#[derive(Clone, Copy)]
struct Ending {
    question: u64,
    complete: bool,
}

impl Moving {
    /// Of these two images, the leaf first. `since`: the first state of the chain in
    /// which all requests know of it.
    pub(super) fn new(
        (leaf, into): (Slot, Slot),
        image: ImageId,
        reader: Arc<dyn Container>,
        rate: Bytes,
        since: u64,
    ) -> Self {
        Self {
            leaf,
            into,
            image,
            reader,
            stage: MoveStage::Settling(since),
            window: Window::default(),
            task: None,
            left: Left::default(),
            owned: 0,
            copied: 0,
            done: 0,
            rate,
            wake: None,
            told: None,
            stuck: false,
            ending: None,
        }
    }

    /// What a process that died had begun. It goes on when the keeper says at which rate: one that dies before that must not leave a
    /// merge without a limit behind.
    pub(super) fn successor(ends: (Slot, Slot), image: ImageId, reader: Arc<dyn Container>) -> Self {
        Self { stuck: true, ..Self::new(ends, image, reader, Bytes(0), 0) }
    }

    /// The image that the leaf is emptied into.
    pub(super) const fn image(&self) -> ImageId {
        self.image
    }

    /// Whether the leaf still is a leaf that takes over nothing.
    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self.stage, MoveStage::Leaving(_) | MoveStage::Sealing)
    }

    /// So much was moved: the next must wait until that was within the rate.
    pub(super) fn moved(&mut self, bytes: u64, now: Instant) {
        self.done += bytes;
        if let Some(nanos) = (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(self.rate.0)) {
            self.wake = Some(now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        }
    }
}

impl Disk {
    /// Where writes go that the leaf does not own, while a merge is open.
    pub(super) fn writes_into(&self) -> Option<Slot> {
        self.moving.as_ref().filter(|moving| !moving.is_leaving()).map(|moving| moving.into)
    }

    /// Whether the merge, if there is one, is not to begin or end anything more.
    pub(super) fn move_is_ending(&self) -> bool {
        let ending = self.moving.as_ref().is_none_or(|moving| moving.ending.is_some());
        ending || self.is_stopping() || self.failed.is_some()
    }

    /// Whether a merge is on its way out, which a stop waits for.
    pub(super) fn is_leaving_move(&self) -> bool {
        self.failed.is_none() && self.moving.as_ref().is_some_and(|moving| moving.ending.is_some())
    }

    /// Begins a merge into an image that was opened for writing; or finds that it must be made larger first (D6).
    pub(super) fn move_down(&mut self, question: u64, generation: u64, into: Leaf, rate: Bytes) {
        self.holding.hear(generation);
        let below = self.layers.below_leaf();
        let size = into.layer.virtual_size();
        let refused = match below {
            _ if self.layers.leaf_slot().is_none() => {
                Some((TroubleKind::Unsupported, "the disk is served for reading only"))
            }
            _ if self.holds_back() => Some((TroubleKind::Internal, "writes are being held back")),
            _ if self.failed.is_some() => Some((TroubleKind::Io, "the storage has failed")),
            _ if self.moving.is_some() => Some((TroubleKind::Internal, "another leaf merge is open")),
            Some((_, id)) if id == into.id => None,
            _ => Some((TroubleKind::WrongImage, "the image is not the one below the leaf")),
        };
        let refused = refused.or_else(|| {
            let larger = size > self.size() || (size < self.size() && self.layers.hides_below(1, size));
            larger.then_some((TroubleKind::Unsupported, "an image below is larger than the one above it"))
        });
        if let Some((kind, message)) = refused {
            return self.answer(question, Err(trouble(kind, message)));
        }
        self.holding.forget_prepared();
        if size < self.size() {
            return self.grow_into(question, into, rate);
        }
        if let Err(error) = self.begin_move(into, rate) {
            return self.answer(question, Err(from_chain(&error)));
        }
        let epoch = self.next_epoch();
        self.retire(question, epoch);
    }

    /// From now on the leaf takes over nothing. The state of the chain must change with it.
    pub(super) fn begin_move(&mut self, into: Leaf, rate: Bytes) -> Result<(), catena_chain::Error> {
        let image = into.id;
        let nothing_below = || catena_chain::Error::OutOfRange("the leaf has nothing below it".to_owned());
        let (leaf, below, reader) = self.layers.move_ends().ok_or_else(nothing_below)?;
        let slot = self.layers.replace(below, into)?;
        self.begin_target(slot, image);
        self.moving = Some(Moving::new((leaf, slot), image, reader, rate, self.epoch + 1));
        Ok(())
    }

    /// The merge that is open goes on at this rate; whoever asks may be another keeper than before.
    pub(super) fn move_on_at(&mut self, question: u64, generation: u64, rate: Bytes) {
        self.holding.hear(generation);
        let answer = match &mut self.moving {
            Some(moving) if moving.ending.is_none() => {
                (moving.rate, moving.wake, moving.told, moving.stuck) = (rate, None, None, false);
                Ok(Told::Done)
            }
            _ => Err(trouble(TroubleKind::Internal, "no leaf merge is open")),
        };
        self.answer(question, answer);
        self.tell_moved();
    }

    /// Ends the merge. Answered at once where none is open.
    pub(super) fn end_move(&mut self, question: u64, generation: u64, complete: bool) {
        self.holding.hear(generation);
        let next = self.epoch + 1;
        let refused = match &mut self.moving {
            None => return self.answer(question, Ok(Told::Done)),
            Some(_) if self.failed.is_some() => (TroubleKind::Io, "the storage has failed"),
            Some(moving) if moving.ending.is_some() => (TroubleKind::Internal, "it is being ended already"),
            Some(moving) if complete && moving.stage != MoveStage::Over => {
                (TroubleKind::Internal, "the leaf still owns something")
            }
            Some(moving) => {
                moving.ending = Some(Ending { question, complete });
                self.ready.extend(moving.task);
                if !complete {
                    // The leaf is the only target again, and whoever was told otherwise ends first.
                    moving.stage = MoveStage::Leaving(next);
                    self.epoch = next;
                }
                return;
            }
        };
        self.answer(question, Err(trouble(refused.0, refused.1)));
    }

    /// Something has happened that may make what is under way end.
    pub(super) fn wake_move(&mut self) {
        self.ready.extend(self.moving.as_ref().and_then(|moving| moving.task));
    }

    /// Moves the merge on. Whether it has come further.
    pub(super) fn pump_moving(&mut self, engine: &mut dyn Engine) -> bool {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.task.is_none()) else { return false };
        match moving.ending {
            Some(ending) if self.failed.is_some() => {
                let message = self.failed.clone().unwrap_or_default();
                self.answer(ending.question, Err(trouble(TroubleKind::Io, message)));
                self.moving.iter_mut().for_each(|moving| moving.ending = None);
                true
            }
            Some(ending) if ending.complete => self.complete(ending.question),
            Some(ending) => self.leave(ending.question, engine),
            None => self.begin_moving(),
        }
    }

    /// Begins the next thing that is to be done, if it may be.
    fn begin_moving(&mut self) -> bool {
        let oldest = self.oldest_epoch();
        let ending = self.move_is_ending();
        let Some(moving) = self.moving.as_mut().filter(|moving| !ending && !moving.stuck) else {
            return false;
        };
        match moving.stage {
            MoveStage::Settling(since) if oldest < since => return false,
            MoveStage::Settling(_) => moving.stage = MoveStage::Surveying(BlockIndex(0)),
            MoveStage::Surveying(_) | MoveStage::Moving if moving.wake.is_none() => {}
            _ => return false,
        }
        moving.window = Window::default();
        let index = self.tasks.insert(Task::new(NOBODY, Kind::Move, 0, 0));
        moving.task = Some(index);
        self.ready.push_back(index);
        true
    }

    /// What was begun has ended.
    pub(super) fn move_task_ends(&mut self) {
        let Some(moving) = &mut self.moving else { return };
        (moving.task, moving.window) = (None, Window::default());
        if moving.stage == MoveStage::Moving && moving.left.bytes() == 0 {
            (moving.stage, moving.told) = (MoveStage::Over, None);
        }
        self.tell_moved();
    }

    /// It could not be done: it is tried again when there may be space; else the keeper decides.
    pub(super) fn move_fails(&mut self, full: bool) {
        let failed = self.failed.is_some();
        let awaited = self.awaits_device();
        let Some(moving) = &mut self.moving else { return };
        // A device that nobody is asked to make larger has no room in a while either.
        if full && (awaited || !moving.window.found_no_room()) {
            moving.wake = Some(Instant::now() + AGAIN);
        } else if !failed {
            moving.stuck = true;
            let message = if full {
                "the container of the image below has no room for what the leaf owns"
            } else {
                "an image of the leaf merge cannot be read or written"
            };
            self.news.push(News::MoveFailed { message: message.to_owned() });
        }
    }

    /// There may be space now.
    pub(super) fn move_tries_again(&mut self) {
        self.moving.iter_mut().for_each(|moving| moving.wake = None);
        self.wake_move();
    }

    /// Tells the keeper now and then how far it is, and once that it is over.
    fn tell_moved(&mut self) {
        let Some(moving) = &mut self.moving else { return };
        let over = moving.stage == MoveStage::Over;
        let counted = over || moving.stage == MoveStage::Moving;
        let due = moving.told.is_none_or(|told| !over && told.elapsed() >= TELL);
        if counted && due {
            moving.told = Some(Instant::now());
            let (done, left) = (Bytes(moving.done), Bytes(moving.left.bytes()));
            self.news.push(News::Moved { done, left });
        }
    }

    /// When more is moved.
    pub(super) fn moving_deadline(&self) -> Option<Instant> {
        self.moving.as_ref().and_then(|moving| moving.wake)
    }

    /// The time is `now`.
    pub(super) fn tick_moving(&mut self, now: Instant) {
        let Some(moving) = &mut self.moving else { return };
        if moving.wake.take_if(|wake| *wake <= now).is_some() {
            self.ready.extend(moving.task);
        }
    }

    /// The oldest state of the chain that a request works with.
    fn oldest_epoch(&self) -> u64 {
        self.in_epoch.keys().next().copied().unwrap_or(u64::MAX)
    }

    /// Drops the leaf, which owns nothing, from the chain. Answered when nobody has it in hands any more.
    fn complete(&mut self, question: u64) -> bool {
        let Some((leaf, into)) = self.moving.as_ref().map(|moving| (moving.leaf, moving.into)) else {
            return false;
        };
        if let Some(wait) = self.is_stored(leaf) {
            return wait;
        }
        self.moving = None;
        if let Err(error) = self.layers.drop_leaf(into) {
            self.answer(question, Err(from_chain(&error)));
            return true;
        }
        self.end_target(leaf);
        let epoch = self.next_epoch();
        self.retire(question, epoch);
        true
    }

    /// Makes the image below one that is only read again (D14): durable and as complete as a closed one.
    fn leave(&mut self, question: u64, engine: &mut dyn Engine) -> bool {
        let oldest = self.oldest_epoch();
        let Some(moving) = &mut self.moving else { return false };
        let into = moving.into;
        match moving.stage {
            MoveStage::Leaving(since) if oldest >= since => {}
            _ => return false,
        }
        if let Some(wait) = self.is_stored(into) {
            return wait;
        }
        let Some(image) = self.layers.written(into) else { return false };
        match image.layer.close() {
            Ok(plan) => {
                let container = image.container.clone();
                self.moving.iter_mut().for_each(|moving| moving.stage = MoveStage::Sealing);
                let run = move || sealed(plan.run(&*container));
                self.start(Waiting::Left, Op::Call(Box::new(run)), engine);
            }
            Err(error) => {
                self.moving.iter_mut().for_each(|moving| moving.ending = None);
                self.answer(question, Err(from_chain(&error)));
            }
        }
        true
    }

    /// Whether what is on its way to the image is still to be waited for: `Some`, and whether a commit was asked for just now.
    fn is_stored(&mut self, slot: Slot) -> Option<bool> {
        let (target, pending) = self.targets.get_mut(slot).zip(self.pending.as_ref())?;
        let stored = target.commits.is_idle() && pending.noted(target.image) == 0;
        (!stored).then(|| target.commits.hurry())
    }

    /// Nothing has begun, and nothing does: the image below is only read again.
    pub(super) fn drop_move(&mut self) {
        let Some(moving) = self.moving.take() else { return };
        self.epoch += 1;
        if let Err(error) = self.layers.end_writing(moving.into, moving.reader) {
            tracing::warn!(%error, "an image that could not be made larger");
        }
        self.end_target(moving.into);
    }

    /// The image below is closed, or could not be: all that is in it was durable before.
    pub(super) fn sealed_into(&mut self, result: io::Result<()>) {
        let Some(moving) = self.moving.take() else { return };
        if let Err(error) = result {
            tracing::warn!(%error, "an image is not closed in order after a leaf merge that was ended");
        }
        let ended = self.layers.end_writing(moving.into, moving.reader);
        self.end_target(moving.into);
        let Some(ending) = moving.ending else { return };
        match ended {
            Ok(()) => {
                let epoch = self.next_epoch();
                self.retire(ending.question, epoch);
            }
            Err(error) => self.answer(ending.question, Err(from_chain(&error))),
        }
    }
}
