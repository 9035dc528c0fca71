//! Making an SR of devices that hold nothing, or of a volume group of another manager.
//!
//! ```text
//! physical volumes -> group with its first tag -> volume of the catalog -> file system -> mounted -> marker
//! ```
//!
//! Invariant: the marker is the last thing that is made. A crash before it leaves what `marker` calls unfinished, which the next
//! creation on the devices removes, or physical volumes in no group with ids that only a creation of the same SR takes for empty: one
//! whose group cannot be read any more looks like that, too. Used by the plugin.

use crate::crash;
use crate::enlarge;
use crate::home::{self, Home, Mounted, OwnerLock};
use crate::lvm2::{Lvm2, Scope, Volumes};
use crate::marker::{self, CATALOG};
use crate::report::Group;
use crate::space::MARGIN;
use crate::store::LvmStore;
use crate::xenserver;
use catena_sr_api::{Access, Error, SrIdentity};
use catena_types::SrUuid;
use std::collections::BTreeSet;
use std::path::Path;

/// Removes what a crash has left of an SR that was being made or destroyed.
pub(crate) fn clear(group: &Group, run_dir: &Path) -> Result<(), Error> {
    tracing::info!(group = group.name, "what is left of an unfinished creation is removed");
    home::let_go(group, run_dir)?;
    let lvm = Lvm2 {
        system_id: Some(group.system_id.clone()).filter(|id| !id.is_empty()),
        ..Lvm2::reading(Scope::Devices(group.devices.clone()))
    };
    lvm.remove_group(&group.name)?;
    lvm.unmake_physical(&group.devices)
}

/// Makes an SR of empty devices.
pub(crate) fn create(devices: &[String], identity: &SrIdentity, run_dir: &Path) -> Result<LvmStore, Error> {
    let lvm = acting(devices, identity);
    let name = marker::group_name(identity.uuid);
    let made = enlarge::make_physical(&lvm, devices, identity.uuid)
        .and_then(|()| {
            crash::PHYSICAL.pass();
            lvm.make_group(&name, devices, &marker::first_tag(identity.uuid))
        })
        .and_then(|()| {
            crash::MADE.pass();
            finish(&lvm, &name, identity, run_dir)
        });
    match made {
        Ok((group, home)) => Ok(LvmStore::owned(lvm, group, identity.clone(), home)),
        Err(error) => {
            // Each may fail where the one before it has not been done.
            let undone = [lvm.remove_group(&name), lvm.unmake_physical(devices)];
            for failed in undone.into_iter().filter_map(Result::err) {
                tracing::info!(%failed, "while a failed creation was undone");
            }
            Err(error)
        }
    }
}

/// Makes an SR of the one group on the devices, whose volumes stay as they are.
pub(crate) fn adopt(devices: &[String], identity: &SrIdentity, run_dir: &Path) -> Result<LvmStore, Error> {
    let found = Lvm2::reading(Scope::Devices(devices.to_vec())).report(None)?.pop();
    let group = found.ok_or_else(|| Error::Unavailable("there is no volume group".to_owned()))?;
    let name = group.name.clone();
    let own = marker::system_id(&identity.owner.host);
    if let Some(error) = xenserver::obstacles(&group, Some(&own)).into_iter().next() {
        return Err(error);
    }
    let lvm = acting(&group.devices, identity);
    let catalog = Volumes { group: &name, names: &[CATALOG], read_only: &[] };
    if group.volumes.contains_key(CATALOG) {
        // What an introduction left that did not come to its end.
        home::let_go(&group, run_dir)?;
        lvm.remove(catalog)?;
    }
    // From here on the tools of other hosts leave it alone.
    if group.system_id != own {
        lvm.give_group(&name, &own)?;
    }
    crash::GIVEN.pass();
    match finish(&lvm, &name, identity, run_dir) {
        Ok((group, home)) => Ok(LvmStore::owned(lvm, group, identity.clone(), home)),
        Err(error) => {
            let undone = [lvm.remove(catalog), lvm.give_group(&name, "")];
            for failed in undone.into_iter().filter_map(Result::err) {
                tracing::info!(%failed, "while a failed introduction was undone");
            }
            Err(error)
        }
    }
}

/// From a group to an SR.
fn finish(lvm: &Lvm2, name: &str, identity: &SrIdentity, run_dir: &Path) -> Result<(Group, Home), Error> {
    let group = only(lvm, name)?;
    let extents = xenserver::catalog_extents(&group);
    if group.free <= extents + MARGIN {
        let short = group.bytes(extents + MARGIN + 1 - group.free);
        return Err(Error::NoSpace(format!(
            "there is no room for the catalog and a disk: {short} are missing"
        )));
    }
    lvm.make_volume(name, CATALOG, extents, &marker::first_tag(identity.uuid))?;
    let node = home::node(&group);
    home::format(&node)?;
    let lock = locked(&group)?;
    let mounted = Mounted::new(&node, &home::place(run_dir, identity.uuid))?;
    crash::MOUNTED.pass();
    // D1: the marker comes last. A crash before it leaves no SR.
    lvm.tag_group(name, &marker::all_tags(identity), &BTreeSet::new())?;
    Ok((only(lvm, name)?, Home { mounted, _lock: lock }))
}

/// The lock of a group that is being made.
pub(crate) fn locked(group: &Group) -> Result<OwnerLock, Error> {
    let node = home::node(group);
    let device = node.open(Access::ReadOnly)?;
    let lock = device.map(|device| OwnerLock::take(&node, device)).transpose()?.flatten();
    lock.ok_or_else(|| Error::InUse(format!("somebody else makes an SR of the volume group {}", group.name)))
}

/// The group of this name.
pub(crate) fn only(lvm: &Lvm2, name: &str) -> Result<Group, Error> {
    let group = lvm.report(Some(name))?.pop();
    group.ok_or_else(|| Error::Unavailable(format!("the volume group {name} is gone")))
}

fn acting(devices: &[String], identity: &SrIdentity) -> Lvm2 {
    Lvm2 {
        system_id: Some(marker::system_id(&identity.owner.host)),
        ..Lvm2::reading(Scope::Devices(devices.to_vec()))
    }
}

/// The group of an SR among those that are reported.
pub(crate) fn of(groups: Vec<Group>, sr: SrUuid) -> Option<(Group, SrIdentity)> {
    groups.into_iter().find_map(|group| match marker::kind(&group) {
        marker::Kind::Sr(identity) if identity.uuid == sr => Some((group, identity)),
        _ => None,
    })
}
