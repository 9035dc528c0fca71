//! Logical volumes on storage that fails, hangs, is full or loses power: in the lab, where a disk does so when it is told to.
//!
//! `errors`: EIO under a leaf, a parent, a leaf merge. `hangs`: a device that answers nothing. `full`: a volume group without room.
//! `power`: a cut. What fails for a while and returns is in `lab_returns`, too.

#[path = "lab_faults/broken.rs"]
mod broken;
#[path = "lab_faults/errors.rs"]
mod errors;
#[path = "lab_faults/full.rs"]
mod full;
#[path = "lab_faults/hangs.rs"]
mod hangs;
mod harness;
#[path = "lab_faults/power.rs"]
mod power;
#[path = "lab_lvm/store.rs"]
mod store;
