//! fio writes at full rate and verifies, while snapshots are taken, destroyed and merged, and the disk grows.

use crate::harness::nbd::Client;
use crate::harness::{lab, peer, wait_until};
use crate::store::Store;
use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Passes of fio over the first 8 MiB of the disk until `over`, each with another seed. Returns how many.
fn passes(socket: &Path, over: &AtomicBool) -> Result<u32> {
    let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
    let mut pass = 0;
    while !over.load(Ordering::Relaxed) {
        pass += 1;
        let seed = format!("--randseed={pass}");
        let job = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--iodepth=16", "--size=8M"];
        let checks = ["--bsrange=512-64k", "--verify=crc32c", "--verify_fatal=1", "--fsync=100"];
        let rest = ["--verify_state_save=0", &seed, "--minimal", "--thread"];
        peer("fio", "fio", &[&job[..], &checks, &rest].concat())?;
    }
    Ok(pass)
}

#[test]
fn full_rate_under_snapshots_and_merges() -> Result<()> {
    lab::test(|| {
        let store = Store::new(2048, "thin")?;
        let disk = store.vdi("16MiB", "disk")?;
        let socket = store.attach(&disk)?;
        let over = AtomicBool::new(false);
        let made = std::thread::scope(|scope| {
            let writing = scope.spawn(|| passes(&socket, &over));
            let cycled = (1..=3).try_for_each(|cycle| cycle_once(&store, &disk, cycle));
            over.store(true, Ordering::Relaxed);
            let made = writing.join().map_err(|_| anyhow!("fio's thread has panicked"))?;
            cycled.and(made)
        });
        ensure!(made.with_context(|| store.agent.log())? > 0, "fio has made a pass");
        let held = content(&socket)?;
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.agent.hash(&disk)? == held, "a detached disk holds something else");
        store.agent.ok(&["vdi", "destroy", "kept", "--yes"])?;
        store.settle()?;
        wait_until("one image is left", || Ok(store.volumes()?.len() == 1))?;
        ensure!(store.agent.hash(&disk)? == held, "a merged disk holds something else");
        store.clean()
    })
}

/// Two snapshots, both destroyed, and what they leave merged. The second time a third one stays, so that base copies are merged and
/// the leaf is not; the third time the disk grows, too, and no less is taken for thick volumes.
fn cycle_once(store: &Store, disk: &str, cycle: u64) -> Result<()> {
    let snapshot = |name: &str| store.agent.ok(&["vdi", "snapshot", disk, "--name", name]);
    let taken = [snapshot("first")?, snapshot("second")?];
    if cycle == 2 {
        snapshot("kept")?;
    }
    for snapshot in &taken {
        store.agent.ok(&["vdi", "destroy", snapshot, "--yes"])?;
    }
    if cycle == 3 {
        store.agent.ok(&["sr", "policy", &store.sr, "allocation=thick"])?;
        store.agent.ok(&["vdi", "resize", disk, "24MiB"])?;
    }
    store.settle()?;
    let wanted = if cycle == 1 { 1 } else { 2 };
    let record = store.record(disk)?;
    ensure!(record["depth"] == wanted, "all is merged that can be, the leaf too: {record}");
    Ok(())
}

/// The SHA-256 of what a client reads.
fn content(socket: &Path) -> Result<String> {
    let mut client = Client::connect(socket)?;
    let mut sum = Sha256::new();
    for at in (0..client.size).step_by(4 << 20) {
        let data = client.read(at, 4 << 20)?;
        sum.update(data.map_err(|error| anyhow!("reading at {at}: {error}"))?);
    }
    client.disconnect()?;
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
