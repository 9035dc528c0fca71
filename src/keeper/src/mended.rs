//! A catalog whose file system had to be mended before it could be used.
//!
//! What mends a file system may take a file away or cut it, and a database without its log looks sound and is old. So it is believed
//! only where the log is whole; otherwise it is lost, and made anew from the images (D21). The storage repeats that it was mended until
//! it is told otherwise, so a crash in between changes nothing. Called by `start`, `introduce` and `renewal`.

use crate::owner::Owner;
use catena_catalog::{Catalog, Change, Error as CatalogError};
use catena_sr_api::Store;
use catena_types::Severity;

/// Opens the catalog of a store; with what had to be mended for that, which is to become an event.
pub(crate) fn open_catalog(store: &dyn Store) -> Result<(Catalog, Option<String>), CatalogError> {
    let mended = look(store)?;
    let catalog = Catalog::open(store.catalog_dir())?;
    believe(store, mended.as_ref());
    Ok((catalog, mended))
}

/// What had to be mended, if anything was. An error where it cannot be believed.
pub(crate) fn look(store: &dyn Store) -> Result<Option<String>, CatalogError> {
    match store.mended() {
        Some(what) if !Catalog::is_whole(store.catalog_dir())? => Err(CatalogError::Damaged(format!(
            "its file system was mended, and its log is not whole: {what}"
        ))),
        mended => Ok(mended),
    }
}

/// The catalog was opened, or has a successor.
pub(crate) fn believe(store: &dyn Store, mended: Option<&String>) {
    if mended.is_some()
        && let Err(error) = store.believe_catalog()
    {
        // The next owner looks again.
        tracing::warn!(%error, "the storage does not know that its catalog is sound");
    }
}

impl Owner {
    /// The event that says what was mended.
    pub(crate) fn say_mended(&self, mended: Option<String>) -> Vec<Change> {
        let said = mended.map(|what| {
            let text = format!("the file system of the catalog had errors and was checked: {what}");
            self.event(Severity::Warning, "sr.catalog_mended", None, None, text)
        });
        said.into_iter().collect()
    }
}
