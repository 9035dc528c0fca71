//! `SR.introduce`: a directory of another manager's images is taken over, an SR of ours comes back, and one that has lost its
//! catalog gets a new one (D21). A refusal leaves the location as it was.

use crate::adopt;
use crate::failures::from_catalog;
use crate::mended::{believe, open_catalog};
use crate::owner::Owner;
use crate::rebuild;
use crate::start::{Begun, Starter, host, identity, meta, open};
use crate::worker::SmallWorker;
use catena_catalog::{Catalog, Change, Error as CatalogError, Meta, Remains};
use catena_rpc::SrIntroduceParams;
use catena_sr_api::{Error as StoreError, Probe, SrIdentity, Store};
use catena_types::{ErrorName, Failure, Severity, Work};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Starter {
    /// `SR.introduce`: what is at the location says what that means.
    pub(crate) fn introduce(&self, asked: &SrIntroduceParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let location = PathBuf::from(&start.location);
        match plugin.probe(&location)? {
            Probe::Ours(identity) => {
                if start.elsewhere.contains(&identity.uuid) {
                    let text = format!(
                        "{} is the SR {}, which is known at another location",
                        start.location, identity.uuid
                    );
                    return Err(Failure::new(ErrorName::SrExists, text)
                        .hint("of two copies of an SR this host can know one")
                        .object("sr", identity.uuid));
                }
                if asked.dry_run { self.look_at_ours(&identity) } else { self.bring_back(asked, &identity) }
            }
            _ if asked.dry_run => {
                let store = plugin.look(&location)?;
                let small = &mut SmallWorker::default();
                let mut adoption = adopt::survey(&*store, small, start.sr)?;
                adoption.has_room(&*store, small)?;
                let facts = self.facts(start.sr, &*store)?;
                Ok(Begun::Said(adopt::document(&adoption, facts, meta(start.sr, ""))))
            }
            _ => self.take_in(asked),
        }
    }

    /// What introducing an SR of ours would come to.
    fn look_at_ours(&self, identity: &SrIdentity) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let store = plugin.look(Path::new(&start.location))?;
        let facts = self.facts(identity.uuid, &*store)?;
        let dir = store.catalog_dir();
        let why = match Catalog::look(dir) {
            Ok(state) => return Ok(Begun::Said(adopt::as_it_is(facts, state))),
            Err(error) if lost(&error) => error,
            Err(error) => return Err(from_catalog(&error)),
        };
        let remains = Remains::find(dir).map_err(|error| from_catalog(&error))?;
        let small = &mut SmallWorker::default();
        let mut adoption = rebuild::survey(&*store, small, identity.uuid, remains.copy.as_ref())?;
        adoption.find(Severity::Error, "catalog", source(&why, &remains));
        Ok(Begun::Said(adopt::document(&adoption, facts, meta(identity.uuid, ""))))
    }

    /// Opens an SR of ours that this host does not know or could not attach. A lost catalog is made anew (D21).
    fn bring_back(&self, asked: &SrIntroduceParams, identity: &SrIdentity) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let store = match open(plugin, start, identity.uuid, asked.take_over) {
            // D21: nothing can be read of the catalog any more, and what is there is kept aside.
            Err(failure) if failure.name == ErrorName::Metadata => {
                let location = Path::new(&start.location);
                plugin.renew(location, identity.uuid, &host(start), asked.take_over)?
            }
            opened => opened?,
        };
        match open_catalog(&*store) {
            Ok((catalog, mended)) => {
                let mut owner = self.owner(identity.uuid, store, catalog)?;
                owner.recover()?;
                let events = owner.say_mended(mended);
                if !events.is_empty() {
                    owner.commit(events)?;
                }
                let job = owner.take_over(asked.request_id.clone())?;
                Ok(Begun::Opened(job, Box::new(owner)))
            }
            // An introduction that stopped before there was a catalog.
            Err(CatalogError::Missing(_)) if nothing_is_left(&*store)? && has_no_labels(&*store)? => {
                let fresh = Meta { coalesce_paused: true, ..meta(identity.uuid, &identity.name_label) };
                let catalog =
                    Catalog::create(store.catalog_dir(), fresh).map_err(|error| from_catalog(&error))?;
                let mut owner = self.owner(identity.uuid, store, catalog)?;
                let job = owner.take_over(asked.request_id.clone())?;
                Ok(Begun::Opened(job, Box::new(owner)))
            }
            Err(error) if lost(&error) => self.make_anew(asked, identity, store, &error),
            Err(error) => Err(from_catalog(&error)),
        }
    }

    /// Makes the catalog of an SR of ours anew, from its images and from what is left of the lost one.
    fn make_anew(
        &self,
        asked: &SrIntroduceParams,
        identity: &SrIdentity,
        store: Box<dyn Store>,
        why: &CatalogError,
    ) -> Result<Begun, Failure> {
        let dir = store.catalog_dir().to_owned();
        let remains = Remains::find(&dir).map_err(|error| from_catalog(&error))?;
        let small = &mut SmallWorker::default();
        let mut adoption = rebuild::survey(&*store, small, identity.uuid, remains.copy.as_ref())?;
        adoption.find(Severity::Warning, "catalog", source(why, &remains));
        let label = asked.name_label.clone().unwrap_or_else(|| identity.name_label.clone());
        let before = remains.copy.as_ref().map(|copy| (*copy.meta).clone());
        let meta = before.unwrap_or_else(|| meta(identity.uuid, &label));
        let meta = Meta { sr: identity.uuid, coalesce_paused: true, paused_until: None, ..meta };
        let job =
            adopt::introduced(remains.next_job_id(), asked.request_id.clone(), identity.uuid, &adoption);
        let id = job.id;
        let mut changes: Vec<Change> = adoption.changes().collect();
        changes.push(Change::PutJob(job));
        changes.push(Change::Event(adopt::made_anew(identity.uuid, id, &adoption)));
        let catalog = remains.replace(&dir, &meta, changes).map_err(|error| from_catalog(&error))?;
        tracing::warn!(sr = %identity.uuid, %why, "the catalog was made anew");
        believe(&*store, Some(&why.to_string()));
        let mut owner = self.owner(identity.uuid, store, catalog)?;
        // Disks that were attached when the catalog was lost are still being written.
        owner.adopt_served()?;
        owner.relabel_all();
        let job = owner.job_document(id)?;
        Ok(Begun::Opened(job, Box::new(owner)))
    }

    /// Makes an SR of a directory of images. What fails leaves the directory as it was.
    fn take_in(&self, asked: &SrIntroduceParams) -> Result<Begun, Failure> {
        let (start, plugin) = self.start()?;
        let location = Path::new(&start.location);
        let directory =
            location.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let label = asked.name_label.clone().unwrap_or(directory);
        let store = plugin.adopt(location, &identity(start, &label))?;
        let fresh = Meta { coalesce_paused: true, ..meta(start.sr, &label) };
        let catalog = match Catalog::create(store.catalog_dir(), fresh) {
            Ok(catalog) => catalog,
            Err(error) => {
                unmake(&*store);
                return Err(from_catalog(&error));
            }
        };
        let mut owner = self.owner(start.sr, store, catalog)?;
        match owner.take_over(asked.request_id.clone()) {
            Ok(job) => Ok(Begun::Opened(job, Box::new(owner))),
            Err(failure) => {
                let (store, catalog) = (Arc::clone(&owner.store), owner.catalog);
                if let Err(error) = catalog.close() {
                    tracing::error!(%error, "the catalog of a refused introduction could not be closed");
                }
                unmake(&*store);
                Err(failure)
            }
        }
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

/// Takes down what a refused request has made.
pub(crate) fn unmake(store: &dyn Store) {
    if let Err(error) = store.destroy() {
        tracing::error!(%error, "a half-made SR could not be removed");
    }
}

/// Whether a new catalog has to take the place of this one.
pub(crate) const fn lost(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Missing(_) | CatalogError::Damaged(_))
}

/// Whether nothing speaks of a catalog that was once there.
pub(crate) fn nothing_is_left(store: &dyn Store) -> Result<bool, Failure> {
    let dir = store.catalog_dir();
    let names = std::fs::read_dir(dir).map_err(StoreError::io(format!("listing {}", dir.display())))?;
    let left = |name: &str| name.starts_with("catalog.bak") || name.contains(".damaged-");
    let mut names = names.filter_map(Result::ok).map(|entry| entry.file_name());
    Ok(!names.any(|name| left(&name.to_string_lossy())))
}

fn has_no_labels(store: &dyn Store) -> Result<bool, Failure> {
    for info in store.list()? {
        if !store.labels(&info.name)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where a new catalog comes from.
fn source(why: &CatalogError, remains: &Remains) -> String {
    let from = match (&remains.copy, &remains.unusable) {
        (Some(_), _) => "names and history come from catalog.bak, the tree from the images".to_owned(),
        (None, Some(bad)) => {
            format!("everything comes from the images, since catalog.bak cannot be used: {bad}")
        }
        (None, None) => "everything comes from the images, since there is no catalog.bak".to_owned(),
    };
    format!("{why}: it is made anew, and kept aside; {from}")
}
