//! What the SR of a run lies on, and how much is done there.

use crate::harness::Agent;
use anyhow::Result;

/// A kind of storage.
pub(crate) trait Storage {
    /// The options of `sr create`.
    fn options(&self) -> Vec<String>;

    /// What is set of its policy.
    fn policy(&self) -> &'static [&'static str] {
        &[]
    }

    /// How much is done.
    fn scale(&self) -> Scale;

    /// Whether there may be too little room for something.
    fn is_small(&self) -> bool;

    /// The containers of images that are there.
    fn containers(&self, agent: &Agent) -> Result<Vec<String>>;

    /// Compares what is there with what the agent says; `attached` is the VDI that is attached for writing.
    fn check(&self, agent: &Agent, sr: &str, attached: Option<&str>) -> Result<()>;
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The most VDIs at once.
    pub(crate) vdis: usize,
    /// The most blocks of a new disk.
    pub(crate) blocks: u64,
    /// The least number of snapshots that are taken in a row now and then, and how many more it may be.
    pub(crate) tower: (u64, u64),
    /// The longest time between a request and the death of a process, in microseconds.
    pub(crate) strike_within: u64,
    /// After how many of a hundred steps the disk is compared.
    pub(crate) compared: u64,
    /// Steps between two looks at what the storage has.
    pub(crate) checked_every: u64,
    /// Steps between two comparisons of everything.
    pub(crate) everything_every: u64,
}
