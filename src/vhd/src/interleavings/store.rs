//! A storage of which any part of what was not flushed may survive a power cut: per sector, whichever of its values.

use catena_blockio::{Container, Sizing};
use catena_types::{Bytes, FileOffset};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

/// The bytes of one.
pub(super) type Sector = Arc<[u8; 512]>;
type Sectors = BTreeMap<u64, Vec<Sector>>;

/// Sectors, each with all values that it may have after a power cut; readers see the last.
pub(super) struct Store {
    sectors: Mutex<Sectors>,
    size: u64,
}

impl Store {
    /// A device of so many bytes, all of them zero.
    pub(super) fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { sectors: Mutex::default(), size })
    }

    /// The same once more.
    pub(super) fn fork(&self) -> Arc<Self> {
        Arc::new(Self { sectors: Mutex::new(self.sectors.lock().unwrap().clone()), size: self.size })
    }

    fn put(sectors: &mut Sectors, sector: u64, bytes: Sector) {
        let values = sectors.entry(sector).or_insert_with(|| vec![Arc::new([0; 512])]);
        values.retain(|value| *value != bytes);
        values.push(bytes);
    }

    /// What may stand there after a power cut.
    pub(super) fn values(&self, at: FileOffset) -> Vec<Sector> {
        let sectors = self.sectors.lock().unwrap();
        sectors.get(&(at.0 / 512)).cloned().unwrap_or_else(|| vec![Arc::new([0; 512])])
    }
}

impl Container for Store {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        buf.fill(0);
        let sectors = self.sectors.lock().unwrap();
        let end = (at.0 + buf.len() as u64).div_ceil(512);
        for (sector, values) in sectors.range(at.0 / 512..end) {
            let start = usize::try_from(sector * 512 - at.0).unwrap();
            let length = (buf.len() - start).min(512);
            buf[start..start + length].copy_from_slice(&values.last().unwrap()[..length]);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        assert!(at.0.is_multiple_of(512) && at.0 + buf.len() as u64 <= self.size);
        let mut sectors = self.sectors.lock().unwrap();
        for (sector, bytes) in (at.0 / 512..).zip(buf.chunks_exact(512)) {
            Self::put(&mut sectors, sector, Arc::new(bytes.try_into().unwrap()));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        for values in self.sectors.lock().unwrap().values_mut() {
            values.drain(..values.len() - 1);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.size))
    }

    fn set_size(&self, _: Bytes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        let mut sectors = self.sectors.lock().unwrap();
        let inside: Vec<u64> =
            sectors.range(at.0 / 512..(at.0 + len.0) / 512).map(|(&sector, _)| sector).collect();
        inside.into_iter().for_each(|sector| Self::put(&mut sectors, sector, Arc::new([0; 512])));
        Ok(())
    }

    fn clone_range(&self, _: FileOffset, _: &dyn Container, _: FileOffset, _: Bytes) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.size))
    }

    fn sizing(&self) -> Sizing {
        Sizing::Explicit
    }

    fn alignment(&self) -> usize {
        1
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Hash for Store {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sectors.lock().unwrap().hash(state);
    }
}
