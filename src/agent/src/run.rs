//! The program: reads the configuration, binds the socket, attaches the SRs, serves until a signal, ends in order.
//! SIGHUP does not end it (see `reload`).
//!
//! Called by `catenad`'s main. Exit codes: 0 ended in order or only printed something, 1 cannot start, 2 usage.

use crate::access::{self, Rules};
use crate::config::{self, Config};
use crate::events::Hub;
use crate::front::Front;
use crate::launch::{KeeperProgram, Starter};
use crate::notify::{self, Word};
use crate::reload::{KeeperLog, Reload};
use crate::server::{Door, Server};
use crate::session::LIMITS;
use crate::srd::{BadFile, Store};
use crate::supervise::Sr;
use crate::table::Table;
use anyhow::{Context, Result};
use clap::Parser;
use clap::error::ErrorKind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};
use tracing_subscriber::EnvFilter;

/// How long keepers may take to end, all together.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The agent of Catena: serves the socket, starts and watches a keeper for each attached SR.
#[derive(Debug, Parser)]
#[command(name = "catenad", version)]
struct Args {
    /// Puts etc/catena and run/catena below DIR; the running user counts as root. At most 40 bytes.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Reads FILE, and catenad.d beside it, in place of catenad.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints the points where CATENA_CRASH_AT can end a debug build.
    #[arg(long)]
    list_crash_points: bool,
}

/// `catenad`.
pub fn main() -> ExitCode {
    catena_types::arm_crash_points();
    let args = match parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nothing is left to be done where the message cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if args.list_crash_points {
        for point in crate::points::ALL {
            println!("{}", point.0);
        }
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("catenad: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line; a root that cannot be used is a usage error.
fn parse() -> Result<Args, clap::Error> {
    let mut args = Args::try_parse()?;
    if let Some(root) = &args.root {
        let usage = |error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n"));
        args.root = Some(config::private_root(root).map_err(usage)?);
    }
    Ok(args)
}

fn run(args: &Args) -> Result<()> {
    let config = config::load(args.root.as_deref(), args.config.as_deref())?;
    let logging = tracing_subscriber::fmt()
        .with_env_filter(filter(&config)?)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_filter_reloading();
    let handle = logging.reload_handle();
    logging.init();
    raise_descriptor_limit();
    let rules = rules(&config);
    let server = Server::bind(&config.run_dir, &config.socket, door(&rules))?;
    let rules = RwLock::new(rules);
    let keeper_log = KeeperLog::new(config.log.clone().into());
    let front = Arc::new(front(&config, &keeper_log)?);
    // Before any keeper is started, so that a signal always ends them in order.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signals")?;
    front.attach_all();
    thread::scope(|scope| {
        let accepting = thread::Builder::new()
            .spawn_scoped(scope, || server.serve(&front, &rules, LIMITS))
            .context("threads")?;
        tracing::info!(socket = %config.socket.display(), private = config.private, "ready");
        notify::tell(Word::Ready);
        let mut reload = Reload {
            root: args.root.as_deref(),
            file: args.config.as_deref(),
            config,
            set_filter: &|filter| handle.reload(filter).context("the log's filter"),
            keeper_log,
            rules: &rules,
            server: &server,
            front: &front,
        };
        let signal = loop {
            match signals.forever().next() {
                Some(SIGHUP) => reload.run(),
                signal => break signal,
            }
        };
        tracing::info!(signal, "stopping");
        notify::tell(Word::Stopping);
        front.stopping.store(true, Ordering::SeqCst);
        server.close();
        front.stop_all(STOP_LIMIT);
        if accepting.join().is_err() {
            tracing::error!("the accepting thread has panicked");
        }
        Ok(())
    })
}

/// What is logged.
pub(crate) fn filter(config: &Config) -> Result<EnvFilter> {
    EnvFilter::try_new(&config.log).context("the key 'log' of the configuration")
}

/// Who may open the socket's file, where these rules hold.
pub(crate) fn door(rules: &Rules) -> Door {
    Door { group: rules.group, readers: rules.readers.is_some() }
}

/// Whom to let in. A private agent has no groups: it is for its user.
pub(crate) fn rules(config: &Config) -> Rules {
    if config.private {
        return Rules { own: Some(Uid::effective()), group: None, readers: None };
    }
    let readers = config.readers.as_deref().and_then(access::group_id);
    Rules { own: None, group: access::group_id(&config.group), readers }
}

fn front(config: &Config, keeper_log: &KeeperLog) -> Result<Front> {
    let store = Store::open(&config.sr_dir).with_context(|| config.sr_dir.display().to_string())?;
    let (entries, bad) = store.load().with_context(|| config.sr_dir.display().to_string())?;
    report_bad(bad);
    let table = Table::default();
    for entry in entries {
        table.insert(&Arc::new(Sr::new(entry)));
    }
    let program = env::current_exe().context("where this program is")?.with_file_name("catena-keeper");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the id of this boot")?;
    let starter = Starter {
        launcher: Box::new(KeeperProgram { path: program, log: Arc::clone(keeper_log) }),
        host_id: config.host_id.clone(),
        boot_id: boot_id.trim().to_owned(),
        groups: !config.private,
        run_dir: config.run_dir.clone(),
        socket_group: rules(config).group.map(nix::unistd::Gid::as_raw),
        hub: Arc::new(Hub::default()),
    };
    Ok(Front {
        private: config.private,
        skipped: if config.private {
            vec!["the socket's group", "groups of peers", "control groups"]
        } else {
            Vec::new()
        },
        table,
        store,
        starter: Arc::new(starter),
        started: Instant::now(),
        connections: Arc::default(),
        stopping: false.into(),
    })
}

/// Reports the files of `sr.d` that cannot be used.
pub(crate) fn report_bad(files: Vec<BadFile>) {
    for (path, error) in files {
        tracing::error!(file = %path.display(), %error, "an SR is not known, its file cannot be used");
    }
}

/// Connections and the descriptors that pass through them may be many. What the system does not allow is lived with.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
}
