//! Named places where a debug build can be told to die, so that tests can kill a process exactly there.
//!
//! `CATENA_CRASH_AT=name[:n]` ends the process at once at the n-th pass (the first by default) of the point `name`, and so each
//! process that is started after it. `CATENA_CRASH_AT=@FILE` looks into the file whenever a point is passed, by whatever process, for
//! what it says then: one process dies and removes the file, so that a test can go on with the same agent. A program lists its points
//! with `--list-crash-points`. In a release build a point is nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A named place. Declare it as a constant, list the constants of a program in one array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint(pub &'static str);

#[derive(Debug)]
enum Armed {
    /// At this point, after so many passes.
    At { name: String, left: AtomicU32 },
    /// As this file says.
    By(PathBuf),
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads `CATENA_CRASH_AT`; called once by the start of each program, before any thread is started.
pub fn arm() {
    let armed = if cfg!(debug_assertions) {
        std::env::var("CATENA_CRASH_AT").ok().map(|text| parse(&text))
    } else {
        None
    };
    let _ = ARMED.set(armed);
}

fn parse(text: &str) -> Armed {
    if let Some(file) = text.strip_prefix('@') {
        return Armed::By(file.into());
    }
    let (name, count) = split(text);
    Armed::At { name: name.to_owned(), left: AtomicU32::new(count) }
}

/// A point, and which pass of it is meant.
fn split(text: &str) -> (&str, u32) {
    let counted = text.rsplit_once(':').and_then(|(name, count)| Some((name, count.parse::<u32>().ok()?)));
    counted.filter(|(_, count)| *count > 0).unwrap_or((text, 1))
}

impl CrashPoint {
    /// Dies here if this is the point and the pass that was asked for.
    pub fn pass(self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let dies = match ARMED.get() {
            Some(Some(Armed::At { name, left })) => {
                *name == self.0 && left.fetch_sub(1, Ordering::SeqCst) == 1
            }
            Some(Some(Armed::By(file))) => last_pass(file, self.0),
            _ => false,
        };
        if dies {
            die(self.0);
        }
    }
}

/// Counts a pass of the point in the file; whether it was the last one before the death that the file asks for.
fn last_pass(file: &Path, point: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let (name, count) = split(text.trim_end());
    if name != point {
        return false;
    }
    // Only one process dies, also where two pass at the same time.
    if count == 1 {
        fs::remove_file(file).is_ok()
    } else {
        fs::write(file, format!("{name}:{}", count - 1)).is_err()
    }
}

/// Ends the process as `kill -9` would: no destructor, no buffer, no exit handler runs.
fn die(name: &str) -> ! {
    eprintln!("crash point {name}");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_count_may_follow_the_name() {
        assert_eq!(split("job.commit:3"), ("job.commit", 3));
        assert_eq!(split("job:commit"), ("job:commit", 1));
        let Armed::At { name, left } = parse("job.commit:3") else { panic!("a point") };
        assert_eq!((name.as_str(), left.into_inner()), ("job.commit", 3));
        assert!(matches!(parse("@/a/b"), Armed::By(file) if file == Path::new("/a/b")));
    }

    #[test]
    fn a_file_tells_one_death() {
        let file = std::env::temp_dir().join(format!("crash-at-{}", std::process::id()));
        fs::write(&file, "a.b:2\n").unwrap();
        assert!(!last_pass(&file, "a.c"), "another point");
        assert!(!last_pass(&file, "a.b"), "the first pass of two");
        assert!(last_pass(&file, "a.b"), "the second");
        assert!(!last_pass(&file, "a.b") && !file.exists(), "no more");
    }
}
