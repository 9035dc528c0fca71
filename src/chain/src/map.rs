//! The merged map of a chain: for every sector, the topmost layer that owns it.
//!
//! Invariants: an entry that is not `Unknown` equals what [`resolve`] would find in the layers now, so that entries can be
//! dropped at any time and whoever changes ownership invalidates; entries name slots, never positions in the chain or in a
//! container. Memory: 8 bytes a block, plus at most the budget for the blocks whose sectors have several owners. Used by
//! [`Chain`](crate::Chain), which holds it under a lock, and by [`LiveChain`](crate::LiveChain).

use crate::error::Error;
use crate::layer::{Layer, Ownership};
use crate::mixed::{Mixed, Owner, Run, Runs, Slot};
use crate::units::sectors_inside;
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, SectorSet};
use std::ops::Range;

/// What [`resolve`] found out about a block.
#[derive(Debug)]
pub(crate) enum BlockMap {
    /// One owner for all.
    Uniform(Owner),
    /// Several.
    Mixed(Mixed),
}

impl BlockMap {
    /// The maximal runs inside `range`, ascending and without gaps.
    pub(crate) const fn runs(&self, range: Range<usize>) -> Runs<'_> {
        match self {
            Self::Uniform(owner) => Runs::uniform(*owner, range),
            Self::Mixed(mixed) => mixed.runs(range),
        }
    }
}

/// A walk from the leaf down, until every sector of the block has an owner.
pub(crate) struct Walk {
    block: BlockIndex,
    /// The sectors that nobody owns so far and that are not past the end of a layer.
    open: SectorSet,
    found: Vec<Run>,
}

impl Walk {
    /// At the leaf.
    pub(crate) const fn new(block: BlockIndex) -> Self {
        Self { block, open: SectorSet::full(), found: Vec::new() }
    }

    /// Comes to a layer of this size; false if no sector is open any more.
    pub(crate) fn enters(&mut self, size: Bytes) -> bool {
        // D6: past its own end a layer hides what is below, and reads as zero.
        self.open.remove(sectors_inside(size, self.block)..BLOCK_SECTORS);
        !self.open.is_empty()
    }

    /// The layer owns these sectors.
    pub(crate) fn meets(&mut self, owner: Owner, owned: &Ownership) {
        let mine = match owned {
            Ownership::Nothing => return,
            Ownership::Everything => self.open.clone(),
            Ownership::Sectors(set) => self.open.intersection(set),
        };
        self.found.extend(mine.runs().map(|sectors| Run { sectors, owner }));
        self.open = self.open.minus(&mine);
    }

    /// What was found on the way.
    pub(crate) fn ends(mut self) -> BlockMap {
        self.found.sort_unstable_by_key(|run| run.sectors.start);
        let runs = fill_gaps(self.found);
        match runs.as_slice() {
            [one] => BlockMap::Uniform(one.owner),
            _ => BlockMap::Mixed(Mixed::from_runs(&runs)),
        }
    }
}

/// Walks the layers from the leaf (slot 0) down until every sector of the block has an owner.
pub(crate) fn resolve<'a>(
    layers: impl Iterator<Item = &'a dyn Layer>,
    block: BlockIndex,
) -> Result<BlockMap, Error> {
    let mut walk = Walk::new(block);
    for (index, layer) in layers.enumerate() {
        if !walk.enters(layer.virtual_size()) {
            break;
        }
        walk.meets(Slot::new(index), &layer.ownership(block)?);
    }
    Ok(walk.ends())
}

/// Puts runs without an owner between the given ones, so that all of the block is covered.
fn fill_gaps(found: Vec<Run>) -> Vec<Run> {
    let mut runs = Vec::with_capacity(2 * found.len() + 1);
    let mut at = 0;
    for run in found {
        if at < run.sectors.start {
            runs.push(Run { sectors: at..run.sectors.start, owner: None });
        }
        at = run.sectors.end;
        runs.push(run);
    }
    if at < BLOCK_SECTORS {
        runs.push(Run { sectors: at..BLOCK_SECTORS, owner: None });
    }
    runs
}

/// What the map knows of one block.
#[derive(Debug, Clone, Copy)]
enum Word {
    Unknown,
    Uniform(Owner),
    /// Index of an entry.
    Mixed(u32),
}

/// The words of all blocks, 8 MiB for a disk of 2 TiB: as a kind and a number, both 0 for what is unknown, so that the memory
/// of blocks that nobody asks for is never touched.
#[derive(Debug, Clone)]
struct Words(Vec<[u32; 2]>);

const UNIFORM: u32 = 1;
const MIXED: u32 = 2;

