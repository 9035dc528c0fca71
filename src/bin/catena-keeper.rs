//! `catena-keeper`: the owner of one SR. Names the back ends; everything else is in the library.

use std::process::ExitCode;

/// The back ends of this build.
static LVM: catena_sr_lvm::LvmPlugin = catena_sr_lvm::LvmPlugin::new();
static PLUGINS: &[&dyn catena_keeper::Plugin] = &[&catena_sr_file::FilePlugin, &LVM];

fn main() -> ExitCode {
    catena_keeper::run(PLUGINS)
}
