//! Requests between the moment when they were read and the moment when they are answered.
//!
//! A long write goes to the disk in parts, as its bytes arrive, so that nobody holds memory for what may never come; it is one
//! request here, answered when its last part is. A request outlives the connection that it came from.

use super::work::Trouble;
use catena_nbd::Request;
use std::time::Instant;

/// Parts that a request may have: 32 MiB of a thousand bytes each would be fewer.
const PART_BITS: u32 = 16;

/// One request.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// The connection that it came from.
    pub(crate) client: u32,
    /// What it is.
    pub(crate) request: Request,
    /// When it was admitted.
    pub(crate) since: Instant,
    /// Parts so far.
    parts: u32,
    /// Parts that are not done, and one more while others may come.
    left: u32,
    /// The first that went wrong.
    pub(crate) trouble: Option<Trouble>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Vec<Option<UnderWay>>,
    free: Vec<usize>,
}

/// Where a request stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Table {
    /// Takes up a request.
    pub(crate) fn begin(&mut self, client: u32, request: Request, since: Instant) -> Place {
        let entry = Some(UnderWay { client, request, since, parts: 0, left: 1, trouble: None });
        if let Some(free) = self.free.pop() {
            self.slots[free] = entry;
            return Place(free);
        }
        self.slots.push(entry);
        Place(self.slots.len() - 1)
    }

    /// The number under which the next part goes to the disk.
    pub(crate) fn part(&mut self, place: Place) -> u64 {
        let part = match &mut self.slots[place.0] {
            Some(entry) => {
                entry.parts += 1;
                entry.left += 1;
                entry.parts
            }
            None => 0,
        };
        (place.0 as u64) << PART_BITS | u64::from(part)
    }

    /// No more parts come. The request, if all that came are done.
    pub(crate) fn complete(&mut self, place: Place) -> Option<UnderWay> {
        self.less(place.0)
    }

    /// The rest of it will never come. The request, if all that came are done.
    pub(crate) fn give_up(&mut self, place: Place) -> Option<UnderWay> {
        if let Some(entry) = &mut self.slots[place.0] {
            entry.trouble = Some(Trouble::ShuttingDown);
        }
        self.less(place.0)
    }

    /// The part of that number is done. The request, if it was the last.
    pub(crate) fn done(&mut self, number: u64, trouble: Option<Trouble>) -> Option<UnderWay> {
        let index = usize::try_from(number >> PART_BITS).ok()?;
        let entry = self.slots.get_mut(index)?.as_mut()?;
        entry.trouble = entry.trouble.or(trouble);
        self.less(index)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn less(&mut self, index: usize) -> Option<UnderWay> {
        let entry = self.slots.get_mut(index)?.as_mut()?;
        entry.left -= 1;
        if entry.left > 0 {
            return None;
        }
        self.free.push(index);
        self.slots[index].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_nbd::{Cookie, What};

    #[test]
    fn a_request_is_done_with_its_last_part_and_keeps_the_first_trouble() {
        let mut table = Table::default();
        let request = Request { cookie: Cookie(7), at: 0, len: 1 << 20, what: What::Write { fua: false } };
        let place = table.begin(3, request, Instant::now());
        let parts = [table.part(place), table.part(place)];
        assert!(table.done(parts[1], Some(Trouble::NoSpace)).is_none());
        assert!(table.complete(place).is_none());
        let done = table.done(parts[0], Some(Trouble::Io)).unwrap();
        assert_eq!((done.client, done.trouble, table.len()), (3, Some(Trouble::NoSpace), 0));
        let place = table.begin(4, request, Instant::now());
        let part = table.part(place);
        assert!(table.done(part, None).is_none());
        assert_eq!(table.complete(place).unwrap().trouble, None);
        assert!(table.done(part, None).is_none());
    }
}
