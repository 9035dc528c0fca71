//! `sr.d`: one file for each SR that this host knows, `<uuid>.toml`. It is what the front remembers across restarts.
//!
//! A file is replaced as a whole: written beside, made durable, renamed, the directory made durable. So a crash leaves the old
//! or the new file, and what was answered after a change survives a power cut. A file that cannot be read is reported and left
//! alone: it blocks its own SR only. Only `lifecycle` changes files; `run` reads them at start.

use catena_types::SrUuid;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is known of an SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EntryFile", into = "EntryFile")]
pub(crate) struct SrEntry {
    /// Its id.
    pub(crate) uuid: SrUuid,
    /// The back end.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name_label: String,
    /// Where it is, an absolute path; or several, of devices, joined by commas.
    pub(crate) location: String,
    /// Whether the location is a list of devices.
    pub(crate) on_devices: bool,
    /// Whether it is to be attached when the agent starts.
    pub(crate) attach: bool,
    /// The request that made it known, so that its repetition gets the same answer.
    pub(crate) made_by: Option<MadeBy>,
}

impl SrEntry {
    /// Its devices; none where it has a directory.
    pub(crate) fn devices(&self) -> Vec<String> {
        match self.on_devices {
            true => self.location.split(',').map(str::to_owned).collect(),
            false => Vec::new(),
        }
    }
}

/// The same as a file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryFile {
    uuid: SrUuid,
    #[serde(rename = "type")]
    kind: String,
    name_label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<String>,
    attach: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_by: Option<MadeBy>,
}

impl TryFrom<EntryFile> for SrEntry {
    type Error = &'static str;

    fn try_from(file: EntryFile) -> Result<Self, Self::Error> {
        let EntryFile { uuid, kind, name_label, location, devices, attach, made_by } = file;
        let on_devices = !devices.is_empty();
        let location = match location {
            Some(location) if !on_devices => location,
            None if on_devices => devices.join(","),
            _ => return Err("an SR has either a location or devices"),
        };
        Ok(Self { uuid, kind, name_label, location, on_devices, attach, made_by })
    }
}

impl From<SrEntry> for EntryFile {
    fn from(entry: SrEntry) -> Self {
        let devices = entry.devices();
        let SrEntry { uuid, kind, name_label, location, on_devices, attach, made_by } = entry;
        let location = (!on_devices).then_some(location);
        Self { uuid, kind, name_label, location, devices, attach, made_by }
    }
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MadeBy {
    /// The client's key.
    pub(crate) request_id: String,
    /// The answer, as JSON.
    pub(crate) answer: String,
}

/// Why a file of the directory was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SrdError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not say what it should.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// It names another SR than its name does.
    #[error("names the SR {0}, which is not the file's name")]
    WrongName(SrUuid),
}

/// A file that was not taken, and why.
pub(crate) type BadFile = (PathBuf, SrdError);

/// The directory.
#[derive(Debug)]
pub(crate) struct Store {
    /// Where it is; below it also `gone/`.
    pub(crate) directory: PathBuf,
}

impl Store {
    /// Opens the directory, makes it if need be.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Every file that can be read, and the paths of those that cannot, with the reason.
    pub(crate) fn load(&self) -> io::Result<(Vec<SrEntry>, Vec<BadFile>)> {
        let (mut entries, mut bad) = (Vec::new(), Vec::new());
        for item in fs::read_dir(&self.directory)? {
            let path = item?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                match read(&path) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => bad.push((path, error)),
                }
            }
        }
        Ok((entries, bad))
    }

    /// Writes the file of an SR, durably.
    pub(crate) fn save(&self, entry: &SrEntry) -> io::Result<()> {
        let text = toml::to_string(entry).map_err(io::Error::other)?;
        write_whole(&self.path(entry.uuid), text.as_bytes())?;
        crate::points::SR_D_WRITTEN.pass();
        Ok(())
    }

    /// Removes the file of an SR, durably. No such file is as good.
    pub(crate) fn remove(&self, sr: SrUuid) -> io::Result<()> {
        match fs::remove_file(self.path(sr)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => File::open(&self.directory)?.sync_all()?,
        }
        crate::points::SR_D_WRITTEN.pass();
        Ok(())
    }

    fn path(&self, sr: SrUuid) -> PathBuf {
        self.directory.join(format!("{sr}.toml"))
    }
}

fn read(path: &Path) -> Result<SrEntry, SrdError> {
    let entry: SrEntry = toml::from_str(&fs::read_to_string(path)?)?;
    if path.file_stem().is_none_or(|stem| stem != entry.uuid.to_string().as_str()) {
        return Err(SrdError::WrongName(entry.uuid));
    }
    Ok(entry)
}

/// Replaces a file as a whole, durably. A crash leaves the old content or the new, and perhaps a `.new` beside it, which the
/// next write replaces.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> SrEntry {
        SrEntry {
            uuid: SrUuid::random(),
            kind: "file".into(),
            name_label: "fast \"one\"".into(),
            location: "/srv/sr".into(),
            on_devices: false,
            attach: true,
            made_by: Some(MadeBy { request_id: "r".into(), answer: "{\"uuid\":\"x\"}".into() }),
        }
    }

    #[test]
    fn entries_are_kept_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("sr.d")).unwrap();
        let mut one = entry();
        store.save(&one).unwrap();
        one.attach = false;
        one.made_by = None;
        store.save(&one).unwrap();
        assert_eq!(store.load().unwrap().0, [one.clone()]);
        store.remove(one.uuid).unwrap();
        store.remove(one.uuid).unwrap();
        assert!(store.load().unwrap().0.is_empty());
        assert_eq!(fs::read_dir(directory.path().join("sr.d")).unwrap().count(), 0);
    }

    #[test]
    fn devices_are_a_list() {
        let mut devices = entry();
        devices.location = "/dev/sdb,/dev/sdc".into();
        devices.on_devices = true;
        let text = toml::to_string(&devices).unwrap();
        assert!(
            text.contains(r#"devices = ["/dev/sdb", "/dev/sdc"]"#) && !text.contains("location"),
            "{text}"
        );
        assert_eq!(toml::from_str::<SrEntry>(&text).unwrap(), devices);
        let both = format!("location = \"/srv\"\n{text}");
        assert!(toml::from_str::<SrEntry>(&both).is_err());
    }

    #[test]
    fn a_bad_file_is_reported_and_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let good = entry();
        store.save(&good).unwrap();
        let text = fs::read_to_string(store.path(good.uuid)).unwrap();
        fs::write(store.path(SrUuid::random()), &text).unwrap();
        fs::write(directory.path().join("broken.toml"), "uuid = ").unwrap();
        // What a crash in the middle of a save leaves is not taken for an entry.
        fs::write(directory.path().join("x.toml.new"), &text).unwrap();
        let (entries, bad) = store.load().unwrap();
        assert_eq!((entries, bad.len()), (vec![good], 2));
    }
}
