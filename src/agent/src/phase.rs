//! The phases of an SR on this host, what leads from one to another, and how long a dead keeper's successor waits.
//!
//! ```text
//!               start              attached
//!  Detached ───────────▶ Starting ───────────▶ Attached
//!    ▲  ▲                │  ▲   │                │  │  ▲
//!    │  │ stop   refused │  │   │ died           │  │  │ stop refused
//!    │  ├──── Failed ◀───┘  │   ▼                │  │  │
//!    │  │       └───────────┴─ Waiting ◀── died ─┘  ▼  │
//!    │  └───────── stop ────────┘ (start)        Stopping
//!    └───────────────────── died, refused ──────────┘
//! ```
//!
//! `stop` also leads from Starting to Stopping. A refusal that may pass is tried again while the SR stays Failed, so that nobody waits
//! for these tries; one that succeeds leads to Attached. Pure; `supervise` applies it.

use std::time::Duration;

/// The first pause before a keeper is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest one: a keeper that cannot live takes little of the host, and whoever has mended what it died of waits no longer.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// The first pause before an SR is tried again whose keeper has refused to attach it for now.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest one: a try looks for devices among all of the host, and what is back is to be in use again soon.
const LAST_REST: Duration = Duration::from_secs(15);
/// A keeper that has lived so long is not counted with those that died before it.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How an SR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No keeper, and none is wanted.
    Detached,
    /// A keeper was started and has not said yet that the SR is attached.
    Starting,
    /// The keeper serves.
    Attached,
    /// The keeper died; another is started after a pause.
    Waiting,
    /// The keeper was told to end.
    Stopping,
    /// The keeper refused to attach. Where that may pass, it is tried again.
    Failed,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happening {
    /// A keeper is wanted.
    Start,
    /// The keeper has attached the SR.
    Attached,
    /// The keeper has refused to attach it, and has ended.
    Refused,
    /// The keeper has ended.
    Died,
    /// No keeper is wanted.
    Stop,
    /// The keeper has refused to end.
    StopRefused,
}

impl Phase {
    /// Its name, for statistics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Starting => "starting",
            Self::Attached => "attached",
            Self::Waiting => "waiting",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }

    /// The phase that follows; the same where the happening means nothing in it.
    pub(crate) const fn after(self, happening: Happening) -> Self {
        match (self, happening) {
            (Self::Detached | Self::Failed | Self::Waiting, Happening::Start) => Self::Starting,
            (Self::Starting | Self::Failed, Happening::Attached)
            | (Self::Stopping, Happening::StopRefused) => Self::Attached,
            (Self::Starting, Happening::Refused) => Self::Failed,
            (Self::Starting | Self::Attached, Happening::Died) => Self::Waiting,
            (Self::Starting | Self::Attached, Happening::Stop) => Self::Stopping,
            (Self::Waiting | Self::Failed, Happening::Stop)
            | (Self::Stopping, Happening::Died | Happening::Refused) => Self::Detached,
            _ => self,
        }
    }
}

/// How many keepers died in a row, after one more that lived for `life`.
pub(crate) fn deaths_in_a_row(before: u32, life: Duration) -> u32 {
    if life >= LONG_LIFE { 1 } else { before.saturating_add(1) }
}

/// The pause after so many deaths in a row.
pub(crate) fn pause(deaths: u32) -> Duration {
    doubled(FIRST_PAUSE, deaths, LAST_PAUSE)
}

/// The pause after so many refusals in a row.
pub(crate) fn rest(refusals: u32) -> Duration {
    doubled(FIRST_REST, refusals, LAST_REST)
}

/// The pause before the next try after so many in a row.
fn doubled(first: Duration, tries: u32, last: Duration) -> Duration {
    (first * (1 << tries.saturating_sub(1).min(16))).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_the_diagram_and_nothing_else_moves_them() {
        use Happening as H;
        use Phase as P;
        let moves = [
            (P::Detached, H::Start, P::Starting),
            (P::Failed, H::Start, P::Starting),
            (P::Waiting, H::Start, P::Starting),
            (P::Starting, H::Attached, P::Attached),
            (P::Failed, H::Attached, P::Attached),
            (P::Starting, H::Refused, P::Failed),
            (P::Starting, H::Died, P::Waiting),
            (P::Attached, H::Died, P::Waiting),
            (P::Starting, H::Stop, P::Stopping),
            (P::Attached, H::Stop, P::Stopping),
            (P::Waiting, H::Stop, P::Detached),
            (P::Failed, H::Stop, P::Detached),
            (P::Stopping, H::Died, P::Detached),
            (P::Stopping, H::Refused, P::Detached),
            (P::Stopping, H::StopRefused, P::Attached),
        ];
        for phase in [P::Detached, P::Starting, P::Attached, P::Waiting, P::Stopping, P::Failed] {
            for happening in [H::Start, H::Attached, H::Refused, H::Died, H::Stop, H::StopRefused] {
                let known = moves.iter().find(|(from, by, _)| (*from, *by) == (phase, happening));
                assert_eq!(
                    phase.after(happening),
                    known.map_or(phase, |(_, _, to)| *to),
                    "{phase:?} {happening:?}"
                );
            }
        }
    }

    #[test]
    fn pauses_double_up_to_five_seconds_and_a_long_life_starts_anew() {
        let mut deaths = 0;
        let mut pauses = Vec::new();
        for _ in 0..11 {
            deaths = deaths_in_a_row(deaths, Duration::from_secs(59));
            pauses.push(pause(deaths).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000]);
        assert_eq!(deaths_in_a_row(deaths, Duration::from_secs(60)), 1);
        assert_eq!(pause(u32::MAX), Duration::from_secs(5));
        let rests: Vec<u64> = (1..8).map(|refusals| rest(refusals).as_secs()).collect();
        assert_eq!(rests, [1, 2, 4, 8, 15, 15, 15]);
    }
}
