//! Which crash points of explicit sizing an operation on a volume group reaches: played by `tests/lab_sizing`, and known to
//! `tests/crash_points.rs`, which asks for a scenario of each.
#![allow(dead_code, reason = "each suite plays a part of it")]

/// What is done when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizing {
    /// A disk is attached for writing.
    Attach,
    /// The same disk is detached.
    Detach,
    /// A snapshot of a disk in use, whose old leaf is cut.
    Snapshot,
    /// A thick disk gets larger.
    Resize,
}

/// The points, and what reaches them.
pub(crate) const VOLUMES: &[(&str, Sizing)] = &[
    ("inflate.journaled", Sizing::Attach),
    ("inflate.grown", Sizing::Attach),
    ("worker.fitted", Sizing::Attach),
    ("inflate.fitted", Sizing::Attach),
    ("deflate.fitted", Sizing::Detach),
    ("worker.fitted", Sizing::Detach),
    ("deflate.cut", Sizing::Detach),
    ("deflate.fitted", Sizing::Snapshot),
    ("deflate.cut", Sizing::Snapshot),
    ("inflate.grown", Sizing::Resize),
    ("inflate.fitted", Sizing::Resize),
];
