//! An SR of logical volumes on a small disk of the lab, and what lvm2 and the bytes on that disk say of it.
//!
//! What an image needs is read from its block table on the disk itself: the only other reader of it than the programs that are tried.

use crate::harness::lab::Disk;
use crate::harness::volumes::{EXTENT, Group, OnDisk};
use crate::harness::{Agent, PATIENCE, text};
use crate::storage::{Scale, Storage};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::time::Instant;

/// Extents that images do not get.
const MARGIN: u64 = 4;
/// A block, and with its bitmap and what aligns it.
const BLOCK: u64 = 2 << 20;
const SECTOR: u64 = 512;
/// What an image takes that can grow to 2 TiB, without its blocks: as XenServer computes it.
const METADATA: u64 = 4_329_472;

/// The disk, and how its SR is sized.
pub(crate) struct Volumes {
    disk: Disk,
    allocation: &'static str,
}

/// An image as the agent shows it.
#[derive(Debug)]
struct Image {
    container: String,
    own_bytes: u64,
    virtual_size: u64,
    vdi: Option<String>,
    is_disk: bool,
    /// It waits to be removed.
    is_garbage: bool,
}

impl Volumes {
    /// On a disk of so many MiB.
    pub(crate) fn new(mib: u64, allocation: &'static str) -> Result<Self> {
        Ok(Self { disk: Disk::new(mib)?, allocation })
    }

    /// The size that the volume of this image needs, by its block table; its footer must stand at the volume's end.
    fn needs(volume: &OnDisk, image: &Image) -> Result<u64> {
        let copy = volume.read(0, SECTOR)?;
        let footer = volume.read(volume.size() - SECTOR, SECTOR)?;
        ensure!(copy.starts_with(b"conectix") && copy == footer, "the footer is not at the end");
        let header = volume.read(SECTOR, 2 * SECTOR)?;
        ensure!(header.starts_with(b"cxsparse"), "no header");
        let table = u64::from_be_bytes(header[16..24].try_into()?);
        let entries = volume.read(table, image.virtual_size / BLOCK * 4)?;
        let slots =
            entries.chunks(4).map(|entry| u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]));
        let last = slots.filter(|slot| *slot != u32::MAX).max();
        // A bitmap of one sector, the block, and the footer.
        let end = last.map_or(0, |slot| (u64::from(slot) + 1) * SECTOR + BLOCK + SECTOR);
        Ok(end.max(METADATA).next_multiple_of(EXTENT))
    }

    /// Whether everything is as it is to be when nothing is under way; why not.
    fn at_rest(&self, agent: &Agent, sr: &str, attached: Option<&str>) -> Result<()> {
        let ask = |method: &str| {
            let answer = agent.call(method, &serde_json::json!({"sr": sr}))?;
            answer.map_err(|refusal| anyhow!("{method}: {refusal}"))
        };
        let record = ask("SR.get_record")?;
        let tree = ask("VDI.get_tree")?;
        let group = Group::on(&self.disk)?;
        let mut images = Vec::new();
        let mut used = Vec::new();
        for root in tree["roots"].as_array().context("roots")? {
            walk(root, attached, &mut images, &mut used)?;
        }
        ensure!(
            images.len() == group.volumes.len(),
            "{} images have {} volumes",
            images.len(),
            group.volumes.len()
        );
        let free = group.free.saturating_sub(MARGIN) * EXTENT;
        ensure!(record["free_space"] == free, "{free} are free: {record}");
        let taken = (group.extents - group.free) * EXTENT;
        ensure!(record["physical_utilisation"] == taken, "{taken} are taken: {record}");
        for image in &images {
            let volume = group.volumes.get(&image.container).context("no volume")?;
            self.is_right(volume, image, attached, &used).with_context(|| format!("{image:?} {volume:?}"))?;
        }
        Ok(())
    }

    fn is_right(
        &self,
        volume: &OnDisk,
        image: &Image,
        attached: Option<&str>,
        used: &[String],
    ) -> Result<()> {
        ensure!(volume.size() == image.own_bytes, "it is shown with another size");
        let is_used = used.contains(&image.container);
        ensure!(volume.is_active == is_used, "whether it is used: {is_used}");
        if image.is_garbage {
            return Ok(());
        }
        let is_written = image.vdi.is_some() && image.vdi.as_deref() == attached;
        let blocks = image.virtual_size / BLOCK;
        let full = (image.virtual_size + METADATA + blocks * 4096).next_multiple_of(EXTENT);
        let needed = || Self::needs(volume, image);
        let wanted = match self.allocation {
            // It has room, and gets more when that is short.
            "dynamic" if is_written => needed()?..=full,
            "thick" if image.is_disk => full..=full,
            _ if is_written => full..=full,
            _ => needed()?..=needed()?,
        };
        ensure!(wanted.contains(&volume.size()), "it is to have {wanted:?} bytes");
        Ok(())
    }
}

impl Storage for Volumes {
    fn options(&self) -> Vec<String> {
        let device = text(&self.disk.path());
        ["--type", "lvm", "--devices", &device, "--allocation", self.allocation].map(str::to_owned).into()
    }

    /// Disks are small here.
    fn policy(&self) -> &'static [&'static str] {
        if self.allocation == "dynamic" { &["allocation.chunk=8MiB"] } else { &[] }
    }

    fn scale(&self) -> Scale {
        Scale {
            vdis: 8,
            blocks: 8,
            tower: (2, if crate::harness::nightly() { 30 } else { 3 }),
            strike_within: 600_000,
            compared: 15,
            checked_every: 5,
            everything_every: 50,
        }
    }

    fn is_small(&self) -> bool {
        true
    }

    fn containers(&self, _agent: &Agent) -> Result<Vec<String>> {
        Ok(Group::on(&self.disk)?.volumes.into_keys().collect())
    }

    /// What still goes on is waited for.
    fn check(&self, agent: &Agent, sr: &str, attached: Option<&str>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.at_rest(agent, sr, attached) {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() > end => bail!("the volumes do not come to rest: {why:#}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
            }
        }
    }
}

/// Collects the images of a tree, and the containers of the chain of the VDI that is attached.
fn walk(
    node: &Value,
    attached: Option<&str>,
    images: &mut Vec<Image>,
    used: &mut Vec<String>,
) -> Result<bool> {
    let container = node["container"].as_str().context("a container")?.to_owned();
    let vdi = node["vdi"]["uuid"].as_str().map(str::to_owned);
    let mut is_used = vdi.is_some() && vdi.as_deref() == attached;
    for child in node["children"].as_array().context("children")? {
        is_used |= walk(child, attached, images, used)?;
    }
    if is_used {
        used.push(container.clone());
    }
    images.push(Image {
        container,
        own_bytes: node["own_bytes"].as_u64().context("bytes")?,
        virtual_size: node["virtual_size"].as_u64().context("a size")?,
        is_disk: vdi.is_some() && node["vdi"]["is_a_snapshot"] == false,
        vdi,
        is_garbage: node["state"] == "garbage",
    });
    Ok(is_used)
}
