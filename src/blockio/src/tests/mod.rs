//! Tests across the implementations: one model for all of them, real devices and file systems, and what a power cut leaves.

mod device;
pub(crate) mod lab;
pub(crate) mod model;
mod power_cut;
mod reflink;
