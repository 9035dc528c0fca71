//! What lvm2 says of volume groups, read from its JSON into plain values.
//!
//! All numbers come as texts, in bytes. What a report lacks is an error, never a guess. Used by `lvm2`, which asks, and by those
//! who look at the answer.

use catena_sr_api::Error;
use catena_types::Bytes;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: String,
    /// Its id, as lvm2 writes it.
    pub(crate) uuid: String,
    /// The host that it belongs to, as lvm2 knows it; empty for none.
    pub(crate) system_id: String,
    /// Its tags.
    pub(crate) tags: BTreeSet<String>,
    /// The size of its extents.
    pub(crate) extent: Bytes,
    /// How many it has.
    pub(crate) extents: u64,
    /// How many nothing has taken.
    pub(crate) free: u64,
    /// How many of its physical volumes were not found.
    pub(crate) missing: u64,
    /// Its physical volumes: paths of devices.
    pub(crate) devices: Vec<String>,
    /// Its logical volumes by name; internal ones are left out.
    pub(crate) volumes: BTreeMap<String, Volume>,
}

/// Whether a volume can be opened, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Active {
    /// Not at all.
    No,
    /// For reading.
    ReadOnly,
    /// For reading and writing.
    ReadWrite,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Its size in extents of the group.
    pub(crate) extents: u64,
    /// Its tags.
    pub(crate) tags: BTreeSet<String>,
    /// When it was made, in seconds since 1970.
    pub(crate) created: i64,
    /// Whether it is a plain range of extents: everything else is none of ours.
    pub(crate) plain: bool,
    /// Whether it can be opened.
    pub(crate) active: Active,
    /// Whether somebody has it open.
    pub(crate) open: bool,
    /// Whether the kernel holds back everything that is asked of it: a command that changed it was killed.
    pub(crate) suspended: bool,
}

/// A physical volume, in a group or in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Physical {
    /// The path of its device.
    pub(crate) device: String,
    /// Its id, as lvm2 writes it.
    pub(crate) id: String,
    /// Its group; empty for none.
    pub(crate) group: String,
}

/// A free range of a device, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Free {
    /// The path of the device.
    pub(crate) device: String,
    /// Where it begins.
    pub(crate) start: u64,
    /// Where it ends.
    pub(crate) end: u64,
}

/// What is asked of physical volumes.
pub(crate) const PHYSICAL: &str = "pv_name,pv_uuid,vg_name";
/// What is asked of their ranges.
pub(crate) const RANGES: &str = "pv_name,vg_name,vg_extent_size,pe_start,pvseg_start,pvseg_size,segtype";

/// The columns that are asked for, by the part of the report.
pub(crate) const COLUMNS: [(&str, &str); 5] = [
    (
        "vg",
        "vg_name,vg_uuid,vg_systemid,vg_tags,vg_extent_size,vg_extent_count,vg_free_count,vg_missing_pv_count",
    ),
    ("pv", "pv_name"),
    ("lv", "lv_name,lv_size,lv_tags,lv_time,lv_layout,lv_active,lv_permissions,lv_suspended,lv_device_open"),
    ("seg", "seg_start"),
    ("pvseg", "pvseg_start"),
];

#[derive(Deserialize)]
struct RawReport {
    report: Vec<RawGroup>,
}

#[derive(Deserialize)]
struct RawGroup {
    #[serde(default)]
    vg: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    pv: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    lv: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    pvseg: Vec<BTreeMap<String, String>>,
}

/// The groups in the output of `lvm fullreport`.
pub(crate) fn parse(output: &[u8]) -> Result<Vec<Group>, Error> {
    read(output)?.report.iter().filter(|raw| !raw.vg.is_empty()).map(group).collect()
}

/// The physical volumes in the output of `lvm pvs`.
pub(crate) fn parse_physical(output: &[u8]) -> Result<Vec<Physical>, Error> {
    let rows = read(output)?.report.into_iter().flat_map(|raw| raw.pv);
    let physical = rows.map(|row| {
        let said = |name: &str| text(&row, name).map(str::to_owned);
        Ok(Physical { device: said("pv_name")?, id: said("pv_uuid")?, group: said("vg_name")? })
    });
    physical.collect()
}

/// The free ranges of a group's devices in the output of `lvm pvs --segments`, in order.
pub(crate) fn parse_free(output: &[u8], group: &str) -> Result<Vec<Free>, Error> {
    let mut free = Vec::new();
    for row in read(output)?.report.iter().flat_map(|raw| &raw.pvseg) {
        if text(row, "segtype")? != "free" || text(row, "vg_name")? != group {
            continue;
        }
        let extent: u64 = number(row, "vg_extent_size")?;
        let (first, count): (u64, u64) = (number(row, "pvseg_start")?, number(row, "pvseg_size")?);
        let at = |extents: u64| extents.checked_mul(extent)?.checked_add(number(row, "pe_start").ok()?);
        let (Some(start), Some(end)) = (at(first), first.checked_add(count).and_then(at)) else {
            return Err(strange(format!("{count} free extents from {first} on")));
        };
        if start < end {
            free.push(Free { device: text(row, "pv_name")?.to_owned(), start, end });
        }
    }
    free.sort();
    Ok(free)
}

