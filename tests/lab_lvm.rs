//! Storage on logical volumes, with the real lvm2, device-mapper and file systems, in the lab.
//!
//! `devices`: the lab's own disks.

#[path = "lab_lvm/devices.rs"]
mod devices;
mod harness;
