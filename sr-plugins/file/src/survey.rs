//! What a directory holds, before it is an SR or to find that it is one. Changes nothing.
//!
//! Used by the plugin to probe, and to decide whether an SR may be made.

use crate::directory::{Directory, is_regular};
use crate::home::{self, HOME, State};
use catena_sr_api::{Error, Probe, RawDisk};
use std::ffi::OsString;

/// Made by the system at the root of a file system; it is no content.
const LOST_AND_FOUND: &str = "lost+found";
/// The most names that a message lists.
const NAMED: usize = 3;

/// What the directory holds.
pub(crate) fn survey(directory: &Directory) -> Result<Probe, Error> {
    let catalog = match home::state(directory)? {
        State::Sr(identity) => return Ok(Probe::Ours(identity)),
        State::Strange(what) => return Ok(Probe::Foreign(what)),
        State::Vacant { catalog } => catalog,
    };
    let names: Vec<OsString> =
        directory.names()?.into_iter().filter(|name| name != HOME && name != LOST_AND_FOUND).collect();
    if names.is_empty() {
        return Ok(Probe::Empty);
    }
    let images = images(directory, &names)?;
    if images.is_empty() {
        let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
        return Ok(Probe::Foreign(some_of(&names)));
    }
    if catalog {
        // Making an SR would remove the catalog, and beside images it may be the only word on what they are.
        return Ok(Probe::Foreign(format!("images, and a catalog in {HOME} that has lost its marker")));
    }
    Ok(Probe::Images(images))
}

/// What the names of raw disks end in.
const RAW: &str = ".raw";

/// The raw disk of another manager that a file is, as far as its name says.
pub(crate) fn raw_disk(name: &str) -> Option<RawDisk> {
    let id = name.strip_suffix(RAW)?.parse().ok()?;
    Some(RawDisk { id, hidden: false })
}

/// Whether a file may be an image, as far as its name says.
pub(crate) fn may_be_image(name: &str) -> bool {
    let tail = name.len().checked_sub(4).and_then(|at| name.get(at..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(".vhd")) || raw_disk(name).is_some()
}

/// Those of the names that may be images: regular files ending in `.vhd` in any case, and raw disks.
fn images(directory: &Directory, names: &[OsString]) -> Result<Vec<String>, Error> {
    let mut images = Vec::new();
    for name in names.iter().filter_map(|name| name.to_str()) {
        if !name.starts_with('.')
            && may_be_image(name)
            && directory.status(name)?.as_ref().is_some_and(is_regular)
        {
            images.push(name.to_owned());
        }
    }
    Ok(images)
}

/// The first few of the names, and how many more there are.
pub(crate) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| format!("{:?}", name.as_ref())).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_names_are_listed_and_the_rest_counted() {
        assert_eq!(some_of(&["a"]), r#""a""#);
        assert_eq!(some_of(&["a", "b", "c\n"]), r#""a", "b", "c\n""#);
        assert_eq!(some_of(&["a", "b", "c", "d", "e"]), r#""a", "b", "c" and 2 more"#);
    }
}
