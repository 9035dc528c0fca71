//! The pause of writers, as both of its ends play it; without I/O. [`Holding`] is what a process that serves a disk has
//! prepared and holds back, [`Pause`] the disks that a keeper holds back for one commit, [`found`] what a keeper does with a
//! process that it finds.
//!
//! Invariants (D20): nobody but the keeper ends a quiesce; how one ends is never remembered, the catalog says it; nothing is
//! committed unless every disk of the set has said that it is quiesced and its process is still there. `tests/snapshot_set`
//! goes through all orders of messages and deaths. Called by the keeper (`pausing`, `adoption`) and by `serve` (`disk/change`).

use crate::serving::Hello;
use catena_types::{ImageId, VdiUuid};

/// What writes are held back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A change of the chain.
    Quiesce,
    /// The end of the process.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Of a quiesce: what was answered so far is being stored. Nothing waits yet.
    Coming,
    /// What has begun ends.
    Draining,
    /// What was answered is stored; of a stop, durably.
    Committing,
    /// The question is answered. Of a stop: the images are being closed, or are.
    Held,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hold {
    generation: u64,
    question: u64,
    purpose: Purpose,
    stage: Stage,
}

/// What a process has prepared (`L`: the next leaf), and whether it holds writes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holding<L> {
    generation: u64,
    prepared: Option<(u64, L)>,
    hold: Option<Hold>,
}

/// What a process does next about the writes that it holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It stores what it has answered; before a stop it makes all of it durable.
    Commit,
    /// It answers this question: nothing is written until the keeper says so.
    Held(u64),
    /// It closes its images, and then answers this question.
    Close(u64),
    /// It answers this question with what is wrong with the storage.
    Failed(u64),
}

/// What comes of the word to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resumed<L> {
    /// Nothing was held back.
    Already,
    /// This was not prepared, or what was answered is not stored yet. Writes stay held back.
    Refused,
    /// Writes go on as before.
    Kept {
        /// The question of a quiesce that had not come to its end.
        unanswered: Option<u64>,
    },
    /// This is put on top of the chain, and then [`Holding::swapped`] is called. Writes stay held back until then.
    Swap(L),
}

impl<L> Default for Holding<L> {
    fn default() -> Self {
        Self { generation: 0, prepared: None, hold: None }
    }
}

impl<L> Holding<L> {
    /// The last generation that was heard of.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// A change of this generation was asked for.
    pub const fn hear(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// What is prepared.
    pub fn prepared(&self) -> Option<&L> {
        self.prepared.as_ref().map(|(_, leaf)| leaf)
    }

    /// The generation for which writes are held back.
    pub fn quiesced(&self) -> Option<u64> {
        self.hold.as_ref().filter(|hold| hold.purpose == Purpose::Quiesce).map(|hold| hold.generation)
    }

    /// Whether requests that change the disk wait.
    pub fn holds_back(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.stage != Stage::Coming)
    }

    /// Whether that is for this purpose.
    pub fn is_for(&self, purpose: Purpose) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.purpose == purpose)
    }

    /// Whether the way of what is held back has come to its end: all is stored, or the storage has failed.
    pub fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.stage == Stage::Held)
    }

    /// The next leaf; it takes the place of one that was prepared before. False while writes are held back, or about to be.
    pub fn prepare(&mut self, generation: u64, leaf: L) -> bool {
        if self.hold.is_some() {
            return false;
        }
        self.prepared = Some((generation, leaf));
        true
    }

    /// Forgets what was prepared.
    pub fn forget_prepared(&mut self) {
        self.prepared = None;
    }

    /// Begins to hold writes back: a quiesce when what was answered so far is stored, which whoever calls this begins. A stop
    /// ends a quiesce: its question, if it has no answer yet, comes back.
    ///
    /// # Errors
    /// Writes are held back already.
    pub fn hold_back(
        &mut self,
        generation: u64,
        question: u64,
        purpose: Purpose,
    ) -> Result<Option<u64>, AlreadyHeld> {
        self.generation = generation;
        if self.hold.is_some() && (purpose == Purpose::Quiesce || self.is_for(Purpose::Stop)) {
            return Err(AlreadyHeld);
        }
        let stage = match purpose {
            Purpose::Quiesce => Stage::Coming,
            Purpose::Stop => Stage::Draining,
        };
        let before = self.hold.replace(Hold { generation, question, purpose, stage });
        Ok(before.filter(|hold| hold.stage != Stage::Held).map(|hold| hold.question))
    }

    /// What is done next. `idle`: no request that changes the disk is under way. `failed`: nothing can be made durable any more.
    /// `done`: what [`Next::Commit`], or the beginning of a quiesce, has asked for is done. A commit that was begun for an
    /// earlier quiesce does not do: it does not cover what was answered between the two.
    pub fn next(&mut self, idle: bool, done: bool, failed: bool) -> Option<Next> {
        let hold = self.hold.as_mut()?;
        if hold.stage == Stage::Coming && (done || failed) {
            hold.stage = Stage::Draining;
        }
        match hold.stage {
            Stage::Draining if idle && failed => self.failed().map(Next::Failed),
            Stage::Draining if idle => {
                hold.stage = Stage::Committing;
                Some(Next::Commit)
            }
            Stage::Committing if done => {
                hold.stage = Stage::Held;
                Some(match hold.purpose {
                    Purpose::Quiesce => Next::Held(hold.question),
                    Purpose::Stop => Next::Close(hold.question),
                })
            }
            _ => None,
        }
    }

    /// Nothing can be made durable any more: the question that is to be answered so.
    pub fn failed(&mut self) -> Option<u64> {
        let hold = self.hold.as_mut().filter(|hold| hold.stage != Stage::Held)?;
        hold.stage = Stage::Held;
        Some(hold.question)
    }

    /// The keeper ends a quiesce.
    pub fn resume(&mut self, generation: u64, swap: bool) -> Resumed<L> {
        self.generation = generation;
        let hold = self.hold.as_ref().filter(|hold| hold.purpose == Purpose::Quiesce);
        if !swap {
            self.prepared = None;
        }
        let Some(hold) = hold else { return Resumed::Already };
        if !swap {
            let unanswered = (hold.stage != Stage::Held).then_some(hold.question);
            self.hold = None;
            return Resumed::Kept { unanswered };
        }
        let is_held = hold.stage == Stage::Held;
        let prepared = self.prepared.take_if(|(of, _)| is_held && *of == generation);
        prepared.map_or(Resumed::Refused, |(_, leaf)| Resumed::Swap(leaf))
    }

    /// What was prepared is on top of the chain, and is written from now on.
    pub fn swapped(&mut self) {
        self.hold = None;
    }
}

