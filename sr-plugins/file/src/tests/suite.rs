//! The conformance suite: that this back end passes it, and that it notices back ends that break its rules.

use super::bench::DirectoryBench;
use super::faulty::{Fault, FaultyPlugin};
use crate::FilePlugin;
use catena_sr_api::conformance;
use std::panic::catch_unwind;

#[test]
fn the_file_back_end_conforms() {
    conformance::run(&DirectoryBench(FilePlugin));
}

#[test]
fn the_suite_notices_every_fault() {
    let noticed =
        |fault: &Fault| catch_unwind(|| conformance::run(&DirectoryBench(FaultyPlugin(*fault)))).is_err();
    let unnoticed: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !noticed(fault)).collect();
    assert_eq!(unnoticed, [], "these faults pass the suite");
}
