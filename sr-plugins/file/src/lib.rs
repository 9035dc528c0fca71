//! Thin images in a directory: the back end of kind `file`, on a local file system or an NFS mount.
//!
//! A container is a regular file of the location; everything that makes the location an SR is in its directory `.catena`
//! (`home`). Invariants: `.catena/sr.toml` is the last thing that is made and the first that goes, so that a location
//! is an SR or it is not; nothing is opened through a symbolic link; files that are not ours are never touched.
//! The keeper is the only caller, through the traits of `catena-sr-api`.

mod directory;
mod home;
mod labels;
mod location;
mod lock;
mod marker;
mod mounts;
mod reflink;
mod store;
mod survey;

#[cfg(test)]
mod tests;

use crate::directory::Directory;
use crate::home::Home;
use crate::location::{At, Location};
use crate::store::FileStore;
use catena_sr_api::{Error, HostIdentity, Plugin, Probe, SrIdentity, Store};
use catena_types::SrUuid;
use std::path::Path;

/// The back end of kind `file`. A location is the absolute path of a directory that is no symbolic link itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilePlugin;

impl Plugin for FilePlugin {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn probe(&self, location: &Path) -> Result<Probe, Error> {
        match Location::resolve(location)?.find()? {
            At::Nothing => Ok(Probe::Empty),
            At::Other(what) => Ok(Probe::Foreign(what)),
            At::Directory(directory) => survey::survey(&directory),
        }
    }

    fn create(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        let place = Location::resolve(location)?;
        let directory = match place.find()? {
            At::Other(what) => return Err(foreign(location, &what)),
            At::Nothing => place.make()?,
            At::Directory(directory) => match survey::survey(&directory)? {
                Probe::Empty => directory,
                Probe::Ours(present) => return Err(exists(location, &present)),
                Probe::Images(names) => return Err(foreign(location, &survey::some_of(&names))),
                Probe::Foreign(what) => return Err(foreign(location, &what)),
            },
        };
        found(directory, identity)
    }

    fn adopt(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        let directory = existing(location)?;
        match survey::survey(&directory)? {
            Probe::Images(_) => found(directory, identity),
            Probe::Ours(present) => Err(exists(location, &present)),
            Probe::Empty => Err(Error::Unavailable(format!("{} holds no images", location.display()))),
            Probe::Foreign(what) => {
                Err(Error::Foreign(format!("{} holds no images to take over: {what}", location.display())))
            }
        }
    }

    fn open(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error> {
        let directory = existing(location)?;
        mounts::check_locks_are_shared(&directory)?;
        let home = Home::open(&directory, uuid, host, take_over)?;
        Ok(Box::new(FileStore::owned(directory, home)))
    }

    fn look(&self, location: &Path) -> Result<Box<dyn Store>, Error> {
        Ok(Box::new(FileStore::looked_at(existing(location)?)))
    }
}

/// Makes an SR of a directory that was found fit.
fn found(directory: Directory, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
    mounts::check_locks_are_shared(&directory)?;
    let home = Home::make(&directory, identity)?;
    Ok(Box::new(FileStore::owned(directory, home)))
}

/// The directory at the location, which must be there.
fn existing(location: &Path) -> Result<Directory, Error> {
    match Location::resolve(location)?.find()? {
        At::Directory(directory) => Ok(directory),
        At::Nothing => Err(Error::Unavailable(format!("{} does not exist", location.display()))),
        At::Other(what) => Err(Error::Unavailable(format!("{}: {what}", location.display()))),
    }
}

fn foreign(location: &Path, what: &str) -> Error {
    Error::Foreign(format!("{} is not empty: {what}", location.display()))
}

fn exists(location: &Path, present: &SrIdentity) -> Error {
    Error::Exists(format!("{} holds the SR {} ({:?})", location.display(), present.uuid, present.name_label))
}
