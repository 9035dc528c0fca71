//! Random operations on the real programs, against a model: create, snapshot, clone, copy, write, attach, revert, resize, destroy,
//! policy, repair, trim, pause, resume and merge, while front, keeper and workers are killed in the middle.
//!
//! After each step list and tree must be those of the model and the touched disk must read as it should; now and then all
//! disks, and `sr check`. `CATENA_SEED` repeats the choices of a run; how the processes interleave is theirs. Here the SR is one of
//! files; `tests/lab_model.rs` plays the same on logical volumes.

mod attended;
mod dice;
mod disk;
mod files;
#[path = "../harness/mod.rs"]
mod harness;
mod operations;
mod play;
mod storage;
mod world;

use anyhow::Result;

#[test]
fn random_operations_do_what_the_model_does() -> Result<()> {
    let steps = if harness::nightly() { 10_000 } else { 1_000 };
    play::run("model", steps, |agent| Ok(Box::new(files::Files::of(agent))))
}
