//! Which crash points the life of an SR on volumes reaches: played by `tests/lab_crash_life.rs`, and known to
//! `tests/crash_points.rs`, which asks for a scenario of each.

/// An SR is created.
pub(crate) const MADE: &[&str] = &[
    "group.physical",
    "group.made",
    "group.mounted",
    "catalog.replace.named",
    "catalog.replace.wal-removed",
    "catalog.replace.renamed",
    "front.sr_made",
    "front.sr_d_written",
];

/// It is opened by who comes after a keeper that was killed.
pub(crate) const REOPENED: &[&str] = &["catalog.replace.copied"];

/// It is destroyed.
pub(crate) const UNMADE: &[&str] = &["group.unmarked", "front.sr_destroyed"];

/// A group of another manager is taken over.
pub(crate) const INTRODUCED: &[&str] =
    &["group.given", "introduce.journaled", "introduce.made", "introduce.done"];

/// A lost catalog is made anew: its volume first, then what is in it.
pub(crate) const RENEWED: &[&str] =
    &["renew.aside", "renew.made", "renew.formatted", "renew.finished", "catalog.salvage.aside"];
