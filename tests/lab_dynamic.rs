//! Disks whose logical volumes grow while guests fill them (`allocation=dynamic`), with the sizes that `lvs` tells; in the lab.
//!
//! `flows`: what each operation does to the volumes. `full`: a volume group that guests have filled. `crash`: deaths on the way.

#[path = "lab_dynamic/crash.rs"]
mod crash;
#[path = "lab_dynamic/flows.rs"]
mod flows;
#[path = "lab_dynamic/full.rs"]
mod full;
#[path = "lab_dynamic/guest.rs"]
mod guest;
mod harness;
#[path = "crash/extending.rs"]
mod points;
#[path = "lab_sizing/sized.rs"]
mod sized;
