//! The crash points of an SR on volumes that gets more devices: played by `tests/lab_growing`, and known to `tests/crash_points.rs`,
//! which asks for a scenario of each.

/// The points, in their order.
pub(crate) const GROWTHS: &[&str] =
    &["grow.journaled", "group.added", "group.extended", "grow.made", "grow.done"];
