//! The directory `.catena`: what makes its parent an SR. Made, opened and taken down here.
//!
//! ```text
//! none -> .catena -> locked -> leftovers gone -> sr.toml        make   (a crash before sr.toml leaves no SR)
//! sr.toml gone -> catalog gone -> lock gone -> none             remove (a crash after sr.toml is gone leaves no SR)
//! ```
//!
//! Invariants: only who holds the lock changes anything in it; in a `.catena` without a marker are only names that this
//! program gives. Used by the plugin and, for the owner, by the store.

use crate::directory::{Directory, is_directory};
use crate::lock::{LOCK, OwnerLock};
use crate::marker::{self, MARKER, MARKER_NEW, Marker};
use crate::reflink;
use catena_sr_api::{Error, HostIdentity, SrIdentity};
use catena_types::SrUuid;
use std::ffi::OsString;

/// The name of the directory.
pub(crate) const HOME: &str = ".catena";

/// What the directory `.catena` of a location is, for who only looks.
#[derive(Debug)]
pub(crate) enum State {
    /// There is none, or what a crash in the middle of making or removing one left.
    Vacant {
        /// Whether a catalog is among the leftovers.
        catalog: bool,
    },
    /// An SR.
    Sr(SrIdentity),
    /// Something that is not ours, described.
    Strange(String),
}

/// The directory `.catena` of an SR that this process owns.
#[derive(Debug)]
pub(crate) struct Home {
    directory: Directory,
    identity: SrIdentity,
    // Dropped last: what the other fields stand for is ours until then.
    _lock: OwnerLock,
}

/// What the `.catena` in `location` is. Changes nothing.
pub(crate) fn state(location: &Directory) -> Result<State, Error> {
    match location.status(HOME)? {
        None => return Ok(State::Vacant { catalog: false }),
        Some(status) if !is_directory(&status) => {
            return Ok(State::Strange(format!("{HOME} is not a directory")));
        }
        Some(_) => {}
    }
    let home = location.subdirectory(HOME)?;
    match marker::read(&home)? {
        Marker::Valid(identity) => Ok(State::Sr(identity)),
        Marker::Unreadable(why) => Ok(State::Strange(format!("{HOME}/{MARKER} cannot be used: {why}"))),
        Marker::Absent => {
            let names = home.names()?;
            match names.iter().find(|name| !is_own(name)) {
                Some(name) => Ok(State::Strange(format!("{HOME} without {MARKER}, with {name:?}"))),
                None => Ok(State::Vacant { catalog: names.iter().any(is_catalog) }),
            }
        }
    }
}

/// Whether it is the name of a file that this program keeps in `.catena`.
fn is_own(name: &OsString) -> bool {
    let fixed = [LOCK, MARKER, MARKER_NEW, "reserve"];
    is_catalog(name) || fixed.into_iter().chain(reflink::SCRATCH).any(|own| name == own)
}

fn is_catalog(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b"catalog.")
}

impl Home {
    /// Makes an SR of `location`, whose [`state`] is vacant.
    pub(crate) fn make(location: &Directory, identity: &SrIdentity) -> Result<Self, Error> {
        location.make_subdirectory(HOME)?;
        let directory = location.subdirectory(HOME)?;
        let Some(lock) = OwnerLock::take(&directory)? else {
            return Err(Error::InUse(format!("an SR is being made at {}", location.path().display())));
        };
        // Only now nobody else can be making one here: look again.
        if !matches!(state(location)?, State::Vacant { .. }) {
            return Err(Error::Exists(format!("an SR was made at {} meanwhile", location.path().display())));
        }
        for name in directory.names()? {
            if let Some(name) = name.to_str().filter(|&name| name != LOCK) {
                directory.remove(name)?;
            }
        }
        directory.sync()?;
        // D1: the marker comes last. A crash before it leaves names that the next make takes over, never half an SR.
        marker::write(&directory, identity)?;
        Ok(Self { directory, identity: identity.clone(), _lock: lock })
    }

    /// Opens the SR `uuid` at `location` and makes `host` its owner.
    pub(crate) fn open(
        location: &Directory,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Self, Error> {
        let present = require(location, uuid)?;
        let directory = location.subdirectory(HOME)?;
        let Some(lock) = OwnerLock::take(&directory)? else {
            return Err(Error::InUse(format!(
                "the SR {uuid} is open already, by its owner {} as far as its marker says",
                present.owner.host
            )));
        };
        // What was read before the lock may have been another owner's last word but one.
        let mut identity = require(location, uuid)?;
        if identity.owner.host != host.host && !take_over {
            return Err(Error::InUse(format!("the SR {uuid} belongs to the host {}", identity.owner.host)));
        }
        if identity.owner != *host {
            tracing::info!(sr = %uuid, from = ?identity.owner, to = ?host, "the owner in the marker changes");
            identity.owner = host.clone();
            marker::write(&directory, &identity)?;
        }
        Ok(Self { directory, identity, _lock: lock })
    }

    /// The directory.
    pub(crate) const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether `location` (opened anew by its path) still is this SR, and still ours.
    pub(crate) fn check(&self, location: &Directory) -> Result<(), Error> {
        let present = require(location, self.identity.uuid)?;
        if present.owner == self.identity.owner {
            Ok(())
        } else {
            Err(Error::InUse(format!("the host {} has taken the SR over", present.owner.host)))
        }
    }

    /// Takes the SR down: marker first, lock last. Refused if there is a file in `.catena` that is not ours.
    pub(crate) fn remove(&self, location: &Directory) -> Result<(), Error> {
        let names = self.directory.names()?;
        if let Some(name) = names.iter().find(|name| !is_own(name)) {
            let path = self.directory.path().join(name);
            return Err(Error::Foreign(format!("{} is not a file of this program", path.display())));
        }
        // D1: what points goes durably before what it points at. A crash leaves no SR without its catalog.
        self.directory.remove(MARKER)?;
        self.directory.sync()?;
        for name in names.iter().filter_map(|name| name.to_str()).filter(|&name| name != LOCK) {
            self.directory.remove(name)?;
        }
        self.directory.remove(LOCK)?;
        location.remove_subdirectory(HOME)
    }
}

/// The marker of the SR `uuid`, which must be at `location`.
fn require(location: &Directory, uuid: SrUuid) -> Result<SrIdentity, Error> {
    let place = location.path().display();
    match state(location)? {
        State::Sr(identity) if identity.uuid == uuid => Ok(identity),
        State::Sr(other) => {
            Err(Error::Unavailable(format!("{place} holds the SR {}, not {uuid}", other.uuid)))
        }
        State::Vacant { .. } => Err(Error::Unavailable(format!("there is no SR at {place}"))),
        State::Strange(what) => Err(Error::Unavailable(format!("there is no SR at {place}: {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_overtaken_while_making_an_sr_leaves_the_others() {
        let place = tempfile::tempdir().unwrap();
        let location = Directory::open(&place.path().canonicalize().unwrap()).unwrap();
        let owner = HostIdentity { host: "a".to_owned(), boot: "b".to_owned() };
        let identity =
            || SrIdentity { uuid: SrUuid::random(), name_label: String::new(), owner: owner.clone() };
        let first = identity();
        let home = Home::make(&location, &first).unwrap();
        assert!(matches!(Home::make(&location, &identity()), Err(Error::InUse(_))), "still being made");
        drop(home);
        assert!(matches!(Home::make(&location, &identity()), Err(Error::Exists(_))), "made meanwhile");
        assert!(matches!(state(&location).unwrap(), State::Sr(found) if found == first));
    }
}
