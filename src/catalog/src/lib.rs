//! The SQLite catalog of one SR: the only crate that knows SQL.
//!
//! A [`Catalog`] is the tree of images, the VDIs, the journaled jobs, the events and the SR's own row, kept in
//! `catalog.db` inside the SR's `.catena` directory. Only the keeper's owner thread calls it. Every change is one
//! [`Catalog::commit`]: one SQLite transaction, then the copy in memory. Readers get a clone of [`State`], which costs
//! a few reference counts and never changes under them.
//!
//! Invariants:
//! * The copy in memory equals what is committed; after a failed commit it is unchanged.
//! * D19: an I/O error from COMMIT means that the outcome is unknown; nothing but [`Catalog::resolve_unknown`] works then.
//! * D22, D23: WAL of full size written beforehand, `synchronous=FULL`, EXCLUSIVE before the first access. Nobody else
//!   opens `catalog.db`, not even this process a second time: closing any other descriptor of it drops SQLite's lock.

#[cfg(test)]
extern crate self as catena_catalog;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod fixtures;

mod backup;
mod catalog;
mod check;
mod error;
mod reserve;
mod rows;
mod salvage;
mod schema;
mod state;
mod store;
mod table;
mod unknown;

pub use catalog::Catalog;
pub use check::Violation;
pub use error::{Error, Result};
pub use salvage::{Remains, SALVAGE_POINTS};
pub use state::{Change, Meta, State, Table};
pub use table::Sorted;
pub use unknown::CRASH_POINTS;
