//! Runs one program of the system to its end, with a limit on its time, and keeps what it said.
//!
//! Invariants: programs are found in the system's directories only and never by `PATH`; they get a clean environment, no input
//! and a process group of their own, so that what ends this process does not tear a change of a volume group apart. Used by
//! `lvm2`, `contents`, `home` and `fsck`.

use catena_sr_api::Error;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where the system's programs are.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How long a program may take: longer than any command on storage that works, also behind others who have the group locked.
const LIMIT: Duration = Duration::from_secs(180);
/// How long it may take to end when asked. One that is killed in the middle of a change can leave a volume suspended.
const GRACE: Duration = Duration::from_secs(20);
/// The most of a program's complaints that an error repeats, in bytes.
const TEXT: usize = 1000;

static RUN: AtomicU64 = AtomicU64::new(0);

/// How many programs this process has run.
pub fn commands_run() -> u64 {
    RUN.load(Ordering::Relaxed)
}

/// What a program came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it wrote.
    pub(crate) out: Vec<u8>,
    /// What it complained about, as one line.
    pub(crate) complaint: String,
}

/// Runs `program` of the Debian package `package`.
pub(crate) fn run(
    program: &'static str,
    package: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
) -> Result<Ran, Error> {
    let path = find(program).ok_or_else(|| {
        Error::Unsupported(format!("the program {program} is not installed (Debian package {package})"))
    })?;
    let failed = || Error::io(format!("running {}", path.display()));
    let begun = Instant::now();
    let mut child = Command::new(&path)
        .args(arguments)
        .env_clear()
        .env("PATH", PLACES.join(":"))
        .env("LC_ALL", "C")
        .envs(environment.iter().copied())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let number = RUN.fetch_add(1, Ordering::Relaxed) + 1;
    let heard = listen(&mut child, begun + LIMIT).and_then(|heard| match heard {
        Some(said) => Ok(Some(said)),
        None => {
            stop(&child, Signal::SIGTERM);
            listen(&mut child, Instant::now() + GRACE).map(|_| None)
        }
    });
    let Some((out, complaint)) = heard.map_err(failed())? else {
        stop(&child, Signal::SIGKILL);
        // A process that waits for a dead device does not even end then: nobody waits for it here.
        std::thread::spawn(move || child.wait());
        let late = io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", LIMIT.as_secs()));
        return Err(failed()(late));
    };
    let code = child.wait().map_err(failed())?.code();
    let words = arguments.join(" ");
    tracing::debug!(program, words, code, number, milliseconds = begun.elapsed().as_millis(), "command");
    Ok(Ran { code, out, complaint: one_line(&complaint) })
}

fn find(program: &str) -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join(program)).find(|path| path.is_file())
}

fn stop(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It is a child that was not waited for, so the number is still its own.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Reads both outputs to their ends; `None` if the deadline comes first.
fn listen(child: &mut Child, deadline: Instant) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let (mut out, mut complaint) = (Vec::new(), Vec::new());
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    while stdout.is_some() || stderr.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        let fds = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(0) => {
                (child.stdout, child.stderr) = (stdout, stderr);
                return Ok(None);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        let out_ready = stdout.is_some() && ready.next() == Some(true);
        let err_ready = stderr.is_some() && ready.next() == Some(true);
        if out_ready && !read_some(stdout.as_mut(), &mut out)? {
            stdout = None;
        }
        if err_ready && !read_some(stderr.as_mut(), &mut complaint)? {
            stderr = None;
        }
    }
    Ok(Some((out, complaint)))
}

/// Takes what is there; `false` at the end.
fn read_some(from: Option<&mut impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    let Some(from) = from else { return Ok(false) };
    match from.read(&mut buffer) {
        Ok(count) => {
            into.extend_from_slice(&buffer[..count]);
            Ok(count > 0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}

/// Lines without their margins, joined; cut where it is much.
pub(crate) fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut line = lines.join("; ");
    if line.len() > TEXT {
        let end = (0..=TEXT).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Ran {
        run("sh", "dash", &["-c".to_owned(), script.to_owned()], &[("OWN", "1")]).unwrap()
    }

    #[test]
    fn what_a_program_says_is_kept() {
        let before = commands_run();
        let ran = sh("echo out; printf '  one\\n\\n two\\n' >&2; exit 5");
        assert_eq!(
            (ran.code, ran.out.as_slice(), ran.complaint.as_str()),
            (Some(5), &b"out\n"[..], "one; two")
        );
        assert!(commands_run() > before);
        let ran = sh("head -c 300000 /dev/zero; head -c 300000 /dev/zero | tr '\\0' x >&2");
        assert_eq!((ran.out.len(), ran.complaint.len()), (300_000, TEXT + 4), "more than a pipe holds");
    }

    #[test]
    fn the_environment_is_not_ours() {
        let ran = sh("echo $OWN:$LC_ALL:$HOME:$PATH; cat");
        assert_eq!(String::from_utf8(ran.out).unwrap(), format!("1:C::{}\n", PLACES.join(":")));
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = run("no-such-program", "some-package", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("some-package"), "{error}");
    }
}
