//! The file system of the catalog is damaged: mended where that has one answer, and lost otherwise. The images have everything that
//! another catalog needs.

use crate::harness::lab::{self, Fault, run};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Write, pipe};
use std::ops::Range;
use std::os::fd::AsFd;
use std::thread;

impl Store {
    /// A command of lvm2 by the owner of the group.
    fn as_owner(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let owner =
            run("vgs", &["--foreign", "--noheadings", "-o", "vg_systemid", &self.group()])?.trim().to_owned();
        let settings = format!("global{{system_id_source=\"lvmlocal\"}} local{{system_id={owner:?}}}");
        run(command, &[&["-qq", "--yes", "--config", &settings], arguments].concat())
    }

    /// While the SR is detached, does this to the file system of its catalog. Returns where the volume lies.
    fn damage(&self, requests: &[&str]) -> Result<Vec<Range<u64>>> {
        self.agent.ok(&["sr", "detach", &self.sr])?;
        let volume = format!("{}/catalog", self.group());
        self.as_owner("lvchange", &["-ay", &volume])?;
        let node = format!("/dev/mapper/{}-catalog", self.group().replace('-', "--"));
        for request in requests {
            run("debugfs", &["-w", "-R", request, &node])?;
        }
        let ranges = self.ranges("catalog")?;
        self.as_owner("lvchange", &["-an", &volume])?;
        Ok(ranges)
    }

    /// The catalog is lost, for good, and made anew; the disk is there.
    fn is_made_anew(&self, disk: &str) -> Result<()> {
        for _ in 0..2 {
            let said = self.refused(&["sr", "attach", &self.sr], "metadata", 7)?;
            ensure!(said.contains("sr introduce"), "the way out is named: {said}");
        }
        let record = self.agent.json(&["sr", "show", &self.sr])?;
        ensure!(record["error"]["retry"] == false, "nothing passes here: {record}");
        let device = self.disk.path();
        let device = device.to_str().context("a path")?;
        self.agent.ok(&["sr", "introduce", "--type", "lvm", "--devices", device])?;
        self.has_disk(disk)
    }

    fn has_disk(&self, disk: &str) -> Result<()> {
        ensure!(self.record(disk)?["name_label"] == "disk");
        ensure!(self.agent.read(disk, 0, 8192)? == [1; 8192], "{}", self.agent.log());
        Ok(())
    }

    fn mended(&self) -> Result<usize> {
        self.events("sr.catalog_mended")
    }
}

/// What marks a file system as one with errors.
const MARKED: &str = "set_super_value state 2";

#[test]
fn a_damaged_file_system_of_the_catalog_is_mended_or_given_up() -> Result<()> {
    lab::test(|| {
        let store = Store::new(512, "thin")?;
        let disk = store.vdi("16MiB", "disk")?;
        store.agent.write(&disk, 0, &[1; 8192])?;

        // Counters that are wrong: what they should be is known. It is said once.
        for requests in [&[MARKED, "set_super_value free_blocks_count 5"][..], &[]] {
            store.damage(requests)?;
            store.agent.ok(&["sr", "attach", &store.sr])?;
            store.has_disk(&disk)?;
            ensure!(store.mended()? == 1, "{}", store.agent.log());
        }

        // A device that fails is no damage, and passes.
        let ranges = store.damage(&[MARKED])?;
        let tables = ranges[0].start + 64..ranges[0].end;
        store.disk.load(&[(tables, Fault::Error)])?;
        store.refused(&["sr", "attach", &store.sr], "io_error", 1)?;
        store.disk.load(&[])?;
        wait_until("it is attached", || {
            Ok(store.agent.json(&["sr", "show", &store.sr])?["state"] == "attached")
        })
        .with_context(|| store.agent.log())?;
        store.has_disk(&disk)?;
        ensure!(store.mended()? == 2, "{}", store.agent.log());

        // Sound as a file system, and without what was committed last.
        store.damage(&[MARKED, "rm catalog.db-wal"])?;
        store.is_made_anew(&disk)?;

        // Nobody can say what it was.
        store.damage(&[MARKED, "clri <2>"])?;
        store.is_made_anew(&disk)?;
        let volumes = run("lvs", &["--foreign", "--noheadings", "-o", "lv_name", &store.group()])?;
        ensure!(volumes.contains("catalog-lost-1"), "{volumes}");
        store.clean()
    })
}

/// A job that has grown a volume, and cannot record that it has cut it again, is ended when the catalog can be written: no other keeper
/// is needed for that.
#[test]
fn what_a_job_could_not_record_is_recorded_when_the_catalog_works() -> Result<()> {
    lab::test(|| {
        let store = Store::new(512, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        let catalog = store.ranges("catalog")?;
        let (from, mut to) = pipe()?;
        let content = vec![7; 4 << 20];
        thread::scope(|scope| -> Result<()> {
            let asked = scope.spawn(|| {
                let params = json!({"vdi": disk, "offset": 0, "length": content.len(), "fd": 0});
                store.agent.call_with("VDI.write", &params, &[from.as_fd()])
            });
            // More than a pipe holds: somebody reads, so the volume has grown, and the job's row says so.
            to.write_all(&content[1..])?;
            store.break_these(catalog.iter().map(|range| range.start + 64..range.end).collect())?;
            to.write_all(&content[..1])?;
            drop(to);
            let answer = asked.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            ensure!(answer.is_err(), "what the leaf takes could not be recorded: {answer:?}");
            Ok(())
        })?;
        store.disk.load(&[])?;
        wait_until("the catalog works", || Ok(store.events("sr.catalog_renewed")? > 0))
            .with_context(|| store.agent.log())?;
        store.settle().with_context(|| store.agent.log())?;
        let jobs = store.agent.json(&["job", "list"])?;
        let rows = jobs["jobs"].as_array().context("jobs")?;
        let is_done = |job: &&Value| job["kind"] == "detach" && job["state"] == "done";
        ensure!(rows.iter().filter(is_done).count() == 1, "{jobs}");
        ensure!(store.agent.read(&disk, 0, 4 << 20)? == content, "it was written");
        store.clean()
    })
}
