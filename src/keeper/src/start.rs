//! How an SR is opened: attached, created or taken over. One of these comes once, before any other request.

use crate::adoption::Serving;
use crate::cgroup::Group;
use crate::dispatch::params;
use crate::failures::{bad_request, from_catalog};
use crate::introduce::{lost, nothing_is_left, unmake};
use crate::mended::open_catalog;
use crate::owner::{Mail, Owner};
use crate::priority::only_thin;
use crate::published::SrFacts;
use crate::rundir::RunDir;
use catena_catalog::{Catalog, Error as CatalogError, Meta};
use catena_rpc::{Away, KeeperAttach, KeeperStart, Request, SrCreateParams, SrOwner, SrProbed, Writer};
use catena_sr_api::{Error as StoreError, HostIdentity, Plugin, Probe, Sizing, SrIdentity, Store};
use catena_types::{Allocation, ErrorName, EventRecord, Failure, Severity, SrUuid};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long a predecessor on this host, whose front has died, may take to let go of the SR: longer than it may be waiting for a process
/// of a disk that does not end.
const PREDECESSOR: Duration = Duration::from_secs(40);

/// What a first request came to.
pub(crate) enum Begun {
    /// An answer, and nothing is open.
    Said(Value),
    /// An answer and an open SR.
    Opened(Value, Box<Owner>),
}

/// What the first requests have said so far.
pub(crate) struct Starter {
    plugins: &'static [&'static dyn Plugin],
    start: Option<KeeperStart>,
    mailbox: Sender<Mail>,
    front: Writer,
}

