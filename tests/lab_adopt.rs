//! Volume groups that come from elsewhere, and SRs that have lost their catalog, in the lab.
//!
//! `theirs`: a group as XenServer leaves one, and what stands in the way of taking it over. `lost`: an SR of ours without its
//! catalog, on this host and on another.

mod harness;
#[path = "lab_adopt/lost.rs"]
mod lost;
#[path = "lab_adopt/theirs.rs"]
mod theirs;

use anyhow::{Context, Result, ensure};
use harness::Agent;
use harness::lab::run;
use serde_json::Value;

/// Volumes of a group that are active.
fn active(group: &str) -> Result<Vec<String>> {
    let report = run("lvs", &["--foreign", "--noheadings", "-o", "lv_name,lv_active", group])?;
    let active = report.lines().filter(|line| line.trim_end().ends_with(" active"));
    Ok(active.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
}

/// How often the group was changed.
fn changes(group: &str) -> Result<String> {
    Ok(run("vgs", &["--foreign", "--noheadings", "-o", "vg_seqno", group])?.trim().to_owned())
}

/// A command of lvm2 by the owner of a group.
fn as_owner(group: &str, command: &str, arguments: &[&str]) -> Result<String> {
    let owner = run("vgs", &["--foreign", "--noheadings", "-o", "vg_systemid", group])?;
    let settings = format!("global{{system_id_source=\"lvmlocal\"}} local{{system_id={:?}}}", owner.trim());
    run(command, &[&["-qq", "--yes", "--config", &settings], arguments].concat())
}

/// A command that must fail with this exit code; what it said.
fn refused(agent: &Agent, arguments: &[&str], code: i32) -> Result<String> {
    let said = agent.catena(arguments)?;
    ensure!(said.code == code, "{arguments:?}: {said:?}\n{}", agent.log());
    Ok(said.err)
}

/// The problems among the findings of a document, by object.
fn problems(document: &Value) -> Result<Vec<(String, String, String)>> {
    let findings = document["findings"].as_array().context("findings")?;
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(findings
        .iter()
        .map(|one| (word(one, "object"), word(one, "severity"), word(one, "problem")))
        .collect())
}
