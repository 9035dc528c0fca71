//! What goes wrong at which call: the counting of calls and the faults that a test has asked for.
//!
//! ```text
//!             fault at this call                 crash at this call
//!  running ───────────────────────▶ running   ───────────────────────▶ crashed (for ever)
//! ```
//!
//! Pure: [`Plan::admit`] is the transition, the disks carry out what it says.

use nix::errno::Errno;

/// The calls that are counted and can fail. Asking for a size costs nothing and fails only after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `punch`.
    Punch,
    /// `set_size`.
    SetSize,
    /// `clone_range`.
    Clone,
    /// `flush`.
    Flush,
}

/// Calls made so far, refused ones included, and the bytes they asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `read_at`.
    pub reads: u64,
    /// Calls of `write_at`.
    pub writes: u64,
    /// Calls of `punch`.
    pub punches: u64,
    /// Calls of `set_size`.
    pub size_changes: u64,
    /// Calls of `clone_range`.
    pub clones: u64,
    /// Calls of `flush`: barriers.
    pub flushes: u64,
    /// Bytes that `read_at` was asked for.
    pub bytes_read: u64,
    /// Bytes that `write_at` was given.
    pub bytes_written: u64,
}

impl Counts {
    /// Calls of any kind.
    pub const fn calls(&self) -> u64 {
        self.reads + self.writes + self.punches + self.size_changes + self.clones + self.flushes
    }

    /// Calls of one kind.
    pub const fn of(&self, call: Call) -> u64 {
        match call {
            Call::Read => self.reads,
            Call::Write => self.writes,
            Call::Punch => self.punches,
            Call::SetSize => self.size_changes,
            Call::Clone => self.clones,
            Call::Flush => self.flushes,
        }
    }

    pub(super) const fn add(&mut self, call: Call, bytes: u64) {
        match call {
            Call::Read => {
                self.reads += 1;
                self.bytes_read += bytes;
            }
            Call::Write => {
                self.writes += 1;
                self.bytes_written += bytes;
            }
            Call::Punch => self.punches += 1,
            Call::SetSize => self.size_changes += 1,
            Call::Clone => self.clones += 1,
            Call::Flush => self.flushes += 1,
        }
    }
}

/// An error that a call gets instead of its effect. Numbers are counted from the start of the world, the first call is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    nth: u64,
    of: Option<Call>,
    errno: Errno,
    partial: bool,
    forever: bool,
}

impl Fault {
    /// Call number `nth` fails, once, with `errno` and without effect.
    pub const fn nth(nth: u64, errno: Errno) -> Self {
        Self { nth, of: None, errno, partial: false, forever: false }
    }

    /// Counts only calls of this kind.
    #[must_use]
    pub const fn of(mut self, call: Call) -> Self {
        self.of = Some(call);
        self
    }

    /// The first half of a write, punch or clone takes effect, in whole sectors, before the error: a short transfer.
    #[must_use]
    pub const fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// All later calls that are counted fail too.
    #[must_use]
    pub const fn forever(mut self) -> Self {
        self.forever = true;
        self
    }

    fn strikes(&self, call: Call, before: &Counts) -> bool {
        let number = match self.of {
            Some(kind) if kind != call => return false,
            Some(kind) => before.of(kind),
            None => before.calls(),
        };
        number == self.nth || (self.forever && number > self.nth)
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It takes effect.
    Proceed,
    /// It fails without effect.
    Fail(Errno),
    /// It fails after half of its effect.
    FailHalfway(Errno),
    /// The machine stops while it is under way: its effect is volatile, its caller sees the crash.
    CrashNow,
    /// The machine has stopped.
    Crashed,
}

/// The faults of a world and how far it has come.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) counts: Counts,
    pub(super) crash_at: Option<u64>,
    pub(super) faults: Vec<Fault>,
    pub(super) crashed: bool,
}

impl Plan {
    /// Counts a call and decides on it.
    pub(super) fn admit(&mut self, call: Call, bytes: u64) -> Verdict {
        if self.crashed {
            return Verdict::Crashed;
        }
        let before = self.counts;
        self.counts.add(call, bytes);
        if self.crash_at.is_some_and(|at| before.calls() >= at) {
            self.crashed = true;
            return Verdict::CrashNow;
        }
        match self.faults.iter().find(|fault| fault.strikes(call, &before)) {
            Some(fault) if fault.partial => Verdict::FailHalfway(fault.errno),
            Some(fault) => Verdict::Fail(fault.errno),
            None => Verdict::Proceed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Call::{Flush, Read, Write};

    fn verdicts(plan: &mut Plan, calls: &[Call]) -> Vec<Verdict> {
        calls.iter().map(|&call| plan.admit(call, 0)).collect()
    }

    #[test]
    fn a_fault_strikes_the_call_it_names_once_or_from_there_on() {
        let once = Fault::nth(1, Errno::EIO);
        let mut plan = Plan { faults: vec![once], ..Plan::default() };
        let io = Verdict::Fail(Errno::EIO);
        assert_eq!(verdicts(&mut plan, &[Read, Write, Read]), [Verdict::Proceed, io, Verdict::Proceed]);

        let mut plan = Plan { faults: vec![once.of(Write).forever().partial()], ..Plan::default() };
        let half = Verdict::FailHalfway(Errno::EIO);
        assert_eq!(
            verdicts(&mut plan, &[Write, Read, Write, Flush, Write]),
            [Verdict::Proceed, Verdict::Proceed, half, Verdict::Proceed, half]
        );
    }

    #[test]
    fn after_the_crash_nothing_works_and_nothing_is_counted() {
        let mut plan = Plan { crash_at: Some(1), ..Plan::default() };
        assert_eq!(
            verdicts(&mut plan, &[Write, Flush, Read]),
            [Verdict::Proceed, Verdict::CrashNow, Verdict::Crashed]
        );
        assert_eq!((plan.counts.calls(), plan.counts.flushes, plan.counts.reads), (2, 1, 0));
    }
}
