//! Images on devices: a larger one is asked for while there still is room, and made use of when the keeper says that it is larger.
//!
//! ```text
//!             little room is left               it is larger
//!   Content ─────────────────────▶ Asked ─────────────────────▶ Content
//!      ▲                             │ it is not
//!      └──── it is, or asked anew ── Refused
//! ```
//!
//! A write that finds no room waits while a larger device is asked for, and says nothing; else it is one for which the
//! storage has none ([`space`](super::space)). The footer moves to the new end with a commit; no question of the keeper is taken
//! before that is over, and it is not begun while a plan made before may write the footer where it was.

use super::{Disk, Waiting};
use crate::trouble::{from_chain, from_io, trouble};
use catena_chain::{Room, Slot};
use catena_control::{News, Told, TroubleKind};
use catena_types::{BLOCK_BYTES, Bytes, ImageId, SECTOR_BYTES};

type Answered = Result<Told, catena_control::Trouble>;

/// From when on a larger device is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watermark {
    /// Where new blocks have less than this.
    room: Bytes,
    /// Larger by a multiple of this.
    chunk: Bytes,
}

/// What an image that is written wants; see the diagram above.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    #[default]
    Content,
    /// A larger device than this one.
    Asked(Bytes),
    Refused,
}

/// A device that has become larger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widening {
    question: u64,
    slot: Slot,
    /// What the keeper said, and once the footer is on its way, the size for which it is.
    size: Bytes,
    begun: bool,
}

impl Watermark {
    /// The size that is asked for, if a larger one is.
    fn wants(self, room: &Room) -> Option<Bytes> {
        let free = room.blocks.saturating_mul(BLOCK_BYTES);
        let missing = self.room.0.checked_sub(free).filter(|missing| *missing > 0)?;
        let size = room.size.0.saturating_add(missing.div_ceil(self.chunk.0).saturating_mul(self.chunk.0));
        Some(Bytes(size).min(room.most)).filter(|size| *size > room.size)
    }
}

impl Disk {
    /// From now on so much room is kept. What was asked for is asked for again: the keeper may be another one.
    pub(super) fn set_watermark(&mut self, room: Bytes, chunk: Bytes) -> Answered {
        if room.0 > 0 && chunk.0 == 0 {
            return Err(trouble(TroubleKind::OutOfRange, "nothing grows by chunks of no bytes"));
        }
        self.watermark = (room.0 > 0).then_some(Watermark { room, chunk });
        self.targets.iter_mut().for_each(|target| target.wish = Wish::Content);
        Ok(Told::Done)
    }

    /// The room of an image that is written to a device.
    pub(super) fn room_of(&mut self, slot: Slot) -> Option<Room> {
        self.layers.written(slot)?.layer.room()
    }

    /// Asks for larger devices where little room is left.
    pub(super) fn watch_room(&mut self) {
        let Some(watermark) = self.watermark.filter(|_| self.failed.is_none()) else { return };
        for slot in self.targets.slots() {
            let Some((room, target)) = self.room_of(slot).zip(self.targets.get_mut(slot)) else { continue };
            if target.wish == Wish::Content
                && let Some(size) = watermark.wants(&room)
            {
                target.wish = Wish::Asked(room.size);
                self.news.push(News::Grow { image: target.image, size });
            }
        }
    }

    /// Whether who finds no room may wait for a larger device.
    pub(super) fn awaits_device(&self) -> bool {
        self.targets.iter().any(|target| matches!(target.wish, Wish::Asked(_)))
    }

    /// Whether the keeper has said that a device is larger, and it is not made use of yet.
    pub(super) const fn is_widening(&self) -> bool {
        self.widening.is_some()
    }

    /// The device of this image has this size, or more.
    pub(super) fn widen(&mut self, question: u64, image: ImageId, size: Bytes) {
        let slot = self.targets.iter().find(|target| target.image == image).map(|target| target.slot);
        match slot {
            Some(slot) => self.widening = Some(Widening { question, slot, size, begun: false }),
            None => {
                let message = format!("image {image} is not one that is written");
                self.answer(question, Err(trouble(TroubleKind::WrongImage, message)));
            }
        }
    }

    /// Makes use of what there is now. Whether that has come further.
    pub(super) fn pump_widening(&mut self) -> bool {
        let Some(widening) = self.widening else { return false };
        if !widening.begun {
            let may_move = !self.waiting.any(|waiting| matches!(waiting, Waiting::Answer { .. }));
            return may_move && self.begin_widening(widening);
        }
        let larger = self.room_of(widening.slot).is_none_or(|room| room.size >= widening.size);
        if !larger && self.failed.is_none() {
            return false;
        }
        let failed = self.failed.clone().filter(|_| !larger);
        self.end_widening(failed.map_or(Ok(Told::Done), |message| Err(trouble(TroubleKind::Io, message))));
        true
    }

    /// Has the next commit move the footer, unless it is there.
    fn begin_widening(&mut self, widening: Widening) -> bool {
        match self.note_size(widening) {
            Ok(size) => self.widening = Some(Widening { size, begun: true, ..widening }),
            Err(error) => self.end_widening(Err(error)),
        }
        true
    }

    fn note_size(&mut self, widening: Widening) -> Result<Bytes, catena_control::Trouble> {
        let (image, target) = (self.layers.written(widening.slot), self.targets.get_mut(widening.slot));
        let Some((image, target)) = image.zip(target) else { return Ok(Bytes(0)) };
        let size = image.container.size().map_err(from_io("asking for the size of a device"))?;
        if size < widening.size {
            let message = format!("the device has {size}, not {}", widening.size);
            return Err(trouble(TroubleKind::OutOfRange, message));
        }
        let size = Bytes(size.0 / SECTOR_BYTES * SECTOR_BYTES);
        if image.layer.room().is_some_and(|room| room.size != size) {
            image.layer.enlarged().map_err(|error| from_chain(&error))?;
            target.commits.unflushed = true;
            target.commits.want_for_hold();
        }
        Ok(size)
    }

    /// Who waits for room tries again.
    fn end_widening(&mut self, answer: Answered) {
        let Some(Widening { question, slot, .. }) = self.widening.take() else { return };
        let size = self.room_of(slot).map(|room| room.size);
        if let Some(target) = self.targets.get_mut(slot) {
            target.wish = match target.wish {
                Wish::Asked(before) if size.is_none_or(|size| size <= before) => Wish::Refused,
                _ => Wish::Content,
            };
        }
        self.answer(question, answer);
        self.move_tries_again();
        if !self.holds_back() {
            self.unpark();
        }
    }
}
