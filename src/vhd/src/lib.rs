//! The VHD image format, byte-compatible with XenServer's.
//!
//! An [`Image`] maps the blocks of one virtual disk to places in a container and keeps that map on disk; it implements
//! [`catena_chain::Layer`] and [`catena_chain::LayerMut`] and moves no data itself. Callers are the workers in `datapath`, which
//! alone parse images. Invariants: at any instant a crash leaves an image that opens and passes [`check`] without errors; what
//! was committed before a flush is found again (durability rules D1 to D6, named where code relies on them); hostile bytes lead
//! to an [`Error`], never to a panic or to an allocation that the container's size does not justify.

mod bat;
mod batmap;
mod bitmaps;
mod bytes;
mod check;
mod check_parent;
mod commit;
mod create;
mod dirty;
mod enlarge;
mod error;
mod fit;
mod footer;
mod footers;
mod geometry;
mod giveup;
mod grow;
mod header;
mod image;
#[cfg(test)]
mod interleavings;
mod layer;
mod layout;
mod live;
mod locator;
mod open;
mod page;
mod portable;
mod repair;
mod repair_header;
mod reparent;
mod report;
mod restore;
mod room;
mod shrink;
mod space;
mod stream;
mod trim;
mod write;

pub use check::{CheckOptions, Problem, check};
pub use create::{CreateSpec, ParentSpec, create};
pub use error::{Error, Result};
pub use fit::{ContainerSizes, table_size_on};
pub use footer::{DiskKind, vhd_timestamp};
pub use image::{FooterState, Image, Mode};
pub use portable::{Portable, fixed_footer};
pub use repair::{Fix, Repair, RepairOptions, plan_repair};
pub use reparent::{Patch, apply_patch, is_stale};
pub use report::{ImageInfo, ParentInfo};
pub use stream::{StreamEnd, StreamHead, StreamMap, StreamPlace, read_stream_end, read_stream_head};
