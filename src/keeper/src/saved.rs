//! What a repair is about to write over, kept so that an administrator can undo it.
//!
//! `.catena/repair/<time>-<job>/<image>` holds the bytes, one range after another; `<image>.json` beside it says which. Both are
//! durable before the image is touched. Nobody reads them but people.

use catena_control::{Fix, Trouble, TroubleKind};
use catena_types::{Bytes, FileOffset, ImageRecord, JobRecord};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The directory in `.catena` that all repairs have theirs in.
const ALL: &str = "repair";

/// The place for what one repair saves.
#[derive(Debug)]
pub(crate) struct Saves {
    home: PathBuf,
    place: PathBuf,
}

/// Removes what all repairs of an SR have saved, when the SR is destroyed.
pub(crate) fn remove_all(home: &Path) -> io::Result<()> {
    match fs::remove_dir_all(home.join(ALL)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl Saves {
    /// The place of a job's saves; it is made with the first of them.
    pub(crate) fn new(home: &Path, job: &JobRecord) -> Self {
        let name = format!("{}-{}", job.created.strftime("%Y%m%dT%H%M%SZ"), job.id);
        Self { home: home.to_owned(), place: home.join(ALL).join(name) }
    }

    fn path(&self, row: &ImageRecord) -> PathBuf {
        self.place.join(row.id.to_string())
    }

    /// A new file for the bytes of an image.
    pub(crate) fn file(&self, row: &ImageRecord) -> Result<OwnedFd, Trouble> {
        let make = || {
            fs::create_dir_all(&self.place)?;
            File::options().write(true).create_new(true).open(self.path(row))
        };
        make().map(OwnedFd::from).map_err(|error| trouble(&error))
    }

    /// Writes the index of a file that a worker has filled and synced, and makes the names durable. Returns where the bytes are.
    pub(crate) fn complete(
        &self,
        row: &ImageRecord,
        length: Bytes,
        fixes: &[Fix],
        saved: &[(FileOffset, Bytes)],
    ) -> Result<String, Trouble> {
        let mut from = 0;
        let ranges = saved.iter().map(|(at, bytes)| {
            let range = json!({"at": at.0, "length": bytes.0, "from": from});
            from += bytes.0;
            range
        });
        let ranges: Vec<_> = ranges.collect();
        let fixes: Vec<_> =
            fixes.iter().map(|fix| json!({"problem": fix.check, "repair": fix.what})).collect();
        let index = json!({"image": row.id, "container": row.container, "length": length.0,
            "ranges": ranges, "repairs": fixes});
        let write = || {
            let mut file = File::create_new(self.path(row).with_extension("json"))?;
            writeln!(file, "{index:#}")?;
            file.sync_all()?;
            for directory in [&self.place, &self.home.join(ALL), &self.home] {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|error| trouble(&error))?;
        Ok(self.path(row).to_string_lossy().into_owned())
    }

    /// Takes back the file of an image that is not mended, and the directory if that was all.
    pub(crate) fn discard(&self, row: &ImageRecord) -> Result<(), Trouble> {
        fs::remove_file(self.path(row)).map_err(|error| trouble(&error))?;
        match fs::remove_dir(&self.place) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(trouble(&error)),
            _ => Ok(()),
        }
    }
}

fn trouble(error: &io::Error) -> Trouble {
    Trouble { kind: TroubleKind::Io, message: format!("saving what a repair writes over: {error}") }
}
