//! The container that code under test is given in place of a file or a device.

use super::plan::{Call, Counts};
use super::rng::Rng;
use super::stale::stale;
use super::volatile::{Change, Volatile};
use super::world::SimWorld;
use crate::container::{Container, Sizing};
use catena_types::{Bytes, FileOffset};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A disk in memory with a volatile cache; see [`sim`](crate::sim).
pub struct SimDisk {
    world: Arc<SimWorld>,
    index: usize,
}

impl SimDisk {
    /// An empty file.
    pub fn automatic(world: &Arc<SimWorld>) -> Arc<Self> {
        Self::holding(world, Volatile::new(Sizing::Automatic, 0))
    }

    /// A device of that size, all zeros.
    pub fn explicit(world: &Arc<SimWorld>, size: Bytes) -> Arc<Self> {
        Self::holding(world, Volatile::new(Sizing::Explicit, size.0))
    }

    /// A device of that size on which others have left their bytes, see [`find_stale`](super::find_stale).
    pub fn used(world: &Arc<SimWorld>, size: Bytes) -> Arc<Self> {
        let mut bytes = Volatile::new(Sizing::Explicit, 0);
        bytes.enlarge(size.0);
        Self::holding(world, bytes)
    }

    /// Its owner makes a device larger, at once and durably. In the new part are the bytes of others.
    pub fn enlarge(&self, size: Bytes) {
        self.world.lock().disks[self.index].bytes.enlarge(size.0);
    }

    pub(super) fn holding(world: &Arc<SimWorld>, bytes: Volatile) -> Arc<Self> {
        Arc::new_cyclic(|handle| Self { world: Arc::clone(world), index: world.add(handle.clone(), bytes) })
    }

    /// The world that it is in.
    pub fn world(&self) -> &Arc<SimWorld> {
        &self.world
    }

    /// Calls on this disk so far.
    pub fn counts(&self) -> Counts {
        self.world.lock().disks[self.index].counts
    }

    /// This disk alone after a power cut now, in a new world. Any number of seeds may be tried on one state.
    pub fn after_power_cut(&self, seed: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        self.successor(|bytes| bytes.after_power_cut(&mut rng))
    }

    /// This disk alone as another process finds it after this one has died, in a new world. What was volatile still is.
    /// It is also what opening the container again gives.
    pub fn after_process_kill(&self) -> Arc<Self> {
        self.successor(Volatile::after_process_kill)
    }

    fn successor(&self, fate: impl FnOnce(&Volatile) -> Volatile) -> Arc<Self> {
        let world = SimWorld::new();
        let bytes = {
            let state = self.world.lock();
            world.set_sharing(state.shares_blocks);
            fate(&state.disks[self.index].bytes)
        };
        Self::holding(&world, bytes)
    }
}

impl Container for SimDisk {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let mut state = self.world.lock();
        state.admit(self.index, Call::Read, buf.len() as u64)?;
        state.disks[self.index].bytes.view().read(buf, at.0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        let change = Change::Write { at: at.0, data: buf.into() };
        self.world.lock().change(self.index, Call::Write, buf.len() as u64, change)
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.world.lock();
        let outcome = state.admit(self.index, Call::Flush, 0);
        state.disks[self.index].bytes.flush(outcome)
    }

    fn size(&self) -> io::Result<Bytes> {
        let state = self.world.lock();
        state.alive()?;
        Ok(Bytes(state.disks[self.index].bytes.view().size()))
    }

    fn set_size(&self, size: Bytes) -> io::Result<()> {
        self.world.lock().change(self.index, Call::SetSize, 0, Change::SetSize(size.0))
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        let mut state = self.world.lock();
        let end = at.0.saturating_add(len.0).min(state.disks[self.index].bytes.view().size());
        state.change(self.index, Call::Punch, len.0, Change::Zero { start: at.0.min(end), end })
    }

    fn release(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        if self.sizing() == Sizing::Automatic {
            return self.punch(at, len);
        }
        // A device that discards tells nobody what stands there afterwards.
        let mut state = self.world.lock();
        let size = state.disks[self.index].bytes.view().size();
        let there = usize::try_from(len.0.min(size.saturating_sub(at.0))).unwrap_or(0);
        state.change(self.index, Call::Punch, len.0, Change::Write { at: at.0, data: stale(there).into() })
    }

    fn clone_range(
        &self,
        at: FileOffset,
        source: &dyn Container,
        source_at: FileOffset,
        len: Bytes,
    ) -> io::Result<bool> {
        let mut state = self.world.lock();
        let Some(source) = state.sharer(source) else {
            return state.admit(self.index, Call::Clone, len.0).map(|()| false);
        };
        // Like the kernel: what lies past the source's end cannot be shared.
        let view = state.disks[source].bytes.view();
        let inside = source_at.0.checked_add(len.0).is_some_and(|end| end <= view.size());
        let Some(length) = usize::try_from(len.0).ok().filter(|_| inside) else {
            return state.admit(self.index, Call::Clone, len.0).map(|()| false);
        };
        let mut data = vec![0; length];
        view.read(&mut data, source_at.0);
        state.change(self.index, Call::Clone, len.0, Change::Write { at: at.0, data: data.into() })?;
        Ok(true)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        let state = self.world.lock();
        state.alive()?;
        Ok(Bytes(state.disks[self.index].bytes.view().allocated()))
    }

    fn sizing(&self) -> Sizing {
        self.world.lock().disks[self.index].bytes.sizing
    }

    fn alignment(&self) -> usize {
        1
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
