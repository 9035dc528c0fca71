//! The volumes of images on a disk of the lab, as lvm2 reports them, and their bytes as they are on that disk: what nobody has open
//! is read and changed there behind everybody's back.

use super::lab::{Disk, run};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// The size of an extent.
pub(crate) const EXTENT: u64 = 4 << 20;
/// The unit of direct I/O.
const PAGE: usize = 4096;

/// The volume group on a disk.
#[derive(Debug)]
pub(crate) struct Group {
    /// Extents that it has.
    pub(crate) extents: u64,
    /// Those of no volume.
    pub(crate) free: u64,
    /// The volumes of images by name.
    pub(crate) volumes: BTreeMap<String, OnDisk>,
}

/// A volume.
#[derive(Debug)]
pub(crate) struct OnDisk {
    disk: PathBuf,
    size: u64,
    /// Whether the kernel has a device of it.
    pub(crate) is_active: bool,
    /// Where its parts begin on the disk, by where they begin in the volume.
    parts: BTreeMap<u64, u64>,
}

impl Group {
    /// The one on this disk.
    pub(crate) fn on(disk: &Disk) -> Result<Self> {
        let form = ["fullreport", "--foreign", "--reportformat", "json", "--units", "b", "--nosuffix"];
        let columns = [
            ["--configreport", "vg", "-o", "vg_extent_count,vg_free_count"],
            ["--configreport", "pv", "-o", "pv_name,pe_start"],
            ["--configreport", "lv", "-o", "lv_name,lv_size,lv_active"],
            ["--configreport", "seg", "-o", "lv_name,seg_start,seg_pe_ranges"],
            ["--configreport", "pvseg", "-o", "pvseg_start"],
        ];
        let document: Value = serde_json::from_str(&run("lvm", &[&form[..], &columns.concat()].concat())?)?;
        let path = disk.path();
        let is_there = |report: &&Value| report["pv"][0]["pv_name"] == *path.to_string_lossy();
        let reports = document["report"].as_array().context("reports")?;
        let report = reports.iter().find(is_there).context("a group on the disk")?;
        let start = number(&report["pv"][0]["pe_start"])?;
        let mut volumes = BTreeMap::new();
        for row in report["lv"].as_array().context("volumes")? {
            let (size, is_active) = (number(&row["lv_size"])?, row["lv_active"] == "active");
            let volume = OnDisk { disk: path.clone(), size, is_active, parts: BTreeMap::new() };
            volumes.insert(word(row, "lv_name")?, volume);
        }
        for row in report["seg"].as_array().context("segments")? {
            let volume = volumes.get_mut(&word(row, "lv_name")?).context("a volume")?;
            let range = word(row, "seg_pe_ranges")?;
            let range = range.rsplit_once(':').and_then(|(_, range)| range.split_once('-'));
            let first: u64 = range.context("a range of extents")?.0.parse()?;
            volume.parts.insert(number(&row["seg_start"])?, start + first * EXTENT);
        }
        volumes.retain(|name, _| name.starts_with("vhd-"));
        let vg = &report["vg"][0];
        Ok(Self { extents: number(&vg["vg_extent_count"])?, free: number(&vg["vg_free_count"])?, volumes })
    }
}

impl OnDisk {
    /// The volume of that name.
    pub(crate) fn of(disk: &Disk, name: &str) -> Result<Self> {
        Group::on(disk)?.volumes.remove(name).with_context(|| format!("no volume {name}"))
    }

    /// Its length in bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that lie in one of its parts.
    pub(crate) fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length)?;
        self.with_pages(at, length, |bytes| bytes.to_vec(), false)
    }

    /// The same, changed.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.with_pages(at, bytes.len(), |place| place.copy_from_slice(bytes), true)
    }

    fn with_pages<T>(
        &self,
        at: u64,
        length: usize,
        doing: impl FnOnce(&mut [u8]) -> T,
        changes: bool,
    ) -> Result<T> {
        let (start, there) = self.parts.range(..=at).next_back().context("a part of the volume")?;
        let from = there + (at - start);
        let skipped = usize::try_from(from % PAGE as u64)?;
        let first = from - skipped as u64;
        let wanted = (skipped + length).next_multiple_of(PAGE);
        let mut buffer = vec![0; wanted + PAGE];
        let aligned = buffer.as_ptr().align_offset(PAGE);
        let pages = &mut buffer[aligned..aligned + wanted];
        let mut options = File::options();
        let file = options.read(true).write(changes).custom_flags(nix::libc::O_DIRECT).open(&self.disk)?;
        file.read_exact_at(pages, first)?;
        let done = doing(&mut pages[skipped..skipped + length]);
        if changes {
            file.write_all_at(pages, first)?;
        }
        Ok(done)
    }
}

fn word(row: &Value, name: &str) -> Result<String> {
    Ok(row[name].as_str().with_context(|| format!("{name}: {row}"))?.to_owned())
}

fn number(value: &Value) -> Result<u64> {
    let text = value.as_str().with_context(|| format!("a number: {value}"))?;
    text.trim().parse().with_context(|| format!("a number: {value}"))
}
