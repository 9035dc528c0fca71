//! One written image: two sectors of a block and their bits, on a storage of which any part of what is not flushed may survive.

use super::world::Dropped;

/// Sectors by number: 0 and 1.
pub(super) type Bits = [bool; 2];

pub(super) fn either(one: Bits, other: Bits) -> Bits {
    [one[0] | other[0], one[1] | other[1]]
}

pub(super) fn minus(one: Bits, other: Bits) -> Bits {
    [one[0] & !other[0], one[1] & !other[1]]
}

/// A place with all values, as a mask, that it may have after a power cut; readers see `now`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Cell {
    pub(super) now: u8,
    pub(super) may: u16,
}

impl Cell {
    pub(super) const fn of(now: u8) -> Self {
        Self { now, may: 1 << now }
    }

    pub(super) const fn put(&mut self, value: u8) {
        self.now = value;
        self.may |= 1 << value;
    }

    const fn flush(&mut self) {
        self.may = 1 << self.now;
    }
}

/// Whoever waits for a commit: for one that begins from now on, for the one under way, for the barrier behind the pointers that
/// one has written, which is that of the next, or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wait {
    Next,
    Running,
    Written,
    Over,
}

/// How far a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Commit {
    /// It has begun, and the data are durable.
    Barrier,
    /// The bits are written.
    Bits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Image {
    pub(super) data: [Cell; 2],
    /// The sector of the bitmap: bit n for sector n.
    bits: Cell,
    /// Owned in memory: for the next commit, and for the one under way.
    noted: Bits,
    on_way: Bits,
    pub(super) commit: Option<Commit>,
    /// Data were written since the last commit began.
    pub(super) unflushed: bool,
    /// The last commit has written pointers that no barrier has made durable yet.
    written: bool,
    /// What stands in `pending`, likewise.
    pending: Bits,
    leaving: Bits,
}

fn packed(bits: Bits) -> u8 {
    u8::from(bits[0]) | u8::from(bits[1]) << 1
}

fn unpacked(bits: u8) -> Bits {
    [bits & 1 != 0, bits & 2 != 0]
}

impl Image {
    pub(super) fn new(data: [u8; 2], bits: Bits) -> Self {
        let none = [false; 2];
        let (data, bits) = (data.map(Cell::of), Cell::of(packed(bits)));
        let (commit, unflushed, written) = (None, false, false);
        Self {
            data,
            bits,
            noted: none,
            on_way: none,
            commit,
            unflushed,
            written,
            pending: none,
            leaving: none,
        }
    }

    /// What it owns, for whoever has it open.
    pub(super) fn owns(&self) -> Bits {
        either(unpacked(self.bits.now), either(self.on_way, self.noted))
    }

    /// Whether the bit of the sector may be clear after a power cut, and whether it may be set.
    pub(super) fn may_own(&self, sector: usize) -> [bool; 2] {
        let found =
            |set: bool| (0..4u8).any(|bits| self.bits.may >> bits & 1 != 0 && unpacked(bits)[sector] == set);
        [found(false), found(true)]
    }

    /// The sector was written: it is the image's.
    pub(super) fn wrote(&mut self, sector: usize, to_pending: bool) {
        if !self.owns()[sector] {
            self.noted[sector] = true;
            self.pending[sector] |= to_pending;
        }
    }

    /// Whether something is noted that is not on the image.
    pub(super) fn has_notes(&self) -> bool {
        self.noted != [false; 2] || self.on_way != [false; 2]
    }

    /// Whether nothing is on its way to it.
    pub(super) fn is_stored(&self) -> bool {
        self.commit.is_none() && !self.has_notes() && !self.unflushed && !self.written
    }

    /// Whether `pending` has something of it.
    pub(super) fn is_pending(&self) -> bool {
        either(self.pending, self.leaving) != [false; 2]
    }

    pub(super) fn flush(&mut self) {
        self.data.iter_mut().for_each(Cell::flush);
        self.bits.flush();
    }

    pub(super) fn begin_commit(&mut self, dropped: Dropped) {
        (self.commit, self.unflushed) = (Some(Commit::Barrier), false);
        if dropped != Dropped::DataFirst {
            self.flush();
        }
        self.on_way = std::mem::take(&mut self.noted);
        self.leaving = std::mem::take(&mut self.pending);
        if dropped == Dropped::NoteUntilStored {
            self.leaving = [false; 2];
        }
    }

    /// The next step of the commit: its pointers, then its end. Then those who wait are answered: whoever waited for the pointers
    /// before (D1: this commit's barrier was behind them), and whoever this one covers, where it has written none.
    pub(super) fn step_commit(&mut self, dropped: Dropped) -> Option<[Wait; 2]> {
        match self.commit {
            Some(Commit::Barrier) => {
                // D3: the image's content, and the bits whose data are behind the barrier.
                let of_memory = if dropped == Dropped::BitsOfImage { self.noted } else { [false; 2] };
                self.bits.put(packed(either(unpacked(self.bits.now), either(self.on_way, of_memory))));
                self.commit = Some(Commit::Bits);
            }
            Some(Commit::Bits) => {
                let wrote = self.on_way != [false; 2];
                let durable = !wrote || dropped == Dropped::NextBarrier;
                (self.on_way, self.leaving, self.commit) = ([false; 2], [false; 2], None);
                self.written = wrote;
                return Some([Wait::Over, if durable { Wait::Over } else { Wait::Written }]);
            }
            None => {}
        }
        None
    }

    /// The bits of these sectors are cleared, not yet durably.
    pub(super) fn clear(&mut self, sectors: Bits) {
        self.bits.put(packed(minus(unpacked(self.bits.now), sectors)));
    }

    /// The process dies, and a successor stores what `pending` has.
    pub(super) fn succeed(&mut self) {
        let noted = either(self.pending, self.leaving);
        self.bits.put(packed(either(unpacked(self.bits.now), noted)));
        let none = [false; 2];
        (self.noted, self.on_way, self.commit, self.pending, self.leaving) = (none, none, None, none, none);
        if noted != none {
            self.flush();
        }
        (self.unflushed, self.written) = (true, false);
    }
}
