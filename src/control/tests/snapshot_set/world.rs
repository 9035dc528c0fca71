//! What there is: the guest's writes, the disks with their processes and connections, the catalog, the keeper.

use crate::keeper::Keeper;
use crate::process::Process;
use catena_types::{ImageId, VdiUuid};
use std::collections::VecDeque;

/// How far it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    pub(crate) disks: usize,
    pub(crate) writes: usize,
    /// Snapshots that are begun.
    pub(crate) attempts: u8,
    /// Deaths of the keeper.
    pub(crate) ends: u8,
    /// Deaths of a process, failures of its storage, leaves that cannot be put on top, commits of unknown outcome.
    pub(crate) troubles: u8,
}

/// A rule that is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    None,
    /// What has begun ends before a process is quiesced.
    Drain,
    /// What was answered is durable before it is.
    Flush,
    /// A commit that was begun for another quiesce does not count.
    OwnCommit,
    /// D20: a process goes on by itself when its keeper is gone.
    OnlyTheKeeper,
    /// D20: every member of the set is quiesced before the commit.
    Everybody,
    /// D20: what a process has said does not count for its successor.
    SameProcess,
    /// D19: nobody goes on while the outcome of the commit is unknown.
    Decided,
    /// D20: no successor is started then.
    NoSuccessor,
    /// D20: a process that is found quiesced is answered from the catalog.
    AskTheCatalog,
    /// One that cannot get the leaf that the catalog names is ended, and not let go on before that.
    EndStrays,
}

/// An image that is a leaf or was one: 0, or what the n-th snapshot gives the disk.
pub(crate) type Leaf = u8;

pub(crate) fn image(leaf: Leaf) -> ImageId {
    ImageId::from_bytes([leaf + 1; 16])
}

pub(crate) fn vdi(disk: usize) -> VdiUuid {
    VdiUuid::from_bytes([u8::try_from(disk).unwrap() + 1; 16])
}

/// What the guest writes, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    /// It has not been sent, or is to be sent again.
    Unsent,
    /// The process holds it back.
    Held,
    UnderWay(Leaf),
    /// It has landed and was answered; it is on the image once it is `stored`, and only in memory before.
    Answered {
        leaf: Leaf,
        stored: bool,
    },
}

/// What a keeper sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Hello,
    Prepare { generation: u64, leaf: Leaf },
    Quiesce { generation: u64 },
    Resume { generation: u64, swap: bool },
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    Hello { generation: u64, leaf: Leaf, prepared: Option<Leaf>, quiesced: Option<u64> },
    Done,
    Quiesced,
    Trouble,
}

/// A connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    /// Whether the process's end is open.
    pub(crate) there: bool,
    /// Whether the keeper's is.
    pub(crate) here: bool,
    pub(crate) asked: VecDeque<Asked>,
    pub(crate) said: VecDeque<Said>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) process: Option<Process>,
    pub(crate) line: Line,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) left: Bounds,
    pub(crate) disks: Vec<Disk>,
    pub(crate) writes: Vec<Write>,
    /// The leaf of every disk, durably.
    pub(crate) catalog: Leaf,
    /// Snapshots begun so far.
    pub(crate) attempts: u8,
    pub(crate) keeper: Option<Keeper>,
}

/// Steps that can be taken, by name; `Err` is a fault.
pub(crate) type Steps = crate::explore::Steps<State>;

impl State {
    /// All disks are being served.
    pub(crate) fn new(left: Bounds) -> Self {
        let line = Line { there: true, here: true, ..Line::default() };
        let disk = Disk { process: Some(Process::new(0)), line };
        Self {
            left,
            disks: vec![disk; left.disks],
            writes: vec![Write::Unsent; left.writes],
            catalog: 0,
            attempts: 0,
            keeper: Some(Keeper::serving(left.disks)),
        }
    }

    /// The writes of a disk, by number.
    pub(crate) fn writes_of(&self, disk: usize) -> impl Iterator<Item = usize> + use<> {
        (disk..self.writes.len()).step_by(self.disks.len())
    }

    /// Everything that can happen next.
    pub(crate) fn next(&self, dropped: Dropped) -> Steps {
        let mut steps = Steps::new();
        for disk in 0..self.disks.len() {
            self.process_steps(disk, dropped, &mut steps);
        }
        self.keeper_steps(dropped, &mut steps);
        steps
    }

    /// Takes a step that is always possible.
    pub(crate) fn offer(&self, steps: &mut Steps, name: String, step: impl FnOnce(&mut Self)) {
        let mut next = self.clone();
        step(&mut next);
        steps.push((name, Ok(next)));
    }

    /// The same, where something may turn out to be wrong.
    pub(crate) fn venture(
        &self,
        steps: &mut Steps,
        name: String,
        step: impl FnOnce(&mut Self) -> Result<(), String>,
    ) {
        let mut next = self.clone();
        let outcome = step(&mut next);
        steps.push((name, outcome.map(|()| next)));
    }

    /// What is wrong with this state, if anything is.
    pub(crate) fn fault(&self) -> Option<String> {
        let mut earlier_are_there = true;
        for (number, write) in self.writes.iter().enumerate() {
            let frozen = match *write {
                Write::Answered { leaf, stored } if leaf < self.catalog => {
                    if !stored {
                        return Some(format!("a power cut takes write {number} from a snapshot that has it"));
                    }
                    true
                }
                _ => false,
            };
            if frozen && !earlier_are_there {
                return Some(format!("a snapshot has write {number} and not the one before it"));
            }
            earlier_are_there = frozen;
        }
        None
    }

    /// Whether nobody waits for anything.
    pub(crate) fn is_at_rest(&self) -> bool {
        let serves = |disk: &Disk| {
            let process = disk.process.as_ref();
            process.is_some_and(|process| process.serves(self.catalog)) && disk.line.there && disk.line.here
        };
        self.keeper.as_ref().is_some_and(Keeper::is_at_rest) && self.disks.iter().all(serves)
    }
}
