//! Changes of the chain while it is served, as the keeper asks for them.
//!
//! ```text
//!   going ──quiesce──▶ coming ──▶ draining ──▶ committing ──▶ held ──resume──▶ going
//!   going ──stop────────────────▶ draining ──▶ committing ──▶ closing ──▶ over
//! ```
//!
//! For a quiesce, what was written so far is stored first (coming), while writes go on. From then on they wait: for those under way,
//! and for one commit with its one barrier. Its pointers are written when the quiesce is answered; where the leaf is replaced, the
//! barrier behind them comes after that ([`sealing`](super::sealing)).
//!
//! Which step is next is decided by [`Holding`](catena_control::Holding), a part of the protocol; here it is done.
//!
//! Reads go on all the time. Requests that change the disk wait outside, without a lock, or where they have just got it; those that
//! wait for space stay where they are and go on with whatever leaf there is. Nobody but the keeper ends a quiesce (D20).

use super::layers::{Leaf, Part};
use super::moving::Moving;
use super::write::Growth;
use super::{Disk, Waiting};
use crate::images::from_hex;
use crate::serve::work::{Outcome, Trouble, Work};
use crate::trouble::{from_chain, from_io, trouble};
use catena_blockio::{Container, Engine, Op};
use catena_chain::{Known, Plan, Slot};
use catena_control::{Hello, Next, Purpose, Resumed, Told, TroubleKind};
use catena_types::{BlockIndex, Bytes, HeaderPatch, ImageId};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

type Answered = Result<Told, catena_control::Trouble>;

/// What a keeper asks for, its images opened; see [`catena_control::Ask`].
pub(crate) enum Change {
    /// The next leaf, and the present one's container without the right to write, through which it is read from then on.
    Prepare { generation: u64, leaf: Leaf, old_leaf: Arc<dyn Container> },
    /// Hold writes back and make everything durable.
    Quiesce { generation: u64 },
    /// Go on.
    Resume { generation: u64, swap: bool },
    /// These images below the leaf (of a disk that is only read: all), topmost first; new forms where they have changed.
    Relink { generation: u64, below: Vec<(ImageId, Option<Part>)> },
    /// Write these bytes to the leaf, durably.
    Patch { patches: Vec<HeaderPatch> },
    /// Mark the leaf hidden or visible, durably.
    SetHidden { hidden: bool },
    /// Make the disk larger, while it is quiesced.
    Grow { size: Bytes },
    /// Empty the leaf into the image below it, opened anew for writing.
    MoveDown { generation: u64, into: Leaf, rate: Bytes },
    /// Go on with the merge that is open, at this rate.
    MoveOn { generation: u64, rate: Bytes },
    /// Keep so much room in images on devices.
    Watermark { room: Bytes, chunk: Bytes },
    /// The device of an image that is written has this size now.
    Enlarged { image: ImageId, size: Bytes },
    /// End the merge.
    EndMove { generation: u64, complete: bool },
    /// Flush and close.
    Stop,
}

/// What was prepared.
pub(super) struct Prepared {
    leaf: Leaf,
    old_leaf: Arc<dyn Container>,
}

/// What the keeper has asked, in order, and the answers that are there.
#[derive(Default)]
pub(super) struct Questions {
    next: u64,
    open: VecDeque<(u64, Option<Answered>)>,
    /// Answered when nobody works with the state of the chain that it had then, or an older one.
    retiring: Vec<(u64, u64)>,
}

impl Disk {
    /// Begins a change. It is answered through [`answers`](Self::answers), in the order of the questions.
    pub(crate) fn ask(&mut self, change: Change, engine: &mut dyn Engine) {
        let question = self.questions.next;
        self.questions.next += 1;
        self.questions.open.push_back((question, None));
        match change {
            Change::Prepare { generation, leaf, old_leaf } => {
                self.holding.hear(generation);
                let answer = self.prepare(generation, leaf, old_leaf);
                self.answer(question, answer);
            }
            Change::Quiesce { generation } => self.hold_back(question, generation, Purpose::Quiesce),
            Change::Stop => self.hold_back(question, self.holding.generation(), Purpose::Stop),
            Change::Resume { generation, swap } => self.resume(question, generation, swap, engine),
            Change::Relink { generation, below } => self.relink(question, generation, below),
            Change::Patch { patches } => self.patch(question, &patches, engine),
            Change::SetHidden { hidden } => self.set_hidden(question, hidden, engine),
            Change::Grow { size } => self.grow(question, size),
            Change::MoveDown { generation, into, rate } => self.move_down(question, generation, into, rate),
            Change::MoveOn { generation, rate } => self.move_on_at(question, generation, rate),
            Change::Watermark { room, chunk } => {
                let answer = self.set_watermark(room, chunk);
                self.answer(question, answer);
            }
            Change::Enlarged { image, size } => self.widen(question, image, size),
            Change::EndMove { generation, complete } => self.end_move(question, generation, complete),
        }
        self.run(engine);
    }

