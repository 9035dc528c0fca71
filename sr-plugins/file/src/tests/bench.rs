//! Temporary directories as places for the conformance suite.

use crate::FilePlugin;
use catena_sr_api::conformance::{Bench, Contents, Fixture, Place};
use catena_sr_api::{HostIdentity, Plugin, SrIdentity};
use catena_types::SrUuid;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Places for any plugin that works on directories.
pub(super) struct DirectoryBench<P>(pub(super) P);

impl<P: Plugin> Bench for DirectoryBench<P> {
    fn plugin(&self) -> &dyn Plugin {
        &self.0
    }

    fn place(&self, fixture: Fixture) -> Box<dyn Place> {
        Box::new(DirectoryPlace::new(fixture))
    }
}

/// A temporary directory with the location in it, and a file outside the location.
pub(super) struct DirectoryPlace {
    around: TempDir,
    location: PathBuf,
}

impl DirectoryPlace {
    pub(super) fn new(fixture: Fixture) -> Self {
        let around = tempfile::tempdir().unwrap();
        let location = around.path().canonicalize().unwrap().join("sr");
        fs::write(around.path().join("outside"), "a file outside the location").unwrap();
        if fixture != Fixture::Absent {
            fs::create_dir(&location).unwrap();
            // The root of a file system is empty with this in it.
            fs::create_dir(location.join("lost+found")).unwrap();
        }
        match fixture {
            Fixture::Absent | Fixture::Empty => {}
            Fixture::Foreign => fs::write(location.join("notes.txt"), "not an image").unwrap(),
            Fixture::Images => {
                fs::write(location.join("one.vhd"), "an image").unwrap();
                fs::write(location.join("Two.VHD"), "another image").unwrap();
                fs::write(location.join("notes.txt"), "not an image").unwrap();
                fs::write(location.join(".hidden.vhd"), "not a container's name").unwrap();
                fs::create_dir(location.join("directory.vhd")).unwrap();
            }
        }
        Self { around, location }
    }

    pub(super) fn location(&self) -> &Path {
        &self.location
    }

    /// A path in `.catena`.
    pub(super) fn home(&self, name: &str) -> PathBuf {
        self.location.join(".catena").join(name)
    }
}

impl Place for DirectoryPlace {
    fn location(&self) -> &Path {
        &self.location
    }

    fn contents(&self) -> Contents {
        let mut contents = Contents::new();
        describe(self.around.path(), Path::new(""), &mut contents);
        contents
    }

    fn plant_impostors(&self) -> Vec<String> {
        let at = |name: &str| self.location.join(name);
        symlink("../outside", at("link-outside.vhd")).unwrap();
        symlink("real.vhd", at("link-inside.vhd")).unwrap();
        symlink("nowhere", at("link-nowhere.vhd")).unwrap();
        fs::create_dir(at("directory.vhd")).unwrap();
        UnixListener::bind(at("socket.vhd")).unwrap();
        nix::unistd::mkfifo(&at("pipe.vhd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        ["link-outside", "link-inside", "link-nowhere", "directory", "socket", "pipe"]
            .map(|stem| format!("{stem}.vhd"))
            .to_vec()
    }

    fn replace_storage(&self) {
        fs::rename(&self.location, self.around.path().join("away")).unwrap();
        fs::create_dir(&self.location).unwrap();
    }
}

/// Adds what is below `directory`, with inode and time of change, so that also a rewrite with the same bytes is seen.
fn describe(root: &Path, directory: &Path, contents: &mut Contents) {
    for entry in fs::read_dir(root.join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = directory.join(entry.file_name());
        let status = entry.metadata().unwrap();
        let what = if status.is_dir() {
            describe(root, &path, contents);
            "directory".to_owned()
        } else if status.is_file() {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(root.join(&path)).unwrap());
            let hash = hasher.finish();
            format!("file of {}, changed {}.{}, {hash:x}", status.len(), status.mtime(), status.mtime_nsec())
        } else if status.is_symlink() {
            format!("link to {:?}", fs::read_link(root.join(&path)).unwrap())
        } else {
            format!("socket {} or pipe", status.file_type().is_socket())
        };
        let text = format!("{:o} inode {} {what}", status.mode(), status.ino());
        contents.insert(path.to_str().unwrap().to_owned(), text);
    }
}

/// A new SR of the host `host-a`.
pub(super) fn identity() -> SrIdentity {
    SrIdentity { uuid: SrUuid::random(), name_label: "images".to_owned(), owner: host("host-a") }
}

pub(super) fn host(name: &str) -> HostIdentity {
    HostIdentity { host: name.to_owned(), boot: "boot-1".to_owned() }
}

/// A place with an SR that nobody has open.
pub(super) fn closed_sr() -> (DirectoryPlace, SrIdentity) {
    let place = DirectoryPlace::new(Fixture::Empty);
    let identity = identity();
    drop(FilePlugin.create(place.location(), &identity).unwrap());
    (place, identity)
}
