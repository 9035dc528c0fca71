//! Errors of storage, formats and chains, turned into what the keeper is told.

use catena_control::{Trouble, TroubleKind};
use std::error::Error as _;
use std::io;

/// An error of the client's stream, not of the SR's storage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OfStream(io::Error);

/// A trouble of that class.
pub(crate) fn trouble(kind: TroubleKind, message: impl Into<String>) -> Trouble {
    Trouble { kind, message: message.into() }
}

/// An error of the storage while doing that.
pub(crate) fn from_io(context: &str) -> impl FnOnce(io::Error) -> Trouble {
    let context = context.to_owned();
    move |error| trouble(kind_of(&error), format!("{context}: {error}"))
}

/// An error of an image.
pub(crate) fn from_vhd(error: &catena_vhd::Error) -> Trouble {
    use catena_vhd::Error;
    let kind = match error {
        Error::Io { source, .. } => kind_of(source),
        Error::Damaged { .. } => TroubleKind::Damaged,
        Error::Unsupported(_) => TroubleKind::Unsupported,
        Error::OutOfRange(_) => TroubleKind::OutOfRange,
        Error::NoSpace { .. } => TroubleKind::NoSpace,
        Error::ReadOnly | Error::Failed => TroubleKind::Io,
    };
    trouble(kind, with_source(error))
}

/// An error of a chain.
pub(crate) fn from_chain(error: &catena_chain::Error) -> Trouble {
    use catena_chain::Error;
    let kind = match error {
        Error::Io { source, .. } => kind_of(source),
        Error::Damaged { .. } => TroubleKind::Damaged,
        Error::OutOfRange(_) => TroubleKind::OutOfRange,
        Error::Stopped => TroubleKind::Stopped,
    };
    trouble(kind, with_source(error))
}

fn kind_of(error: &io::Error) -> TroubleKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TroubleKind::NoSpace,
        _ if error.get_ref().is_some_and(|inner| inner.is::<OfStream>()) => TroubleKind::Stream,
        _ => TroubleKind::Io,
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// An error of a chain, from an error of the stream that is read or written on its behalf.
pub(crate) fn stream_error(context: &'static str) -> impl FnOnce(io::Error) -> catena_chain::Error {
    move |error| catena_chain::Error::io(context)(io::Error::new(error.kind(), OfStream(error)))
}

/// An error of the stream itself.
pub(crate) fn from_stream(context: &'static str) -> impl FnOnce(io::Error) -> Trouble {
    move |error| from_chain(&stream_error(context)(error))
}

/// The message of an error and of what caused it.
pub(crate) fn describe(error: &catena_vhd::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
