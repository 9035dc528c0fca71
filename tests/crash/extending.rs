//! The crash points of a volume that grows while a guest fills it: played by `tests/lab_dynamic`, and known to `tests/crash_points.rs`,
//! which asks for a scenario of each.

/// The points.
pub(crate) const EXTENSIONS: &[&str] = &["extend.journaled", "extend.grown", "extend.told"];
