//! Repairs and trims, interrupted: whatever was done of them, the next one does the rest, and no disk reads otherwise.

use super::request::{Operation, Turn};
use super::stage::{SIZE, Stage};
use crate::harness::volumes::OnDisk;
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
    play(&mut stage, at, operation)?;
    anew(&stage, operation)?;
    stage.verify().context("after the same anew")?;
    stage.coalesce()?;
    stage.verify().context("after all merges")?;
    stage.verify_tidy()?;
    stage.agent.stop()
}

/// The same on an SR that has been used already, and is damaged or wasteful; what it holds is not looked at.
pub(crate) fn play(stage: &mut Stage, at: &str, operation: Operation) -> Result<()> {
    stage.arm(at)?;
    // The end of the job is not waited for: a worker that dies again and again lets its keeper try for ever.
    let _ = operation.begin(stage, Turn::First);
    stage.await_death(at)?;
    stage.revive(at)?;
    match operation.send_patiently(stage, Turn::First)? {
        Ok(result) => verify_result(operation, &result),
        // A worker's death is a failure, and a repeated request is told so.
        Err(error) => {
            ensure!(at.starts_with("worker."), "the repeated request was refused: {error}");
            anew(stage, operation)
        }
    }
}

fn anew(stage: &Stage, operation: Operation) -> Result<()> {
    let result = operation.send_patiently(stage, Turn::Second)?;
    verify_result(operation, &result.map_err(|error| anyhow!("the same anew: {error}"))?)
}

fn verify_result(operation: Operation, result: &serde_json::Value) -> Result<()> {
    if operation == Operation::Repair {
        ensure!(result["clean"] == true && result["repaired"].is_array(), "{result}");
    } else {
        // Of volumes it is the free space around them that is given back.
        let is_done = result["images"].as_u64() > Some(0) || result["discarded"].is_u64();
        ensure!(result["freed"].is_u64() && is_done, "{result}");
    }
    Ok(())
}

/// Damages what can be mended: the header of one leaf, both kinds of footers, a hint.
pub(crate) fn damage(stage: &Stage) -> Result<()> {
    let (one, _) = image(stage, &stage.a)?;
    one.write(700, &[0xff; 700])?;
    one.write(0, &[0; 512])?;
    let (other, end) = image(stage, &stage.b)?;
    other.write(end - 450, &[1; 100])?;
    let (last, _) = image(stage, &stage.old)?;
    last.write(2048, b"x")?;
    Ok(())
}

/// Adds a disk with a block that has lost its place, as a process leaves it that is killed while it gives the block up.
pub(crate) fn waste(stage: &mut Stage) -> Result<()> {
    let disk = stage.disk("wasteful", SIZE)?;
    stage.write(&disk, 0, 2 << 20)?;
    // Not all of the block, or the batmap would name it too.
    stage.write(&disk, (2 << 20) + 512, (4 << 20) - 512)?;
    image(stage, &disk)?.0.write(TABLE + 4, &[0xff; 4])?;
    stage.content.get_mut(&disk).context("a disk of the stage")?[2 << 20..4 << 20].fill(0);
    Ok(())
}

/// The bytes of a disk's image, and their number.
fn image(stage: &Stage, vdi: &str) -> Result<(Bytes, u64)> {
    let record = stage.record(vdi)?;
    let container = record["container"].as_str().context("container")?;
    if stage.is_on_volumes() {
        let volume = stage.on_disk(container)?;
        let size = volume.size();
        return Ok((Bytes::OfVolume(volume), size));
    }
    let path: PathBuf = stage.directory.join(container);
    Ok((Bytes::OfFile(File::options().read(true).write(true).open(&path)?), fs::metadata(&path)?.len()))
}

/// Where an image's bytes are, which nobody has open.
enum Bytes {
    OfFile(File),
    OfVolume(OnDisk),
}

impl Bytes {
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::OfFile(file) => Ok(file.write_all_at(bytes, at)?),
            Self::OfVolume(volume) => volume.write(at, bytes),
        }
    }
}
