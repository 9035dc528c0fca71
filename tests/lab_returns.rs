//! Logical volumes on storage that fails for a while, where nobody does anything for the SR but to mend the storage; in the lab.
//!
//! `catalog`: its file system, and what could not be recorded in it. `inner`: a merge below a disk in use. `returns`: a device that is
//! not there when its keeper starts.

#[path = "lab_faults/broken.rs"]
mod broken;
#[path = "lab_returns/catalog.rs"]
mod catalog;
mod harness;
#[path = "lab_returns/inner.rs"]
mod inner;
#[path = "lab_returns/returns.rs"]
mod returns;
#[path = "lab_lvm/store.rs"]
mod store;
