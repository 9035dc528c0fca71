//! What can go wrong, as users see it: one table that maps a name to XenServer's number and to an exit code.
//!
//! Every crate has errors of its own; at the edge of the keeper they become a [`Failure`], which travels unchanged to the
//! client. The codes are XenServer's, so that scripts written for it keep working.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

macro_rules! error_names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $code:literal, $exit:literal;)*) => {
        /// The class of a failure: its name on the wire, its code and the exit code of the command line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum ErrorName { $($(#[$doc])* #[serde(rename = $name)] $variant,)* }

        impl ErrorName {
            /// Every name, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// XenServer's error number, `error.code` on the wire.
            pub const fn code(self) -> i32 {
                match self { $(Self::$variant => $code,)* }
            }

            /// The exit code of `catena`.
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }
        }
    };
}

error_names! {
    /// The SR is attached, owned by another host, or busy.
    SrInUse = "sr_in_use", 16, 4;
    /// The VDI is attached or busy.
    VdiInUse = "vdi_in_use", 24, 4;
    /// The format, feature or combination is not supported.
    Unsupported = "unsupported", 38, 8;
    /// The SR still has VDIs, or the place for a new one is not empty.
    SrNotEmpty = "sr_not_empty", 39, 4;
    /// The scan of an SR failed.
    ScanFailed = "scan_failed", 40, 1;
    /// There is such an SR already.
    SrExists = "sr_exists", 42, 4;
    /// There is such a VDI already.
    VdiExists = "vdi_exists", 43, 4;
    /// Too little space; the message says how much is missing.
    NoSpace = "no_space", 44, 5;
    /// The VDI cannot be used in its present state.
    VdiUnavailable = "vdi_unavailable", 46, 4;
    /// The SR is not attached, unknown, or its storage is gone.
    SrUnavailable = "sr_unavailable", 47, 3;
    /// No back end has that name.
    SrUnknownType = "sr_unknown_type", 48, 2;
    /// An image is damaged.
    VdiLoad = "vdi_load", 65, 7;
    /// An image that must not be opened here.
    ImageUnsafe = "image_unsafe", 66, 8;
    /// Creating a VDI failed.
    VdiCreate = "vdi_create", 78, 1;
    /// A size out of range.
    VdiSize = "vdi_size", 79, 2;
    /// Deleting a VDI failed.
    VdiDelete = "vdi_delete", 80, 1;
    /// Cloning failed.
    VdiClone = "vdi_clone", 81, 1;
    /// Taking a snapshot failed.
    VdiSnapshot = "vdi_snapshot", 82, 1;
    /// The chain would have more than 30 images.
    ChainTooLong = "chain_too_long", 109, 6;
    /// Resizing failed.
    ResizeFailed = "resize_failed", 110, 1;
    /// The request is malformed.
    BadRequest = "bad_request", 143, 2;
    /// There is no such VDI, job or image.
    VdiMissing = "vdi_missing", 144, 3;
    /// Too little space to inflate a leaf for writing.
    OverProvisionedAttach = "over_provisioned_attach", 180, 5;
    /// The catalog is damaged, newer than this program, or its state is unknown.
    Metadata = "metadata", 181, 7;
    /// The storage returned an error.
    IoError = "io_error", 200, 1;
    /// A passing condition.
    TryAgain = "try_again", 201, 75;
}

/// A failure as a client sees it: `error.data` of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The class.
    pub name: ErrorName,
    /// One line: what is wrong.
    pub message: String,
    /// The next thing to do; empty where there is none.
    #[serde(default)]
    pub hint: String,
    /// Whether waiting helps.
    #[serde(default)]
    pub retry: bool,
    /// The objects concerned: `sr`, `vdi`, `image`, `job`, `bytes_missing`, ...
    #[serde(default)]
    pub objects: BTreeMap<String, String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        let retry = matches!(name, ErrorName::TryAgain);
        Self { name, message: message.into(), hint: String::new(), retry, objects: BTreeMap::new() }
    }

    /// The same with the next thing to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same, with a word that waiting helps.
    #[must_use]
    pub const fn retry(mut self) -> Self {
        self.retry = true;
        self
    }

    /// The same, naming an object concerned.
    #[must_use]
    pub fn object(mut self, kind: &str, id: impl fmt::Display) -> Self {
        self.objects.insert(kind.to_owned(), id.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_wire() {
        for name in ErrorName::ALL {
            let text = serde_json::to_string(name).unwrap();
            assert_eq!(text, format!("\"{}\"", name.name()));
            assert_eq!(serde_json::from_str::<ErrorName>(&text).unwrap(), *name);
        }
    }
}
