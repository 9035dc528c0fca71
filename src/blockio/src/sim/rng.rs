//! A small deterministic generator (splitmix64): the same seed gives the same fates on every machine.

/// Pseudo-random numbers from a seed. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero. (The bias of a remainder is of no interest to a test.)
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Heads or tails.
    pub const fn coin(&mut self) -> bool {
        self.next_u64() & 1 == 1
    }

    /// Brings the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            // At most `last`, so it fits.
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(last);
            items.swap(last, other);
        }
    }
}

/// The seeds that a random test is to go through: `CATENA_SEED` alone if it is set, otherwise so many that are new in every run,
/// twenty times as many in the long form (`CATENA_NIGHTLY`). Printed, so that a failure can be repeated.
pub fn seeds(test: &str, count: u64) -> Vec<u64> {
    let given = std::env::var("CATENA_SEED").ok().and_then(|text| text.parse().ok());
    let count = if std::env::var_os("CATENA_NIGHTLY").is_some() { count * 20 } else { count };
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = time.map_or(0, |time| u64::from(time.subsec_nanos()));
    let seeds = given.map_or_else(|| (0..count).map(|n| first + n).collect(), |seed| vec![seed]);
    println!("{test}: CATENA_SEED is one of {seeds:?}");
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        // The first numbers of splitmix64 from seed 0, as published.
        let mut rng = Rng::new(0);
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_reaches_every_order() {
        let mut rng = Rng::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut items = [1, 2, 3];
            rng.shuffle(&mut items);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 6);
    }
}
