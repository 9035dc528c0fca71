//! `catenad`: the agent's front.

use std::process::ExitCode;

fn main() -> ExitCode {
    catena_agent::main()
}
