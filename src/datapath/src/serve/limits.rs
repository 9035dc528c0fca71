//! How many requests and bytes a disk may have served in a second: two leaky buckets, which fill with what is admitted and drain
//! at the limit. A request is admitted while both stand below their burst.
//!
//! So one request is admitted however large it is, and those that follow wait for what it has taken; and since the condition is
//! the same for all, no stream of small requests keeps a large one out. Over any time no more is admitted than the limit allows
//! in it, the burst and one request.
//!
//! Pure: the time is a parameter. Integers throughout, in billionths of a request or byte, so nothing is rounded. Owned by the
//! event loop, asked by connections before they hand a request to the disk.

use catena_control::Limits;
use catena_nbd::{Request, What};
use std::time::{Duration, Instant};

/// A rate in a second, on levels that count in nanoseconds.
const NANOS: u128 = 1_000_000_000;

/// The limits of one disk, all connections together.
#[derive(Debug)]
pub(crate) struct Limiter {
    requests: Bucket,
    bytes: Bucket,
}

#[derive(Debug)]
struct Bucket {
    /// In a second; 0 is no limit.
    rate: u64,
    /// Below this one more is admitted.
    burst: u64,
    /// What was admitted and has not drained, in billionths.
    level: u128,
    /// When it stood so high.
    at: Instant,
}

impl Limiter {
    /// Without any limit.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { requests: Bucket::new(now), bytes: Bucket::new(now) }
    }

    /// Other limits from now on. What is owed beyond the new burst is forgiven, so that a limit that is raised is felt at once.
    pub(crate) fn set(&mut self, limits: &Limits, now: Instant) {
        self.requests.set(limits.iops, limits.iops_burst, now);
        self.bytes.set(limits.bytes, limits.bytes_burst, now);
    }

    /// When a request would be admitted as things stand; none if that is now.
    pub(crate) fn held_until(&self, request: &Request, now: Instant) -> Option<Instant> {
        cost(request)?;
        let wait = self.requests.wait(now).max(self.bytes.wait(now));
        (wait > Duration::ZERO).then(|| now + wait)
    }

    /// Admits a request and takes what it costs, unless it has to wait.
    pub(crate) fn admit(&mut self, request: &Request, now: Instant) -> bool {
        if self.held_until(request, now).is_some() {
            return false;
        }
        if let Some(bytes) = cost(request) {
            self.requests.take(1, now);
            self.bytes.take(bytes, now);
        }
        true
    }
}

/// The bytes that a request costs; none if it is not limited at all. A flush makes durable what was admitted and must not wait
/// behind what was not; questions cost next to nothing.
fn cost(request: &Request) -> Option<u64> {
    match request.what {
        What::Read { .. } | What::Write { .. } | What::Zeroes { .. } => Some(u64::from(request.len)),
        What::Trim { .. } | What::Cache => Some(0),
        What::Flush | What::Status { .. } => None,
    }
}

impl Bucket {
    const fn new(now: Instant) -> Self {
        Self { rate: 0, burst: 0, level: 0, at: now }
    }

    fn set(&mut self, rate: u64, burst: u64, now: Instant) {
        let owed = self.owed(now);
        let tenth_of_a_second = (rate / 10).max(1);
        self.burst = if burst == 0 { tenth_of_a_second } else { burst };
        self.level = owed.min(u128::from(self.burst) * NANOS);
        self.rate = rate;
        self.at = now;
    }

    fn owed(&self, now: Instant) -> u128 {
        if self.rate == 0 {
            return 0;
        }
        let drained = u128::from(self.rate) * now.saturating_duration_since(self.at).as_nanos();
        self.level.saturating_sub(drained)
    }

