//! A keeper that takes snapshots of all disks at one instant, and looks after their processes: as in
//! `keeper/{pausing,adoption}`, one message at a time, with [`Pause`] and [`found`].

use crate::world::{Asked, Dropped, Leaf, Said, State, Steps, image, vdi};
use catena_control::{Found, Hello, Member, Pause, found};

/// What it does after it has looked for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Then {
    /// It has just started, and looks for the next.
    Start,
    Rest,
    /// The disk is prepared.
    Prepare,
}

/// What it does next, or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Rest,
    /// A set: each disk is prepared, all are asked to be quiesced, all are waited for.
    Prepare(usize),
    Prepared(usize),
    Quiesce(usize),
    Quiesced {
        disk: usize,
        asked: usize,
        failed: bool,
    },
    Commit,
    /// The end of a pause: all are told, then all are waited for.
    Resume {
        disk: usize,
        told: u8,
    },
    Resumed {
        disk: usize,
        told: u8,
    },
    /// Looking for a process, or starting one.
    Find(usize, Then),
    Hello {
        disk: usize,
        then: Then,
        again: bool,
    },
    Told(usize, Then),
}

/// A disk as the keeper sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Served {
    link: bool,
    /// An answer was not waited for.
    owed: bool,
    generation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Keeper {
    at: At,
    /// What the catalog says, as far as it is known.
    view: Leaf,
    doubtful: bool,
    /// What the snapshot under way gives the disks, and its pause.
    makes: Leaf,
    pause: Pause,
    served: Vec<Served>,
}

impl Keeper {
    /// One that serves so many disks.
    pub(crate) fn serving(disks: usize) -> Self {
        let served = vec![Served { link: true, ..Served::default() }; disks];
        Self { at: At::Rest, view: 0, doubtful: false, makes: 0, pause: Pause::default(), served }
    }

    /// One that has just started.
    fn new(view: Leaf, disks: usize) -> Self {
        let served = vec![Served::default(); disks];
        Self { at: At::Find(0, Then::Start), view, served, ..Self::serving(0) }
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.at == At::Rest && !self.doubtful && self.served.iter().all(|served| served.link)
    }

    /// What it does after it has looked for the disk's process.
    fn looked(&mut self, disk: usize, then: Then, found: bool) {
        self.at = match then {
            Then::Start if disk + 1 < self.served.len() => At::Find(disk + 1, Then::Start),
            Then::Start | Then::Rest => At::Rest,
            Then::Prepare if found => At::Prepare(disk),
            Then::Prepare => At::Resume { disk: 0, told: 0 },
        };
    }
}

impl State {
    fn keeper(&mut self) -> &mut Keeper {
        self.keeper.as_mut().unwrap()
    }

    fn lose(&mut self, disk: usize) {
        let served = &mut self.keeper().served[disk];
        (served.link, served.owed) = (false, false);
        self.disks[disk].line.here = false;
        self.disks[disk].line.said.clear();
    }

    /// Sends a question; false if nobody is there.
    fn put(&mut self, disk: usize, asked: Asked) -> bool {
        let line = &mut self.disks[disk].line;
        let sent = line.here && line.there;
        if sent {
            line.asked.push_back(asked);
        }
        sent
    }

    /// The answer of a disk; `None`: it is gone, or not waited for any more.
    fn awaits(&self, disk: usize, steps: &mut Steps, then: impl FnOnce(&mut Self, Option<Said>)) {
        let line = &self.disks[disk].line;
        if let Some(said) = line.said.front() {
            self.offer(steps, format!("keeper hears {said:?} of {disk}"), |next| {
                let said = next.disks[disk].line.said.pop_front();
                then(next, said);
            });
        } else {
            let gone = !line.there;
            let what = if gone { "is told that it is gone" } else { "waits no longer" };
            self.offer(steps, format!("keeper asks {disk} and {what}"), |next| {
                next.keeper().served[disk].owed = !gone;
                then(next, None);
            });
        }
    }

