//! Repairs and trims, interrupted: whatever was done of them, the next one does the rest, and no disk reads otherwise.

use super::request::{Operation, Turn};
use super::stage::{SIZE, Stage};
use anyhow::{Context, Result, anyhow, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where the block table of our images is.
const TABLE: u64 = 1536;

/// Kills at `at` while the damaged, or the wasteful, SR is mended, and verifies what is there afterwards.
pub(crate) fn scenario(at: &str, operation: Operation) -> Result<()> {
    let mut stage = Stage::build()?;
    if operation == Operation::Repair {
        damage(&stage)?;
    } else {
        waste(&mut stage)?;
    }
    stage.agent.stop()?;
    stage.agent.launch(Some(at))?;
    // The end of the job is not waited for: a worker that dies again and again lets its keeper try for ever.
    let _ = operation.begin(&stage, Turn::First);
    stage.wait_for_crash(at.split(':').next().unwrap_or(at))?;
    stage.agent.kill()?;
    stage.agent.launch(None)?;
    match operation.send_patiently(&stage, Turn::First)? {
        Ok(result) => verify_result(operation, &result)?,
        // A worker's death is a failure, and a repeated request is told so.
        Err(error) => ensure!(at.starts_with("worker."), "the repeated request was refused: {error}"),
    }
    let anew = operation.send_patiently(&stage, Turn::Second)?;
    verify_result(operation, &anew.map_err(|error| anyhow!("the same anew: {error}"))?)?;
    stage.verify().context("after the same anew")?;
    stage.coalesce()?;
    stage.verify().context("after all merges")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

fn verify_result(operation: Operation, result: &serde_json::Value) -> Result<()> {
    if operation == Operation::Repair {
        ensure!(result["clean"] == true && result["repaired"].is_array(), "{result}");
    } else {
        ensure!(result["freed"].is_u64() && result["images"].as_u64() > Some(0), "{result}");
    }
    Ok(())
}

/// Damages what can be mended: the header of one leaf, both kinds of footers, a hint.
fn damage(stage: &Stage) -> Result<()> {
    let (one, _) = image(stage, &stage.a)?;
    one.write_all_at(&[0xff; 700], 700)?;
    one.write_all_at(&[0; 512], 0)?;
    let (other, end) = image(stage, &stage.b)?;
    other.write_all_at(&[1; 100], end - 450)?;
    let (last, _) = image(stage, &stage.old)?;
    last.write_all_at(b"x", 2048)?;
    Ok(())
}

/// Adds a disk with a block that has lost its place, as a process leaves it that is killed while it gives the block up.
fn waste(stage: &mut Stage) -> Result<()> {
    let disk = stage.disk("wasteful", SIZE)?;
    stage.write(&disk, 0, 2 << 20)?;
    // Not all of the block, or the batmap would name it too.
    stage.write(&disk, (2 << 20) + 512, (4 << 20) - 512)?;
    image(stage, &disk)?.0.write_all_at(&[0xff; 4], TABLE + 4)?;
    stage.content.get_mut(&disk).context("a disk of the stage")?[2 << 20..4 << 20].fill(0);
    Ok(())
}

/// The file of a disk's image, and its length.
fn image(stage: &Stage, vdi: &str) -> Result<(File, u64)> {
    let record = stage.agent.json(&["vdi", "show", vdi])?;
    let path: PathBuf = stage.directory.join(record["container"].as_str().context("container")?);
    Ok((File::options().read(true).write(true).open(&path)?, fs::metadata(&path)?.len()))
}
