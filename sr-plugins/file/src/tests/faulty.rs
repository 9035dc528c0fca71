//! A back end that breaks one rule, to see that the conformance suite notices.

use crate::FilePlugin;
use catena_sr_api::{
    Access, Capabilities, ContainerInfo, Error, HostIdentity, Plugin, Probe, SrIdentity, Store, StoreStat,
};
use catena_types::{Bytes, SrUuid};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    ProbeWrites,
    ProbeSeesNothing,
    CreateOverwrites,
    AdoptTouchesImages,
    OpensTwice,
    IgnoresUuid,
    TakesOverUnasked,
    NeverTakesOver,
    HidesOwner,
    LookOwns,
    LookWrites,
    ChecksNoMarker,
    ListsLinks,
    ListsNothing,
    FollowsLinks,
    ActivateCreates,
    AlwaysWritable,
    RemoveForgets,
    RemoveAlwaysTrue,
    RemovesImpostors,
    TakesAnyName,
    StatsNothing,
    DestroyKeepsMarker,
    DestroyRemovesForeign,
}

impl Fault {
    pub(super) const ALL: [Self; 24] = [
        Self::ProbeWrites,
        Self::ProbeSeesNothing,
        Self::CreateOverwrites,
        Self::AdoptTouchesImages,
        Self::OpensTwice,
        Self::IgnoresUuid,
        Self::TakesOverUnasked,
        Self::NeverTakesOver,
        Self::HidesOwner,
        Self::LookOwns,
        Self::LookWrites,
        Self::ChecksNoMarker,
        Self::ListsLinks,
        Self::ListsNothing,
        Self::FollowsLinks,
        Self::ActivateCreates,
        Self::AlwaysWritable,
        Self::RemoveForgets,
        Self::RemoveAlwaysTrue,
        Self::RemovesImpostors,
        Self::TakesAnyName,
        Self::StatsNothing,
        Self::DestroyKeepsMarker,
        Self::DestroyRemovesForeign,
    ];
}

/// The file back end with a fault.
pub(super) struct FaultyPlugin(pub(super) Fault);

struct FaultyStore {
    fault: Fault,
    location: PathBuf,
    owned: bool,
    store: Box<dyn Store>,
    /// Held as well by who looks, where that is the fault.
    _also: Option<Box<dyn Store>>,
}

impl FaultyPlugin {
    fn owned(&self, location: &Path, store: Box<dyn Store>) -> Box<dyn Store> {
        Box::new(FaultyStore {
            fault: self.0,
            location: location.to_owned(),
            owned: true,
            store,
            _also: None,
        })
    }

    fn owner(location: &Path) -> Option<SrIdentity> {
        match FilePlugin.probe(location) {
            Ok(Probe::Ours(identity)) => Some(identity),
            _ => None,
        }
    }
}

impl Plugin for FaultyPlugin {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn probe(&self, location: &Path) -> Result<Probe, Error> {
        match self.0 {
            Fault::ProbeWrites if location.is_dir() => fs::write(location.join(".probed"), "").unwrap(),
            Fault::ProbeSeesNothing => return Ok(Probe::Empty),
            _ => {}
        }
        FilePlugin.probe(location)
    }

    fn create(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        if self.0 == Fault::CreateOverwrites && location.exists() {
            fs::remove_dir_all(location).unwrap();
        }
        Ok(self.owned(location, FilePlugin.create(location, identity)?))
    }

    fn adopt(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        let store = FilePlugin.adopt(location, identity)?;
        if self.0 == Fault::AdoptTouchesImages {
            fs::write(location.join("one.vhd"), "rewritten").unwrap();
        }
        Ok(self.owned(location, store))
    }

    fn open(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error> {
        let present = Self::owner(location);
        let uuid = match (&present, self.0) {
            (Some(present), Fault::IgnoresUuid) => present.uuid,
            _ => uuid,
        };
        let take_over = match self.0 {
            Fault::TakesOverUnasked => true,
            Fault::NeverTakesOver => false,
            _ => take_over,
        };
        let opened = FilePlugin.open(location, uuid, host, take_over);
        let opened = match (opened, self.0) {
            (Err(Error::InUse(_)), Fault::OpensTwice) => FilePlugin.look(location)?,
            (Err(Error::InUse(_)), Fault::HidesOwner) => return Err(Error::InUse("in use".to_owned())),
            (opened, _) => opened?,
        };
        Ok(self.owned(location, opened))
    }

    fn look(&self, location: &Path) -> Result<Box<dyn Store>, Error> {
        let also = match (self.0, Self::owner(location)) {
            (Fault::LookOwns, Some(present)) => {
                Some(FilePlugin.open(location, present.uuid, &present.owner, false)?)
            }
            _ => None,
        };
        let store = FilePlugin.look(location)?;
        Ok(Box::new(FaultyStore {
            fault: self.0,
            location: location.to_owned(),
            owned: false,
            store,
            _also: also,
        }))
    }
}

impl FaultyStore {
    fn path(&self, name: &str) -> PathBuf {
        self.location.join(name)
    }

