//! Storage on logical volumes, with the real lvm2, device-mapper and file systems, in the lab.
//!
//! `devices`: the lab's own disks. `life`: an SR from its creation to its end. `making`: where one may be made, and how it is found
//! again. `coming`: one that goes and comes. What happens where storage fails, hangs or is full is tried by `lab_faults`.

#[path = "lab_lvm/coming.rs"]
mod coming;
#[path = "lab_lvm/devices.rs"]
mod devices;
mod harness;
#[path = "lab_lvm/life.rs"]
mod life;
#[path = "lab_lvm/making.rs"]
mod making;
#[path = "lab_lvm/store.rs"]
mod store;
