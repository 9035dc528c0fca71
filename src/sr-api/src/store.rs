//! The two traits of a back end and the plain values they speak in.

use crate::error::Error;
use catena_types::{Bytes, CrashPoint, ImageId, Severity, SrUuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Who opens an SR: this host, in this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// The host's id, constant over its life.
    pub host: String,
    /// The id of its present boot.
    pub boot: String,
}

/// What the marker of an SR says (`sr.toml`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrIdentity {
    /// The SR.
    pub uuid: SrUuid,
    /// Its name when it was made; the catalog has the present one.
    pub name_label: String,
    /// The host that owns it.
    pub owner: HostIdentity,
}

/// What is found at a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nothing: an SR can be created here.
    Empty,
    /// An SR of ours.
    Ours(SrIdentity),
    /// Files that may be images of another manager: an SR can be introduced here. Their names.
    Images(Vec<String>),
    /// Something else, described.
    Foreign(String),
}

/// How a container gets its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizing {
    /// It grows by itself when written (a file).
    Automatic,
    /// It must be grown and shrunk (a logical volume).
    Explicit,
}

/// What a back end can do beyond the required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How containers get their size.
    pub sizing: Sizing,
    /// Whether ranges of containers can share blocks (reflink).
    pub clone_range: bool,
    /// Whether space inside a container can be given back.
    pub punch: bool,
    /// Whether several hosts may hold it at once.
    pub shared: bool,
    /// Whether the catalog has a file system of its own, which [`Store::renew_catalog`] mounts anew.
    pub own_catalog: bool,
}

impl Default for Capabilities {
    /// The least that can be assumed.
    fn default() -> Self {
        Self { sizing: Sizing::Explicit, clone_range: false, punch: false, shared: false, own_catalog: false }
    }
}

/// Read-only or read-write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The descriptor cannot write.
    ReadOnly,
    /// The descriptor reads and writes.
    ReadWrite,
}

/// A container as the back end sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// Its length.
    pub length: Bytes,
    /// Bytes it takes on the storage.
    pub allocated: Bytes,
    /// When it was last written, in seconds since 1970.
    pub modified: i64,
}

/// What is written on a container, beside its bytes: short texts by name (lower case letters and `_`). The catalog is what
/// counts; labels are for other tools, and for who has to make a new catalog.
pub type Labels = BTreeMap<String, String>;

/// A container that is the bytes of a disk and nothing else, as other managers keep some. It has no header, so what it is stands
/// in its name and beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDisk {
    /// The disk that its name says, as an image.
    pub id: ImageId,
    /// Whether its manager made a base copy of it.
    pub hidden: bool,
}

/// What is remarkable at a place, for who takes over what another manager left there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// How bad: an error stands in the way.
    pub severity: Severity,
    /// Of what.
    pub object: String,
    /// What it is.
    pub problem: String,
}

/// Figures of an SR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStat {
    /// Size of the file system or volume group.
    pub total: Bytes,
    /// Bytes that the SR takes of it (allocated bytes of what it holds, its metadata included).
    pub used: Bytes,
    /// Bytes that new containers can still take.
    pub allocatable: Bytes,
}

/// Figures of an SR that are had without looking at its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system or volume group.
    pub total: Bytes,
    /// Bytes that new containers can still take.
    pub allocatable: Bytes,
    /// Bytes that the SR takes beside its containers.
    pub metadata: Bytes,
}

/// What has become of free space that was given back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discarded {
    /// Bytes that devices were told of.
    pub bytes: Bytes,
    /// Devices that cannot be told.
    pub unable: Vec<String>,
}

/// A kind of storage repository.
///
/// A location is what an administrator gave: an absolute path, or several joined by commas where an SR has several devices.
pub trait Plugin: Sync {
    /// The name in `--type`.
    fn kind(&self) -> &'static str;

    /// How containers of its SRs get their size.
    fn sizing(&self) -> Sizing {
        Sizing::Automatic
    }

    /// Says, once and before anything else, where this process may keep what goes with the boot of the host (mount points).
    fn prepare(&self, _run_dir: &Path) {}