impl Starter {
    /// Knows nothing yet.
    pub(crate) const fn new(
        plugins: &'static [&'static dyn Plugin],
        mailbox: Sender<Mail>,
        front: Writer,
    ) -> Self {
        Self { plugins, start: None, mailbox, front }
    }

    /// Takes one request.
    pub(crate) fn step(&mut self, request: &Request) -> Result<Begun, Failure> {
        match request.method.as_str() {
            "Keeper.start" => {
                let start: KeeperStart = params(request)?;
                self.plugins.iter().for_each(|plugin| plugin.prepare(&start.run_dir));
                self.start = Some(start);
                Ok(Begun::Said(json!({})))
            }
            "SR.attach" => self.attach_or_say_why(&params(request)?),
            "SR.create" => self.create(&params(request)?),
            "SR.introduce" => self.introduce(&params(request)?),
            "SR.probe" => self.probe(),
            // It followed an attach that was refused, on its heels.
            "SR.detach" => Ok(Begun::Said(json!({}))),
            other => Err(bad_request(format!("{other} before an SR is open"))),
        }
    }

    pub(crate) fn start(&self) -> Result<(&KeeperStart, &'static dyn Plugin), Failure> {
        let start = self.start.as_ref().ok_or_else(|| bad_request("Keeper.start comes first"))?;
        let plugin = self.plugins.iter().find(|plugin| plugin.kind() == start.kind).ok_or_else(|| {
            let kinds: Vec<&str> = self.plugins.iter().map(|plugin| plugin.kind()).collect();
            Failure::new(ErrorName::SrUnknownType, format!("there is no SR type '{}'", start.kind))
                .hint(format!("types: {}", kinds.join(", ")))
        })?;
        Ok((start, *plugin))
    }

    /// `SR.probe`: what is at the location. Changes nothing.
    fn probe(&self) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let mut said = SrProbed { location: start.location.clone(), ..SrProbed::default() };
        match plugin.probe(Path::new(&start.location))? {
            Probe::Empty => "empty".clone_into(&mut said.found),
            Probe::Ours(identity) => {
                "sr".clone_into(&mut said.found);
                said.uuid = Some(identity.uuid);
                said.name_label = Some(identity.name_label);
                let this_host = identity.owner.host == start.host_id;
                said.owner =
                    Some(SrOwner { host: identity.owner.host, boot: identity.owner.boot, this_host });
            }
            Probe::Images(names) => {
                "images".clone_into(&mut said.found);
                said.images = names;
            }
            Probe::Foreign(what) => {
                "foreign".clone_into(&mut said.found);
                said.text = what;
            }
        }
        let document = serde_json::to_value(said);
        document.map(Begun::Said).map_err(|error| bad_request(error.to_string()))
    }

    /// `SR.attach`. Where waiting helps, the front tries it again, and who watches hears of it once.
    fn attach_or_say_why(&self, asked: &KeeperAttach) -> Result<Begun, Failure> {
        self.attach(asked).map_err(may_pass).inspect_err(|failure| {
            if let (true, None, Some(start)) = (failure.retry, &asked.away, &self.start) {
                let text = format!("the SR cannot be attached now, and is tried again: {failure}");
                crate::owner::notify(&self.front, &gone(start.sr, text));
            }
        })
    }

    fn attach(&self, asked: &KeeperAttach) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let store = open(plugin, start, start.sr, asked.take_over).map_err(|failure| match failure.name {
            ErrorName::Metadata => make_anew(failure, start),
            _ => failure,
        })?;
        let (catalog, mended) = match open_catalog(&*store) {
            // The end of a creation that stopped between marker and catalog: there is nothing to lose.
            Err(CatalogError::Missing(_)) if store.list()?.is_empty() && nothing_is_left(&*store)? => {
                let catalog = Catalog::create(store.catalog_dir(), meta(start.sr, ""))
                    .map_err(|error| from_catalog(&error))?;
                (catalog, None)
            }
            other => other.map_err(|error| unopened(&error, start))?,
        };
        let mut owner = self.owner(start.sr, store, catalog)?;
        owner.recover()?;
        let mut events = owner.say_mended(mended);
        if let Some(Away { seconds, why }) = &asked.away {
            let text = format!("attached; it could not be for {seconds} s: {why}");
            events.push(owner.event(Severity::Warning, "sr.available", None, None, text));
        }
        if !events.is_empty() {
            owner.commit(events)?;
        }
        Ok(Begun::Opened(json!({}), Box::new(owner)))
    }

    fn create(&self, asked: &SrCreateParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let allocation: Allocation =
            asked.allocation.as_deref().unwrap_or("thin").parse().map_err(bad_request)?;
        if allocation != Allocation::Thin && plugin.sizing() == Sizing::Automatic {
            return Err(only_thin().hint("leave --allocation out"));
        }
        let location = Path::new(&start.location);
        // An SR with the very id that this one is to have was made by the first run of this request.
        if matches!(plugin.probe(location)?, Probe::Ours(found) if found.uuid == start.sr) {
            return match self.attach(&KeeperAttach::default())? {
                Begun::Opened(_, owner) => Ok(Begun::Opened(json!({"uuid": start.sr}), owner)),
                said @ Begun::Said(_) => Ok(said),
            };
        }
        let store = plugin.create(location, &identity(start, &asked.name_label))?;
        let mut meta = meta(start.sr, &asked.name_label);
        if allocation != Allocation::Thin {
            meta.other.insert("allocation".to_owned(), allocation.word().to_owned());
        }
        let catalog = match Catalog::create(store.catalog_dir(), meta) {
            Ok(catalog) => catalog,
            Err(error) => {
                unmake(&*store);
                return Err(from_catalog(&error));
            }
        };
        let owner = self.owner(start.sr, store, catalog)?;
        Ok(Begun::Opened(json!({"uuid": start.sr}), Box::new(owner)))
    }

    pub(crate) fn facts(&self, sr: SrUuid, store: &dyn Store) -> Result<SrFacts, Failure> {
        let (start, _) = self.start()?;
        let reflink = store.capabilities().clone_range;
        let device = match start.devices.first() {
            Some(device) => std::fs::metadata(device).map_or(0, |metadata| metadata.rdev()),
            None => std::fs::metadata(&start.location).map_or(0, |metadata| metadata.dev()),
        };
        let (kind, location) = (start.kind.clone(), start.location.clone());
        let devices = start.devices.clone();
        Ok(SrFacts { uuid: sr, kind, location, devices, reflink, device, group: None })
    }

    pub(crate) fn owner(
        &self,
        sr: SrUuid,
        store: Box<dyn Store>,
        catalog: Catalog,
    ) -> Result<Owner, Failure> {
        let groups = self.start.as_ref().is_some_and(|start| start.groups);
        let group = groups.then(|| Group::make(sr)).flatten().map(Arc::new);
        let facts = SrFacts { group, ..self.facts(sr, &*store)? };
        let (run_dir, group, boot) = self.start.as_ref().map_or_else(Default::default, |start| {
            (start.run_dir.clone(), start.socket_group, start.boot_id.clone())
        });
        let serving = Serving::new(RunDir::new(&run_dir, group), boot);
        Ok(Owner::new(facts, store, catalog, self.mailbox.clone(), self.front.clone(), serving))
    }
}

