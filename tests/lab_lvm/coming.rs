//! An SR that goes and comes, with what it holds.

use crate::harness::lab::{self, run};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Result, ensure};

/// As after a crash of the host: what was active, mounted and attached is found so, by who has no memory of it.
#[test]
fn an_sr_is_detached_and_attached() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.write(&disk, 0, &[1; 8192])?;
        store.agent.ok(&["sr", "detach", &store.sr])?;
        let nodes = run("dmsetup", &["ls"])?;
        ensure!(!nodes.contains("catena"), "a detached SR has nothing active: {nodes}");
        store.agent.ok(&["sr", "attach", &store.sr])?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [1; 8192]);
        store.agent.kill()?;
        store.agent.launch(None)?;
        wait_until("the SR is back", || Ok(store.record(&disk).is_ok()))?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [1; 8192]);
        // Its name does not matter: it is found by what is on its device.
        store.agent.ok(&["sr", "detach", &store.sr])?;
        store.agent.ok(&["sr", "attach", &store.sr])?;
        store.agent.ok(&["vdi", "destroy", &disk, "--yes"])?;
        wait_until("its volume is removed", || Ok(store.volumes()?.is_empty()))?;
        store.agent.ok(&["sr", "detach", &store.sr])?;
        store.agent.ok(&["sr", "attach", &store.sr])?;
        store.agent.ok(&["sr", "destroy", &store.sr, "--yes"])?;
        ensure!(run("pvs", &["--noheadings"])?.trim().is_empty(), "nothing is left on its device");
        store.agent.stop()
    })
}
