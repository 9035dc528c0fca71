//! The commands of lvm2, one function each: no caller passes options as text.
//!
//! Invariants: the host's configuration of lvm2 is neither used nor changed, nor its list of devices; a command sees the devices of
//! its scope and no others; every command acts as one host (system id). Its locks are the host's own, so that our commands and an
//! administrator's wait for each other. A command that fails may have done a part: who runs it reads the state anew.

use crate::command;
use crate::report::{self, COLUMNS, Free, Group, Physical, parse};
use crate::system_dir;
use catena_sr_api::Error;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// The Debian package of the commands.
const PACKAGE: &str = "lvm2";
/// Room for the description of a group on each of its devices: two of 8 MiB, for some ten thousand volumes.
const METADATA: &str = "16m";
/// The size of an extent, as XenServer has it.
pub(crate) const EXTENT: u64 = 4 << 20;
/// Its presence says that udev makes the nodes of devices.
const UDEV: &str = "/run/udev/control";

/// Which devices commands see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// These, by the paths of their nodes.
    Devices(Vec<String>),
    /// All of the host.
    All,
}

/// The commands, for one scope and one host.
#[derive(Debug, Clone)]
pub(crate) struct Lvm2 {
    /// The devices that commands see.
    pub(crate) scope: Scope,
    /// The host that commands act as; none only reads.
    pub(crate) system_id: Option<String>,
    /// A host whose groups may be changed too: it is being taken over from.
    pub(crate) taken_from: Option<String>,
}

/// Volumes of a group, and which of them are to be active for reading only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volumes<'a> {
    /// The group.
    pub(crate) group: &'a str,
    /// The volumes.
    pub(crate) names: &'a [&'a str],
    /// Those of the group whose kernel device must not be writable after the command.
    pub(crate) read_only: &'a [&'a str],
}

impl Lvm2 {
    /// Only reads, on these devices.
    pub(crate) const fn reading(scope: Scope) -> Self {
        Self { scope, system_id: None, taken_from: None }
    }

    /// The groups of the scope, or the one of this name.
    pub(crate) fn report(&self, group: Option<&str>) -> Result<Vec<Group>, Error> {
        let mut arguments: Vec<String> =
            ["--foreign", "--reportformat", "json", "--units", "b", "--nosuffix"].map(str::to_owned).into();
        for (part, columns) in COLUMNS {
            arguments.extend(["--configreport", part, "-o", columns].map(str::to_owned));
        }
        // Without a name it would have the lock of all groups of the host for as long as one of these devices hangs, and nobody could
        // make a group on another one. Who then changes what was found reads it again by its name.
        arguments.push(group.unwrap_or("--nolocking").to_owned());
        parse(&self.run("fullreport", &arguments, &[])?)
    }

    /// The physical volumes of the scope, in groups or not.
    pub(crate) fn physical(&self) -> Result<Vec<Physical>, Error> {
        let arguments = ["--foreign", "--reportformat", "json", "-o", report::PHYSICAL].map(str::to_owned);
        report::parse_physical(&self.run("pvs", &arguments, &[])?)
    }

    /// The free ranges of the group's devices.
    pub(crate) fn free(&self, group: &str) -> Result<Vec<Free>, Error> {
        let options = ["--segments", "--reportformat", "json", "--units", "b", "--nosuffix", "-o"];
        let arguments = [&options[..], &[report::RANGES]].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        report::parse_free(&self.run("pvs", &arguments, &[])?, group)
    }

    /// Makes a device that holds nothing a physical volume with this id.
    pub(crate) fn make_physical_with(&self, device: &str, id: &str) -> Result<(), Error> {
        let options = ["--metadatasize", METADATA, "--zero", "y", "--norestorefile", "--uuid", id, device];
        self.change("pvcreate", &options.map(str::to_owned), &[])
    }

    /// Adds physical volumes that are in no group.
    pub(crate) fn extend_group(&self, name: &str, devices: &[String]) -> Result<(), Error> {
        self.change("vgextend", &[&[name.to_owned()], devices].concat(), &[])
    }

    /// Takes up what devices have grown by.
    pub(crate) fn resize_physical(&self, devices: &[String]) -> Result<(), Error> {
        self.change("pvresize", devices, &[])
    }

    /// Takes that back, from devices that are in no group.
    pub(crate) fn unmake_physical(&self, devices: &[String]) -> Result<(), Error> {
        self.change("pvremove", devices, &[])
    }

    /// Makes a group of physical volumes, which belongs to the host.
    pub(crate) fn make_group(
        &self,
        name: &str,
        devices: &[String],
        tags: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let mut arguments = vec!["--physicalextentsize".to_owned(), format!("{EXTENT}b")];
        arguments.extend(each("--addtag", tags));
        arguments.push(name.to_owned());
        self.change("vgcreate", &[&arguments[..], devices].concat(), &[])
    }

