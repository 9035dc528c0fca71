//! `catena-keeper`: the owner of one SR. Names the back ends; everything else is in the library.

use std::process::ExitCode;

/// The back ends of this build.
static PLUGINS: &[&dyn catena_keeper::Plugin] = &[&catena_sr_file::FilePlugin];

fn main() -> ExitCode {
    catena_keeper::run(PLUGINS)
}
