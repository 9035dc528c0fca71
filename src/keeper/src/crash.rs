//! The named places where a debug build of the keeper can be told to die: each phase of each kind of job, and the replacement
//! of a catalog.

use catena_types::{CrashPoint, JobKind};

/// Every point of this program but those of the back ends.
pub(crate) fn all() -> impl Iterator<Item = &'static CrashPoint> {
    JOBS.iter()
        .chain(crate::sizing::POINTS)
        .chain(catena_catalog::CRASH_POINTS)
        .chain(catena_catalog::SALVAGE_POINTS)
}

/// Between two effects of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The job row is written, nothing else.
    Journaled,
    /// A process has begun with it.
    Begun,
    /// A container that was too small for it has grown, which is not recorded.
    Grown,
    /// What it makes is made, its change of the tree is not committed.
    Made,
    /// The writes of attached disks are held back for the commit.
    Paused,
    /// Its change of the tree is committed, its steps are not done. A job without steps is done with its commit.
    Committed,
    /// The process has let go of what the commit has made garbage.
    Released,
    /// The process has ended it, which is not recorded.
    Closed,
    /// Header bytes are planned and journaled, not written.
    Planned,
    /// Its steps are done, which is not recorded.
    Stepped,
    /// All is done and recorded; the client has no answer.
    Done,
}

macro_rules! points {
    ($($kind:ident $name:literal: $($phase:ident $suffix:literal),*;)*) => {
        /// Those of the jobs.
        const JOBS: &[CrashPoint] = &[$($(CrashPoint(concat!($name, ".", $suffix)),)*)*];

        /// Dies here if this is the point that was asked for.
        pub(crate) fn pass(kind: JobKind, phase: Phase) {
            let point = match (kind, phase) {
                $($((JobKind::$kind, Phase::$phase) => CrashPoint(concat!($name, ".", $suffix)),)*)*
                _ => return,
            };
            point.pass();
        }
    };
}

points! {
    Create "create": Journaled "journaled", Made "made", Committed "committed", Done "done";
    Snapshot "snapshot": Journaled "journaled", Made "made", Paused "paused", Committed "committed", Stepped "stepped", Done "done";
    Clone "clone": Journaled "journaled", Made "made", Paused "paused", Committed "committed", Stepped "stepped", Done "done";
    Revert "revert": Journaled "journaled", Made "made", Committed "committed", Stepped "stepped", Done "done";
    Resize "resize": Journaled "journaled", Paused "paused", Made "made", Done "done";
    Set "set": Committed "committed";
    Copy "copy": Journaled "journaled", Made "made", Done "done";
    Destroy "destroy": Committed "committed";
    Import "import": Journaled "journaled", Made "made", Done "done";
    Export "export": Journaled "journaled", Made "made", Done "done";
    Introduce "introduce": Journaled "journaled", Made "made", Done "done";
    Merge "merge": Journaled "journaled", Grown "grown", Made "made", Committed "committed", Planned "planned", Stepped "stepped",
        Done "done";
    LeafMerge "leaf_merge": Journaled "journaled", Grown "grown", Begun "begun", Made "made", Committed "committed", Released "released",
        Closed "closed", Stepped "stepped", Done "done";
    Garbage "garbage": Journaled "journaled", Stepped "stepped", Done "done";
    Check "check": Journaled "journaled", Done "done";
    Repair "repair": Journaled "journaled", Made "made", Committed "committed", Planned "planned", Stepped "stepped",
        Done "done";
    Trim "trim": Journaled "journaled", Made "made", Done "done";
    Grow "grow": Journaled "journaled", Made "made", Done "done";
    Attach "attach": Journaled "journaled", Made "made", Done "done";
    Detach "detach": Made "stopped", Committed "committed";
    Extend "extend": Journaled "journaled", Grown "grown", Made "told";
}
