//! What XenServer's storage manager leaves in a volume group, by the names of volumes: images, raw disks, journals of operations
//! that were interrupted, and what it keeps beside them.
//!
//! Nothing of it is ever changed or removed here. Used by `store`, and by `make` to see what stands in the way of taking it over.

use crate::marker::{self, CATALOG, XENSERVER};
use crate::report::{Active, Group, Volume};
use crate::space::MARGIN;
use crate::tags::PREFIX;
use catena_sr_api::{Error, RawDisk, Remark};
use catena_types::{Bytes, ImageId, Severity};

/// What the names of its VHDs begin with.
const VHD: &str = "VHD-";
/// What the names of its raw disks begin with.
const RAW: &str = "LV-";
/// The tag of a raw disk that is a base copy.
const HIDDEN: &str = "hidden";
/// The volume with its names of disks.
pub(crate) const NAMES: &str = "MGT";
/// What the name of the child ends in, and begins with, while the merge of a leaf is under way.
const OLD: &str = "VHD-OLD_";
/// What the name of a changed-block log ends in.
const LOG: &str = ".cbtlog";

/// What the names of journals begin with, and what was going on.
const JOURNALS: [(&str, Severity, &str); 7] = [
    ("jvhd_", Severity::Error, "a disk was being made larger: its image may be unreadable"),
    (
        "leaf_",
        Severity::Error,
        "a disk was being merged into its base copy: it may have another uuid, or be there twice",
    ),
    ("clone_", Severity::Error, "a snapshot was being taken: its disk may have the uuid of the base copy"),
    (
        "zero_",
        Severity::Warning,
        "the grown end of a raw disk was being zeroed: it may hold other data there",
    ),
    ("inflate_", Severity::Warning, "a volume was being made larger"),
    ("coalesce_", Severity::Warning, "base copies were being merged"),
    ("relink_", Severity::Warning, "images were getting another parent"),
];

/// Whether a volume of that name may hold an image.
pub(crate) fn is_image(name: &str) -> bool {
    name.starts_with(VHD) || raw_id(name).is_some()
}

/// What of a volume's name is its disk's.
pub(crate) fn disk_name(name: &str) -> &str {
    [VHD, RAW].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// The raw disk that a volume is.
pub(crate) fn raw_disk(name: &str, volume: &Volume) -> Option<RawDisk> {
    Some(RawDisk { id: raw_id(name)?, hidden: volume.tags.contains(HIDDEN) })
}

fn raw_id(name: &str) -> Option<ImageId> {
    name.strip_prefix(RAW)?.parse().ok()
}

/// What stands in the way of making an SR of the group for the host with this system id; for any other than its owner, if none.
pub(crate) fn obstacles(group: &Group, own: Option<&str>) -> Vec<Error> {
    let mut found = Vec::new();
    let (name, owner) = (&group.name, &group.system_id);
    if !owner.is_empty() && own != Some(owner) {
        found.push(Error::InUse(format!("the volume group {name} belongs to the host {owner}")));
    }
    if group.missing > 0 {
        found.push(Error::Unavailable(format!("devices of the volume group {name} are missing")));
    }
    // Of one that is not active lvm2 does not know what it could say.
    let is_open =
        |(_, volume): &(&String, &Volume)| volume.active != Active::No && (volume.open || volume.suspended);
    let open: Vec<&str> = group.volumes.iter().filter(is_open).map(|(name, _)| name.as_str()).collect();
    if !open.is_empty() {
        let text = format!("of the volume group {name} somebody has open: {}", open.join(", "));
        found.push(Error::InUse(text));
    }
    if group.volumes.get(CATALOG).is_some_and(|volume| !is_left(volume)) {
        found.push(Error::Foreign(format!("the volume group {name} has a volume {CATALOG} of its own")));
    }
    let short = short(group);
    if short.0 > 0 {
        found.push(Error::NoSpace(format!(
            "in the volume group {name} there is no room for the catalog and an image: {short} are missing"
        )));
    }
    found
}

/// Bytes that are missing for a catalog and the smallest image.
fn short(group: &Group) -> Bytes {
    let left = group.volumes.get(CATALOG).filter(|volume| is_left(volume)).map_or(0, |volume| volume.extents);
    let needed = catalog_extents(group) + MARGIN + 1;
    group.bytes(needed.saturating_sub(group.free + left))
}

/// Extents that the catalog of an SR in this group has.
pub(crate) fn catalog_extents(group: &Group) -> u64 {
    group.extents_of(crate::home::size(group.bytes(group.extents)))
}

/// Whether it is what an introduction has left that did not come to its end.
fn is_left(volume: &Volume) -> bool {
    volume.tags.iter().any(|tag| tag.starts_with(PREFIX))
}

/// What is remarkable in a group that is not an SR of ours, or was not until just now.
pub(crate) fn remarks(group: &Group) -> Vec<Remark> {
    if !group.name.starts_with(XENSERVER) {
        return Vec::new();
    }
    let mut remarks = Vec::new();
    let mut say = |severity, object: &str, problem: &str| {
        remarks.push(Remark { severity, object: object.to_owned(), problem: problem.to_owned() });
    };
    if matches!(marker::kind(group), marker::Kind::XenServer) {
        for error in obstacles(group, None) {
            say(Severity::Error, &group.name, &error.to_string());
        }
    }
    for (name, volume) in &group.volumes {
        let journal = JOURNALS.iter().find(|(prefix, ..)| name.starts_with(prefix));
        if let Some((_, severity, what)) = journal {
            let text = format!(
                "XenServer was interrupted: {what}; attach the SR there once more to have it finished"
            );
            say(*severity, name, &text);
        } else if name.starts_with(OLD) {
            say(
                Severity::Warning,
                name,
                "XenServer was interrupted while it merged this disk into its base copy",
            );
        } else if is_image(name) && !volume.plain {
            say(Severity::Error, name, "not a linear volume: never touched");
        } else if name.ends_with(LOG) {
            say(Severity::Info, name, "a log of changed blocks: kept, and not kept up to date");
        } else if name == NAMES {
            say(Severity::Info, name, "XenServer's names of disks: read, kept, and not kept up to date");
        } else if volume.active != Active::No && !is_image(name) && name != CATALOG {
            say(Severity::Info, name, "an active volume that is no image: left alone");
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_volumes_are() {
        let uuid = "0b1d9c44-0000-4000-8000-000000000001";
        assert!(is_image(&format!("VHD-{uuid}")) && is_image(&format!("LV-{uuid}")));
        assert!(!is_image("LV-home") && !is_image(NAMES) && !is_image(&format!("{uuid}{LOG}")));
        assert_eq!(disk_name(&format!("VHD-{uuid}")), uuid);
        assert_eq!(disk_name(&format!("LV-{uuid}")), uuid);
    }
}
