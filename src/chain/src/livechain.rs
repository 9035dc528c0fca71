//! The chain of a disk that is served: who owns what, without waiting, while layers are written, come and go.
//!
//! Pure bookkeeping. What it does not know it asks the layers, which know it in memory ([`Recall`]) or say where it
//! stands; the owner reads that, lets the layer learn it and asks again. Invariants: what [`look`](LiveChain::look) says is
//! what the layers know now, if whoever changes what a layer owns says so ([`own`](LiveChain::own),
//! [`forget`](LiveChain::forget)); a slot is the name of one layer for as long as anything in the map names it, wherever in the
//! chain the layer is. What the map says of a layer that has left is not believed; nothing is searched for that when it leaves.
//! The owner is the event loop of a disk.

use crate::error::Error;
use crate::layer::Extent;
use crate::live::{Known, Recall};
use crate::map::{ChainMap, Walk};
use crate::mixed::{Owner, Run, Runs, Slot};
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, SectorSet};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The map may take at least as much, so that any one block fits.
const LEAST_BUDGET: Bytes = Bytes(64 << 10);

/// What the owner keeps for a layer; here only the layer in it counts.
pub trait Member {
    /// The layer.
    fn layer(&self) -> &dyn Recall;
}

impl Member for Arc<dyn Recall> {
    fn layer(&self) -> &dyn Recall {
        &**self
    }
}

/// An answer.
#[derive(Debug)]
pub enum Look<'a> {
    /// Who owns the sectors.
    Runs(Runs<'a>),
    /// First these bytes must be read, for the layers to learn. There may be more to read then.
    Missing(Vec<(Slot, Extent)>),
}

/// What the layers below one own of a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Beneath {
    /// These sectors, one or the other of them.
    Owned(Box<SectorSet>),
    /// First these bytes must be read, for the layers to learn.
    Missing(Vec<(Slot, Extent)>),
}

/// A place in a chain that is put together anew.
#[derive(Debug)]
pub enum Link<M> {
    /// The layer that has this slot.
    Stays(Slot),
    /// Another one.
    Comes(M),
}

/// The chain.
#[derive(Clone)]
pub struct LiveChain<M> {
    /// By slot; none: nobody's, or of one that has left.
    members: Vec<Option<M>>,
    /// By slot: the place in the chain, 1 for the leaf; 0 where there is no member.
    depths: Vec<u16>,
    /// Leaf first.
    order: Vec<Slot>,
    /// Slots of layers that have left, which the map may still name.
    left: VecDeque<Slot>,
    /// Slots that nothing names, once all numbers have been given out.
    free: VecDeque<Slot>,
    map: ChainMap,
}

impl<M> std::fmt::Debug for LiveChain<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveChain").field("order", &self.order).finish_non_exhaustive()
    }
}

impl<M: Member> LiveChain<M> {
    /// A chain of these layers, the leaf first. At least one. `budget` bounds the memory for blocks whose sectors have several
    /// owners; every block takes 8 bytes besides.
    pub fn new(members: Vec<M>, budget: Bytes) -> Result<Self, Error> {
        let blocks = members.first().map_or(0, |leaf| leaf.layer().virtual_size().blocks());
        let mut new = Self {
            members: Vec::new(),
            depths: Vec::new(),
            order: Vec::new(),
            left: VecDeque::new(),
            free: VecDeque::new(),
            map: ChainMap::new(blocks, budget.max(LEAST_BUDGET)),
        };
        new.relink(members.into_iter().map(Link::Comes).collect())?;
        Ok(new)
    }

    /// The slots, leaf first.
    pub fn order(&self) -> &[Slot] {
        &self.order
    }

    /// The layer of the slot, unless it has left.
    pub fn member(&self, slot: Slot) -> Option<&M> {
        self.members.get(slot.index())?.as_ref()
    }

    /// The same, to be changed. What it owns changes only as [`own`](Self::own) and [`forget`](Self::forget) are told.
    pub fn member_mut(&mut self, slot: Slot) -> Option<&mut M> {
        self.members.get_mut(slot.index())?.as_mut()
    }

