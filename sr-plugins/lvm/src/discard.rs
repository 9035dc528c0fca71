//! Tells devices which extents nothing has taken (discard), for arrays and drives that make use of that.
//!
//! ```text
//! free ranges, as lvm2 reports them -> a piece of one, alone -> rest -> the next ... -> none left
//! ```
//!
//! Nothing is allocated for it, so nobody lacks space meanwhile and a crash leaves nothing behind: the ranges are discarded on the
//! devices themselves, as lvm2 does with `issue_discards`. Invariant: what is discarded is free. A piece is discarded while nobody
//! else may run a command, in a process that holds the owner's lock until the kernel is done with it; and the ranges are read anew if
//! any command since may have changed them, an administrator's too, whose commit stands on the devices before he has his volume. A
//! piece takes a moment, and between two of them whoever waits has his turn. What becomes free behind the place that has been reached
//! is left to the next time. Used by `store`.

use crate::lvm2::Lvm2;
use crate::node::system;
use crate::report::Free;
use crate::shared::Shared;
use catena_sr_api::{Discarded, Error};
use catena_types::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::fstat;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

/// Where lvm2 has the head of its metadata on a device, and how long that is, in bytes: it tells where the newest is, and is written
/// by each commit (`struct mda_header` in lvm2's `format_text/layout.h`).
const HEAD: i64 = 4096;
const HEAD_BYTES: usize = 512;
/// What it has behind its checksum.
const MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// What this host keeps of a device in memory, it keeps in pages of so many bytes.
const PAGE: i64 = 4096;

/// The first piece, and the limits of those after it, in bytes: powers of two, so that pieces end where the units of a device do.
const FIRST: u64 = 16 << 20;
const LEAST: u64 = 4 << 20;
const MOST: u64 = 1 << 30;
/// How long a piece is to take about.
const MOMENT: Duration = Duration::from_millis(20);
/// The least rest after a piece: who waits for his turn is awake then.
const REST: Duration = Duration::from_millis(1);

mod ioctl {
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

/// The free ranges, as they are as long as the layout of the group has this number, and its devices have these heads.
struct Map {
    layout: u64,
    heads: Vec<u8>,
    /// All devices of the group.
    devices: Vec<File>,
    /// Those of devices that can be told, in order.
    ranges: Vec<Free>,
    /// Their devices.
    open: BTreeMap<String, File>,
    /// The other devices that have free ranges.
    unable: BTreeSet<String>,
}

impl Map {
    fn read(shared: &Shared, lvm: &Lvm2) -> Result<Self, Error> {
        let (name, devices) = {
            let known = shared.known();
            (known.group.name.clone(), known.group.devices.clone())
        };
        let opened = |device: &String| File::open(device).map_err(Error::io(format!("opening {device}")));
        let devices = devices.iter().map(opened).collect::<Result<Vec<File>, Error>>()?;
        // Before the ranges: what is committed meanwhile is seen afterwards.
        let mut map = Self {
            layout: shared.layout(),
            heads: heads(&devices)?,
            devices,
            ranges: Vec::new(),
            open: BTreeMap::new(),
            unable: BTreeSet::new(),
        };
        for range in lvm.free(&name)? {
            if !map.open.contains_key(&range.device) && !map.unable.contains(&range.device) {
                let file = File::options().read(true).write(true).open(&range.device);
                let file = file.map_err(Error::io(format!("opening {}", range.device)))?;
                if can_discard(&file) {
                    map.open.insert(range.device.clone(), file);
                } else {
                    map.unable.insert(range.device.clone());
                }
            }
            if map.open.contains_key(&range.device) {
                map.ranges.push(range);
            }
        }
        Ok(map)
    }

    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The first free range behind a place on a device, as far as the next multiple of `size`.
    fn next(&self, (device, at): &(String, u64), size: u64) -> Option<Free> {
        let behind = |range: &&Free| (&range.device, range.end) > (device, *at);
        let range = self.ranges.iter().find(behind)?;
        let start = if range.device == *device { range.start.max(*at) } else { range.start };
        let end = range.end.min((start / size + 1) * size);
        Some(Free { device: range.device.clone(), start, end })
    }

    fn discard(&self, piece: &Free) -> Result<(), Error> {
        let Some(file) = self.open.get(&piece.device) else { return Ok(()) };
        // SAFETY: the descriptor is open and the kernel reads the two numbers.
        match unsafe { ioctl::discard(file.as_raw_fd(), &[piece.start, piece.end - piece.start]) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::io(format!("discarding free space of {}", piece.device))(errno.into())),
        }
    }
}

