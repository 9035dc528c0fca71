//! The one thread that owns everything, and its turns.
//!
//! ```text
//!   wait ─▶ who has something ─▶ completions ─▶ requests of clients ─▶ I/O begins ─▶ replies ─▶ the keeper ─┐
//!     ▲                                                                                                     │
//!     └─────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing in a turn waits for anybody: sockets do not block, storage is the engine's. So a turn takes what the bytes at hand
//! take, and one turn serves all requests that have come meanwhile with few calls.

use super::changes::Changes;
use super::clients::Clients;
use super::control::Keepers;
use super::core::Core;
use super::poller::{Poller, Ready, Source};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::time::{Duration, Instant};

/// Everything of a served disk.
pub(crate) struct EventLoop {
    poller: Poller,
    signals: SignalFd,
    core: Core,
    clients: Clients,
    keepers: Keepers,
    changes: Changes,
    turns: u32,
}

impl EventLoop {
    /// Ready to run.
    pub(crate) fn new(
        poller: Poller,
        signals: SignalFd,
        core: Core,
        clients: Clients,
        keepers: Keepers,
        changes: Changes,
    ) -> Result<Self> {
        poller.watch(&signals, Source::Signals)?;
        poller.watch(core.engine.ready(), Source::Engine)?;
        Ok(Self { poller, signals, core, clients, keepers, changes, turns: 0 })
    }

    /// Serves until the disk is closed.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut ready = Vec::new();
        loop {
            self.poller.wait(self.patience(), &mut ready).context("waiting for events")?;
            self.turn(&ready)?;
            if let Some(end) = self.changes.end() {
                return end.context("the disk cannot be closed in order");
            }
        }
    }

    fn turn(&mut self, ready: &[Ready]) -> Result<()> {
        self.core.now = Instant::now();
        self.turns = self.turns.wrapping_add(1);
        for ready in ready {
            match ready.source {
                Source::NewClient => self.clients.accept(&self.core, &self.poller),
                Source::NewKeeper => self.keepers.accept(&self.poller),
                Source::Client(number) => self.clients.ready(number, *ready),
                Source::Keeper(number) => self.keepers.ready(number, ready.readable),
                Source::Signals => self.signalled()?,
                Source::Engine => {}
            }
        }
        let Self { core, clients, keepers, changes, poller, .. } = self;
        core.pump().context("the I/O engine")?;
        clients.tick(core, poller);
        if core.disk.deadline().is_some_and(|deadline| deadline <= core.now) {
            core.disk.tick(core.now, &mut *core.engine);
        }
        changes.take_in(keepers, core);
        if changes.is_ending() {
            clients.end(core, poller);
        }
        clients.advance(core, self.turns);
        core.pump().context("the I/O engine")?;
        clients.reply(core);
        clients.send(core);
        changes.answer(keepers, core, clients.len());
        Ok(())
    }

    /// How long the next turn may wait.
    fn patience(&self) -> Option<Duration> {
        // A call that ended while the turn's last I/O was begun is known already: nothing else will wake us for it.
        if self.clients.is_busy(&self.core) || self.core.called.is_some() {
            return Some(Duration::ZERO);
        }
        let deadline =
            [self.core.disk.deadline(), self.clients.deadline(&self.core)].into_iter().flatten().min();
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn signalled(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.read_signal().context("reading signals")? {
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            // A terminal that has gone is no reason to stop serving.
            if matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT)) {
                self.changes.stop(&mut self.keepers, &mut self.core);
            }
        }
        Ok(())
    }
}
