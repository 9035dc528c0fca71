//! Tests across the implementations: one model for all of them, real devices and file systems, and what a power cut leaves.

mod device;
mod lab;
mod model;
mod power_cut;
mod reflink;
