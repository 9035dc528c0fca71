//! The merge: its stages and its windows, as in `disk/moving` and `disk/window`, with the functions of `disk/deciding`.

use super::super::super::deciding::{Left, may_be_copied, may_be_disturbed, may_be_given_up};
use super::images::{Bits, Wait};
use super::world::{At, BLOCK, Dropped, INTO, LEAF, PUNCHED, State, Steps, TORN, bits_of, set_of};
use catena_types::SectorSet;

/// By this the window has its lock.
const WINDOW: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Stage {
    /// Writes that were under way when it began end.
    #[default]
    Settling,
    /// All of the leaf is made durable, then counted.
    Surveying(Wait),
    Moving,
    Over,
    /// It is being ended.
    Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Locking,
    Copying,
    Storing(Wait),
    Stopping,
    /// The bits are written, and not yet durable.
    Clearing,
}

/// Sectors on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Window {
    step: Step,
    sectors: Bits,
    written: Bits,
    holds: bool,
    /// What the leaf gives up.
    gives_up: Bits,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Merge {
    pub(super) stage: Stage,
    /// Values of the writes that were under way when the stage began: it waits for them.
    older: Vec<u8>,
    window: Option<Window>,
    left: Left,
    owned: u64,
    copied: u64,
}

impl Merge {
    /// A guest writes to the leaf.
    pub(super) fn disturb(&mut self, sector: usize) {
        if let Some(window) = &mut self.window {
            window.written[sector] = true;
        }
    }

    /// Where it waits for a commit of the image.
    pub(super) fn wait_of(&mut self, image: usize) -> Option<&mut Wait> {
        match (&mut self.stage, &mut self.window) {
            (Stage::Surveying(wait), _) if image == LEAF => Some(wait),
            (_, Some(Window { step: Step::Storing(wait), .. })) if image == INTO => Some(wait),
            _ => None,
        }
    }
}

impl State {
    fn merging(&mut self) -> &mut Merge {
        self.merge.get_or_insert_default()
    }

    fn window(&mut self) -> &mut Window {
        self.merging().window.as_mut().unwrap()
    }

    /// Whether a give-up of the image is under way: commits take turns with it.
    pub(super) fn is_clearing(&self, image: usize) -> bool {
        let window = self.merge.as_ref().and_then(|merge| merge.window);
        image == LEAF && window.is_some_and(|window| window.step == Step::Clearing)
    }

    /// Writes that have got their place.
    fn routed(&self) -> Vec<u8> {
        self.tasks.iter().filter(|task| task.at != At::Start).map(|task| task.value).collect()
    }

    fn have_ended(&self, older: &[u8]) -> bool {
        !self.tasks.iter().any(|task| older.contains(&task.value))
    }

    pub(super) fn merge_steps(&self, dropped: Dropped, steps: &mut Steps) {
        let Some(merge) = &self.merge else {
            if self.left.merges > 0 && !self.completed {
                self.offer(steps, "a merge begins".to_owned(), |next| {
                    next.left.merges -= 1;
                    let older = next.routed();
                    next.merge = Some(Merge { older, ..Merge::default() });
                });
            }
            return;
        };
        if self.left.ends > 0 && merge.stage != Stage::Leaving {
            self.offer(steps, "the merge is ended".to_owned(), |next| {
                next.left.ends -= 1;
                let older = next.routed();
                let merge = next.merging();
                (merge.stage, merge.older) = (Stage::Leaving, older);
            });
        }
        if merge.window.is_some() {
            return self.window_steps(merge, dropped, steps);
        }
        match merge.stage {
            Stage::Settling if self.have_ended(&merge.older) || dropped == Dropped::Settle => {
                self.offer(steps, "the leaf is made durable".to_owned(), |next| {
                    let skip = dropped == Dropped::NothingNotedOfLeaf;
                    next.merging().stage = Stage::Surveying(if skip { Wait::Over } else { Wait::Next });
                });
            }
            Stage::Surveying(Wait::Over) => self.offer(steps, "the leaf is counted".to_owned(), Self::count),
            Stage::Moving => self.venture(steps, "a window is picked".to_owned(), |next| next.pick(dropped)),
            Stage::Over => self.venture(steps, "COMMIT: the disk is P".to_owned(), Self::complete),
            Stage::Leaving => {
                let stored = self.images[INTO].is_stored() && self.have_ended(&merge.older);
                if stored && !self.is_waited_for(INTO) || dropped == Dropped::LeaveStored {
                    self.venture(steps, "P is given up".to_owned(), Self::left_merge);
                }
            }
            _ => {}
        }
    }