    /// Removes a group with all that is in it.
    pub(crate) fn remove_group(&self, name: &str) -> Result<(), Error> {
        self.change("vgremove", &["--force".to_owned(), name.to_owned()], &[])
    }

    /// Adds and removes tags of a group, in one commit.
    pub(crate) fn tag_group(
        &self,
        name: &str,
        add: &BTreeSet<String>,
        remove: &BTreeSet<String>,
    ) -> Result<(), Error> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let mut arguments = each("--deltag", remove);
        arguments.extend(each("--addtag", add));
        arguments.push(name.to_owned());
        self.change("vgchange", &arguments, &[])
    }

    /// Gives a group to a host; to none with an empty text.
    pub(crate) fn give_group(&self, name: &str, system_id: &str) -> Result<(), Error> {
        self.change("vgchange", &["--systemid", system_id, name].map(str::to_owned), &[])
    }

    /// Makes a volume, active for writing; its first 4 KiB are zero, so that nothing is found in it that was there before.
    pub(crate) fn make_volume(
        &self,
        group: &str,
        name: &str,
        extents: u64,
        tags: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let extents = extents.to_string();
        let arguments = ["-Wn", "-Zy", "-ay", "-l", &extents, "-n", name].map(str::to_owned);
        self.change("lvcreate", &[&arguments[..], &each("--addtag", tags), &[group.to_owned()]].concat(), &[])
    }

    /// Gives a volume another name, active or not.
    pub(crate) fn rename(&self, group: &str, from: &str, to: &str) -> Result<(), Error> {
        self.change("lvrename", &[group, from, to].map(str::to_owned), &[])
    }

    /// Makes a volume larger, active or not.
    pub(crate) fn extend(&self, volume: Volumes<'_>, extents: u64) -> Result<(), Error> {
        self.resize("lvextend", volume, extents)
    }

    /// Makes a volume smaller, active or not; what is in its end is gone.
    pub(crate) fn reduce(&self, volume: Volumes<'_>, extents: u64) -> Result<(), Error> {
        self.resize("lvreduce", volume, extents)
    }

    fn resize(&self, command: &'static str, volume: Volumes<'_>, extents: u64) -> Result<(), Error> {
        let mut arguments = vec!["-f".to_owned(), "-l".to_owned(), extents.to_string()];
        arguments.extend(volume.paths());
        self.change(command, &arguments, &volume.read_only_paths())
    }

    /// Removes volumes that nobody has open.
    pub(crate) fn remove(&self, volumes: Volumes<'_>) -> Result<(), Error> {
        self.change("lvremove", &[vec!["-f".to_owned()], volumes.paths()].concat(), &[])
    }

    /// Makes volumes that are not active so.
    pub(crate) fn activate(&self, volumes: Volumes<'_>) -> Result<(), Error> {
        let arguments = [vec!["-ay".to_owned()], volumes.paths()].concat();
        self.change("lvchange", &arguments, &volumes.read_only_paths())
    }

    /// Loads the kernel devices of active volumes anew: what writing is allowed, and what a killed command left undone.
    pub(crate) fn refresh(&self, volumes: Volumes<'_>) -> Result<(), Error> {
        let arguments = [vec!["--refresh".to_owned()], volumes.paths()].concat();
        self.change("lvchange", &arguments, &volumes.read_only_paths())
    }

    /// Makes active volumes inactive. Fails, after the others are, if somebody has one of them open.
    pub(crate) fn deactivate(&self, volumes: Volumes<'_>) -> Result<(), Error> {
        self.change("lvchange", &[vec!["-an".to_owned()], volumes.paths()].concat(), &[])
    }

    /// Adds and removes tags of a volume, in one commit.
    pub(crate) fn tag(
        &self,
        volume: Volumes<'_>,
        add: &BTreeSet<String>,
        remove: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let arguments = [each("--deltag", remove), each("--addtag", add), volume.paths()].concat();
        self.change("lvchange", &arguments, &volume.read_only_paths())
    }

    /// A command that asks nobody and says nothing.
    fn change(&self, command: &'static str, arguments: &[String], read_only: &[String]) -> Result<(), Error> {
        let quiet = ["-qq".to_owned(), "--yes".to_owned()];
        self.run(command, &[&quiet[..], arguments].concat(), read_only).map(drop)
    }

    fn run(
        &self,
        command: &'static str,
        arguments: &[String],
        read_only: &[String],
    ) -> Result<Vec<u8>, Error> {
        let settings = [command.to_owned(), "--config".to_owned(), self.settings(read_only)];
        // No configuration of the host, and no words about descriptors that others left open.
        let environment = [("LVM_SYSTEM_DIR", system_dir::get()), ("LVM_SUPPRESS_FD_WARNINGS", "1")];
        let ran = command::run("lvm", PACKAGE, &[&settings[..], arguments].concat(), &environment)?;
        if ran.code == Some(0) { Ok(ran.out) } else { Err(failed(command, ran.code, &ran.complaint)) }
    }

    /// The configuration of a command.
    fn settings(&self, read_only: &[String]) -> String {
        let udev = u8::from(Path::new(UDEV).exists());
        let filter = filter(&self.scope);
        let mut text = format!(
            "devices{{use_devicesfile=0 scan=[\"/dev\"] filter={filter} global_filter={filter} hints=\"none\" \
             obtain_device_list_from_udev=0 external_device_info_source=\"none\" issue_discards=0}} \
             activation{{udev_sync={udev} udev_rules={udev} verify_udev_operations=0 monitoring=0 retry_deactivation=0"
        );
        if !read_only.is_empty() {
            // Writing to a text does not fail.
            let _ = write!(text, " read_only_volume_list={read_only:?}");
        }
        text.push_str(
            "} backup{backup=0 archive=0} log{syslog=0} report{time_format=\"%s\"} \
             global{event_activation=0 use_lvmpolld=0 use_lvmlockd=0 notify_dbus=0 wait_for_locks=1",
        );
        if let Some(own) = &self.system_id {
            let others: Vec<&String> = self.taken_from.iter().collect();
            let _ = write!(
                text,
                " system_id_source=\"lvmlocal\"}} local{{system_id={own:?} extra_system_ids={others:?}"
            );
        }
        text.push('}');
        text
    }
}

