//! What can go wrong with a VHD image.

use catena_types::{BlockIndex, Bytes, FileOffset};
use std::io;

/// Linux's numbers of the errors that callers tell apart.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of one image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// What the storage said.
        source: io::Error,
    },
    /// The image contradicts the format or itself.
    #[error("damaged at byte {}: {detail} ({check})", at.0)]
    Damaged {
        /// Which check failed; a stable name.
        check: &'static str,
        /// Where, in the container.
        at: FileOffset,
        /// What is wrong there.
        detail: String,
    },
    /// A sound image of a kind that is not handled, or an operation that this kind does not know.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A size, block or name that the format or the image cannot hold.
    #[error("{0}")]
    OutOfRange(String),
    /// A container of explicit size is too small. Nothing was changed.
    #[error("the container is too small by {missing}")]
    NoSpace {
        /// How much is missing.
        missing: Bytes,
    },
    /// The image was opened for reading only.
    #[error("the image is open for reading only")]
    ReadOnly,
    /// A barrier or a give-up failed earlier: what is on disk is unknown, so nothing may be built on it.
    #[error("an earlier barrier of this image failed; it must be opened again")]
    Failed,
}

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// Damage found by `check` at `at`.
    pub(crate) fn damaged(check: &'static str, at: FileOffset, detail: impl Into<String>) -> Self {
        Self::Damaged { check, at, detail: detail.into() }
    }

    /// As the error of a chain, where it is known which block was touched.
    pub(crate) fn of_block(self, block: BlockIndex) -> catena_chain::Error {
        match self {
            Self::Damaged { .. } => catena_chain::Error::Damaged { block, problem: self.to_string() },
            other => other.into(),
        }
    }
}

impl From<Error> for catena_chain::Error {
    /// The system's number is kept or supplied, so that a full disk is told from a failing one.
    fn from(error: Error) -> Self {
        let number = match &error {
            Error::NoSpace { .. } => ENOSPC,
            Error::ReadOnly => EROFS,
            _ => EIO,
        };
        let context = error.to_string();
        match error {
            Error::Io { context, source } => Self::Io { context, source },
            Error::Unsupported(_) | Error::OutOfRange(_) => Self::OutOfRange(context),
            Error::Damaged { .. } => {
                Self::Io { source: io::Error::new(io::ErrorKind::InvalidData, context.clone()), context }
            }
            Error::NoSpace { .. } | Error::ReadOnly | Error::Failed => {
                Self::Io { context, source: io::Error::from_raw_os_error(number) }
            }
        }
    }
}
