//! Opening the disk: what a predecessor had acknowledged is stored before the first request (D8).

use super::change::Questions;
use super::layers::{Layers, Leaf, Part};
use super::locks::Locks;
use super::pending::{Pending, PendingError};
use super::slab::Slab;
use super::space::Space;
use super::target::Targets;
use super::{Disk, IN_FLIGHT};
use catena_blockio::Pool;
use catena_control::Holding;
use catena_types::{Bytes, VdiUuid};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;

/// What a disk is made of.
pub(crate) struct Opening {
    /// The disk.
    pub(crate) vdi: VdiUuid,
    /// This boot of the machine.
    pub(crate) boot: [u8; 16],
    /// The image that is written and the file of pending writes; `None` for reading only.
    pub(crate) leaf: Option<(Leaf, OwnedFd)>,
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
        let Opening { vdi, boot, leaf, below, waits_when_full } = opening;
        let (leaf, pending) = match leaf {
            Some((mut leaf, file)) => {
                let (mut pending, noted) = Pending::open(&file, vdi, boot, &[leaf.id])?;
                for noted in noted.into_iter().filter(|noted| !noted.is_empty()) {
                    leaf.layer.restore(&noted)?;
                    store(&mut leaf, &mut pending)?;
                }
                if pending.is_taken_over()
                    && let Some(before) = below.first()
                {
                    // D9: the last leaf may have been replaced a moment ago, and what it was written may not be durable.
                    let flushed = before.container.flush();
                    flushed.map_err(catena_chain::Error::io("making the image below durable"))?;
                }
                (Some(leaf), Some(pending))
            }
            None => (None, None),
        };
        let written = leaf.as_ref().map(|leaf| leaf.id);
        let mut disk = Self::new(vdi, Layers::new(leaf, below)?, pending, waits_when_full);
        if let Some((slot, id)) = disk.layers.leaf_slot().zip(written) {
            disk.targets.add(slot, id);
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
            epoch: 0,
            in_epoch: BTreeMap::new(),
            questions: Questions::default(),
            news: Vec::new(),
            in_flight: 0,
            done: Vec::new(),
        }
    }
}

fn store(leaf: &mut Leaf, pending: &mut Pending) -> Result<(), catena_chain::Error> {
    let Some(commit) = leaf.layer.begin_commit()? else { return Ok(()) };
    pending.begin_commit(leaf.id);
    let run = commit.plan.run(&*leaf.container);
    leaf.layer.end_commit(commit, run.is_ok())?;
    run.map_err(catena_chain::Error::io("storing what was acknowledged"))?;
    pending.end_commit(leaf.id);
    Ok(())
}
