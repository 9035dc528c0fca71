//! A volume group that becomes larger, that gives back what is free, and what operations on it cost, in the lab.

#[path = "lab_growing/costs.rs"]
mod costs;
#[path = "lab_growing/growing.rs"]
mod growing;
mod harness;
#[path = "crash/growing.rs"]
mod points;
#[path = "lab_lvm/store.rs"]
mod store;
#[path = "lab_growing/trimming.rs"]
mod trimming;
