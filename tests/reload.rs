//! SIGHUP: the agent reads its configuration and `sr.d` again; what is wrong is reported and changes nothing.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::Agent;
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends SIGHUP and waits until the agent has told its service manager that it is done.
fn reload(agent: &Agent, manager: &UnixDatagram) -> Result<()> {
    kill(agent.pid().context("the agent runs")?, Signal::SIGHUP)?;
    ensure!(heard(manager)? == "RELOADING=1" && heard(manager)? == "READY=1", "{}", agent.log());
    Ok(())
}

fn heard(manager: &UnixDatagram) -> Result<String> {
    let mut text = [0; 128];
    let length = manager.recv(&mut text).context("no word of the agent")?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[test]
fn a_hangup_reads_the_configuration_again_and_a_bad_one_changes_nothing() -> Result<()> {
    let mut agent = Agent::stopped()?;
    let manager = UnixDatagram::bind(agent.path("notify"))?;
    manager.set_read_timeout(Some(PATIENCE))?;
    agent.launch_with(None, &[("NOTIFY_SOCKET", &agent.path("notify"))])?;
    ensure!(heard(&manager)? == "READY=1");
    let place = agent.path("sr").to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    let configuration = agent.path("etc/catena/catenad.toml");

    let answered = "VDI.list";
    agent.ok(&["vdi", "list"])?;
    ensure!(!agent.log().contains(answered), "a look is logged at debug only: {}", agent.log());
    for bad in ["log = \"debug\"\ncolour = 1\n", "log = [", "log = \"catena=much\"\n"] {
        fs::write(&configuration, bad)?;
        let reports = agent.log().matches("the old configuration stays").count();
        reload(&agent, &manager)?;
        ensure!(
            agent.log().matches("the old configuration stays").count() == reports + 1,
            "{bad}: {}",
            agent.log()
        );
        agent.ok(&["vdi", "list"])?;
        ensure!(!agent.log().contains(answered), "{bad} has changed the log: {}", agent.log());
    }
    fs::write(&configuration, "log = \"debug\"\nhost_id = \"another\"\n")?;
    reload(&agent, &manager)?;
    agent.ok(&["vdi", "list"])?;
    ensure!(agent.log().contains(answered) && agent.log().contains("after a restart"), "{}", agent.log());

    // A file of an SR that comes is taken in, one that makes no sense is reported and costs the others nothing.
    let file = agent.path(format!("etc/catena/sr.d/{sr}.toml"));
    let text = fs::read_to_string(&file)?;
    agent.ok(&["sr", "detach", &sr])?;
    agent.ok(&["sr", "forget", &sr])?;
    fs::write(&file, text)?;
    fs::write(agent.path("etc/catena/sr.d/broken.toml"), "uuid = 1\n")?;
    reload(&agent, &manager)?;
    ensure!(agent.log().contains("broken.toml"), "{}", agent.log());
    let end = Instant::now() + PATIENCE;
    while agent.json(&["sr", "show", &sr])?["state"] != "attached" {
        ensure!(Instant::now() < end, "not attached: {}", agent.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.stop()?;
    ensure!(heard(&manager)? == "STOPPING=1");
    Ok(())
}
