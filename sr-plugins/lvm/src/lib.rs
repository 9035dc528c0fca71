//! A logical volume per image in a volume group: the back end of kind `lvm`, on devices of this host.
//!
//! The group is `catena-<sr>`; a container is a plain volume of it; the volume `catalog` holds a small file system with the
//! catalog (`home`), and tags of the group say that it is an SR and whose (`marker`). Everything is done with the commands of
//! lvm2 (`lvm2`), of which each takes a good part of a second: what is known is kept in memory (`shared`). The keeper is the only
//! caller, through the traits of `catena-sr-api`.

mod command;
mod crash;
mod discard;
mod enlarge;
mod fsck;
mod home;
mod labeller;
mod location;
mod lvm2;
mod make;
mod marker;
mod names;
mod node;
mod open;
mod renew;
mod report;
mod shared;
mod space;
mod store;
mod survey;
mod system_dir;
mod tags;
mod xenserver;

pub use command::commands_run;

use crate::report::Group;
use crate::survey::Found;
use catena_sr_api::{Error, HostIdentity, Plugin, Probe, Sizing, SrIdentity, Store};
use catena_types::{CrashPoint, SrUuid};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where mounts are, as long as nobody has said.
const RUN_DIR: &str = "/run/catena";

/// What a device holds that is in no group.
const LOOSE: &str = "an LVM physical volume in no volume group";

/// The back end of kind `lvm`. A location is the absolute paths of devices, joined by commas.
#[derive(Debug, Default)]
pub struct LvmPlugin {
    run_dir: OnceLock<PathBuf>,
}

impl LvmPlugin {
    /// Keeps its mounts in `/run/catena` unless it is told another place.
    pub const fn new() -> Self {
        Self { run_dir: OnceLock::new() }
    }

    fn run_dir(&self) -> &Path {
        self.run_dir.get().map_or(Path::new(RUN_DIR), PathBuf::as_path)
    }
}

impl Plugin for LvmPlugin {
    fn kind(&self) -> &'static str {
        "lvm"
    }

    fn sizing(&self) -> Sizing {
        Sizing::Explicit
    }

    fn prepare(&self, run_dir: &Path) {
        // The first word counts: mounts may be there already.
        let _ = self.run_dir.set(run_dir.to_owned());
        system_dir::prepare(run_dir);
    }

    fn crash_points(&self) -> &'static [CrashPoint] {
        crash::ALL
    }

    fn probe(&self, location: &Path) -> Result<Probe, Error> {
        match survey::survey(&location::devices(location)?)? {
            Found::Said(probe) => Ok(probe),
            Found::Remains(_) => Ok(Probe::Empty),
            Found::Loose(_) => Ok(Probe::Foreign(LOOSE.to_owned())),
        }
    }

    fn create(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        let devices = location::devices(location)?;
        match survey::survey(&devices)? {
            Found::Said(Probe::Empty) => {}
            Found::Remains(group) => make::clear(&group, self.run_dir())?,
            // A crash came before there was a group. They are made anew.
            Found::Loose(ids) if ids.iter().all(|id| enlarge::is_ours(id, identity.uuid)) => {}
            Found::Loose(_) => return Err(foreign(location, LOOSE)),
            Found::Said(Probe::Ours(present)) => return Err(exists(location, &present)),
            Found::Said(Probe::Images(_)) => return Err(foreign(location, "images of another manager")),
            Found::Said(Probe::Foreign(what)) => return Err(foreign(location, &what)),
        }
        Ok(Box::new(make::create(&devices, identity, self.run_dir())?))
    }

    fn adopt(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error> {
        let devices = location::devices(location)?;
        match survey::survey(&devices)? {
            Found::Said(Probe::Images(_)) => Ok(Box::new(make::adopt(&devices, identity, self.run_dir())?)),
            Found::Said(Probe::Ours(present)) => Err(exists(location, &present)),
            Found::Said(Probe::Empty) | Found::Remains(_) => {
                Err(Error::Unavailable(format!("{} holds no images", location.display())))
            }
            Found::Said(Probe::Foreign(what)) => Err(no_images(location, &what)),
            Found::Loose(_) => Err(no_images(location, LOOSE)),
        }
    }

    fn open(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error> {
        Ok(Box::new(open::open(location, uuid, host, take_over, self.run_dir())?))
    }

    fn renew(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error> {
        Ok(Box::new(renew::renew(location, uuid, host, take_over, self.run_dir())?))
    }

    fn look(&self, location: &Path) -> Result<Box<dyn Store>, Error> {
        Ok(Box::new(open::look(location, self.run_dir())?))
    }
}

/// Names of what may be images of another manager.
fn images(group: &Group) -> Vec<String> {
    let names = group.containers().map(|(name, _)| name.to_owned());
    names.filter(|name| store::is_image(name)).collect()
}

fn foreign(location: &Path, what: &str) -> Error {
    Error::Foreign(format!("{} is not empty: {what}", location.display()))
}

fn no_images(location: &Path, what: &str) -> Error {
    Error::Foreign(format!("{} holds no images to take over: {what}", location.display()))
}

fn exists(location: &Path, present: &SrIdentity) -> Error {
    Error::Exists(format!("{} holds the SR {} ({:?})", location.display(), present.uuid, present.name_label))
}
