//! What makes a volume group an SR, and whose: tags of the group.
//!
//! ```text
//! none -> group with catena.sr -> catalog made -> catena.layout and the rest in one change      create
//! all but catena.sr gone in one change -> catalog gone -> none                                  destroy
//! ```
//!
//! Invariant: all that the marker says changes in one commit of lvm2, so a group is an SR or it is not. A group of our name that has
//! `catena.sr` alone and no volume but the catalog is what a crash left: it counts as empty. The system id of the group follows
//! the owner and keeps the tools of other hosts away. Used by `survey` and `home`.

use crate::report::Group;
use crate::tags;
use catena_sr_api::{HostIdentity, Labels, SrIdentity};
use catena_types::SrUuid;
use std::collections::BTreeSet;

/// The volume that holds the catalog.
pub(crate) const CATALOG: &str = "catalog";
/// What the names of groups made here begin with.
const GROUP: &str = "catena-";
/// What the names of XenServer's groups begin with.
pub(crate) const XENSERVER: &str = "VG_XenStorage-";
/// The version of the layout that this program knows.
const LAYOUT: &str = "1";
/// The most characters of a system id that are taken from the name of a host; lvm2's limit is 128.
const SYSTEM_ID: usize = 100;

/// What a group is to this program.
#[derive(Debug)]
pub(crate) enum Kind {
    /// An SR.
    Sr(SrIdentity),
    /// What a crash in the middle of making or destroying one left; there is nothing in it.
    Unfinished,
    /// Another manager's, whose volumes may be images.
    XenServer,
    /// Somebody else's, or of another version; which.
    Foreign(String),
}

/// The name of the group of an SR made here.
pub(crate) fn group_name(sr: SrUuid) -> String {
    format!("{GROUP}{sr}")
}

/// What the group is.
pub(crate) fn kind(group: &Group) -> Kind {
    let said = tags::read(&group.tags);
    let text = |name: &str| said.get(name).cloned();
    let uuid = text("sr").and_then(|sr| sr.parse::<SrUuid>().ok());
    match (uuid, said.get("layout")) {
        (Some(uuid), Some(layout)) if layout == LAYOUT => Kind::Sr(SrIdentity {
            uuid,
            name_label: text("name").unwrap_or_default(),
            owner: HostIdentity {
                host: text("host").unwrap_or_default(),
                boot: text("boot").unwrap_or_default(),
            },
        }),
        (_, Some(layout)) => Kind::Foreign(format!(
            "the volume group {} with the layout {layout} of another version of this program",
            group.name
        )),
        (Some(uuid), None) if group.name == group_name(uuid) && is_bare(group) => Kind::Unfinished,
        _ if group.name.starts_with(XENSERVER) => Kind::XenServer,
        _ => Kind::Foreign(format!("the volume group {}", group.name)),
    }
}

fn is_bare(group: &Group) -> bool {
    group.volumes.keys().all(|name| name == CATALOG)
}

/// The tag that a group has from its beginning to its end.
pub(crate) fn first_tag(sr: SrUuid) -> BTreeSet<String> {
    tags::write(&Labels::from([("sr".to_owned(), sr.to_string())]))
}

/// All tags of an SR.
pub(crate) fn all_tags(identity: &SrIdentity) -> BTreeSet<String> {
    let pairs = [
        ("sr", identity.uuid.to_string()),
        ("layout", LAYOUT.to_owned()),
        ("name", identity.name_label.clone()),
        ("host", identity.owner.host.clone()),
        ("boot", identity.owner.boot.clone()),
    ];
    tags::write(&pairs.into_iter().map(|(name, text)| (name.to_owned(), text)).collect())
}

/// The system id of a host: what lvm2 takes of its name. The marker has the whole of it.
pub(crate) fn system_id(host: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    format!("{GROUP}{}", host.chars().take(SYSTEM_ID).map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Active, Volume};
    use catena_types::Bytes;
    use std::collections::BTreeMap;

    fn group(name: &str, tags: BTreeSet<String>, volumes: &[&str]) -> Group {
        let volume = Volume {
            extents: 1,
            tags: BTreeSet::new(),
            created: 1,
            plain: true,
            active: Active::No,
            open: false,
            suspended: false,
        };
        Group {
            name: name.to_owned(),
            uuid: "a".to_owned(),
            system_id: String::new(),
            tags,
            extent: Bytes(4 << 20),
            extents: 10,
            free: 1,
            missing: 0,
            devices: Vec::new(),
            volumes: volumes
                .iter()
                .map(|name| ((*name).to_owned(), volume.clone()))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn a_group_is_an_sr_from_one_change_to_another() {
        let owner = HostIdentity { host: "host \u{fc}".to_owned(), boot: "b".to_owned() };
        let identity = SrIdentity { uuid: SrUuid::random(), name_label: "fast, \"one\"".to_owned(), owner };
        let name = group_name(identity.uuid);
        let full = group(&name, all_tags(&identity), &[CATALOG, "vhd-1"]);
        assert!(matches!(kind(&full), Kind::Sr(found) if found == identity));
        let renamed = group("other", all_tags(&identity), &[]);
        assert!(matches!(kind(&renamed), Kind::Sr(found) if found == identity));
        let begun = first_tag(identity.uuid);
        assert!(matches!(kind(&group(&name, begun.clone(), &[CATALOG])), Kind::Unfinished));
        assert!(matches!(kind(&group(&name, begun.clone(), &[])), Kind::Unfinished));
        assert!(matches!(kind(&group(&name, begun.clone(), &["vhd-1"])), Kind::Foreign(_)), "not empty");
        assert!(matches!(kind(&group("other", begun, &[])), Kind::Foreign(_)), "not our name");
        assert!(matches!(kind(&group(&name, BTreeSet::new(), &[])), Kind::Foreign(_)), "no tag");
        assert!(matches!(kind(&group("VG_XenStorage-1", BTreeSet::new(), &[])), Kind::XenServer));
        let newer = BTreeSet::from(["catena.layout=2".to_owned(), format!("catena.sr={}", identity.uuid)]);
        assert!(matches!(kind(&group(&name, newer, &[])), Kind::Foreign(what) if what.contains("version")));
    }

    #[test]
    fn a_system_id_is_of_characters_that_lvm2_takes() {
        assert_eq!(system_id("host-1.a b\u{fc}"), "catena-host-1.a_b_");
        assert!(system_id(&"x".repeat(500)).len() < 128);
    }
}
