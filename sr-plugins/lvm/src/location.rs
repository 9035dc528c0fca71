//! From the location that an administrator gave to the nodes of devices.
//!
//! A location is one or more absolute paths joined by commas. Links (`/dev/disk/by-id/...`) are resolved, so what is kept is the
//! path of a block device's own node. Used by the plugin.

use catena_sr_api::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, stat};
use std::fs;
use std::io;
use std::path::Path;

/// Characters that a pattern of lvm2 takes as they are or in brackets.
const PLAIN: &str = "/_-:.+@=";

/// The devices of a location, each once, all there.
pub(crate) fn devices(location: &Path) -> Result<Vec<String>, Error> {
    let (devices, missing) = present(location)?;
    match missing.first() {
        None => Ok(devices),
        Some(path) => Err(Error::Unavailable(format!("there is no device {path}"))),
    }
}

/// The devices of a location that are there, and the paths of those that are not.
pub(crate) fn present(location: &Path) -> Result<(Vec<String>, Vec<String>), Error> {
    let text = location.to_str().ok_or_else(|| Error::Unsupported("a path is not UTF-8".to_owned()))?;
    let (mut devices, mut missing) = (Vec::new(), Vec::new());
    for path in text.split(',') {
        if !path.starts_with('/') {
            return Err(Error::Unsupported(format!("{path:?} is not the absolute path of a device")));
        }
        match resolve(path)? {
            Some(device) if devices.contains(&device) => {
                return Err(Error::Unsupported(format!("{path} names the device {device} a second time")));
            }
            Some(device) => devices.push(device),
            None => missing.push(path.to_owned()),
        }
    }
    Ok((devices, missing))
}

/// The node of a device; `None` if there is nothing at the path.
fn resolve(path: &str) -> Result<Option<String>, Error> {
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io(format!("resolving {path}"))(error)),
    };
    let status = stat(&real).map_err(|errno| Error::io(format!("looking at {path}"))(errno.into()))?;
    if status.st_mode & libc::S_IFMT != libc::S_IFBLK {
        return Err(Error::Unsupported(format!("{path} is not a block device")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || PLAIN.contains(c);
    match real.to_str().filter(|real| real.chars().all(plain)) {
        Some(real) => Ok(Some(real.to_owned())),
        None => Err(Error::Unsupported(format!(
            "the path {} has characters in it that lvm2 does not take",
            real.display()
        ))),
    }
}

/// Whether the kernel uses the device for something: a mount, another device on top of it, a partition in use.
pub(crate) fn is_in_use(device: &str) -> Result<bool, Error> {
    match open(device, OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::EBUSY) => Ok(true),
        Err(errno) => Err(Error::io(format!("opening {device}"))(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_refused_and_what_is_absent_is_named() {
        let refused = |location: &str| devices(Path::new(location)).unwrap_err();
        for location in ["sda", "", "/dev/null,", "/dev/null", "/etc/passwd"] {
            assert!(matches!(refused(location), Error::Unsupported(_)), "{location}");
        }
        assert!(
            matches!(refused("/no/such/device"), Error::Unavailable(text) if text.contains("/no/such/device"))
        );
        let (there, missing) = present(Path::new("/no/a,/no/b")).unwrap();
        assert_eq!((there.len(), missing.len()), (0, 2));
    }
}