/// Writes are held back already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("writes are being held back already")]
pub struct AlreadyHeld;

/// The disks that a keeper holds back for one commit, each with the leaf that it gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pause(Vec<Member>);

/// A disk of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// The disk.
    pub vdi: VdiUuid,
    /// The leaf that it gets.
    pub leaf: ImageId,
    /// Of the preparation.
    pub generation: u64,
    /// The process has said so.
    quiesced: bool,
}

impl Pause {
    /// One more disk, which is being prepared.
    pub fn add(&mut self, vdi: VdiUuid, leaf: ImageId, generation: u64) {
        self.0.push(Member { vdi, leaf, generation, quiesced: false });
    }

    /// Its disks.
    pub fn members(&self) -> impl Iterator<Item = Member> + use<> {
        self.0.clone().into_iter()
    }

    /// Whether it is about this disk.
    pub fn holds(&self, vdi: VdiUuid) -> bool {
        self.0.iter().any(|member| member.vdi == vdi)
    }

    /// The disk's process has said that it is quiesced.
    pub fn is_quiesced(&mut self, vdi: VdiUuid) {
        for member in self.0.iter_mut().filter(|member| member.vdi == vdi) {
            member.quiesced = true;
        }
    }

    /// D20: a disk for the sake of which nothing may be committed. `is_there`: the process that has answered still has its connection.
    pub fn objection(&self, is_there: impl Fn(VdiUuid) -> bool) -> Option<VdiUuid> {
        self.0.iter().find(|member| !member.quiesced || !is_there(member.vdi)).map(|member| member.vdi)
    }
}

impl Member {
    /// Whether the pause ends with the new leaf on top, where the catalog names this one.
    pub fn swaps(&self, leaf: Option<ImageId>) -> bool {
        leaf == Some(self.leaf)
    }
}

/// What a keeper does with a process that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It writes where the catalog says, and waits for nothing.
    Serves,
    /// It has not heard how a pause has ended, which is like this.
    Resume {
        /// Of the pause.
        generation: u64,
        /// Whether with the leaf that it has prepared.
        swap: bool,
    },
    /// Its leaf is not the disk's, and cannot become it. It is ended before it writes anything more: to let it go on first would be to
    /// write into what is a base by now.
    Strays,
}

/// What is to be done with a process that serves a disk whose leaf is this one. The catalog decides alone (D20): the process holds
/// writes back since then, or has not been told to.
pub fn found(hello: &Hello, leaf: ImageId) -> Found {
    if hello.read_only {
        // It may not have heard of a new leaf yet, which owns nothing: it reads the same without it, and is told of it with the rest of
        // its chain.
        return Found::Serves;
    }
    let generation = hello.quiesced.unwrap_or(hello.generation);
    let is_idle = hello.prepared.is_none() && hello.quiesced.is_none();
    if hello.chain.first() == Some(&leaf) {
        return if is_idle { Found::Serves } else { Found::Resume { generation, swap: false } };
    }
    if hello.quiesced.is_some() && hello.prepared == Some(leaf) {
        Found::Resume { generation, swap: true }
    } else {
        Found::Strays
    }
}
