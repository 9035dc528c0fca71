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

    /// Between `true` and `false`, writes are collected in the system's memory: for many small pieces of new space, which a file
    /// system finds room for one after the other when each goes to the storage by itself, and at once when they come
    /// together. At `false` all of them have been sent, which fails as [`flush`](Self::flush) does. Nobody else writes meanwhile. Does
    /// nothing where it would help nothing.
    fn collect_writes(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }

    /// Its length.
    fn size(&self) -> io::Result<Bytes>;

    /// Cuts or extends a container of automatic sizing; `Unsupported` on others.
    fn set_size(&self, size: Bytes) -> io::Result<()>;

    /// Gives the range back to the storage where it can; it reads as zero afterwards in any case.
    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()>;

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

    /// The descriptor, for the calls that need two containers; `None` for simulated ones.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
