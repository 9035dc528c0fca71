//! A process that serves a disk: requests, the commit, the keeper's questions, as in `serve/disk/{change,commit}` with
//! [`Holding`].

use crate::world::{Asked, Disk, Dropped, Leaf, Said, State, Steps, Write};
use catena_control::{Holding, Next, Purpose, Resumed};
use std::collections::VecDeque;

/// An answer that is due, in the order of the questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Due {
    Ready(Said),
    /// When writes are held back for this generation.
    Quiesce(u64),
    /// As it is then.
    Hello,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    /// The question of a quiesce is its generation.
    holding: Holding<Leaf>,
    leaf: Leaf,
    failed: bool,
    /// With whether whoever asked is still connected.
    due: VecDeque<(bool, Due)>,
    /// The writes that the commit under way covers.
    commit: Option<Vec<usize>>,
    /// Another is wanted.
    wanted: bool,
    /// One has ended since the hold has asked for it: not what counts.
    ended: bool,
}

impl Process {
    pub(crate) fn new(leaf: Leaf) -> Self {
        let holding = Holding::default();
        Self { holding, leaf, failed: false, due: VecDeque::new(), commit: None, wanted: false, ended: false }
    }

    /// Whether it writes to this leaf and waits for nothing.
    pub(crate) fn serves(&self, leaf: Leaf) -> bool {
        self.leaf == leaf && !self.holding.holds_back() && self.holding.prepared().is_none()
    }

    /// Another connection counts from now on.
    pub(crate) fn is_connected_anew(&mut self) {
        self.due.retain_mut(|(connected, due)| {
            *connected = false;
            matches!(due, Due::Quiesce(_))
        });
    }

    fn answer(&mut self, generation: u64, said: Said) {
        let open = self.due.iter_mut().find(|(_, due)| *due == Due::Quiesce(generation));
        if let Some((_, due)) = open {
            *due = Due::Ready(said);
        }
    }

    fn hello(&self) -> Said {
        Said::Hello {
            generation: self.holding.generation(),
            leaf: self.leaf,
            prepared: self.holding.prepared().copied(),
            quiesced: self.holding.quiesced(),
        }
    }
}

impl State {
    fn process(&mut self, disk: usize) -> &mut Process {
        self.disks[disk].process.as_mut().unwrap()
    }

    pub(crate) fn process_steps(&self, disk: usize, dropped: Dropped, steps: &mut Steps) {
        let Some(process) = &self.disks[disk].process else { return };
        if let Some(asked) = self.disks[disk].line.asked.front() {
            self.venture(steps, format!("{disk} hears {asked:?}"), |next| next.hears(disk, false, dropped));
            if matches!(asked, Asked::Resume { swap: true, .. }) && self.left.troubles > 0 {
                let name = format!("{disk} hears {asked:?} and cannot");
                self.venture(steps, name, |next| next.hears(disk, true, dropped));
            }
        }
        for number in self.writes_of(disk) {
            let turn = number == 0 || matches!(self.writes[number - 1], Write::Answered { .. });
            match self.writes[number] {
                Write::Unsent if turn && !process.failed => {
                    self.offer(steps, format!("write {number} comes"), |next| next.comes(disk, number));
                }
                Write::UnderWay(leaf) => self.venture(steps, format!("write {number} lands"), |next| {
                    next.lands(disk, number, leaf, dropped)
                }),
                _ => {}
            }
        }
        if process.commit.is_some() {
            self.offer(steps, format!("{disk} has committed"), |next| next.committed(disk, dropped));
        }
        if process.holding.holds_back() && !process.holding.is_held() && process.commit.is_none() {
            // There is no room to note what is on its way.
            self.offer(steps, format!("{disk} needs a commit"), |next| next.needs_commit(disk));
        }
        if self.left.troubles > 0 {
            self.offer(steps, format!("{disk} dies"), |next| {
                next.left.troubles -= 1;
                next.dies(disk);
            });
        }
        if self.left.troubles > 0 && !process.failed {
            self.offer(steps, format!("the storage of {disk} fails"), |next| next.fails(disk, dropped));
        }
        if dropped == Dropped::OnlyTheKeeper
            && !self.disks[disk].line.here
            && let Some(generation) = process.holding.quiesced()
        {
            self.offer(steps, format!("{disk} goes on by itself"), |next| {
                next.process(disk).holding.resume(generation, false);
                next.goes_on(disk);
            });
        }
    }

    fn comes(&mut self, disk: usize, number: usize) {
        let process = self.process(disk);
        let (held, leaf) = (process.holding.holds_back(), process.leaf);
        self.writes[number] = if held { Write::Held } else { Write::UnderWay(leaf) };
    }

    fn lands(&mut self, disk: usize, number: usize, leaf: Leaf, dropped: Dropped) -> Result<(), String> {
        if leaf != self.catalog {
            return Err(format!("write {number} lands in what is a base"));
        }
        self.writes[number] = Write::Answered { leaf, stored: false };
        self.pump(disk, dropped);
        Ok(())
    }

    fn unstored(&self, disk: usize) -> Vec<usize> {
        let unstored = |number: &usize| matches!(self.writes[*number], Write::Answered { stored: false, .. });
        self.writes_of(disk).filter(unstored).collect()
    }

    fn needs_commit(&mut self, disk: usize) {
        let covers = self.unstored(disk);
        self.process(disk).commit = (!covers.is_empty()).then_some(covers);
    }

    fn committed(&mut self, disk: usize, dropped: Dropped) {
        let process = self.process(disk);
        let Some(covers) = process.commit.take() else { return };
        process.ended = true;
        process.wanted &= dropped != Dropped::OwnCommit;
        for number in covers {
            if let Write::Answered { stored, .. } = &mut self.writes[number] {
                *stored = true;
            }
        }
        self.pump(disk, dropped);
    }