    /// The places of its own where a debug build can be told to die.
    fn crash_points(&self) -> &'static [CrashPoint] {
        &[]
    }

    /// What is at the location. Changes nothing.
    fn probe(&self, location: &Path) -> Result<Probe, Error>;

    /// Makes an SR at an empty location (an absent directory is made) and opens it. Refuses what holds anything else.
    fn create(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error>;

    /// Makes an SR of a location that holds images, touching none of them, and opens it.
    fn adopt(&self, location: &Path, identity: &SrIdentity) -> Result<Box<dyn Store>, Error>;

    /// Opens the SR `uuid` at the location, and makes `host` its owner: a marker of another host is refused unless
    /// `take_over`. A second open of the same SR is refused as in use for as long as the first lives, in any process.
    fn open(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error>;

    /// The same for an SR whose catalog has lost its place ([`Error::CatalogLost`]): it gets a new, empty one. What is left of the old
    /// is kept aside.
    fn renew(
        &self,
        location: &Path,
        uuid: SrUuid,
        host: &HostIdentity,
        take_over: bool,
    ) -> Result<Box<dyn Store>, Error> {
        self.open(location, uuid, host, take_over)
    }

    /// Looks at a location without owning or changing it: of the store only `list`, `info`, `labels`, `stat` and read-only
    /// `activate` work.
    /// For dry runs.
    fn look(&self, location: &Path) -> Result<Box<dyn Store>, Error>;
}

/// An open SR: a keeper of named containers. Dropping it gives the ownership lock up.
///
/// A container name is one path component of at most 255 bytes without `/`, not starting with a dot.
pub trait Store: Send + Sync {
    /// What it can do beyond the required.
    fn capabilities(&self) -> Capabilities;

    /// The directory of the catalog, on the SR itself.
    fn catalog_dir(&self) -> &Path;

    /// Mounts the file system of the catalog anew, where the SR has one of its own: after an error of its storage it takes no writes
    /// until then, though the storage works again. The caller has nothing of it open. After a failure it may not be mounted.
    fn renew_catalog(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What had to be mended before the catalog's place could be used; asked once after it was opened or renewed. Then files of the
    /// catalog may be missing or old, until the caller has looked and says so ([`believe_catalog`](Self::believe_catalog)): who opens
    /// it next is told the same.
    fn mended(&self) -> Option<String> {
        None
    }

    /// The files of a place that was mended are whole.
    fn believe_catalog(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether the storage is still the one that was opened (the marker can be read and names the same SR).
    fn check_marker(&self) -> Result<(), Error>;

    /// The name of the container of an image that is made here.
    fn container_name(&self, image: ImageId, extension: &str) -> String {
        format!("{image}.{extension}")
    }

    /// Whether a container that was made by others may hold an image, as far as its name says.
    fn may_be_image(&self, name: &str) -> bool;

    /// The raw disk that a container is, as far as its name says.
    fn raw_disk(&self, _name: &str) -> Option<RawDisk> {
        None
    }

    /// The part of a container's name that names its disk.
    fn disk_name<'a>(&self, name: &'a str) -> &'a str {
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }

    /// What is remarkable beside the containers, for who takes them over.
    fn remarks(&self) -> Vec<Remark> {
        Vec::new()
    }

    /// What another manager says of its disks, by the name of the container: labels as ours are. Empty where nothing is known.
    fn told(&self) -> BTreeMap<String, Labels> {
        BTreeMap::new()
    }

    /// The size that a container made of, grown or shrunk to `size` really gets.
    fn round(&self, size: Bytes) -> Bytes {
        size
    }

    /// Makes an empty container. `size` counts where sizing is explicit; then it is ready for writing when this returns, but may
    /// hold any bytes. Exists already: [`Error::Exists`]. Its name is durable when this returns.
    fn create_container(&self, name: &str, size: Bytes) -> Result<(), Error>;

    /// Makes several empty containers, whose names are durable together when this returns. After a failure some may be there.
    fn create_containers(&self, wanted: &[(&str, Bytes)]) -> Result<(), Error> {
        wanted.iter().try_for_each(|(name, size)| self.create_container(name, *size))
    }

    /// Removes a container; durable when this returns. One that is not there is no error: `false`.
    fn remove(&self, name: &str) -> Result<bool, Error>;

    /// Removes those of these containers that are there; durable when this returns. After a failure some may be gone.
    fn remove_all(&self, names: &[&str]) -> Result<(), Error> {
        names.iter().try_for_each(|name| self.remove(name).map(drop))
    }

    /// All containers, and nothing else that lies about.
    fn list(&self) -> Result<Vec<ContainerInfo>, Error>;

    /// One container. Not there: [`Error::Missing`].
    fn info(&self, name: &str) -> Result<ContainerInfo, Error>;

    /// Makes a container ready and opens it. Never follows a symbolic link, never leaves the SR. Files are opened relative to
    /// a directory descriptor held since the SR was opened.
    fn activate(&self, name: &str, access: Access) -> Result<OwnedFd, Error>;

    /// The same for several containers, at the cost of one where that can be. Their descriptors are in the order asked for.
    fn activate_all(&self, wanted: &[(&str, Access)]) -> Result<Vec<OwnedFd>, Error> {
        wanted.iter().map(|(name, access)| self.activate(name, *access)).collect()
    }

    /// Says which containers are in use now, and how: all others need not be ready any more, and what is only read need not be
    /// ready for writing. Nothing is counted, so nothing can leak. Gives those that are still open, as of a process that is ending: they
    /// stay as they are, and it is to be said again later.
    fn keep_active(&self, _wanted: &[(&str, Access)]) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Makes a container of explicit sizing larger. Nothing to do where sizing is automatic.
    fn grow(&self, name: &str, size: Bytes) -> Result<(), Error>;

    /// Makes a container of explicit sizing smaller. Nothing to do where sizing is automatic.
    fn shrink(&self, name: &str, size: Bytes) -> Result<(), Error>;

    /// Writes these labels on a container, and removes all others of ours. Changes neither its bytes nor their time of change, but
    /// may change what it takes. Need not be durable when this returns. [`Error::Unsupported`] where the storage has no place
    /// for labels.
    fn set_labels(&self, _name: &str, _labels: &Labels) -> Result<(), Error> {
        Err(Error::Unsupported("this storage has no place for labels".to_owned()))
    }

    /// Says which labels a container will get that is about to be made: it may be made with them, where that costs less. Needs not be
    /// heeded; the labels are set later in any case.
    fn expect_labels(&self, _name: &str, _labels: &Labels) {}

    /// The labels of a container; none where the storage has no place for them.
    fn labels(&self, _name: &str) -> Result<Labels, Error> {
        Ok(Labels::new())
    }

    /// Figures. May look at every container.
    fn stat(&self) -> Result<StoreStat, Error>;

    /// The figures that are asked for after every change: as cheap as the storage can make them.
    fn space(&self) -> Result<Space, Error> {
        let stat = self.stat()?;
        let containers = self.list()?.iter().map(|info| info.allocated.0).sum();
        let metadata = Bytes(stat.used.0.saturating_sub(containers));
        Ok(Space { total: stat.total, allocatable: stat.allocatable, metadata })
    }

    /// Takes up what the storage has grown by, and adds devices to it; those that belong to it already stay as they are. Durable when
    /// this returns. After a failure or a crash the storage is as it was or larger, and the same may be asked again. A device that
    /// holds anything is refused ([`Error::Foreign`]). Nothing to do where storage grows by itself.
    fn enlarge(&self, devices: &[&str]) -> Result<(), Error> {
        if devices.is_empty() {
            return Ok(());
        }
        Err(Error::Unsupported("the storage of this SR grows by itself, and takes no devices".to_owned()))
    }

    /// Tells devices which space is free (discard), a little at a time, so that nobody waits for it noticeably. `told` hears how many
    /// bytes are done, of how many, and says whether to go on. [`Error::Unsupported`] where that is not the SR's business, or no
    /// device can be told.
    fn discard_free(&self, _told: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<Discarded, Error> {
        Err(Error::Unsupported("the file system gives its free space back itself".to_owned()))
    }

    /// Removes what makes the location an SR: marker, lock and catalog directory, and nothing else. Refused while there are
    /// containers named by the caller's catalog; the caller has removed those. Afterwards the store is only dropped.
    fn destroy(&self) -> Result<(), Error>;
}
