//! Words that every crate of Catena shares: ids, sizes, limits, records and the error taxonomy.
//!
//! No I/O happens here and no other crate of the project is named. A number that crosses a crate border has a
//! newtype that says its unit; a string that names a kind or a state is an enum.

mod crash;
mod failure;
mod ids;
mod job;
mod policy;
mod records;
mod sectors;
mod sizes;

pub use crash::{CrashPoint, arm as arm_crash_points};
pub use failure::{ErrorName, Failure};
pub use ids::{IdError, ImageId, SrUuid, VdiUuid};
pub use job::{
    Effects, HeaderPatch, JobId, JobKind, JobRecord, JobState, Made, PatchWrite, Resized, Step, Work,
};
pub use policy::{Allocation, IoClass, Policy, Window};
pub use records::{
    AttachMode, AttachmentRecord, EventRecord, Format, ImageRecord, ImageState, Severity, VdiKind, VdiRecord,
};
pub use sectors::SectorSet;
pub use sizes::{
    BLOCK_BYTES, BLOCK_SECTORS, BlockIndex, Bytes, CHAIN_LIMIT, CHAIN_WARNING, FileOffset, GuestOffset,
    SECTOR_BYTES, SizeError, VHD_MAX_SIZE, VHD_MIN_SIZE,
};
