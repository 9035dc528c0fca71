//! An SR of files, in which there is always room.

use crate::harness::{Agent, text};
use crate::storage::{Scale, Storage};
use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// Its directory.
pub(crate) struct Files(PathBuf);

impl Files {
    /// A directory that the agent makes.
    pub(crate) fn of(agent: &Agent) -> Self {
        Self(agent.path("sr"))
    }
}

impl Storage for Files {
    fn options(&self) -> Vec<String> {
        ["--type", "file", "--location", &text(&self.0)].map(str::to_owned).into()
    }

    fn scale(&self) -> Scale {
        Scale {
            vdis: 12,
            blocks: 4,
            tower: (10, 24),
            strike_within: 12_000,
            compared: 70,
            checked_every: 25,
            everything_every: 25,
        }
    }

    fn is_small(&self) -> bool {
        false
    }

    fn containers(&self, _agent: &Agent) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name.ends_with(".vhd"));
        Ok(names)
    }

    /// A file takes what it takes.
    fn check(&self, _agent: &Agent, _sr: &str, _attached: Option<&str>) -> Result<()> {
        Ok(())
    }
}
