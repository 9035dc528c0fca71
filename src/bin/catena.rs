//! `catena`: the command line.

fn main() -> std::process::ExitCode {
    catena_cli::main()
}
