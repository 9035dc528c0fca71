//! Opening an SR: found on its devices, or wherever they are now; locked; given to this host; mounted.
//!
//! Invariant: whoever is refused has changed nothing but what is active. Used by the plugin.

use crate::home::{self, Home, Mounted, OwnerLock, Seen};
use crate::location;
use crate::lvm2::{Lvm2, Scope, Volumes};
use crate::make::{of, only};
use crate::marker::{self, CATALOG, Kind};
use crate::renew::is_unfinished;
use crate::report::Group;
use crate::shared::mend;
use crate::store::LvmStore;
use crate::tags::PREFIX;
use catena_sr_api::{Access, Error, HostIdentity, SrIdentity};
use catena_types::SrUuid;
use std::os::fd::OwnedFd;
use std::path::Path;

/// How often the catalog is made active while a predecessor makes it inactive.
const TRIES: usize = 5;

/// Opens the SR for this host.
pub(crate) fn open(
    location: &Path,
    uuid: SrUuid,
    host: &HostIdentity,
    take_over: bool,
    run_dir: &Path,
) -> Result<LvmStore, Error> {
    let (group, identity) = find(location, uuid)?;
    refuse_others(&identity, host, take_over)?;
    let Some(volume) = group.volumes.get(CATALOG) else { return Err(lost(&group)) };
    if is_unfinished(&volume.tags) {
        let text = format!("the catalog of the volume group {} was being made anew", group.name);
        return Err(Error::CatalogLost(text));
    }
    let own = marker::system_id(&host.host);
    let mut taking = group.system_id != own;
    let lvm = Lvm2 {
        scope: Scope::Devices(group.devices.clone()),
        taken_from: Some(group.system_id.clone()).filter(|_| taking),
        system_id: Some(own.clone()),
    };
    let node = home::node(&group);
    if taking && node.open(Access::ReadOnly)?.is_none() {
        // lvm2 makes nothing active for who only acts for another host. Nobody of this host has the SR open.
        lvm.give_group(&group.name, &own)?;
        taking = false;
    }
    let Some(lock) = OwnerLock::take(&node, catalog(&lvm, &group)?)? else {
        return Err(Error::InUse(format!(
            "the SR {uuid} is open already, by its owner {} as far as its marker says",
            identity.owner.host
        )));
    };
    // What was read before the lock may have been another owner's last word but one.
    let (group, mut identity) = of(vec![only(&lvm, &group.name)?], uuid).ok_or_else(|| gone(uuid))?;
    refuse_others(&identity, host, take_over)?;
    let mut changed = taking;
    if taking {
        lvm.give_group(&group.name, &own)?;
    }
    let lvm = Lvm2 { taken_from: None, ..lvm };
    changed |= become_owner(&lvm, &group, &mut identity, host)?;
    changed |= mend(&lvm, &group)?;
    let group = if changed { only(&lvm, &group.name)? } else { group };
    let mounted = Mounted::new(&node, &home::place(run_dir, uuid))?;
    Ok(LvmStore::owned(lvm, group, identity, Home { mounted, _lock: lock }))
}

/// Makes the marker name this host; whether that is a change.
pub(crate) fn become_owner(
    lvm: &Lvm2,
    group: &Group,
    identity: &mut SrIdentity,
    host: &HostIdentity,
) -> Result<bool, Error> {
    if identity.owner == *host {
        return Ok(false);
    }
    let uuid = identity.uuid;
    tracing::info!(sr = %uuid, from = ?identity.owner, to = ?host, "the owner in the marker changes");
    identity.owner = host.clone();
    let tags = marker::all_tags(identity);
    let old = group.tags.iter().filter(|tag| tag.starts_with(PREFIX) && !tags.contains(*tag));
    let new = tags.difference(&group.tags).cloned().collect();
    lvm.tag_group(&group.name, &new, &old.cloned().collect())?;
    Ok(true)
}

