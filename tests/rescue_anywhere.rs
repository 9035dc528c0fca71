//! The keeper dies in the middle of an operation, and the catalog is lost with it: no disk is lost, and each reads what it
//! held before or what the operation makes of it.
//!
//! Leaves without a label may have become disks of their own; these are none of the model's.

mod crash;
mod harness;

use anyhow::{Context, Result, ensure};
use crash::request::{Operation, Turn};
use crash::stage::Stage;
use harness::nightly;
use std::fs;

use Operation::{Clone, Coalesce, Create, Destroy, Revert, Set, Snapshot};

/// Points before and after the commits that labels follow.
const OPERATIONS: &[(&str, Operation)] = &[
    ("create.made", Create),
    ("create.committed", Create),
    ("snapshot.journaled", Snapshot),
    ("snapshot.made", Snapshot),
    ("snapshot.committed", Snapshot),
    ("snapshot.stepped", Snapshot),
    ("worker.created:2", Snapshot),
    ("clone.made", Clone),
    ("clone.committed", Clone),
    ("worker.created:3", Clone),
    ("revert.made", Revert),
    ("revert.committed", Revert),
    ("revert.stepped", Revert),
    ("set.committed", Set),
    ("destroy.committed", Destroy),
];

/// Points in merges.
const MERGES: &[(&str, Operation)] = &[
    ("merge.made", Coalesce),
    ("merge.committed", Coalesce),
    ("merge.stepped", Coalesce),
    ("leaf_merge.made", Coalesce),
    ("leaf_merge.committed", Coalesce),
    ("leaf_merge.stepped", Coalesce),
    ("leaf_merge.done", Coalesce),
    ("worker.batch", Coalesce),
    ("worker.merged", Coalesce),
    ("garbage.stepped", Coalesce),
];

#[test]
fn a_catalog_that_is_lost_in_the_middle_of_an_operation() -> Result<()> {
    all(OPERATIONS)
}

#[test]
fn a_catalog_that_is_lost_in_the_middle_of_a_merge() -> Result<()> {
    all(MERGES)
}

/// Each with a copy of the catalog from before the operation or without one; every night both.
fn all(points: &[(&str, Operation)]) -> Result<()> {
    for (index, &(at, operation)) in points.iter().enumerate() {
        for with_copy in [true, false] {
            if nightly() || with_copy == (index % 2 == 0) {
                scenario(at, operation, with_copy)
                    .with_context(|| format!("{operation:?} at {at}, with a copy: {with_copy}"))?;
            }
        }
    }
    Ok(())
}

fn scenario(at: &str, operation: Operation, with_copy: bool) -> Result<()> {
    let mut stage = Stage::build()?;
    if operation == Revert {
        stage.add_snapshot_to_revert_to()?;
    }
    stage.agent.stop()?;
    let home = stage.directory.join(".catena");
    let copy = fs::read(home.join("catalog.db"))?;
    stage.agent.launch(Some(at))?;
    // What is answered is not the question here.
    let _ = operation.send(&stage, Turn::First);
    stage.wait_for_crash(at.split(':').next().unwrap_or(at))?;
    stage.agent.kill()?;

    fs::remove_file(home.join("catalog.db"))?;
    if with_copy {
        fs::write(home.join("catalog.bak"), copy)?;
    } else if home.join("catalog.bak").exists() {
        fs::remove_file(home.join("catalog.bak"))?;
    }
    stage.agent.launch(None)?;
    let place = stage.directory.to_string_lossy().into_owned();
    let sr = stage.agent.ok(&["sr", "introduce", "--type", "file", "--location", &place])?;
    ensure!(sr == stage.sr, "{sr}");
    let check = stage.agent.json(&["sr", "check", &sr])?;
    ensure!(check["clean"] == true, "{check}");
    verify(&stage, operation).context("at first")?;
    stage.coalesce()?;
    verify(&stage, operation).context("after all merges")?;
    stage.agent.stop()
}

/// Every disk of the model is there and reads as it should.
fn verify(stage: &Stage, operation: Operation) -> Result<()> {
    let listed = stage.listed()?;
    for (vdi, content) in &stage.content {
        if operation == Destroy && *vdi == stage.old && !listed.contains(vdi) {
            continue;
        }
        ensure!(listed.contains(vdi), "{vdi} is lost: {}", stage.agent.log());
        let read = stage.agent.read(vdi, 0, content.len() as u64)?;
        let (reverted, snapshot) = stage.reverted(Turn::First);
        let other = (operation == Revert && *vdi == reverted).then(|| &stage.content[&snapshot]);
        ensure!(read == *content || Some(&read) == other, "{vdi} reads wrong: {}", stage.agent.log());
    }
    Ok(())
}
