//! What was served so far, and how long it took: counters and histograms that a keeper asks for.
//!
//! The time of a request runs from its admission to its answer; what it waited for a limit is not the storage's. Pure. Owned by
//! the event loop.

use catena_control::{Served, Stats};
use catena_nbd::{Request, What};
use std::time::Duration;

/// Classes of latency: the last one has all that took longer, which is weeks.
const CLASSES: usize = 42;

/// The figures of one disk, all connections together.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    read: Kind,
    write: Kind,
    flush: Kind,
}

/// Requests of one kind.
#[derive(Debug)]
struct Kind {
    count: u64,
    bytes: u64,
    failed: u64,
    /// By the number of bits that the microseconds have.
    latency: [u64; CLASSES],
}

impl Default for Kind {
    fn default() -> Self {
        Self { count: 0, bytes: 0, failed: 0, latency: [0; CLASSES] }
    }
}

impl Figures {
    /// A request was answered, `took` after its admission. Questions are not counted.
    pub(crate) fn answered(&mut self, request: &Request, failed: bool, took: Duration) {
        let kind = match request.what {
            What::Read { .. } => &mut self.read,
            What::Write { .. } | What::Zeroes { .. } | What::Trim { .. } => &mut self.write,
            What::Flush => &mut self.flush,
            What::Cache | What::Status { .. } => return,
        };
        let bits = u128::BITS - took.as_micros().leading_zeros();
        kind.count += 1;
        kind.latency[(bits as usize).min(CLASSES - 1)] += 1;
        if failed {
            kind.failed += 1;
        } else {
            kind.bytes += u64::from(request.len);
        }
    }

    /// Writes them down.
    pub(crate) fn tell(&self, stats: &mut Stats) {
        stats.read = self.read.told();
        stats.write = self.write.told();
        stats.flush = self.flush.told();
    }
}

impl Kind {
    /// The histogram ends with the longest time that there was.
    fn told(&self) -> Served {
        let used = self.latency.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        let Self { count, bytes, failed, .. } = *self;
        Served { count, bytes, failed, latency: self.latency[..used].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_nbd::Cookie;

    fn told(requests: &[(What, u32, bool, Duration)]) -> Stats {
        let (mut figures, mut stats) = (Figures::default(), Stats::default());
        for &(what, len, failed, took) in requests {
            figures.answered(&Request { cookie: Cookie(0), at: 0, len, what }, failed, took);
        }
        figures.tell(&mut stats);
        stats
    }

    #[test]
    fn every_kind_has_its_own_figures() {
        let (micro, read) = (Duration::from_micros(1), What::Read { whole: false });
        let zeroes = What::Zeroes { fua: false, no_hole: true, fast: false };
        let stats = told(&[
            (read, 4096, false, micro),
            (read, 512, true, micro),
            (What::Write { fua: true }, 1000, false, micro),
            (zeroes, 24, false, micro),
            (What::Trim { fua: false }, 1 << 20, false, micro),
            (What::Flush, 0, false, micro),
            (What::Status { one: true }, 512, false, micro),
            (What::Cache, 512, false, micro),
        ]);
        let served = |count, bytes, failed| Served { count, bytes, failed, latency: vec![0, count] };
        assert_eq!(stats.read, served(2, 4096, 1));
        assert_eq!(stats.write, served(3, 1024 + (1 << 20), 0));
        assert_eq!(stats.flush, served(1, 0, 0));
    }

    #[test]
    fn times_are_told_in_powers_of_two_of_a_microsecond() {
        for (nanos, class) in [
            (0, 0),
            (999, 0),
            (1000, 1),
            (1999, 1),
            (2000, 2),
            (3_999_999, 12),
            (4_095_999, 12),
            (4_096_000, 13),
            (1_000_000_000, 20),
            (u64::MAX, CLASSES - 1),
        ] {
            let stats = told(&[(What::Flush, 0, false, Duration::from_nanos(nanos))]);
            let mut expected = vec![0; class];
            expected.push(1);
            assert_eq!(stats.flush.latency, expected, "{nanos} ns");
        }
        assert_eq!(told(&[]).flush.latency, Vec::<u64>::new());
        let endless = told(&[(What::Flush, 0, false, Duration::MAX)]);
        assert_eq!(endless.flush.latency.len(), CLASSES);
    }
}
