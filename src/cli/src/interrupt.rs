//! Ctrl-C (and SIGTERM, SIGHUP) as something to ask, so that a command ends in order: files unlinked, jobs cancelled, the
//! demonstration's agent stopped.
//!
//! The first signal stops what only waits. What must be brought to an end (a job being started or cancelled) goes on until
//! the second.

use crate::errors::CliError;
use catena_types::{ErrorName, Failure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How much insistence ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The first signal.
    FirstSignal,
    /// The second.
    SecondSignal,
}

/// Counts the signals of the process; clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Counts the signals from now on instead of dying of them.
    pub(crate) fn install() -> Result<Self, CliError> {
        let interrupt = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|error| Failure::new(ErrorName::IoError, format!("cannot catch signals: {error}")))?;
        let counter = interrupt.clone();
        thread::spawn(move || signals.forever().for_each(|_| counter.raise()));
        Ok(interrupt)
    }

    /// Counts one signal.
    pub(crate) fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// An error if there were enough signals.
    pub(crate) fn check(&self, patience: Patience) -> Result<(), CliError> {
        let enough = match patience {
            Patience::FirstSignal => 1,
            Patience::SecondSignal => 2,
        };
        if self.0.load(Ordering::SeqCst) >= enough { Err(CliError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps, unless a signal comes.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), CliError> {
        let end = Instant::now() + time;
        loop {
            self.check(Patience::FirstSignal)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_signal_ends_what_the_first_does_not() {
        let interrupt = Interrupt::default();
        assert!(interrupt.pause(Duration::ZERO).is_ok());
        interrupt.raise();
        assert!(matches!(interrupt.check(Patience::FirstSignal), Err(CliError::Interrupted)));
        assert!(interrupt.check(Patience::SecondSignal).is_ok());
        interrupt.raise();
        assert!(interrupt.check(Patience::SecondSignal).is_err());
    }
}
