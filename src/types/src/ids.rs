//! Identities. All are uuids, written in lower case with hyphens; none can be mistaken for another.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// A text that is not a uuid where one is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a uuid")]
pub struct IdError(pub String);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh random id (uuid version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The id that a key always has, for what must be found again when a request is repeated (uuid version 5).
            pub fn of_key(key: &str) -> Self {
                Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()))
            }

            /// The id as the 16 raw bytes that image formats store, in text order.
            pub const fn to_bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }

            /// The id whose raw bytes are given.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError(text.to_owned()))
            }
        }
    };
}

uuid_id!(
    /// A storage repository.
    SrUuid
);
uuid_id!(
    /// A virtual disk as users know it.
    VdiUuid
);
uuid_id!(
    /// A node of the tree: one image file or volume. For VHD it is the footer's unique id.
    ImageId
);

impl ImageId {
    /// What stands in a header for a parent that has no id of its own: zeros.
    pub const NONE: Self = Self::from_bytes([0; 16]);
}