    fn open_plainly(&self, name: &str) -> Result<OwnedFd, Error> {
        let open = fs::File::options().read(true).write(true).open(self.path(name));
        open.map(OwnedFd::from).map_err(Error::io("opening"))
    }
}

impl Store for FaultyStore {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn catalog_dir(&self) -> &Path {
        self.store.catalog_dir()
    }

    fn check_marker(&self) -> Result<(), Error> {
        if self.fault == Fault::ChecksNoMarker { Ok(()) } else { self.store.check_marker() }
    }

    fn may_be_image(&self, name: &str) -> bool {
        self.store.may_be_image(name)
    }

    fn create_container(&self, name: &str, size: Bytes) -> Result<(), Error> {
        match self.store.create_container(name, size) {
            Err(Error::Unsupported(_)) if self.fault == Fault::TakesAnyName && name.starts_with('.') => {
                Ok(())
            }
            Err(Error::Unsupported(_)) if self.fault == Fault::LookWrites => {
                fs::write(self.path(name), "").map_err(Error::io("making"))
            }
            other => other,
        }
    }

    fn remove(&self, name: &str) -> Result<bool, Error> {
        match self.fault {
            Fault::RemoveForgets if self.owned => Ok(self.store.info(name).is_ok()),
            Fault::RemoveAlwaysTrue => self.store.remove(name).map(|_| true),
            Fault::RemovesImpostors if self.path(name).is_symlink() => {
                fs::remove_file(self.path(name)).map(|()| false).map_err(Error::io("removing"))
            }
            _ => self.store.remove(name),
        }
    }

    fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        let mut list = self.store.list()?;
        match self.fault {
            Fault::ListsNothing => list.clear(),
            Fault::ListsLinks => {
                let entries = fs::read_dir(&self.location).map_err(Error::io("listing"))?;
                let links = entries.flatten().filter(|entry| entry.path().is_symlink());
                list.extend(links.map(|entry| ContainerInfo {
                    name: entry.file_name().into_string().unwrap(),
                    length: Bytes(0),
                    allocated: Bytes(0),
                    modified: 1,
                }));
            }
            _ => {}
        }
        Ok(list)
    }

    fn info(&self, name: &str) -> Result<ContainerInfo, Error> {
        self.store.info(name)
    }

    fn activate(&self, name: &str, access: Access) -> Result<OwnedFd, Error> {
        match self.fault {
            Fault::FollowsLinks if self.path(name).is_symlink() => self.open_plainly(name),
            Fault::AlwaysWritable if access == Access::ReadOnly => {
                self.store.activate(name, access)?;
                self.open_plainly(name)
            }
            Fault::ActivateCreates => {
                let _ = self.store.create_container(name, Bytes(0));
                self.store.activate(name, access)
            }
            _ => self.store.activate(name, access),
        }
    }

    fn grow(&self, name: &str, size: Bytes) -> Result<(), Error> {
        self.store.grow(name, size)
    }

    fn shrink(&self, name: &str, size: Bytes) -> Result<(), Error> {
        self.store.shrink(name, size)
    }

    fn stat(&self) -> Result<StoreStat, Error> {
        let stat = self.store.stat()?;
        Ok(if self.fault == Fault::StatsNothing { StoreStat { used: Bytes(0), ..stat } } else { stat })
    }

    fn destroy(&self) -> Result<(), Error> {
        match self.fault {
            Fault::DestroyKeepsMarker => Ok(()),
            Fault::DestroyRemovesForeign => {
                let location = self.location.clone();
                self.store.destroy()?;
                fs::remove_dir_all(&location)
                    .and_then(|()| fs::create_dir(&location))
                    .map_err(Error::io("clearing"))
            }
            _ => self.store.destroy(),
        }
    }
}
