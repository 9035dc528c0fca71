//! The names that XenServer keeps of the disks of an SR, from its volume `MGT`.
//!
//! ```text
//! sector 0  XSSM:<length in bytes, of all of this>:1:2     1-3  of the SR
//! then two sectors for each disk:  <vdi><name_label>..</name_label>..    <uuid>..</uuid>..</vdi>     padded with spaces
//! ```
//!
//! Nothing in it is checksummed, so what makes no sense says nothing. Pure. Used by `store`.

use catena_sr_api::Labels;
use catena_types::VdiUuid;
use std::collections::BTreeMap;

/// The most bytes that are looked at: what the volume has.
pub(crate) const MOST: usize = 4 << 20;
/// Where the first disk is.
const FIRST: usize = 4 * 512;
/// Bytes of a disk.
const DISK: usize = 2 * 512;

/// What is said of disks, as labels of ours.
pub(crate) fn parse(bytes: &[u8]) -> BTreeMap<VdiUuid, Labels> {
    let header = String::from_utf8_lossy(bytes.get(..512).unwrap_or_default()).into_owned();
    let length = header.split(':').nth(1).and_then(|length| length.trim().parse::<usize>().ok());
    let end = length.unwrap_or(0).min(bytes.len());
    let disks = bytes.get(FIRST..end).unwrap_or_default().chunks_exact(DISK);
    disks.filter_map(|disk| of_disk(&String::from_utf8_lossy(disk))).collect()
}

fn of_disk(text: &str) -> Option<(VdiUuid, Labels)> {
    let value = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(unescape(rest.split_once(&format!("</{tag}>"))?.0))
    };
    let uuid = value("uuid")?.parse().ok()?;
    if value("deleted").is_none_or(|deleted| deleted == "1") {
        return None;
    }
    let is_snapshot = value("is_a_snapshot").is_some_and(|text| text == "1");
    let mut labels = Labels::new();
    let mut put = |name: &str, text: Option<String>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            labels.insert(name.to_owned(), text);
        }
    };
    put("label", value("name_label"));
    put("description", value("name_description"));
    put("kind", Some(if is_snapshot { "snapshot" } else { "disk" }.to_owned()));
    put("snapshot_of", value("snapshot_of").filter(|_| is_snapshot));
    put("created", value("snapshot_time").filter(|_| is_snapshot).and_then(|time| full_date(&time)));
    Some((uuid, labels))
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// `20260102T03:04:05Z` with the dashes that a date has elsewhere.
fn full_date(time: &str) -> Option<String> {
    let (date, clock) = time.split_once('T')?;
    let (year, month, day) = (date.get(..4)?, date.get(4..6)?, date.get(6..8)?);
    Some(format!("{year}-{month}-{day}T{clock}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(text: &str) -> Vec<u8> {
        format!("{text:<512}").into_bytes()
    }

    fn disk(names: &str, rest: &str) -> Vec<u8> {
        [sector(&format!("<vdi>{names}")), sector(&format!("{rest}</vdi>"))].concat()
    }

    #[test]
    fn names_of_disks_that_are_there_are_read() {
        let uuid = |n: u8| VdiUuid::from_bytes([n; 16]);
        let name =
            |text: &str| format!("<name_label>{text}</name_label><name_description></name_description>");
        let of = |n: u8, more: &str| format!("<uuid>{}</uuid>{more}", uuid(n));
        let body = [
            disk(
                &name("web &lt;1&gt; &amp;amp;"),
                &of(1, "<is_a_snapshot>0</is_a_snapshot><deleted>0</deleted>"),
            ),
            disk(
                &name("before"),
                &of(
                    2,
                    &format!(
                        "<is_a_snapshot>1</is_a_snapshot><snapshot_of>{}</snapshot_of>\
                         <snapshot_time>20260102T03:04:05Z</snapshot_time><deleted>0</deleted>",
                        uuid(1)
                    ),
                ),
            ),
            disk(&name("gone"), &of(3, "<deleted>1</deleted>")),
            disk(&name("?"), "<uuid>?</uuid><deleted>0</deleted>"),
        ]
        .concat();
        let head = |length: usize| [sector(&format!("XSSM:{length:<10}:1:2")), vec![b' '; 3 * 512]].concat();
        let all = [head(FIRST + body.len()), body.clone(), vec![0; 4096]].concat();
        let found = parse(&all);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [uuid(1), uuid(2)]);
        assert_eq!(found[&uuid(1)]["label"], "web <1> &amp;");
        let snapshot = &found[&uuid(2)];
        assert_eq!(snapshot["created"], "2026-01-02T03:04:05Z");
        assert!(snapshot["kind"] == "snapshot" && snapshot["snapshot_of"] == uuid(1).to_string());
        assert!(!snapshot.contains_key("description"));
        assert_eq!(parse(&[head(FIRST + DISK), body].concat()).len(), 1, "only as far as it says");
        for strange in [&b""[..], b"XSSM", &[0xFF; 5000]] {
            assert!(parse(strange).is_empty());
        }
    }
}
