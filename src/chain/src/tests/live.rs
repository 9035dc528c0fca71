//! The chain of a served disk against a plain table, while its layers are written, come and go.

use crate::{
    Beneath, Error, Extent, Known, Layer, Link, LiveChain, Look, Member, Owner, Ownership, Recall, Slot,
};
use catena_blockio::Container;
use catena_blockio::sim::{SimDisk, SimWorld};
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, FileOffset, SECTOR_BYTES, SectorSet};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Sectors of the disks at first: two blocks and a bit.
const SECTORS: u64 = 2 * BLOCK_SECTORS as u64 + 21;
const BLOCKS: u32 = 4;

/// A layer that has to be told what it owns, block by block.
struct Forgetful {
    disk: Arc<SimDisk>,
    size: Mutex<u64>,
    owned: Mutex<BTreeMap<BlockIndex, SectorSet>>,
    learnt: Mutex<BTreeSet<BlockIndex>>,
}

impl Forgetful {
    fn new(size: u64, owned: &BTreeMap<BlockIndex, SectorSet>) -> Arc<Self> {
        let disk = SimDisk::automatic(&SimWorld::new());
        let (size, owned) = (Mutex::new(size), Mutex::new(owned.clone()));
        Arc::new(Self { disk, size, owned, learnt: Mutex::default() })
    }

    fn of(&self, block: BlockIndex) -> SectorSet {
        self.owned.lock().unwrap().get(&block).cloned().unwrap_or_default()
    }

    fn sectors(&self) -> u64 {
        *self.size.lock().unwrap()
    }
}

impl Layer for Forgetful {
    fn virtual_size(&self) -> Bytes {
        Bytes(self.sectors() * SECTOR_BYTES)
    }

    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error> {
        Ok(Ownership::from_set(self.of(block)))
    }

    fn locate(&self, _: BlockIndex) -> Option<Extent> {
        None
    }

    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.owned.lock().unwrap().range(from..).next().map(|(&block, _)| block)
    }

    fn container(&self) -> &dyn Container {
        &*self.disk
    }
}

impl Recall for Forgetful {
    fn known(&self, block: BlockIndex) -> Result<Known, Error> {
        if !self.owned.lock().unwrap().contains_key(&block) {
            return Ok(Known::Nothing);
        }
        if !self.learnt.lock().unwrap().contains(&block) {
            return Ok(Known::At(Extent { at: FileOffset(u64::from(block.0)), len: 512 }));
        }
        Ok(match self.ownership(block)? {
            Ownership::Nothing => Known::Nothing,
            Ownership::Everything => Known::Everything,
            Ownership::Sectors(set) => Known::Sectors(set),
        })
    }

    fn learn(&self, block: BlockIndex, _: FileOffset, _: &[u8]) -> Result<(), Error> {
        self.learnt.lock().unwrap().insert(block);
        Ok(())
    }
}

impl Member for Arc<Forgetful> {
    fn layer(&self) -> &dyn Recall {
        &**self
    }
}

type Served = LiveChain<Arc<Forgetful>>;

fn learn(chain: &Served, block: BlockIndex, missing: &[(Slot, Extent)]) {
    assert!(!missing.is_empty());
    for (slot, wanted) in missing {
        assert_eq!(wanted.at.0, u64::from(block.0));
        chain.member(*slot).unwrap().learn(block, wanted.at, &[0; 512]).unwrap();
    }
}

/// Asks until there is nothing more to read.
fn runs(chain: &mut Served, block: BlockIndex, sectors: Range<usize>) -> Vec<(Range<usize>, Owner)> {
    loop {
        let missing = match chain.look(block, sectors.clone()).unwrap() {
            Look::Runs(runs) => return runs.map(|run| (run.sectors, run.owner)).collect(),
            Look::Missing(missing) => missing,
        };
        learn(chain, block, &missing);
    }
}

fn beneath(chain: &Served, block: BlockIndex, above: Slot) -> SectorSet {
    loop {
        match chain.beneath(block, above).unwrap() {
            Beneath::Owned(set) => return *set,
            Beneath::Missing(missing) => learn(chain, block, &missing),
        }
    }
}

/// The place in the chain of the layer that owns a sector of the layers from `top` on, 1 being the first of all; D6.
fn owner(layers: &[Arc<Forgetful>], top: usize, block: BlockIndex, sector: usize) -> u32 {
    let at = u64::from(block.0) * BLOCK_SECTORS as u64 + sector as u64;
    let visible = (1..).zip(layers).take_while(|(_, layer)| at < layer.sectors());
    let owns = |(depth, layer): (u32, &Arc<Forgetful>)| layer.of(block).contains(sector).then_some(depth);
    visible.skip(top).find_map(owns).unwrap_or(0)
}

