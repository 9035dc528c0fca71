//! What this crate offers to everything above it: a named-by-nobody run of bytes with positional I/O.
//!
//! The trait is the contract of all implementations; whoever writes images relies on no more than it says.

use catena_types::{Bytes, FileOffset};
use std::io;
use std::os::fd::BorrowedFd;

/// Whether a container takes the size it needs by itself, or must be sized by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizing {
    /// A file: grows when written past its end.
    Automatic,
    /// A block device: of fixed size here.
    Explicit,
}

/// A container of bytes: a file, a block device, or a simulated disk.
///
/// All calls may be made from several threads. A write is *volatile* until a later [`flush`](Self::flush) returns; without
/// one, any subset of the volatile writes may survive a power cut, each torn at 512 bytes, in any order.
pub trait Container: Send + Sync {
    /// Fills `buf` from `at`. Bytes past the end of the container read as zero.
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()>;

    /// Writes all of `buf` at `at`. A container of automatic sizing grows; on one of explicit sizing a write past the end fails
    /// with `ENOSPC` and changes nothing.
    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()>;

    /// Barrier: every change made before (writes, punches, sizes) is durable when this returns. An error means that what was
    /// written since the last successful flush may be lost, and every later flush of this container fails too: the kernel
    /// tells of lost pages once, so a second try would promise what nobody knows. The way on is to open the container again
    /// and to write anew whatever was not flushed.
    fn flush(&self) -> io::Result<()>;

    /// Between `true` and `false`, writes are collected in the system's memory, see [`collecting`]. Nothing else changes what they
    /// are: volatile until a flush. Does nothing where it would help nothing.
    fn collect_writes(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }

    /// Says that a part of these bytes is about to be written while writes are collected, so that what lies around it can be
    /// fetched with others at once. Only a hint.
    fn expect_write(&self, _at: FileOffset, _len: Bytes) {}

    /// Its length.
    fn size(&self) -> io::Result<Bytes>;

    /// Cuts or extends a container of automatic sizing; `Unsupported` on others.
    fn set_size(&self, size: Bytes) -> io::Result<()>;

    /// Gives the range back to the storage where it can; it reads as zero afterwards in any case.
    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()>;

    /// Gives the range back to the storage where that costs next to nothing, else leaves it alone. What it reads as afterwards, until
    /// it is written again, is undefined: on a device, the bytes of anybody.
    fn release(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        self.punch(at, len)
    }

    /// Makes the range share the blocks of `source`'s range. `Ok(false)` where the two cannot share (another file system, not
    /// supported, misaligned): then nothing was changed.
    fn clone_range(
        &self,
        at: FileOffset,
        source: &dyn Container,
        source_at: FileOffset,
        len: Bytes,
    ) -> io::Result<bool>;

    /// Bytes that it takes on the storage.
    fn allocated(&self) -> io::Result<Bytes>;

    /// How it gets its size.
    fn sizing(&self) -> Sizing;

    /// Alignment in bytes (memory, offset and length) with which I/O avoids a detour: 1 for buffered files.
    fn alignment(&self) -> usize;

    /// Whether reading and writing is a copy in memory and waits for no storage: a file of a file system in memory.
    fn is_in_memory(&self) -> bool {
        false
    }

    /// The descriptor, for the calls that need two containers and for an [`Engine`](crate::Engine); `None` for simulated ones.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// Does `work` while what it writes to `container` is collected: for many small pieces. When each goes to the storage by
/// itself, it waits for the storage, and in new space the file system finds room for one after the other; together they are
/// sent by the next flush. Nobody else writes meanwhile.
pub fn collecting<R>(container: &dyn Container, work: impl FnOnce() -> R) -> io::Result<R> {
    container.collect_writes(true)?;
    let outcome = work();
    container.collect_writes(false)?;
    Ok(outcome)
}
