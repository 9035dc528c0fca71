//! A volume group that becomes larger, and gives back what is free, in the lab.

#[path = "lab_growing/growing.rs"]
mod growing;
mod harness;
#[path = "lab_lvm/store.rs"]
mod store;
#[path = "lab_growing/trimming.rs"]
mod trimming;
