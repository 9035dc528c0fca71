//! Named places where a debug build can be told to die, so that tests can kill a process exactly there.
//!
//! `CATENA_CRASH_AT=name[:n]` ends the process at once at the n-th pass (the first by default) of the point `name`. A
//! program lists its points with `--list-crash-points`. In a release build a point is nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A named place. Declare it as a constant, list the constants of a program in one array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint(pub &'static str);

#[derive(Debug)]
struct Armed {
    name: String,
    left: AtomicU32,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads `CATENA_CRASH_AT`; called once by the start of each program, before any thread is started.
pub fn arm() {
    let armed = if cfg!(debug_assertions) { std::env::var("CATENA_CRASH_AT").ok().map(parse) } else { None };
    let _ = ARMED.set(armed);
}

fn parse(text: String) -> Armed {
    match text.rsplit_once(':') {
        Some((name, count)) if count.parse::<u32>().is_ok_and(|n| n > 0) => {
            Armed { name: name.to_owned(), left: AtomicU32::new(count.parse().unwrap_or(1)) }
        }
        _ => Armed { name: text, left: AtomicU32::new(1) },
    }
}

impl CrashPoint {
    /// Dies here if this is the point and the pass that was asked for.
    pub fn pass(self) {
        if !cfg!(debug_assertions) {
            return;
        }
        if let Some(Some(armed)) = ARMED.get()
            && armed.name == self.0
            && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            die(self.0);
        }
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
        let armed = parse("job.commit:3".to_owned());
        assert_eq!((armed.name.as_str(), armed.left.load(Ordering::SeqCst)), ("job.commit", 3));
        let plain = parse("job:commit".to_owned());
        assert_eq!((plain.name.as_str(), plain.left.load(Ordering::SeqCst)), ("job:commit", 1));
    }
}
