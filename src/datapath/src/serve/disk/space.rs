//! Requests that wait for space: tried again about every second, while those that need none go on.

use super::Disk;
use super::task::Task;
use crate::serve::work::Trouble;
use catena_blockio::Engine;
use catena_control::News;
use std::time::{Duration, Instant};

/// How long after a refusal it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who waits for space.
#[derive(Default)]
pub(super) struct Space {
    /// Requests that wait.
    parked: Vec<usize>,
    /// Requests that are being tried again.
    trying: usize,
    /// The keeper was told that the storage is full.
    told: bool,
    again: Option<Instant>,
}

impl Space {
    /// When it is tried again.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.again
    }
}

impl Disk {
    /// The request waits for space. It holds nothing up meanwhile but those that overlap it: no change of the chain waits for it.
    pub(super) fn park(&mut self, index: usize, task: &mut Task) {
        if task.parked {
            return;
        }
        self.stops_trying(task);
        task.parked = true;
        self.leave_epoch(task);
        self.changing -= 1;
        self.space.parked.push(index);
        if self.awaits_device() {
            self.space.again = Some(Instant::now() + AGAIN);
        } else {
            self.storage_is_full();
        }
    }

    /// The storage has refused something.
    pub(super) fn storage_is_full(&mut self) {
        if !std::mem::replace(&mut self.space.told, true) {
            self.news.push(News::StorageFull);
        }
        self.space.again = Some(Instant::now() + AGAIN);
    }

    fn stops_trying(&mut self, task: &mut Task) {
        if std::mem::take(&mut task.retried) {
            self.space.trying -= 1;
        }
    }

    /// What the request was tried again for has worked, or it has ended.
    pub(super) fn went_well(&mut self, task: &mut Task) {
        self.stops_trying(task);
        self.maybe_free();
    }

    /// Says so, if nobody waits for space any more.
    pub(super) fn maybe_free(&mut self) {
        let commits_wait = self.targets.iter().any(|target| target.commits.is_full());
        let waits = !self.space.parked.is_empty() || self.space.trying > 0 || commits_wait;
        if self.space.told && !waits {
            (self.space.told, self.space.again) = (false, None);
            self.news.push(News::StorageFree);
        }
    }

    /// Tries again, if it is time. While writes are held back nothing new is begun.
    pub(super) fn retry(&mut self, now: Instant, engine: &mut dyn Engine) {
        if self.space.again.is_none_or(|again| again > now) {
            return;
        }
        self.space.again = None;
        self.retry_commits(engine);
        if self.holds_back() {
            self.space.again = (!self.space.parked.is_empty()).then(|| now + AGAIN);
        } else {
            self.unpark();
        }
    }

    /// Wakes all who wait for space.
    pub(super) fn unpark(&mut self) {
        for index in std::mem::take(&mut self.space.parked) {
            let Some(task) = self.tasks.get_mut(index) else { continue };
            (task.parked, task.retried) = (false, true);
            self.space.trying += 1;
            self.changing += 1;
            self.ready.push_back(index);
        }
    }

    /// Ends all who wait for space.
    pub(super) fn fail_parked(&mut self, trouble: Trouble) {
        let parked = self.space.parked.clone();
        self.unpark();
        for index in parked {
            self.trouble(index, trouble);
        }
    }
}
