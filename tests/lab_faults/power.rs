//! A power cut: from one moment on nothing reaches the device, then everything that was in memory is gone.

use crate::broken::forget_devices;
use crate::harness::attached;
use crate::harness::lab::{self, Fault};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Result, ensure};
use std::fs;

/// What was flushed before is there, and every image is sound.
#[test]
fn a_power_cut_takes_nothing_that_was_flushed() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(1024, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let socket = store.attach(&disk)?;
        let mut guest = Client::connect(&socket)?;
        ensure!(guest.write(0, &[1; 8192], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        ensure!(guest.write(4096, &[2; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.disk.load(&[(0..1024 << 11, Fault::Lost)])?;
        ensure!(guest.write(1 << 20, &[3; 4096], 0)? == 0);
        store.agent.ok(&["vdi", "set", &disk, "name_label=late"])?;
        store.agent.kill()?;
        attached::end_served(&store.agent.path(""))?;
        forget_devices(&store)?;
        // Without the writes that are to be lost, and that the kernel takes for stored.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        fs::remove_dir_all(store.agent.path("run"))?;
        store.disk.load(&[])?;
        store.agent.launch(None)?;
        wait_until("the SR is back", || Ok(store.record(&disk).is_ok()))?;
        ensure!(store.record(&disk)?["name_label"] == "disk", "the cut was real");
        store.agent.ok(&["vdi", "detach", &disk])?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [[1; 4096], [2; 4096]].concat(), "what was flushed");
        ensure!(store.agent.read(&snapshot, 0, 8192)? == [1; 8192]);
        store.agent.is_clean(&store.sr)?;
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        store.settle()?;
        ensure!(store.agent.read(&disk, 0, 8192)? == [[1; 4096], [2; 4096]].concat(), "after a merge");
        store.clean()
    })
}
