//! A new, empty volume for the catalog of an SR that has lost it: the volume is gone, or its file system cannot be mounted.
//!
//! ```text
//! old volume, if there is one, locked and renamed -> new volume, marked as unfinished -> file system -> mark taken off -> mounted
//! ```
//!
//! Invariant: no image's volume is touched, and the old catalog is kept under another name; a crash leaves an SR whose catalog is
//! still lost, for which the same is done again: a volume with the mark is nobody's catalog (`open`), and goes. Used by the plugin.

use crate::crash;
use crate::home::{self, Home, LEAST, Mounted, OwnerLock};
use crate::lvm2::{Lvm2, Scope, Volumes};
use crate::make::{locked, only};
use crate::marker::{self, CATALOG};
use crate::open::{become_owner, catalog, find, refuse_others};
use crate::report::Group;
use crate::shared::mend;
use crate::store::LvmStore;
use crate::tags::PREFIX;
use crate::xenserver::catalog_extents;
use catena_sr_api::{Error, HostIdentity};
use catena_types::{Bytes, SrUuid};
use std::collections::BTreeSet;
use std::path::Path;

/// The name of a lost catalog that is kept, before its number.
const ASIDE: &str = "catalog-lost-";

/// Opens the SR for this host with a new volume for its catalog.
pub(crate) fn renew(
    location: &Path,
    uuid: SrUuid,
    host: &HostIdentity,
    take_over: bool,
    run_dir: &Path,
) -> Result<LvmStore, Error> {
    let (group, mut identity) = find(location, uuid)?;
    refuse_others(&identity, host, take_over)?;
    let room = room(&group)?;
    let own = marker::system_id(&host.host);
    let mut lvm =
        Lvm2 { system_id: Some(own.clone()), ..Lvm2::reading(Scope::Devices(group.devices.clone())) };
    if group.system_id != own {
        lvm.taken_from = Some(group.system_id.clone());
        lvm.give_group(&group.name, &own)?;
        lvm.taken_from = None;
    }
    put_aside(&lvm, &group)?;
    let name = &group.name;
    let unfinished = BTreeSet::from([format!("{PREFIX}unfinished=1")]);
    lvm.make_volume(name, CATALOG, room, &marker::first_tag(uuid).union(&unfinished).cloned().collect())?;
    crash::RENEWED.pass();
    let node = home::node(&group);
    home::format(&node)?;
    crash::REFORMATTED.pass();
    // D1: before anything is put into it. What has the mark is removed without a look.
    let new = Volumes { group: name, names: &[CATALOG], read_only: &[] };
    lvm.tag(new, &BTreeSet::new(), &unfinished)?;
    crash::FINISHED.pass();
    let lock = locked(&group)?;
    let mounted = Mounted::new(&node, &home::place(run_dir, uuid))?;
    become_owner(&lvm, &only(&lvm, name)?, &mut identity, host)?;
    let group = only(&lvm, name)?;
    mend(&lvm, &group)?;
    tracing::warn!(sr = %uuid, group = group.name, "the SR has got a new volume for its catalog");
    Ok(LvmStore::owned(lvm, group, identity, Home { mounted, _lock: lock }))
}

/// Extents for the new catalog: what it would have had, or what is left of the group, its margin included.
fn room(group: &Group) -> Result<u64, Error> {
    let left =
        group.volumes.get(CATALOG).filter(|volume| is_unfinished(&volume.tags)).map_or(0, |v| v.extents);
    let (wanted, least) = (catalog_extents(group), group.extents_of(Bytes(LEAST)));
    let free = group.free + left;
    if free >= least {
        return Ok(wanted.min(free));
    }
    let short = group.bytes(least - free);
    let name = &group.name;
    Err(Error::NoSpace(format!("in the volume group {name} {short} are missing for a new catalog")))
}

/// Whether a crash left a volume for a catalog that was not ready to take one.
pub(crate) fn is_unfinished(tags: &BTreeSet<String>) -> bool {
    tags.contains(&format!("{PREFIX}unfinished=1"))
}

/// Gives the old volume another name, once it is sure that nobody has the SR open. One that a crash left unfinished goes.
fn put_aside(lvm: &Lvm2, group: &Group) -> Result<(), Error> {
    let Some(volume) = group.volumes.get(CATALOG) else { return Ok(()) };
    let name = &group.name;
    let old = Volumes { group: name, names: &[CATALOG], read_only: &[] };
    let Some(lock) = OwnerLock::take(&home::node(group), catalog(lvm, group)?)? else {
        return Err(Error::InUse(format!("the SR in the volume group {name} is open")));
    };
    if is_unfinished(&volume.tags) {
        drop(lock);
        return lvm.remove(old);
    }
    let free = (1..).map(|n| format!("{ASIDE}{n}")).find(|aside| !group.volumes.contains_key(aside));
    let aside = free.unwrap_or_default();
    lvm.rename(name, CATALOG, &aside)?;
    crash::ASIDE.pass();
    drop(lock);
    tracing::warn!(group = name, aside, "the lost catalog is kept aside");
    lvm.deactivate(Volumes { group: name, names: &[&aside], read_only: &[] })
}
