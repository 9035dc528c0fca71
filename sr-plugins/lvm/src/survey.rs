//! What devices hold, before they are an SR or to find that they are one. Changes nothing.
//!
//! Signatures are read by `blkid`, volume groups by lvm2. Used by the plugin to probe, and to decide whether an SR may be made.

use crate::command;
use crate::location::is_in_use;
use crate::lvm2::{Lvm2, Scope};
use crate::marker::{self, Kind};
use crate::report::Group;
use catena_sr_api::{Error, Probe};

/// What `blkid` calls a physical volume.
pub(crate) const PHYSICAL: &str = "LVM2_member";
/// `blkid`'s exit code where there is nothing.
const NOTHING: i32 = 2;
/// And where several things are found.
const AMBIGUOUS: i32 = 8;

/// What devices hold together.
#[derive(Debug)]
pub(crate) enum Found {
    /// What a probe says.
    Said(Probe),
    /// What a crash left of an SR that was being made or destroyed, in this group.
    Remains(Group),
    /// Nothing but physical volumes in no group, with these ids.
    Loose(Vec<String>),
}

/// Looks at devices.
pub(crate) fn survey(devices: &[String]) -> Result<Found, Error> {
    let mut empty = Vec::new();
    for device in devices {
        match signature(device)? {
            Some(what) if what == PHYSICAL => {}
            Some(what) => return Ok(foreign(format!("{device}: {what}"))),
            None if is_in_use(device)? => return Ok(foreign(format!("{device} is in use"))),
            None => empty.push(device),
        }
    }
    if empty.len() == devices.len() {
        return Ok(Found::Said(Probe::Empty));
    }
    let lvm = Lvm2::reading(Scope::Devices(devices.to_vec()));
    let mut groups = lvm.report(None)?;
    let Some(group) = groups.pop() else {
        return Ok(Found::Loose(lvm.physical()?.into_iter().map(|one| one.id).collect()));
    };
    if !groups.is_empty() {
        return Ok(foreign("LVM physical volumes of several volume groups".to_owned()));
    }
    Ok(match marker::kind(&group) {
        Kind::Sr(identity) => Found::Said(Probe::Ours(identity)),
        Kind::Unfinished => Found::Remains(group),
        Kind::XenServer if empty.is_empty() => Found::Said(Probe::Images(crate::images(&group))),
        Kind::XenServer => foreign(format!("the volume group {}, and an empty device", group.name)),
        Kind::Foreign(what) => foreign(what),
    })
}

fn foreign(what: String) -> Found {
    Found::Said(Probe::Foreign(what))
}

/// What a device holds, as people say it; `None` for nothing.
pub(crate) fn signature(device: &str) -> Result<Option<String>, Error> {
    let arguments = ["--probe", "--output", "export", device].map(str::to_owned);
    let ran = command::run("blkid", "util-linux", &arguments, &[])?;
    let text = String::from_utf8_lossy(&ran.out);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match ran.code {
        Some(NOTHING) => Ok(None),
        Some(AMBIGUOUS) => Ok(Some("signatures of several kinds".to_owned())),
        Some(0) => Ok(Some(match (value("TYPE"), value("PTTYPE")) {
            (Some(kind), _) if kind == PHYSICAL => kind.to_owned(),
            (Some(kind), _) if value("USAGE") == Some("filesystem") => format!("a file system ({kind})"),
            (Some(kind), _) => format!("data of the kind {kind}"),
            (None, Some(kind)) => format!("a partition table ({kind})"),
            // Only facts about the device's shape, such as its sectors.
            (None, None) => return Ok(None),
        })),
        code => {
            let why = format!("exit code {code:?}: {}", ran.complaint);
            Err(Error::io(format!("reading signatures of {device}"))(std::io::Error::other(why)))
        }
    }
}