/// Looks at the one group on the devices.
pub(crate) fn look(location: &Path, run_dir: &Path) -> Result<LvmStore, Error> {
    let devices = location::devices(location)?;
    let found = Lvm2::reading(Scope::Devices(devices)).report(None)?.pop();
    let group =
        found.ok_or_else(|| Error::Unavailable(format!("{} is no volume group", location.display())))?;
    let lvm = Lvm2 {
        system_id: Some(group.system_id.clone()).filter(|id| !id.is_empty()),
        ..Lvm2::reading(Scope::Devices(group.devices.clone()))
    };
    let Kind::Sr(identity) = marker::kind(&group) else {
        let nowhere = Seen::Nowhere(run_dir.join("sr").join("none"));
        return Ok(LvmStore::looked_at(lvm, group, None, nowhere));
    };
    let node = home::node(&group);
    let owners = home::place(run_dir, identity.uuid);
    let seen = if home::is_mounted(&node, &owners)? {
        Seen::Owners(owners)
    } else {
        let name = format!("{}.look-{}", identity.uuid, std::process::id());
        look_at_catalog(&lvm, &group, &owners.with_file_name(name))?
    };
    Ok(LvmStore::looked_at(lvm, group, Some(identity), seen))
}

fn look_at_catalog(lvm: &Lvm2, group: &Group, at: &Path) -> Result<Seen, Error> {
    let nowhere = || Ok(Seen::Nowhere(at.with_extension("lost")));
    if !group.volumes.contains_key(CATALOG) {
        return nowhere();
    }
    drop(catalog(lvm, group)?);
    match Mounted::to_look(&home::node(group), at) {
        Ok(mounted) => Ok(Seen::At(mounted)),
        Err(Error::CatalogLost(why)) => {
            tracing::info!(why, "a lost catalog");
            lvm.deactivate(Volumes { group: &group.name, names: &[CATALOG], read_only: &[] })?;
            nowhere()
        }
        Err(error) => Err(error),
    }
}

/// The SR's group: on the devices of the location, or on those that have other names by now.
pub(crate) fn find(location: &Path, uuid: SrUuid) -> Result<(Group, SrIdentity), Error> {
    let (devices, missing) = location::present(location)?;
    if missing.is_empty() {
        let groups = Lvm2::reading(Scope::Devices(devices)).report(None)?;
        if let Some(found) = of(groups, uuid).filter(|(group, _)| group.missing == 0) {
            return Ok(found);
        }
    }
    let found = of(Lvm2::reading(Scope::All).report(None)?, uuid);
    let (group, identity) = found.ok_or_else(|| gone(uuid))?;
    if group.missing > 0 {
        let (missing, name) = (group.missing, &group.name);
        return Err(Error::Unavailable(format!("{missing} devices of the volume group {name} are missing")));
    }
    tracing::info!(sr = %uuid, location = %location.display(), devices = ?group.devices, "its devices have other names");
    Ok((group, identity))
}

pub(crate) fn refuse_others(
    identity: &SrIdentity,
    host: &HostIdentity,
    take_over: bool,
) -> Result<(), Error> {
    if identity.owner.host == host.host || take_over {
        return Ok(());
    }
    let (uuid, owner) = (identity.uuid, &identity.owner.host);
    Err(Error::InUse(format!("the SR {uuid} belongs to the host {owner}")))
}

/// The device of the catalog, made active if it is not.
pub(crate) fn catalog(lvm: &Lvm2, group: &Group) -> Result<OwnedFd, Error> {
    let node = home::node(group);
    for _ in 0..TRIES {
        if let Some(device) = node.open(Access::ReadOnly)? {
            return Ok(device);
        }
        lvm.activate(Volumes { group: &group.name, names: &[CATALOG], read_only: &[] })?;
    }
    Err(Error::Unavailable(format!("the catalog of the volume group {} does not stay active", group.name)))
}

fn lost(group: &Group) -> Error {
    Error::CatalogLost(format!("the volume group {} has no volume {CATALOG} any more", group.name))
}

fn gone(uuid: SrUuid) -> Error {
    Error::Unavailable(format!("there is no SR {uuid} on the devices of this host"))
}
