//! Random operations on the real programs, against a model: create, snapshot, clone, copy, write, revert, resize, destroy, policy,
//! repair, trim, pause, resume and merge, while front, keeper and workers are killed in the middle.
//!
//! After each step list and tree must be those of the model and the touched disk must read as it should; now and then all
//! disks, and `sr check`. `CATENA_SEED` repeats the choices of a run; how the processes interleave is theirs.

mod dice;
mod disk;
#[path = "../harness/mod.rs"]
mod harness;
mod operations;
mod world;

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use world::World;

/// Steps between two comparisons of everything.
const EVERYTHING_EVERY: u64 = 25;
/// Lines of history that a failure shows.
const TAIL: usize = 60;

/// Steps, and now and then a look at everything; in the end nothing may be left.
fn play(world: &mut World, steps: u64) -> Result<()> {
    for step in 1..=steps {
        world.note(format!("step {step}"));
        world.step()?;
        world.check_shape()?;
        if step % EVERYTHING_EVERY == 0 {
            world.compare_all()?;
            world.check_sr()?;
        }
    }
    world.note("the end");
    world.compare_all()?;
    world.destroy_all()?;
    world.resume()?;
    world.coalesce_to_the_end()?;
    let left = world.containers()?;
    ensure!(left.is_empty(), "containers are left: {left:?}");
    world.check_sr()
}

#[test]
fn random_operations_do_what_the_model_does() -> Result<()> {
    let seed = harness::seed("model");
    let steps = if harness::nightly() { 10_000 } else { 1_000 };
    let mut world = World::new(seed)?;
    let begun = Instant::now();
    let played = play(&mut world, steps);
    println!("{} in {:?}: {}", world.counts(), begun.elapsed(), if played.is_ok() { "good" } else { "bad" });
    played.with_context(|| {
        let tail = &world.history[world.history.len().saturating_sub(TAIL)..];
        let log = world.agent.log();
        let log: Vec<&str> = log.lines().rev().take(TAIL).collect();
        let log: Vec<&str> = log.into_iter().rev().collect();
        format!(
            "CATENA_SEED={seed}; paused: {}\n{}\nthe log:\n{}",
            world.paused,
            tail.join("\n"),
            log.join("\n")
        )
    })
}
