//! Who owns which sectors of one block, in the smallest of the forms that fit.
//!
//! Invariant: a `Mixed` names an owner for every sector of its block. Used by the map only, which keeps as many of these as
//! its budget allows.

use catena_types::BLOCK_SECTORS;
use std::num::NonZeroU16;
use std::ops::Range;

use crate::units::PAGE_SECTORS;

/// The small number of a layer in a chain: 0 is the layer that was the leaf when the chain was put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(NonZeroU16);

impl Slot {
    /// The slot with this number, if there can be so many.
    pub(crate) fn new(index: usize) -> Option<Self> {
        u16::try_from(index + 1).ok().and_then(NonZeroU16::new).map(Self)
    }

    /// Its number.
    pub fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

/// Who owns a sector: a layer, or nobody, and then it reads as zero.
pub type Owner = Option<Slot>;

/// Neighbouring sectors of one block with one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Sector numbers inside the block.
    pub(crate) sectors: Range<usize>,
    /// Whose they are.
    pub(crate) owner: Owner,
}

/// The most runs that are kept as runs: 64 of them take as much as a quarter of the next form.
const MAX_RUNS: usize = 64;
const PAGES: usize = BLOCK_SECTORS / PAGE_SECTORS;

/// The owners of a block's sectors.
#[derive(Debug)]
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
    pub(crate) fn runs(&self, range: Range<usize>) -> impl Iterator<Item = Run> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            (at < range.end).then(|| {
                let (end, owner) = self.run_at(at);
                let sectors = at..end.min(range.end);
                at = sectors.end;
                Run { sectors, owner }
            })
        })
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

    #[test]
    fn the_smallest_form_that_fits_is_taken() {
        assert!(matches!(Mixed::from_runs(&cover(1..64, 1)), Mixed::Runs(runs) if runs.len() == 64));
        assert!(matches!(Mixed::from_runs(&cover(1..65, 8)), Mixed::Pages(_)));
        assert!(matches!(Mixed::from_runs(&cover(1..65, 1)), Mixed::Sectors(_)));
        assert_eq!(size_of::<Owner>(), 2);
    }
}
