//! Labels of a container: extended attributes `user.catena.<name>` of its file.
//!
//! The system gives no transaction over several attributes, so a crash may leave some old and some new: who reads them
//! judges them. Used by the store.

use catena_sr_api::{Error, Labels};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

/// What the names of our attributes begin with.
const PREFIX: &str = "user.catena.";
/// The system's own limits, in bytes: of one value, and of all names of a file.
const LONGEST: usize = 64 << 10;

/// Writes the labels on a file and removes those of ours that are not among them. All are tried also if one fails; the first
/// failure is told.
pub(crate) fn write(
    file: &OwnedFd,
    labels: &Labels,
    failed: impl Fn(&'static str, Errno) -> Error,
) -> Result<(), Error> {
    let mut first = Ok(());
    let mut note = |result: Result<(), Errno>| {
        if first.is_ok() {
            first = result;
        }
    };
    for (name, text) in labels {
        note(attribute(name).and_then(|name| set(file, &name, text.as_bytes())));
    }
    match names(file) {
        Ok(names) => {
            for name in names.into_iter().filter(|name| !labels.contains_key(name)) {
                note(attribute(&name).and_then(|name| remove(file, &name)));
            }
        }
        Err(errno) => note(Err(errno)),
    }
    first.map_err(|errno| match errno {
        Errno::EOPNOTSUPP => Error::Unsupported("the file system has no extended attributes".to_owned()),
        // Also where the file system is not full: it keeps little room for attributes.
        errno => failed("labelling", errno),
    })
}

/// The labels of a file; none where the file system has no extended attributes.
pub(crate) fn read(file: &OwnedFd) -> Result<Labels, Errno> {
    let mut labels = Labels::new();
    for name in names(file)? {
        // One that is no text, or that has just gone, is none of ours.
        if let Ok(value) = attribute(&name).and_then(|name| get(file, &name))
            && let Ok(text) = String::from_utf8(value)
        {
            labels.insert(name, text);
        }
    }
    Ok(labels)
}

/// The names of our labels on a file.
fn names(file: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut buffer = vec![0_u8; LONGEST];
    // SAFETY: the buffer is writable for the length given, and the call does not keep its address.
    let length =
        unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast::<c_char>(), buffer.len()) };
    let length = match Errno::result(length) {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(Errno::EOPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let names = buffer[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    Ok(names.filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned).collect())
}

fn attribute(name: &str) -> Result<CString, Errno> {
    CString::new(format!("{PREFIX}{name}")).map_err(|_| Errno::EINVAL)
}

fn set(file: &OwnedFd, name: &CString, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: name and value are readable, the name ends with a zero byte, and the call keeps neither address.
    let result =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

fn get(file: &OwnedFd, name: &CString) -> Result<Vec<u8>, Errno> {
    // SAFETY: with a size of zero nothing is written; the name ends with a zero byte and its address is not kept.
    let length = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), ptr::null_mut(), 0) };
    let mut value = vec![0_u8; usize::try_from(Errno::result(length)?).unwrap_or(0)];
    // SAFETY: the value is writable for the length given; a longer one that came meanwhile is an error.
    let length =
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(Errno::result(length)?).unwrap_or(0));
    Ok(value)
}

fn remove(file: &OwnedFd, name: &CString) -> Result<(), Errno> {
    // SAFETY: the name ends with a zero byte and its address is not kept.
    let result = unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) };
    match Errno::result(result) {
        Err(Errno::ENODATA) => Ok(()),
        other => other.map(drop),
    }
}
