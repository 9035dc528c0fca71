//! Which crash points are played on logical volumes, each once, and by which suite of the lab: the suites play these lists, and
//! `tests/crash_points.rs` compares them with what the programs have.
//!
//! Of a point that `table` has for several operations the first one is played. Lists of suites that need nothing else of this module
//! are files of their own.

use super::coming::{INTRODUCED, MADE, RENEWED, REOPENED, UNMADE};
use super::extending::EXTENSIONS;
use super::growing::GROWTHS;
use super::merging::MERGES_THERE;
use super::request::Operation;
use super::serving::Serving;
use super::table::{FRONT, KEEPER, MENDING, MERGES, SERVE, SERVING, WORKER};
use super::volumes::VOLUMES;
use std::collections::BTreeSet;

/// Points that no operation on volumes reaches, and why.
pub(crate) const NOT_THERE: &[(&str, &str)] =
    &[("worker.trimmed", "a trim discards the free extents of the group, and no worker has a part in it")];

/// A point without the pass that is meant.
pub(crate) fn name_of(at: &str) -> &str {
    at.rsplit_once(':').map_or(at, |(name, _)| name)
}

fn first_of_each<T: Copy>(rows: impl IntoIterator<Item = (&'static str, T)>) -> Vec<(&'static str, T)> {
    let mut seen = BTreeSet::new();
    rows.into_iter().filter(|(at, _)| seen.insert(name_of(at))).collect()
}

/// Operations on disks, in the order of their first points: `tests/lab_crash_points.rs`.
pub(crate) fn operations() -> Vec<(Operation, Vec<&'static str>)> {
    let mut all: Vec<(Operation, Vec<&'static str>)> = Vec::new();
    // Merges are below, and what grows is a suite of its own.
    let is_here = |operation: &Operation| !matches!(operation, Operation::Coalesce | Operation::Grow);
    let rows = first_of_each([KEEPER, FRONT, WORKER].concat());
    for (at, operation) in rows.into_iter().filter(|(_, operation)| is_here(operation)) {
        match all.iter_mut().find(|(one, _)| *one == operation) {
            Some((_, points)) => points.push(at),
            None => all.push((operation, vec![at])),
        }
    }
    all
}

/// Repairs and trims: `tests/lab_crash_points.rs`.
pub(crate) fn mending() -> Vec<(&'static str, Operation)> {
    let is_there = |(at, operation): &(&str, Operation)| match operation {
        Operation::Trim => at.starts_with("trim."),
        _ => name_of(at).contains("repair"),
    };
    first_of_each(MENDING.iter().copied().filter(is_there))
}

/// Merges of disks that nobody has, by what their points begin with: `tests/lab_crash_disks.rs`.
pub(crate) fn merges(of: &str) -> Vec<&'static str> {
    let rows = first_of_each([MERGES, WORKER].concat());
    let own =
        rows.into_iter().filter(|(at, operation)| *operation == Operation::Coalesce && at.starts_with(of));
    own.map(|(at, _)| at).collect()
}

/// What a keeper does for a disk that is attached, beyond what it does for every disk: `tests/lab_crash_disks.rs`.
pub(crate) fn attached() -> Vec<(&'static str, Serving)> {
    let others: BTreeSet<&str> = [KEEPER, MERGES].concat().into_iter().map(|(at, _)| name_of(at)).collect();
    first_of_each(SERVING.iter().copied().filter(|(at, _)| !others.contains(name_of(at))))
}

/// Every point that is played on volumes, whoever does it.
pub(crate) fn all() -> BTreeSet<&'static str> {
    let lists: [Vec<&'static str>; 5] = [
        operations().into_iter().flat_map(|(_, points)| points).collect(),
        mending().into_iter().map(|(at, _)| at).collect(),
        merges(""),
        attached().into_iter().map(|(at, _)| at).collect(),
        // `tests/lab_crash_disks.rs`
        SERVE.to_vec(),
    ];
    let elsewhere = [
        // `tests/lab_crash_life.rs`
        MADE.to_vec(),
        REOPENED.to_vec(),
        UNMADE.to_vec(),
        INTRODUCED.to_vec(),
        RENEWED.to_vec(),
        // `tests/lab_growing`
        GROWTHS.to_vec(),
        // `tests/lab_dynamic`
        EXTENSIONS.to_vec(),
        // `tests/lab_sizing`
        VOLUMES.iter().map(|(at, _)| *at).collect(),
        // `tests/lab_merging.rs`
        MERGES_THERE.iter().map(|(at, _)| *at).collect(),
    ];
    lists.into_iter().chain(elsewhere).flatten().map(name_of).collect()
}
