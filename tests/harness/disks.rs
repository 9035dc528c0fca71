//! What tests of disks ask an agent for again and again.

use super::Agent;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use std::io::{PipeReader, pipe};
use std::os::fd::AsFd;
use std::path::PathBuf;

impl Agent {
    /// Images in the chain of a disk or snapshot, its own included.
    pub(crate) fn depth(&self, vdi: &str) -> Result<u64> {
        self.json(&["vdi", "show", vdi])?["depth"].as_u64().context("a depth")
    }

    /// Merges what can be merged, and waits for it.
    pub(crate) fn run_merges(&self, sr: &str) -> Result<()> {
        self.ok(&["coalesce", "run", sr, "--wait"]).map(drop)
    }

    /// A check of the SR, which must find nothing wrong.
    pub(crate) fn is_clean(&self, sr: &str) -> Result<()> {
        let report = self.json(&["sr", "check", sr])?;
        ensure!(report["clean"] == true, "{report}");
        Ok(())
    }

    /// A raw export that has begun and goes on as its reader does; with its job.
    pub(crate) fn begin_export(&self, vdi: &str) -> Result<(String, PipeReader)> {
        let (reader, writer) = pipe()?;
        let params = json!({"vdi": vdi, "format": "raw", "fd": 0});
        let job = self.call_with("VDI.export", &params, &[writer.as_fd()])?;
        let job = job.map_err(|error| anyhow!("the export: {error}"))?;
        Ok((job["id"].as_str().context("a job")?.to_owned(), reader))
    }
}

/// The socket that a URI of an attached disk names.
pub(crate) fn socket_of(uri: &str) -> Result<PathBuf> {
    Ok(uri.strip_prefix("nbd+unix:///?socket=").with_context(|| format!("no URI of a socket: {uri}"))?.into())
}