impl Volumes<'_> {
    fn paths(&self) -> Vec<String> {
        self.names.iter().map(|name| format!("{}/{name}", self.group)).collect()
    }

    fn read_only_paths(&self) -> Vec<String> {
        self.read_only.iter().map(|name| format!("{}/{name}", self.group)).collect()
    }
}

/// Each text behind the same option.
fn each(option: &str, texts: &BTreeSet<String>) -> Vec<String> {
    texts.iter().flat_map(|text| [option.to_owned(), text.clone()]).collect()
}

/// lvm2's list of patterns: accept the devices of the scope, reject the others.
fn filter(scope: &Scope) -> String {
    match scope {
        Scope::All => "[\"a|.*|\"]".to_owned(),
        Scope::Devices(devices) => {
            let accept = devices.iter().map(|device| format!("\"a|^{}$|\",", literal(device)));
            format!("[{}\"r|.*|\"]", accept.collect::<String>())
        }
    }
}

/// A pattern that matches this path alone; `contents` refuses paths with characters beyond these.
fn literal(path: &str) -> String {
    let one = |c: char| {
        if c.is_ascii_alphanumeric() || "/_-:".contains(c) { c.to_string() } else { format!("[{c}]") }
    };
    path.chars().map(one).collect()
}

fn failed(command: &str, code: Option<i32>, complaint: &str) -> Error {
    // That is as it was asked for, and said on every occasion.
    let lines = complaint
        .split("; ")
        .filter(|line| !line.ends_with("NOT be backed up") && !line.ends_with("not zeroed."));
    let complaint = &lines.collect::<Vec<_>>().join("; ");
    let said = |words: &[&str]| words.iter().any(|word| complaint.contains(word));
    let text = match complaint.as_str() {
        "" => format!("{command}: ended with {code:?}"),
        _ => format!("{command}: {complaint}"),
    };
    if said(&["insufficient free space", "nsufficient suitable", "not enough free", "metadata too large"]) {
        return Error::NoSpace(text);
    }
    if said(&["already exists in volume group"]) {
        return Error::Exists(text);
    }
    if said(&["in use.", "system ID", "contains a filesystem in use", "exclusively"]) {
        return Error::InUse(text);
    }
    Error::Io { context: text, source: io::Error::other(format!("exit code {}", code.unwrap_or(-1))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_of_one_path() {
        let scope = Scope::Devices(vec!["/dev/sda1".to_owned(), "/dev/mapper/a.b+c".to_owned()]);
        assert_eq!(filter(&scope), r#"["a|^/dev/sda1$|","a|^/dev/mapper/a[.]b[+]c$|","r|.*|"]"#);
    }

    #[test]
    fn what_lvm2_says_of_a_failure_is_kept_and_told_apart() {
        let full = "Volume group \"v\" has insufficient free space (1 extents): 2 required.";
        assert!(matches!(failed("lvcreate", Some(5), full), Error::NoSpace(text) if text.contains(full)));
        let there = "Logical Volume \"a\" already exists in volume group \"v\"";
        assert!(matches!(failed("lvcreate", Some(5), there), Error::Exists(_)));
        let open = "Logical volume v/a in use.";
        assert!(matches!(failed("lvchange", Some(5), open), Error::InUse(_)));
        assert!(matches!(failed("lvs", None, ""), Error::Io { .. }));
    }
}
