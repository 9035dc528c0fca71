//! What can go wrong when layers are read, merged or written.

use catena_types::BlockIndex;
use std::io;

/// An error of a chain or of a layer in it.
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
    /// A layer contradicts itself.
    #[error("block {} is damaged: {problem}", block.0)]
    Damaged {
        /// The block.
        block: BlockIndex,
        /// Which check failed.
        problem: String,
    },
    /// The request lies outside the disk or cannot be held by the format.
    #[error("{0}")]
    OutOfRange(String),
    /// Stopped on request.
    #[error("stopped on request")]
    Stopped,
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// The system's error number, if the storage gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
