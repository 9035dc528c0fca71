//! A simulated disk with a volatile cache, for tests of what survives: crashes at any call, failing calls, counted barriers.
//!
//! ```
//! use catena_blockio::{Container, sim::{SimDisk, SimWorld}};
//! use catena_types::FileOffset;
//!
//! let world = SimWorld::new();
//! let disk = SimDisk::automatic(&world);
//! disk.write_at(&[1; 512], FileOffset(0))?;
//! disk.flush()?;
//! world.crash_at(world.calls() + 1); // not the next call, but the one after it
//! disk.write_at(&[2; 512], FileOffset(0))?;
//! assert!(catena_blockio::sim::is_crash(&disk.flush().unwrap_err()));
//! for seed in 0..10 {
//!     let survivor = disk.after_power_cut(seed);
//!     let mut sector = [0; 512];
//!     survivor.read_at(&mut sector, FileOffset(0))?;
//!     assert!(sector == [1; 512] || sector == [2; 512]);
//! }
//! # std::io::Result::Ok(())
//! ```
//!
//! Writes, punches and size changes are seen by reads at once and are volatile until a flush of that disk returns. A power
//! cut keeps what was flushed and, of the rest, any subset in any order, each write torn at 512 bytes. The death of a
//! process keeps everything written, and what was volatile remains so. All is a function of the calls and of the seed.
//!
//! Disks of one [`SimWorld`] are one machine: their calls are counted together and they crash together.

mod content;
mod disk;
mod plan;
mod rng;
mod stale;
mod volatile;
mod world;

pub use disk::SimDisk;
pub use nix::errno::Errno;
pub use plan::{Call, Counts, Fault};
pub use rng::{Rng, seeds};
pub use stale::find_stale;
pub use world::SimWorld;

use std::io;

/// What every call of a crashed world fails with, inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("simulated crash")]
pub struct SimulatedCrash;

/// Whether the error is the simulated crash.
pub fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<SimulatedCrash>())
}
