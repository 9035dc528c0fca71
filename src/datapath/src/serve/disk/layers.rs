//! The images of the disk: the leaf that is written, and those below it that are only read; while a leaf merge is open, the one
//! right below the leaf is written too.
//!
//! An image keeps its slot for as long as it is served, wherever in the chain it is. Nothing here waits: what depends on bytes
//! that are not in memory is said to be missing.

use catena_blockio::Container;
use catena_chain::{Beneath, Error, Extent, Link, LiveChain, LiveLayer, Look, Member, Recall, Run, Slot};
use catena_types::{BlockIndex, Bytes, FileOffset, ImageId};
use std::ops::Range;
use std::sync::Arc;

/// An image that is only read.
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

/// An image of the chain.
enum Image {
    /// The one that is written, or was before there was another leaf.
    Leaf(Leaf),
    /// One that was opened for reading.
    Part(Part),
}

impl Member for Image {
    fn layer(&self) -> &dyn Recall {
        match self {
            Self::Leaf(leaf) => &*leaf.layer,
            Self::Part(part) => &*part.layer,
        }
    }
}

impl Image {
    const fn id(&self) -> ImageId {
        match self {
            Self::Leaf(leaf) => leaf.id,
            Self::Part(part) => part.id,
        }
    }

    const fn container(&self) -> &Arc<dyn Container> {
        match self {
            Self::Leaf(leaf) => &leaf.container,
            Self::Part(part) => &part.container,
        }
    }
}

/// The images.
pub(super) struct Layers {
    chain: LiveChain<Image>,
    /// `None` while the disk is served for reading only.
    leaf: Option<Slot>,
}

impl Layers {
    /// Those that are written, the leaf first, and the others; topmost first. At least one image.
    pub(super) fn new(written: Vec<Leaf>, below: Vec<Part>) -> Result<Self, Error> {
        let writes = !written.is_empty();
        let images = written.into_iter().map(Image::Leaf).chain(below.into_iter().map(Image::Part));
        let chain = LiveChain::new(images.collect(), catena_chain::DEFAULT_MAP_BUDGET)?;
        let leaf = chain.order().first().copied().filter(|_| writes);
        Ok(Self { chain, leaf })
    }

    pub(super) fn leaf(&mut self) -> Option<&mut Leaf> {
        self.written(self.leaf?)
    }

    /// The image in that place, if it is or was one that is written.
    pub(super) fn written(&mut self, slot: Slot) -> Option<&mut Leaf> {
        match self.chain.member_mut(slot)? {
            Image::Leaf(leaf) => Some(leaf),
            Image::Part(_) => None,
        }
    }

    pub(super) const fn leaf_slot(&self) -> Option<Slot> {
        self.leaf
    }