fn assert_agrees(chain: &mut Served, layers: &[Arc<Forgetful>], block: BlockIndex, sectors: Range<usize>) {
    // What is known before anything is learnt is right, as far as it goes.
    let known = chain.look_above_unknown(block, sectors.clone());
    let known = known.map(|known| known.into_iter().map(|run| (run.sectors, run.owner)).collect::<Vec<_>>());
    let found = runs(chain, block, sectors.clone());
    assert!(known.is_none_or(|known| known == found), "{block:?}, {sectors:?}");
    let mut at = sectors.start;
    for (run, whose) in found {
        assert_eq!(run.start, at, "without gaps");
        at = run.end;
        let depth = chain.depth(whose);
        for sector in run {
            assert_eq!(owner(layers, 0, block, sector), depth, "{block:?}, sector {sector}");
        }
    }
    assert_eq!(at, sectors.end);
}

/// What happens to a served disk. Blocks and layers are taken modulo how many there are.
#[derive(Debug, Clone)]
enum Event {
    Look(u32, Range<usize>),
    Beneath(u32, usize),
    Write(u32, Range<usize>, usize),
    GiveUp(u32, Range<usize>),
    NewLeaf,
    Merge(usize),
    Grow(u64),
}

fn range() -> impl Strategy<Value = Range<usize>> {
    let length = prop_oneof![3 => 1usize..40, 1 => 40usize..3000, 1 => Just(BLOCK_SECTORS)];
    (0..BLOCK_SECTORS, length, any::<bool>()).prop_map(|(start, length, pages)| {
        let start = if pages { start / 8 * 8 } else { start };
        let length = if pages { length.next_multiple_of(8) } else { length };
        start..(start + length).min(BLOCK_SECTORS)
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..BLOCKS, range()).prop_map(|(block, range)| Event::Look(block, range)),
        1 => (0..BLOCKS, 0usize..6).prop_map(|(block, above)| Event::Beneath(block, above)),
        6 => (0..BLOCKS, range(), prop_oneof![4 => Just(0), 1 => Just(1usize)])
            .prop_map(|(block, range, layer)| Event::Write(block, range, layer)),
        2 => (0..BLOCKS, range()).prop_map(|(block, range)| Event::GiveUp(block, range)),
        1 => Just(Event::NewLeaf),
        1 => (0usize..6).prop_map(Event::Merge),
        1 => (1u64..3000).prop_map(Event::Grow),
    ]
}

/// Sectors of a block that lie on the disk and are owned by no layer above this one.
fn writable(
    layers: &[Arc<Forgetful>],
    layer: usize,
    block: BlockIndex,
    range: Range<usize>,
) -> Option<Range<usize>> {
    let free = |&sector: &usize| {
        let above = owner(&layers[..layer], 0, block, sector);
        let at = u64::from(block.0) * BLOCK_SECTORS as u64 + sector as u64;
        above == 0 && layers[..=layer].iter().all(|layer| at < layer.sectors())
    };
    let start = range.clone().find(free)?;
    let end = (start..range.end).find(|sector| !free(sector)).unwrap_or(range.end);
    Some(start..end)
}

fn happen(chain: &mut Served, layers: &mut Vec<Arc<Forgetful>>, event: Event) {
    let blocks = layers[0].virtual_size().blocks();
    let of = |block: u32| BlockIndex(block % blocks);
    match event {
        Event::Look(block, range) => assert_agrees(chain, layers, of(block), range),
        Event::Beneath(block, above) => {
            let above = above % layers.len();
            let found = beneath(chain, of(block), chain.order()[above]);
            for sector in 0..BLOCK_SECTORS {
                let expected = owner(layers, above + 1, of(block), sector) > 0;
                assert_eq!(found.contains(sector), expected, "below {above}, sector {sector}");
            }
        }
        Event::Write(block, range, layer) => {
            let layer = layer % layers.len();
            if let Some(range) = writable(layers, layer, of(block), range) {
                layers[layer].owned.lock().unwrap().entry(of(block)).or_default().insert(range.clone());
                layers[layer].learnt.lock().unwrap().insert(of(block));
                let slot = chain.order()[layer];
                chain.own(of(block), range, slot);
            }
        }
        Event::GiveUp(block, range) => {
            layers[0].owned.lock().unwrap().entry(of(block)).or_default().remove(range);
            chain.forget(of(block));
        }
        Event::NewLeaf => {
            let leaf = Forgetful::new(layers[0].sectors(), &BTreeMap::new());
            let slot = chain.push_leaf(leaf.clone()).unwrap();
            assert_eq!((chain.order()[0], chain.depth(Some(slot))), (slot, 1));
            layers.insert(0, leaf);
        }
        Event::Merge(upper) => merge(chain, layers, upper),
        Event::Grow(more) => {
            let from = layers[0].virtual_size();
            *layers[0].size.lock().unwrap() += more;
            chain.grown(from);
        }
    }
}

