//! Opening the disk: what a predecessor had acknowledged is stored before the first request (D8).

use super::change::Questions;
use super::layers::{Layers, Leaf, Part};
use super::locks::Locks;
use super::moving::Moving;
use super::pending::{Pending, PendingError};
use super::slab::Slab;
use super::space::Space;
use super::target::Targets;
use super::{Disk, IN_FLIGHT};
use catena_blockio::{Container, Pool};
use catena_control::Holding;
use catena_types::{Bytes, ImageId, VdiUuid};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a disk is made of.
pub(crate) struct Opening {
    /// The disk.
    pub(crate) vdi: VdiUuid,
    /// This boot of the machine.
    pub(crate) boot: [u8; 16],
    /// The image that is written and the file of pending writes; `None` for reading only.
    pub(crate) leaf: Option<(Leaf, OwnedFd)>,
    /// The image into which a leaf merge is open: it is written too; and the container through which it is read when that is ended.
    pub(crate) into: Option<(Leaf, Arc<dyn Container>)>,
    /// The images that are only read, topmost first.
    pub(crate) below: Vec<Part>,
    /// Whether writes wait where the storage is full; otherwise they fail.
    pub(crate) waits_when_full: bool,
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Nobody knows what was acknowledged.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// What was acknowledged cannot be stored, or the images do not make a chain.
    #[error("the images cannot be served: {0}")]
    Images(#[from] catena_chain::Error),
}

impl Disk {
    /// Opens the disk. Waits for the storage if a predecessor has left something.
    pub(crate) fn open(opening: Opening) -> Result<Self, OpenError> {
        let Opening { vdi, boot, leaf, into, below, waits_when_full } = opening;
        let Some((leaf, file)) = leaf else {
            return Ok(Self::new(vdi, Layers::new(Vec::new(), below)?, None, waits_when_full));
        };
        let (into, reader) = into.unzip();
        let mut written: Vec<Leaf> = [leaf].into_iter().chain(into).collect();
        let images: Vec<ImageId> = written.iter().map(|image| image.id).collect();
        let (mut pending, noted) = Pending::open(&file, vdi, boot, &images)?;
        for (image, noted) in written.iter_mut().zip(noted).filter(|(_, noted)| !noted.is_empty()) {
            image.layer.restore(&noted)?;
            store(image, &mut pending)?;
        }
        if pending.is_taken_over()
            && let Some(before) = below.first()
        {
            // D9: the last leaf may have been replaced a moment ago, and what it was written may not be durable.
            let flushed = before.container.flush();
            flushed.map_err(catena_chain::Error::io("making the image below durable"))?;
        }
        let mut disk = Self::new(vdi, Layers::new(written, below)?, Some(pending), waits_when_full);
        let slots = disk.layers.slots();
        for (&slot, &image) in slots.iter().zip(&images) {
            disk.targets.add(slot, image);
        }
        if let ([leaf, into, ..], [_, image], Some(reader)) = (&slots[..], &images[..], reader) {
            disk.moving = Some(Moving::successor((*leaf, *into), *image, reader));
            if disk.is_too_small(*into) {
                // D6: the predecessor died while that image was still being made as large as the disk. Nothing was written there yet:
                // the merge has not begun.
                disk.drop_move();
            }
        }
        // What a predecessor wrote over what was owned already has been answered and may never have been flushed.
        disk.targets.iter_mut().for_each(|target| target.commits.unflushed = true);
        Ok(disk)
    }

    fn new(vdi: VdiUuid, layers: Layers, pending: Option<Pending>, waits_when_full: bool) -> Self {
        Self {
            vdi,
            layers,
            pool: Pool::new(Bytes(IN_FLIGHT)),
            pending,
            tasks: Slab::default(),
            waiting: Slab::default(),
            locks: Locks::default(),
            ready: VecDeque::new(),
            learning: HashMap::new(),
            targets: Targets::default(),
            room: Vec::new(),
            sealing: None,
            space: Space::default(),
            waits_when_full,
            failed: None,
            holding: Holding::default(),
            held: VecDeque::new(),
            frozen: Vec::new(),
            changing: 0,
            enlarging: None,
            watermark: None,
            widening: None,
            moving: None,
            epoch: 0,
            in_epoch: BTreeMap::new(),
            questions: Questions::default(),
            news: Vec::new(),
            in_flight: 0,
            done: Vec::new(),
        }
    }
}

fn store(image: &mut Leaf, pending: &mut Pending) -> Result<(), catena_chain::Error> {
    let Some(commit) = image.layer.begin_commit()? else { return Ok(()) };
    pending.begin_commit(image.id);
    let run = commit.plan.run(&*image.container);
    image.layer.end_commit(commit, run.is_ok())?;
    run.map_err(catena_chain::Error::io("storing what was acknowledged"))?;
    pending.end_commit(image.id);
    Ok(())
}
