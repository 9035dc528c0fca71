//! Limits of a disk: free keys of a VDI whose names begin with `qos.`, so that they are set, shown, copied and kept as all free
//! keys are. What they mean is decided here; the process that serves the disk keeps to it.
//!
//! The catalog is what counts: a process is told when it is taken up and when a key changes, and one that cannot be told is asked
//! anew what it serves before anything else, which tells it again.

use crate::owner::Owner;
use crate::serving::Served;
use catena_control::{Ask, Limits};
use catena_types::{Bytes, Failure, IoClass, VdiUuid};
use std::collections::BTreeMap;
use std::time::Duration;

/// What the names of these keys begin with.
const PREFIX: &str = "qos.";
/// The class of a process that was given none.
const USUAL: IoClass = IoClass::BestEffort(4);
/// The rest before a process is taken up again that could not be told.
const REST: Duration = Duration::from_secs(1);

/// The limits that a VDI's keys say. A value that cannot be read, which a newer program may have written, counts as not set.
pub(crate) fn limits(keys: &BTreeMap<String, String>) -> Limits {
    let mut limits = Limits::default();
    for (key, text) in keys {
        // The default stays.
        let _ = set(&mut limits, key, text);
    }
    limits
}

/// Whether a key may have a value: any, where it is not one of ours. The error says what may be set.
pub(crate) fn check(key: &str, text: &str) -> Result<(), String> {
    set(&mut Limits::default(), key, text)
}

fn set(limits: &mut Limits, key: &str, text: &str) -> Result<(), String> {
    let Some(name) = key.strip_prefix(PREFIX) else { return Ok(()) };
    match name {
        "iops" => limits.iops = requests(key, text)?,
        "bytes" => limits.bytes = bytes(key, text)?,
        "iops_burst" => limits.iops_burst = requests(key, text)?,
        "bytes_burst" => limits.bytes_burst = bytes(key, text)?,
        "io_class" => limits.class = Some(text.parse()?),
        _ => {
            return Err(format!(
                "there is no key '{key}': there are qos.iops, qos.bytes, qos.iops_burst, qos.bytes_burst and qos.io_class"
            ));
        }
    }
    Ok(())
}

fn requests(key: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{key} is a number of requests, not '{text}'"))
}

fn bytes(key: &str, text: &str) -> Result<u64, String> {
    let parsed: Result<Bytes, _> = text.parse();
    parsed
        .map(|bytes| bytes.0)
        .map_err(|_| format!("{key} is a number of bytes, such as 20MiB, not '{text}'"))
}

impl Owner {
    /// Tells the disk's process its limits, as the catalog has them.
    pub(crate) fn limit_served(&mut self, vdi: VdiUuid) -> Result<(), Failure> {
        let Some(row) = self.catalog.state().vdis.get(&vdi) else { return Ok(()) };
        let limits = limits(&row.other_config);
        self.tell_limits(vdi, limits)
    }

    /// The keys of a VDI have changed with the last commit: its process is told, if there is one.
    pub(crate) fn qos_changed(&mut self, vdi: VdiUuid, before: &BTreeMap<String, String>) {
        let Some(row) = self.catalog.state().vdis.get(&vdi) else { return };
        let (before, mut now) = (limits(before), limits(&row.other_config));
        let linked = |served: &Served| served.link.is_some() && !served.is_stopping();
        if before == now || !self.serving.disks.get(&vdi).is_some_and(linked) {
            return;
        }
        if now.class.is_none() && before.class.is_some() {
            now.class = Some(USUAL);
        }
        if let Err(failure) = self.tell_limits(vdi, now) {
            tracing::warn!(%vdi, %failure, "a datapath was not told its new limits");
            self.lose_served(vdi, REST);
        }
    }

    fn tell_limits(&mut self, vdi: VdiUuid, limits: Limits) -> Result<(), Failure> {
        let Some(served) = self.serving.disks.get_mut(&vdi) else { return Ok(()) };
        served.link(vdi)?.ask(&Ask::Limit(limits), Vec::new()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_limits_and_others_say_nothing() {
        let keys = [
            ("qos.iops", "500"),
            ("qos.iops_burst", "1000"),
            ("qos.bytes", "20MiB"),
            ("qos.bytes_burst", "0"),
            ("qos.io_class", "best-effort:7"),
            ("owner", "me"),
            ("qos.later", "psychic"),
        ];
        let keys = keys.map(|(key, text)| (key.to_owned(), text.to_owned())).into_iter().collect();
        let class = Some(IoClass::BestEffort(7));
        let expected = Limits { iops: 500, iops_burst: 1000, bytes: 20 << 20, bytes_burst: 0, class };
        assert_eq!(limits(&keys), expected);
        assert_eq!(limits(&BTreeMap::new()), Limits::default());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (key, text) in [
            ("qos.iops", "many"),
            ("qos.iops", "-1"),
            ("qos.iops", "1MiB"),
            ("qos.bytes", "1MB"),
            ("qos.bytes_burst", "18446744073709551616"),
            ("qos.io_class", "realtime"),
            ("qos.speed", "1"),
            ("qos.", "1"),
        ] {
            assert!(check(key, text).is_err(), "{key}={text}");
        }
        assert_eq!(check("qosmetic", "any"), Ok(()));
    }
}
