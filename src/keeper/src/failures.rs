//! Failures of what the keeper uses, turned into what its clients see.

use catena_catalog::Error as CatalogError;
use catena_control::{ChannelError, Trouble, TroubleKind};
use catena_types::{ErrorName, Failure};

/// What a worker's trouble is to a client.
pub(crate) fn from_trouble(trouble: &Trouble) -> Failure {
    let (name, hint) = match trouble.kind {
        TroubleKind::Io => {
            (ErrorName::IoError, "look at the storage and at the kernel's log, then try again")
        }
        TroubleKind::Stream => (ErrorName::IoError, "look at what is at the other end of the stream"),
        TroubleKind::NoSpace => (ErrorName::NoSpace, "free space on the SR, or make it larger"),
        TroubleKind::Damaged => (ErrorName::VdiLoad, "`catena sr check` names every finding"),
        TroubleKind::Unsupported => (ErrorName::Unsupported, ""),
        TroubleKind::Unsafe => (ErrorName::ImageUnsafe, "convert the image to a plain one first"),
        TroubleKind::OutOfRange => (ErrorName::BadRequest, ""),
        TroubleKind::Stopped => (ErrorName::TryAgain, "the job was stopped; start it again"),
        TroubleKind::WrongImage => (ErrorName::VdiLoad, "`catena sr check` names every finding"),
        TroubleKind::Internal => (ErrorName::IoError, "the keeper's log has the details"),
    };
    Failure::new(name, trouble.message.clone()).hint(hint)
}

/// A failure of the keeper's own in the thread of a job, which ends with a worker's trouble.
pub(crate) fn to_trouble(failure: &Failure) -> Trouble {
    let kind = match failure.name {
        ErrorName::NoSpace => TroubleKind::NoSpace,
        ErrorName::VdiLoad => TroubleKind::Damaged,
        _ => TroubleKind::Io,
    };
    Trouble { kind, message: failure.message.clone() }
}

/// What went wrong with an import: what is damaged or out of range is what came in, not an image of the SR.
pub(crate) fn of_source(failure: Failure) -> Failure {
    match failure.name {
        ErrorName::VdiLoad => {
            failure.hint("what came in is damaged, or not of the format that --format says")
        }
        ErrorName::Unsupported => failure.hint(
            "convert it to raw first (`qemu-img convert -O raw`, or decompress it); `--format raw` takes its bytes as they are",
        ),
        ErrorName::ImageUnsafe => failure.hint("merge it with its parents, or convert it to raw, where they are"),
        ErrorName::BadRequest => Failure { name: ErrorName::VdiSize, ..failure },
        _ => failure,
    }
}

/// What went wrong with an export: it writes nothing to the SR, so what is full is where the stream goes.
pub(crate) fn of_target(failure: Failure) -> Failure {
    match failure.name {
        ErrorName::NoSpace => failure.hint("free space where the export goes, or send it elsewhere"),
        _ => failure,
    }
}

/// What a broken channel to a worker is to a client.
pub(crate) fn from_channel(error: &ChannelError) -> Trouble {
    let message = match error {
        ChannelError::Io(source) => format!("{error}: {source}"),
        ChannelError::Malformed(source) => format!("{error}: {source}"),
        ChannelError::TooLarge => error.to_string(),
    };
    Trouble { kind: TroubleKind::Internal, message }
}

/// What a catalog's error is to a client.
pub(crate) fn from_catalog(error: &CatalogError) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    let (name, hint) = match error {
        CatalogError::NoSpace { .. } => {
            (ErrorName::NoSpace, "delete what is not needed, or make the storage larger")
        }
        CatalogError::Locked => {
            (ErrorName::SrInUse, "end the program that has the catalog open, then try again")
        }
        CatalogError::Newer { .. } => (
            ErrorName::Metadata,
            "use the version of Catena that wrote it, or a later one; nothing was changed",
        ),
        _ => {
            (ErrorName::Metadata, "the keeper's log has the details; `.catena/catalog.bak` is the last copy")
        }
    };
    Failure::new(name, message).hint(hint)
}

/// A malformed request.
pub(crate) fn bad_request(message: impl Into<String>) -> Failure {
    Failure::new(ErrorName::BadRequest, message)
}
