//! The ledger of promised space: what running jobs will still take. Pure; the owner has one (invariant 10).
//!
//! A promise shrinks by what its container has grown, since that is no longer among the free bytes, and ends with its job. It
//! is not written down: after a crash no job runs, and each that starts again asks again. What a job first gives back elsewhere to
//! take it here is nobody else's meanwhile.

use catena_types::{Bytes, JobId};
use std::collections::BTreeMap;

/// What a job may still take for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The container that will grow.
    pub(crate) container: String,
    /// What it took when the promise was made.
    pub(crate) before: Bytes,
    /// By how much it may grow.
    pub(crate) bytes: Bytes,
    /// What the job gives back for it.
    pub(crate) gift: Option<Gift>,
}

/// A container that gets smaller, so that another one can grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gift {
    /// Its name.
    pub(crate) container: String,
    /// What it took when the promise was made.
    pub(crate) before: Bytes,
    /// By how much it will shrink.
    pub(crate) bytes: Bytes,
}

impl Claim {
    /// What is left of it, where `taken` says what a container takes now.
    pub(crate) fn left(&self, taken: impl Fn(&str) -> Bytes) -> Bytes {
        let grown = taken(&self.container).0.saturating_sub(self.before.0);
        let coming = self.gift.as_ref().map_or(0, |gift| {
            gift.bytes.0.saturating_sub(gift.before.0.saturating_sub(taken(&gift.container).0))
        });
        Bytes(self.bytes.0.saturating_sub(grown).saturating_sub(coming))
    }
}

/// All promises.
#[derive(Debug, Default)]
pub(crate) struct Holds(BTreeMap<JobId, Claim>);

impl Holds {
    /// Makes a promise to a job; it replaces the job's last one.
    pub(crate) fn hold(&mut self, job: JobId, claim: Claim) {
        self.0.insert(job, claim);
    }

    /// What a job is promised.
    pub(crate) fn of(&self, job: JobId) -> Option<&Claim> {
        self.0.get(&job)
    }

    /// The job has ended.
    pub(crate) fn release(&mut self, job: JobId) {
        self.0.remove(&job);
    }

    /// Bytes that are promised and not taken yet, where `taken` says what a container takes now.
    pub(crate) fn outstanding(&self, taken: impl Fn(&str) -> Bytes) -> Bytes {
        Bytes(self.0.values().map(|claim| claim.left(&taken).0).fold(0, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A job of the model: its container's size, what it was promised and what it has taken of it.
    struct Job {
        id: JobId,
        before: u64,
        promised: u64,
        taken: u64,
    }

    proptest! {
        /// Whoever is promised bytes can take them, whatever the others do meanwhile.
        #[test]
        fn no_byte_is_promised_twice(
            capacity in 0_u64..2000,
            steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), 0_u64..400), 0..120),
        ) {
            let (mut holds, mut free) = (Holds::default(), capacity);
            let mut jobs: Vec<Job> = Vec::new();
            for (at, (what, which, bytes)) in steps.into_iter().enumerate() {
                let size = |jobs: &[Job], name: &str| {
                    jobs.iter().find(|job| job.id.to_string() == name).map_or(Bytes(0), |job| Bytes(job.before + job.taken))
                };
                let promised = holds.outstanding(|name| size(&jobs, name)).0;
                let owed: u64 = jobs.iter().map(|job| job.promised - job.taken).sum();
                prop_assert_eq!(promised, owed);
                prop_assert!(promised <= free, "everybody can take what is promised");
                match what {
                    0 | 1 if bytes <= free - promised => {
                        let id = at as JobId;
                        let (container, before) = (id.to_string(), Bytes(bytes / 2));
                        let claim = Claim { container, before, bytes: Bytes(bytes), gift: None };
                        holds.hold(id, claim);
                        jobs.push(Job { id, before: bytes / 2, promised: bytes, taken: 0 });
                    }
                    2 if !jobs.is_empty() => {
                        let index = which.index(jobs.len());
                        let take = bytes.min(jobs[index].promised - jobs[index].taken);
                        jobs[index].taken += take;
                        free -= take;
                    }
                    3 if !jobs.is_empty() => holds.release(jobs.swap_remove(which.index(jobs.len())).id),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn what_grows_beyond_its_promise_takes_nothing_from_others() {
        let mut holds = Holds::default();
        let claim = |name: &str, bytes| Claim {
            container: name.to_owned(),
            before: Bytes(10),
            bytes: Bytes(bytes),
            gift: None,
        };
        holds.hold(1, claim("a", 100));
        holds.hold(2, claim("b", 50));
        assert_eq!(holds.outstanding(|_| Bytes(10)), Bytes(150));
        assert_eq!(holds.outstanding(|name| Bytes(if name == "a" { 500 } else { 30 })), Bytes(30));
        assert_eq!(holds.outstanding(|_| Bytes(0)), Bytes(150), "a container that shrank frees no promise");
        holds.release(1);
        holds.release(1);
        assert_eq!(holds.outstanding(|_| Bytes(10)), Bytes(50));
    }

    #[test]
    fn what_a_job_gives_back_for_itself_is_promised_to_it() {
        let mut holds = Holds::default();
        let gift = Some(Gift { container: "leaf".to_owned(), before: Bytes(100), bytes: Bytes(80) });
        holds.hold(1, Claim { container: "base".to_owned(), before: Bytes(10), bytes: Bytes(90), gift });
        let outstanding = |holds: &Holds, leaf, base| {
            holds.outstanding(|name| Bytes(if name == "leaf" { leaf } else { base })).0
        };
        let free = 15;
        assert_eq!(outstanding(&holds, 100, 10), 10);
        assert_eq!(
            (free + 80) - outstanding(&holds, 20, 10),
            free - 10,
            "nobody else gets what the leaf gives"
        );
        assert_eq!(outstanding(&holds, 20, 100), 0);
    }
}