    /// The leaf is dropped from the chain.
    fn complete(&mut self) -> Result<(), String> {
        (self.completed, self.merge) = (true, None);
        if let Some(flush) = &mut self.flush {
            flush.waits[LEAF] = Wait::Over;
        }
        self.end_flush();
        let lost = self.tasks.iter().any(|task| task.at == At::Landing(LEAF));
        if lost { Err("a write is on its way to a leaf that is dropped".to_owned()) } else { Ok(()) }
    }

    /// Whether a commit is wanted so that the image can be given up.
    pub(super) fn is_hurried(&self, image: usize) -> bool {
        let leaves = self.merge.as_ref().is_some_and(|merge| merge.stage == Stage::Leaving);
        image == INTO && leaves && !self.images[INTO].is_stored()
    }

    fn left_merge(&mut self) -> Result<(), String> {
        self.merge = None;
        if let Some(flush) = &mut self.flush {
            flush.waits[INTO] = Wait::Over;
        }
        self.end_flush();
        let lost = self.tasks.iter().any(|task| task.at == At::Landing(INTO));
        if lost || self.images[INTO].has_notes() {
            return Err("something is on its way to P, which is given up".to_owned());
        }
        Ok(())
    }

    fn count(&mut self) {
        let owned = set_of(self.images[LEAF].owns()).count();
        let merge = self.merging();
        merge.left.add(BLOCK, owned);
        merge.owned = merge.left.bytes();
        merge.stage = if owned == 0 { Stage::Over } else { Stage::Moving };
    }

    fn pick(&mut self, dropped: Dropped) -> Result<(), String> {
        let owned = set_of(self.images[LEAF].owns());
        let changing = match dropped {
            Dropped::NotWhatIsBeingWritten => SectorSet::empty(),
            _ => self.locks.changing(BLOCK),
        };
        let merge = self.merging();
        let bytes = owned.count() as u64 * 512;
        let blocks = merge.left.window();
        assert_eq!(blocks, [BLOCK], "something is left");
        let mut holds = !may_be_disturbed(merge.copied, bytes, merge.left.bytes(), merge.owned);
        holds &= dropped != Dropped::HoldBack;
        let mut sectors = bits_of(&may_be_copied(&owned, &changing, holds));
        if sectors == [false; 2] {
            holds = true;
            sectors = bits_of(&may_be_copied(&owned, &changing, holds));
        }
        if sectors == [false; 2] {
            return Ok(());
        }
        let none = [false; 2];
        merge.window = Some(Window { step: Step::Locking, sectors, written: none, holds, gives_up: none });
        if holds {
            self.lock_block(WINDOW);
            return Ok(());
        }
        self.begin_copy()
    }

    fn begin_copy(&mut self) -> Result<(), String> {
        self.window().step = Step::Copying;
        let sectors = self.window().sectors;
        let merge = self.merging();
        merge.copied += set_of(sectors).count() as u64 * 512;
        if merge.copied > 2 * merge.owned {
            return Err("more is copied than twice what there was".to_owned());
        }
        Ok(())
    }

