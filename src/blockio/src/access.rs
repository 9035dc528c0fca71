//! Reading, writing and flushing of one descriptor, buffered or direct, whatever the alignment of the request.
//!
//! ```text
//!  request ── aligned, or not direct ──▶ the file
//!     │
//!     ├── whole units, memory astray ──▶ bounce buffer ──▶ the file
//!     └── parts of units ──▶ read unit, change it, write unit   (alone: no neighbour's bytes are lost)
//!                            the last unit of a file that does not end with one: through the page cache
//! ```
//!
//! Invariants: the file is never longer than the furthest byte that was asked for; a unit is rewritten only while nothing
//! else writes; no flush succeeds after one has failed. Whoever writes through the bare descriptor goes past all of them.
//! [`FileContainer`](crate::FileContainer) and [`BlockContainer`](crate::BlockContainer) are this plus their own idea of size.

use crate::buffer::AlignedBuf;
use crate::direct::{self, Alignment};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The most that is copied through a bounce buffer, or zeroed, at once.
const BOUNCE_BYTES: usize = 1 << 20;

/// One open file or device.
pub(crate) struct Access {
    file: File,
    /// `Some` in direct mode.
    alignment: Option<Alignment>,
    in_memory: bool,
    /// Held shared by whoever changes whole units, alone by whoever rewrites a unit of which it owns a part.
    units: RwLock<()>,
    /// The error of the first flush that failed.
    flush_error: Mutex<Option<i32>>,
}

impl Access {
    /// Takes the file over; `direct` asks for direct I/O and leaves it buffered where that is refused.
    pub(crate) fn new(file: File, direct: bool) -> io::Result<Self> {
        let alignment = if direct {
            direct::enable(&file)?
        } else {
            direct::switch(&file, false)?;
            None
        };
        let in_memory = in_memory(&file);
        Ok(Self { file, alignment, in_memory, units: RwLock::new(()), flush_error: Mutex::new(None) })
    }

    /// The same with a coarser unit than the file asks for, as another device would have it.
    #[cfg(test)]
    pub(crate) fn with_unit(file: File, unit: usize) -> io::Result<Self> {
        let mut access = Self::new(file, true)?;
        access.alignment = access.alignment.map(|_| Alignment { memory: unit, unit });
        Ok(access)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.alignment.is_some()
    }

    /// Whether its file system holds it in memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// What memory, offset and length must be a multiple of to avoid the detour, in bytes.
    pub(crate) fn alignment(&self) -> usize {
        self.alignment.map_or(1, |alignment| alignment.memory.max(alignment.unit))
    }

