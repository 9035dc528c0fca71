//! Making the disk larger, while it is quiesced; or the image below the leaf, before the leaf is emptied into it (D6).
//!
//! Blocks of the image may move, so nothing may be under way. Requests that come stay where they are; when the last operation has
//! come back the image is made larger in a thread of the engine, which gives another in its place; then requests go on. No
//! question of the keeper is taken meanwhile.

use super::{Disk, Leaf, Waiting};
use crate::trouble::{from_chain, trouble};
use catena_blockio::{Engine, Op};
use catena_chain::{Grown, Slot};
use catena_control::{Told, TroubleKind};
use catena_types::Bytes;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A growth that was asked for.
pub(super) struct Enlarging {
    question: u64,
    size: Bytes,
    /// The image that is made larger to be merged into, and at which rate that is; none: the leaf.
    into: Option<(Leaf, Bytes)>,
    begun: bool,
    /// What comes of it; none if nothing was changed.
    grown: Arc<Mutex<Option<Grown>>>,
}

impl Disk {
    /// Whether a question of the keeper can be taken.
    pub(crate) const fn takes_questions(&self) -> bool {
        !self.is_growing() && !self.is_widening()
    }

    /// Whether the disk is being made larger.
    pub(super) const fn is_growing(&self) -> bool {
        self.enlarging.is_some()
    }

    /// Begins to make the disk larger.
    pub(super) fn grow(&mut self, question: u64, size: Bytes) {
        let refused = if !self.is_quiesced() {
            Some((TroubleKind::Internal, "a disk grows only while writes are held back"))
        } else if size < self.size() {
            Some((TroubleKind::OutOfRange, "a disk cannot shrink"))
        } else if self.layers.hides_below(0, self.size()) {
            Some((TroubleKind::Unsupported, "an image below is larger than the disk"))
        } else {
            None
        };
        if let Some((kind, message)) = refused {
            return self.answer(question, Err(trouble(kind, message)));
        }
        self.enlarging = Some(Enlarging { question, size, into: None, begun: false, grown: Arc::default() });
    }

    /// Makes an image as large as the disk, then has the leaf emptied into it.
    pub(super) fn grow_into(&mut self, question: u64, into: Leaf, rate: Bytes) {
        let (size, into) = (self.size(), Some((into, rate)));
        self.enlarging = Some(Enlarging { question, size, into, begun: false, grown: Arc::default() });
    }

    /// Whether an image that is written is smaller than the disk: the leaf cannot be emptied into it.
    pub(super) fn is_too_small(&mut self, slot: Slot) -> bool {
        let size = self.size();
        self.layers.written(slot).is_some_and(|image| image.layer.virtual_size() < size)
    }

    /// Makes the image larger, when nothing is under way any more.
    pub(super) fn pump_growth(&mut self, engine: &mut dyn Engine) {
        let idle = self.waiting.is_empty();
        let Some(enlarging) = self.enlarging.as_mut().filter(|enlarging| idle && !enlarging.begun) else {
            return;
        };
        enlarging.begun = true;
        let (size, grown_into) = (enlarging.size, Arc::clone(&enlarging.grown));
        let below = enlarging.into.as_mut().map(|(into, _)| into);
        let Some(image) = below.or_else(|| self.layers.leaf()) else { return };
        match image.layer.grow(size) {
            Ok(growth) => {
                let run = move || {
                    let grown = growth().map_err(|error| io::Error::other(error.to_string()))?;
                    *grown_into.lock().unwrap_or_else(PoisonError::into_inner) = Some(grown);
                    Ok(())
                };
                self.start(Waiting::Larger, Op::Call(Box::new(run)), engine);
            }
            Err(error) => self.grew(Err(io::Error::other(error.to_string()))),
        }
    }

    /// The image was made larger, or could not be.
    pub(super) fn grew(&mut self, result: io::Result<()>) {
        let Some(Enlarging { question, into, grown, .. }) = self.enlarging.take() else { return };
        let grown = grown.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Grown { layer, outcome }) = grown else {
            let nothing = || trouble(TroubleKind::Internal, "the image did not grow");
            let error =
                result.err().map_or_else(nothing, |error| trouble(TroubleKind::Io, error.to_string()));
            return self.answer(question, Err(error));
        };
        let Some((into, rate)) = into else {
            self.layers.enlarge_leaf(layer);
            self.layers.leaf_slot().into_iter().for_each(|slot| self.forget_places(slot));
            self.holding.forget_prepared();
            return self.answer(question, outcome.map(|()| Told::Done).map_err(|error| from_chain(&error)));
        };
        // It takes its place in any case: its blocks have moved.
        let begun = self.begin_move(Leaf { layer, ..into }, rate);
        match begun.and(outcome) {
            Ok(()) => {
                let epoch = self.next_epoch();
                self.retire(question, epoch);
            }
            Err(error) => {
                self.drop_move();
                self.answer(question, Err(from_chain(&error)));
            }
        }
    }
}