    /// What waits for the end of a process is sent again to its successor.
    pub(crate) fn dies(&mut self, disk: usize) {
        self.disks[disk].process = None;
        self.disks[disk].line.there = false;
        self.disks[disk].line.asked.clear();
        self.lose_unanswered(disk);
    }

    fn lose_unanswered(&mut self, disk: usize) {
        for number in self.writes_of(disk) {
            if matches!(self.writes[number], Write::Held | Write::UnderWay(_)) {
                self.writes[number] = Write::Unsent;
            }
        }
    }

    /// Nothing is written and stored any more; what is on its way fails.
    fn fails(&mut self, disk: usize, dropped: Dropped) {
        self.left.troubles -= 1;
        let process = self.process(disk);
        (process.failed, process.commit, process.wanted) = (true, None, false);
        if let Some(generation) = process.holding.failed() {
            process.answer(generation, Said::Trouble);
        }
        self.lose_unanswered(disk);
        self.pump(disk, dropped);
    }

    /// A process for a disk that has none: it stores what its predecessor has answered, if that belongs to its leaf (D8).
    pub(crate) fn succeed(&mut self, disk: usize, to: Leaf) -> Result<(), String> {
        for number in self.writes_of(disk) {
            if let Write::Answered { leaf, stored } = &mut self.writes[number]
                && !std::mem::replace(stored, true)
                && *leaf != to
            {
                return Err(format!("write {number} was answered and is lost"));
            }
        }
        self.disks[disk].process = Some(Process::new(to));
        Ok(())
    }

    fn hears(&mut self, disk: usize, cannot: bool, dropped: Dropped) -> Result<(), String> {
        let Some(asked) = self.disks[disk].line.asked.pop_front() else { return Ok(()) };
        let process = self.process(disk);
        let due = match asked {
            Asked::Hello => Due::Hello,
            Asked::Prepare { generation, leaf } => {
                process.holding.hear(generation);
                let taken = process.holding.prepare(generation, leaf);
                Due::Ready(if taken { Said::Done } else { Said::Trouble })
            }
            Asked::Quiesce { generation } => {
                match process.holding.hold_back(generation, generation, Purpose::Quiesce) {
                    Ok(_) if process.failed => {
                        process.holding.failed();
                        Due::Ready(Said::Trouble)
                    }
                    Ok(_) => {
                        (process.wanted, process.ended) = (true, false);
                        Due::Quiesce(generation)
                    }
                    Err(_) => Due::Ready(Said::Trouble),
                }
            }
            Asked::Resume { generation, swap } => Due::Ready(self.resumes(disk, generation, swap, cannot)?),
        };
        self.process(disk).due.push_back((true, due));
        self.pump(disk, dropped);
        Ok(())
    }

    fn resumes(&mut self, disk: usize, generation: u64, swap: bool, cannot: bool) -> Result<Said, String> {
        let process = self.process(disk);
        match process.holding.resume(generation, swap) {
            Resumed::Already => return Ok(Said::Done),
            Resumed::Refused => return Ok(Said::Trouble),
            Resumed::Kept { unanswered } => {
                if let Some(before) = unanswered {
                    process.answer(before, Said::Trouble);
                }
            }
            Resumed::Swap(_) if cannot => {
                self.left.troubles -= 1;
                return Ok(Said::Trouble);
            }
            Resumed::Swap(leaf) => {
                process.leaf = leaf;
                process.holding.swapped();
                let unstored =
                    |number: &usize| matches!(self.writes[*number], Write::Answered { stored: false, .. });
                if let Some(number) = self.writes_of(disk).find(unstored) {
                    return Err(format!("write {number} was answered and is never stored"));
                }
            }
        }
        self.goes_on(disk);
        Ok(Said::Done)
    }

    fn goes_on(&mut self, disk: usize) {
        let process = self.process(disk);
        let (failed, leaf) = (process.failed, process.leaf);
        for number in self.writes_of(disk) {
            if self.writes[number] == Write::Held {
                self.writes[number] = if failed { Write::Unsent } else { Write::UnderWay(leaf) };
            }
        }
    }

    /// Moves a hold and its commit on, and sends the answers whose turn it is.
    fn pump(&mut self, disk: usize, dropped: Dropped) {
        let of_disk: Vec<usize> = self.writes_of(disk).collect();
        let under_way = of_disk.iter().any(|&number| matches!(self.writes[number], Write::UnderWay(_)));
        let covers = self.unstored(disk);
        let process = self.process(disk);
        loop {
            if process.commit.is_none() && std::mem::take(&mut process.wanted) {
                process.ended = covers.is_empty();
                process.commit = (!covers.is_empty()).then(|| covers.clone());
            }
            let idle = !under_way || dropped == Dropped::Drain;
            let durable = match dropped {
                Dropped::Flush => true,
                Dropped::OwnCommit => process.ended,
                _ => process.commit.is_none(),
            };
            match process.holding.next(idle, durable, process.failed) {
                None => break,
                Some(Next::Commit) => (process.wanted, process.ended) = (true, false),
                Some(Next::Held(generation)) => process.answer(generation, Said::Quiesced),
                Some(Next::Failed(generation)) => process.answer(generation, Said::Trouble),
                Some(Next::Close(_)) => unreachable!("nobody stops it"),
            }
        }
        let Disk { process, line } = &mut self.disks[disk];
        let process = process.as_mut().unwrap();
        while let Some(&(connected, due)) = process.due.front() {
            let said = match due {
                Due::Ready(said) => said,
                Due::Hello => process.hello(),
                Due::Quiesce(_) => break,
            };
            process.due.pop_front();
            if connected && line.here {
                line.said.push_back(said);
            }
        }
    }
}
