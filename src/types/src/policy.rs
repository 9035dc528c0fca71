//! The policy of an SR: what an administrator may set, as text and as values; most of it is about the coalesce worker.
//!
//! Pure: the clock is a parameter. Stored in the catalog's free keys under the names of [`Policy::KEYS`]; a key that is not
//! there has its default. Used by the keeper (which decides by it), the wire and the command line.

use crate::sizes::Bytes;
use jiff::civil::Time;
use jiff::{Timestamp, ToSpan, Zoned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The I/O class of a process, as Linux has them; real time is not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum IoClass {
    /// Only when the disk has nothing else to do.
    Idle,
    /// As everybody else; from level 0, the most urgent, to 7.
    BestEffort(u8),
}

impl IoClass {
    /// What a merge is raised to that gets nothing done in class idle: the next better one.
    pub const LEAST_EFFORT: Self = Self::BestEffort(7);
    const SHIFT: u32 = 13;

    /// The kernel's number for it.
    pub const fn to_kernel(self) -> i32 {
        match self {
            Self::Idle => 3 << Self::SHIFT,
            Self::BestEffort(level) => (2 << Self::SHIFT) | level as i32,
        }
    }

    /// From the kernel's number. A process without a class of its own counts as best effort, level 4; `None` is real time.
    pub fn from_kernel(value: i32) -> Option<Self> {
        match value >> Self::SHIFT {
            0 => Some(Self::BestEffort(4)),
            2 => Some(Self::BestEffort(u8::try_from(value & 7).unwrap_or(7))),
            3 => Some(Self::Idle),
            _ => None,
        }
    }
}

impl fmt::Display for IoClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::BestEffort(level) => write!(f, "best-effort:{level}"),
        }
    }
}

impl FromStr for IoClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = |text: &str| text.parse().ok().filter(|level: &u8| *level <= 7);
        match text.split_once(':') {
            None if text == "idle" => Some(Self::Idle),
            None if text == "best-effort" => Some(Self::BestEffort(4)),
            Some(("best-effort", number)) => level(number).map(Self::BestEffort),
            _ => None,
        }
        .ok_or_else(|| {
            format!("'{text}' is not an I/O class: give idle, best-effort, or best-effort:0 to :7")
        })
    }
}

/// The hours in which merges may run, in local time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Window {
    /// All of them.
    #[default]
    Always,
    /// From one time of day to another, which may be that of the next day.
    Daily {
        /// It opens.
        from: Time,
        /// It closes.
        to: Time,
    },
}

impl Window {
    /// Whether merges may run now.
    pub fn is_open(self, now: &Zoned) -> bool {
        match self {
            Self::Always => true,
            Self::Daily { from, to } if from < to => (from..to).contains(&now.time()),
            Self::Daily { from, to } => now.time() >= from || now.time() < to,
        }
    }

    /// When it next opens or closes.
    pub fn next_change(self, now: &Zoned) -> Option<Timestamp> {
        let Self::Daily { from, to } = self else { return None };
        [from, to].into_iter().filter_map(|time| next(time, now).ok()).min()
    }
}

/// The first moment after `now` that has this time of day.
fn next(time: Time, now: &Zoned) -> Result<Timestamp, jiff::Error> {
    let today = now.with().time(time).build()?;
    let there = if today > *now { today } else { now.checked_add(1.day())?.with().time(time).build()? };
    Ok(there.timestamp())
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Daily { from, to } => {
                write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
            }
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unclear =
            || format!("'{text}' is not a window: give always, or two times of day such as 22:00-06:00");
        if text == "always" {
            return Ok(Self::Always);
        }
        let (from, to) = text.split_once('-').ok_or_else(unclear)?;
        let (from, to) = (time_of_day(from).ok_or_else(unclear)?, time_of_day(to).ok_or_else(unclear)?);
        if from == to { Err(unclear()) } else { Ok(Self::Daily { from, to }) }
    }
}

