//! The plan: every removal and merge that the tree allows, those that can start now in the order in which they should, and the
//! others with what holds them.
//!
//! ```text
//!   hidden, no children                      -> remove
//!   hidden N, parent P hidden, only child    -> inner merge: P takes what N owns, N's children hang from P
//!   leaf L of a disk, P hidden, only child   -> leaf merge:  P takes what L owns, the disk points at P
//! ```

use crate::tree::Tree;
use catena_types::{BLOCK_BYTES, Bytes, CHAIN_LIMIT, ImageId, ImageRecord, ImageState, VdiKind, VdiUuid};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Something the worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Remove an image that nothing needs.
    Remove {
        /// The image.
        image: ImageId,
    },
    /// Inner merge.
    Merge {
        /// The image that goes away.
        from: ImageId,
        /// Its parent.
        into: ImageId,
    },
    /// Leaf merge.
    LeafMerge {
        /// The disk.
        vdi: VdiUuid,
        /// The leaf that goes away.
        from: ImageId,
        /// Its parent.
        into: ImageId,
    },
}

impl Task {
    /// The image that the task makes go away.
    pub const fn image(self) -> ImageId {
        match self {
            Self::Remove { image } => image,
            Self::Merge { from, .. } | Self::LeafMerge { from, .. } => from,
        }
    }

    /// The image that is written, if any.
    pub const fn target(self) -> Option<ImageId> {
        match self {
            Self::Remove { .. } => None,
            Self::Merge { into, .. } | Self::LeafMerge { into, .. } => Some(into),
        }
    }
}

/// Why a task cannot start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Somebody reads the chain and must not see it change.
    Lease,
    /// A disk of the chain is being served, and this merge cannot go on beside that.
    Attached,
    /// One of the two was not written by us or XenServer.
    Foreign,
    /// One of the two is damaged or gone.
    Damaged,
    /// It failed and waits for its next try.
    Backoff,
    /// So many bytes are missing.
    NoSpace(Bytes),
}

impl Hold {
    /// The code of the reason, as scripts see it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Attached => "chain_attached",
            Self::Foreign => "foreign_image",
            Self::Damaged | Self::Backoff => "failed",
            Self::NoSpace(_) => "no_space",
        }
    }
}

/// A task and what holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The task.
    pub task: Task,
    /// The reason.
    pub hold: Hold,
}

/// What the keeper knows of the moment beyond its catalog.
#[derive(Debug, Default)]
pub struct Moment {
    /// Images that must not be written or removed.
    pub leased: BTreeSet<ImageId>,
    /// VDIs that a process is serving.
    pub attached: BTreeSet<VdiUuid>,
    /// Those of them whose process can merge their leaf.
    pub live: BTreeSet<VdiUuid>,
    /// Images whose merge failed and waits.
    pub backed_off: BTreeSet<ImageId>,
    /// Images whose merge was begun and has only to be finished.
    pub begun: BTreeSet<ImageId>,
    /// Leaves that somebody waits for to get shorter chains.
    pub urgent: BTreeSet<ImageId>,
    /// Bytes that can be taken.
    pub free: Bytes,
    /// Merges need no space, because blocks can be shared.
    pub reflink: bool,
    /// Where containers have an explicit size: what the merges of these images were found to need. Of others nothing is known, and they
    /// may be tried. `None` where containers grow by themselves.
    pub known_needs: Option<BTreeMap<ImageId, Bytes>>,
}

/// Everything that could be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What can start now, first things first.
    pub ready: Vec<Task>,
    /// What cannot.
    pub held: Vec<Held>,
}

/// All tasks that the tree allows: ready ones in order, held ones with their reason.
///
/// The order: removals (they need nothing and give space); merges that have only to be finished; those that somebody waits
/// for; chains nearest the limit; then what costs least to copy, which frees most images for the bytes.
pub fn plan(tree: &impl Tree, moment: &Moment) -> Plan {
    plan_tasks(tree, moment, tree.images().filter_map(|image| task_of(tree, image)))
}

/// The same for these tasks of the tree.
pub(crate) fn plan_tasks(tree: &impl Tree, moment: &Moment, tasks: impl Iterator<Item = Task>) -> Plan {
    let mut plan = Plan::default();
    let urgent: BTreeSet<ImageId> =
        moment.urgent.iter().flat_map(|leaf| tree.chain(*leaf)).map(|image| image.id).collect();
    let mut ranked = Vec::new();
    for task in tasks {
        match hold(tree, moment, task) {
            Some(hold) => plan.held.push(Held { task, hold }),
            None => ranked.push((rank(tree, moment, &urgent, task), task)),
        }
    }
    ranked.sort();
    plan.ready = ranked.into_iter().map(|(_, task)| task).collect();
    plan
}

/// Whether merges that the tree allows, now or later, can make the chain of `leaf` shorter. What is damaged or foreign stays.
pub fn can_shorten(tree: &impl Tree, leaf: ImageId) -> bool {
    tree.chain(leaf).into_iter().any(|image| {
        task_of(tree, image).is_some_and(|task| {
            !matches!(task, Task::Remove { .. })
                && !matches!(hold(tree, &Moment::default(), task), Some(Hold::Foreign | Hold::Damaged))
        })
    })
}

/// Bytes that would come free if everything the tree allows were done: at most so many, since what two images both hold is known
/// only when they are merged.
pub fn reclaimable(tree: &impl Tree) -> Bytes {
    let freed = |image: &Arc<ImageRecord>| match task_of(tree, image)?.target() {
        None => Some(image.allocated),
        Some(into) => tree.image(into).map(|into| merge_frees(image, into)),
    };
    Bytes(tree.images().filter_map(freed).map(|bytes| bytes.0).sum())
}

