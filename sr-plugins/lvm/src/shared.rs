//! What an open SR knows of its volume group, and the one place from which commands change it.
//!
//! Two locks, taken in this order: `commands`, held while a command runs and for no question that memory can answer; `known`, held
//! for moments. Invariant: `known` is what the group is, unless `stale`; then the next who wants to change something reads the
//! group first. Used by `store` and `labeller`.

use crate::enlarge::wider;
use crate::lvm2::{Lvm2, Scope, Volumes};
use crate::marker::XENSERVER;
use crate::node::Node;
use crate::report::{Active, Group};
use crate::store::is_image;
use crate::xenserver::NAMES;
use catena_sr_api::{Access, Error};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is known.
#[derive(Debug)]
pub(crate) struct Known {
    /// The group.
    pub(crate) group: Group,
    /// A command has failed, and may have done a part of what it was to do.
    pub(crate) stale: bool,
    /// Tags of ours that volumes are to have and do not have yet.
    pub(crate) meant: BTreeMap<String, BTreeSet<String>>,
    /// Volumes that were made or made active here, whatever their names.
    pub(crate) used: BTreeSet<String>,
    /// Tags of ours that volumes are to be made with.
    pub(crate) expected: BTreeMap<String, BTreeSet<String>>,
    /// The store is being closed.
    pub(crate) ending: bool,
}

/// An SR's group.
#[derive(Debug)]
pub(crate) struct Shared {
    commands: Mutex<Lvm2>,
    known: Mutex<Known>,
    /// Told when `meant` or `ending` changes.
    pub(crate) changed: Condvar,
    /// How often it may have changed which extents are free.
    layouts: AtomicU64,
}

impl Known {
    /// Whether a volume is of the SR: who else has volumes in the group makes them active and inactive as he likes.
    pub(crate) fn is_of_sr(&self, name: &str) -> bool {
        // The names were read by us; a keeper that died over it has left them active.
        let is_names = name == NAMES && self.group.name.starts_with(XENSERVER);
        self.used.contains(name) || is_names || is_image(name)
    }
}

impl Shared {
    /// A group as it was reported.
    pub(crate) fn new(lvm: Lvm2, group: Group) -> Self {
        let known = Known {
            group,
            stale: false,
            meant: BTreeMap::new(),
            used: BTreeSet::new(),
            expected: BTreeMap::new(),
            ending: false,
        };
        Self {
            commands: Mutex::new(lvm),
            known: Mutex::new(known),
            changed: Condvar::new(),
            layouts: AtomicU64::new(0),
        }
    }

    /// What is known now.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with commands, alone. The group is read first if it is not known.
    pub(crate) fn command<T>(&self, doing: impl FnOnce(&Lvm2) -> Result<T, Error>) -> Result<T, Error> {
        self.alone(|lvm| {
            self.layouts.fetch_add(1, Ordering::Relaxed);
            doing(lvm)
        })
    }

    /// The same for what changes no extents.
    pub(crate) fn alone<T>(&self, doing: impl FnOnce(&mut Lvm2) -> Result<T, Error>) -> Result<T, Error> {
        let mut lvm = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if self.known().stale {
            self.read(&lvm)?;
        }
        let done = doing(&mut lvm);
        if done.is_err() {
            self.known().stale = true;
        }
        done
    }

    /// Does something with commands that see these devices too; then they see those that the group has.
    pub(crate) fn command_wider<T>(
        &self,
        devices: &[String],
        doing: impl FnOnce(&Lvm2, &Group) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.alone(|lvm| {
            let group = self.known().group.clone();
            lvm.scope = wider(&group, devices);
            let done = doing(lvm, &group);
            // Also after a failure, which may have come after the commit. As long as the group cannot be read its devices may be any.
            self.read(lvm)?;
            lvm.scope = Scope::Devices(self.known().group.devices.clone());
            done
        })
    }

    /// Another number means that which extents are free may have changed. To be asked for while nobody else changes it.
    pub(crate) fn layout(&self) -> u64 {
        self.layouts.load(Ordering::Relaxed)
    }

    /// Reads the group anew, and mends what a command left undone that was killed.
    pub(crate) fn read(&self, lvm: &Lvm2) -> Result<(), Error> {
        let name = self.known().group.name.clone();
        let found = lvm.report(Some(&name))?.pop();
        let group = found.ok_or_else(|| Error::Unavailable(format!("the volume group {name} is gone")))?;
        mend(lvm, &group)?;
        self.layouts.fetch_add(1, Ordering::Relaxed);
        let mut known = self.known();
        known.group = group;
        known.stale = false;
        Ok(())
    }