    /// The place in the chain of whoever owns a sector: 1 is the leaf; 0 for nobody, and for a layer that has left.
    pub fn depth(&self, owner: Owner) -> u32 {
        owner.and_then(|slot| self.depths.get(slot.index())).copied().map_or(0, u32::from)
    }

    /// Who owns these sectors of the block.
    ///
    /// # Errors
    /// Those of the layers: damage in their metadata. A block that the disk does not have.
    pub fn look(&mut self, block: BlockIndex, sectors: Range<usize>) -> Result<Look<'_>, Error> {
        debug_assert!(sectors.end <= BLOCK_SECTORS);
        if !self.is_known(block, &sectors) {
            let missing = self.resolve(block)?;
            if !missing.is_empty() {
                return Ok(Look::Missing(missing));
            }
        }
        let outside = || Error::OutOfRange(format!("block {} lies past the end of the disk", block.0));
        self.map.lookup(block, sectors).map(Look::Runs).ok_or_else(outside)
    }

    /// Who owns these sectors of the block, where that depends on nothing that is still to be read: for when it cannot be read. `None`
    /// where it does. Asks the layers each time.
    pub fn look_above_unknown(&self, block: BlockIndex, sectors: Range<usize>) -> Option<Vec<Run>> {
        let mut walk = Walk::new(block);
        for &slot in &self.order {
            let Some(layer) = self.member(slot).map(Member::layer) else { continue };
            if !walk.enters(layer.virtual_size()) {
                break;
            }
            match layer.known(block).map(Known::owned) {
                Ok(Ok(owned)) => walk.meets(Some(slot), &owned),
                _ => break,
            }
        }
        let runs: Vec<Run> = walk.ends().runs(sectors).collect();
        runs.iter().all(|run| run.owner.is_some()).then_some(runs)
    }

    /// What the layers below `above` own of the block. Asks the layers each time.
    ///
    /// # Errors
    /// As for [`look`](Self::look).
    pub fn beneath(&self, block: BlockIndex, above: Slot) -> Result<Beneath, Error> {
        let below = usize::try_from(self.depth(Some(above))).unwrap_or(usize::MAX);
        let mut walk = Walk::new(block);
        let (upper, lower) = self.order.split_at(below.min(self.order.len()));
        for layer in upper.iter().filter_map(|&slot| self.member(slot)) {
            // D6: it also hides what lies below it past its end.
            walk.enters(layer.layer().virtual_size());
        }
        let missing = self.descend(&mut walk, block, lower)?;
        if !missing.is_empty() {
            return Ok(Beneath::Missing(missing));
        }
        let mut owned = Box::new(SectorSet::empty());
        let found = walk.ends();
        found
            .runs(0..BLOCK_SECTORS)
            .filter(|run| run.owner.is_some())
            .for_each(|run| owned.insert(run.sectors));
        Ok(Beneath::Owned(owned))
    }

    /// These sectors belong to the layer from now on, and nothing above it owns them: after a write.
    pub fn own(&mut self, block: BlockIndex, sectors: Range<usize>, slot: Slot) {
        self.map.own(block, sectors, Some(slot));
    }

    /// The ownership of the block has changed in another way.
    pub fn forget(&mut self, block: BlockIndex) {
        self.map.invalidate(block);
    }

    /// Puts an empty layer on top. Nothing else changes.
    ///
    /// # Errors
    /// More layers than a chain can have.
    pub fn push_leaf(&mut self, leaf: M) -> Result<Slot, Error> {
        let mut chain = vec![Link::Comes(leaf)];
        chain.extend(self.order.iter().copied().map(Link::Stays));
        self.relink(chain)?;
        Ok(self.order[0])
    }

    /// Puts the chain together anew, leaf first; gives the layers that have left, with the slots that they had. The disk must
    /// read the same as before, and layers that stay and come must own, together, what those that leave do: then only what is
    /// known of the latter has to be found out again, block by block when it is asked for.
    ///
    /// # Errors
    /// A slot that no layer has, or that is named twice; no layer at all, or more than can be. Nothing is changed then.
    pub fn relink(&mut self, chain: Vec<Link<M>>) -> Result<Vec<(Slot, M)>, Error> {
        let stays = |link: &Link<M>| if let Link::Stays(slot) = link { Some(*slot) } else { None };
        let mut staying: Vec<Slot> = chain.iter().filter_map(stays).collect();
        staying.sort_unstable();
        let twice = staying.windows(2).any(|pair| pair[0] == pair[1]);
        if twice || staying.iter().any(|&slot| self.member(slot).is_none()) {
            return Err(Error::OutOfRange(
                "a chain cannot be put together of layers that it does not have".into(),
            ));
        }
        if chain.is_empty() || self.order.len() + chain.len() > usize::from(u16::MAX) {
            return Err(Error::OutOfRange(format!("{} layers do not make a chain", chain.len())));
        }
        let before = std::mem::take(&mut self.order);
        for link in chain {
            let slot = match link {
                Link::Stays(slot) => slot,
                Link::Comes(member) => self.admit(member)?,
            };
            self.order.push(slot);
        }
        self.depths.fill(0);
        for (depth, slot) in (1..).zip(&self.order) {
            self.depths[slot.index()] = depth;
        }
        let leaving = before.into_iter().filter(|slot| staying.binary_search(slot).is_err());
        let left = leaving.filter_map(|slot| {
            self.left.push_back(slot);
            self.members[slot.index()].take().map(|member| (slot, member))
        });
        Ok(left.collect())
    }

    /// The leaf has become larger. What deeper layers own past its old end is the caller's business (D6).
    pub fn grown(&mut self, from: Bytes) {
        if let Some(leaf) = self.order.first().and_then(|&leaf| self.member(leaf)) {
            let size = leaf.layer().virtual_size();
            self.map.grow(size.blocks());
        }
        let (last, inside) = catena_types::GuestOffset(from.0).split();
        if inside != 0 {
            self.map.invalidate(last);
        }
    }

    /// Gives a member a slot that nothing names.
    fn admit(&mut self, member: M) -> Result<Slot, Error> {
        if let Some(slot) = Slot::new(self.members.len()) {
            self.members.push(Some(member));
            self.depths.push(0);
            return Ok(slot);
        }
        if self.free.is_empty() {
            // After 65535 layers: the map forgets all, so that none of those that left is named any more.
            self.map.invalidate_all();
            self.free.append(&mut self.left);
        }
        let none = || Error::OutOfRange("a chain has no room for another layer".to_owned());
        let slot = self.free.pop_front().ok_or_else(none)?;
        self.members[slot.index()] = Some(member);
        Ok(slot)
    }

    /// Whether the map knows who owns the sectors, and nobody of them has left.
    fn is_known(&mut self, block: BlockIndex, sectors: &Range<usize>) -> bool {
        let Some(mut runs) = self.map.lookup(block, sectors.clone()) else { return false };
        let gone = |owner: Owner| owner.is_some_and(|slot| self.depths.get(slot.index()) == Some(&0));
        self.left.is_empty() || !runs.any(|run| gone(run.owner))
    }

    /// Walks the block, for the map to know. Gives what is missing for that.
    fn resolve(&mut self, block: BlockIndex) -> Result<Vec<(Slot, Extent)>, Error> {
        let mut walk = Walk::new(block);
        let missing = self.descend(&mut walk, block, &self.order)?;
        if missing.is_empty() {
            let generation = self.map.generation();
            self.map.insert(block, walk.ends(), generation);
        }
        Ok(missing)
    }

    /// Goes down these layers. All that is missing is told at once, so that it is read at once; some of it may be found not to
    /// matter then.
    fn descend(
        &self,
        walk: &mut Walk,
        block: BlockIndex,
        slots: &[Slot],
    ) -> Result<Vec<(Slot, Extent)>, Error> {
        let mut missing = Vec::new();
        for &slot in slots {
            let Some(member) = self.member(slot) else { continue };
            let layer = member.layer();
            if !walk.enters(layer.virtual_size()) {
                break;
            }
            match layer.known(block)?.owned() {
                Ok(owned) => walk.meets(Some(slot), &owned),
                Err(at) => missing.push((slot, at)),
            }
        }
        Ok(missing)
    }
}
