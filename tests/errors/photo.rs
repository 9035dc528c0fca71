//! What a refusal must leave as it was: every file of the SRs and of those who ask, and what the catalogs say.
//!
//! The files of a catalog itself are left out, since a refused job is written down there, and SQLite checkpoints and copies them
//! when it likes (`catalog.db`, its WAL, `catalog.bak`): their content is compared through the lists. So are the figures of the
//! file system, which is shared with others.

use crate::harness::sha256;
use crate::stage::Stage;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Fields of an SR that others on the same file system change.
const FIGURES: [&str; 3] = ["physical_size", "physical_utilisation", "free_space"];

/// How everything was at a moment.
#[derive(Debug, PartialEq)]
pub(crate) struct Photo {
    /// Hashes of files; `directory` for one.
    files: BTreeMap<PathBuf, String>,
    lists: Vec<Value>,
}

impl Photo {
    /// Of this moment; without the jobs where one is to be left.
    pub(crate) fn take(stage: &Stage, leaves_a_job: bool) -> Result<Self> {
        let mut files = BTreeMap::new();
        for place in &stage.places {
            walk(place, &mut files)?;
        }
        let mut srs = stage.agent.json(&["sr", "list"])?;
        for sr in srs["srs"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            for field in FIGURES {
                sr.remove(field);
            }
        }
        let mut lists = vec![srs, stage.agent.json(&["vdi", "list"])?, stage.agent.json(&["vdi", "tree"])?];
        if !leaves_a_job {
            lists.push(stage.agent.json(&["job", "list"])?);
        }
        Ok(Self { files, lists })
    }

    /// Fails with the first difference.
    pub(crate) fn compare(&self, later: &Self) -> Result<()> {
        for (path, hash) in &self.files {
            ensure!(later.files.get(path) == Some(hash), "{} has changed or gone", path.display());
        }
        let new = later.files.keys().find(|path| !self.files.contains_key(*path));
        ensure!(new.is_none(), "{new:?} is new");
        for (one, other) in self.lists.iter().zip(&later.lists) {
            ensure!(one == other, "{one}\nbecame\n{other}");
        }
        Ok(())
    }
}

fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            walk(&path, found)?;
            found.insert(path, "directory".to_owned());
        } else if kind.is_file() && !entry.file_name().to_string_lossy().starts_with("catalog.") {
            let hash = sha256(&path)?;
            found.insert(path, hash);
        }
    }
    Ok(())
}
