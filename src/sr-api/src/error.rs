//! Why a back end refuses or fails.

use catena_types::{ErrorName, Failure};
use std::io;

/// An error of a back end. Nothing on the storage has changed when one is returned, [`Error::Io`] excepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed.
    #[error("{context}")]
    Io {
        /// What was being done, and on what.
        context: String,
        /// What the system said.
        source: io::Error,
    },
    /// Owned or opened by somebody else.
    #[error("{0}")]
    InUse(String),
    /// The location holds something that is not ours.
    #[error("{0}")]
    Foreign(String),
    /// There is an SR, or a container of that name, already.
    #[error("{0}")]
    Exists(String),
    /// There is no such container.
    #[error("{0}")]
    Missing(String),
    /// The location is absent, has no marker, or the marker names another SR.
    #[error("{0}")]
    Unavailable(String),
    /// The SR is there, but the place of its catalog is gone or unreadable.
    #[error("{0}")]
    CatalogLost(String),
    /// Too little space.
    #[error("{0}")]
    NoSpace(String),
    /// A name, option or combination that the back end cannot take.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// An I/O error with what was being done; `ENOSPC` and `EDQUOT` become [`Error::NoSpace`].
    pub fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(format!("{context}: {source}"))
            }
            _ => Self::Io { context, source },
        }
    }

    /// The name under which users know the error.
    pub const fn name(&self) -> ErrorName {
        match self {
            Self::Io { .. } => ErrorName::IoError,
            Self::InUse(_) => ErrorName::SrInUse,
            Self::Foreign(_) => ErrorName::SrNotEmpty,
            Self::Exists(_) => ErrorName::SrExists,
            Self::Missing(_) | Self::Unavailable(_) => ErrorName::SrUnavailable,
            Self::CatalogLost(_) => ErrorName::Metadata,
            Self::NoSpace(_) => ErrorName::NoSpace,
            Self::Unsupported(_) => ErrorName::Unsupported,
        }
    }

    /// The next thing to do about it.
    const fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "look at the storage and at the kernel's log, then try again",
            Self::InUse(_) => {
                "detach it there first, or `catena sr attach SR --take-over` if that host will not come back"
            }
            Self::Foreign(_) => {
                "name an empty or a new directory, or devices that hold nothing; VHDs are taken over with `catena sr introduce`"
            }
            Self::Exists(_) => {
                "`catena sr list` names the SRs of this host, `catena sr introduce` makes another one known"
            }
            Self::Missing(_) => "bring the file back, then `catena sr scan`",
            Self::Unavailable(_) => "look whether the storage is mounted and the path is right",
            Self::CatalogLost(_) => {
                "make it anew from the images: `catena sr introduce`, first with --dry-run"
            }
            Self::NoSpace(_) => "delete what is not needed, or make the storage larger",
            Self::Unsupported(_) => "",
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let name = error.name();
        let message = match &error {
            Error::Io { context, source } => format!("{context}: {source}"),
            other => other.to_string(),
        };
        Self::new(name, message).hint(error.hint())
    }
}