    pub(crate) fn keeper_steps(&self, dropped: Dropped, steps: &mut Steps) {
        let Some(keeper) = &self.keeper else {
            return self.offer(steps, "a keeper starts".to_owned(), |next| {
                next.keeper = Some(Keeper::new(next.catalog, next.disks.len()));
            });
        };
        if self.left.ends > 0 {
            self.offer(steps, "the keeper dies".to_owned(), |next| {
                next.left.ends -= 1;
                (0..next.disks.len()).for_each(|disk| next.lose(disk));
                next.keeper = None;
            });
        }
        match keeper.at {
            At::Rest => self.rest(keeper, dropped, steps),
            At::Prepare(disk) => {
                self.offer(steps, format!("keeper prepares {disk}"), |next| next.prepare(disk));
            }
            At::Prepared(disk) => self.awaits(disk, steps, |next, said| {
                let good = said == Some(Said::Done);
                let last = disk + 1 == next.disks.len();
                next.keeper().at = match (good, last) {
                    (false, _) => At::Resume { disk: 0, told: 0 },
                    (true, true) => At::Quiesce(0),
                    (true, false) => At::Prepare(disk + 1),
                };
            }),
            At::Quiesce(disk) => {
                self.offer(steps, format!("keeper quiesces {disk}"), |next| next.quiesce(disk));
            }
            At::Quiesced { disk, asked, failed } => {
                self.replace_members(dropped, steps);
                self.awaits(disk, steps, |next, said| {
                    next.is_quiesced(disk, asked, failed, said, dropped);
                });
            }
            At::Commit => {
                self.replace_members(dropped, steps);
                self.commit(keeper, dropped, steps);
            }
            At::Resume { disk, told } => {
                self.offer(steps, format!("keeper resumes {disk}"), |next| next.resume(disk, told));
            }
            At::Resumed { disk, told } if told >> disk & 1 == 1 => self.awaits(disk, steps, |next, said| {
                if said != Some(Said::Done) {
                    next.lose(disk);
                }
                next.resumed(disk + 1, told);
            }),
            At::Resumed { disk, told } => {
                self.offer(steps, format!("keeper does not wait for {disk}"), |next| {
                    next.resumed(disk + 1, told);
                });
            }
            At::Find(disk, then) => self.find(disk, then, steps),
            At::Hello { disk, then, again } => self.awaits(disk, steps, |next, said| {
                next.heard(disk, then, again, said, dropped);
            }),
            At::Told(disk, then) => self.awaits(disk, steps, |next, said| {
                next.is_told(disk, then, said);
            }),
        }
    }

    fn rest(&self, keeper: &Keeper, dropped: Dropped, steps: &mut Steps) {
        if self.attempts < self.left.attempts && !keeper.doubtful {
            self.offer(steps, "a snapshot is asked for".to_owned(), |next| {
                next.attempts += 1;
                let makes = next.attempts;
                let keeper = next.keeper();
                (keeper.makes, keeper.at) = (makes, At::Prepare(0));
            });
        }
        if keeper.doubtful {
            self.offer(steps, "keeper learns what the catalog says".to_owned(), |next| {
                let view = next.catalog;
                let keeper = next.keeper();
                (keeper.view, keeper.doubtful) = (view, false);
                keeper.at = At::Resume { disk: 0, told: 0 };
            });
        }
        for (disk, served) in keeper.served.iter().enumerate() {
            if served.link && !self.disks[disk].line.there {
                self.offer(steps, format!("keeper hears the end of {disk}"), |next| next.lose(disk));
            }
            // D20: no successor for a member while the set is undecided.
            let undecided = keeper.pause.holds(vdi(disk)) && dropped != Dropped::NoSuccessor;
            if !served.link && !undecided {
                self.offer(steps, format!("keeper looks after {disk}"), |next| {
                    next.keeper().at = At::Find(disk, Then::Rest);
                });
            }
        }
    }

    fn prepare(&mut self, disk: usize) {
        let keeper = self.keeper();
        if !keeper.served[disk].link {
            keeper.at = At::Find(disk, Then::Prepare);
            return;
        }
        keeper.served[disk].generation += 1;
        let (generation, leaf) = (keeper.served[disk].generation, keeper.makes);
        keeper.pause.add(vdi(disk), image(leaf), generation);
        let sent = self.put(disk, Asked::Prepare { generation, leaf });
        self.keeper().at = if sent { At::Prepared(disk) } else { At::Resume { disk: 0, told: 0 } };
    }

    fn quiesce(&mut self, disk: usize) {
        let generation = self.keeper().served[disk].generation;
        let sent = self.put(disk, Asked::Quiesce { generation });
        let disks = self.disks.len();
        self.keeper().at = match disk {
            _ if sent && disk + 1 < disks => At::Quiesce(disk + 1),
            _ if sent => At::Quiesced { disk: 0, asked: disks, failed: false },
            0 => At::Resume { disk: 0, told: 0 },
            _ => At::Quiesced { disk: 0, asked: disk, failed: true },
        };
    }

    fn is_quiesced(&mut self, disk: usize, asked: usize, failed: bool, said: Option<Said>, dropped: Dropped) {
        let good = said == Some(Said::Quiesced);
        let keeper = self.keeper();
        if good {
            keeper.pause.is_quiesced(vdi(disk));
        }
        let failed = failed || !good;
        keeper.at = if disk + 1 < asked {
            At::Quiesced { disk: disk + 1, asked, failed }
        } else if failed && dropped != Dropped::Everybody {
            At::Resume { disk: 0, told: 0 }
        } else {
            At::Commit
        };
    }

    /// What a keeper must not do.
    fn replace_members(&self, dropped: Dropped, steps: &mut Steps) {
        let dead = (0..self.disks.len()).filter(|&disk| self.disks[disk].process.is_none());
        for disk in dead.filter(|_| dropped == Dropped::SameProcess) {
            self.venture(steps, format!("keeper replaces {disk}"), |next| {
                let view = next.keeper().view;
                next.disks[disk].line.there = true;
                next.succeed(disk, view)
            });
        }
    }

