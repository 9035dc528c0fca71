//! Logical volumes on storage that fails, hangs, is full or loses power: in the lab, where a disk does so when it is told to.
//!
//! `catalog`: its file system. `errors`: EIO under a leaf, a parent, a leaf merge. `inner`: under a merge below a disk in use. `hangs`: a device that answers nothing. `full`: a volume group without room.
//! `power`: a cut. `returns`: a device that is not there when its keeper starts.

#[path = "lab_faults/catalog.rs"]
mod catalog;
#[path = "lab_faults/errors.rs"]
mod errors;
#[path = "lab_faults/full.rs"]
mod full;
#[path = "lab_faults/hangs.rs"]
mod hangs;
mod harness;
#[path = "lab_faults/inner.rs"]
mod inner;
#[path = "lab_faults/power.rs"]
mod power;
#[path = "lab_faults/returns.rs"]
mod returns;
#[path = "lab_lvm/store.rs"]
mod store;
