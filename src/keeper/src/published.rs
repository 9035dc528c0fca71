//! The snapshot that lists and records are answered from: published by the owner after every commit, read by the reader
//! thread without waiting for anybody.

use crate::cgroup::Group;
use crate::views::View;
use catena_catalog::State;
use catena_coalesce::Moment;
use catena_control::Progress;
use catena_sr_api::StoreStat;
use catena_types::{Bytes, JobId, SrUuid};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What does not change while the SR is attached, its devices excepted: it may get more.
#[derive(Debug, Clone)]
pub(crate) struct SrFacts {
    /// Its id.
    pub(crate) uuid: SrUuid,
    /// The back end.
    pub(crate) kind: String,
    /// Where it is.
    pub(crate) location: String,
    /// Its devices, where it lies on devices.
    pub(crate) devices: Vec<String>,
    /// Whether blocks can be shared.
    pub(crate) reflink: bool,
    /// The device number of the file system that it is on.
    pub(crate) device: u64,
    /// The control group of its merges, if there is one.
    pub(crate) group: Option<Arc<Group>>,
}

impl SrFacts {
    /// The first eight digits: what job and event ids begin with.
    pub(crate) fn short(&self) -> String {
        self.uuid.to_string().chars().take(8).collect()
    }
}

/// How far a long job is, and how fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    /// The worker's last word.
    pub(crate) progress: Progress,
    /// Bytes a second, lately.
    pub(crate) rate: Bytes,
    /// When the last word came.
    pub(crate) updated: Timestamp,
    /// Its process.
    pub(crate) pid: u32,
    measured: Instant,
    measured_at: u64,
    told: Instant,
}

/// How often watchers of events hear of a long job.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl Live {
    /// A job that has just begun.
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            pid,
            progress: Progress::default(),
            rate: Bytes(0),
            updated: Timestamp::now(),
            measured: Instant::now(),
            measured_at: 0,
            told: Instant::now(),
        }
    }

    /// What watchers of events are told, once a second: bytes, rate and time left.
    pub(crate) fn news(&mut self) -> Option<String> {
        if self.told.elapsed() < TELL_EVERY {
            return None;
        }
        self.told = Instant::now();
        let Progress { bytes_done, bytes_total, .. } = self.progress;
        let left = self.seconds_left().map(|seconds| format!(", {seconds} s left")).unwrap_or_default();
        let total = if bytes_total.0 == 0 { String::new() } else { format!(" of {bytes_total}") };
        Some(format!("{bytes_done}{total}, {}/s{left}", self.rate))
    }

    /// Seconds to go at the present rate; unknown where it is unknown how much there is, as of what comes through a pipe.
    pub(crate) fn seconds_left(&self) -> Option<u64> {
        if self.progress.bytes_total.0 == 0 {
            return None;
        }
        let left = self.progress.bytes_total.0.saturating_sub(self.progress.bytes_done.0);
        (self.rate.0 > 0).then(|| left.div_ceil(self.rate.0.max(1)))
    }

    /// Takes the worker's word; the rate is that of the last half second or more, smoothed.
    pub(crate) fn update(&mut self, progress: Progress) {
        self.progress = progress;
        self.updated = Timestamp::now();
        let millis = u64::try_from(self.measured.elapsed().as_millis()).unwrap_or(u64::MAX);
        if millis >= 500 {
            let now = progress.bytes_done.0.saturating_sub(self.measured_at).saturating_mul(1000) / millis;
            self.rate = Bytes(if self.rate.0 == 0 { now } else { (self.rate.0 + now) / 2 });
            self.measured = Instant::now();
            self.measured_at = progress.bytes_done.0;
        }
    }
}

/// One snapshot.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) sr: SrFacts,
    pub(crate) state: State,
    pub(crate) live: BTreeMap<JobId, Live>,
    pub(crate) moment: Moment,
    pub(crate) stat: StoreStat,
}

/// Where the present snapshot hangs.
#[derive(Debug)]
pub(crate) struct Board {
    stat: Mutex<StoreStat>,
    present: Mutex<Arc<Published>>,
}

impl Board {
    /// With a first snapshot.
    pub(crate) fn new(sr: &SrFacts, state: State) -> Self {
        let stat = StoreStat { total: Bytes(0), used: Bytes(0), allocatable: Bytes(0) };
        let published =
            Published { sr: sr.clone(), state, live: BTreeMap::new(), moment: Moment::default(), stat };
        Self { stat: Mutex::new(stat), present: Mutex::new(Arc::new(published)) }
    }

    /// Hangs up a new snapshot.
    pub(crate) fn publish(&self, sr: &SrFacts, state: &State, live: &BTreeMap<JobId, Live>, moment: Moment) {
        let published =
            Published { sr: sr.clone(), state: state.clone(), live: live.clone(), moment, stat: self.stat() };
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(published);
    }

    /// New figures of the storage, for the next snapshot.
    pub(crate) fn set_stat(&self, stat: StoreStat) {
        *self.stat.lock().unwrap_or_else(PoisonError::into_inner) = stat;
    }

    /// The last figures of the storage.
    pub(crate) fn stat(&self) -> StoreStat {
        *self.stat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present snapshot.
    pub(crate) fn read(&self) -> View {
        View(Arc::clone(&self.present.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
