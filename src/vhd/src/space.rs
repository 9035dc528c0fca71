//! Which slot the next block gets: a freed one if there is one, else the end of the data.
//!
//! Pure bookkeeping over sectors. A slot is offered again only after it was [`release`](Space::release)d, which the writer does
//! when nothing durable names it any more (D2). Used by images that are open for writing.

use crate::error::{Error, Result};
use crate::footer::FOOTER_BYTES;
use crate::layout::{GAP_SECTORS, SLOT_SECTORS, Slot};
use catena_types::{Bytes, FileOffset, SECTOR_BYTES};
use std::collections::BTreeSet;

/// Where the footer is and how far data may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A file: the footer follows the data and moves with them.
    Moving(FileOffset),
    /// A block device: the footer is in its last sector.
    Pinned(FileOffset),
}

impl End {
    /// Position of the footer.
    pub(crate) const fn footer_at(self) -> FileOffset {
        match self {
            Self::Moving(at) | Self::Pinned(at) => at,
        }
    }

    /// Whether it is a device's.
    pub(crate) const fn is_pinned(self) -> bool {
        matches!(self, Self::Pinned(_))
    }
}

/// The free and used space of one image.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    free: BTreeSet<Slot>,
    /// The first sector after the metadata.
    headers_end: u64,
    /// The first sector at which a slot may be appended.
    append_at: u64,
    pub(crate) end: End,
}

impl Space {
    /// The space of an image whose blocks have these slots, in ascending order. Fails if two of them overlap, or one lies over
    /// the metadata or the footer.
    pub(crate) fn of(slots: &[Slot], headers_end: u64, end: End) -> Result<Self> {
        let limit = end.footer_at().0 / SECTOR_BYTES;
        let mut new = Self { free: BTreeSet::new(), headers_end, append_at: headers_end, end };
        let mut used = headers_end;
        for &slot in slots {
            let start = u64::from(slot.0);
            if start < used {
                let check = if used == headers_end { "block_over_headers" } else { "block_overlap" };
                return Err(Error::damaged(check, slot.bitmap_at(), "a block overlaps what is before it"));
            }
            if slot.end_sector() > limit {
                return Err(Error::damaged(
                    "block_over_footer",
                    slot.bitmap_at(),
                    "a block reaches over the footer",
                ));
            }
            new.reclaim(start);
            (used, new.append_at) = (slot.end_sector(), slot.next_free());
        }
        Ok(new)
    }

    /// Notes the whole slots between the last block and the one at `start`, with the gap before its bitmap.
    fn reclaim(&mut self, start: u64) {
        let mut from = self.append_at;
        while let Some(slot) = Slot::at_or_after(from).filter(|slot| slot.next_free() <= start) {
            self.free.insert(slot);
            from = slot.next_free();
        }
    }

    /// The slot that the next block gets. Fails without changing anything if the container or the format is full.
    pub(crate) fn next(&self) -> Result<Slot> {
        if let Some(&slot) = self.free.first() {
            return Ok(slot);
        }
        let Some(slot) = Slot::at_or_after(self.append_at) else {
            return Err(Error::OutOfRange("the block table cannot name a sector that far out".into()));
        };
        match self.end {
            End::Pinned(footer) if slot.end() > footer => {
                Err(Error::NoSpace { missing: Bytes(slot.end().0 - footer.0) })
            }
            _ => Ok(slot),
        }
    }

    /// How many more slots there are before the footer. Those of a file are not counted.
    pub(crate) fn slots_left(&self) -> u64 {
        let first = Slot::at_or_after(self.append_at).map_or(u64::MAX, |slot| u64::from(slot.0));
        // The last one needs no gap behind it.
        let sectors = (self.end.footer_at().0 / SECTOR_BYTES + GAP_SECTORS).saturating_sub(first);
        self.free.len() as u64 + sectors / (SLOT_SECTORS + GAP_SECTORS)
    }

    /// Fails if a device has no room for so many more slots.
    pub(crate) fn must_hold(&self, slots: u64) -> Result<()> {
        let missing = slots.saturating_sub(self.slots_left());
        if missing > 0 && self.end.is_pinned() {
            return Err(Error::NoSpace {
                missing: Bytes(missing * (SLOT_SECTORS + GAP_SECTORS) * SECTOR_BYTES),
            });
        }
        Ok(())
    }

    /// What lies between the last slot and the footer of a device: where it begins, and its length.
    pub(crate) fn behind_all(&self) -> Option<(FileOffset, Bytes)> {
        let from = FileOffset(self.append_at * SECTOR_BYTES);
        let len = self.end.footer_at().0.checked_sub(from.0).filter(|len| *len > 0)?;
        self.end.is_pinned().then_some((from, Bytes(len)))
    }

    /// Where the data of a file end once so many more slots are taken; `None` where the freed ones are enough, or the format ends.
    pub(crate) fn end_after(&self, slots: usize) -> Option<FileOffset> {
        let appended = slots.checked_sub(self.free.len()).filter(|count| *count > 0)?;
        let mut slot = Slot::at_or_after(self.append_at)?;
        for _ in 1..appended {
            slot = Slot::at_or_after(slot.next_free())?;
        }
        Some(slot.end())
    }

    /// Takes the slot that [`next`](Self::next) offered.
    pub(crate) fn take(&mut self, slot: Slot) {
        if !self.free.remove(&slot) {
            self.append_at = slot.next_free();
        }
    }

