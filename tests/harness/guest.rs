//! Somebody who uses a served disk at random, as a hypervisor's guest does, and knows what it must hold.

use super::nbd::{Client, FLUSH, FUA, TRIM, WRITE_ZEROES};
use super::{PATIENCE, socket_of};
use anyhow::{Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest request in bytes.
const LONGEST: usize = 200_000;

/// The most that is given up with one request: more than a block.
const MOST_TRIMMED: usize = 5 << 20;

/// Random numbers that a seed repeats.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % below
    }
}

/// The client of the disk, who connects again and repeats what was not answered, and knows what the disk must hold.
pub(crate) struct Guest {
    socket: PathBuf,
    client: Option<Client>,
    content: Vec<u8>,
    dice: Dice,
    pub(crate) requests: u64,
}

impl Guest {
    /// Of an empty disk of that size, which is served there.
    pub(crate) fn new(uri: &str, size: usize, seed: u64) -> Result<Self> {
        let socket = socket_of(uri)?;
        Ok(Self { socket, client: None, content: vec![0; size], dice: Dice(seed), requests: 0 })
    }

    /// Carries out a request until it is answered.
    pub(crate) fn insist<T>(&mut self, request: impl Fn(&mut Client) -> Result<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.client.is_none() {
                self.client = Client::connect(&self.socket).ok();
            }
            match self.client.as_mut().map(&request) {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) if Instant::now() > end => return Err(error),
                None if Instant::now() > end => return Err(anyhow!("nobody serves the disk")),
                _ => self.client = None,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One request at random.
    pub(crate) fn one(&mut self) -> Result<()> {
        self.requests += 1;
        let length = self.dice.roll(LONGEST) + 1;
        let start = self.dice.roll(self.content.len() - length);
        // Half of the time whole sectors, as guests do.
        let (start, length) = match self.dice.roll(2) {
            0 => (start & !511, (length & !511).max(512)),
            _ => (start, length),
        };
        let (at, len) = (start as u64, u32::try_from(length)?);
        let range = start..start + length;
        let flags = if self.dice.roll(8) == 0 { FUA } else { 0 };
        match self.dice.roll(10) {
            0..5 => {
                let data: Vec<u8> =
                    (0..length).map(|byte| (byte as u64 * self.requests % 251) as u8).collect();
                let error = self.insist(|client| client.write(at, &data, flags))?;
                ensure!(error == 0, "writing {range:?}: {error}");
                self.content[range].copy_from_slice(&data);
            }
            5 => {
                let error = self.insist(|client| client.ask(WRITE_ZEROES, flags, at, len))?;
                ensure!(error == 0, "zeroing {range:?}: {error}");
                self.content[range].fill(0);
            }
            6 => ensure!(self.insist(|client| client.ask(FLUSH, 0, 0, 0))? == 0, "flushing"),
            _ => {
                let data = self.insist(|client| client.read(at, len))?;
                let data = data.map_err(|error| anyhow!("reading {range:?}: {error}"))?;
                ensure!(
                    data == self.content[range.clone()],
                    "{range:?} reads wrong in request {}",
                    self.requests
                );
            }
        }
        Ok(())
    }

    /// Gives up a range at random. Each sector of it reads as what it held, or as zeros, and nothing else; so it does from then on.
    pub(crate) fn trim(&mut self) -> Result<()> {
        let length = (self.dice.roll(MOST_TRIMMED) & !511) + 512;
        let start = self.dice.roll(self.content.len() - length) & !511;
        let (at, len) = (start as u64, u32::try_from(length)?);
        ensure!(self.insist(|client| client.ask(TRIM, 0, at, len))? == 0, "trimming at {start}");
        let data = self.insist(|client| client.read(at, len))?;
        let data = data.map_err(|error| anyhow!("reading {length} bytes at {start}: {error}"))?;
        let held = &mut self.content[start..start + length];
        let sectors = data.chunks(512).zip(held.chunks(512));
        for (number, (read, held)) in sectors.enumerate() {
            let is_zero = read.iter().all(|byte| *byte == 0);
            ensure!(is_zero || read == held, "sector {number} behind {start} is neither old nor zero");
        }
        held.copy_from_slice(&data);
        Ok(())
    }

    /// The disk is larger now, which a new connection sees.
    pub(crate) fn grown(&mut self, size: usize) {
        self.content.resize(size, 0);
        self.client = None;
    }

    /// What the disk must hold.
    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    pub(crate) fn sha256(&self) -> String {
        Sha256::digest(&self.content).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
