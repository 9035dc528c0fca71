//! A guest that writes block after block in a thread, and goes on after the process of its disk has died.

use crate::harness::nbd::Client;
use crate::harness::{PATIENCE, socket_of, wait_until};
use crate::sized::{MIB, Sized, byte_of};
use anyhow::{Context, Result, anyhow, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Attaches a disk; its socket.
pub(crate) fn attach(sized: &Sized, disk: &str) -> Result<PathBuf> {
    socket_of(&sized.agent.ok(&["vdi", "attach", disk])?)
}

/// A thread that writes.
pub(crate) struct Guest {
    thread: JoinHandle<Result<()>>,
    /// Blocks that were answered.
    done: Arc<AtomicU64>,
}

impl Guest {
    /// Fills these blocks of the disk at a socket.
    pub(crate) fn fills(socket: &Path, blocks: std::ops::Range<u64>) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let (count, socket) = (Arc::clone(&done), socket.to_owned());
        let thread = std::thread::spawn(move || fill(&socket, blocks, &count));
        Self { thread, done }
    }

    /// How many blocks it has written.
    pub(crate) fn written(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits until it has written all.
    pub(crate) fn ends(self) -> Result<()> {
        wait_until("the guest to have written all", || Ok(self.thread.is_finished()))?;
        self.thread.join().map_err(|_| anyhow!("the guest's thread has panicked"))?
    }
}

fn fill(socket: &Path, blocks: std::ops::Range<u64>, done: &AtomicU64) -> Result<()> {
    let mut client = None;
    for block in blocks {
        let data = vec![byte_of(block); 2 << 20];
        let end = Instant::now() + 4 * PATIENCE;
        loop {
            // Connects again and repeats what was not answered, as hypervisors do.
            let answer = match &mut client {
                Some(open) => Client::write(open, block * 2 * MIB, &data, 0),
                None => Client::connect(socket).map(|open| {
                    client = Some(open);
                    u32::MAX
                }),
            };
            match answer {
                Ok(0) => break,
                Ok(u32::MAX) => {}
                Ok(error) => return Err(anyhow!("block {block}: error {error}")),
                Err(error) => {
                    ensure!(Instant::now() < end, "block {block}: {error:#}");
                    client = None;
                }
            }
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    client.context("a connection")?.disconnect()
}