impl Words {
    fn unknown(blocks: usize) -> Self {
        Self(vec![[0; 2]; blocks])
    }

    fn get(&self, block: BlockIndex) -> Option<Word> {
        Some(match *self.0.get(block.index())? {
            [UNIFORM, number] => Word::Uniform(u16::try_from(number).ok().and_then(Slot::of_number)),
            [MIXED, index] => Word::Mixed(index),
            _ => Word::Unknown,
        })
    }

    /// Of a block that the disk has.
    fn set(&mut self, block: BlockIndex, word: Word) {
        self.0[block.index()] = match word {
            Word::Unknown => [0; 2],
            Word::Uniform(owner) => [UNIFORM, owner.map_or(0, |slot| slot.number().into())],
            Word::Mixed(index) => [MIXED, index],
        };
    }
}

#[derive(Debug, Clone)]
struct Entry {
    block: BlockIndex,
    mixed: Mixed,
    /// Looked up since it was put in or the clock hand passed, whichever is later.
    used: bool,
}

/// The map.
#[derive(Debug, Clone)]
pub(crate) struct ChainMap {
    words: Words,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Position of the clock that looks for an entry to drop.
    hand: usize,
    /// Bytes that the entries take, and may take.
    taken: usize,
    budget: usize,
    /// Counts invalidations, so that what was resolved before one is not put in after it.
    generation: u64,
}

impl ChainMap {
    /// A map that knows nothing, for a disk of this many blocks; `budget` bounds the entries of mixed blocks.
    pub(crate) fn new(blocks: u32, budget: Bytes) -> Self {
        Self {
            words: Words::unknown(BlockIndex(blocks).index()),
            entries: Vec::new(),
            free: Vec::new(),
            hand: 0,
            taken: 0,
            budget: crate::units::len(budget.0),
            generation: 0,
        }
    }

    /// To be given back to [`insert`](Self::insert) with what is resolved from now on.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The runs of `range` in the block, if they are known.
    pub(crate) fn lookup(&mut self, block: BlockIndex, range: Range<usize>) -> Option<Runs<'_>> {
        match self.words.get(block)? {
            Word::Unknown => None,
            Word::Uniform(owner) => Some(Runs::uniform(owner, range)),
            Word::Mixed(index) => {
                let entry = self.entries.get_mut(index as usize)?.as_mut()?;
                entry.used = true;
                Some(entry.mixed.runs(range))
            }
        }
    }

    /// Takes up what was resolved, unless something was invalidated since `generation`.
    pub(crate) fn insert(&mut self, block: BlockIndex, resolved: BlockMap, generation: u64) {
        if generation != self.generation || block.index() >= self.words.0.len() {
            return;
        }
        self.forget(block);
        let word = match resolved {
            BlockMap::Uniform(owner) => Word::Uniform(owner),
            BlockMap::Mixed(mixed) => match self.store(Entry { block, mixed, used: false }) {
                Some(index) => Word::Mixed(index),
                None => Word::Unknown,
            },
        };
        self.words.set(block, word);
    }

    /// These sectors have another owner now: what is known of the block is brought up to date, cheaply.
    pub(crate) fn own(&mut self, block: BlockIndex, sectors: Range<usize>, owner: Owner) {
        match self.words.get(block) {
            _ if sectors.is_empty() => {}
            Some(Word::Uniform(all)) if all != owner => {
                let around =
                    [(0..sectors.start, all), (sectors.clone(), owner), (sectors.end..BLOCK_SECTORS, all)];
                let runs = around.into_iter().filter(|(sectors, _)| !sectors.is_empty());
                let runs: Vec<Run> = runs.map(|(sectors, owner)| Run { sectors, owner }).collect();
                let changed = match runs.as_slice() {
                    [one] => BlockMap::Uniform(one.owner),
                    _ => BlockMap::Mixed(Mixed::from_runs(&runs)),
                };
                self.insert(block, changed, self.generation);
            }
            Some(Word::Mixed(index)) => self.own_mixed(block, index, sectors, owner),
            _ => {}
        }
    }

    fn own_mixed(&mut self, block: BlockIndex, index: u32, sectors: Range<usize>, owner: Owner) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let before = cost(entry);
        entry.used = true;
        let uniform = entry.mixed.own(sectors, owner);
        self.taken = self.taken - before + cost(entry);
        if uniform {
            self.forget(block);
            self.words.set(block, Word::Uniform(owner));
        }
        while self.taken > self.budget {
            self.evict();
        }
    }

    /// Takes in blocks that the disk has got, of which nothing is known.
    pub(crate) fn grow(&mut self, blocks: u32) {
        let count = BlockIndex(blocks).index().max(self.words.0.len());
        self.words.0.resize(count, [0; 2]);
    }

    /// The ownership of the block has changed.
    pub(crate) fn invalidate(&mut self, block: BlockIndex) {
        self.generation += 1;
        if block.index() < self.words.0.len() {
            self.forget(block);
        }
    }

    /// Anything may have changed: the answer to every doubt.
    pub(crate) fn invalidate_all(&mut self) {
        self.generation += 1;
        self.words = Words::unknown(self.words.0.len());
        self.entries.clear();
        self.free.clear();
        self.hand = 0;
        self.taken = 0;
    }

    fn forget(&mut self, block: BlockIndex) {
        if let Some(Word::Mixed(index)) = self.words.get(block) {
            self.drop_entry(index);
        }
        self.words.set(block, Word::Unknown);
    }

    /// Finds room for an entry; `None` if it alone is over the budget.
    fn store(&mut self, entry: Entry) -> Option<u32> {
        let cost = cost(&entry);
        if cost > self.budget {
            return None;
        }
        while self.taken + cost > self.budget {
            self.evict();
        }
        self.taken += cost;
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            return Some(index);
        }
        let index = u32::try_from(self.entries.len()).ok()?;
        self.entries.push(Some(entry));
        Some(index)
    }

    /// Drops the first entry that was not used since the hand passed it last. Called only while there are entries.
    fn evict(&mut self) {
        loop {
            self.hand = (self.hand + 1) % self.entries.len();
            match &mut self.entries[self.hand] {
                Some(entry) if entry.used => entry.used = false,
                Some(entry) => {
                    let block = entry.block;
                    return self.forget(block);
                }
                None => {}
            }
        }
    }

    fn drop_entry(&mut self, index: u32) {
        if let Some(entry) = self.entries[index as usize].take() {
            self.taken -= cost(&entry);
            self.free.push(index);
        }
    }
}