/// What two neighbours below the leaf own is found in one from now on.
fn merge(chain: &mut Served, layers: &mut Vec<Arc<Forgetful>>, upper: usize) {
    if layers.len() < 3 {
        return;
    }
    let upper = 1 + upper % (layers.len() - 2);
    if layers[upper].sectors() != layers[upper + 1].sectors() {
        return;
    }
    let mut owned = layers[upper + 1].owned.lock().unwrap().clone();
    for (block, set) in &*layers[upper].owned.lock().unwrap() {
        let both = owned.entry(*block).or_default();
        *both = both.union(set);
    }
    let merged = Forgetful::new(layers[upper].sectors(), &owned);
    let old: Vec<Slot> = chain.order().to_vec();
    let mut links: Vec<Link<_>> = old.iter().copied().map(Link::Stays).collect();
    links.splice(upper..upper + 2, [Link::Comes(merged.clone())]);
    let left = chain.relink(links).unwrap();
    assert_eq!(left.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), old[upper..upper + 2]);
    assert!(left.iter().all(|(slot, _)| chain.member(*slot).is_none() && chain.depth(Some(*slot)) == 0));
    layers.splice(upper..upper + 2, [merged]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_served_chain_always_knows_who_owns_what(
        depth in 1usize..5, events in prop::collection::vec(event(), 1..80), budget in prop::sample::select(vec![0u64, 1 << 20]),
    ) {
        let mut layers: Vec<_> = (0..depth).map(|_| Forgetful::new(SECTORS, &BTreeMap::new())).collect();
        let mut chain = Served::new(layers.clone(), Bytes(budget)).unwrap();
        for event in events {
            happen(&mut chain, &mut layers, event);
        }
        for block in 0..layers[0].virtual_size().blocks() {
            assert_agrees(&mut chain, &layers, BlockIndex(block), 0..BLOCK_SECTORS);
        }
    }
}

#[test]
fn what_cannot_be_a_chain_changes_nothing() {
    let layers: Vec<_> = (0..3).map(|_| Forgetful::new(SECTORS, &BTreeMap::new())).collect();
    let mut chain = Served::new(layers, Bytes(0)).unwrap();
    let [a, b, c] = *chain.order() else { panic!() };
    let gone = chain.relink(vec![Link::Stays(a), Link::Stays(c)]).unwrap();
    assert_eq!(gone.len(), 1);
    for wrong in [vec![], vec![Link::Stays(a), Link::Stays(b)], vec![Link::Stays(a), Link::Stays(a)]] {
        assert!(chain.relink(wrong).is_err());
        assert_eq!(chain.order(), [a, c]);
    }
    assert!(Served::new(Vec::new(), Bytes(0)).is_err());
    assert!(chain.look(BlockIndex(9), 0..1).is_err());
}

#[test]
fn numbers_of_layers_that_left_are_given_out_again_and_mean_nothing_old() {
    let owning = |blocks: Range<u32>| {
        let owned = blocks.map(|block| (BlockIndex(block), SectorSet::full()));
        Forgetful::new(SECTORS, &owned.collect())
    };
    let mut chain = Served::new(vec![owning(0..1), owning(1..2)], Bytes(0)).unwrap();
    let [leaf, first] = *chain.order() else { panic!() };
    assert_eq!(runs(&mut chain, BlockIndex(1), 0..9), [(0..9, Some(first))]);
    chain.relink(vec![Link::Stays(leaf), Link::Comes(owning(1..2))]).unwrap();
    let (second, empty) = (chain.order()[1], owning(0..0));
    for relinks in 0.. {
        let links = vec![Link::Stays(leaf), Link::Comes(empty.clone()), Link::Stays(second)];
        chain.relink(links).unwrap();
        if chain.order()[1] == first {
            assert!(relinks > 65_000);
            break;
        }
    }
    assert_eq!(runs(&mut chain, BlockIndex(1), 0..9), [(0..9, Some(second))]);
    assert_eq!(runs(&mut chain, BlockIndex(0), 0..9), [(0..9, Some(leaf))]);
}
