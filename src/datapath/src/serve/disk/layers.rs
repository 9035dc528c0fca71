//! The images of the disk: the leaf that is written, those below it that are only read, and who owns what among them.
//!
//! An image keeps its slot for as long as it is served; the order of the slots is the chain. Nothing here waits: what depends on
//! bytes that are not in memory is said to be missing.

use catena_blockio::Container;
use catena_chain::{Error, Extent, Known, LiveLayer, Recall};
use catena_types::{
    BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES, SectorSet,
};
use std::ops::Range;
use std::sync::Arc;

/// An image that is only read.
#[derive(Clone)]
pub(crate) struct Part {
    /// Which.
    pub(crate) id: ImageId,
    /// What it owns.
    pub(crate) layer: Arc<dyn Recall>,
    /// Its bytes.
    pub(crate) container: Arc<dyn Container>,
}

/// The image that is written.
pub(crate) struct Leaf {
    /// Which.
    pub(crate) id: ImageId,
    /// What it owns.
    pub(crate) layer: Box<dyn LiveLayer>,
    /// Its bytes.
    pub(crate) container: Arc<dyn Container>,
}

/// The number of an image for as long as it is served.
pub(super) type Slot = usize;

/// Neighbouring sectors of one block with one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) sectors: Range<usize>,
    pub(super) owner: Option<Slot>,
}

/// What is known of a range.
pub(super) enum Look {
    /// Runs that cover it.
    Runs(Vec<Run>),
    /// It depends on these bitmaps.
    Missing(Vec<(Slot, FileOffset)>),
}

/// From which image on one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// All of them.
    Top,
    /// Those below the leaf.
    BelowLeaf,
}

/// The images.
pub(super) struct Layers {
    /// `None` while the disk is served for reading only.
    leaf: Option<(Slot, Leaf)>,
    /// By slot; `None` for the leaf and for what is not served any more.
    parts: Vec<Option<Part>>,
    /// Those below the leaf, topmost first.
    order: Vec<Slot>,
}

impl Layers {
    pub(super) fn new(leaf: Option<Leaf>, below: Vec<Part>) -> Self {
        let order = (0..below.len()).collect();
        let parts = below.into_iter().map(Some).collect();
        let mut layers = Self { leaf: None, parts, order };
        if let Some(leaf) = leaf {
            let slot = layers.add(None);
            layers.leaf = Some((slot, leaf));
        }
        layers
    }

    fn add(&mut self, part: Option<Part>) -> Slot {
        self.parts.push(part);
        self.parts.len() - 1
    }

    pub(super) fn leaf(&mut self) -> Option<&mut Leaf> {
        self.leaf.as_mut().map(|(_, leaf)| leaf)
    }

    pub(super) fn leaf_slot(&self) -> Option<Slot> {
        self.leaf.as_ref().map(|(slot, _)| *slot)
    }

    /// The images, leaf first.
    pub(super) fn ids(&self) -> Vec<ImageId> {
        let below = self.order.iter().filter_map(|&slot| self.parts[slot].as_ref().map(|part| part.id));
        self.leaf.iter().map(|(_, leaf)| leaf.id).chain(below).collect()
    }

    /// How far down the chain the image is, the top being 1.
    pub(super) fn depth(&self, slot: Slot) -> u32 {
        let position = self.slots(From::Top).position(|other| other == slot);
        position.and_then(|position| u32::try_from(position + 1).ok()).unwrap_or(u32::MAX)
    }