    fn window_steps(&self, merge: &Merge, dropped: Dropped, steps: &mut Steps) {
        let Some(window) = merge.window else { return };
        let ending = merge.stage == Stage::Leaving;
        if ending && !matches!(window.step, Step::Copying | Step::Storing(_) | Step::Clearing) {
            return self.offer(steps, "the window is dropped".to_owned(), Self::end_window);
        }
        let has_lock = self.locks.has(WINDOW);
        match window.step {
            Step::Locking if has_lock => {
                self.venture(steps, "the window is locked".to_owned(), |next| {
                    if dropped != Dropped::SinceTheLock {
                        next.window().written = [false; 2];
                    }
                    next.begin_copy()
                });
            }
            Step::Copying if ending => self.offer(steps, "the window is copied".to_owned(), |next| {
                next.copy();
                next.end_window();
            }),
            Step::Copying => self.offer(steps, "the window is copied".to_owned(), |next| {
                next.copy();
                next.note(dropped);
            }),
            Step::Stopping if has_lock || dropped == Dropped::LockToClear => {
                self.clear_steps(window, dropped, steps);
            }
            Step::Clearing => self.offer(steps, "that is durable".to_owned(), |next| next.cleared(dropped)),
            _ => {}
        }
    }

    /// A commit has ended: the window may have waited for it.
    pub(super) fn is_durable(&mut self, dropped: Dropped) {
        let window = self.merge.as_mut().and_then(|merge| merge.window.as_mut());
        let Some(window) = window.filter(|window| window.step == Step::Storing(Wait::Over)) else { return };
        window.step = Step::Stopping;
        let locks = !window.holds && dropped != Dropped::LockToClear;
        if locks {
            self.lock_block(WINDOW);
        }
    }

    fn copy(&mut self) {
        let sectors = self.window().sectors;
        for sector in (0..2).filter(|&sector| sectors[sector]) {
            let lands = self.tasks.iter().any(|task| task.sector == sector && task.at == At::Landing(LEAF));
            let value = if lands { TORN } else { self.images[LEAF].data[sector].now };
            self.images[INTO].data[sector].put(value);
        }
        self.images[INTO].unflushed = true;
    }

    fn gives_up(&mut self, dropped: Dropped) -> Bits {
        let window = self.window();
        let written = if dropped == Dropped::NotWhatWasWritten { [false; 2] } else { window.written };
        bits_of(&may_be_given_up(&set_of(window.sectors), &set_of(written)))
    }

    fn note(&mut self, dropped: Dropped) {
        let new = self.gives_up(dropped);
        for sector in (0..2).filter(|&sector| new[sector]) {
            self.images[INTO].wrote(sector, false);
        }
        let skip = dropped == Dropped::StoredFirst;
        self.window().step = Step::Storing(if skip { Wait::Over } else { Wait::Next });
        self.is_durable(dropped);
    }

    fn clear_steps(&self, window: Window, dropped: Dropped, steps: &mut Steps) {
        let leaf = &self.images[LEAF];
        // What is noted there is stored first; a commit takes its turn.
        let notes = leaf.has_notes() && dropped != Dropped::NothingNotedOfLeaf;
        if leaf.commit.is_some() || notes {
            return;
        }
        self.offer(steps, format!("bits of the leaf are cleared: {:?}", window.sectors), |next| {
            let gives_up = next.gives_up(dropped);
            if gives_up == [false; 2] {
                return next.end_window();
            }
            next.images[LEAF].clear(gives_up);
            let window = next.window();
            (window.gives_up, window.step) = (gives_up, Step::Clearing);
        });
    }

    fn cleared(&mut self, dropped: Dropped) {
        if dropped != Dropped::ClearFirst {
            self.images[LEAF].flush();
        }
        let gone = self.window().gives_up;
        for sector in (0..2).filter(|&sector| gone[sector]) {
            self.images[LEAF].data[sector].put(PUNCHED);
        }
        let merge = self.merging();
        merge.left.take(BLOCK, set_of(gone).count());
        if merge.stage == Stage::Moving && merge.left.bytes() == 0 {
            merge.stage = Stage::Over;
        }
        self.end_window();
    }

    fn end_window(&mut self) {
        self.locks.release(WINDOW, &mut Vec::new());
        self.merging().window = None;
    }
}
