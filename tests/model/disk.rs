//! What a disk should hold: one entry per written sector, and what a write whose outcome is unknown may have left.
//!
//! Invariant: after [`Disk::compare`] has seen a sector, the model holds one content for it, the one that was read: what has
//! been read once must be read ever after.

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;

type Sector = Rc<[u8; 512]>;

/// A disk or snapshot as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// Bytes.
    pub(crate) size: u64,
    /// Whether it is a snapshot.
    pub(crate) snapshot: bool,
    /// Its number: uuids differ from run to run, so they give no order that a seed repeats.
    pub(crate) number: u64,
    /// What was written; sectors that are not here are zero.
    sectors: BTreeMap<u64, Sector>,
    /// What sectors may hold instead.
    instead: BTreeMap<u64, Sector>,
}

impl Disk {
    /// An empty one.
    pub(crate) const fn new(number: u64, size: u64) -> Self {
        Self { size, snapshot: false, number, sectors: BTreeMap::new(), instead: BTreeMap::new() }
    }

    /// The same content in a new disk or snapshot.
    pub(crate) fn copy(&self, number: u64, snapshot: bool) -> Self {
        Self { snapshot, number, ..self.clone() }
    }

    /// Bytes are there.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, sector) in self.written(offset, bytes) {
            self.instead.remove(&at);
            self.sectors.insert(at, sector);
        }
    }

    /// Bytes may be there, each sector for itself.
    pub(crate) fn may_have_written(&mut self, offset: u64, bytes: &[u8]) {
        let written = self.written(offset, bytes);
        self.instead.extend(written);
    }

    /// Whether a write's outcome is still unknown.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.instead.is_empty()
    }

    /// Compares what was read at a whole sector with what should be there; what was read decides what is unknown.
    pub(crate) fn compare(&mut self, offset: u64, read: &[u8]) -> Result<()> {
        let zero: Sector = Rc::new([0; 512]);
        for (at, got) in (offset / SECTOR..).zip(read.chunks(512)) {
            let old = self.sectors.get(&at).unwrap_or(&zero);
            let differs = |sector: &Sector| got != &sector[..got.len()];
            match self.instead.get(&at) {
                None => ensure!(!differs(old), "sector {at} holds {}, not {}", show(got), show(&old[..])),
                Some(new) => {
                    ensure!(
                        !differs(old) || !differs(new),
                        "sector {at} holds {}, neither {} nor {}",
                        show(got),
                        show(&old[..]),
                        show(&new[..])
                    );
                    if got.len() == 512 {
                        if differs(old) {
                            self.sectors.insert(at, Rc::clone(new));
                        }
                        self.instead.remove(&at);
                    }
                }
            }
        }
        Ok(())
    }

    /// The sectors that a write touches, as it leaves them.
    fn written(&self, offset: u64, bytes: &[u8]) -> Vec<(u64, Sector)> {
        let mut written = Vec::new();
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = usize::try_from(at % SECTOR).unwrap_or_default();
            let length = rest.len().min(512 - within);
            let mut sector = self.sectors.get(&(at / SECTOR)).map_or([0; 512], |sector| **sector);
            sector[within..within + length].copy_from_slice(&rest[..length]);
            written.push((at / SECTOR, Rc::new(sector)));
            at += length as u64;
            rest = &rest[length..];
        }
        written
    }
}

/// The beginning and the end of a sector.
fn show(sector: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}..{}", hex(&sector[..sector.len().min(8)]), hex(&sector[sector.len().saturating_sub(8)..]))
}
