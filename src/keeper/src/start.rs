//! How an SR is opened: attached, created or taken over. One of these comes once, before any other request.

use crate::adopt;
use crate::dispatch::params;
use crate::failures::{bad_request, from_catalog};
use crate::owner::{Mail, Owner};
use crate::published::SrFacts;
use crate::worker::SmallWorker;
use catena_catalog::{Catalog, Error as CatalogError, Meta};
use catena_rpc::{KeeperStart, Request, SrCreateParams, SrIntroduceParams, SrParams, Writer};
use catena_sr_api::{Error as StoreError, HostIdentity, Plugin, Probe, SrIdentity, Store};
use catena_types::{ErrorName, Failure, SrUuid, Work};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long a predecessor on this host, whose front has died, may take to let go of the SR.
const PREDECESSOR: Duration = Duration::from_secs(10);

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
                self.start = Some(params(request)?);
                Ok(Begun::Said(json!({})))
            }
            "SR.attach" => self.attach(&params(request)?),
            "SR.create" => self.create(&params(request)?),
            "SR.introduce" => self.introduce(&params(request)?),
            other => Err(bad_request(format!("{other} before an SR is open"))),
        }
    }

    fn start(&self) -> Result<(&KeeperStart, &'static dyn Plugin), Failure> {
        let start = self.start.as_ref().ok_or_else(|| bad_request("Keeper.start comes first"))?;
        let plugin = self.plugins.iter().find(|plugin| plugin.kind() == start.kind).ok_or_else(|| {
            let kinds: Vec<&str> = self.plugins.iter().map(|plugin| plugin.kind()).collect();
            Failure::new(ErrorName::SrUnknownType, format!("there is no SR type '{}'", start.kind))
                .hint(format!("types: {}", kinds.join(", ")))
        })?;
        Ok((start, *plugin))
    }

    fn attach(&self, asked: &SrParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let store = open(plugin, start, start.sr, asked.take_over)?;
        let catalog = match Catalog::open(store.catalog_dir()) {
            // The end of a creation that stopped between marker and catalog: there is nothing to lose.
            Err(CatalogError::Missing(_)) if store.list()?.is_empty() => {
                Catalog::create(store.catalog_dir(), meta(start.sr, ""))
                    .map_err(|error| from_catalog(&error))?
            }
            other => other.map_err(|error| from_catalog(&error))?,
        };
        let mut owner = self.owner(start.sr, store, catalog)?;
        owner.recover()?;
        Ok(Begun::Opened(json!({}), Box::new(owner)))
    }

    fn create(&self, asked: &SrCreateParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        if asked.allocation.as_deref().is_some_and(|allocation| allocation != "thin") {
            return Err(
                Failure::new(ErrorName::Unsupported, "file SRs are thin").hint("leave --allocation out")
            );
        }
        let location = Path::new(&start.location);
        // An SR with the very id that this one is to have was made by the first run of this request.
        if matches!(plugin.probe(location)?, Probe::Ours(found) if found.uuid == start.sr) {
            let again = SrParams { sr: start.sr.to_string(), take_over: false, request_id: None };
            return match self.attach(&again)? {
                Begun::Opened(_, owner) => Ok(Begun::Opened(json!({"uuid": start.sr}), owner)),
                said @ Begun::Said(_) => Ok(said),
            };
        }
        let store = plugin.create(location, &identity(start, &asked.name_label))?;
        let catalog = match Catalog::create(store.catalog_dir(), meta(start.sr, &asked.name_label)) {
            Ok(catalog) => catalog,
            Err(error) => {
                if let Err(error) = store.destroy() {
                    tracing::error!(%error, "a half-made SR could not be removed");
                }
                return Err(from_catalog(&error));
            }
        };
        let owner = self.owner(start.sr, store, catalog)?;
        Ok(Begun::Opened(json!({"uuid": start.sr}), Box::new(owner)))
    }

    fn introduce(&self, asked: &SrIntroduceParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let location = PathBuf::from(&start.location);
        if asked.dry_run {
            let store = plugin.look(&location)?;
            let adoption = adopt::survey(&*store, &mut SmallWorker::default(), start.sr)?;
            return Ok(Begun::Said(adopt::document(
                &adoption,
                self.facts(start.sr, &*store)?,
                meta(start.sr, ""),
            )));
        }
        let directory =
            location.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let label = asked.name_label.clone().unwrap_or(directory);
        let (uuid, store) = match plugin.probe(&location)? {
            Probe::Ours(identity) => (identity.uuid, open(plugin, start, identity.uuid, false)?),
            _ => (start.sr, plugin.adopt(&location, &identity(start, &label))?),
        };
        let catalog = open_or_begin(&*store, uuid, &label)?;
        let mut owner = self.owner(uuid, store, catalog)?;
        owner.recover()?;
        let job = owner.take_over(asked.request_id.clone())?;
        Ok(Begun::Opened(job, Box::new(owner)))
    }

    fn facts(&self, sr: SrUuid, store: &dyn Store) -> Result<SrFacts, Failure> {
        let (start, _) = self.start()?;
        let reflink = store.capabilities().clone_range;
        let device = std::fs::metadata(&start.location).map_or(0, |metadata| metadata.dev());
        Ok(SrFacts { uuid: sr, kind: start.kind.clone(), location: start.location.clone(), reflink, device })
    }

    fn owner(&self, sr: SrUuid, store: Box<dyn Store>, catalog: Catalog) -> Result<Owner, Failure> {
        Ok(Owner::new(self.facts(sr, &*store)?, store, catalog, self.mailbox.clone(), self.front.clone()))
    }
}

