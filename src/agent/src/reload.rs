//! SIGHUP: reads the configuration and `sr.d` again while the agent runs.
//!
//! What is wrong is reported, and all stays as it was: a file that cannot be used changes nothing. New rules count for new
//! connections, a new log level for this process at once and for a keeper when it is started. What the agent holds open (the
//! socket, its directories, the host's name on its SRs) changes with a restart only. Called by `run`.

use crate::access::Rules;
use crate::config::{self, Config};
use crate::front::Front;
use crate::notify::{self, Word};
use crate::run;
use crate::server::Server;
use crate::supervise::Sr;
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tracing_subscriber::EnvFilter;

/// What keepers that are started from now on are to log.
pub(crate) type KeeperLog = Arc<Mutex<String>>;

/// All that a reload reads and changes.
pub(crate) struct Reload<'a> {
    /// Where the configuration is.
    pub(crate) root: Option<&'a Path>,
    /// The file in place of `catenad.toml`.
    pub(crate) file: Option<&'a Path>,
    /// The configuration in force.
    pub(crate) config: Config,
    /// Puts a filter in force in this process.
    pub(crate) set_filter: &'a dyn Fn(EnvFilter) -> Result<()>,
    /// The same for keepers.
    pub(crate) keeper_log: KeeperLog,
    /// Whom to let in.
    pub(crate) rules: &'a RwLock<Rules>,
    /// The socket.
    pub(crate) server: &'a Server,
    /// The SRs.
    pub(crate) front: &'a Front,
}

impl Reload<'_> {
    /// Reads all of it again.
    pub(crate) fn run(&mut self) {
        notify::tell(Word::Reloading);
        match self.configuration() {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the old configuration stays in force");
            }
        }
        if let Err(error) = self.new_srs() {
            tracing::error!(error = format!("{error:#}"), "the SRs stay as they are");
        }
        notify::tell(Word::Ready);
    }

    /// First all that can be refused, then the changes.
    fn configuration(&mut self) -> Result<()> {
        let new = config::load(self.root, self.file)?;
        let filter = run::filter(&new)?;
        let rules = run::rules(&new);
        self.server.open_for(run::door(&rules))?;
        (self.set_filter)(filter)?;
        new.log.clone_into(&mut self.keeper_log.lock().unwrap_or_else(PoisonError::into_inner));
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        for (key, changed) in [
            ("socket", new.socket != self.config.socket),
            ("run_dir", new.run_dir != self.config.run_dir),
            ("sr_dir", new.sr_dir != self.config.sr_dir),
            ("host_id", new.host_id != self.config.host_id),
        ] {
            if changed {
                tracing::warn!(key, "this key has changed, which counts after a restart");
            }
        }
        self.config.log = new.log;
        Ok(())
    }

    /// Takes in the SRs whose files are new. Those that are known stay as they are: requests change them, not files.
    fn new_srs(&self) -> Result<()> {
        let (entries, bad) = self.front.store.load().context("sr.d")?;
        run::report_bad(bad);
        for entry in entries {
            if self.front.table.contains(entry.uuid) {
                continue;
            }
            let (uuid, attach) = (entry.uuid, entry.attach);
            // A request that makes an SR has the claim until the SR is known.
            let claim = match self.front.table.claim(&entry.location) {
                Ok(claim) => claim,
                Err(failure) => {
                    tracing::warn!(sr = %uuid, %failure, "a new file is not taken");
                    continue;
                }
            };
            let sr = Arc::new(Sr::new(entry));
            if !self.front.table.insert(&sr) {
                continue;
            }
            drop(claim);
            tracing::info!(sr = %uuid, attach, "a new SR is known");
            if attach && let Err(failure) = sr.start(&self.front.starter, false) {
                tracing::error!(sr = %uuid, %failure, "not attached");
            }
        }
        Ok(())
    }
}
