//! Every interleaving of two merges below an attached leaf with a reader that learns late, forgets, and changes to the merged
//! image at its own pace. The rules are dropped one by one, and each time something else is read.
//!
//! One sector; the chain is [C, N, P, Q], N is merged into P and then P into Q. A value is a letter.

#[path = "../../../../tests/harness/explore.rs"]
mod explore;

use crate::{Error, Extent, Known, Layer, Link, LiveChain, Look, Member, Ownership, Recall, Slot};
use catena_blockio::Container;
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset};
use explore::{Explored, Steps};
use std::hash::{Hash, Hasher};
use std::sync::Mutex;

const BLOCK: BlockIndex = BlockIndex(0);
const C: usize = 0;
const N: usize = 1;
const P: usize = 2;
const Q: usize = 3;

/// A rule that is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    None,
    /// A merged image is opened anew.
    OpenAnew,
    /// An image is removed when nobody is served from it any more.
    RemoveLast,
    /// D16: what was merged is given back when every reader has changed to the image that has it.
    GiveBackLast,
    /// What the leaf was written is told to the chain.
    Tell,
}

/// An image as the serving process has it open.
struct Opened {
    image: usize,
    /// The table said so when it was opened.
    has_place: bool,
    /// The bit, if it was learnt and not forgotten.
    bit: Mutex<Option<bool>>,
}

impl Clone for Opened {
    fn clone(&self) -> Self {
        Self { image: self.image, has_place: self.has_place, bit: Mutex::new(self.bit()) }
    }
}

impl Opened {
    fn bit(&self) -> Option<bool> {
        *self.bit.lock().unwrap()
    }

    fn set(&self, bit: Option<bool>) {
        *self.bit.lock().unwrap() = bit;
    }
}

impl Member for Opened {
    fn layer(&self) -> &dyn Recall {
        self
    }
}

impl Layer for Opened {
    fn virtual_size(&self) -> Bytes {
        Bytes(BLOCK_BYTES)
    }

    fn ownership(&self, _: BlockIndex) -> Result<Ownership, Error> {
        unreachable!("that would wait")
    }

    fn locate(&self, _: BlockIndex) -> Option<Extent> {
        None
    }

    fn next_block(&self, _: BlockIndex) -> Option<BlockIndex> {
        None
    }

    fn container(&self) -> &dyn Container {
        unreachable!("nothing is read through it")
    }
}

impl Recall for Opened {
    fn known(&self, _: BlockIndex) -> Result<Known, Error> {
        Ok(match self.bit() {
            _ if !self.has_place => Known::Nothing,
            None => Known::At(Extent { at: FileOffset(self.image as u64), len: 512 }),
            Some(true) => Known::Everything,
            Some(false) => Known::Nothing,
        })
    }

    fn learn(&self, _: BlockIndex, _: FileOffset, raw: &[u8]) -> Result<(), Error> {
        self.bit.lock().unwrap().get_or_insert(raw[0] != 0);
        Ok(())
    }
}

#[derive(Clone)]
struct State {
    /// What each image holds, if it owns the sector.
    stored: [Option<char>; 4],
    /// Whether it has a place for the block.
    places: [bool; 4],
    chain: LiveChain<Opened>,
    /// What the catalog says, and what is served.
    catalog: Vec<usize>,
    served: Vec<usize>,
    /// 0, 1 copied, 2 committed; 3 and 4 the same of the second merge.
    phase: u8,
    removed: bool,
    written: bool,
    now: char,
}

impl State {
    fn new(owners: [bool; 4], places: [bool; 4]) -> Self {
        let stored = [C, N, P, Q].map(|image| owners[image].then_some(['c', 'n', 'p', 'q'][image]));
        let now = stored.iter().flatten().next().copied().unwrap_or('0');
        let open = |image: usize| Opened { image, has_place: places[image], bit: Mutex::new(None) };
        let chain = LiveChain::new([C, N, P, Q].map(open).into(), Bytes(0)).unwrap();
        let all = vec![C, N, P, Q];
        Self {
            stored,
            places,
            chain,
            now,
            catalog: all.clone(),
            served: all,
            phase: 0,
            removed: false,
            written: false,
        }
    }

    fn open(&self, image: usize) -> Opened {
        Opened { image, has_place: self.places[image], bit: Mutex::new(None) }
    }

    fn member(&self, image: usize) -> Option<(Slot, &Opened)> {
        let members = self.chain.order().iter().filter_map(|&slot| Some((slot, self.chain.member(slot)?)));
        members.into_iter().find(|(_, opened)| opened.image == image)
    }

    /// One look, and one bitmap that is missing read and learnt. The owner, if it was found.
    fn look(&mut self) -> Option<Option<usize>> {
        let first = match self.chain.look(BLOCK, 0..1).unwrap() {
            Look::Runs(mut runs) => {
                let owner = runs.next().unwrap().owner;
                return Some(owner.map(|slot| self.chain.member(slot).unwrap().image));
            }
            Look::Missing(missing) => missing[0].0,
        };
        let opened = self.chain.member(first).unwrap();
        opened
            .learn(
                BLOCK,
                FileOffset(opened.image as u64),
                &[u8::from(self.stored[opened.image].is_some()); 512],
            )
            .unwrap();
        None
    }

    /// What a reader gets now.
    fn read(&self) -> char {
        let mut reader = self.clone();
        loop {
            match reader.look() {
                None => {}
                Some(None) => return '0',
                Some(Some(image)) => return self.stored[image].unwrap_or('?'),
            }
        }
    }