    /// Their places, leaf first.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.chain.order().to_vec()
    }

    /// The images, leaf first.
    pub(super) fn ids(&self) -> Vec<ImageId> {
        self.chain.order().iter().filter_map(|&slot| self.chain.member(slot)).map(Image::id).collect()
    }

    /// Size of the disk.
    pub(super) fn size(&self) -> Bytes {
        let top = self.chain.order().first().and_then(|&slot| self.chain.member(slot));
        top.map_or(Bytes(0), |image| image.layer().virtual_size())
    }

    /// How far down the chain the image is, the top being 1; 0 for nobody.
    pub(super) fn depth(&self, owner: Option<Slot>) -> u32 {
        self.chain.depth(owner)
    }

    /// The bytes of an image.
    pub(super) fn container(&self, slot: Slot) -> Option<&Arc<dyn Container>> {
        self.chain.member(slot).map(Image::container)
    }

    /// Where the block lies in an image.
    pub(super) fn locate(&self, slot: Slot, block: BlockIndex) -> Option<Extent> {
        self.chain.member(slot)?.layer().locate(block)
    }

    /// Tells an image what stands where it wanted to look for the block. One that is not served any more does not want to know.
    pub(super) fn learn(
        &self,
        slot: Slot,
        block: BlockIndex,
        at: FileOffset,
        raw: &[u8],
    ) -> Result<(), Error> {
        self.chain.member(slot).map_or(Ok(()), |image| image.layer().learn(block, at, raw))
    }

    /// Who owns these sectors of the block.
    pub(super) fn look(&mut self, block: BlockIndex, sectors: Range<usize>) -> Result<Look<'_>, Error> {
        self.chain.look(block, sectors)
    }

    /// Who owns them, where that depends on no bytes that are still to be read.
    pub(super) fn look_above_unknown(&self, block: BlockIndex, sectors: Range<usize>) -> Option<Vec<Run>> {
        self.chain.look_above_unknown(block, sectors)
    }

    /// What the images below that one own of the block.
    pub(super) fn beneath(&self, slot: Slot, block: BlockIndex) -> Result<Beneath, Error> {
        self.chain.beneath(block, slot)
    }

    /// The image owns these sectors now, and none above it does.
    pub(super) fn own(&mut self, slot: Slot, block: BlockIndex, sectors: Range<usize>) {
        self.chain.own(block, sectors, slot);
    }

    /// An image does not own some sectors of the block any more.
    pub(super) fn forget(&mut self, block: BlockIndex) {
        self.chain.forget(block);
    }

    /// Puts another leaf on top; the old one is read through that container from now on, and keeps its slot.
    /// Gives the place of the new one.
    pub(super) fn push_leaf(&mut self, leaf: Leaf, old: Arc<dyn Container>) -> Result<Slot, Error> {
        if let Some(before) = self.leaf {
            self.end_writing(before, old)?;
        }
        let slot = self.chain.push_leaf(Image::Leaf(leaf))?;
        self.leaf = Some(slot);
        Ok(slot)
    }

    /// The image below the leaf.
    pub(super) fn below_leaf(&self) -> Option<(Slot, ImageId)> {
        self.leaf?;
        let below = *self.chain.order().get(1)?;
        self.chain.member(below).map(|image| (below, image.id()))
    }

    /// What a leaf merge works with: the leaf, the image below it, and the container through which that is read.
    pub(super) fn move_ends(&self) -> Option<(Slot, Slot, Arc<dyn Container>)> {
        let (below, _) = self.below_leaf()?;
        Some((self.leaf?, below, self.container(below)?.clone()))
    }

    /// Puts another form of an image in its place, of the same content and open for writing. Gives its new place.
    pub(super) fn replace(&mut self, old: Slot, new: Leaf) -> Result<Slot, Error> {
        let place = self.chain.order().iter().position(|slot| *slot == old);
        let mut new = Some(new);
        let link = |&slot: &Slot| match new.take_if(|_| slot == old) {
            Some(new) => Link::Comes(Image::Leaf(new)),
            None => Link::Stays(slot),
        };
        let chain = self.chain.order().iter().map(link).collect();
        self.chain.relink(chain)?;
        let slot = place.and_then(|place| self.chain.order().get(place)).copied();
        slot.ok_or_else(|| Error::OutOfRange("an image that is not served cannot be exchanged".to_owned()))
    }

    /// From here on an image that was written is only read, through this container.
    pub(super) fn end_writing(&mut self, slot: Slot, container: Arc<dyn Container>) -> Result<(), Error> {
        let Some(image) = self.written(slot) else { return Ok(()) };
        image.layer.end_writing(container.clone())?;
        image.container = container;
        Ok(())
    }

    /// Drops the leaf, which owns nothing. The image below it, open for writing, is the leaf from now on.
    pub(super) fn drop_leaf(&mut self, next: Slot) -> Result<(), Error> {
        let leaf = self.leaf;
        let staying = self.chain.order().iter().copied().filter(|slot| Some(*slot) != leaf);
        let chain = staying.map(Link::Stays).collect();
        self.chain.relink(chain)?;
        self.leaf = Some(next);
        Ok(())
    }

    /// Puts a larger form of the leaf in its place.
    pub(super) fn enlarge_leaf(&mut self, layer: Box<dyn LiveLayer>) {
        let before = self.size();
        if let Some(leaf) = self.leaf() {
            leaf.layer = layer;
        }
        self.chain.grown(before);
    }

    /// Whether an image below the one that has so many above it is larger than `size`: what it owns past that is hidden (D6).
    pub(super) fn hides_below(&self, above: usize, size: Bytes) -> bool {
        let images = self.chain.order().iter().skip(above + 1).filter_map(|&slot| self.chain.member(slot));
        images.into_iter().any(|image| image.layer().virtual_size() > size)
    }

    /// Makes these the images below the leaf (all of them, where there is none), topmost first; an image without a new form keeps
    /// the one that it has. What is not named is let go.
    pub(super) fn relink(&mut self, below: Vec<(ImageId, Option<Part>)>) -> Result<(), Error> {
        let slot_of = |id: ImageId| {
            let is_it = |slot: &Slot| self.chain.member(*slot).is_some_and(|image| image.id() == id);
            let parts = self.chain.order().iter().copied().filter(|slot| Some(*slot) != self.leaf);
            let missing =
                || Error::OutOfRange(format!("image {id} is not served and came without a descriptor"));
            parts.into_iter().find(is_it).ok_or_else(missing)
        };
        let links = below.into_iter().map(|(id, part)| match part {
            Some(part) => Ok(Link::Comes(Image::Part(part))),
            None => slot_of(id).map(Link::Stays),
        });
        let leaf = self.leaf.map(|slot| Ok(Link::Stays(slot)));
        let chain = leaf.into_iter().chain(links).collect::<Result<Vec<_>, Error>>()?;
        self.chain.relink(chain).map(drop)
    }
}