impl Owner {
    /// Catalogues the images of a directory that is being taken over, unless that was done before. Answers with the job.
    fn take_over(&mut self, request_id: Option<String>) -> Result<Value, Failure> {
        let state = self.catalog.state();
        let begun = state.jobs.values().any(|job| job.work == Work::Introduce && !job.committed);
        let fresh = state.images.is_empty() && state.jobs.values().all(|job| job.work == Work::Introduce);
        let mut job = self.new_job(Work::Introduce, request_id);
        if !fresh && !begun {
            job.committed = true;
            job.answer = Some(json!({"uuid": self.sr.uuid}));
            let id = job.id;
            self.finish(job, Vec::new())?;
            return self.job_document(id);
        }
        let adoption = adopt::survey(&*self.store, &mut self.small, self.sr.uuid)?;
        let id = job.id;
        self.adopt(job, adoption)?;
        self.job_document(id)
    }
}

/// Opens the SR. A front that has died leaves a keeper that first ends its jobs: who comes after it on this host waits for that.
fn open(
    plugin: &dyn Plugin,
    start: &KeeperStart,
    uuid: SrUuid,
    take_over: bool,
) -> Result<Box<dyn Store>, Failure> {
    let location = Path::new(&start.location);
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        let own = |probe| matches!(probe, Probe::Ours(identity) if identity.owner.host == start.host_id);
        match plugin.open(location, uuid, &host(start), take_over) {
            Err(StoreError::InUse(_))
                if Instant::now() < deadline && plugin.probe(location).is_ok_and(own) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return Ok(opened?),
        }
    }
}

/// The catalog of a directory of ours, or a new one where an introduction stopped before it had any.
fn open_or_begin(store: &dyn Store, uuid: SrUuid, label: &str) -> Result<Catalog, Failure> {
    match Catalog::open(store.catalog_dir()) {
        Err(CatalogError::Missing(_)) if store.catalog_dir().join("catalog.bak").exists() => {
            Err(Failure::new(ErrorName::Metadata, "the catalog is gone, and a copy of it is there").hint(
                "in .catena, remove catalog.db-wal, copy catalog.bak to catalog.db, and introduce again",
            ))
        }
        Err(CatalogError::Missing(_)) => {
            let meta = Meta { coalesce_paused: true, ..meta(uuid, label) };
            Catalog::create(store.catalog_dir(), meta).map_err(|error| from_catalog(&error))
        }
        other => other.map_err(|error| from_catalog(&error)),
    }
}

fn host(start: &KeeperStart) -> HostIdentity {
    HostIdentity { host: start.host_id.clone(), boot: start.boot_id.clone() }
}

fn identity(start: &KeeperStart, label: &str) -> SrIdentity {
    SrIdentity { uuid: start.sr, name_label: label.to_owned(), owner: host(start) }
}

fn meta(sr: SrUuid, label: &str) -> Meta {
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