    fn commit(&self, keeper: &Keeper, dropped: Dropped, steps: &mut Steps) {
        let ends = |next: &mut Self| next.keeper().at = At::Resume { disk: 0, told: 0 };
        // The end of a process may have been heard of, or not yet.
        let link = |disk: usize| keeper.served[disk].link;
        let alive = (0..self.disks.len()).all(|disk| self.disks[disk].line.there);
        let may =
            keeper.pause.objection(|of| (0..self.disks.len()).any(|disk| vdi(disk) == of && link(disk)));
        if !alive || may.is_some() {
            self.offer(steps, "keeper misses somebody".to_owned(), ends);
        }
        if may.is_some() && dropped != Dropped::Everybody {
            return;
        }
        self.offer(steps, "the commit is refused".to_owned(), ends);
        self.offer(steps, "COMMIT".to_owned(), |next| {
            next.catalog = keeper.makes;
            next.keeper().view = keeper.makes;
            ends(next);
        });
        for made in [false, true] {
            if self.left.troubles == 0 {
                break;
            }
            let name = format!("the outcome of the commit is unknown (made: {made})");
            self.offer(steps, name, |next| {
                next.left.troubles -= 1;
                if made {
                    next.catalog = keeper.makes;
                }
                if dropped == Dropped::Decided {
                    return ends(next);
                }
                (next.keeper().doubtful, next.keeper().at) = (true, At::Rest);
            });
        }
    }

    fn members(&mut self) -> Vec<Member> {
        self.keeper().pause.members().collect()
    }

    fn resume(&mut self, disk: usize, told: u8) {
        let Some(member) = self.members().get(disk).copied() else { return self.resumed(0, told) };
        let swap = member.swaps(Some(image(self.keeper().view)));
        let generation = member.generation;
        let sent = self.put(disk, Asked::Resume { generation, swap });
        let waited_for = sent && !self.keeper().served[disk].owed;
        if !waited_for {
            self.lose(disk);
        }
        self.keeper().at = At::Resume { disk: disk + 1, told: told | u8::from(waited_for) << disk };
    }

    fn resumed(&mut self, disk: usize, told: u8) {
        let over = disk >= self.members().len();
        let keeper = self.keeper();
        keeper.at = At::Resumed { disk, told };
        if over {
            (keeper.pause, keeper.makes, keeper.at) = (Pause::default(), 0, At::Rest);
        }
    }

    fn find(&self, disk: usize, then: Then, steps: &mut Steps) {
        if self.disks[disk].process.is_some() {
            return self.offer(steps, format!("keeper connects to {disk}"), |next| {
                let there = &mut next.disks[disk];
                if let Some(process) = &mut there.process {
                    process.is_connected_anew();
                }
                (there.line.here, there.line.there) = (true, true);
                there.line.said.clear();
                there.line.asked = [Asked::Hello].into();
                next.keeper().at = At::Hello { disk, then, again: false };
            });
        }
        if then == Then::Start {
            return self.offer(steps, format!("keeper finds nobody for {disk}"), |next| {
                next.keeper().looked(disk, then, false);
            });
        }
        self.venture(steps, format!("keeper starts {disk}"), |next| {
            let view = next.keeper().view;
            next.succeed(disk, view)
        });
    }

    fn is_told(&mut self, disk: usize, then: Then, said: Option<Said>) {
        if said == Some(Said::Done) && self.put(disk, Asked::Hello) {
            self.keeper().at = At::Hello { disk, then, again: true };
        } else {
            self.lose(disk);
            self.keeper().looked(disk, then, false);
        }
    }

    fn heard(&mut self, disk: usize, then: Then, again: bool, said: Option<Said>, dropped: Dropped) {
        let Some(Said::Hello { generation, leaf, prepared, quiesced }) = said else {
            self.lose(disk);
            return self.keeper().looked(disk, then, false);
        };
        let hello = Hello {
            vdi: vdi(disk),
            pid: 1,
            read_only: false,
            generation,
            chain: vec![image(leaf)],
            prepared: prepared.map(image),
            quiesced,
            moving_into: None,
            failed: None,
            size: None,
        };
        let keeper = self.keeper();
        let served = &mut keeper.served[disk];
        served.generation = served.generation.max(generation);
        let mut now = found(&hello, image(keeper.view));
        let waits = prepared.is_some() || quiesced.is_some();
        let as_before = Found::Resume { generation: quiesced.unwrap_or(generation), swap: false };
        match dropped {
            Dropped::AskTheCatalog if waits => now = as_before,
            Dropped::AskTheCatalog => now = Found::Serves,
            Dropped::EndStrays if waits && now == Found::Strays => now = as_before,
            _ => {}
        }
        match now {
            Found::Serves => {
                served.link = true;
                keeper.looked(disk, then, true);
            }
            Found::Resume { generation, swap }
                if !again && self.put(disk, Asked::Resume { generation, swap }) =>
            {
                self.keeper().at = At::Told(disk, then);
            }
            other => {
                if again || other == Found::Strays {
                    self.dies(disk);
                }
                self.lose(disk);
                self.keeper().looked(disk, then, false);
            }
        }
    }
}
