//! Findings of a check or of the dry run of an introduction, as a table.

use crate::output::record;
use crate::output::table::Rows;
use catena_rpc::{Finding, Repaired};

/// A line a finding; nothing if there is none.
pub(crate) fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let mut rows = Rows::new(&["SEVERITY", "OBJECT", "PROBLEM", "REPAIR"]);
    for finding in findings {
        rows.push([
            record::word(&finding.severity),
            finding.object.clone(),
            finding.problem.clone(),
            finding.repair.clone(),
        ]);
    }
    rows.render()
}

/// A line for each thing that was mended; nothing if nothing was.
pub(crate) fn repaired(repaired: &[Repaired]) -> String {
    if repaired.is_empty() {
        return String::new();
    }
    let mut rows = Rows::new(&["REPAIRED", "PROBLEM", "REPAIR", "SAVED"]);
    for one in repaired {
        rows.push([one.object.clone(), one.problem.clone(), one.repair.clone(), one.saved.clone()]);
    }
    rows.render()
}
