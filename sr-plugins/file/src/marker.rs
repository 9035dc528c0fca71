//! The marker `sr.toml`: what makes a directory an SR, and whose it is.
//!
//! Invariant: the marker is replaced as a whole (a new file, synced, renamed, directory synced), so a reader finds the old
//! one or the new one. Used by `home` and, read-only, by `survey` and the store's marker check.

use crate::directory::Directory;
use catena_sr_api::{Error, HostIdentity, SrIdentity};
use catena_types::SrUuid;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};

/// The name of the marker.
pub(crate) const MARKER: &str = "sr.toml";
/// Its name while it is being written.
pub(crate) const MARKER_NEW: &str = "sr.toml.new";

/// The version of the directory's layout that this program knows.
const LAYOUT: u32 = 1;
/// No marker is longer, in bytes.
const LONGEST: u64 = 64 << 10;

/// The file as it is written.
#[derive(Serialize, Deserialize)]
struct RawMarker {
    layout: u32,
    uuid: SrUuid,
    name_label: String,
    owner: HostIdentity,
}

/// What reading a marker finds.
#[derive(Debug)]
pub(crate) enum Marker {
    /// No file of that name.
    Absent,
    /// A marker in order.
    Valid(SrIdentity),
    /// Something that is not one, or one of a newer version; why.
    Unreadable(String),
}

/// Reads the marker in the directory `.catena`.
pub(crate) fn read(home: &Directory) -> Result<Marker, Error> {
    let fd = match home.open_file(MARKER, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(Marker::Absent),
        Err(Errno::ELOOP | Errno::ENXIO) => {
            return Ok(Marker::Unreadable("it is not a regular file".to_owned()));
        }
        Err(errno) => return Err(home.failed("opening", MARKER)(errno)),
    };
    let mut bytes = Vec::new();
    match File::from(fd).take(LONGEST).read_to_end(&mut bytes) {
        Ok(_) => Ok(parse(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {
            Ok(Marker::Unreadable("it is not a regular file".to_owned()))
        }
        Err(error) => Err(Error::io(format!("reading {}", home.path().join(MARKER).display()))(error)),
    }
}

fn parse(bytes: &[u8]) -> Marker {
    match toml::from_slice::<RawMarker>(bytes) {
        Ok(raw) if raw.layout == LAYOUT => {
            Marker::Valid(SrIdentity { uuid: raw.uuid, name_label: raw.name_label, owner: raw.owner })
        }
        Ok(raw) => {
            Marker::Unreadable(format!("its layout {} is of another version of this program", raw.layout))
        }
        Err(error) => Marker::Unreadable(error.message().to_owned()),
    }
}

/// Writes the marker, durably. The caller holds the lock.
pub(crate) fn write(home: &Directory, identity: &SrIdentity) -> Result<(), Error> {
    let failed = |doing: &str| Error::io(format!("{doing} {}", home.path().join(MARKER_NEW).display()));
    let raw = RawMarker {
        layout: LAYOUT,
        uuid: identity.uuid,
        name_label: identity.name_label.clone(),
        owner: identity.owner.clone(),
    };
    let text = toml::to_string(&raw)
        .map_err(|error| Error::Unsupported(format!("the SR's name or host cannot be written: {error}")))?;
    home.remove(MARKER_NEW)?;
    let fd = home
        .open_file(MARKER_NEW, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)
        .map_err(home.failed("making", MARKER_NEW))?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes()).map_err(failed("writing"))?;
    // D1: a crash after the rename must not find a name that points at nothing.
    file.sync_all().map_err(failed("syncing"))?;
    home.rename(MARKER_NEW, MARKER)?;
    home.sync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_or_newer_is_no_marker() {
        let identity = SrIdentity {
            uuid: SrUuid::random(),
            name_label: "line\nbreak \"quoted\" \u{1F980}".to_owned(),
            owner: HostIdentity { host: "a".to_owned(), boot: "b".to_owned() },
        };
        let place = tempfile::tempdir().unwrap();
        let home = Directory::open(&place.path().canonicalize().unwrap()).unwrap();
        write(&home, &identity).unwrap();
        assert!(matches!(read(&home).unwrap(), Marker::Valid(found) if found == identity));

        let text = std::fs::read_to_string(place.path().join(MARKER)).unwrap();
        // Without its last character only a line break is missing.
        for length in 0..text.len() - 1 {
            assert!(matches!(parse(&text.as_bytes()[..length]), Marker::Unreadable(_)), "cut at {length}");
        }
        assert!(matches!(parse(text.replace("layout = 1", "layout = 2").as_bytes()), Marker::Unreadable(_)));
    }
}
