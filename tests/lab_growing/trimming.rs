//! `sr trim` of a volume group: free extents are discarded, nothing else is, and nobody has to wait for it.

use crate::harness::lab::{self, Disk, run};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::wait_until;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

/// What is on the device before it is anybody's.
const OLD: u8 = b'Z';

/// A disk full of what others have left.
fn used(mib: u64) -> Result<Disk> {
    let disk = Disk::new(mib)?;
    let mut file = File::options().write(true).open(disk.path())?;
    let old = vec![OLD; 1 << 20];
    (0..mib).try_for_each(|_| file.write_all(&old))?;
    file.sync_all()?;
    Ok(disk)
}

impl Store {
    /// The free ranges of the disk, in bytes: where they begin, and how long they are.
    fn free_ranges(&self) -> Result<Vec<(u64, u64)>> {
        let columns = "pe_start,vg_extent_size,pvseg_start,pvseg_size,segtype";
        let form = ["--segments", "--foreign", "--reportformat", "json", "--units", "b", "--nosuffix", "-o"];
        let said = run("pvs", &[&form[..], &[columns]].concat())?;
        let report: Value = serde_json::from_str(&said)?;
        let rows = report["report"][0]["pvseg"].as_array().context("segments")?.clone();
        let mut ranges = Vec::new();
        for row in rows.iter().filter(|row| row["segtype"] == "free") {
            let number = |name: &str| row[name].as_str().unwrap_or("").parse::<u64>();
            let extent = number("vg_extent_size")?;
            ranges.push((
                number("pe_start")? + number("pvseg_start")? * extent,
                number("pvseg_size")? * extent,
            ));
        }
        Ok(ranges)
    }

    /// How many pages at the beginning of the extents of free ranges have what stood there before.
    fn old_pages(&self) -> Result<u64> {
        let device = File::open(self.disk.path())?;
        let mut count = 0;
        for (start, length) in self.free_ranges()? {
            // The first page of a volume is wiped when it is made, so the second is looked at.
            for at in (start + 4096..start + length).step_by(4 << 20) {
                let mut page = [0; 4096];
                device.read_exact_at(&mut page, at)?;
                count += u64::from(page.iter().all(|byte| *byte == OLD));
            }
        }
        Ok(count)
    }

    /// The queue of the disk in the kernel.
    fn limit(&self) -> Result<std::path::PathBuf> {
        let node = fs::canonicalize(self.disk.path())?;
        let known = run("stat", &["-c", "%Hr:%Lr", &node.to_string_lossy()])?;
        Ok(format!("/sys/dev/block/{}/queue/discard_max_bytes", known.trim()).into())
    }
}

#[test]
fn what_is_free_is_given_back_and_nothing_else() -> Result<()> {
    lab::test(|| {
        let store = Store::on(used(512)?, "thin")?;
        let [kept, gone] = ["kept", "gone"].map(|name| store.vdi("16MiB", name));
        let (kept, gone) = (kept?, gone?);
        store.agent.write(&gone, 0, &vec![OLD; 8 << 20])?;
        store.agent.write(&kept, 0, &[1; 4096])?;
        store.agent.ok(&["vdi", "snapshot", &kept, "--name", "before"])?;
        store.agent.ok(&["vdi", "destroy", &gone, "--yes"])?;
        store.settle()?;
        let mut guest = Client::connect(&store.attach(&kept)?)?;
        ensure!(guest.write(2 << 20, &[2; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        ensure!(store.old_pages()? > 50, "there is something to see");

        // One that is stopped has done a part; others take what is free meanwhile.
        let begun = store.agent.call("SR.trim", &json!({"sr": store.sr}))?;
        let job = begun.map_err(|error| anyhow::anyhow!("{error}"))?["id"].clone();
        let meanwhile = store.vdi("16MiB", "meanwhile")?;
        store.agent.call("Job.cancel", &json!({"job": job}))?.map_err(|error| anyhow::anyhow!("{error}"))?;
        wait_until("it has ended", || {
            let job = store.agent.call("Job.get", &json!({"job": job}))?;
            Ok(job.is_ok_and(|job| job["state"] == "cancelled" || job["state"] == "done"))
        })?;
        store.agent.ok(&["vdi", "destroy", &meanwhile, "--yes"])?;
        store.settle()?;

        let free: u64 = store.free_ranges()?.iter().map(|(_, length)| length).sum();
        let report = store.agent.json(&["sr", "trim", &store.sr])?;
        ensure!(report["discarded"] == free && report["skipped"] == json!([]), "{report}: {free}");
        ensure!(store.old_pages()? == 0, "{} old pages are left", store.old_pages()?);
        ensure!(guest.read(0, 4096)? == Ok(vec![1; 4096]) && guest.read(2 << 20, 4096)? == Ok(vec![2; 4096]));

        let limit = store.limit()?;
        let before = fs::read_to_string(&limit)?;
        fs::write(&limit, "0")?;
        let said = store.refused(&["sr", "trim", &store.sr], "unsupported", 8)?;
        ensure!(said.contains("lab-0 cannot discard"), "{said}");
        fs::write(&limit, before.trim())?;
        guest.disconnect()?;
        store.agent.ok(&["vdi", "detach", &kept])?;
        store.clean()
    })
}
