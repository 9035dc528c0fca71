//! Making a group larger: by what its devices have grown, and by more devices.
//!
//! ```text
//! what new devices hold -> physical volumes -> group extended -> physical volumes as large as their devices -> catalog larger
//! ```
//!
//! Invariant: a group has a device with one commit of lvm2, or has it not, and each step may be repeated. A crash before the commit
//! leaves physical volumes in no group; their ids begin with that of the SR, so that the next try knows them for what they are and
//! takes them for empty. Used by `store`, and what is
//! known of ids by `make` too.

use crate::crash;
use crate::home;
use crate::location::{self, is_in_use};
use crate::lvm2::{Lvm2, Scope, Volumes};
use crate::marker::CATALOG;
use crate::report::{Group, Physical};
use crate::shared::Shared;
use crate::survey::{PHYSICAL, signature};
use catena_sr_api::Error;
use catena_types::SrUuid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How much of the id of a physical volume is the SR's; the rest is its own.
const PREFIX: usize = 20;
/// The length of such an id, without its dashes.
const LENGTH: usize = 32;

/// Makes the group of an SR larger.
pub(crate) fn enlarge(shared: &Shared, sr: SrUuid, devices: &[&str]) -> Result<(), Error> {
    let devices = match devices {
        [] => Vec::new(),
        named => location::devices(Path::new(&named.join(",")))?,
    };
    shared.command_wider(&devices, |lvm, group| {
        let new = refuse_what_holds_anything(lvm, group, sr, &devices)?;
        let done = extend(lvm, group, sr, &new).and_then(|()| {
            let all: Vec<String> = group.devices.iter().chain(&new).cloned().collect();
            lvm.resize_physical(&all)
        });
        done.inspect_err(|_| take_back(lvm, &new))
    })?;
    // The SR is larger by now, and this is done again the next time.
    if let Err(error) = widen_catalog(shared) {
        tracing::warn!(%error, "the catalog stays as small as it is");
    }
    Ok(())
}

/// Those of the devices that are not in the group yet; all of them hold nothing.
fn refuse_what_holds_anything(
    lvm: &Lvm2,
    group: &Group,
    sr: SrUuid,
    devices: &[String],
) -> Result<Vec<String>, Error> {
    let mut new = Vec::new();
    let mut physical: Option<Vec<Physical>> = None;
    for device in devices {
        let what = match signature(device)? {
            None if is_in_use(device)? => "it is in use".to_owned(),
            None => {
                new.push(device.clone());
                continue;
            }
            Some(what) if what == PHYSICAL => {
                if physical.is_none() {
                    physical = Some(lvm.physical()?);
                }
                let known = physical.iter().flatten().find(|one| is_same(&one.device, device));
                match known {
                    Some(one) if one.group == group.name => continue,
                    Some(one) if one.group.is_empty() && is_ours(&one.id, sr) => {
                        new.push(device.clone());
                        continue;
                    }
                    Some(one) if !one.group.is_empty() => format!("the volume group {}", one.group),
                    _ => "an LVM physical volume in no volume group".to_owned(),
                }
            }
            Some(what) => what,
        };
        return Err(Error::Foreign(format!("{device} is not empty: {what}")));
    }
    Ok(new)
}

fn extend(lvm: &Lvm2, group: &Group, sr: SrUuid, new: &[String]) -> Result<(), Error> {
    if new.is_empty() {
        return Ok(());
    }
    // What a crash has left here is made anew, whole.
    make_physical(lvm, new, sr)?;
    crash::ADDED.pass();
    lvm.extend_group(&group.name, new)?;
    crash::EXTENDED.pass();
    Ok(())
}

/// Makes devices physical volumes of the SR, which are known as such while they are in no group.
pub(crate) fn make_physical(lvm: &Lvm2, devices: &[String], sr: SrUuid) -> Result<(), Error> {
    devices.iter().try_for_each(|device| lvm.make_physical_with(device, &new_id(sr)))
}

/// Makes devices what they were, unless they are in the group.
fn take_back(lvm: &Lvm2, new: &[String]) {
    for device in new {
        if let Err(error) = lvm.unmake_physical(std::slice::from_ref(device)) {
            tracing::info!(device, %error, "while a failed growth was undone");
        }
    }
}

/// Gives the catalog what an SR of this size has from the beginning.
fn widen_catalog(shared: &Shared) -> Result<(), Error> {
    let node = shared.command(|lvm| {
        let (group, wanted) = {
            let known = shared.known();
            let group = &known.group;
            let wanted = group.extents_of(home::size(group.bytes(group.extents)));
            let has = group.volumes.get(CATALOG).map_or(wanted, |volume| volume.extents);
            // With what is free beside the margin, so that no image has to go without.
            (group.clone(), wanted.min(has + group.allocatable()).max(has))
        };
        if group.volumes.get(CATALOG).is_some_and(|volume| volume.extents < wanted) {
            lvm.extend(Volumes { group: &group.name, names: &[CATALOG], read_only: &[] }, wanted)?;
            shared.known().group.resized(CATALOG, wanted);
        }
        Ok(home::node(&group))
    })?;
    // A crash between the two leaves a file system that does not fill its volume.
    home::fill(&node)
}

/// Whether two paths lead to one device.
fn is_same(one: &str, other: &str) -> bool {
    let device = |path: &str| fs::metadata(path).ok().map(|metadata| metadata.rdev());
    one == other || device(one).is_some_and(|found| device(other) == Some(found))
}

fn digits(uuid: SrUuid) -> String {
    uuid.to_string().replace('-', "")
}

/// An id for a physical volume of the SR.
fn new_id(sr: SrUuid) -> String {
    digits(sr)
        .chars()
        .take(PREFIX)
        .chain(digits(SrUuid::random()).chars().skip(PREFIX))
        .take(LENGTH)
        .collect()
}

/// Whether it was made for the SR.
pub(crate) fn is_ours(id: &str, sr: SrUuid) -> bool {
    id.replace('-', "").starts_with(&digits(sr)[..PREFIX])
}

/// What commands see who are to work with these devices too.
pub(crate) fn wider(group: &Group, devices: &[String]) -> Scope {
    let known = |device: &&String| !group.devices.iter().any(|one| is_same(one, device));
    Scope::Devices(group.devices.iter().chain(devices.iter().filter(known)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_for_which_sr_it_was_made() {
        let (sr, other) = (SrUuid::random(), SrUuid::random());
        let (one, two) = (new_id(sr), new_id(sr));
        assert!(one != two && one.len() == LENGTH && one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let dashed = format!("{}-{}", &one[..6], &one[6..]);
        assert!(is_ours(&dashed, sr) && !is_ours(&dashed, other));
    }
}
