//! What needs a kernel that the host may not have: the suites in `tests/lab`, each with one boot of a kernel as a process.

mod harness;

use anyhow::{Context, Result};
use harness::peer;
use std::path::Path;

#[test]
fn the_kernels_own_client_uses_a_disk_while_it_is_snapshotted_and_merged() -> Result<()> {
    in_the_lab(&["--disk", "512", "--modules", "nbd", "tests/lab/nbd_client"]).map(|_| ())
}

/// Boots, and runs a suite; its last argument is where the programs are.
fn in_the_lab(arguments: &[&str]) -> Result<String> {
    let programs = Path::new(env!("CARGO_BIN_EXE_catena")).parent().and_then(Path::to_str);
    let programs = programs.context("where are the programs?")?;
    peer("user-mode-linux", "tests/lab/boot", &[arguments, &[programs]].concat())
}
