//! Guests on logical volumes, in the lab: what they write is what is read, by whoever reads, while their disks are snapshotted, merged
//! and made larger under them.
//!
//! `fio`: at full rate, verified. `kernel`: the kernel's own client, with a file system. `stale`: on a device that held something else.
//! `deaths`: with everybody killed. `sizes`: what it takes, as `lvs` says it, where other suites do not look.

#[path = "lab_guests/deaths.rs"]
mod deaths;
#[path = "lab_guests/fio.rs"]
mod fio;
mod harness;
#[path = "lab_guests/kernel.rs"]
mod kernel;
#[path = "lab_guests/sizes.rs"]
mod sizes;
#[path = "lab_guests/stale.rs"]
mod stale;
#[path = "lab_lvm/store.rs"]
mod store;
