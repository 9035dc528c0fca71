//! The storage seam: positional byte containers on files, block devices and a simulated disk.
//!
//! Everything above tests its ordering on [`sim`](crate), the disk with a volatile cache.

mod container;

pub use container::{Container, Sizing};