    fn merge(&mut self, upper: usize, lower: usize) {
        self.stored[lower] = self.stored[upper].or(self.stored[lower]);
        self.places[lower] |= self.places[upper];
        self.phase += 1;
    }

    fn commit(&mut self, chain: &[usize]) {
        self.catalog = chain.to_vec();
        self.phase += 1;
    }

    /// Changes to what the catalog says; images into which something was merged are opened anew.
    fn swap(&mut self, dropped: Dropped) {
        let last = self.catalog.iter().position(|&image| image == if self.phase < 4 { P } else { Q });
        let links = self.catalog.iter().enumerate().map(|(place, &image)| match self.member(image) {
            Some((slot, _)) if Some(place) != last || dropped == Dropped::OpenAnew => Link::Stays(slot),
            _ => Link::Comes(self.open(image)),
        });
        let links = links.collect();
        self.chain.relink(links).unwrap();
        self.served.clone_from(&self.catalog);
    }

    fn write(&mut self, dropped: Dropped) {
        self.stored[C] = Some('w');
        self.places[C] = true;
        (self.now, self.written) = ('w', true);
        let (slot, _) = self.member(C).unwrap();
        let leaf = self.chain.member_mut(slot).unwrap();
        leaf.has_place = true;
        leaf.set(Some(true));
        if dropped != Dropped::Tell {
            self.chain.own(BLOCK, 0..1, slot);
        }
    }

    fn next(&self, dropped: Dropped) -> Steps<Self> {
        let mut found = Vec::new();
        let mut offer = |name: &str, may: bool, step: &dyn Fn(&mut Self)| {
            if may {
                let mut next = self.clone();
                step(&mut next);
                found.push((name.to_owned(), Ok(next)));
            }
        };
        offer("look", true, &|next| {
            next.look();
        });
        offer("the map forgets", true, &|next| next.chain.forget(BLOCK));
        for image in [N, P, Q] {
            let knows = self.member(image).is_some_and(|(_, opened)| opened.bit().is_some());
            offer("an image forgets", knows, &|next| next.member(image).unwrap().1.set(None));
        }
        offer("write", !self.written, &|next| next.write(dropped));
        offer("copy N to P", self.phase == 0, &|next| next.merge(N, P));
        offer("commit [C, P, Q]", self.phase == 1, &|next| next.commit(&[C, P, Q]));
        offer("copy P to Q", self.phase == 2, &|next| next.merge(P, Q));
        offer("commit [C, Q]", self.phase == 3, &|next| next.commit(&[C, Q]));
        offer("swap", self.served != self.catalog, &|next| next.swap(dropped));
        let unused = !self.served.contains(&N) || dropped == Dropped::RemoveLast;
        let merged = self.phase >= 2 || (dropped == Dropped::GiveBackLast && self.phase == 1);
        let may = !self.removed && merged && (unused || dropped == Dropped::GiveBackLast);
        offer("remove N", may, &|next| (next.stored[N], next.removed) = (None, true));
        found
    }

    /// Whether both merges are over, for whoever reads too.
    fn is_at_rest(&self) -> bool {
        self.phase == 4 && self.served == self.catalog && self.removed
    }
}

/// Two states with the same hash go on in the same way.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let members = self.chain.order().iter().filter_map(|&slot| self.chain.member(slot));
        let opened: Vec<_> = members.map(|opened| (opened.image, opened.has_place, opened.bit())).collect();
        let mut asked = self.clone();
        for opened in asked.chain.order().iter().filter_map(|&slot| asked.chain.member(slot)) {
            opened.set(None);
        }
        // With all images forgetful only the map can know the owner; unless nobody has a place.
        let known = asked.look();
        let rest = (&self.stored, &self.catalog, &self.served, self.phase, self.removed, self.written);
        (opened, known, rest).hash(hasher);
    }
}

/// Goes through all states. Gives how many there are, or the way to a wrong read, or to where the merges come to no end any more.
fn explore(dropped: Dropped) -> Result<usize, String> {
    let next = |state: &State| match state.read() {
        read if read != state.now => {
            vec![("there".to_owned(), Err(format!("{read} is read and not {}", state.now)))]
        }
        _ => state.next(dropped),
    };
    let mut all = 0;
    for variant in 0..1u32 << 7 {
        let bit = |number: usize| variant >> number & 1 == 1;
        let owners = [bit(0), bit(1), bit(2), bit(3)];
        // A block may have a place for the sake of other sectors.
        let places = [owners[C], owners[N] || bit(4), owners[P] || bit(5), owners[Q] || bit(6)];
        let Explored { states, restless } =
            explore::explore(State::new(owners, places), next, State::is_at_rest)?;
        all += states;
        if let Some(way) = restless {
            return Err(format!("without an end: {way}"));
        }
    }
    Ok(all)
}

#[test]
fn merges_below_a_leaf_change_nothing_that_is_read() {
    let states = explore(Dropped::None).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(states > 1000, "only {states} states");
}

#[test]
fn without_any_one_rule_something_else_is_read() {
    for dropped in [Dropped::OpenAnew, Dropped::RemoveLast, Dropped::GiveBackLast, Dropped::Tell] {
        let fault = explore(dropped).expect_err(&format!("{dropped:?} is not needed"));
        println!("{dropped:?}: {fault}");
    }
}
