//! The files that images are read from and written to: opened here, never by the agent.
//!
//! A file that is written is a new one (never an overwrite), readable by its owner only, and is unlinked again unless what it
//! should hold has arrived whole.

use crate::errors::CliError;
use catena_types::{ErrorName, Failure};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Something to read an image from.
#[derive(Debug)]
pub(crate) enum Source {
    /// `-`; read through its descriptor only, so nothing is lost in a buffer.
    Stdin(io::Stdin),
    /// A file.
    File(File),
}

impl Source {
    /// Opens `path`; `-` is stdin.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        if path == Path::new("-") {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                return Err(CliError::bad_request("stdin is a terminal: redirect it from a file or a pipe"));
            }
            return Ok(Self::Stdin(stdin));
        }
        let file = File::open(path).map_err(|error| CliError::file("open", path, &error))?;
        Ok(Self::File(file))
    }

    /// The number of bytes in it, where it has one: a regular file's size.
    pub(crate) fn size(&self) -> Option<u64> {
        let file = File::from(self.as_fd().try_clone_to_owned().ok()?);
        let metadata = file.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdin(stdin) => stdin.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }
}

/// Something to write an image to. Dropping it without [`Target::keep`] unlinks the file.
#[derive(Debug)]
pub(crate) enum Target {
    /// `-`.
    Stdout(io::Stdout),
    /// A new file.
    New(NewFile),
}

/// A file that did not exist before.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
    keep: bool,
}

impl Target {
    /// Creates `path`, which must not exist, with mode 0600; `-` is stdout.
    pub(crate) fn create(path: &Path) -> Result<Self, CliError> {
        if path == Path::new("-") {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                return Err(CliError::bad_request("stdout is a terminal: redirect it to a file or a pipe"));
            }
            return Ok(Self::Stdout(stdout));
        }
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::new(
                ErrorName::BadRequest,
                format!("{} exists and is never overwritten", path.display()),
            )
            .hint("name another file, or remove this one first")
            .into(),
            _ => CliError::file("create", path, &error),
        })?;
        Ok(Self::New(NewFile { file, path: path.to_owned(), keep: false }))
    }

    /// Says that all is there: the file is made durable, with its name, and stays.
    pub(crate) fn keep(self) -> Result<(), CliError> {
        if let Self::New(mut new) = self {
            let failed = |error| CliError::file("write", &new.path, &error);
            new.file.sync_all().map_err(failed)?;
            let directory = new.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let directory = File::open(directory.unwrap_or(Path::new("."))).and_then(|open| open.sync_all());
            match directory {
                // A directory that may be written and not read cannot be synced; the file is there all the same.
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(failed(error)),
                _ => {}
            }
            new.keep = true;
        }
        Ok(())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(stdout) => stdout.as_fd(),
            Self::New(new) => new.file.as_fd(),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.keep {
            // Already on the way to an error; a file that cannot be unlinked changes nothing about it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_file_stays_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.raw");
        let target = Target::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(target);
        assert!(!path.exists());
        Target::create(&path).unwrap().keep().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn nothing_is_overwritten_not_even_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("precious"), dir.path().join("link"));
        fs::write(&path, "text").unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        for there in [&path, &link] {
            let error = Target::create(there).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("exists"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn a_source_knows_its_size() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"12345").unwrap();
        assert_eq!(Source::open(file.path()).unwrap().size(), Some(5));
        assert_eq!(Source::open(Path::new("/none")).unwrap_err().exit_code(), 1);
    }
}
