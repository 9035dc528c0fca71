//! Storage on logical volumes, with the real lvm2, device-mapper and file systems, in the lab.
//!
//! `devices`: the lab's own disks. `life`: an SR from its creation to its end.

#[path = "lab_lvm/devices.rs"]
mod devices;
mod harness;
#[path = "lab_lvm/life.rs"]
mod life;
