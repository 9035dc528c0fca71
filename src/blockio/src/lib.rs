//! The storage seam: positional byte containers on files, block devices and a simulated disk.
//!
//! Everything above works on a [`Container`] and names no file. The invariants are those of the trait: what a flush
//! promises, what may survive without one, what reads as zero. Everything above tests its ordering on [`sim`], the disk with
//! a volatile cache. Called by the formats, by the chain and by the processes that are handed descriptors
//! ([`open_container`], [`lock_exclusive`]); nothing here opens a path.

mod access;
mod buffer;
mod container;
mod device;
mod direct;
pub mod engine;
mod file;
mod lock;
mod open;
mod pool;
pub mod sim;
#[cfg(test)]
mod tests;

pub use buffer::AlignedBuf;
pub use container::{Container, Sizing, collecting};
pub use device::BlockContainer;
pub use engine::{Completion, Engine, Op};
pub use file::FileContainer;
pub use lock::{lock_exclusive, lock_exclusive_wait};
pub use open::open_container;
pub use pool::Pool;
