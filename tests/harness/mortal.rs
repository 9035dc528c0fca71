//! An agent whose processes are told by a file where to die (`CATENA_CRASH_AT=@FILE`): it goes on, and so does its SR.

use super::{Agent, PATIENCE, text, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

impl Agent {
    /// A fresh one. Its workers, which have no rights, must find the file and remove it.
    pub(crate) fn start_mortal() -> Result<Self> {
        let mut agent = Self::stopped()?;
        let place = agent.path("death");
        fs::create_dir(&place)?;
        fs::set_permissions(&place, Permissions::from_mode(0o777))?;
        fs::set_permissions(agent.path(""), Permissions::from_mode(0o711))?;
        agent.launch_mortal()?;
        Ok(agent)
    }

    /// Starts it again.
    pub(crate) fn launch_mortal(&mut self) -> Result<()> {
        self.launch(Some(&format!("@{}", text(&self.death()))))
    }

    /// The next process that passes the point dies there.
    pub(crate) fn arm(&self, at: &str) -> Result<()> {
        // Whole from the moment it is seen.
        let new = self.path("death/new");
        fs::write(&new, at)?;
        fs::set_permissions(&new, Permissions::from_mode(0o666))?;
        Ok(fs::rename(new, self.death())?)
    }

    /// Whether nobody has died yet.
    pub(crate) fn is_armed(&self) -> bool {
        self.death().exists()
    }

    /// Takes the order to die back.
    pub(crate) fn disarm(&self) -> Result<()> {
        match fs::remove_file(self.death()) {
            // Somebody has died.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits for the death.
    pub(crate) fn await_death(&self, at: &str) -> Result<()> {
        wait_until(at, || Ok(!self.is_armed())).with_context(|| self.log())
    }

    /// Waits until the SR has a keeper again after it has lost one.
    pub(crate) fn wait_attached(&self, sr: &str) -> Result<()> {
        let (end, params) = (Instant::now() + PATIENCE, json!({"sr": sr}));
        // Answered by the keeper's owner, from its memory.
        while let Err(error) = self.call("SR.stat", &params)? {
            let passes = error["data"]["retry"] == true && Instant::now() < end;
            ensure!(passes, "the SR does not come back: {error}: {}", self.log());
            // Keepers that die often are started after pauses: this ends the pause.
            drop(self.call("SR.attach", &params)?);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn death(&self) -> PathBuf {
        self.path("death/at")
    }
}
