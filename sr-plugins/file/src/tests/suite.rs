//! The conformance suite: that this back end passes it, and that it notices back ends that break its rules.

use super::bench::DirectoryBench;
use crate::FilePlugin;
use catena_sr_api::conformance;

#[test]
fn the_file_back_end_conforms() {
    conformance::run(&DirectoryBench(FilePlugin));
}
