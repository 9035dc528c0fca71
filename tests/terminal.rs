//! What a person at a terminal and the shell around it see: watching, completions, manual pages, usage.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, peer, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// An agent with an SR `store` that has a disk `disk`.
fn with_disk() -> Result<Agent> {
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    agent.ok(&["vdi", "create", "--sr", "store", "--size", "8MiB", "--name", "disk"])?;
    Ok(agent)
}

#[test]
fn watching_ends_with_ctrl_c_with_its_reader_and_with_the_agent() -> Result<()> {
    let mut agent = with_disk()?;
    for watch in [&["event", "watch"][..], &["coalesce", "status", "--watch"][..]] {
        let mut child = watcher(&agent, watch)?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let line = until_news(&agent, &mut lines)?;
        ensure!(line.contains("vdi.created") || line.starts_with("SR "), "{line}");
        drop(lines);
        // Nobody reads any more: the next line ends it well.
        wait_until("the end of a watch without a reader", || {
            agent.ok(&["vdi", "create", "--sr", "store", "--size", "2MiB", "--name", "news"])?;
            toggle(&agent)?;
            Ok(child.try_wait()?.is_some())
        })?;
        ensure!(child.wait()?.code() == Some(0), "{watch:?}");

        let mut child = watcher(&agent, watch)?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        until_news(&agent, &mut lines)?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        ensure!(child.wait()?.code() == Some(130), "{watch:?}");
    }
    let mut watchers = Vec::new();
    for watch in [&["event", "watch"][..], &["coalesce", "status", "--watch"][..]] {
        let mut child = watcher(&agent, watch)?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        until_news(&agent, &mut lines)?;
        watchers.push((child, lines));
    }
    agent.kill()?;
    for (mut child, _lines) in watchers {
        ensure!(child.wait()?.code() == Some(3), "the agent is gone");
    }
    Ok(())
}

fn watcher(agent: &Agent, arguments: &[&str]) -> Result<Child> {
    Ok(agent.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

/// Makes news until the watcher has printed a line: when it has subscribed cannot be seen from outside.
fn until_news(agent: &Agent, lines: &mut std::io::Lines<impl BufRead + Send>) -> Result<String> {
    thread::scope(|scope| {
        let first = scope.spawn(|| lines.next());
        while !first.is_finished() {
            agent.ok(&["vdi", "create", "--sr", "store", "--size", "2MiB", "--name", "news"])?;
            thread::sleep(Duration::from_millis(20));
        }
        let line = first.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
        line.context("the watcher has ended")?.map_err(anyhow::Error::from)
    })
}

/// Changes the state of the worker.
fn toggle(agent: &Agent) -> Result<()> {
    let paused = agent.json(&["coalesce", "status"])?["srs"][0]["state"] == "paused";
    agent.ok(&["coalesce", if paused { "resume" } else { "pause" }, "store"]).map(drop)
}

#[test]
fn the_shell_completes_commands_and_names() -> Result<()> {
    let agent = with_disk()?;
    let scripts = agent.path("completions");
    agent.ok(&["generate", "completions", &scripts.to_string_lossy()])?;
    for file in ["catena", "_catena", "catena.fish"] {
        ensure!(fs::read_to_string(scripts.join(file))?.contains("CATENA_COMPLETE"), "{file}");
    }
    let root = agent.path("").to_string_lossy().into_owned();
    let words = ["catena", "--root", &root, "vdi", "show", "di"];
    ensure!(bash(&scripts, &words)? == ["disk"], "{:?}", bash(&scripts, &words)?);
    let verbs = bash(&scripts, &["catena", "coalesce", "r"])?;
    ensure!(verbs == ["run", "resume"], "{verbs:?}");
    let uuid = agent.ok(&["vdi", "create", "--sr", "store", "--size", "2MiB", "--name", "$(reboot) now"])?;
    let all = bash(&scripts, &["catena", "--root", &root, "vdi", "snapshot", ""])?;
    ensure!(all.contains(&"disk".to_owned()) && all.contains(&uuid), "{all:?}");
    ensure!(!all.iter().any(|word| word.contains("reboot")), "{all:?}");
    // Without an agent there is nothing to offer, and no complaint.
    let nowhere = bash(&scripts, &["catena", "--root", "/nonexistent", "vdi", "show", "di"])?;
    ensure!(nowhere.iter().all(String::is_empty), "{nowhere:?}");
    // The way of the other shells, with the label or uuid beside the word.
    let fish = Command::new(env!("CARGO_BIN_EXE_catena"))
        .env("CATENA_COMPLETE", "fish")
        .args(["--", "catena", "--root", &root, "sr", "show", "sto"])
        .output()?;
    ensure!(String::from_utf8(fish.stdout)?.starts_with("store\t"));
    Ok(())
}

/// What bash offers for the last of the words.
fn bash(scripts: &Path, words: &[&str]) -> Result<Vec<String>> {
    let program = Path::new(env!("CARGO_BIN_EXE_catena")).parent().context("a directory")?;
    let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  _clap_complete_catena catena \"${COMP_WORDS[COMP_CWORD]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let path = format!("{}:{}", program.display(), std::env::var("PATH")?);
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(scripts.join("catena"))
        .args(words)
        .env("PATH", path)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn every_command_has_a_manual_page_with_an_example() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let into = directory.path().to_string_lossy().into_owned();
    peer("catena", env!("CARGO_BIN_EXE_catena"), &["generate", "man", &into])?;
    let page = fs::read_to_string(directory.path().join("catena-vdi-clone.1"))?;
    for part in [".TH catena-vdi-clone 1", ".SH EXAMPLES", "catena vdi clone golden", ".SH OPTIONS"] {
        ensure!(page.contains(part), "{part}: {page}");
    }
    ensure!(fs::read_to_string(directory.path().join("catena.1"))?.contains(".SH NOTES"));
    ensure!(!directory.path().join("catena-generate.1").exists(), "hidden");
    Ok(())
}

#[test]
fn a_usage_error_exits_2_and_prints_on_stderr_only() -> Result<()> {
    let agent = Agent::stopped()?;
    for line in [&["disk"][..], &["vdi", "create", "--size", "10GB"], &["sr"], &["vdi", "show"]] {
        let said = agent.catena(line)?;
        ensure!(
            said.code == 2
                && said.out.is_empty()
                && (said.err.contains("Usage:") || said.err.contains("--help")),
            "{line:?}: {said:?}"
        );
    }
    let said = agent.catena(&["vdi", "clone", "--help"])?;
    ensure!(said.code == 0 && said.err.is_empty() && said.out.contains("Example"), "{said:?}");
    Ok(())
}
