//! The SRs that this host knows, in memory: what `sr.d` says, with the supervision of each.
//!
//! Also keeps two requests from making an SR of one location at the same time. Filled by `run` at start and by `lifecycle`.

use crate::supervise::Sr;
use catena_types::{ErrorName, Failure, SrUuid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The SRs.
#[derive(Debug, Default)]
pub(crate) struct Table {
    srs: Mutex<BTreeMap<SrUuid, Arc<Sr>>>,
    claimed: Mutex<BTreeSet<String>>,
}

/// The right to make an SR of a location; ends when dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    table: &'a Table,
    location: String,
}

impl Table {
    /// All SRs, by uuid.
    pub(crate) fn all(&self) -> Vec<Arc<Sr>> {
        self.srs().values().cloned().collect()
    }

    /// Adds an SR; false where there is one of that uuid.
    pub(crate) fn insert(&self, sr: &Arc<Sr>) -> bool {
        let uuid = sr.uuid();
        let mut srs = self.srs();
        if srs.contains_key(&uuid) {
            return false;
        }
        srs.insert(uuid, Arc::clone(sr)).is_none()
    }

    /// Forgets an SR.
    pub(crate) fn remove(&self, uuid: SrUuid) {
        self.srs().remove(&uuid);
    }

    /// Whether there is an SR of that uuid.
    pub(crate) fn contains(&self, uuid: SrUuid) -> bool {
        self.srs().contains_key(&uuid)
    }

    /// Takes a location for a new SR; refused while another request does the same, or where a known SR is.
    pub(crate) fn claim(&self, location: &str) -> Result<Claim<'_>, Failure> {
        match self.claim_any(location)? {
            (claim, None) => Ok(claim),
            (_, Some(sr)) => Err(taken(&sr)),
        }
    }

    /// The same where the SR that is known there may be brought back: it comes with the claim.
    pub(crate) fn claim_any(&self, location: &str) -> Result<(Claim<'_>, Option<Arc<Sr>>), Failure> {
        if !self.claimed().insert(location.to_owned()) {
            return Err(Failure::new(
                ErrorName::TryAgain,
                format!("another request is making an SR of {location}"),
            ));
        }
        let claim = Claim { table: self, location: location.to_owned() };
        Ok((claim, self.at(location)))
    }

    /// The SR that is known at a location.
    pub(crate) fn at(&self, location: &str) -> Option<Arc<Sr>> {
        self.all().into_iter().find(|sr| sr.entry().location == location)
    }

    /// The SRs that are known at other locations.
    pub(crate) fn elsewhere(&self, location: &str) -> Vec<SrUuid> {
        let entries = self.all().into_iter().map(|sr| sr.entry());
        entries.filter(|entry| entry.location != location).map(|entry| entry.uuid).collect()
    }

    fn srs(&self) -> MutexGuard<'_, BTreeMap<SrUuid, Arc<Sr>>> {
        self.srs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The refusal of a location where a known SR is.
pub(crate) fn taken(sr: &Sr) -> Failure {
    let entry = sr.entry();
    let text = format!("{} is the SR {} ({})", entry.location, entry.uuid, entry.name_label);
    Failure::new(ErrorName::SrExists, text)
        .hint("`catena sr list` names the SRs of this host")
        .object("sr", entry.uuid)
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.table.claimed().remove(&self.location);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::detached;

    #[test]
    fn a_location_is_for_one_sr_and_one_request_at_a_time() {
        let table = Table::default();
        let claim = table.claim("/srv/a").unwrap();
        assert_eq!(table.claim("/srv/a").unwrap_err().name, ErrorName::TryAgain);
        table.claim("/srv/b").unwrap();
        drop(claim);
        table.claim("/srv/a").unwrap();
        table.insert(&detached("a"));
        assert_eq!(table.claim("/srv/a").unwrap_err().name, ErrorName::SrExists);
    }
}
