//! A run: steps, and now and then a look at everything; in the end nothing may be left.

use crate::harness::{self, Agent};
use crate::storage::Storage;
use crate::world::World;
use anyhow::{Context, Result, ensure};
use std::time::Instant;

/// So many steps on a new SR, with a seed that is printed; a failure tells what was done last.
pub(crate) fn run(
    name: &str,
    steps: u64,
    storage: impl FnOnce(&Agent) -> Result<Box<dyn Storage>>,
) -> Result<()> {
    let seed = harness::seed(name);
    let mut world = World::new(seed, storage)?;
    let begun = Instant::now();
    let played = play(&mut world, steps);
    println!("{} in {:?}: {}", world.counts(), begun.elapsed(), if played.is_ok() { "good" } else { "bad" });
    played.with_context(|| format!("CATENA_SEED={seed}; {}", world.story()))
}

fn play(world: &mut World, steps: u64) -> Result<()> {
    let scale = world.scale;
    for step in 1..=steps {
        world.note(format!("step {step}"));
        world.step()?;
        world.check_shape()?;
        if step % scale.checked_every == 0 {
            world.check_storage()?;
        }
        if step % scale.everything_every == 0 {
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
    world.check_storage()?;
    world.check_sr()
}
