//! Tests that need device-mapper, which the host may not have: they run in the lab (`tests/lab/boot`), all of a program in one
//! boot.
//!
//! Such a test is an ordinary one whose body is handed to [`test`]. In `cargo test` the first of them starts this very program
//! once more, in the lab, for all that were asked for; each then has the outcome that it had there. A program has such tests
//! only, and a name that begins with `lab`, by which `tests/run lab` finds it. With `CATENA_LAB=here` they run on the machine
//! itself. Packages other than the root include this file by its path.

#![allow(dead_code, reason = "each test program uses its own part of the harness")]

use anyhow::{Context, Result, bail, ensure};
use std::any::type_name;
use std::collections::HashMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What takes longer in the lab hangs, in seconds: several times what any test takes on a slow machine.
const LIMIT: u32 = 900;
/// The same for the long forms.
const LONG_LIMIT: u32 = 7200;
/// How much of the lab's disk each test has, in MiB, as `tests/lab/suite` has it.
const SLOT: u64 = 256 << 10;
/// What the lab's kernel needs.
const MODULES: &str = "dm-mod dm-flakey nbd loop fuse";

/// Runs the body in the lab. On failure: what the test has said there.
pub(crate) fn test<F: FnOnce() -> Result<()>>(body: F) -> Result<()> {
    if inside().is_some() {
        return body();
    }
    let name = name_of::<F>().context("the name of a test")?;
    static OUTCOMES: OnceLock<Result<HashMap<String, Outcome>>> = OnceLock::new();
    let outcomes = OUTCOMES.get_or_init(run_all).as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let outcome = outcomes.get(name).with_context(|| format!("{name} did not run in the lab"))?;
    if !at_once() {
        println!("{}", outcome.said);
    }
    ensure!(outcome.good, "in the lab: {name}: see above");
    Ok(())
}

/// Where a test in the lab keeps its files: a file system in memory, which ends with the test. `None` outside.
pub(crate) fn inside() -> Option<PathBuf> {
    env::var_os("CATENA_LAB").filter(|place| place != "here").map(PathBuf::from)
}

/// What a test came to.
struct Outcome {
    good: bool,
    said: String,
}

/// Whether everything is to be shown when it is said.
fn at_once() -> bool {
    env::args().any(|word| word == "--nocapture")
}

/// The name that the test framework has for the function around a closure.
fn name_of<F>() -> Option<&'static str> {
    type_name::<F>().split_once("::")?.1.strip_suffix("::{{closure}}")
}

/// Runs all tests that this program was asked for in the lab.
fn run_all() -> Result<HashMap<String, Outcome>> {
    let program = env::current_exe()?;
    let listed = Command::new(&program).args(env::args_os().skip(1)).arg("--list").output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let limit = if env::var_os("CATENA_NIGHTLY").is_some() { LONG_LIMIT } else { LIMIT };
    let mut command = if env::var_os("CATENA_LAB").is_some() {
        let mut suite = Command::new("tests/lab/suite");
        suite.arg("-");
        suite
    } else {
        let (disk, seconds) = (SLOT * names.len() as u64, limit as usize * names.len() + 60);
        let mut boot = Command::new("tests/lab/boot");
        boot.args(["--disk", &disk.to_string(), "--limit", &seconds.to_string(), "--modules", MODULES]);
        let given = ["CATENA_NIGHTLY", "CATENA_SEED"].map(|name| (name, env::var(name)));
        boot.arg("env").args(
            given
                .iter()
                .filter_map(|(name, value)| value.as_ref().ok().map(|value| format!("{name}={value}"))),
        );
        boot.args(["tests/lab/suite", "/dev/ubdb"]);
        boot
    };
    command.arg(limit.to_string()).arg(program).args(&names).current_dir(root()?);
    // One stream, in which the lab says everything in its order.
    let mut lab = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the lab")?;
    let mut outcomes = HashMap::new();
    let mut said = String::new();
    for line in BufReader::new(lab.stdout.take().context("a pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if at_once() {
            println!("{line}");
        }
        said = said + &line + "\n";
        if let Some((name, outcome)) = line.strip_prefix("lab: ").and_then(|rest| rest.rsplit_once(": ")) {
            let good = outcome.starts_with("ok");
            outcomes.insert(name.to_owned(), Outcome { good, said: std::mem::take(&mut said) });
        }
    }
    let status = lab.wait()?;
    // What has an outcome keeps it where the lab was ended early.
    for name in names.iter().filter(|_| !status.success()) {
        let said = || Outcome { good: false, said: format!("the lab ended with {status}: {said}") };
        outcomes.entry((*name).to_owned()).or_insert_with(said);
    }
    Ok(outcomes)
}

/// The root of the tree, from whatever package.
fn root() -> Result<&'static Path> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("tests/lab/boot").exists()).context("where is the lab?")
}

