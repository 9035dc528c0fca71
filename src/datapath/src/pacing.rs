//! Keeping to a rate: a bucket that is filled by what was moved and drains at the rate. What comes next waits until it is empty.
//!
//! Pure: the time is a parameter, counted from any fixed moment. Used by the supervisor, which asks before each batch.

use catena_types::Bytes;
use std::time::Duration;

/// How much of the rate's time a batch takes: often enough to be smooth.
const BATCH: Duration = Duration::from_millis(250);
const NANOS: u128 = 1_000_000_000;

/// What was moved and is not paid for.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Bytes a second; 0 is no limit.
    rate: Bytes,
    debt: Bytes,
    /// When the debt was so high.
    at: Duration,
}

impl Bucket {
    /// An empty one.
    pub(crate) const fn new(rate: Bytes) -> Self {
        Self { rate, debt: Bytes(0), at: Duration::ZERO }
    }

    /// Another rate from now on; what is owed is owed.
    pub(crate) fn set_rate(&mut self, rate: Bytes, now: Duration) {
        self.debt = self.owed(now);
        self.at = now;
        self.rate = rate;
    }

    /// The most that a batch should have.
    pub(crate) fn allowance(&self) -> Bytes {
        match u128::from(self.rate.0) {
            0 => Bytes(u64::MAX),
            rate => Bytes(u64::try_from(rate * BATCH.as_nanos() / NANOS).unwrap_or(u64::MAX)),
        }
    }

    /// How long to wait before the next batch.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        match u128::from(self.rate.0) {
            0 => Duration::ZERO,
            rate => {
                let nanos = (u128::from(self.owed(now).0) * NANOS).div_ceil(rate);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    /// So much is about to be moved.
    pub(crate) fn spend(&mut self, bytes: Bytes, now: Duration) {
        self.debt = Bytes(self.owed(now).0.saturating_add(bytes.0));
        self.at = now;
    }

    fn owed(&self, now: Duration) -> Bytes {
        if self.rate.0 == 0 {
            return Bytes(0);
        }
        let paid = u128::from(self.rate.0) * now.saturating_sub(self.at).as_nanos() / NANOS;
        Bytes(self.debt.0.saturating_sub(u64::try_from(paid).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut bucket = Bucket::new(Bytes(0));
        bucket.spend(Bytes(u64::MAX), Duration::ZERO);
        assert_eq!((bucket.wait(Duration::ZERO), bucket.allowance()), (Duration::ZERO, Bytes(u64::MAX)));
    }

    #[test]
    fn another_rate_applies_to_what_is_owed() {
        let mut bucket = Bucket::new(Bytes(100));
        bucket.spend(Bytes(1000), Duration::ZERO);
        bucket.set_rate(Bytes(50), Duration::from_secs(5));
        assert_eq!(bucket.wait(Duration::from_secs(5)), Duration::from_secs(10));
        bucket.set_rate(Bytes(0), Duration::from_secs(6));
        assert_eq!(bucket.wait(Duration::from_secs(6)), Duration::ZERO);
    }

    proptest! {
        // Over any stretch no more is begun than the rate allows and one batch; and no wait is longer than need be.
        #[test]
        fn the_rate_is_kept_on_a_virtual_clock(
            rate in 1u64..1 << 34, batches in prop::collection::vec((1u64..1 << 28, 0u64..2_000_000_000), 1..50),
        ) {
            let mut bucket = Bucket::new(Bytes(rate));
            let mut now = Duration::ZERO;
            let mut moved = 0u128;
            for (bytes, took) in batches {
                now += bucket.wait(now);
                prop_assert_eq!(bucket.wait(now), Duration::ZERO);
                // All that was begun before is paid for.
                prop_assert!(moved <= u128::from(rate) * now.as_nanos() / NANOS + 1);
                bucket.spend(Bytes(bytes), now);
                moved += u128::from(bytes);
                prop_assert!(bucket.wait(now).as_nanos() <= (u128::from(bytes) * NANOS).div_ceil(u128::from(rate)));
                now += Duration::from_nanos(took);
            }
        }
    }
}
