//! Requests that check images, mend them, and give their unused space back.

use crate::crash;
use crate::images::{parent_spec, to_hex};
use crate::open::{Caching, Descriptors};
use crate::trouble::{describe, from_io, from_vhd, trouble};
use catena_blockio::Container;
use catena_chain::Layer;
use catena_control::{Answer, Answered, Expected, Fix, Handed, Problem, Trouble, TroubleKind};
use catena_types::{Bytes, FileOffset, Format, HeaderPatch, PatchWrite, Severity};
use catena_vhd::{CheckOptions, Image, Mode, Repair, RepairOptions, vhd_timestamp};
use std::fs::File;
use std::io::Write;

/// The most findings that one check reports, divided among its images: more of one say nothing new, and must not hide another.
const FINDINGS_LIMIT: usize = 200;

/// Checks images, and says of each problem what a repair would do.
pub(crate) fn check(images: &[(Handed, Expected)], fds: &mut Descriptors) -> Answered {
    let mut problems = Vec::new();
    let each = (FINDINGS_LIMIT / images.len().max(1)).max(1);
    for (index, (handed, expected)) in images.iter().enumerate() {
        let container = fds.container(Caching::Buffered)?;
        if handed.format == Format::Raw {
            // It has nothing that could be wrong.
            continue;
        }
        let options = CheckOptions {
            parent: expected.parent.as_ref().map(|(parent, size)| (parent.id, *size)),
            now: Some(vhd_timestamp(crate::streams::now())),
            deep: false,
        };
        let mut found = match catena_vhd::check(&*container, &options) {
            Ok(found) => found,
            Err(error) => {
                let text = describe(&error);
                problems.push(Problem { severity: Severity::Error, index, text, repair: String::new() });
                continue;
            }
        };
        let plan = if found.is_empty() { None } else { plan(&*container, handed, expected, false).ok() };
        // Errors first: they decide whether the image is damaged.
        found.sort_by_key(|problem| problem.severity != Severity::Error);
        for problem in found.into_iter().take(each) {
            let place = problem.at.map(|at| format!(" at byte {}", at.0)).unwrap_or_default();
            let fix = plan.iter().flat_map(|plan| &plan.fixes).find(|fix| fix.check == problem.check);
            problems.push(Problem {
                severity: problem.severity,
                index,
                text: format!("{}{place}: {}", problem.check, problem.detail),
                repair: fix.map_or_else(String::new, |fix| fix.what.to_owned()),
            });
        }
    }
    Ok(Answer::Problems { problems })
}

/// The plan for an image, which must be the one that is meant.
fn plan(
    container: &dyn Container,
    handed: &Handed,
    expected: &Expected,
    deep: bool,
) -> Result<Repair, Trouble> {
    let options = RepairOptions {
        parent: expected.parent.as_ref().map(|(parent, _)| parent_spec(parent)),
        hidden: expected.hidden,
        deep,
    };
    let plan = catena_vhd::plan_repair(container, &options).map_err(|error| from_vhd(&error))?;
    if plan.id == handed.id {
        return Ok(plan);
    }
    let message = format!("a container holds image {}, not {}", plan.id, handed.id);
    Err(trouble(TroubleKind::WrongImage, message))
}

/// Plans a repair and saves what it would write over. What cannot be mended has an empty plan.
pub(crate) fn plan_repair(handed: &Handed, expected: &Expected, fds: &mut Descriptors) -> Answered {
    let container = fds.container(Caching::Buffered)?;
    let mut file = File::from(fds.take()?);
    let plan = match plan(&*container, handed, expected, true) {
        Ok(plan) => plan,
        Err(Trouble { kind: TroubleKind::Io, message }) => return Err(trouble(TroubleKind::Io, message)),
        Err(_) => return Ok(Answer::RepairPlan { fixes: Vec::new(), saved: Vec::new() }),
    };
    let saved = save(&*container, &plan, &mut file).map_err(from_io("saving what is written over"))?;
    crash::REPAIR_SAVED.pass();
    let fixes = plan.fixes.iter();
    let fixes = fixes.map(|fix| Fix { check: fix.check.to_owned(), what: fix.what.to_owned() }).collect();
    Ok(Answer::RepairPlan { fixes, saved })
}

/// Copies the ranges that a plan writes over; what lies past the end is not there to be saved.
fn save(
    container: &dyn Container,
    plan: &Repair,
    file: &mut File,
) -> std::io::Result<Vec<(FileOffset, Bytes)>> {
    let size = container.size()?;
    let mut saved = Vec::new();
    for (at, len) in plan.touched() {
        let len = len.min(usize::try_from(size.0.saturating_sub(at.0)).unwrap_or(usize::MAX));
        if len > 0 {
            let mut bytes = vec![0; len];
            container.read_at(&mut bytes, at)?;
            file.write_all(&bytes)?;
            saved.push((at, Bytes(len as u64)));
        }
    }
    file.sync_all()?;
    Ok(saved)
}

/// Mends an image, all but its header, whose bytes are answered for the journal.
pub(crate) fn repair(handed: &Handed, expected: &Expected, fds: &mut Descriptors) -> Answered {
    let container = fds.container(Caching::Buffered)?;
    let plan = plan(&*container, handed, expected, true)?;
    plan.apply(&*container).map_err(|error| from_vhd(&error))?;
    crash::REPAIRED.pass();
    let writes = plan.header.iter();
    let writes = writes.map(|(at, bytes)| PatchWrite { at: *at, hex: to_hex(bytes) }).collect();
    Ok(Answer::Repaired { header: HeaderPatch { image: handed.id, writes } })
}

/// Gives the unused space inside an image back.
pub(crate) fn trim(handed: &Handed, fds: &mut Descriptors) -> Answered {
    let mut image = fds.image(handed, Mode::ReadWrite, Caching::Buffered)?;
    let allocated = |image: &Image| image.container().allocated().map_err(from_io("measuring an image"));
    let before = allocated(&image)?;
    image.trim().map_err(|error| from_vhd(&error))?;
    crash::TRIMMED.pass();
    let after = allocated(&image)?;
    Ok(Answer::Trimmed { freed: Bytes(before.0.saturating_sub(after.0)) })
}
