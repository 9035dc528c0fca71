//! Which requests may touch which sectors at a time.
//!
//! A request has one range of sectors, or several. Overlapping requests go in the order in which they came, except that readers
//! go together. A request that waits holds up those that overlap it and came later, so nobody waits for ever. Used by
//! [`Disk`](super::Disk) alone.

use catena_types::{BLOCK_SECTORS, BlockIndex, SectorSet};
use std::ops::Range;

/// What a request does with its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Looks at them, beside others that look.
    Shared,
    /// Changes them, alone.
    Exclusive,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    owner: usize,
    /// From its first sector to its last.
    sectors: Range<u64>,
    /// What of that it has; none: all.
    parts: Vec<Range<u64>>,
    access: Access,
    /// How many earlier entries it waits for.
    waits_for: usize,
}

/// All locks of a disk. There are as many as requests under way, so they are simply looked through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Locks {
    /// In the order in which they came.
    entries: Vec<Entry>,
}

impl Entry {
    fn excludes(&self, other: &Self) -> bool {
        let alone = self.access == Access::Exclusive || other.access == Access::Exclusive;
        alone
            && overlap(&self.sectors, &other.sectors)
            && self.parts().iter().any(|one| other.parts().iter().any(|two| overlap(one, two)))
    }

    fn parts(&self) -> &[Range<u64>] {
        if self.parts.is_empty() { std::slice::from_ref(&self.sectors) } else { &self.parts }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Locks {
    /// Asks for these sectors; whether `owner` has them at once. If not, a [`release`](Self::release) will name it.
    pub(super) fn acquire(&mut self, owner: usize, sectors: Range<u64>, access: Access) -> bool {
        self.add(Entry { owner, sectors, parts: Vec::new(), access, waits_for: 0 })
    }

    /// The same for several ranges, ascending.
    pub(super) fn acquire_all(&mut self, owner: usize, parts: Vec<Range<u64>>, access: Access) -> bool {
        let sectors = parts.first().map_or(0, |first| first.start)..parts.last().map_or(0, |last| last.end);
        self.add(Entry { owner, sectors, parts, access, waits_for: 0 })
    }

    fn add(&mut self, mut entry: Entry) -> bool {
        entry.waits_for = self.entries.iter().filter(|earlier| earlier.excludes(&entry)).count();
        let granted = entry.waits_for == 0;
        self.entries.push(entry);
        granted
    }

    /// Whether `owner` has what it asked for.
    pub(super) fn has(&self, owner: usize) -> bool {
        self.entries.iter().any(|entry| entry.owner == owner && entry.waits_for == 0)
    }

    /// The sectors of a block that somebody has for himself.
    pub(super) fn changing(&self, block: BlockIndex) -> SectorSet {
        let first = u64::from(block.0) * BLOCK_SECTORS as u64;
        let within = |sector: u64| usize::try_from(sector.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut changing = SectorSet::empty();
        let alone = |entry: &&Entry| entry.access == Access::Exclusive && entry.waits_for == 0;
        for part in self.entries.iter().filter(alone).flat_map(Entry::parts) {
            let sectors = within(part.start).min(BLOCK_SECTORS)..within(part.end).min(BLOCK_SECTORS);
            if !sectors.is_empty() {
                changing.insert(sectors);
            }
        }
        changing
    }

    /// Gives up what `owner` has; adds to `granted` who has got all that it asked for by this.
    pub(super) fn release(&mut self, owner: usize, granted: &mut Vec<usize>) {
        let Some(index) = self.entries.iter().position(|entry| entry.owner == owner) else { return };
        let gone = self.entries.remove(index);
        for later in &mut self.entries[index..] {
            if later.waits_for > 0 && gone.excludes(later) {
                later.waits_for -= 1;
                if later.waits_for == 0 {
                    granted.push(later.owner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_blockio::sim::Rng;

    #[test]
    fn readers_go_together_and_writers_alone_in_the_order_in_which_they_came() {
        let mut locks = Locks::default();
        assert!(locks.acquire(1, 0..8, Access::Shared));
        assert!(locks.acquire(2, 4..12, Access::Shared));
        assert!(!locks.acquire(3, 6..7, Access::Exclusive));
        assert!(!locks.acquire(4, 6..20, Access::Shared), "a later reader does not pass a writer that waits");
        assert!(locks.acquire(5, 20..30, Access::Exclusive));
        let mut granted = Vec::new();
        locks.release(2, &mut granted);
        assert!(granted.is_empty());
        locks.release(1, &mut granted);
        assert_eq!(granted, [3]);
        granted.clear();
        locks.release(3, &mut granted);
        assert_eq!(granted, [4]);
    }

    #[test]
    fn nobody_has_what_excludes_another_and_everybody_gets_his_turn() {
        let mut rng = Rng::new(3);
        for _ in 0..200 {
            let mut locks = Locks::default();
            let mut asked: Vec<(Range<u64>, Access)> = Vec::new();
            let (mut holding, mut done) = (Vec::new(), 0);
            while done < 40 {
                if asked.len() < 40 && (holding.is_empty() || rng.coin()) {
                    let start = rng.below(30);
                    let range = start..start + 1 + rng.below(10);
                    let access = if rng.coin() { Access::Shared } else { Access::Exclusive };
                    if locks.acquire(asked.len(), range.clone(), access) {
                        holding.push(asked.len());
                    }
                    asked.push((range, access));
                } else {
                    let index = usize::try_from(rng.below(holding.len() as u64)).unwrap();
                    locks.release(holding.swap_remove(index), &mut holding);
                    done += 1;
                }
                for (n, &one) in holding.iter().enumerate() {
                    for &other in &holding[n + 1..] {
                        let ((a, kind), (b, of_other)) = (&asked[one], &asked[other]);
                        let overlap = a.start < b.end && b.start < a.end;
                        let shared = *kind == Access::Shared && *of_other == Access::Shared;
                        assert!(!overlap || shared, "{one} and {other}");
                    }
                }
            }
        }
    }
}