    fn slots(&self, from: From) -> impl Iterator<Item = Slot> + '_ {
        let leaf = self.leaf_slot().filter(|_| from == From::Top);
        leaf.into_iter().chain(self.order.iter().copied())
    }

    fn recall(&self, slot: Slot) -> Option<&dyn Recall> {
        match &self.leaf {
            Some((of_leaf, leaf)) if *of_leaf == slot => Some(&*leaf.layer),
            _ => self.parts.get(slot)?.as_ref().map(|part| &*part.layer),
        }
    }

    /// The bytes of an image.
    pub(super) fn container(&self, slot: Slot) -> Option<&Arc<dyn Container>> {
        match &self.leaf {
            Some((of_leaf, leaf)) if *of_leaf == slot => Some(&leaf.container),
            _ => self.parts.get(slot)?.as_ref().map(|part| &part.container),
        }
    }

    /// Where the block lies in an image.
    pub(super) fn locate(&self, slot: Slot, block: BlockIndex) -> Option<Extent> {
        self.recall(slot)?.locate(block)
    }

    /// Tells an image what stands in its bitmap of the block. One that is not served any more does not want to know.
    pub(super) fn learn(&self, slot: Slot, block: BlockIndex, raw: &[u8; 512]) -> Result<(), Error> {
        self.recall(slot).map_or(Ok(()), |layer| layer.learn(block, raw))
    }

    /// Who owns these sectors of the block.
    pub(super) fn look(&self, block: BlockIndex, sectors: Range<usize>, from: From) -> Result<Look, Error> {
        let mut open = SectorSet::of(sectors.clone());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for slot in self.slots(from) {
            let Some(layer) = self.recall(slot) else { continue };
            // D6: past its own end a layer hides what is below, and reads as zero.
            open.remove(sectors_inside(layer.virtual_size(), block)..BLOCK_SECTORS);
            if open.is_empty() {
                break;
            }
            let mine = match layer.known(block)? {
                Known::Nothing => continue,
                // Those below are asked for at once: one wait and not one for each image.
                Known::At(at) => {
                    missing.push((slot, at));
                    continue;
                }
                Known::Everything => open.clone(),
                Known::Sectors(set) => open.intersection(&set),
            };
            found.extend(mine.runs().map(|sectors| Run { sectors, owner: Some(slot) }));
            open = open.minus(&mine);
        }
        if missing.is_empty() {
            Ok(Look::Runs(with_gaps(found, sectors)))
        } else {
            Ok(Look::Missing(missing))
        }
    }

    /// Puts another leaf on top; the old one is read through that container from now on.
    pub(super) fn push_leaf(&mut self, leaf: Leaf, old: Arc<dyn Container>) -> Result<(), Error> {
        if let Some((slot, Leaf { id, layer, .. })) = self.leaf.take() {
            let layer = layer.into_reader(old.clone())?;
            self.parts[slot] = Some(Part { id, layer, container: old });
            self.order.insert(0, slot);
        }
        let slot = self.add(None);
        self.leaf = Some((slot, leaf));
        Ok(())
    }

    /// Size of the disk.
    pub(super) fn size(&self) -> Bytes {
        let top = self.slots(From::Top).next().and_then(|slot| self.recall(slot));
        top.map_or(Bytes(0), |layer| layer.virtual_size())
    }

    /// Makes these the images below the leaf (all of them, where there is none), topmost first; an image without a new form keeps
    /// the one that it has. What is not named is dropped.
    pub(super) fn relink(&mut self, below: Vec<(ImageId, Option<Part>)>) -> Result<(), ImageId> {
        let known = |id: ImageId| {
            let is_it = |slot: &Slot| self.parts[*slot].as_ref().is_some_and(|part| part.id == id);
            self.order.iter().copied().find(is_it)
        };
        let kept: Vec<Option<Slot>> = below.iter().map(|(id, _)| known(*id)).collect();
        if let Some(index) = (0..below.len()).find(|&index| kept[index].is_none() && below[index].1.is_none())
        {
            return Err(below[index].0);
        }
        let mut order = Vec::with_capacity(below.len());
        for ((_, part), kept) in below.into_iter().zip(kept) {
            match (part, kept) {
                (None, Some(slot)) => order.push(slot),
                (part, _) => order.push(self.add(part)),
            }
        }
        for slot in std::mem::replace(&mut self.order, order) {
            if !self.order.contains(&slot) {
                self.parts[slot] = None;
            }
        }
        Ok(())
    }
}

/// How many of the block's sectors lie inside a disk of this size.
fn sectors_inside(size: Bytes, block: BlockIndex) -> usize {
    let bytes = size.0.saturating_sub(block.start().0).min(BLOCK_BYTES);
    usize::try_from(bytes.div_ceil(SECTOR_BYTES)).unwrap_or(BLOCK_SECTORS)
}

/// The runs in order, with runs that nobody owns in between, so that `sectors` is covered.
fn with_gaps(mut found: Vec<Run>, sectors: Range<usize>) -> Vec<Run> {
    found.sort_unstable_by_key(|run| run.sectors.start);
    let mut runs = Vec::with_capacity(2 * found.len() + 1);
    let mut at = sectors.start;
    for run in found {
        if at < run.sectors.start {
            runs.push(Run { sectors: at..run.sectors.start, owner: None });
        }
        at = run.sectors.end;
        runs.push(run);
    }
    if at < sectors.end {
        runs.push(Run { sectors: at..sectors.end, owner: None });
    }
    runs
}
