//! The arithmetic of a volume group: what its volumes take and what they can still take.
//!
//! The owner of a group is the only one who changes it, so what is known of it is what was reported when it was opened, changed by
//! each of our own commands. A command that fails makes it be read anew. Used by `store`.

use crate::marker::CATALOG;
use crate::report::{Active, Group, Volume};
use catena_sr_api::{ContainerInfo, Error};
use catena_types::Bytes;
use std::collections::BTreeSet;

/// Extents that no image ever gets: the volume of the catalog can be made larger in a full group.
pub(crate) const MARGIN: u64 = 4;

impl Group {
    /// A container; `None` for what is none of ours.
    pub(crate) fn container(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(name).filter(|volume| name != CATALOG && volume.plain)
    }

    /// The same, to change.
    pub(crate) fn container_mut(&mut self, name: &str) -> Option<&mut Volume> {
        self.volumes.get_mut(name).filter(|volume| name != CATALOG && volume.plain)
    }

    /// All containers by name.
    pub(crate) fn containers(&self) -> impl Iterator<Item = (&str, &Volume)> {
        let containers = self.volumes.iter().filter(|(name, volume)| *name != CATALOG && volume.plain);
        containers.map(|(name, volume)| (name.as_str(), volume))
    }

    /// What a container is, for the keeper.
    pub(crate) fn describe(&self, name: &str, volume: &Volume) -> ContainerInfo {
        let size = self.bytes(volume.extents);
        ContainerInfo { name: name.to_owned(), length: size, allocated: size, modified: volume.created }
    }

    /// Bytes of so many extents.
    pub(crate) fn bytes(&self, extents: u64) -> Bytes {
        Bytes(extents.saturating_mul(self.extent.0))
    }

    /// The least number of extents that hold so many bytes; one at least.
    pub(crate) fn extents_of(&self, size: Bytes) -> u64 {
        size.0.div_ceil(self.extent.0).max(1)
    }

    /// Extents that containers can still take.
    pub(crate) fn allocatable(&self) -> u64 {
        self.free.saturating_sub(MARGIN)
    }

    /// Refuses to take so many extents where there are not as many.
    pub(crate) fn need(&self, extents: u64) -> Result<(), Error> {
        let missing = extents.saturating_sub(self.allocatable());
        if missing == 0 {
            return Ok(());
        }
        let (needed, short) = (self.bytes(extents), self.bytes(missing));
        Err(Error::NoSpace(format!(
            "{needed} are needed in the volume group {}, {short} more than are free",
            self.name
        )))
    }

    /// A volume was made and is active for writing.
    pub(crate) fn made(&mut self, name: &str, extents: u64, created: i64, tags: BTreeSet<String>) {
        self.free = self.free.saturating_sub(extents);
        let active = Active::ReadWrite;
        let volume = Volume { extents, tags, created, plain: true, active, open: false, suspended: false };
        self.volumes.insert(name.to_owned(), volume);
    }

    /// A volume has another size.
    pub(crate) fn resized(&mut self, name: &str, extents: u64) {
        if let Some(volume) = self.volumes.get_mut(name) {
            self.free = (self.free + volume.extents).saturating_sub(extents);
            volume.extents = extents;
        }
    }

    /// A volume is gone.
    pub(crate) fn removed(&mut self, name: &str) {
        if let Some(volume) = self.volumes.remove(name) {
            self.free += volume.extents;
        }
    }

    /// Volumes are active in this way now.
    pub(crate) fn set_active(&mut self, names: &[&str], active: Active) {
        for name in names {
            if let Some(volume) = self.volumes.get_mut(*name) {
                volume.active = active;
            }
        }
    }

    /// Names of the containers that are active for reading only.
    pub(crate) fn read_only(&self) -> Vec<String> {
        let some = self.containers().filter(|(_, volume)| volume.active == Active::ReadOnly);
        some.map(|(name, _)| name.to_owned()).collect()
    }
}