    /// Takes this slot, which a writer that died had given to a block. Fails without changing anything if something else is there.
    pub(crate) fn claim(&mut self, slot: Slot) -> Result<()> {
        if self.free.remove(&slot) {
            return Ok(());
        }
        let start = u64::from(slot.0);
        let outside = matches!(self.end, End::Pinned(footer) if slot.end() > footer);
        if start < self.append_at || outside || Slot::at_or_after(start) != Some(slot) {
            return Err(Error::damaged(
                "block_overlap",
                slot.bitmap_at(),
                "a noted block lies where none can",
            ));
        }
        self.reclaim(start);
        self.append_at = slot.next_free();
        Ok(())
    }

    /// The slots that nothing names.
    pub(crate) fn free(&self) -> impl Iterator<Item = Slot> + '_ {
        self.free.iter().copied()
    }

    /// Takes a slot back that nothing durable names.
    pub(crate) fn release(&mut self, slot: Slot) {
        self.free.insert(slot);
    }

    /// Moves the end of the metadata to sector `end`. Blocks that lie before it are the caller's business.
    pub(crate) fn reserve_headers(&mut self, end: u64) -> Result<()> {
        let limit = self.end.footer_at();
        if matches!(self.end, End::Pinned(_)) && end * SECTOR_BYTES > limit.0 {
            return Err(Error::NoSpace { missing: Bytes(end * SECTOR_BYTES - limit.0) });
        }
        self.free.retain(|slot| u64::from(slot.0) >= end);
        self.headers_end = self.headers_end.max(end);
        self.append_at = self.append_at.max(end);
        Ok(())
    }

    /// Forgets free slots behind the last used one, and tells where the footer of a file could move to.
    pub(crate) fn trim(&mut self, last: Option<Slot>) -> FileOffset {
        self.append_at = last.map_or(self.headers_end, Slot::next_free);
        let behind = Slot::at_or_after(self.append_at).unwrap_or(Slot(u32::MAX));
        self.free.split_off(&behind);
        FileOffset(last.map_or(self.headers_end, Slot::end_sector) * SECTOR_BYTES)
    }

    /// Bytes of a footer after `at`.
    pub(crate) const fn with_footer(at: FileOffset) -> Bytes {
        Bytes(at.0 + FOOTER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: End = End::Moving(FileOffset(1 << 40));

    #[test]
    fn room_for_several_blocks_ends_with_the_last_of_them() {
        let mut space = Space::of(&[Slot(7), Slot(4111)], 6, FAR).unwrap();
        space.release(Slot(7));
        assert_eq!((space.end_after(0), space.end_after(1)), (None, None));
        let room = space.end_after(3).unwrap();
        let ends: Vec<FileOffset> = (0..3)
            .map(|_| {
                let slot = space.next().unwrap();
                space.take(slot);
                slot.end()
            })
            .collect();
        assert_eq!(ends.last(), Some(&room));
    }

    #[test]
    fn freed_slots_come_before_new_ones() {
        let mut space = Space::of(&[Slot(7), Slot(4111)], 6, FAR).unwrap();
        let appended = space.next().unwrap();
        assert_eq!(appended, Slot(8215));
        space.take(appended);
        space.release(Slot(7));
        assert_eq!(space.next().unwrap(), Slot(7));
        space.take(Slot(7));
        assert_eq!(space.next().unwrap(), Slot(8215 + 4104));
    }

    #[test]
    fn a_claimed_slot_is_not_offered_and_what_lies_before_it_is() {
        let mut space = Space::of(&[Slot(7)], 6, FAR).unwrap();
        let slots: Vec<Slot> = (0..4).map(|n| Slot(7 + n * 4104)).collect();
        space.claim(slots[3]).unwrap();
        space.claim(slots[1]).unwrap();
        for wrong in [slots[0], slots[1], slots[3], Slot(slots[3].0 + 4097), Slot(u32::MAX - 100)] {
            assert!(space.claim(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(space.next().unwrap(), slots[2]);
        space.take(slots[2]);
        assert_eq!(space.next().unwrap(), Slot(7 + 4 * 4104));
    }

    #[test]
    fn holes_between_blocks_are_found_again() {
        let space = Space::of(&[Slot(7 + 4104), Slot(7 + 4 * 4104)], 6, FAR).unwrap();
        let free: Vec<u32> = space.free.iter().map(|slot| slot.0).collect();
        assert_eq!(free, [7, 7 + 2 * 4104, 7 + 3 * 4104]);
        let tight = Space::of(&[Slot(7), Slot(4104 + 4104)], 6, FAR).unwrap();
        assert!(tight.free.is_empty(), "the 7 sectors before an unaligned bitmap stay free");
    }

    #[test]
    fn contradictions_are_refused() {
        for (slots, check) in [
            (&[Slot(5)][..], "block_over_headers"),
            (&[Slot(7), Slot(4103)][..], "block_overlap"),
            (&[Slot(7), Slot(7)][..], "block_overlap"),
            (&[Slot(u32::MAX - 1)][..], "block_over_footer"),
        ] {
            match Space::of(slots, 6, FAR) {
                Err(Error::Damaged { check: found, .. }) => assert_eq!(found, check),
                other => panic!("{slots:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn vendor_bug_block_over_the_footer_of_a_volume() {
        let footer = FileOffset((7 + 4097) * 512 - 512);
        let space = Space::of(&[], 6, End::Pinned(footer)).unwrap();
        assert!(matches!(space.next(), Err(Error::NoSpace { missing: Bytes(512) })));
        assert_eq!(space.slots_left(), 0);
        let space = Space::of(&[], 6, End::Pinned(FileOffset(footer.0 + 512))).unwrap();
        assert_eq!(space.next().unwrap(), Slot(7));
        assert_eq!(space.slots_left(), 1);
    }
}