    /// The answers that there are, in the order of the questions.
    pub(crate) fn answers(&mut self) -> Vec<Answered> {
        let mut answers = Vec::new();
        while let Some((_, Some(_))) = self.questions.open.front() {
            answers.extend(self.questions.open.pop_front().and_then(|(_, answer)| answer));
        }
        answers
    }

    /// What is served.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            vdi: self.vdi,
            pid: std::process::id(),
            read_only: self.pending.is_none(),
            generation: self.holding.generation(),
            chain: self.layers.ids(),
            prepared: self.holding.prepared().map(|prepared| prepared.leaf.id),
            quiesced: self.holding.quiesced(),
            moving_into: self.moving.as_ref().map(Moving::image),
            failed: self.failed.clone(),
            size: Some(self.size()),
        }
    }

    /// Whether requests that change the disk wait.
    pub(super) fn holds_back(&self) -> bool {
        self.holding.holds_back()
    }

    /// Whether that is for a change of the chain.
    pub(crate) fn is_quiescing(&self) -> bool {
        self.holds_back() && !self.is_stopping()
    }

    /// Whether nothing is to be committed but for a quiesce.
    pub(super) fn holds_commits_back(&self) -> bool {
        self.holding.is_for(Purpose::Quiesce)
    }

    /// Whether the disk is being closed, or is.
    pub(super) fn is_stopping(&self) -> bool {
        self.holding.is_for(Purpose::Stop)
    }

    /// Whether all that was answered is durable, and nothing more is written until the keeper says so.
    pub(super) fn is_quiesced(&self) -> bool {
        self.is_quiescing() && self.failed.is_none() && self.holding.is_held()
    }

    pub(super) fn answer(&mut self, question: u64, answer: Answered) {
        if let Some(open) = self.questions.open.iter_mut().find(|open| open.0 == question) {
            open.1 = Some(answer);
        }
    }

    fn prepare(&mut self, generation: u64, leaf: Leaf, old_leaf: Arc<dyn Container>) -> Answered {
        if self.moving.is_some() {
            return Err(move_is_open());
        }
        let Some(present) = self.layers.leaf() else {
            return Err(trouble(TroubleKind::Unsupported, "the disk is served for reading only"));
        };
        if leaf.layer.virtual_size() != present.layer.virtual_size() {
            return Err(trouble(TroubleKind::OutOfRange, "the new leaf is not as large as the disk"));
        }
        if leaf.layer.next_block(BlockIndex(0)).is_some() {
            return Err(trouble(TroubleKind::Damaged, "the new leaf is not empty"));
        }
        if self.holding.prepare(generation, Prepared { leaf, old_leaf }) {
            Ok(Told::Done)
        } else {
            Err(trouble(TroubleKind::Internal, "nothing can be prepared while writes are held back"))
        }
    }

    fn hold_back(&mut self, question: u64, generation: u64, purpose: Purpose) {
        if purpose == Purpose::Quiesce && self.moving.is_some() {
            return self.answer(question, Err(move_is_open()));
        }
        match self.holding.hold_back(generation, question, purpose) {
            Ok(None) => {}
            Ok(Some(before)) => {
                self.answer(before, Err(trouble(TroubleKind::Stopped, "the disk is being closed")));
            }
            Err(held) => return self.answer(question, Err(trouble(TroubleKind::Internal, held.to_string()))),
        }
        if purpose == Purpose::Stop {
            self.fail_parked(Trouble::ShuttingDown);
            // The catalog may name another leaf already.
            for index in std::mem::take(&mut self.frozen) {
                self.trouble(index, Trouble::ShuttingDown);
            }
            for (request, work) in std::mem::take(&mut self.held) {
                self.done.push((request, weight(&work), Outcome::Failed(Trouble::ShuttingDown)));
            }
            self.wake_move();
        } else if self.failed.is_some() {
            self.hold_has_failed();
        } else {
            self.want_commits();
        }
    }

    /// Everything is to be stored, for the hold.
    fn want_commits(&mut self) {
        self.targets.iter_mut().for_each(|target| target.commits.want_for_hold());
    }

    /// Moves a hold on that waits for requests to end. Whether it has come further.
    pub(super) fn pump_hold(&mut self, engine: &mut dyn Engine) -> bool {
        if self.is_growing() {
            return false;
        }
        let is_stored = !self.targets.iter().any(|target| target.commits.owes_hold());
        let is_durable = !self.targets.iter().any(|target| target.commits.are_written_only());
        let (idle, enough) = if self.is_stopping() {
            (self.tasks.is_empty() && !self.is_leaving_move(), is_stored && is_durable)
        } else {
            (self.changing == 0, is_stored)
        };
        let failed = self.failed.is_some();
        match self.holding.next(idle, enough, failed) {
            // D4: images are closed with everything durable.
            None if self.is_stopping() && idle && is_stored && !is_durable && !failed => self.want_commits(),
            None => return false,
            Some(Next::Commit) => self.want_commits(),
            Some(Next::Held(question)) => {
                let leaf_is_empty = self.leaf_is_empty();
                self.answer(question, Ok(Told::Quiesced { leaf_is_empty }));
            }
            Some(Next::Close(question)) => self.close_images(question, engine),
            Some(Next::Failed(question)) => self.cannot_be_held(question),
        }
        true
    }

    /// The disk has failed: what is held back cannot be made durable any more.
    pub(super) fn hold_has_failed(&mut self) {
        if let Some(question) = self.holding.failed() {
            self.cannot_be_held(question);
        }
    }

    fn cannot_be_held(&mut self, question: u64) {
        let message = self.failed.clone().unwrap_or_default();
        self.answer(question, Err(trouble(TroubleKind::Io, message)));
    }

    /// Whether the leaf owns nothing; no, where that cannot be said without waiting.
    fn leaf_is_empty(&mut self) -> bool {
        let Some(leaf) = self.layers.leaf() else { return false };
        let mut from = BlockIndex(0);
        while let Some(block) = leaf.layer.next_block(from) {
            if !matches!(leaf.layer.known(block), Ok(Known::Nothing)) {
                return false;
            }
            from = block.next();
        }
        true
    }

    fn resume(&mut self, question: u64, generation: u64, swap: bool, engine: &mut dyn Engine) {
        match self.holding.resume(generation, swap) {
            Resumed::Already => return self.answer(question, Ok(Told::Done)),
            Resumed::Refused => {
                let message = "this was not prepared, or writes are not held back yet";
                return self.answer(question, Err(trouble(TroubleKind::Internal, message)));
            }
            Resumed::Kept { unanswered } => {
                if let Some(before) = unanswered {
                    let message = "the keeper has changed its mind";
                    self.answer(before, Err(trouble(TroubleKind::Stopped, message)));
                }
                self.answer(question, Ok(Told::Done));
            }
            Resumed::Swap(prepared) => match self.swap(question, prepared, engine) {
                Ok(()) => self.holding.swapped(),
                Err(error) => return self.answer(question, Err(error)),
            },
        }
        self.unpark();
        self.ready.extend(std::mem::take(&mut self.frozen));
        for (request, work) in std::mem::take(&mut self.held) {
            self.admit(request, work);
        }
    }

    /// Puts the prepared leaf on top. Answered when the old one is durable and nothing holds its writable descriptor any more (D12).
    fn swap(
        &mut self,
        question: u64,
        prepared: Prepared,
        engine: &mut dyn Engine,
    ) -> Result<(), catena_control::Trouble> {
        let id = prepared.leaf.id;
        let before = self.layers.leaf_slot().zip(self.layers.leaf().map(|leaf| leaf.container.clone()));
        let slot =
            self.layers.push_leaf(prepared.leaf, prepared.old_leaf).map_err(|error| from_chain(&error))?;
        let epoch = self.next_epoch();
        if let Some((before, container)) = before {
            self.seal(before, container, question, epoch, engine);
            self.end_target(before);
        }
        self.begin_target(slot, id);
        if self.sealing.is_none() {
            self.retire(question, epoch);
        }
        Ok(())
    }

    /// This image is written from now on.
    pub(super) fn begin_target(&mut self, slot: Slot, image: ImageId) {
        self.targets.add(slot, image);
        self.pending.iter_mut().for_each(|pending| pending.add(image));
    }

    /// It is not, and all that was written there is stored. Who waits for it to grow looks for another place.
    pub(super) fn end_target(&mut self, slot: Slot) {
        self.forget_places(slot);
        if let Some(target) = self.targets.remove(slot) {
            self.pending.iter_mut().for_each(|pending| pending.remove(target.image));
        }
    }

    /// What was wrong with the growth or the places of an image is not its successor's.
    pub(super) fn forget_places(&mut self, slot: Slot) {
        let Some(target) = self.targets.get_mut(slot) else { return };
        target.new_blocks.clear();
        self.ready.extend(target.growth.take().map(Growth::into_waiters).unwrap_or_default());
    }

    fn relink(&mut self, question: u64, generation: u64, below: Vec<(ImageId, Option<Part>)>) {
        self.holding.hear(generation);
        let written = self.moving.as_ref().map(Moving::image);
        let stays = below.first().map(|(id, part)| (*id, part.is_none()));
        if written.is_some_and(|id| stays != Some((id, true))) {
            return self.answer(question, Err(move_is_open()));
        }
        match self.layers.relink(below) {
            Ok(()) => {
                let epoch = self.next_epoch();
                self.retire(question, epoch);
            }
            Err(error) => self.answer(question, Err(from_chain(&error))),
        }
    }

    /// Ends a state of the chain. Gives its number.
    pub(super) const fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch - 1
    }

    /// Answers when nobody works with what the chain was in that state, or before.
    pub(super) fn retire(&mut self, question: u64, epoch: u64) {
        self.questions.retiring.push((epoch, question));
        self.answer_retired();
    }

    /// Answers what has waited for requests that have ended.
    pub(super) fn answer_retired(&mut self) {
        let oldest = self.in_epoch.keys().next().copied().unwrap_or(u64::MAX);
        let retired: Vec<(u64, u64)> =
            self.questions.retiring.extract_if(.., |(epoch, _)| *epoch < oldest).collect();
        for (_, question) in retired {
            self.answer(question, Ok(Told::Done));
        }
    }

    fn patch(&mut self, question: u64, patches: &[HeaderPatch], engine: &mut dyn Engine) {
        let Some(leaf) = self.layers.leaf() else {
            let message = "the disk is served for reading only";
            return self.answer(question, Err(trouble(TroubleKind::Unsupported, message)));
        };
        if let Some(other) = patches.iter().find(|patch| patch.image != leaf.id) {
            let message = format!("image {} is not the leaf", other.image);
            return self.answer(question, Err(trouble(TroubleKind::WrongImage, message)));
        }
        let writes = patches.iter().flat_map(|patch| &patch.writes);
        let bytes: Result<Vec<_>, _> =
            writes.map(|write| from_hex(&write.hex).map(|bytes| (write.at, bytes))).collect();
        let plan = bytes.and_then(|bytes| leaf.layer.patch(&bytes).map_err(|error| from_chain(&error)));
        self.change_leaf(question, plan, engine);
    }

    fn set_hidden(&mut self, question: u64, hidden: bool, engine: &mut dyn Engine) {
        let plan = match self.layers.leaf() {
            Some(leaf) => leaf.layer.set_hidden(hidden).map_err(|error| from_chain(&error)),
            None => Err(trouble(TroubleKind::Unsupported, "the disk is served for reading only")),
        };
        self.change_leaf(question, plan, engine);
    }

    /// Carries out what was planned for the leaf's metadata; the question is answered when it is durable.
    fn change_leaf(
        &mut self,
        question: u64,
        plan: Result<Plan, catena_control::Trouble>,
        engine: &mut dyn Engine,
    ) {
        let container = self.layers.leaf().map(|leaf| leaf.container.clone());
        match (plan, container) {
            (Ok(plan), Some(container)) => {
                let run = Op::Call(Box::new(move || plan.run(&*container)));
                self.start(Waiting::Answer { question }, run, engine);
            }
            (Err(error), _) => self.answer(question, Err(error)),
            (Ok(_), None) => self.answer(question, Ok(Told::Done)),
        }
    }

    /// Something that was asked for has been done, or not.
    pub(super) fn called(&mut self, question: u64, result: io::Result<()>) {
        self.answer(question, result.map(|()| Told::Done).map_err(from_io("changing the leaf")));
    }

    fn close_images(&mut self, question: u64, engine: &mut dyn Engine) {
        let mut plans = Vec::new();
        for slot in self.targets.slots() {
            let Some(image) = self.layers.written(slot) else { continue };
            match image.layer.close() {
                Ok(plan) => plans.push((plan, image.container.clone())),
                Err(error) => return self.answer(question, Err(from_chain(&error))),
            }
        }
        if plans.is_empty() {
            return self.answer(question, Ok(Told::Done));
        }
        let run = move || plans.iter().try_for_each(|(plan, container)| sealed(plan.run(&**container)));
        self.start(Waiting::Answer { question }, Op::Call(Box::new(run)), engine);
    }
}

/// The end of closing an image. All that was acknowledged is durable by then. Closing only moves the end of the file to where the data
/// end, which a full storage may have no room for: the image then stays as a crash would leave it, which is in order.
pub(super) fn sealed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(%error, "an image is not cut where its data end");
            Ok(())
        }
        result => result,
    }
}

fn move_is_open() -> catena_control::Trouble {
    trouble(TroubleKind::Unsupported, "a leaf merge is open, and has to be ended first")
}

/// Bytes with which a request is counted.
pub(super) fn weight(work: &Work) -> u64 {
    match work {
        Work::Read { len, .. } => u64::from(*len),
        Work::Write { data, .. } => data.len() as u64,
        _ => 0,
    }
}
