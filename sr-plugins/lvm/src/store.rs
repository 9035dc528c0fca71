//! An open SR in a volume group: containers are its plain logical volumes.
//!
//! Invariants: questions are answered from memory; every change is one command for all that it is about; a volume is active for
//! writing only while somebody is to write it. What happens to be active is no state that is kept anywhere: the keeper says what
//! is in use. Called by the keeper from any thread.

use crate::crash;
use crate::fsck;
use crate::home::{self, Home};
use crate::labeller::Labeller;
use crate::lvm2::{Lvm2, Volumes};
use crate::marker::{self, CATALOG, Kind};
use crate::report::{Active, Group};
use crate::shared::{Known, Shared, missing};
use crate::{discard, enlarge, names, tags, xenserver};
use catena_sr_api::{
    Access, Capabilities, ContainerInfo, Discarded, Error, Labels, RawDisk, Remark, Sizing, SrIdentity,
    Store, StoreStat,
};
use catena_types::{Bytes, ImageId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the names of images made here begin with.
const OWN: &str = "vhd-";
/// The most bytes in a name: device-mapper's names have 127 with the group's, and dashes count twice.
const LONGEST_NAME: usize = 64;
/// The most bytes of labels that a volume is made with; more are written later.
const WITH_LABELS: usize = 8 << 10;
/// How often a volume is made active that somebody else makes inactive.
const TRIES: usize = 3;

/// An SR that is owned, or only looked at.
#[derive(Debug)]
pub(crate) struct LvmStore {
    shared: Arc<Shared>,
    catalog_dir: PathBuf,
    /// Its marker when it was opened; absent where there was none.
    identity: Option<SrIdentity>,
    /// The owner's part; absent while only looking, and when the SR was destroyed.
    owner: Mutex<Option<Owner>>,
    /// The catalog, mounted by who only looks.
    mounted: Option<home::Mounted>,
}

/// What only an owner has. The last labels are written before the lock goes.
#[derive(Debug)]
struct Owner {
    labeller: Option<Labeller>,
    home: Home,
}

impl LvmStore {
    /// The SR of this process.
    pub(crate) fn owned(lvm: Lvm2, group: Group, identity: SrIdentity, home: Home) -> Self {
        let shared = Arc::new(Shared::new(lvm, group));
        let catalog_dir = home.mounted.path().to_owned();
        let labeller = Labeller::start(&shared);
        Self {
            shared,
            catalog_dir,
            identity: Some(identity),
            owner: Mutex::new(Some(Owner { labeller: Some(labeller), home })),
            mounted: None,
        }
    }

    /// A group in which nothing may change, with its catalog where it is an SR.
    pub(crate) fn looked_at(
        lvm: Lvm2,
        group: Group,
        identity: Option<SrIdentity>,
        catalog: home::Seen,
    ) -> Self {
        let (catalog_dir, mounted) = catalog.into_parts();
        Self {
            shared: Arc::new(Shared::new(lvm, group)),
            catalog_dir,
            identity,
            owner: Mutex::new(None),
            mounted,
        }
    }

    fn owner(&self) -> Result<MutexGuard<'_, Option<Owner>>, Error> {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if owner.is_some() {
            return Ok(owner);
        }
        Err(Error::Unsupported("the SR was opened only to look at it".to_owned()))
    }

    fn check_owner(&self) -> Result<(), Error> {
        self.owner().map(drop)
    }

    /// Gives a container another size; `grows` says which way, the other way does nothing. What is cut nobody writes until it is made
    /// ready for that again: it loses the right to be written with the same command.
    fn resize(&self, name: &str, size: Bytes, grows: bool) -> Result<(), Error> {
        check_name(name)?;
        self.check_owner()?;
        self.shared.command(|lvm| {
            let (group, extents, active) = {
                let known = self.shared.known();
                let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
                let extents = known.group.extents_of(size);
                if if grows { extents <= volume.extents } else { extents >= volume.extents } {
                    return Ok(());
                }
                known.group.need(extents.saturating_sub(volume.extents))?;
                (known.group.name.clone(), extents, volume.active)
            };
            let names = [name];
            let read_only = !grows || active == Active::ReadOnly;
            let volume =
                Volumes { group: &group, names: &names, read_only: if read_only { &names } else { &[] } };
            let done = if grows { lvm.extend(volume, extents) } else { lvm.reduce(volume, extents) };
            done?;
            let mut known = self.shared.known();
            known.group.resized(name, extents);
            if read_only && active == Active::ReadWrite {
                known.group.set_active(&names, Active::ReadOnly);
            }
            Ok(())
        })
    }
}

