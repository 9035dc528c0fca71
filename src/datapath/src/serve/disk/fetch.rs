//! Finding out who owns a range, and reading it.
//!
//! Bitmaps that are not in memory are read for all images at once, each of them once however many requests wait for it. Then
//! there is one read for each run; what nobody owns takes none.

use super::task::{Beneath, Poll, Survey, Task, index};
use super::{Disk, Waiting};
use crate::serve::work::{Segment, Trouble};
use catena_blockio::{Completion, Engine, Op};
use catena_chain::{Extent, Look, Run, Slot};
use catena_types::{BlockIndex, FileOffset, SECTOR_BYTES};
use std::ops::Range;

/// What is read to find one bitmap: the page around it, which direct I/O can read at once.
const PAGE: u64 = 4096;

/// Bytes of the disk, while they are being read.
#[derive(Debug)]
pub(super) struct Fetch {
    range: Range<u64>,
    survey: Survey,
    segments: Vec<Option<Segment>>,
    begun: bool,
    under_way: usize,
    failed: bool,
}

impl Fetch {
    pub(super) fn of(range: Range<u64>) -> Self {
        let survey = Survey::of(range.clone());
        Self { range, survey, segments: Vec::new(), begun: false, under_way: 0, failed: false }
    }

    /// Whether reads of it have not come back.
    pub(super) const fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// What was read. A segment is missing only where the read failed.
    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments.into_iter().flatten().collect()
    }
}

/// A bitmap or a piece of a block table that is being read, and the requests that wait for it.
pub(super) struct Learning {
    pub(super) block: BlockIndex,
    /// Bytes.
    pub(super) len: u32,
    pub(super) waiters: Vec<usize>,
}

impl Disk {
    /// Brings a survey on.
    pub(super) fn survey(
        &mut self,
        index: usize,
        task: &mut Task,
        survey: &mut Survey,
        engine: &mut dyn Engine,
    ) -> Poll {
        if let Some(poll) = self.survey_learns(task, survey) {
            return poll;
        }
        self.enter_epoch(task);
        survey.is_of(self.epoch);
        for (block, sectors) in std::mem::take(&mut survey.todo) {
            match self.layers.look(block, sectors.clone()) {
                Ok(Look::Runs(runs)) => survey.found.extend(runs.map(|run| (block, run))),
                Ok(Look::Missing(missing)) => {
                    survey.todo.push((block, sectors));
                    self.learn_all(index, task, block, missing, engine);
                }
                Err(error) => {
                    survey.todo.push((block, sectors));
                    self.cannot_look(task, &error);
                }
            }
        }
        if let Some(poll) = self.survey_learns(task, survey) {
            return poll;
        }
        survey.found.sort_by_key(|(block, run)| (*block, run.sectors.start));
        Poll::Ready
    }

    /// Where a survey stands with what it waits for. What cannot be read of an image fails it only where the sectors may be that image's
    /// or those of one below: an image that is broken breaks nothing that lies above it.
    fn survey_learns(&mut self, task: &mut Task, survey: &mut Survey) -> Option<Poll> {
        match task.learns()? {
            Poll::Failed(_) if self.survey_above_unknown(task, survey) => Some(Poll::Ready),
            poll => Some(poll),
        }
    }

    /// The rest of a survey from what is known already; false where that does not do.
    fn survey_above_unknown(&mut self, task: &mut Task, survey: &mut Survey) -> bool {
        self.enter_epoch(task);
        survey.is_of(self.epoch);
        for (block, sectors) in &survey.todo {
            let Some(runs) = self.layers.look_above_unknown(*block, sectors.clone()) else { return false };
            survey.found.extend(runs.into_iter().map(|run| (*block, run)));
        }
        survey.todo.clear();
        survey.found.sort_by_key(|(block, run)| (*block, run.sectors.start));
        task.unread = false;
        true
    }

    /// The same for what is owned below an image.
    pub(super) fn survey_beneath(
        &mut self,
        index: usize,
        task: &mut Task,
        above: Slot,
        beneath: &mut Beneath,
        engine: &mut dyn Engine,
    ) -> Poll {
        if let Some(poll) = task.learns() {
            return poll;
        }
        self.enter_epoch(task);
        beneath.is_of(self.epoch);
        for block in std::mem::take(&mut beneath.todo) {
            match self.layers.beneath(above, block) {
                Ok(catena_chain::Beneath::Owned(set)) => drop(beneath.found.insert(block, *set)),
                Ok(catena_chain::Beneath::Missing(missing)) => {
                    beneath.todo.push(block);
                    self.learn_all(index, task, block, missing, engine);
                }
                Err(error) => self.cannot_look(task, &error),
            }
        }
        task.learns().unwrap_or(Poll::Ready)
    }

    fn cannot_look(&self, task: &mut Task, error: &catena_chain::Error) {
        self.note_failure(&format!("an image cannot be read: {error}"));
        task.unread = true;
    }

    fn learn_all(
        &mut self,
        index: usize,
        task: &mut Task,
        block: BlockIndex,
        missing: Vec<(Slot, Extent)>,
        engine: &mut dyn Engine,
    ) {
        for (slot, at) in missing {
            self.learn(index, task, slot, block, at, engine);
        }
    }

