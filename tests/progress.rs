//! What long work shows to whom: a bar on a terminal, nothing to those who asked for silence, a line of result to a log.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, wait_until};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Bytes of the disk.
const SIZE: usize = 8 << 20;

/// What a program has printed so far, read by a thread.
struct Screen {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Screen {
    fn of(child: &mut Child) -> Result<Self> {
        let mut stdout = child.stdout.take().context("stdout")?;
        let text = Arc::<Mutex<String>>::default();
        let shared = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut chunk) {
                let part = String::from_utf8_lossy(&chunk[..length]);
                shared.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
            }
        });
        Ok(Self { text, reader })
    }

    fn now(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of it, when the program has ended.
    fn end(self) -> Result<String> {
        self.reader.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
        Ok(self.text.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// `catena ARGUMENTS` on a terminal of its own (`script` makes it), its stdout into a file.
fn on_terminal(agent: &Agent, arguments: &str, into: &str, variables: &[(&str, &str)]) -> Result<Child> {
    let root = agent.path("");
    let line = format!("{} --root {} {arguments} > {into}", env!("CARGO_BIN_EXE_catena"), root.display());
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("script cannot be run: install the Debian package bsdutils")
}

#[test]
fn long_work_shows_how_far_it_is_and_only_to_who_looks() -> Result<()> {
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    agent.ok(&["vdi", "create", "--sr", "store", "--size", &SIZE.to_string(), "--name", "disk"])?;
    let fifo = agent.path("fifo");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
    for (options, variables, seen) in
        [("", &[][..], true), ("--quiet", &[][..], false), ("", &[("NO_COLOR", "1")][..], false)]
    {
        let export = format!("{options} vdi export disk - --format raw");
        let mut terminal = on_terminal(&agent, &export, &fifo.to_string_lossy(), variables)?;
        let screen = Screen::of(&mut terminal)?;
        let mut stream = File::open(&fifo)?;
        // The job stands still with the pipe full.
        let mut half = vec![0; SIZE / 2];
        stream.read_exact(&mut half)?;
        if seen {
            wait_until("a bar", || Ok(screen.now().contains(" of 8.0 MiB")))?;
        }
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        ensure!(rest.len() == SIZE / 2, "{} bytes", rest.len());
        ensure!(terminal.wait()?.success());
        let text = screen.end()?;
        let bar = text.contains(" of 8.0 MiB") && text.contains('[');
        ensure!(bar == seen, "{options} {variables:?}: {text}");
    }
    let out = agent.path("disk.raw").to_string_lossy().into_owned();
    let said = agent.catena(&["vdi", "export", "disk", &out])?;
    ensure!(said.out.is_empty() && said.err == "8.0 MiB exported\n", "{said:?}");
    Ok(())
}
