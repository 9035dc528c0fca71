//! fio writes to a served disk at full rate, and verifies, while snapshots of the disk are taken, destroyed and merged.

mod harness;

use anyhow::{Context, Result, anyhow, ensure};
use harness::{Agent, nightly, peer, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};

/// How many snapshots are taken, destroyed and merged.
fn cycles() -> usize {
    if nightly() { 100 } else { 12 }
}

/// Passes of fio until `over`, each over the whole disk and with another seed, so that a block of an older pass is no block
/// of this one. Returns how many.
fn passes(uri: &str, over: &AtomicBool) -> Result<u32> {
    let uri = format!("--uri={uri}");
    let mut pass = 0;
    while !over.load(Ordering::Relaxed) {
        pass += 1;
        let seed = format!("--randseed={pass}");
        let mixed = if pass % 2 == 0 { "--bs=4k" } else { "--bsrange=512-64k" };
        let job =
            ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--iodepth=16", mixed, "--size=32M"];
        let checks = [
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=200",
            "--verify_state_save=0",
            &seed,
            "--minimal",
        ];
        peer("fio", "fio", &[&job[..], &checks].concat())?;
    }
    Ok(pass)
}

#[test]
fn full_rate_under_snapshots_and_merges() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    agent.ok(&["vdi", "create", "--sr", "store", "--size", "32MiB", "--name", "disk"])?;
    let uri = agent.ok(&["vdi", "attach", "disk"])?;
    let over = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let writing = scope.spawn(|| passes(&uri, &over));
        let cycled =
            grows(&agent).and_then(|()| (1..=cycles()).try_for_each(|cycle| cycle_once(&agent, cycle)));
        over.store(true, Ordering::Relaxed);
        let made = writing.join().map_err(|_| anyhow!("fio's thread has panicked"))?;
        cycled.and(made)
    })?;
    ensure!(made > 0, "fio has made a pass");
    agent.ok(&["vdi", "detach", "disk"])?;
    agent.run_merges("store")?;
    ensure!(agent.depth("disk")? == 1, "nothing is left to merge");
    agent.ok(&["sr", "check", "store"])?;
    agent.stop()
}

/// What a disk takes is told while it is being written.
fn grows(agent: &Agent) -> Result<()> {
    let own = || agent.json(&["vdi", "show", "disk"])?["own_bytes"].as_u64().context("bytes");
    wait_until("the record of a disk says what was written", || Ok(own()? > 1 << 20))
}

/// Two snapshots, both destroyed, and what they leave merged.
fn cycle_once(agent: &Agent, cycle: usize) -> Result<()> {
    let snapshots: Vec<String> = (0..2)
        .map(|number| agent.ok(&["vdi", "snapshot", "disk", "--name", &format!("s{cycle}.{number}")]))
        .collect::<Result<_>>()?;
    for snapshot in snapshots {
        agent.ok(&["vdi", "destroy", &snapshot])?;
    }
    agent.run_merges("store")?;
    let depth = agent.depth("disk")?;
    ensure!(depth == 1, "all is merged, the leaf too, and there are {depth} images");
    Ok(())
}