    /// Has a bitmap or a piece of a block table read, once for all who want to know it.
    pub(super) fn learn(
        &mut self,
        index: usize,
        task: &mut Task,
        slot: Slot,
        block: BlockIndex,
        wanted: Extent,
        engine: &mut dyn Engine,
    ) {
        let Extent { at, len } = wanted;
        let Some(container) = self.layers.container(slot) else {
            task.unread = true;
            return;
        };
        task.learning += 1;
        if let Some(learning) = self.learning.get_mut(&(slot, at)) {
            learning.waiters.push(index);
            return;
        }
        self.learning.insert((slot, at), Learning { block, len, waiters: vec![index] });
        let page = FileOffset(at.0 / PAGE * PAGE);
        let length = (at.0 - page.0 + u64::from(len)).next_multiple_of(PAGE);
        let buf = self.pool.take(self::index(length));
        let range = 0..buf.len();
        let op = Op::Read { container: container.clone(), at: page, buf, range };
        self.start(Waiting::Bitmap { slot, at }, op, engine);
    }

    /// It was read, or could not be.
    pub(super) fn learned(&mut self, slot: Slot, at: FileOffset, completion: Completion) {
        let Some(learning) = self.learning.remove(&(slot, at)) else { return };
        let start = index(at.0 % PAGE);
        let raw = completion.buf.as_ref().and_then(|buf| buf.get(start..start + learning.len as usize));
        let learnt = match (&completion.result, raw) {
            (Ok(()), Some(raw)) => {
                self.layers.learn(slot, learning.block, at, raw).map_err(|error| error.to_string())
            }
            (Err(error), _) => Err(error.to_string()),
            (Ok(()), None) => Err("a read came back without its bytes".to_owned()),
        };
        if let Err(error) = &learnt {
            self.note_failure(&format!(
                "what an image owns of block {} cannot be read: {error}",
                learning.block.0
            ));
        }
        if let Some(buf) = completion.buf {
            self.pool.give(buf);
        }
        for waiter in learning.waiters {
            if let Some(task) = self.tasks.get_mut(waiter) {
                task.learning -= 1;
                task.unread |= learnt.is_err();
                self.ready.push_back(waiter);
            }
        }
    }

    /// Brings the reading of a range on.
    pub(super) fn fetch(&mut self, index: usize, task: &mut Task, engine: &mut dyn Engine) -> Poll {
        let Some(mut fetch) = task.fetch.take() else { return Poll::Ready };
        if !fetch.begun {
            let poll = self.survey(index, task, &mut fetch.survey, engine);
            if poll != Poll::Ready {
                task.fetch = Some(fetch);
                return poll;
            }
            self.begin_fetch(index, &mut fetch, engine);
        }
        let poll = match (fetch.under_way, fetch.failed) {
            (0, false) => Poll::Ready,
            (0, true) => Poll::Failed(Trouble::Io),
            _ => Poll::Pending,
        };
        task.fetch = Some(fetch);
        poll
    }

    fn begin_fetch(&mut self, index: usize, fetch: &mut Fetch, engine: &mut dyn Engine) {
        fetch.begun = true;
        for (block, run) in std::mem::take(&mut fetch.survey.found) {
            let start = block.start().0;
            let bytes = |sector: usize| start + sector as u64 * SECTOR_BYTES;
            let wanted =
                bytes(run.sectors.start).max(fetch.range.start)..bytes(run.sectors.end).min(fetch.range.end);
            self.fetch_run(index, fetch, block, &run, wanted, engine);
        }
    }

    /// Has the wanted bytes of one run read, without what the container does not have of them.
    fn fetch_run(
        &mut self,
        index: usize,
        fetch: &mut Fetch,
        block: BlockIndex,
        run: &Run,
        wanted: Range<u64>,
        engine: &mut dyn Engine,
    ) {
        let length = wanted.end - wanted.start;
        let inside = wanted.start - block.start().0;
        let extent = run.owner.and_then(|slot| self.layers.locate(slot, block));
        let there = extent.map_or(0, |extent| u64::from(extent.len).saturating_sub(inside).min(length));
        if let (Some(extent), Some(container)) =
            (extent, run.owner.and_then(|slot| self.layers.container(slot)))
            && there > 0
        {
            // What direct I/O can read at once; what lies around is cut off.
            let unit = container.alignment().max(1) as u64;
            let at = extent.at.0 + inside;
            let from = at / unit * unit;
            let buf = self.pool.take(self::index((at + there).next_multiple_of(unit) - from));
            let part = fetch.segments.len();
            fetch.segments.push(None);
            fetch.under_way += 1;
            let range = 0..buf.len();
            let op = Op::Read { container: container.clone(), at: FileOffset(from), buf, range };
            let skip = self::index(at - from);
            self.start(
                Waiting::Data { task: index, part, range: skip..skip + self::index(there) },
                op,
                engine,
            );
        }
        if there < length {
            fetch.segments.push(Some(Segment::Zeros(self::index(length - there))));
        }
    }

    /// A run was read, or could not be.
    pub(super) fn fetched(
        &mut self,
        waiter: usize,
        part: usize,
        range: Range<usize>,
        completion: Completion,
    ) {
        if let Err(error) = &completion.result {
            self.note_failure(&format!("reading failed: {error}"));
        }
        let Some(fetch) = self.tasks.get_mut(waiter).and_then(|task| task.fetch.as_mut()) else { return };
        fetch.under_way -= 1;
        match (completion.result, completion.buf) {
            (Ok(()), Some(buf)) => fetch.segments[part] = Some(Segment::Bytes { buf, range }),
            _ => fetch.failed = true,
        }
        if fetch.under_way == 0 {
            self.ready.push_back(waiter);
        }
    }
}

/// Copies what was read into one run of bytes.
pub(super) fn gather(segments: Vec<Segment>, into: &mut [u8]) {
    let mut at = 0;
    for segment in segments {
        match segment {
            Segment::Bytes { buf, range } => {
                let length = range.len();
                into[at..at + length].copy_from_slice(&buf[range]);
                at += length;
            }
            Segment::Zeros(length) => {
                into[at..at + length].fill(0);
                at += length;
            }
        }
    }
}
