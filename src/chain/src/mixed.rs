//! Who owns which sectors of one block, in the smallest of the forms that fit.
//!
//! Invariant: a `Mixed` names an owner for every sector of its block. Used by the map only, which keeps as many of these as
//! its budget allows.

use catena_types::BLOCK_SECTORS;
use std::num::NonZeroU16;
use std::ops::Range;

use crate::units::PAGE_SECTORS;

/// The small number of a layer in a chain: 0 is the layer that was the leaf when the chain was put together. It says nothing
/// of where in the chain the layer is: layers come and go while a disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(NonZeroU16);

impl Slot {
    /// The slot with this index, if there can be so many.
    pub(crate) fn new(index: usize) -> Option<Self> {
        u16::try_from(index + 1).ok().and_then(NonZeroU16::new).map(Self)
    }

    /// The slot of this [`number`](Self::number); 0 is none.
    pub(crate) fn of_number(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// Its index and one.
    pub(crate) const fn number(self) -> u16 {
        self.0.get()
    }

    /// Its index.
    pub fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

/// Who owns a sector: a layer, or nobody, and then it reads as zero.
pub type Owner = Option<Slot>;

/// Neighbouring sectors of one block with one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Sector numbers inside the block.
    pub sectors: Range<usize>,
    /// Whose they are.
    pub owner: Owner,
}

/// The maximal runs inside a range of a block's sectors, ascending and without gaps.
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    of: Of<'a>,
    rest: Range<usize>,
}

#[derive(Debug, Clone)]
enum Of<'a> {
    Uniform(Owner),
    Mixed(&'a Mixed),
}

impl Runs<'_> {
    /// The one run of a block that has one owner.
    pub(crate) const fn uniform(owner: Owner, sectors: Range<usize>) -> Self {
        Self { of: Of::Uniform(owner), rest: sectors }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.rest.is_empty() {
            return None;
        }
        let (end, owner) = match &self.of {
            Of::Uniform(owner) => (self.rest.end, *owner),
            Of::Mixed(mixed) => mixed.run_at(self.rest.start),
        };
        let sectors = self.rest.start..end.min(self.rest.end);
        self.rest.start = sectors.end;
        Some(Run { sectors, owner })
    }
}

/// The most runs that are kept as runs: 64 of them take as much as a quarter of the next form.
const MAX_RUNS: usize = 64;
const PAGES: usize = BLOCK_SECTORS / PAGE_SECTORS;

/// The owners of a block's sectors.
#[derive(Debug, Clone)]
pub(crate) enum Mixed {
    /// End of each run (a sector number) and its owner.
    Runs(Box<[(u16, Owner)]>),
    /// Owner of each 4 KiB page: all borders are page borders.
    Pages(Box<[Owner]>),
    /// Owner of each sector.
    Sectors(Box<[Owner]>),
}

impl Mixed {
    /// From runs that cover the block, ascending.
    pub(crate) fn from_runs(runs: &[Run]) -> Self {
        if runs.len() <= MAX_RUNS {
            let end = |run: &Run| u16::try_from(run.sectors.end).unwrap_or(u16::MAX);
            Self::Runs(runs.iter().map(|run| (end(run), run.owner)).collect())
        } else if runs.iter().all(|run| run.sectors.end % PAGE_SECTORS == 0) {
            Self::Pages(spread(runs, PAGE_SECTORS, PAGES))
        } else {
            Self::Sectors(spread(runs, 1, BLOCK_SECTORS))
        }
    }

    /// The maximal runs inside `range`, ascending and without gaps.
    pub(crate) const fn runs(&self, range: Range<usize>) -> Runs<'_> {
        Runs { of: Of::Mixed(self), rest: range }
    }

    /// Gives these sectors another owner. Tells whether it owns all of the block now.
    pub(crate) fn own(&mut self, sectors: Range<usize>, owner: Owner) -> bool {
        let (end, before) = self.run_at(sectors.start);
        if before == owner && end >= sectors.end {
            return false;
        }
        match self {
            Self::Pages(owners)
                if sectors.start.is_multiple_of(PAGE_SECTORS) && sectors.end.is_multiple_of(PAGE_SECTORS) =>
            {
                owners[sectors.start / PAGE_SECTORS..sectors.end / PAGE_SECTORS].fill(owner);
                all_are(owners, owner)
            }
            Self::Sectors(owners) => {
                owners[sectors].fill(owner);
                all_are(owners, owner)
            }
            Self::Runs(_) | Self::Pages(_) => {
                let mut runs: Vec<Run> = Vec::with_capacity(MAX_RUNS + 2);
                let after = self.runs(sectors.end..BLOCK_SECTORS);
                let changed = std::iter::once(Run { sectors: sectors.clone(), owner });
                for run in self.runs(0..sectors.start).chain(changed).chain(after) {
                    match runs.last_mut() {
                        Some(last) if last.owner == run.owner => last.sectors.end = run.sectors.end,
                        _ => runs.push(run),
                    }
                }
                *self = Self::from_runs(&runs);
                runs.len() == 1
            }
        }
    }

    /// Bytes that this takes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Runs(runs) => size_of_val::<[_]>(runs),
            Self::Pages(owners) | Self::Sectors(owners) => size_of_val::<[_]>(owners),
        }
    }

    /// Where the run around `sector` ends, and whose it is.
    fn run_at(&self, sector: usize) -> (usize, Owner) {
        match self {
            Self::Runs(runs) => {
                let (end, owner) = runs[runs.partition_point(|&(end, _)| usize::from(end) <= sector)];
                (usize::from(end), owner)
            }
            Self::Pages(owners) => {
                let (end, owner) = same_from(owners, sector / PAGE_SECTORS);
                (end * PAGE_SECTORS, owner)
            }
            Self::Sectors(owners) => same_from(owners, sector),
        }
    }
}