    /// Where the file or device ends, in bytes. Seeking tells it for both; nothing uses the position itself.
    pub(crate) fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Held while something other than a write changes whole units.
    pub(crate) fn beside_writers(&self) -> RwLockReadGuard<'_, ()> {
        self.units.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while nothing else may change the file.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.units.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `buf`; zeros from the end on.
    pub(crate) fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        match self.alignment {
            Some(alignment) if !alignment.fits(buf, at) => self.read_bounced(buf, at, alignment.unit),
            Some(alignment) => read_zero_filled(&self.file, buf, at, alignment.unit),
            None => read_zero_filled(&self.file, buf, at, 1),
        }
    }

    /// Writes all of `buf`.
    pub(crate) fn write(&self, buf: &[u8], at: u64) -> io::Result<()> {
        match self.alignment {
            Some(alignment) if !alignment.covers(at, buf.len()) => {
                let _alone = self.alone();
                self.write_parts_of_units(buf, at, alignment.unit)
            }
            Some(alignment) if !alignment.fits(buf, at) => {
                let _shared = self.beside_writers();
                self.write_bounced(buf, at, alignment.unit)
            }
            Some(_) => {
                let _shared = self.beside_writers();
                self.file.write_all_at(buf, at)
            }
            None => self.file.write_all_at(buf, at),
        }
    }

    /// Barrier. After one that failed, every later one fails with the same error: the kernel tells of a lost write once and
    /// then takes its pages for clean, so a second try would promise what nobody knows (D1, D9: after a power cut, a
    /// pointer could be there and its data not).
    pub(crate) fn flush(&self) -> io::Result<()> {
        // Held during the call: of two flushes at once the kernel tells only one.
        let mut failed = self.flush_error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file.sync_data().inspect_err(|error| *failed = Some(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// Leaves direct mode and comes back to it. The caches agree: before the kernel goes past the page cache, it writes out
    /// what is there of the range; and a write-back that failed then is still told to the next flush.
    pub(crate) fn collect_writes(&self, on: bool) -> io::Result<()> {
        if self.is_direct() {
            let _alone = self.alone();
            direct::switch(&self.file, !on)?;
        }
        Ok(())
    }

    /// Begins to read into the page cache what a write of these bytes leaves of the pages that it touches.
    pub(crate) fn fetch_edges(&self, at: u64, len: u64) {
        if let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) {
            // Without it the write waits for the page itself.
            let _ = posix_fadvise(&self.file, at, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }

    /// Makes the range read as zero, by giving it back where the storage can. What lies past `end` stays as it is.
    pub(crate) fn punch(&self, at: u64, len: u64, end: u64) -> io::Result<()> {
        let (Ok(offset), Ok(length)) = (i64::try_from(at), i64::try_from(len)) else {
            return Err(Errno::EINVAL.into());
        };
        if len == 0 {
            return Ok(());
        }
        // On a device without discard the kernel writes the zeros itself, which is less work than sending them.
        for mode in [FallocateFlags::FALLOC_FL_PUNCH_HOLE, FallocateFlags::FALLOC_FL_ZERO_RANGE] {
            let _shared = self.beside_writers();
            match fallocate_whole(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
                outcome => return Ok(outcome?),
            }
        }
        self.write_zeros(at, at.saturating_add(len).min(end))
    }

    fn write_zeros(&self, mut at: u64, end: u64) -> io::Result<()> {
        let zeros = AlignedBuf::zeroed(bounce_length(end.saturating_sub(at)));
        while at < end {
            let length = bounce_length(end - at);
            self.write(&zeros[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }

    fn read_bounced(&self, buf: &mut [u8], at: u64, unit: usize) -> io::Result<()> {
        let mut bounce = AlignedBuf::zeroed(0);
        for piece in pieces(at, buf.len(), unit) {
            grow_to(&mut bounce, piece.span);
            read_zero_filled(&self.file, &mut bounce[..piece.span], piece.start, unit)?;
            buf[piece.done..piece.done + piece.len]
                .copy_from_slice(&bounce[piece.skip..piece.skip + piece.len]);
        }
        Ok(())
    }

    /// Writes whole units, or parts of units that are read first; the caller holds `units` as that needs.
    fn write_bounced(&self, buf: &[u8], at: u64, unit: usize) -> io::Result<()> {
        let mut bounce = AlignedBuf::zeroed(0);
        for piece in pieces(at, buf.len(), unit) {
            grow_to(&mut bounce, piece.span);
            let (first, last) = (0, piece.span - unit);
            let cut_off = !(piece.skip + piece.len).is_multiple_of(unit);
            if piece.skip > 0 {
                read_zero_filled(&self.file, &mut bounce[..unit], piece.start, unit)?;
            }
            if cut_off && (piece.skip == 0 || last > first) {
                read_zero_filled(&self.file, &mut bounce[last..piece.span], piece.start + last as u64, unit)?;
            }
            bounce[piece.skip..piece.skip + piece.len]
                .copy_from_slice(&buf[piece.done..piece.done + piece.len]);
            self.file.write_all_at(&bounce[..piece.span], piece.start)?;
        }
        Ok(())
    }

    fn write_parts_of_units(&self, buf: &[u8], at: u64, unit: usize) -> io::Result<()> {
        let unit_bytes = unit as u64;
        let end = at.checked_add(buf.len() as u64).ok_or(Errno::EFBIG)?;
        let reaches = end.checked_next_multiple_of(unit_bytes).ok_or(Errno::EFBIG)?;
        // A whole last unit would make the file longer than asked, and a cut to length after it would come too late for a
        // power cut in between.
        let tail_at = if reaches > end.max(self.size()?) { (end - end % unit_bytes).max(at) } else { end };
        let (body, tail) = buf.split_at(buf.len() - bounded(end - tail_at));
        self.write_bounced(body, at, unit)?;
        if tail.is_empty() { Ok(()) } else { self.write_buffered(tail, tail_at) }
    }

    /// Writes through the page cache of a file in direct mode; the caller is alone. Reads that come meanwhile are served
    /// from the cache too.
    fn write_buffered(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let was_on = direct::is_on(&self.file)?;
        direct::switch(&self.file, false)?;
        let outcome = self.file.write_all_at(buf, at);
        direct::switch(&self.file, was_on)?;
        outcome
    }
}

/// Whether the file is on tmpfs.
fn in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|status| status.filesystem_type() == TMPFS_MAGIC)
}

fn fallocate_whole(file: &File, mode: FallocateFlags, at: i64, len: i64) -> nix::Result<()> {
    loop {
        match fallocate(file, mode, at, len) {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// Fills `buf` from the file and with zeros from its end on. `unit` is 1 for buffered reads; a direct read that stops
/// inside a unit has met the end of the file, and must not be continued there.
fn read_zero_filled(file: &File, buf: &mut [u8], at: u64, unit: usize) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() && done.is_multiple_of(unit) {
        match file.read_at(&mut buf[done..], at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buf[done..].fill(0);
    Ok(())
}

/// A part of a request that goes through the bounce buffer at once.
struct Piece {
    /// Where it begins in the caller's buffer.
    done: usize,
    /// Its length there.
    len: usize,
    /// The unit of the file in which it begins.
    start: u64,
    /// Bytes between that and its own beginning.
    skip: usize,
    /// Bytes of all units that it touches.
    span: usize,
}

fn pieces(at: u64, len: usize, unit: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = at + done as u64;
        let skip = bounded(from % unit as u64);
        let span = (skip + (len - done)).next_multiple_of(unit).min(BOUNCE_BYTES);
        let piece = Piece { done, len: (span - skip).min(len - done), start: from - skip as u64, skip, span };
        done += piece.len;
        (piece.len > 0).then_some(piece)
    })
}

fn grow_to(bounce: &mut AlignedBuf, len: usize) {
    if bounce.len() < len {
        *bounce = AlignedBuf::zeroed(len);
    }
}

fn bounce_length(len: u64) -> usize {
    bounded(len.min(BOUNCE_BYTES as u64))
}

/// A length that is known to be small.
fn bounded(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flush_succeeds_after_one_that_failed() {
        let mut access = Access::new(File::open("/dev/null").unwrap(), false).unwrap();
        let first = access.flush().unwrap_err();
        access.file = tempfile::tempfile().unwrap();
        assert_eq!(access.flush().unwrap_err().raw_os_error(), first.raw_os_error());
        assert!(Access::new(tempfile::tempfile().unwrap(), false).unwrap().flush().is_ok());
    }

    #[test]
    fn what_was_collected_is_there_for_who_goes_past_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (access, beside) = (Access::new(open(), true).unwrap(), Access::new(open(), true).unwrap());
        let page = |value: u8| {
            let mut page = AlignedBuf::zeroed(4096);
            page.fill(value);
            page
        };
        for round in 0..3u8 {
            access.write(&page(round), 0).unwrap();
            access.collect_writes(true).unwrap();
            assert!(!direct::is_on(&access.file).unwrap());
            access.write(&page(round + 10), 3 * 4096).unwrap();
            access.write(&[round + 20; 700], 8 * 4096 + 100).unwrap();
            access.collect_writes(false).unwrap();
            assert_eq!(direct::is_on(&access.file).unwrap(), access.is_direct());
            for (value, at) in [(round, 0), (round + 10, 3 * 4096), (round + 20, 8 * 4096 + 100)] {
                let mut found = [0; 700];
                beside.read(&mut found, at).unwrap();
                assert_eq!(found, [value; 700]);
            }
        }
    }

    #[test]
    fn pieces_cover_a_request_once_and_never_split_a_unit() {
        for (at, len) in [(0, 0), (1, 1), (511, 2), (512, 512), (700, 3 << 20), (4096, (2 << 20) + 1)] {
            let mut next = at;
            for piece in pieces(at, len, 512) {
                assert_eq!(piece.start + piece.skip as u64, next);
                assert!(piece.start.is_multiple_of(512) && piece.span.is_multiple_of(512));
                assert!(piece.skip + piece.len <= piece.span && piece.span <= BOUNCE_BYTES);
                next += piece.len as u64;
            }
            assert_eq!(next, at + len as u64);
        }
    }

    #[test]
    fn neighbours_in_one_unit_do_not_lose_each_others_bytes() {
        let access = Access::with_unit(tempfile::tempfile().unwrap(), 4096).unwrap();
        access.write(&AlignedBuf::zeroed(4096), 0).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4u64 {
                let access = &access;
                scope.spawn(move || {
                    for round in 0..150u8 {
                        access.write(&[round; 512], writer * 512).unwrap();
                        let mut back = [0; 512];
                        access.read(&mut back, writer * 512).unwrap();
                        assert_eq!(back, [round; 512]);
                    }
                });
            }
        });
    }
}