    /// Opens containers that are ready for it; `None` if one is not. There is none of that name: [`Error::Missing`].
    pub(crate) fn open(&self, wanted: &[(&str, Access)]) -> Result<Option<Vec<OwnedFd>>, Error> {
        let mut nodes = Vec::with_capacity(wanted.len());
        {
            let known = self.known();
            for (name, access) in wanted {
                let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
                match (volume.active, access) {
                    (Active::ReadWrite, _) | (Active::ReadOnly, Access::ReadOnly) => {}
                    _ => return Ok(None),
                }
                nodes.push((Node::of(&known.group.name, &known.group.uuid, name), *access));
            }
        }
        let mut fds = Vec::with_capacity(nodes.len());
        for ((node, access), (name, _)) in nodes.iter().zip(wanted) {
            match node.open(*access)? {
                Some(fd) => fds.push(fd),
                None => {
                    // Somebody else made it inactive.
                    self.known().group.set_active(&[name], Active::No);
                    return Ok(None);
                }
            }
        }
        Ok(Some(fds))
    }

    /// Makes containers active as wanted: at most one command for those that are not, and one for those that were only to be
    /// read until now.
    pub(crate) fn make_ready(&self, wanted: &[(&str, Access)]) -> Result<(), Error> {
        self.alone(|lvm| {
            let written: BTreeSet<&str> = wanted
                .iter()
                .filter(|(_, access)| *access == Access::ReadWrite)
                .map(|(name, _)| *name)
                .collect();
            let (mut inactive, mut upgraded) = (BTreeSet::new(), BTreeSet::new());
            let group = {
                let known = self.known();
                for (name, _) in wanted {
                    let volume = known.group.container(name).ok_or_else(|| missing(&known.group, name))?;
                    match volume.active {
                        Active::No => drop(inactive.insert(*name)),
                        Active::ReadOnly if written.contains(name) => drop(upgraded.insert(*name)),
                        _ => {}
                    }
                }
                known.group.name.clone()
            };
            if !inactive.is_empty() {
                let (rw, ro): (Vec<&str>, Vec<&str>) =
                    inactive.iter().partition(|name| written.contains(*name));
                let all: Vec<&str> = inactive.iter().copied().collect();
                lvm.activate(Volumes { group: &group, names: &all, read_only: &ro })?;
                let mut known = self.known();
                known.used.extend(all.iter().map(|name| (*name).to_owned()));
                known.group.set_active(&rw, Active::ReadWrite);
                known.group.set_active(&ro, Active::ReadOnly);
            }
            if !upgraded.is_empty() {
                let names: Vec<&str> = upgraded.into_iter().collect();
                lvm.refresh(Volumes { group: &group, names: &names, read_only: &[] })?;
                self.known().group.set_active(&names, Active::ReadWrite);
            }
            Ok(())
        })
    }

    /// Makes volumes inactive with one command; those that somebody has open stay as they are, and are given.
    pub(crate) fn deactivate(&self, lvm: &Lvm2, names: &[&str]) -> Result<Vec<String>, Error> {
        let mut open = Vec::new();
        if names.is_empty() {
            return Ok(open);
        }
        let (group, uuid) = {
            let known = self.known();
            (known.group.name.clone(), known.group.uuid.clone())
        };
        match lvm.deactivate(Volumes { group: &group, names, read_only: &[] }) {
            Ok(()) => self.known().group.set_active(names, Active::No),
            Err(Error::InUse(why)) => {
                tracing::debug!(group, why, "volumes that are still open stay active");
                for name in names {
                    if Node::of(&group, &uuid, name).open(Access::ReadOnly)?.is_none() {
                        self.known().group.set_active(&[name], Active::No);
                    } else {
                        open.push((*name).to_owned());
                    }
                }
            }
            Err(error) => return Err(error),
        }
        Ok(open)
    }
}

/// Loads active volumes anew that the kernel holds back or has with another size: a command that changed them was killed. Whether
/// there are any.
pub(crate) fn mend(lvm: &Lvm2, group: &Group) -> Result<bool, Error> {
    let torn = |name: &str, volume: &crate::report::Volume| {
        let size = Node::of(&group.name, &group.uuid, name).size();
        volume.suspended || size.is_some_and(|size| size != group.bytes(volume.extents))
    };
    let active = group.volumes.iter().filter(|(_, volume)| volume.active != Active::No);
    let names: Vec<&str> =
        active.filter(|(name, volume)| torn(name, volume)).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        return Ok(false);
    }
    tracing::warn!(group = group.name, ?names, "volumes are mended whose change was cut short");
    let read_only = group.read_only();
    let read_only: Vec<&str> = read_only.iter().map(String::as_str).collect();
    lvm.refresh(Volumes { group: &group.name, names: &names, read_only: &read_only })?;
    Ok(true)
}

/// There is no such container.
pub(crate) fn missing(group: &Group, name: &str) -> Error {
    Error::Missing(format!("there is no container {name:?} in the volume group {}", group.name))
}
