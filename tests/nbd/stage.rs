//! A disk of three levels with known content, made by an agent that then lets go of it.

use crate::harness::nbd::Client;
use crate::harness::serving::Served;
use crate::harness::{Agent, peer, text};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;

/// Bytes of a MiB.
pub(crate) const MIB: usize = 1 << 20;
/// The size of the disk.
const SIZE: usize = 32 * MIB;
/// What does the I/O.
pub(crate) const ENGINES: [&str; 2] = ["threads", "auto"];

/// An agent that is stopped, and a disk of it that can be served.
pub(crate) struct Stage {
    agent: Agent,
    /// The disk, with its sockets.
    pub(crate) served: Served,
    /// Its uuid.
    pub(crate) vdi: String,
    /// What it holds.
    pub(crate) content: Vec<u8>,
    /// Who owns each sector: 1 is the leaf, 0 nobody.
    pub(crate) owners: Vec<u8>,
    /// The bytes of its leaf before anybody served it.
    pub(crate) leaf_bytes: Vec<u8>,
}

impl Stage {
    /// A leaf on a base copy on a base copy, each owning some blocks whole, some in part and some not at all.
    pub(crate) fn chain() -> Result<Self> {
        let mut agent = Agent::start()?;
        let directory = agent.path("sr");
        agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &text(&directory)])?;
        agent.ok(&["coalesce", "pause", "disks"])?;
        let size = SIZE.to_string();
        let vdi = agent.ok(&["vdi", "create", "--sr", "disks", "--size", &size, "--name", "disk"])?;
        let (mut content, mut owners) = (vec![0; SIZE], vec![0; SIZE / 512]);
        let levels: [&[(usize, usize)]; 3] = [
            &[(0, 9 * MIB), (20 * MIB, 4096)],
            &[(2 * MIB - 8192, 16_384), (6 * MIB, 2 * MIB), (30 * MIB, 512)],
            &[(MIB, 4096), (7 * MIB + 512, 1024), (SIZE - 4096, 4096)],
        ];
        for (level, ranges) in levels.iter().enumerate() {
            if level > 0 {
                agent.ok(&["vdi", "snapshot", &vdi, "--name", &format!("s{level}")])?;
                owners.iter_mut().filter(|owner| **owner > 0).for_each(|owner| *owner += 1);
            }
            for (seed, &(at, len)) in ranges.iter().enumerate() {
                let bytes = noise((level * 10 + seed) as u64, len);
                agent.write(&vdi, at as u64, &bytes)?;
                content[at..at + len].copy_from_slice(&bytes);
                owners[at / 512..(at + len) / 512].fill(1);
            }
        }
        let served = Served::new(&agent, &directory, &vdi)?;
        agent.stop()?;
        let leaf_bytes = Vec::new();
        let mut stage = Self { agent, served, vdi, content, owners, leaf_bytes };
        stage.leaf_bytes = fs::read(stage.leaf()?.0)?;
        Ok(stage)
    }

    /// The arguments of a start by hand, with this as the only image.
    pub(crate) fn words(&self, image: &str) -> Vec<String> {
        let [nbd, control, pending] = self.served.descriptors().map(|fd| fd.to_string());
        let words = [
            "--vdi",
            &self.vdi,
            "--nbd",
            &nbd,
            "--control",
            &control,
            "--pending",
            &pending,
            "--image",
            image,
        ];
        words.map(str::to_owned).into()
    }

    /// The file of the leaf, and its id.
    pub(crate) fn leaf(&self) -> Result<(PathBuf, String)> {
        self.served.leaf().context("a leaf")
    }

    /// What a client reads is what is expected.
    pub(crate) fn expect_content(&self) -> Result<()> {
        let file = self.served.path("content");
        // Not with dd's hands: nbdcopy asks for extents and reads in any order.
        peer("libnbd-bin", "nbdcopy", &[&self.served.uri(), &text(&file)])?;
        same(&fs::read(&file)?, &self.content)
    }

    /// What the agent reads, and that it finds nothing wrong with the images. Nobody serves the disk.
    pub(crate) fn agree_detached(&mut self) -> Result<()> {
        self.agent.launch(None)?;
        let found = self.agent.read(&self.vdi, 0, self.content.len() as u64)?;
        same(&found, &self.content)?;
        let check = self.agent.json(&["sr", "check", "disks"])?;
        ensure!(check["clean"] == true, "{check}");
        self.agent.stop()
    }

    /// That the agent finds nothing wrong with the images, whatever they hold.
    pub(crate) fn check_detached(&mut self) -> Result<()> {
        self.agent.launch(None)?;
        let check = self.agent.json(&["sr", "check", "disks"])?;
        ensure!(check["clean"] == true, "{check}");
        self.agent.stop()
    }
}

impl Served {
    /// A client of ours.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(&self.socket()).with_context(|| self.said())
    }
}

/// Whether two contents are the same, and where not.
pub(crate) fn same(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{} bytes, not {}", found.len(), expected.len());
    let differ = found.iter().zip(expected).position(|(one, other)| one != other);
    ensure!(differ.is_none(), "the content differs at {differ:?}");
    Ok(())
}

/// Bytes that differ from place to place, the same for a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
