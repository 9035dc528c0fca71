//! `catena-datapath`: handles image bytes for a keeper.

use std::process::ExitCode;

fn main() -> ExitCode {
    catena_datapath::main()
}