/// Opens the SR. A front that has died leaves a keeper that first ends its jobs: who comes after it on this host waits for that.
pub(crate) fn open(
    plugin: &dyn Plugin,
    start: &KeeperStart,
    uuid: SrUuid,
    take_over: bool,
) -> Result<Box<dyn Store>, Failure> {
    let location = Path::new(&start.location);
    // From when it is met, not from before: to look at a device that hangs takes as long as it hangs.
    let mut deadline = None;
    loop {
        let own = |probe| matches!(probe, Probe::Ours(identity) if identity.owner.host == start.host_id);
        match plugin.open(location, uuid, &host(start), take_over) {
            Err(StoreError::InUse(_))
                if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + PREDECESSOR)
                    && plugin.probe(location).is_ok_and(own) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(StoreError::InUse(why)) => {
                let theirs = !plugin.probe(location).is_ok_and(own);
                let hint = if theirs {
                    "detach it there; only if that host is down for good, repeat this with --take-over"
                } else {
                    "another agent of this host has it: detach it there"
                };
                return Err(Failure::new(ErrorName::SrInUse, why).hint(hint).object("sr", uuid));
            }
            opened => return Ok(opened?),
        }
    }
}

/// What the catalog of an SR that is to be attached says when it cannot be opened.
fn unopened(error: &CatalogError, start: &KeeperStart) -> Failure {
    let failure = from_catalog(error);
    match error {
        _ if lost(error) => make_anew(failure, start),
        // Its storage, not what is on it.
        CatalogError::Io { .. } | CatalogError::Sql { .. } | CatalogError::OutcomeUnknown { .. } => {
            failure.hint("look at the storage and at the kernel's log").retry()
        }
        _ => failure,
    }
}

/// Marks the refusals of an attach that pass when the storage is there, works, or has room.
fn may_pass(mut failure: Failure) -> Failure {
    let passes = [ErrorName::SrUnavailable, ErrorName::IoError, ErrorName::NoSpace];
    failure.retry |= passes.contains(&failure.name);
    failure
}

/// An event that is not kept, since its catalog is not to be had.
fn gone(sr: SrUuid, message: String) -> EventRecord {
    let kind = "sr.unavailable".to_owned();
    let (time, severity) = (Timestamp::now(), Severity::Error);
    EventRecord { id: 0, time, kind, severity, sr, vdi: None, job: None, message }
}

/// Says how a lost catalog gets a successor.
fn make_anew(failure: Failure, start: &KeeperStart) -> Failure {
    let option = if start.devices.is_empty() { "--location" } else { "--devices" };
    failure.hint(format!(
        "make it anew from its copy and the images: catena sr introduce --type {} {option} {} (first with --dry-run)",
        start.kind, start.location
    ))
}

pub(crate) fn host(start: &KeeperStart) -> HostIdentity {
    HostIdentity { host: start.host_id.clone(), boot: start.boot_id.clone() }
}

pub(crate) fn identity(start: &KeeperStart, label: &str) -> SrIdentity {
    SrIdentity { uuid: start.sr, name_label: label.to_owned(), owner: host(start) }
}

pub(crate) fn meta(sr: SrUuid, label: &str) -> Meta {
    Meta {
        sr,
        name_label: label.to_owned(),
        name_description: String::new(),
        created: Timestamp::now(),
        coalesce_paused: false,
        paused_until: None,
        other: BTreeMap::new(),
    }
}
