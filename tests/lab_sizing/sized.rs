//! A private agent with an SR on logical volumes, and what `lvs` says of it.
#![allow(dead_code, reason = "each suite uses a part of it")]

use crate::harness::lab::{Disk, run};
use crate::harness::nbd::Client;
use crate::harness::{Agent, socket_of, text, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// Sizes of volumes, in MiB: empty, and for every block of a disk of so many GiB.
pub(crate) const EMPTY: u64 = 8;
pub(crate) const FULL_1: u64 = 1032;
pub(crate) const FULL_10: u64 = 10_268;

/// An agent, and its SR.
pub(crate) struct Sized {
    pub(crate) agent: Agent,
    pub(crate) sr: String,
    /// What the group is on.
    pub(crate) device: Disk,
}

impl Sized {
    /// A volume group on a disk of so many MiB.
    pub(crate) fn new(mib: u64, allocation: &str) -> Result<Self> {
        let (agent, disk) = (Agent::start_mortal()?, Disk::new(mib)?);
        let device = text(&disk.path());
        let options = ["--name", "sized", "--devices", &device, "--allocation", allocation];
        let sr = agent.ok(&[&["sr", "create", "--type", "lvm"][..], &options].concat())?;
        agent.ok(&["coalesce", "pause", &sr])?;
        Ok(Self { agent, sr, device: disk })
    }

    /// A new disk.
    pub(crate) fn disk(&self, name: &str, size: &str) -> Result<String> {
        self.agent.ok(&["vdi", "create", "--sr", &self.sr, "--name", name, "--size", size])
    }

    /// The image that a VDI has now.
    pub(crate) fn image(&self, vdi: &str) -> Result<String> {
        let record = self.agent.json(&["vdi", "show", vdi])?;
        Ok(record["image"].as_str().context("an image")?.to_owned())
    }

    /// The sizes in MiB of all volumes of images, by image, with their attributes.
    pub(crate) fn volumes(&self) -> Result<BTreeMap<String, (u64, String)>> {
        let report = run(
            "lvs",
            &[
                "--foreign",
                "--reportformat",
                "json",
                "--units",
                "b",
                "--nosuffix",
                "-o",
                "lv_name,lv_size,lv_attr,vg_name",
            ],
        )?;
        let report: Value = serde_json::from_str(&report)?;
        let volumes = report["report"][0]["lv"].as_array().context("volumes")?.clone();
        let mut sizes = BTreeMap::new();
        for volume in volumes {
            let [name, size, attributes, group] =
                ["lv_name", "lv_size", "lv_attr", "vg_name"].map(|key| volume[key].as_str().unwrap_or(""));
            if let Some(image) = name.strip_prefix("vhd-").filter(|_| group.ends_with(&self.sr)) {
                let size: u64 = size.parse()?;
                sizes.insert(image.to_owned(), (size / MIB, attributes.to_owned()));
            }
        }
        Ok(sizes)
    }

    /// The size in MiB of the volume of an image.
    pub(crate) fn mib(&self, image: &str) -> Result<u64> {
        let volumes = self.volumes()?;
        Ok(volumes.get(image).with_context(|| format!("a volume of {image}: {volumes:?}"))?.0)
    }

    /// The size of the volume of a VDI's image is that.
    pub(crate) fn has(&self, vdi: &str, mib: u64, why: &str) -> Result<()> {
        let found = self.mib(&self.image(vdi)?)?;
        ensure!(found == mib, "{why}: {found} MiB, not {mib}");
        Ok(())
    }

    /// Attaches a disk; a client of it.
    pub(crate) fn attach(&self, vdi: &str) -> Result<Client> {
        let answer = self.agent.json(&["vdi", "attach", vdi])?;
        Client::connect(&socket_of(answer["uri"].as_str().context("a uri")?)?)
    }

    /// Writes whole blocks through a client, from block `from`, each full of another byte.
    pub(crate) fn fill(client: &mut Client, from: u64, blocks: u64) -> Result<()> {
        for block in from..from + blocks {
            let data = vec![byte_of(block); 2 << 20];
            ensure!(client.write(block * 2 * MIB, &data, 0)? == 0, "a write to block {block}");
        }
        Ok(())
    }

    /// Such blocks are read back, of a detached disk or snapshot.
    pub(crate) fn is_filled(&self, vdi: &str, from: u64, blocks: u64) -> Result<()> {
        for block in from..from + blocks {
            let data = self.agent.read(vdi, block * 2 * MIB, 2 * MIB)?;
            ensure!(data.iter().all(|byte| *byte == byte_of(block)), "block {block} of {vdi}");
        }
        Ok(())
    }

    /// Only what is in use is active, and only what is written can be written.
    pub(crate) fn is_active(&self, read: &[&str], written: &[&str]) -> Result<()> {
        wait_until("volumes that nobody uses to be let go", || {
            let volumes = self.volumes()?;
            Ok(volumes.iter().all(|(image, (_, attributes))| {
                let is_active = attributes.as_bytes().get(4) == Some(&b'a');
                is_active == (read.contains(&image.as_str()) || written.contains(&image.as_str()))
            }))
        })
        .with_context(|| format!("{:?}; wanted {read:?} {written:?}", self.volumes()))
    }
}

pub(crate) fn byte_of(block: u64) -> u8 {
    u8::try_from(block % 251).unwrap_or(0) + 1
}

/// What so many blocks take, as a volume has it.
pub(crate) fn holding(blocks: u64) -> u64 {
    // Tables for 2 TiB, and the locators and the footer; then a bitmap and what aligns it, with each block.
    let bytes = 4_329_472 + blocks * (2 * MIB + 4096);
    bytes.div_ceil(4 * MIB) * 4
}