fn read(output: &[u8]) -> Result<RawReport, Error> {
    serde_json::from_slice(output).map_err(|error| strange(format!("it is no report: {error}")))
}

fn group(raw: &RawGroup) -> Result<Group, Error> {
    let vg = raw.vg.first().ok_or_else(|| strange("no group".to_owned()))?;
    let extent: u64 = number(vg, "vg_extent_size")?;
    if extent == 0 {
        return Err(strange("extents of no size".to_owned()));
    }
    let volumes = raw.lv.iter().map(|lv| Ok((text(lv, "lv_name")?.to_owned(), volume(lv, extent)?)));
    Ok(Group {
        name: text(vg, "vg_name")?.to_owned(),
        uuid: text(vg, "vg_uuid")?.to_owned(),
        system_id: text(vg, "vg_systemid")?.to_owned(),
        tags: tags(text(vg, "vg_tags")?),
        extent: Bytes(extent),
        extents: number(vg, "vg_extent_count")?,
        free: number(vg, "vg_free_count")?,
        missing: number(vg, "vg_missing_pv_count")?,
        devices: raw.pv.iter().map(|pv| text(pv, "pv_name").map(str::to_owned)).collect::<Result<_, _>>()?,
        volumes: volumes.collect::<Result<_, Error>>()?,
    })
}

fn volume(lv: &BTreeMap<String, String>, extent: u64) -> Result<Volume, Error> {
    let active = match (text(lv, "lv_active")?, text(lv, "lv_permissions")?) {
        ("", _) => Active::No,
        (_, "writeable") => Active::ReadWrite,
        _ => Active::ReadOnly,
    };
    Ok(Volume {
        extents: number::<u64>(lv, "lv_size")? / extent,
        tags: tags(text(lv, "lv_tags")?),
        created: number(lv, "lv_time")?,
        plain: text(lv, "lv_layout")? == "linear",
        active,
        open: text(lv, "lv_device_open")? == "open",
        // Of one that is not active lvm2 says "unknown".
        suspended: text(lv, "lv_suspended")? == "suspended",
    })
}

fn text<'a>(row: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, Error> {
    row.get(name).map(String::as_str).ok_or_else(|| strange(format!("{name} is missing")))
}

fn number<T: std::str::FromStr>(row: &BTreeMap<String, String>, name: &str) -> Result<T, Error> {
    let text = text(row, name)?;
    text.trim().parse().map_err(|_| strange(format!("{name} is {text:?}")))
}

fn tags(text: &str) -> BTreeSet<String> {
    text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

fn strange(why: String) -> Error {
    Error::io("reading what lvm2 reports")(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(device: &str, group: &str, start: &str, size: &str, kind: &str) -> String {
        format!(
            r#"{{"pv_name":"{device}","vg_name":"{group}","vg_extent_size":"4194304","pe_start":"17825792",
                 "pvseg_start":"{start}","pvseg_size":"{size}","segtype":"{kind}"}}"#
        )
    }

    fn report(rows: &[String]) -> Vec<u8> {
        format!(r#"{{"report":[{{"pvseg":[{}]}}]}}"#, rows.join(",")).into_bytes()
    }

    #[test]
    fn only_what_nothing_has_taken_is_free() {
        let rows = [
            segment("/dev/b", "ours", "0", "2", "free"),
            segment("/dev/a", "ours", "0", "3", "linear"),
            segment("/dev/a", "ours", "3", "1", "free"),
            segment("/dev/a", "ours", "4", "0", "free"),
            segment("/dev/c", "theirs", "0", "9", "free"),
            segment("/dev/d", "", "0", "0", "free"),
        ];
        let extent = 4 << 20;
        let free = |device: &str, start: u64, end: u64| Free {
            device: device.to_owned(),
            start: 17_825_792 + start * extent,
            end: 17_825_792 + end * extent,
        };
        assert_eq!(parse_free(&report(&rows), "ours").unwrap(), [free("/dev/a", 3, 4), free("/dev/b", 0, 2)]);
    }

    #[test]
    fn a_range_that_makes_no_sense_is_an_error() {
        for (start, size) in [("x", "1"), ("-1", "1"), ("1", ""), ("18446744073709551615", "1")] {
            let rows = [segment("/dev/a", "ours", start, size, "free")];
            assert!(parse_free(&report(&rows), "ours").is_err(), "{start} {size}");
        }
    }
}
