//! Whether a merge in I/O class idle gets anything done: such a merge may wait for ever beside a busy guest.
//!
//! ```text
//!          owes 20 s of the floor, and two blocks at least
//!   idle ─────────────────────────────────────────────────▶ raised
//!     ▲                                                       │
//!     └───────────────────────────────────────────────────────┘
//!                           owes nothing
//! ```
//!
//! What is owed is the floor times the time that has passed, less what was moved; what was moved beyond the floor is not put
//! by. So over time the floor is kept, and a merge does not change its class every few seconds. Pure: the time is a
//! parameter, counted from any fixed moment. Used by the keeper, which changes the class.

use catena_types::{BLOCK_BYTES, Bytes};
use std::time::Duration;

/// How long the floor may be missed altogether: longer than the first batch of a merge takes on a slow disk.
const PATIENCE: Duration = Duration::from_secs(20);
/// The least that has to be owed: a merge that is held to a low rate says nothing for as long as a block of 2 MiB takes.
const LEAST: Bytes = Bytes(2 * BLOCK_BYTES);
const NANOS: u128 = 1_000_000_000;

/// A merge and its floor.
#[derive(Debug, Clone)]
pub struct Starvation {
    floor: Bytes,
    at: Duration,
    done: Bytes,
    /// Bytes times nanoseconds, so that nothing is lost in rounding.
    owed: u128,
    raised: bool,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It starves: a better class.
    Raise,
    /// The floor is met: back to idle.
    Lower,
}

impl Starvation {
    /// A merge that has moved so much, and is to move `floor` bytes a second from now on.
    pub const fn new(floor: Bytes, now: Duration, done: Bytes) -> Self {
        Self { floor, at: now, done, owed: 0, raised: false }
    }

    /// Whether it is raised.
    pub const fn is_raised(&self) -> bool {
        self.raised
    }

    /// What it has moved by now.
    pub fn observe(&mut self, now: Duration, done: Bytes) -> Option<Verdict> {
        let due = u128::from(self.floor.0) * now.saturating_sub(self.at).as_nanos();
        let paid = u128::from(done.0.saturating_sub(self.done.0)) * NANOS;
        // Twice the limit is enough to remember: a night without the disk is not made up for.
        self.owed = (self.owed + due).saturating_sub(paid).min(2 * self.limit());
        (self.at, self.done) = (now, done);
        let verdict = match self.raised {
            false if self.floor.0 > 0 && self.owed >= self.limit() => Verdict::Raise,
            true if self.owed == 0 => Verdict::Lower,
            _ => return None,
        };
        self.raised = verdict == Verdict::Raise;
        Some(verdict)
    }

    /// When it will have to be raised if it moves nothing more until then.
    pub fn deadline(&self) -> Option<Duration> {
        if self.raised || self.floor.0 == 0 {
            return None;
        }
        let nanos = self.limit().saturating_sub(self.owed).div_ceil(u128::from(self.floor.0));
        Some(self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn limit(&self) -> u128 {
        (u128::from(self.floor.0) * PATIENCE.as_nanos()).max(u128::from(LEAST.0) * NANOS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Bytes = Bytes(1_000_000);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_merge_that_moves_nothing_is_raised_at_the_deadline_until_it_has_made_up_for_it() {
        let mut merge = Starvation::new(FLOOR, at(5), Bytes(0));
        assert_eq!(merge.deadline(), Some(at(25)));
        assert_eq!(merge.observe(at(24), Bytes(0)), None);
        assert_eq!(merge.deadline(), Some(at(25)));
        assert_eq!(merge.observe(at(25), Bytes(0)), Some(Verdict::Raise));
        assert!(merge.is_raised() && merge.deadline().is_none());
        // 20 s are owed, and one more a second: at 5 MB a second that takes 5 s.
        for second in 1..5 {
            assert_eq!(merge.observe(at(25 + second), Bytes(5_000_000 * second)), None);
        }
        assert_eq!(merge.observe(at(30), Bytes(25_000_000)), Some(Verdict::Lower));
        assert_eq!(merge.deadline(), Some(at(50)));
    }

    #[test]
    fn a_merge_that_keeps_to_its_floor_is_left_alone() {
        let mut merge = Starvation::new(FLOOR, at(0), Bytes(0));
        for second in 1..1000 {
            assert_eq!(merge.observe(at(second), Bytes(1_000_000 * second)), None);
        }
        // What it moved too much earlier does not count: it was not starved then.
        let mut quick = Starvation::new(FLOOR, at(0), Bytes(0));
        assert_eq!(quick.observe(at(1), Bytes(1 << 40)), None);
        assert_eq!(quick.observe(at(21), Bytes(1 << 40)), Some(Verdict::Raise));
    }

    #[test]
    fn a_slow_merge_is_raised_in_the_end_and_a_long_night_is_forgotten() {
        let mut slow = Starvation::new(FLOOR, at(0), Bytes(0));
        let raised = (1..).find(|&second| slow.observe(at(second), Bytes(900_000 * second)).is_some());
        assert_eq!(raised, Some(200));
        assert_eq!(slow.observe(at(100_000), Bytes(180_000_000)), None);
        assert_eq!(slow.observe(at(100_001), Bytes(221_000_000)), Some(Verdict::Lower));
    }

    #[test]
    fn a_low_rate_is_not_taken_for_starvation() {
        for rate in [1000, 10_000, 300_000, 5_000_000] {
            let mut merge = Starvation::new(Bytes(rate / 2), at(0), Bytes(0));
            for batch in 1..100 {
                let now = Duration::from_nanos(batch * BLOCK_BYTES * 1_000_000_000 / rate);
                assert_eq!(merge.observe(now, Bytes(batch * BLOCK_BYTES)), None, "{rate}");
            }
        }
    }

    #[test]
    fn without_a_floor_nothing_happens() {
        let mut merge = Starvation::new(Bytes(0), at(0), Bytes(0));
        assert_eq!((merge.observe(at(100_000), Bytes(0)), merge.deadline()), (None, None));
    }
}