/// What the heads of the metadata on these devices are. Not all need to have one.
fn heads(devices: &[File]) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    for device in devices {
        let mut head = [0; HEAD_BYTES];
        // What this host has in memory may be older than what another has written.
        posix_fadvise(device, HEAD, PAGE, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(io::Error::from)
            .and_then(|()| device.read_exact_at(&mut head, HEAD.unsigned_abs()))
            .map_err(Error::io("reading the head of a group's metadata"))?;
        if head[4..].starts_with(MAGIC) {
            all.extend(head);
        }
    }
    if all.is_empty() {
        return Err(Error::Unsupported(
            "no device of the group has its metadata where it was looked for".to_owned(),
        ));
    }
    Ok(all)
}

/// Whether the kernel passes discards on to a device.
fn can_discard(device: &File) -> bool {
    let Ok(status) = fstat(device) else { return false };
    // A partition has none of its own.
    let most = ["queue/discard_max_bytes", "../queue/discard_max_bytes"].map(|what| system(&status, what));
    most.iter().any(|text| text.trim_end().parse().is_ok_and(|most: u64| most > 0))
}

/// Discards all that is free, piece by piece.
pub(crate) fn discard_free(
    shared: &Shared,
    told: &mut dyn FnMut(Bytes, Bytes) -> bool,
) -> Result<Discarded, Error> {
    let mut map = shared.alone(|lvm| Map::read(shared, lvm))?;
    let (total, unable) = (map.bytes(), Vec::from_iter(map.unable.clone()));
    if total == 0 && !unable.is_empty() {
        return Err(Error::Unsupported(format!("{} cannot discard", unable.join(", "))));
    }
    let mut found = Discarded { bytes: Bytes(0), unable };
    let (mut reached, mut size) = ((String::new(), 0), FIRST);
    while told(found.bytes, Bytes(total.max(found.bytes.0))) {
        let begun = Instant::now();
        let Some(piece) = shared.alone(|lvm| {
            let is_changed = heads(&map.devices)? != map.heads;
            if is_changed {
                // By somebody else.
                shared.known().stale = true;
            }
            if is_changed || map.layout != shared.layout() {
                map = Map::read(shared, lvm)?;
            }
            let piece = map.next(&reached, size);
            piece.as_ref().map_or(Ok(()), |piece| map.discard(piece))?;
            Ok(piece)
        })?
        else {
            break;
        };
        let took = begun.elapsed();
        found.bytes.0 += piece.end - piece.start;
        reached = (piece.device, piece.end);
        size = match took {
            long if long > MOMENT * 2 => (size / 2).max(LEAST),
            short if short < MOMENT / 2 => (size * 2).min(MOST),
            _ => size,
        };
        // Half of the time is others'.
        thread::sleep(took.clamp(REST, MOMENT * 5));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_that_is_free_and_nothing_else() {
        let range = |device: &str, start, end| Free { device: device.to_owned(), start, end };
        let ranges = vec![range("a", 5, 21), range("a", 30, 31), range("b", 0, 8), range("c", 64, 66)];
        let map = Map {
            layout: 0,
            heads: Vec::new(),
            devices: Vec::new(),
            ranges,
            open: BTreeMap::new(),
            unable: BTreeSet::new(),
        };
        let (mut reached, mut pieces) = ((String::new(), 0), Vec::new());
        while let Some(piece) = map.next(&reached, 8) {
            reached = (piece.device.clone(), piece.end);
            pieces.push((piece.device, piece.start, piece.end));
        }
        let expected = [("a", 5, 8), ("a", 8, 16), ("a", 16, 21), ("a", 30, 31), ("b", 0, 8), ("c", 64, 66)];
        assert_eq!(pieces, expected.map(|(device, start, end)| (device.to_owned(), start, end)));
    }

    #[test]
    fn what_became_free_behind_is_left_and_what_was_taken_ahead_too() {
        let range = |device: &str, start, end| Free { device: device.to_owned(), start, end };
        let map = |ranges| Map {
            layout: 0,
            heads: Vec::new(),
            devices: Vec::new(),
            ranges,
            open: BTreeMap::new(),
            unable: BTreeSet::new(),
        };
        let changed = map(vec![range("a", 0, 6), range("b", 0, 2), range("b", 12, 20)]);
        assert_eq!(changed.next(&("b".to_owned(), 4), 8), Some(range("b", 12, 16)));
        assert_eq!(changed.next(&("b".to_owned(), 20), 8), None);
        assert_eq!(changed.next(&("aa".to_owned(), 4), 8), Some(range("b", 0, 2)));
    }
}