impl Store for LvmStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { sizing: Sizing::Explicit, own_catalog: true, ..Capabilities::default() }
    }

    fn catalog_dir(&self) -> &Path {
        &self.catalog_dir
    }

    fn renew_catalog(&self) -> Result<(), Error> {
        let node = home::node(&self.shared.known().group);
        self.owner()?.as_ref().map_or(Ok(()), |owner| owner.home.mounted.renew(&node))
    }

    fn mended(&self) -> Option<String> {
        self.owner().ok()?.as_ref()?.home.mounted.mended()
    }

    fn believe_catalog(&self) -> Result<(), Error> {
        fsck::believe(&home::node(&self.shared.known().group))
    }

    fn check_marker(&self) -> Result<(), Error> {
        self.shared.alone(|lvm| self.shared.read(lvm))?;
        let known = self.shared.known();
        let name = &known.group.name;
        let Some(meant) = &self.identity else { return Ok(()) };
        match marker::kind(&known.group) {
            Kind::Sr(found) if found.uuid != meant.uuid => {
                Err(Error::Unavailable(format!("the volume group {name} holds the SR {}", found.uuid)))
            }
            Kind::Sr(found) if found.owner != meant.owner => {
                Err(Error::InUse(format!("the host {} has taken the SR over", found.owner.host)))
            }
            Kind::Sr(_) if known.group.missing > 0 => {
                let missing = known.group.missing;
                Err(Error::Unavailable(format!("{missing} devices of the volume group {name} are missing")))
            }
            Kind::Sr(_) => Ok(()),
            _ => Err(Error::Unavailable(format!("the volume group {name} is no SR any more"))),
        }
    }

    fn container_name(&self, image: ImageId, _extension: &str) -> String {
        format!("{OWN}{image}")
    }

    fn may_be_image(&self, name: &str) -> bool {
        is_image(name)
    }

    fn raw_disk(&self, name: &str) -> Option<RawDisk> {
        let known = self.shared.known();
        known.group.container(name).and_then(|volume| xenserver::raw_disk(name, volume))
    }

    fn disk_name<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(OWN).unwrap_or_else(|| xenserver::disk_name(name))
    }

    fn remarks(&self) -> Vec<Remark> {
        xenserver::remarks(&self.shared.known().group)
    }

    fn told(&self) -> BTreeMap<String, Labels> {
        let (is_theirs, volumes) = {
            let known = self.shared.known();
            let volumes: Vec<String> = known.group.containers().map(|(name, _)| name.to_owned()).collect();
            (known.group.name.starts_with(marker::XENSERVER), volumes)
        };
        if !is_theirs || !volumes.iter().any(|name| name == xenserver::NAMES) {
            return BTreeMap::new();
        }
        let mut bytes = Vec::new();
        let read = self.activate(xenserver::NAMES, Access::ReadOnly).and_then(|fd| {
            let file = File::from(fd).take(names::MOST as u64).read_to_end(&mut bytes);
            file.map_err(Error::io("reading XenServer's names of disks"))
        });
        if let Err(error) = read {
            tracing::warn!(%error, "the names that XenServer has given are not read");
        }
        let told = names::parse(&bytes);
        let disk = |volume: &String| xenserver::disk_name(volume).parse().ok();
        let pairs = volumes.into_iter().filter(|volume| xenserver::is_image(volume));
        let named = |volume: String| told.get(&disk(&volume)?).map(|labels| (volume, labels.clone()));
        pairs.filter_map(named).collect()
    }

    fn round(&self, size: Bytes) -> Bytes {
        let known = self.shared.known();
        known.group.bytes(known.group.extents_of(size))
    }

    fn create_container(&self, name: &str, size: Bytes) -> Result<(), Error> {
        self.create_containers(&[(name, size)])
    }

    fn create_containers(&self, wanted: &[(&str, Bytes)]) -> Result<(), Error> {
        wanted.iter().try_for_each(|(name, _)| check_name(name))?;
        self.check_owner()?;
        self.shared.command(|lvm| {
            let (group, sizes) = {
                let known = self.shared.known();
                if let Some((name, _)) =
                    wanted.iter().find(|(name, _)| known.group.volumes.contains_key(*name))
                {
                    let group = &known.group.name;
                    return Err(Error::Exists(format!("{name:?} exists in the volume group {group}")));
                }
                let sizes: Vec<u64> = wanted.iter().map(|(_, size)| known.group.extents_of(*size)).collect();
                known.group.need(sizes.iter().sum())?;
                (known.group.name.clone(), sizes)
            };
            for ((name, _), extents) in wanted.iter().zip(sizes) {
                let tags = self.shared.known().expected.remove(*name).unwrap_or_default();
                lvm.make_volume(&group, name, extents, &tags)?;
                let mut known = self.shared.known();
                known.used.insert((*name).to_owned());
                known.group.made(name, extents, now(), tags);
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<bool, Error> {
        check_name(name)?;
        self.check_owner()?;
        let there = self.shared.known().group.container(name).is_some();
        self.remove_all(&[name])?;
        Ok(there)
    }

    fn remove_all(&self, names: &[&str]) -> Result<(), Error> {
        names.iter().try_for_each(|name| check_name(name))?;
        self.check_owner()?;
        self.shared.command(|lvm| {
            let (group, there) = {
                let known = self.shared.known();
                let there = names.iter().copied().filter(|name| known.group.container(name).is_some());
                (known.group.name.clone(), there.collect::<BTreeSet<&str>>())
            };
            if there.is_empty() {
                return Ok(());
            }
            let names: Vec<&str> = there.into_iter().collect();
            lvm.remove(Volumes { group: &group, names: &names, read_only: &[] })?;
            let mut known = self.shared.known();
            for name in names {
                known.group.removed(name);
                known.meant.remove(name);
            }
            Ok(())
        })
    }

    fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        let known = self.shared.known();
        Ok(known.group.containers().map(|(name, volume)| known.group.describe(name, volume)).collect())
    }

    fn info(&self, name: &str) -> Result<ContainerInfo, Error> {
        check_name(name)?;
        let known = self.shared.known();
        let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
        Ok(known.group.describe(name, volume))
    }

    fn activate(&self, name: &str, access: Access) -> Result<OwnedFd, Error> {
        let mut fds = self.activate_all(&[(name, access)])?;
        fds.pop().ok_or_else(|| missing(&self.shared.known().group, name))
    }

    fn activate_all(&self, wanted: &[(&str, Access)]) -> Result<Vec<OwnedFd>, Error> {
        wanted.iter().try_for_each(|(name, _)| check_name(name))?;
        if wanted.iter().any(|(_, access)| *access == Access::ReadWrite) {
            self.check_owner()?;
        }
        for _ in 0..TRIES {
            if let Some(fds) = self.shared.open(wanted)? {
                return Ok(fds);
            }
            self.shared.make_ready(wanted)?;
        }
        let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
        Err(Error::Unavailable(format!("of {names:?} some do not stay active")))
    }

    fn keep_active(&self, wanted: &[(&str, Access)]) -> Result<Vec<String>, Error> {
        self.check_owner()?;
        let mut kept: BTreeMap<&str, Access> = BTreeMap::new();
        for (name, access) in wanted {
            let one = kept.entry(*name).or_insert(*access);
            if *access == Access::ReadWrite {
                *one = Access::ReadWrite;
            }
        }
        let sort = |known: &Known| {
            let (mut idle, mut read) = (Vec::new(), Vec::new());
            for (name, volume) in known.group.containers() {
                match (volume.active, kept.get(name)) {
                    (Active::No, _) => {}
                    _ if !known.is_of_sr(name) => {}
                    (_, None) => idle.push(name.to_owned()),
                    (Active::ReadWrite, Some(Access::ReadOnly)) => read.push(name.to_owned()),
                    _ => {}
                }
            }
            (idle, read)
        };
        // The operation is over: what it has not made by now it does not make.
        self.shared.known().expected.clear();
        let nothing = |(idle, read): (Vec<String>, Vec<String>)| idle.is_empty() && read.is_empty();
        if nothing(sort(&self.shared.known())) {
            return Ok(Vec::new());
        }
        self.shared.alone(|lvm| {
            let (group, (idle, read)) = {
                let known = self.shared.known();
                (known.group.name.clone(), sort(&known))
            };
            let idle: Vec<&str> = idle.iter().map(String::as_str).collect();
            let open = self.shared.deactivate(lvm, &idle)?;
            let read: Vec<&str> = read.iter().map(String::as_str).collect();
            if !read.is_empty() {
                lvm.refresh(Volumes { group: &group, names: &read, read_only: &read })?;
                self.shared.known().group.set_active(&read, Active::ReadOnly);
            }
            Ok(open)
        })
    }

    fn grow(&self, name: &str, size: Bytes) -> Result<(), Error> {
        self.resize(name, size, true)
    }

    fn shrink(&self, name: &str, size: Bytes) -> Result<(), Error> {
        self.resize(name, size, false)
    }

    fn set_labels(&self, name: &str, labels: &Labels) -> Result<(), Error> {
        check_name(name)?;
        self.check_owner()?;
        let mut known = self.shared.known();
        let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
        let tags = tags::write(labels);
        if volume.tags.iter().filter(|tag| tag.starts_with(tags::PREFIX)).eq(&tags) {
            // As it was made, or as it was before what is still meant.
            known.meant.remove(name);
            return Ok(());
        }
        known.meant.insert(name.to_owned(), tags);
        drop(known);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn expect_labels(&self, name: &str, labels: &Labels) {
        let tags = tags::write(labels);
        // No volume is not made because of its labels.
        if check_name(name).is_ok() && tags.iter().map(String::len).sum::<usize>() <= WITH_LABELS {
            self.shared.known().expected.insert(name.to_owned(), tags);
        }
    }

    fn labels(&self, name: &str) -> Result<Labels, Error> {
        check_name(name)?;
        let known = self.shared.known();
        let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
        Ok(tags::read(known.meant.get(name).unwrap_or(&volume.tags)))
    }

    fn stat(&self) -> Result<StoreStat, Error> {
        let known = self.shared.known();
        let group = &known.group;
        let used = group.bytes(group.extents.saturating_sub(group.free));
        // One that is not an SR yet will have a catalog first.
        let catalog = if self.identity.is_none() { xenserver::catalog_extents(group) } else { 0 };
        Ok(StoreStat {
            total: group.bytes(group.extents),
            used,
            allocatable: group.bytes(group.allocatable().saturating_sub(catalog)),
        })
    }

    fn enlarge(&self, devices: &[&str]) -> Result<(), Error> {
        self.check_owner()?;
        let Some(identity) = &self.identity else { return Ok(()) };
        enlarge::enlarge(&self.shared, identity.uuid, devices)
    }

    fn discard_free(&self, told: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<Discarded, Error> {
        self.check_owner()?;
        discard::discard_free(&self.shared, told)
    }

    fn destroy(&self) -> Result<(), Error> {
        let mut owner = self.owner()?;
        let Some(identity) = &self.identity else { return Ok(()) };
        self.shared.known().meant.clear();
        // It waits for its turn with a command, and must not do so while this has it.
        drop(owner.as_mut().and_then(|owner| owner.labeller.take()));
        self.shared.command(|lvm| {
            self.shared.read(lvm)?;
            let group = self.shared.known().group.clone();
            let own = group.name == marker::group_name(identity.uuid);
            let kept = if own { marker::first_tag(identity.uuid) } else { BTreeSet::new() };
            let ours = group.tags.iter().filter(|tag| tag.starts_with(tags::PREFIX));
            let gone = ours.filter(|tag| !kept.contains(*tag)).cloned().collect();
            // D1: what points goes durably before what it points at. A crash leaves no SR without its catalog.
            lvm.tag_group(&group.name, &BTreeSet::new(), &gone)?;
            crash::UNMARKED.pass();
            // The mount and the lock keep the catalog's volume open.
            drop(owner.take());
            if own && group.volumes.keys().all(|name| name == CATALOG) {
                lvm.remove_group(&group.name)?;
                return lvm.unmake_physical(&group.devices);
            }
            lvm.remove(Volumes { group: &group.name, names: &[CATALOG], read_only: &[] })?;
            if own { Ok(()) } else { lvm.give_group(&group.name, "") }
        })
    }
}

impl Drop for LvmStore {
    /// What nobody has open is made inactive: the devices may go now.
    fn drop(&mut self) {
        let owner = self.owner.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let mounted = self.mounted.take();
        let is_owner = owner.is_some();
        let mut names: BTreeSet<String> = {
            let known = self.shared.known();
            let ours = |name: &str| {
                known.used.contains(name) || is_owner && (name == CATALOG || known.is_of_sr(name))
            };
            let active = known.group.volumes.iter().filter(|(_, volume)| volume.active != Active::No);
            active.map(|(name, _)| name).filter(|name| ours(name)).cloned().collect()
        };
        // That was made active to look at it.
        names.extend(mounted.as_ref().map(|_| CATALOG.to_owned()));
        drop(mounted);
        drop(owner);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Err(error) = self.shared.command(|lvm| self.shared.deactivate(lvm, &names)) {
            tracing::warn!(%error, "volumes stay active");
        }
    }
}

/// Whether a volume of that name may hold an image.
pub(crate) fn is_image(name: &str) -> bool {
    name.starts_with(OWN) || xenserver::is_image(name)
}

/// Refuses what cannot name a container.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    let why = match name {
        "" => "is empty",
        _ if name.starts_with(['.', '-']) => "starts with a dot or a dash",
        _ if name.len() > LONGEST_NAME => "is longer than 64 bytes",
        _ if !name.bytes().all(plain) => "has characters in it that lvm2 does not take",
        _ => return Ok(()),
    };
    Err(Error::Unsupported(format!("the container name {name:?} {why}")))
}

/// Seconds since 1970.
fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