/// One owner for each `unit` sectors.
fn spread(runs: &[Run], unit: usize, count: usize) -> Box<[Owner]> {
    let mut owners = vec![None; count];
    for run in runs {
        owners[run.sectors.start / unit..run.sectors.end / unit].fill(run.owner);
    }
    owners.into_boxed_slice()
}

fn all_are(owners: &[Owner], owner: Owner) -> bool {
    owners.first() == Some(&owner)
        && owners.last() == Some(&owner)
        && owners.iter().all(|&other| other == owner)
}

/// Up to where the owner at `at` goes on, and who it is.
fn same_from(owners: &[Owner], at: usize) -> (usize, Owner) {
    let owner = owners[at];
    let length = owners[at..].iter().position(|&other| other != owner);
    (length.map_or(owners.len(), |length| at + length), owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs that cover a block, with borders at multiples of `unit`.
    fn cover(borders: impl IntoIterator<Item = usize>, unit: usize) -> Vec<Run> {
        let mut ends: Vec<usize> = borders.into_iter().map(|end| end * unit).chain([BLOCK_SECTORS]).collect();
        ends.sort_unstable();
        ends.dedup();
        let mut start = 0;
        let mut runs = Vec::new();
        for (number, end) in ends.into_iter().enumerate() {
            let owner = if number % 3 == 0 { None } else { Slot::new(number % 3) };
            runs.push(Run { sectors: start..end, owner });
            start = end;
        }
        runs
    }

    proptest! {
        #[test]
        fn every_form_gives_back_what_went_in(
            borders in prop::collection::vec(1usize..512, 0..300), unit in prop::sample::select(vec![1usize, 8]),
            from in 0usize..4096, length in 0usize..4096,
        ) {
            let runs = cover(borders, unit);
            let mixed = Mixed::from_runs(&runs);
            prop_assert_eq!(&mixed.runs(0..BLOCK_SECTORS).collect::<Vec<_>>(), &runs);
            let range = from..(from + length).min(BLOCK_SECTORS);
            let inside: Vec<Run> = runs.iter().map(|run| Run {
                sectors: run.sectors.start.max(range.start)..run.sectors.end.min(range.end), owner: run.owner,
            }).filter(|run| !run.sectors.is_empty()).collect();
            prop_assert_eq!(mixed.runs(range).collect::<Vec<_>>(), inside);
        }
    }

    proptest! {
        #[test]
        fn a_new_owner_changes_its_sectors_and_no_others(
            borders in prop::collection::vec(1usize..512, 0..300), unit in prop::sample::select(vec![1usize, 8]),
            changes in prop::collection::vec((0usize..4096, 1usize..600, 0usize..3, any::<bool>()), 1..12),
        ) {
            let runs = cover(borders, unit);
            let mut mixed = Mixed::from_runs(&runs);
            let mut model = vec![None; BLOCK_SECTORS];
            runs.iter().for_each(|run| model[run.sectors.clone()].fill(run.owner));
            for (start, length, owner, aligned) in changes {
                let (start, length) = if aligned { (start / 8 * 8, length.next_multiple_of(8)) } else { (start, length) };
                let range = start..(start + length).min(BLOCK_SECTORS);
                let uniform = mixed.own(range.clone(), Slot::new(owner));
                model[range].fill(Slot::new(owner));
                prop_assert!(!uniform || model.iter().all(|&other| other == Slot::new(owner)));
                let found: Vec<Owner> =
                    mixed.runs(0..BLOCK_SECTORS).flat_map(|run| run.sectors.map(move |_| run.owner)).collect();
                prop_assert_eq!(&found, &model);
            }
            prop_assert!(mixed.own(0..BLOCK_SECTORS, None) || model.iter().all(Option::is_none));
        }
    }

    #[test]
    fn the_smallest_form_that_fits_is_taken() {
        assert!(matches!(Mixed::from_runs(&cover(1..64, 1)), Mixed::Runs(runs) if runs.len() == 64));
        assert!(matches!(Mixed::from_runs(&cover(1..65, 8)), Mixed::Pages(_)));
        assert!(matches!(Mixed::from_runs(&cover(1..65, 1)), Mixed::Sectors(_)));
        assert_eq!(size_of::<Owner>(), 2);
    }
}