/// `HH:MM`.
fn time_of_day(text: &str) -> Option<Time> {
    let number = |text: &str| (text.len() <= 2).then(|| text.parse::<u8>().ok()).flatten();
    let (hour, minute) = text.trim().split_once(':')?;
    let (hour, minute) = (i8::try_from(number(hour)?).ok()?, i8::try_from(number(minute)?).ok()?);
    Time::new(hour, minute, 0, 0).ok()
}

/// How large the containers of images are, where they must be sized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// As large as what they hold, and for every block while a guest writes.
    #[default]
    Thin,
    /// Those of disks are always large enough for every block.
    Thick,
    /// As large as what they hold, and a chunk larger while a guest writes, always.
    Dynamic,
}

impl Allocation {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
            Self::Dynamic => "dynamic",
        }
    }
}

impl FromStr for Allocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Thin, Self::Thick, Self::Dynamic].into_iter().find(|one| one.word() == text);
        known.ok_or_else(|| format!("'{text}' is not an allocation: give thin, thick or dynamic"))
    }
}

/// How the worker behaves, and how space is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Policy {
    /// How large the containers of images are.
    pub allocation: Allocation,
    /// By how much the container grows of a disk that a guest writes, where allocation is dynamic; 0 is by the size of the disk.
    #[serde(rename = "allocation.chunk")]
    pub chunk: Bytes,
    /// Whether it works at all.
    #[serde(rename = "coalesce.enabled")]
    pub enabled: bool,
    /// The I/O class of a merge.
    #[serde(rename = "coalesce.io_class")]
    pub io_class: IoClass,
    /// The most bytes that a merge moves in a second; 0 is no limit.
    #[serde(rename = "coalesce.rate")]
    pub rate: Bytes,
    /// Bytes a second below which class idle is given up until they are reached; 0 is never.
    #[serde(rename = "coalesce.floor")]
    pub floor: Bytes,
    /// The weight of merges in their control group, 10 to 1000; 100 is everybody's at first.
    #[serde(rename = "coalesce.weight")]
    pub weight: u64,
    /// When merges may run.
    #[serde(rename = "coalesce.window")]
    pub window: Window,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allocation: Allocation::Thin,
            chunk: Bytes(0),
            enabled: true,
            io_class: IoClass::Idle,
            rate: Bytes(0),
            floor: Bytes(1 << 20),
            weight: 100,
            window: Window::Always,
        }
    }
}

impl Policy {
    /// The names, in the order in which they are shown, and what may be set.
    pub const KEYS: [(&str, &str); 8] = [
        ("allocation", "thin, thick or dynamic"),
        (
            "allocation.chunk",
            "bytes, 8MiB or more, where allocation is dynamic; 0 is by the size of the disk",
        ),
        ("coalesce.enabled", "true or false"),
        ("coalesce.io_class", "idle, best-effort, or best-effort:0 to :7"),
        ("coalesce.rate", "bytes a second, such as 20MiB; 0 is no limit"),
        ("coalesce.floor", "bytes a second, such as 1MiB; 0 is never"),
        ("coalesce.weight", "10 to 1000, of the merges' control group; 100 is everybody's"),
        ("coalesce.window", "always, or local times of day such as 22:00-06:00"),
    ];

    /// From what is stored. A value that this program cannot read, which a newer one may have written, counts as not set.
    pub fn stored(keys: &BTreeMap<String, String>) -> Self {
        let mut policy = Self::default();
        for (key, _) in Self::KEYS {
            if let Some(text) = keys.get(key) {
                // The default stays.
                let _ = policy.set(key, text);
            }
        }
        policy
    }