/// A block device of a test's own, empty at first. It may grow, break and hang. What lies on it goes with the test.
pub(crate) struct Disk {
    name: String,
    /// Where it is on the lab's disk, and how long it is, in sectors.
    start: u64,
    sectors: u64,
}

/// What is done to the requests for a part of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// They fail (EIO).
    Error,
    /// Writes fail (EIO), and every flush of the whole disk with them.
    Writes,
    /// Writes are answered as done, and not done.
    Lost,
}

impl Disk {
    /// A fresh one of so many MiB.
    pub(crate) fn new(mib: u64) -> Result<Self> {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let slot = Self::slot()?.1;
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        // Every disk may grow to an eighth of what the test has, the first to half of it.
        // Not at the very start, or lvm2 finds the same label on the lab's disk.
        let at = if number == 0 { 1 } else { SLOT / 2 + (number - 1) * (SLOT / 8) };
        ensure!(
            number < 5 && mib < if number == 0 { SLOT / 2 } else { SLOT / 8 },
            "a disk of {mib} MiB is too much"
        );
        let disk =
            Self { name: format!("lab-{number}"), start: (slot * SLOT + at) << 11, sectors: mib << 11 };
        run_with("dmsetup", &["create", &disk.name], &disk.table(&[])?)?;
        Ok(disk)
    }

    /// The lab's disk, and which part of it this test has.
    fn slot() -> Result<(String, u64)> {
        let place = env::var("CATENA_LAB_DISK").context("a disk is had in the lab only")?;
        let (device, number) = place.split_once(' ').context("CATENA_LAB_DISK")?;
        Ok((device.to_owned(), number.parse()?))
    }

    /// Its node.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Makes it so many MiB long.
    pub(crate) fn resize(&mut self, mib: u64) -> Result<()> {
        self.sectors = mib << 11;
        self.load(&[])
    }

    /// Nobody finds it any more, until [`bring_back`](Self::bring_back). Nobody may use it.
    pub(crate) fn take_away(&self) -> Result<()> {
        run("dmsetup", &["remove", &self.name]).map(drop)
    }

    /// The counterpart of [`take_away`](Self::take_away).
    pub(crate) fn bring_back(&self) -> Result<()> {
        run_with("dmsetup", &["create", &self.name], &self.table(&[])?).map(drop)
    }

    /// What is asked of these sectors goes wrong from now on; an empty list mends it. Ranges in their order.
    pub(crate) fn load(&self, faults: &[(std::ops::Range<u64>, Fault)]) -> Result<()> {
        run_with("dmsetup", &["load", &self.name], &self.table(faults)?)?;
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", &self.name])?;
        run("dmsetup", &["resume", &self.name]).map(drop)
    }

    /// Lets every request wait until [`resume`](Self::resume).
    pub(crate) fn suspend(&self) -> Result<()> {
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", &self.name]).map(drop)
    }

    /// The counterpart of [`suspend`](Self::suspend).
    pub(crate) fn resume(&self) -> Result<()> {
        run("dmsetup", &["resume", &self.name]).map(drop)
    }

    fn table(&self, faults: &[(std::ops::Range<u64>, Fault)]) -> Result<String> {
        let device = Self::slot()?.0;
        let mut lines = Vec::new();
        let mut line = |from: u64, to: u64, fault: Option<Fault>| {
            let (len, at) = (to - from, self.start + from);
            if len == 0 {
                return;
            }
            lines.push(match fault {
                None => format!("{from} {len} linear {device} {at}"),
                Some(Fault::Error) => format!("{from} {len} error"),
                Some(Fault::Writes) => format!("{from} {len} flakey {device} {at} 0 3600 1 error_writes"),
                Some(Fault::Lost) => format!("{from} {len} flakey {device} {at} 0 3600 1 drop_writes"),
            });
        };
        let mut end = 0;
        for (range, fault) in faults {
            if range.start < end || range.end > self.sectors {
                bail!("no such part of the disk: {range:?}");
            }
            line(end, range.start, None);
            line(range.start, range.end, Some(*fault));
            end = range.end;
        }
        line(end, self.sectors, None);
        Ok(lines.join("\n") + "\n")
    }
}

/// Runs a program, which must succeed; what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with(program, arguments, "")
}

/// The same with a short text on its standard input.
fn run_with(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !Path::new("/run/udev/control").exists() {
        // Else dmsetup leaves the nodes to who is not there.
        command.env("DM_DISABLE_UDEV", "1");
    }
    let mut child = command.spawn().with_context(|| format!("{program} cannot be run: see tests/setup"))?;
    // One that reads nothing may have ended already.
    let _ = child.stdin.take().context("a pipe")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {text}{error}", output.status);
    Ok(text)
}
