//! A catalog whose storage has failed, on a file system of its own: that takes no more writes after an error, and a commit would fail
//! for ever though the storage works again. So it is mounted anew, as soon as that can be done.
//!
//! ```text
//!  a commit fails ─▶ ailing ─ a rest ─▶ catalog closed, mounted anew, opened ─ works ─▶ the SR goes on from what is there (D19)
//!                                ▲                                            └─ does not ─┐
//!                                └─────────────────────────────────────────────────────────┘
//! ```
//!
//! Until then the SR changes nothing, lists are answered, disks in use go on as far as their storage lets them. Where the catalog is on
//! a file system of the host, that is the administrator's. Called by `owner`.

use crate::failures::from_catalog;
use crate::mended::{believe, look};
use crate::owner::Owner;
use crate::tree::Rows;
use catena_catalog::Error as CatalogError;
use catena_coalesce::Candidates;
use catena_types::{Failure, Severity};
use std::time::{Duration, Instant};

/// Before each try.
const REST: Duration = Duration::from_secs(2);

impl Owner {
    /// A commit failed, or what tidies the catalog. If that was the storage, the catalog is ailing from now on.
    pub(crate) fn note_catalog(&mut self, error: &CatalogError) {
        let is_storage = matches!(
            error,
            CatalogError::OutcomeUnknown { .. } | CatalogError::Io { .. } | CatalogError::Sql { .. }
        );
        if is_storage && self.store.capabilities().own_catalog {
            self.ailing.get_or_insert_with(|| Instant::now() + REST);
        }
    }

    /// Tries to have an ailing catalog in order again, where it is time.
    pub(crate) fn renew_catalog(&mut self) {
        if self.ailing.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.catalog.let_go();
        let mounted = self.store.renew_catalog().map_err(Failure::from);
        let opened = mounted.and_then(|()| {
            let mended = look(&*self.store)
                .and_then(|mended| self.catalog.resolve_unknown().map(|()| mended))
                .map_err(|error| from_catalog(&error))?;
            believe(&*self.store, mended.as_ref());
            Ok(mended)
        });
        let mended = match opened {
            Ok(mended) => mended,
            Err(failure) => {
                tracing::warn!(sr = %self.sr.uuid, %failure, "the storage of the catalog fails");
                self.ailing = Some(Instant::now() + REST);
                return;
            }
        };
        self.ailing = None;
        self.candidates = Candidates::of(&Rows(self.catalog.state()));
        self.find_unsaid();
        let text = "the storage of the catalog had failed, and works again: it was mounted anew";
        let event = self.event(Severity::Warning, "sr.catalog_renewed", None, None, text);
        let events = self.say_mended(mended).into_iter().chain([event]).collect();
        if let Err(failure) = self.commit(events) {
            tracing::error!(sr = %self.sr.uuid, %failure, "an event could not be recorded");
        }
    }
}
