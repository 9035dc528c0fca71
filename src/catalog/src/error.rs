//! What can go wrong with a catalog, and how SQLite's errors are sorted into it.
//!
//! Made everywhere in this crate; the keeper turns each kind into a failure that users see.

use crate::check::Violation;
use rusqlite::ErrorCode;
use std::io;
use std::path::PathBuf;

/// The result of a call on a catalog.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A catalog is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// There is no catalog.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The catalog was written by a newer program; it was not touched.
    #[error("the catalog has schema {found}, this program knows {known} at most")]
    Newer {
        /// The schema version found.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// The file or a row of it cannot be what this program wrote. `catalog.bak` may help (D21).
    #[error("the catalog is damaged: {0}")]
    Damaged(String),
    /// Another process has the catalog open.
    #[error("another process has the catalog open")]
    Locked,
    /// The file system is full; nothing was changed.
    #[error("no space left while {doing}")]
    NoSpace {
        /// What was being done.
        doing: &'static str,
    },
    /// COMMIT returned an I/O error: the change may or may not be on disk (D19). Only
    /// [`resolve_unknown`](crate::Catalog::resolve_unknown) helps.
    #[error("the outcome of the last commit is unknown: {reason}")]
    OutcomeUnknown {
        /// What COMMIT said.
        reason: String,
    },
    /// The changes would break an invariant of the tree; nothing was changed.
    #[error("refused: {0}")]
    Violation(#[from] Violation),
    /// A call to the file system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// SQLite failed in a way that has no kind of its own.
    #[error("{doing}: {source}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Sorts an error of the file system.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Io { doing, source },
        }
    }

    /// Sorts an error of SQLite.
    pub(crate) fn sql(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(format!("{doing}: {source}"))
            }
            Some(ErrorCode::DiskFull) => Self::NoSpace { doing },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(_) => Self::Sql { doing, source },
            // A column of another type, a missing row: not what this program writes.
            None => Self::Damaged(format!("{doing}: {source}")),
        }
    }
}