    /// Sets one key; the error says what may be set.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "allocation" => self.allocation = text.parse()?,
            "allocation.chunk" => self.chunk = chunk(text)?,
            "coalesce.enabled" => {
                self.enabled = text.parse().map_err(|_| format!("'{text}' is neither true nor false"))?;
            }
            "coalesce.io_class" => self.io_class = text.parse()?,
            "coalesce.rate" => self.rate = rate(text)?,
            "coalesce.floor" => self.floor = rate(text)?,
            "coalesce.weight" => self.weight = weight(text)?,
            "coalesce.window" => self.window = text.parse()?,
            _ => {
                let names: Vec<&str> = Self::KEYS.iter().map(|(name, _)| *name).collect();
                return Err(format!("there is no policy '{key}': there are {}", names.join(", ")));
            }
        }
        Ok(())
    }

    /// The value of a key as text that [`Policy::set`] takes; `None` if there is no such key.
    pub fn get(&self, key: &str) -> Option<String> {
        Some(match key {
            "allocation" => self.allocation.word().to_owned(),
            "allocation.chunk" => self.chunk.0.to_string(),
            "coalesce.enabled" => self.enabled.to_string(),
            "coalesce.io_class" => self.io_class.to_string(),
            "coalesce.rate" => self.rate.0.to_string(),
            "coalesce.floor" => self.floor.0.to_string(),
            "coalesce.weight" => self.weight.to_string(),
            "coalesce.window" => self.window.to_string(),
            _ => return None,
        })
    }

    /// The floor that can be asked of a merge: one that is held to a rate does not get beyond it.
    pub fn reachable_floor(&self) -> Bytes {
        if self.rate.0 == 0 { self.floor } else { self.floor.min(Bytes(self.rate.0 / 2)) }
    }

    /// By how much the container of a disk of that size grows at a time. To make one larger takes half a second, and it begins
    /// when half a chunk is left: who writes 200 MB/s does not have to wait.
    pub fn chunk_of(&self, virtual_size: Bytes) -> Bytes {
        match self.chunk {
            Bytes(0) => Bytes((virtual_size.0 / 32).clamp(256 << 20, 1 << 30)),
            chunk => chunk,
        }
    }
}

/// The least that a container grows by: room for some blocks.
const LEAST_CHUNK: Bytes = Bytes(8 << 20);

fn chunk(text: &str) -> Result<Bytes, String> {
    let chunk = rate(text)?;
    let fits = chunk.0 == 0 || chunk >= LEAST_CHUNK;
    if fits { Ok(chunk) } else { Err(format!("'{text}' is too little: give 0, or {LEAST_CHUNK} and more")) }
}

fn rate(text: &str) -> Result<Bytes, String> {
    // SQLite and JSON readers have signed numbers.
    let parsed: Bytes = text.parse().map_err(|error: crate::sizes::SizeError| error.to_string())?;
    i64::try_from(parsed.0).map(|_| parsed).map_err(|_| format!("'{text}' is too large"))
}

fn weight(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|weight| (10..=1000).contains(weight));
    number.ok_or_else(|| format!("'{text}' is not a weight: give 10 to 1000"))
}

