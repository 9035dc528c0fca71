//! What a disk must hold: the versions of each sector, and from which of them on each may be found after a crash.
//!
//! Requests that overlap go in the order in which they came, so what each of them sees and makes is known when it comes.

use super::chains::SIZE;
use crate::serve::work::Work;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

type Sector = Rc<[u8]>;

struct History {
    versions: Vec<Sector>,
    /// The first version that may be found after the death of the process, and after a power cut.
    answered: usize,
    durable: usize,
}

/// What is to happen when a request is answered.
enum Then {
    /// These versions are answered, and durable if `fua`.
    Written {
        versions: Vec<(u64, usize)>,
        fua: bool,
    },
    /// These versions are durable.
    Flushed(Vec<(u64, usize)>),
    /// It has read this.
    Read(Vec<u8>),
    Nothing,
}

/// The model.
pub(super) struct Model {
    base: Vec<u8>,
    /// Sectors that are owned below the leaf.
    below: Vec<bool>,
    histories: BTreeMap<u64, History>,
    open: HashMap<u64, Then>,
    /// Those of them that trim.
    trims: HashSet<u64>,
}

impl Model {
    pub(super) fn new(base: Vec<u8>, below: Vec<bool>) -> Self {
        Self { base, below, histories: BTreeMap::new(), open: HashMap::new(), trims: HashSet::new() }
    }

    /// Whether a trim is under way: what it does depends on the leaf that it comes to.
    pub(super) fn trims(&self) -> bool {
        !self.trims.is_empty()
    }

    /// Another leaf is on top now.
    pub(super) fn set_below(&mut self, below: Vec<bool>) {
        self.below = below;
    }

    fn newest(&self, sector: u64) -> Sector {
        match self.histories.get(&sector) {
            Some(history) => history.versions.last().unwrap().clone(),
            None => {
                let at = usize::try_from(sector * 512).unwrap();
                self.base[at..at + 512].into()
            }
        }
    }

    fn push(&mut self, sector: u64, version: Sector) -> usize {
        let first = self.newest(sector);
        let new = || History { versions: vec![first], answered: 0, durable: 0 };
        let history = self.histories.entry(sector).or_insert_with(new);
        history.versions.push(version);
        history.versions.len() - 1
    }

    /// What the newest versions read as.
    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for sector in range.start / 512..range.end.div_ceil(512) {
            let start = sector * 512;
            let inside = range.start.saturating_sub(start)..(range.end - start).min(512);
            let sector = self.newest(sector);
            bytes.extend_from_slice(
                &sector[usize::try_from(inside.start).unwrap()..usize::try_from(inside.end).unwrap()],
            );
        }
        bytes
    }

    fn change(&mut self, at: u64, bytes: &[u8]) -> Vec<(u64, usize)> {
        let end = at + bytes.len() as u64;
        let mut versions = Vec::new();
        for sector in at / 512..end.div_ceil(512) {
            let mut version = self.newest(sector).to_vec();
            for (offset, byte) in (sector * 512..).zip(&mut version) {
                if (at..end).contains(&offset) {
                    *byte = bytes[usize::try_from(offset - at).unwrap()];
                }
            }
            versions.push((sector, self.push(sector, version.into())));
        }
        versions
    }

    /// A request comes.
    pub(super) fn comes(&mut self, request: u64, work: &Work) {
        let then = match work {
            Work::Read { at, len } => Then::Read(self.read(*at..*at + u64::from(*len))),
            Work::Write { at, len, data, fua } => {
                let versions = self.change(*at, &data[..usize::try_from(*len).unwrap()]);
                Then::Written { versions, fua: *fua }
            }
            Work::Zeroes { at, len, fua, .. } => {
                let versions = self.change(*at, &vec![0; usize::try_from(*len).unwrap()]);
                Then::Written { versions, fua: *fua }
            }
            Work::Trim { at, len, fua } => {
                self.trims.insert(request);
                let whole = at.div_ceil(512)..(at + u64::from(*len)) / 512;
                let mut versions = Vec::new();
                for sector in whole {
                    if !self.below[usize::try_from(sector).unwrap()] {
                        versions.push((sector, self.push(sector, vec![0; 512].into())));
                    }
                }
                Then::Written { versions, fua: *fua }
            }
            Work::Flush => Then::Flushed(
                self.histories.iter().map(|(sector, history)| (*sector, history.answered)).collect(),
            ),
            Work::Cache { .. } | Work::Status { .. } => Then::Nothing,
        };
        self.open.insert(request, then);
    }

    /// It was answered; what it must have read.
    pub(super) fn answered(&mut self, request: u64) -> Option<Vec<u8>> {
        self.trims.remove(&request);
        match self.open.remove(&request).expect("answered once") {
            Then::Read(bytes) => return Some(bytes),
            Then::Written { versions, fua } => {
                for (sector, version) in versions {
                    let history = self.histories.get_mut(&sector).unwrap();
                    history.answered = history.answered.max(version);
                    if fua {
                        history.durable = history.durable.max(version);
                    }
                }
            }
            Then::Flushed(versions) => {
                for (sector, version) in versions {
                    let history = self.histories.get_mut(&sector).unwrap();
                    history.durable = history.durable.max(version);
                }
            }
            Then::Nothing => {}
        }
        None
    }

    /// Whether all that came was answered.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Fails if a sector holds what it may not hold after a power cut, or after the death of the process.
    pub(super) fn check(&self, found: &[u8], power_cut: bool, what: &str) {
        assert_eq!(found.len() as u64, SIZE);
        let mut at = 0;
        for (&sector, history) in &self.histories {
            let start = usize::try_from(sector * 512).unwrap();
            assert!(
                found[at..start] == self.base[at..start],
                "{what}: before sector {sector}: never written"
            );
            at = start + 512;
            let first = if power_cut { history.durable } else { history.answered };
            let allowed = &history.versions[first..];
            let here = &found[start..at];
            let others: Vec<usize> = history
                .versions
                .iter()
                .enumerate()
                .filter(|(_, version)| &***version == here)
                .map(|(n, _)| n)
                .collect();
            assert!(
                allowed.iter().any(|version| &**version == here),
                "{what}: sector {sector} is version {others:?} ({:?}), not {first} to {}",
                &here[..8],
                history.versions.len() - 1
            );
        }
        assert!(found[at..] == self.base[at..], "{what}: after the last: never written");
    }
}
