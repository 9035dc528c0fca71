//! Sizes of logical volumes, as `lvs` tells them, through the life of a disk; in the lab.
//!
//! `flows`: what each operation does to them. `space`: with too little of it. `crash`: with a crash at each step.

#[path = "lab_sizing/crash.rs"]
mod crash;
#[path = "lab_sizing/flows.rs"]
mod flows;
mod harness;
#[path = "crash/volumes.rs"]
mod points;
#[path = "lab_sizing/sized.rs"]
mod sized;
#[path = "lab_sizing/space.rs"]
mod space;
