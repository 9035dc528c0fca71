//! Making the disk larger, while it is quiesced.
//!
//! Blocks of the leaf may move, so nothing may be under way. Requests that come stay where they are; when the last operation has
//! come back the leaf is made larger in a thread of the engine, which gives another in its place; then requests go on. No
//! question of the keeper is taken meanwhile.

use super::{Disk, Waiting};
use crate::trouble::{from_chain, trouble};
use catena_blockio::{Engine, Op};
use catena_chain::Grown;
use catena_control::{Told, TroubleKind};
use catena_types::Bytes;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A growth that was asked for.
pub(super) struct Enlarging {
    question: u64,
    size: Bytes,
    begun: bool,
    /// What comes of it; none if nothing was changed.
    grown: Arc<Mutex<Option<Grown>>>,
}

impl Disk {
    /// Whether the disk is being made larger.
    pub(crate) const fn is_growing(&self) -> bool {
        self.enlarging.is_some()
    }

    /// Begins to make the disk larger.
    pub(super) fn grow(&mut self, question: u64, size: Bytes) {
        let refused = if !self.is_quiesced() {
            Some((TroubleKind::Internal, "a disk grows only while writes are held back"))
        } else if size < self.size() {
            Some((TroubleKind::OutOfRange, "a disk cannot shrink"))
        } else if self.layers.hides_something() {
            Some((TroubleKind::Unsupported, "an image below is larger than the disk"))
        } else {
            None
        };
        if let Some((kind, message)) = refused {
            return self.answer(question, Err(trouble(kind, message)));
        }
        self.enlarging = Some(Enlarging { question, size, begun: false, grown: Arc::default() });
    }

    /// Makes the leaf larger, when nothing is under way any more.
    pub(super) fn pump_growth(&mut self, engine: &mut dyn Engine) {
        let idle = self.waiting.is_empty();
        let Some(enlarging) = self.enlarging.as_mut().filter(|enlarging| idle && !enlarging.begun) else {
            return;
        };
        enlarging.begun = true;
        let (size, into) = (enlarging.size, Arc::clone(&enlarging.grown));
        let Some(leaf) = self.layers.leaf() else { return };
        let container = leaf.container.clone();
        match leaf.layer.grow(size) {
            Ok(growth) => {
                let run = move || {
                    // What the last commit has written is taken for durable from here on.
                    container.flush()?;
                    let grown = growth().map_err(|error| io::Error::other(error.to_string()))?;
                    *into.lock().unwrap_or_else(PoisonError::into_inner) = Some(grown);
                    Ok(())
                };
                self.start(Waiting::Larger, Op::Call(Box::new(run)), engine);
            }
            Err(error) => self.grew(Err(io::Error::other(error.to_string()))),
        }
    }

    /// The leaf was made larger, or could not be.
    pub(super) fn grew(&mut self, result: io::Result<()>) {
        let Some(enlarging) = self.enlarging.take() else { return };
        let grown = enlarging.grown.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answer = match (grown, result) {
            (Some(Grown { layer, outcome }), _) => {
                self.layers.enlarge_leaf(layer);
                self.layers.leaf_slot().into_iter().for_each(|slot| self.forget_places(slot));
                self.holding.forget_prepared();
                outcome.map(|()| Told::Done).map_err(|error| from_chain(&error))
            }
            (None, Err(error)) => Err(trouble(TroubleKind::Io, error.to_string())),
            (None, Ok(())) => Err(trouble(TroubleKind::Internal, "the leaf did not grow")),
        };
        self.answer(enlarging.question, answer);
    }
}
