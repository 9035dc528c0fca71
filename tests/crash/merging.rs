//! Which crash points a merge on a volume group reaches besides those of every storage: played by `tests/lab_merging`, and known to
//! `tests/crash_points.rs`, which asks for a scenario of each.

/// What is merged when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    /// A base copy into another one.
    Inner,
    /// The leaf of a detached disk.
    Leaf,
    /// The leaf of a disk that a guest has.
    Live,
}

/// The points, and what reaches them.
pub(crate) const MERGES_THERE: &[(&str, Merged)] = &[
    ("inflate.grown", Merged::Inner),
    ("merge.grown", Merged::Inner),
    ("merge.made", Merged::Inner),
    ("leaf_merge.grown", Merged::Leaf),
    ("leaf_merge.made", Merged::Leaf),
    ("inflate.grown", Merged::Live),
    ("leaf_merge.grown", Merged::Live),
    ("leaf_merge.begun", Merged::Live),
    ("leaf_merge.committed", Merged::Live),
];
