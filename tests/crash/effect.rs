//! What an operation does to the model, and whether an SR shows it whole, not at all, or wrongly in part.

use super::request::{self, Operation, Turn, WRITTEN, exported, grown, imported, written};
use super::stage::{SIZE, Stage};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;

/// How much of an operation has taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    Whole,
}

impl Operation {
    /// Compares the SR with the model, finds the operation's effect and takes it into the model. An effect in part is an error.
    pub(crate) fn settle(self, stage: &mut Stage, turn: Turn) -> Result<Effect> {
        match self {
            Self::Write => return settle_write(stage),
            Self::Revert => return settle_revert(stage, turn),
            Self::Resize => return settle_resize(stage, turn),
            Self::Set => return settle_set(stage, turn),
            _ => {}
        }
        let listed = stage.listed()?;
        let known: BTreeSet<String> = stage.content.keys().cloned().collect();
        let (come, gone) = (&listed - &known, &known - &listed);
        if come.is_empty() && gone.is_empty() {
            return Ok(Effect::None);
        }
        let origin = stage.content.get(&stage.a).context("disk a")?;
        let (count, content) = match self {
            Self::Create => (1, vec![0; SIZE]),
            Self::Snapshot | Self::Copy => (1, origin.clone()),
            Self::Snapshots => {
                ensure!(gone.is_empty() && come.len() == 2, "two snapshots: came {come:?}, gone {gone:?}");
                for vdi in come {
                    let row = stage.record(&vdi)?;
                    let disk = row["snapshot_of"].as_str().context("a snapshot of something")?;
                    stage.content.insert(vdi, stage.content.get(disk).context("of a disk")?.clone());
                }
                return Ok(Effect::Whole);
            }
            Self::CopyIn => (1, stage.elsewhere.1.clone()),
            Self::Clone => (2, origin.clone()),
            Self::Import => (1, imported()),
            Self::Destroy => {
                let doomed = if turn == Turn::First { &stage.old } else { &stage.b };
                ensure!(come.is_empty() && gone == BTreeSet::from([doomed.clone()]), "gone: {gone:?}");
                stage.content.remove(&doomed.clone());
                return Ok(Effect::Whole);
            }
            _ => bail!("{self:?} has brought {come:?} and taken {gone:?}"),
        };
        ensure!(gone.is_empty() && come.len() == count, "{self:?}: came {come:?}, gone {gone:?}");
        stage.content.extend(come.into_iter().map(|vdi| (vdi, content.clone())));
        Ok(Effect::Whole)
    }

    /// Whether the operation changes which VDIs there are, or a VDI in a way that is seen afterwards.
    pub(crate) fn changes_vdis(self) -> bool {
        !matches!(self, Self::Write | Self::Export | Self::Coalesce | Self::Check | Self::Grow | Self::List)
    }

    /// Checks what the operation has answered, or put into a file, against the model.
    pub(crate) fn verify_result(self, stage: &Stage, turn: Turn, answer: &serde_json::Value) -> Result<()> {
        let named: Vec<&str> = match self {
            Self::Create | Self::Import | Self::Copy | Self::CopyIn => {
                answer["uuid"].as_str().into_iter().collect()
            }
            Self::Snapshot | Self::Snapshots | Self::Clone => {
                answer["vdis"].as_array().into_iter().flatten().filter_map(|uuid| uuid.as_str()).collect()
            }
            Self::Export => {
                let same = fs::read(exported(stage, turn))? == stage.content[&stage.a];
                ensure!(same, "the export is not what the disk holds");
                return Ok(());
            }
            _ => return Ok(()),
        };
        let count = if matches!(self, Self::Clone | Self::Snapshots) { 2 } else { 1 };
        ensure!(named.len() == count, "{self:?} answered {answer}");
        ensure!(named.iter().all(|uuid| stage.content.contains_key(*uuid)), "{self:?} answered {answer}");
        Ok(())
    }
}

/// A write that was not answered leaves each sector as it was or as it was to be.
fn settle_write(stage: &mut Stage) -> Result<Effect> {
    let read = stage.agent.read(&stage.b, 0, SIZE as u64)?;
    let content = stage.content.get_mut(&stage.b).context("disk b")?;
    let mut wanted = content.clone();
    wanted[WRITTEN].copy_from_slice(&written());
    let sectors = read.chunks(512).zip(content.chunks(512)).zip(wanted.chunks(512));
    for (index, ((is, before), after)) in sectors.enumerate() {
        ensure!(is == before || is == after, "sector {index} is neither as before nor as after");
    }
    let effect = if read == wanted { Effect::Whole } else { Effect::None };
    *content = read;
    Ok(effect)
}

/// A disk holds what it held, or what its snapshot holds.
fn settle_revert(stage: &mut Stage, turn: Turn) -> Result<Effect> {
    let (disk, snapshot) = stage.reverted(turn);
    let (before, after) = (&stage.content[&disk], &stage.content[&snapshot]);
    let read = stage.agent.read(&disk, 0, before.len() as u64)?;
    ensure!(read == *before || read == *after, "{disk} is neither as it was nor as its snapshot");
    let effect = if read == *before { Effect::None } else { Effect::Whole };
    stage.content.insert(disk, read);
    Ok(effect)
}

/// A disk has its old size, or the new one.
fn settle_resize(stage: &mut Stage, turn: Turn) -> Result<Effect> {
    let row = stage.record(&stage.b)?;
    let content = stage.content.get_mut(&stage.b).context("disk b")?;
    if row["virtual_size"] == content.len() {
        return Ok(Effect::None);
    }
    ensure!(row["virtual_size"] == grown(turn), "{row}");
    content.resize(grown(turn), 0);
    Ok(Effect::Whole)
}

fn settle_set(stage: &mut Stage, turn: Turn) -> Result<Effect> {
    let row = stage.record(&stage.a)?;
    let label = row["name_label"].as_str().context("a label")?.to_owned();
    if label == stage.label {
        return Ok(Effect::None);
    }
    ensure!(label == request::label(stage, turn), "{row}");
    stage.label = label;
    Ok(Effect::Whole)
}
