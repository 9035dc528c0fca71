//! The machine around simulated disks: one count of calls, one plan of faults, one moment of the crash.
//!
//! Invariant: a disk is its place in the world's list, for as long as the world lives; code under test may drop its
//! containers and the test still sees what they held.

use super::SimulatedCrash;
use super::disk::SimDisk;
use super::plan::{Call, Counts, Fault, Plan, Verdict};
use super::rng::Rng;
use super::volatile::{Change, Volatile};
use crate::container::{Container, Sizing};
use nix::errno::Errno;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A machine with any number of [`SimDisk`]s.
#[derive(Default)]
pub struct SimWorld {
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    plan: Plan,
    pub(super) shares_blocks: bool,
    pub(super) disks: Vec<Disk>,
}

pub(super) struct Disk {
    handle: Weak<SimDisk>,
    pub(super) counts: Counts,
    pub(super) bytes: Volatile,
}

impl SimWorld {
    /// A machine without disks, on which nothing fails.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Call number `n`, counted from the start of the world (the first is 0), and all later ones fail with
    /// [`SimulatedCrash`]. A change that is under way at that call is volatile like those before it.
    pub fn crash_at(&self, n: u64) {
        self.lock().plan.crash_at = Some(n);
    }

    /// Whether the crash has come.
    pub fn has_crashed(&self) -> bool {
        self.lock().plan.crashed
    }

    /// Adds a fault. Where several strike the same call, the first that was added counts.
    pub fn fail(&self, fault: Fault) {
        self.lock().plan.faults.push(fault);
    }

    /// Takes all faults and a crash that has not come yet back.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.plan.faults.clear();
        state.plan.crash_at = None;
    }

    /// Whether disks of this world can share blocks (`clone_range`); they cannot at first.
    pub fn set_sharing(&self, can: bool) {
        self.lock().shares_blocks = can;
    }

    /// Calls of all kinds on all disks so far.
    pub fn calls(&self) -> u64 {
        self.counts().calls()
    }

    /// Calls on all disks so far.
    pub fn counts(&self) -> Counts {
        self.lock().plan.counts
    }

    /// All disks after a power cut now, in the order in which they were made, in a new world.
    pub fn after_power_cut(&self, seed: u64) -> Vec<Arc<SimDisk>> {
        let mut rng = Rng::new(seed);
        self.successors(|disk| disk.after_power_cut(&mut rng))
    }

    /// All disks as another process finds them after this one has died, in the order in which they were made, in a new
    /// world. What was volatile still is.
    pub fn after_process_kill(&self) -> Vec<Arc<SimDisk>> {
        self.successors(Volatile::after_process_kill)
    }

    fn successors(&self, mut fate: impl FnMut(&Volatile) -> Volatile) -> Vec<Arc<SimDisk>> {
        let world = Self::new();
        let state = self.lock();
        world.set_sharing(state.shares_blocks);
        state.disks.iter().map(|disk| SimDisk::holding(&world, fate(&disk.bytes))).collect()
    }

    /// Adds a disk; gives its place.
    pub(super) fn add(&self, handle: Weak<SimDisk>, bytes: Volatile) -> usize {
        let mut state = self.lock();
        state.disks.push(Disk { handle, counts: Counts::default(), bytes });
        state.disks.len() - 1
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// For what is not counted: fails only after the crash.
    pub(super) fn alive(&self) -> io::Result<()> {
        if self.plan.crashed { Err(crash()) } else { Ok(()) }
    }

    /// Counts a call on a disk; the error it gets, if any. For calls that change nothing.
    pub(super) fn admit(&mut self, disk: usize, call: Call, bytes: u64) -> io::Result<()> {
        match self.judge(disk, call, bytes) {
            Verdict::Proceed => Ok(()),
            Verdict::Fail(errno) | Verdict::FailHalfway(errno) => Err(errno.into()),
            Verdict::CrashNow | Verdict::Crashed => Err(crash()),
        }
    }

    /// Counts a call on a disk and makes its change, as far as that comes.
    pub(super) fn change(&mut self, disk: usize, call: Call, bytes: u64, change: Change) -> io::Result<()> {
        let verdict = self.judge(disk, call, bytes);
        let target = &mut self.disks[disk].bytes;
        let possible = fits(target, &change);
        match verdict {
            Verdict::Crashed => Err(crash()),
            Verdict::Fail(errno) => Err(errno.into()),
            Verdict::FailHalfway(errno) => {
                if let (Ok(()), Some(half)) = (possible, change.first_half()) {
                    target.change(half);
                }
                Err(errno.into())
            }
            Verdict::CrashNow => {
                if possible.is_ok() {
                    target.change(change);
                }
                Err(crash())
            }
            Verdict::Proceed => {
                possible?;
                target.change(change);
                Ok(())
            }
        }
    }

    /// The disk that a container is, if it is one of this world and blocks can be shared.
    pub(super) fn sharer(&self, container: &dyn Container) -> Option<usize> {
        // A weak reference keeps the address from being used again.
        let is_it = |disk: &Disk| std::ptr::addr_eq(disk.handle.as_ptr(), std::ptr::from_ref(container));
        self.disks.iter().position(is_it).filter(|_| self.shares_blocks)
    }

    fn judge(&mut self, disk: usize, call: Call, bytes: u64) -> Verdict {
        let verdict = self.plan.admit(call, bytes);
        if verdict != Verdict::Crashed {
            self.disks[disk].counts.add(call, bytes);
        }
        verdict
    }
}

/// Refuses what the disk cannot do.
fn fits(disk: &Volatile, change: &Change) -> io::Result<()> {
    match (disk.sizing, change) {
        (Sizing::Explicit, Change::SetSize(_)) => Err(io::ErrorKind::Unsupported.into()),
        (Sizing::Explicit, Change::Write { at, data })
            if at.saturating_add(data.len() as u64) > disk.view().size() =>
        {
            Err(Errno::ENOSPC.into())
        }
        // The longest file.
        (_, Change::Write { at, data }) if at.saturating_add(data.len() as u64) > i64::MAX as u64 => {
            Err(Errno::EFBIG.into())
        }
        _ => Ok(()),
    }
}

fn crash() -> io::Error {
    io::Error::other(SimulatedCrash)
}
