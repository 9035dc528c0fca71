//! From the path that an administrator gave to a directory.
//!
//! Invariant: the path that is kept has no symbolic link in it. Links on the way to the location are resolved once, here;
//! the location itself must not be one. Used by the plugin.

use crate::directory::{Directory, is_directory};
use catena_sr_api::Error;
use std::ffi::OsString;
use std::io;
use std::path::Path;

/// A place for an SR: a name in a directory that exists.
pub(crate) struct Location {
    parent: Directory,
    name: OsString,
}

/// What is found at a location.
pub(crate) enum At {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory(Directory),
    /// Something else, described.
    Other(String),
}

impl Location {
    /// Resolves an absolute path. [`Error::Unsupported`] if it is not absolute or ends in no name, [`Error::Unavailable`] if the
    /// directory above it does not exist.
    pub(crate) fn resolve(path: &Path) -> Result<Self, Error> {
        let unsupported = |why: &str| Error::Unsupported(format!("the location {} {why}", path.display()));
        if !path.is_absolute() {
            return Err(unsupported("is not an absolute path"));
        }
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unsupported("does not end in the name of a directory"));
        };
        let above = above.canonicalize().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::Unavailable(format!("there is no directory {}", above.display()))
            }
            _ => Error::io(format!("resolving {}", above.display()))(source),
        })?;
        Ok(Self { parent: Directory::open(&above)?, name: name.to_owned() })
    }

    /// What is there.
    pub(crate) fn find(&self) -> Result<At, Error> {
        match self.parent.status(&self.name)? {
            None => Ok(At::Nothing),
            Some(status) if is_directory(&status) => self.parent.subdirectory(&self.name).map(At::Directory),
            Some(_) => {
                Ok(At::Other("it is not a directory (a symbolic link does not count as one)".to_owned()))
            }
        }
    }

    /// Makes the directory, durably.
    pub(crate) fn make(&self) -> Result<Directory, Error> {
        self.parent.make_subdirectory(&self.name)?;
        self.parent.subdirectory(&self.name)
    }
}