fn cost(entry: &Entry) -> usize {
    entry.mixed.heap_bytes() + size_of::<Option<Entry>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed(count: usize) -> BlockMap {
        let owner = |n: usize| Slot::new(n % 2);
        let mut runs: Vec<Run> = (0..count - 1).map(|n| Run { sectors: n..n + 1, owner: owner(n) }).collect();
        runs.push(Run { sectors: count - 1..BLOCK_SECTORS, owner: owner(count - 1) });
        BlockMap::Mixed(Mixed::from_runs(&runs))
    }

    fn known(map: &mut ChainMap, block: u32) -> bool {
        map.lookup(BlockIndex(block), 0..BLOCK_SECTORS).is_some()
    }

    #[test]
    fn the_budget_is_kept_and_what_was_used_stays_longer() {
        let one = 65 * 4096;
        let mut map = ChainMap::new(1000, Bytes(one));
        for block in 0..1000 {
            let generation = map.generation();
            map.insert(BlockIndex(block), mixed(200), generation);
            assert!(map.taken as u64 <= one);
            assert!(matches!(map.words.get(BlockIndex(block)), Some(Word::Mixed(_))));
            assert!(known(&mut map, 0), "block 0 is used all the time, so {block} drops another");
        }
        assert!(!known(&mut map, 1));
        assert_eq!(map.entries.iter().flatten().map(cost).sum::<usize>(), map.taken);
        assert!(map.entries.len() < 40, "{}", map.entries.len());
    }

    #[test]
    fn an_entry_larger_than_the_budget_is_not_kept() {
        let mut map = ChainMap::new(1, Bytes(100));
        map.insert(BlockIndex(0), mixed(200), 0);
        assert!(!known(&mut map, 0));
        assert_eq!(map.taken, 0);
    }

    #[test]
    fn what_was_resolved_before_an_invalidation_is_not_taken_up_after_it() {
        let mut map = ChainMap::new(2, Bytes(1 << 20));
        let before = map.generation();
        map.invalidate(BlockIndex(1));
        map.insert(BlockIndex(0), BlockMap::Uniform(None), before);
        assert!(!known(&mut map, 0));
        let now = map.generation();
        map.insert(BlockIndex(0), BlockMap::Uniform(None), now);
        map.insert(BlockIndex(1), mixed(9), now);
        assert!(known(&mut map, 0) && known(&mut map, 1));
        map.invalidate(BlockIndex(1));
        assert!(known(&mut map, 0) && !known(&mut map, 1));
        map.invalidate_all();
        assert!(!known(&mut map, 0) && map.taken == 0);
    }
}