    /// How long it takes until it stands below its burst.
    fn wait(&self, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        match self.owed(now).checked_sub(u128::from(self.burst) * NANOS) {
            None => Duration::ZERO,
            Some(over) => {
                let nanos = over / u128::from(self.rate) + 1;
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    fn take(&mut self, count: u64, now: Instant) {
        self.level = self.owed(now) + u128::from(count) * NANOS;
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_nbd::Cookie;
    use proptest::prelude::*;

    const READ: What = What::Read { whole: false };

    fn request(what: What, len: u32) -> Request {
        Request { cookie: Cookie(0), at: 0, len, what }
    }

    fn limited(iops: u64, bytes: u64, now: Instant) -> Limiter {
        let mut limiter = Limiter::new(now);
        limiter.set(&Limits { iops, bytes, ..Limits::default() }, now);
        limiter
    }

    /// How many requests are admitted at once.
    fn at_once(limiter: &mut Limiter, request: &Request, now: Instant) -> u32 {
        (0..1_000_000).take_while(|_| limiter.admit(request, now)).map(|_| 1).sum()
    }

    #[test]
    fn without_limits_nobody_waits() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        assert_eq!(at_once(&mut limiter, &request(READ, u32::MAX), now), 1_000_000);
        limiter.set(&Limits::default(), now);
        assert_eq!(at_once(&mut limiter, &request(READ, u32::MAX), now), 1_000_000);
    }

    #[test]
    fn a_tenth_of_a_second_may_come_at_once_and_then_the_limit_holds() {
        let now = Instant::now();
        let mut limiter = limited(1000, 0, now);
        let small = request(READ, 512);
        assert_eq!(at_once(&mut limiter, &small, now), 100);
        assert_eq!(limiter.held_until(&small, now), Some(now + Duration::from_nanos(1)));
        assert!(!limiter.admit(&small, now));
        assert_eq!(at_once(&mut limiter, &small, now + Duration::from_millis(10)), 10);
        assert_eq!(
            at_once(&mut limiter, &small, now + Duration::from_secs(60)),
            100,
            "time that is not used is lost"
        );
    }

    #[test]
    fn a_burst_of_ones_own() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.set(&Limits { iops: 10, iops_burst: 250, ..Limits::default() }, now);
        assert_eq!(at_once(&mut limiter, &request(READ, 1), now), 250);
    }

    #[test]
    fn a_request_larger_than_the_burst_is_admitted_and_paid_for() {
        let now = Instant::now();
        let mut limiter = limited(0, 1 << 20, now);
        assert!(limiter.admit(&request(READ, 32 << 20), now));
        let again = limiter.held_until(&request(READ, 1), now).unwrap();
        let waited = again - now;
        assert!(waited > Duration::from_secs(31) && waited <= Duration::from_secs(32), "{waited:?}");
        assert!(!limiter.admit(&request(READ, 1), again - Duration::from_nanos(1)));
        assert!(limiter.admit(&request(READ, 1), again));
    }

    #[test]
    fn flushes_and_questions_are_not_held_up() {
        let now = Instant::now();
        let mut limiter = limited(1, 1, now);
        assert_eq!(at_once(&mut limiter, &request(READ, 4096), now), 1);
        for what in [What::Flush, What::Status { one: true }] {
            assert!(limiter.admit(&request(what, 0), now));
        }
    }

    #[test]
    fn what_is_discarded_counts_as_a_request_and_what_is_zeroed_as_its_bytes() {
        let now = Instant::now();
        let mut limiter = limited(0, 10, now);
        assert_eq!(at_once(&mut limiter, &request(What::Trim { fua: false }, 1 << 30), now), 1_000_000);
        let zeroes = What::Zeroes { fua: false, no_hole: false, fast: false };
        assert_eq!(at_once(&mut limiter, &request(zeroes, 1 << 30), now), 1);
        let mut limiter = limited(20, 0, now);
        assert_eq!(at_once(&mut limiter, &request(What::Trim { fua: false }, 1 << 30), now), 2);
    }

    #[test]
    fn a_limit_that_is_raised_is_felt_at_once() {
        let now = Instant::now();
        let mut limiter = limited(0, 1, now);
        assert!(limiter.admit(&request(READ, 1 << 30), now));
        limiter.set(&Limits { bytes: 1000, ..Limits::default() }, now);
        assert_eq!(limiter.held_until(&request(READ, 1), now), Some(now + Duration::from_nanos(1)));
        limiter.set(&Limits::default(), now);
        assert!(limiter.admit(&request(READ, 1), now));
    }

    proptest! {
        // On a virtual clock, with requests of all sizes that come whenever they are admitted or later.
        #[test]
        fn over_any_time_no_more_is_admitted_than_the_limits_allow(
            iops in 1..100_000_u64,
            bytes in 1..1_u64 << 33,
            bursts in (0..1000_u64, 0..1_u64 << 25),
            coming in prop::collection::vec((1..1_u32 << 25, 0..3_000_000_u64), 1..80),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut limiter = Limiter::new(begin);
            let limits = Limits { iops, bytes, iops_burst: bursts.0, bytes_burst: bursts.1, class: None };
            limiter.set(&limits, begin);
            let bursts = [(bursts.0, iops), (bursts.1, bytes)]
                .map(|(burst, rate)| if burst == 0 { (rate / 10).max(1) } else { burst });
            let mut admitted: Vec<(Instant, u64)> = Vec::new();
            for (len, later) in coming {
                let request = request(READ, len);
                if let Some(again) = limiter.held_until(&request, now) {
                    prop_assert!(again > now);
                    let early = again - Duration::from_nanos(1);
                    prop_assert_eq!(limiter.held_until(&request, early), Some(again), "woken too late");
                    now = again;
                }
                prop_assert!(limiter.admit(&request, now), "woken too early");
                admitted.push((now, u64::from(len)));
                now += Duration::from_nanos(later);
            }
            for (first, &(since, _)) in admitted.iter().enumerate() {
                let (mut count, mut sum) = (0, 0);
                for &(at, len) in &admitted[first..] {
                    // Before this request: what the time since allows, and the burst.
                    let nanos = (at - since).as_nanos();
                    prop_assert!(count * NANOS < u128::from(bursts[0]) * NANOS + u128::from(iops) * nanos + 1);
                    prop_assert!(sum * NANOS < u128::from(bursts[1]) * NANOS + u128::from(bytes) * nanos + 1);
                    (count, sum) = (count + 1, sum + u128::from(len));
                }
            }
        }
    }
}