macro_rules! as_text {
    ($kind:ty) => {
        impl TryFrom<String> for $kind {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
    };
}
as_text!(IoClass);
as_text!(Window);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back_and_stored() {
        for (key, text, back) in [
            ("allocation", "thick", "thick"),
            ("allocation", "dynamic", "dynamic"),
            ("allocation.chunk", "8MiB", "8388608"),
            ("allocation.chunk", "0", "0"),
            ("coalesce.enabled", "false", "false"),
            ("coalesce.io_class", "best-effort", "best-effort:4"),
            ("coalesce.io_class", "best-effort:0", "best-effort:0"),
            ("coalesce.rate", "20MiB", "20971520"),
            ("coalesce.floor", "0", "0"),
            ("coalesce.weight", "10", "10"),
            ("coalesce.window", "22:00-6:30", "22:00-06:30"),
        ] {
            let mut policy = Policy::default();
            policy.set(key, text).unwrap();
            assert_eq!(policy.get(key).unwrap(), back);
            let stored = BTreeMap::from([(key.to_owned(), back.to_owned())]);
            assert_eq!(Policy::stored(&stored), policy);
            let document = serde_json::to_value(policy).unwrap();
            assert!(document.get(key).is_some());
            assert_eq!(serde_json::from_value::<Policy>(document).unwrap(), policy);
        }
        let newer = BTreeMap::from([("coalesce.io_class".to_owned(), "psychic".to_owned())]);
        assert_eq!(Policy::stored(&newer), Policy::default());
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut policy = Policy::default();
        for (key, text) in [
            ("allocation", "fat"),
            ("allocation.chunk", "4MiB"),
            ("coalesce.enabled", "maybe"),
            ("coalesce.io_class", "best-effort:8"),
            ("coalesce.io_class", "realtime"),
            ("coalesce.rate", "-1"),
            ("coalesce.rate", "18446744073709551615"),
            ("coalesce.rate", "fast"),
            ("coalesce.weight", "9"),
            ("coalesce.weight", "1001"),
            ("coalesce.window", "22:00"),
            ("coalesce.window", "22:00-22:00"),
            ("coalesce.window", "25:00-06:00"),
            ("coalesce.window", "1e1:00-06:00"),
            ("coalesce.speed", "1"),
        ] {
            assert!(policy.set(key, text).is_err(), "{key}={text}");
        }
        assert_eq!(policy, Policy::default());
        assert!(policy.set("x", "1").unwrap_err().contains("coalesce.window"));
    }

    #[test]
    fn the_kernel_s_numbers_go_both_ways() {
        for class in [IoClass::Idle, IoClass::BestEffort(0), IoClass::LEAST_EFFORT] {
            assert_eq!(IoClass::from_kernel(class.to_kernel()), Some(class));
        }
        assert_eq!(IoClass::from_kernel(0), Some(IoClass::BestEffort(4)));
        assert_eq!(IoClass::from_kernel(1 << 13), None);
    }

    #[test]
    fn a_window_opens_and_closes_by_local_time() {
        let at = |text: &str| text.parse::<Zoned>().unwrap();
        let night: Window = "22:00-06:00".parse().unwrap();
        let day: Window = "08:00-18:00".parse().unwrap();
        for (window, now, open, change) in [
            (night, "2030-01-31T21:59:59+01:00[Europe/Berlin]", false, Some("2030-01-31T21:00:00Z")),
            (night, "2030-01-31T22:00:00+01:00[Europe/Berlin]", true, Some("2030-02-01T05:00:00Z")),
            (night, "2030-02-01T05:59:59+01:00[Europe/Berlin]", true, Some("2030-02-01T05:00:00Z")),
            (night, "2030-02-01T06:00:00+01:00[Europe/Berlin]", false, Some("2030-02-01T21:00:00Z")),
            (day, "2030-02-01T12:00:00+00:00[UTC]", true, Some("2030-02-01T18:00:00Z")),
            (day, "2030-02-01T18:00:00+00:00[UTC]", false, Some("2030-02-02T08:00:00Z")),
            (Window::Always, "2030-02-01T18:00:00+00:00[UTC]", true, None),
        ] {
            assert_eq!(window.is_open(&at(now)), open, "{window} {now}");
            assert_eq!(
                window.next_change(&at(now)).map(|at| at.to_string()).as_deref(),
                change,
                "{window} {now}"
            );
        }
    }

    #[test]
    fn a_chunk_is_a_part_of_the_disk_unless_it_is_given() {
        let mut policy = Policy::default();
        for (gib, mib) in [(1, 256), (8, 256), (16, 512), (32, 1024), (1024, 1024)] {
            assert_eq!(policy.chunk_of(Bytes(gib << 30)), Bytes(mib << 20), "{gib} GiB");
        }
        policy.set("allocation.chunk", "64MiB").unwrap();
        assert_eq!(policy.chunk_of(Bytes(1 << 40)), Bytes(64 << 20));
    }

    #[test]
    fn a_floor_above_the_rate_is_not_asked_for() {
        let mut policy = Policy { floor: Bytes(100), ..Policy::default() };
        assert_eq!(policy.reachable_floor(), Bytes(100));
        policy.rate = Bytes(60);
        assert_eq!(policy.reachable_floor(), Bytes(30));
    }
}