/// What a merge frees at most: the union of two is not smaller than either.
pub(crate) fn merge_frees(from: &ImageRecord, into: &ImageRecord) -> Bytes {
    from.allocated.min(into.allocated)
}

/// Whether the image can be read and has a place in the tree.
pub(crate) const fn is_sound(image: &ImageRecord) -> bool {
    matches!(image.state, ImageState::Ok | ImageState::Mixed)
}

/// What the tree allows to be done about an image, now or later.
pub fn task_of(tree: &impl Tree, image: &ImageRecord) -> Option<Task> {
    let garbage = image.state == ImageState::Garbage;
    if !garbage && !is_sound(image) {
        return None;
    }
    let from = image.id;
    match (tree.children(from).next().is_none(), tree.vdi(from)) {
        (true, None) => Some(Task::Remove { image: from }),
        (true, Some(vdi)) if vdi.kind == VdiKind::Disk => {
            merge_target(tree, image).map(|into| Task::LeafMerge { vdi: vdi.uuid, from, into })
        }
        (false, None) => merge_target(tree, image).map(|into| Task::Merge { from, into }),
        _ => None,
    }
}

/// The parent, if it is a base copy that only this image reads.
fn merge_target(tree: &impl Tree, image: &ImageRecord) -> Option<ImageId> {
    let parent = tree.parent(image.id)?;
    let only_child = tree.only_child(parent.id) == Some(image.id);
    (only_child && tree.vdi(parent.id).is_none() && parent.state != ImageState::Garbage).then_some(parent.id)
}

fn hold(tree: &impl Tree, moment: &Moment, task: Task) -> Option<Hold> {
    let pair = [Some(task.image()), task.target()];
    let rows = || pair.iter().flatten().filter_map(|id| tree.image(*id));
    if matches!(task, Task::Remove { .. }) {
        return moment.leased.contains(&task.image()).then_some(Hold::Lease);
    }
    if rows().any(|image| image.foreign) {
        return Some(Hold::Foreign);
    }
    if rows().any(|image| !is_sound(image)) {
        return Some(Hold::Damaged);
    }
    if pair.iter().flatten().any(|id| moment.leased.contains(id)) {
        return Some(Hold::Lease);
    }
    if disturbs_attached(tree, moment, task) {
        return Some(Hold::Attached);
    }
    if moment.backed_off.contains(&task.image()) {
        return Some(Hold::Backoff);
    }
    let need = need(tree, moment, task);
    (need > moment.free).then(|| Hold::NoSpace(Bytes(need.0 - moment.free.0)))
}

/// Whether somebody has one of the two images of a merge open who is not to see blocks move.
pub fn is_read(tree: &impl Tree, moment: &Moment, task: Task) -> bool {
    let pair = [Some(task.image()), task.target()];
    pair.iter().flatten().any(|id| moment.leased.contains(id)) || has_attached(tree, moment, task.image())
}

/// Whether the merge would pull the rug from under a disk that is being served: its own leaf is written and merged by its process
/// alone, if that is there and writes; and a base copy that grows moves blocks, which a process that has it open would look for
/// where they were.
fn disturbs_attached(tree: &impl Tree, moment: &Moment, task: Task) -> bool {
    let size = |id: ImageId| tree.image(id).map_or(Bytes(0), |image| image.virtual_size);
    match task {
        Task::Remove { .. } => false,
        Task::LeafMerge { vdi, .. } => moment.attached.contains(&vdi) && !moment.live.contains(&vdi),
        Task::Merge { from, into } => {
            !moment.attached.is_empty() && size(from) > size(into) && has_attached(tree, moment, from)
        }
    }
}

/// Whether a leaf above the image is that of a VDI that is being served.
fn has_attached(tree: &impl Tree, moment: &Moment, image: ImageId) -> bool {
    let mut left = vec![image];
    while let Some(id) = left.pop() {
        if tree.vdi(id).is_some_and(|vdi| moment.attached.contains(&vdi.uuid)) {
            return true;
        }
        left.extend(tree.children(id));
    }
    false
}

/// Bytes that the merge takes before it gives any back: all that `from` owns for an inner merge, a window of it for a leaf
/// merge, which gives back behind itself; nothing where blocks are shared, which a process that serves a disk does not do.
pub fn need(tree: &impl Tree, moment: &Moment, task: Task) -> Bytes {
    const LEAF_WINDOW: u64 = 32 * BLOCK_BYTES;
    if let Some(known) = &moment.known_needs {
        return known.get(&task.image()).copied().unwrap_or_default();
    }
    let owned = tree.image(task.image()).map_or(0, |image| image.allocated.0);
    match task {
        Task::LeafMerge { vdi, .. } if moment.live.contains(&vdi) => Bytes(owned.min(LEAF_WINDOW)),
        _ if moment.reflink => Bytes(0),
        Task::LeafMerge { .. } => Bytes(owned.min(LEAF_WINDOW)),
        _ => Bytes(owned),
    }
}

type Rank = (bool, bool, bool, Reverse<usize>, u64);

fn rank(tree: &impl Tree, moment: &Moment, urgent: &BTreeSet<ImageId>, task: Task) -> Rank {
    let image = task.image();
    if matches!(task, Task::Remove { .. }) {
        return (false, false, false, Reverse(0), 0);
    }
    let pressing = tree.deepest(image).saturating_sub(CHAIN_LIMIT / 2);
    let cost = tree.image(image).map_or(0, |row| row.allocated.0);
    (true, !moment.begun.contains(&image), !urgent.contains(&image), Reverse(pressing), cost)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
