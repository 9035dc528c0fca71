//! `sr grow` while disks are used and a merge waits for room, and what is left of one that was cut short.

use crate::harness::lab::{self, Disk, run};
use crate::harness::nbd::{Client, FLUSH};
use crate::harness::{text, wait_until};
use crate::points::GROWTHS;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use std::fs;

impl Store {
    fn number(&self, field: &str) -> Result<u64> {
        let record = self.agent.json(&["sr", "show", &self.sr])?;
        record[field].as_u64().with_context(|| format!("{field} in {record}"))
    }

    fn grow(&self, devices: &[&Disk]) -> Result<u64> {
        let devices: Vec<String> = devices.iter().map(|disk| text(&disk.path())).collect();
        let devices = devices.join(",");
        let mut words = vec!["sr", "grow", self.sr.as_str()];
        if !devices.is_empty() {
            words.extend(["--devices", &devices]);
        }
        let report = self.agent.json(&words)?;
        report["grown_by"].as_u64().with_context(|| format!("{report}"))
    }

    /// The devices of the SR, as its record and the file that outlives the agent have them.
    fn has_devices(&self, devices: &[&Disk]) -> Result<()> {
        let wanted: Vec<String> = devices.iter().map(|disk| text(&disk.path())).collect();
        let record = self.agent.json(&["sr", "show", &self.sr])?;
        ensure!(record["devices"] == serde_json::json!(wanted), "{record}");
        let remembered = fs::read_to_string(self.agent.path(format!("etc/catena/sr.d/{}.toml", self.sr)))?;
        ensure!(remembered.contains(&format!("devices = {wanted:?}")), "{remembered}");
        Ok(())
    }

    /// The size of the catalog's volume and of its file system, in MiB.
    fn catalog(&self) -> Result<(u64, u64)> {
        let group = self.group();
        let form = ["--foreign", "--noheadings", "--units", "m", "--nosuffix", "-o", "lv_size"];
        let volume = run("lvs", &[&form[..], &[&format!("{group}/catalog")]].concat())?;
        let mounted = self.agent.path(format!("run/catena/sr/{}", self.sr));
        let system = run("stat", &["-f", "-c", "%b %S", &text(&mounted)])?;
        let (blocks, size) = system.trim().split_once(' ').context("the file system")?;
        let bytes = blocks.parse::<u64>()? * size.parse::<u64>()?;
        Ok((volume.trim().split('.').next().unwrap_or("").parse()?, bytes >> 20))
    }
}

#[test]
fn a_group_grows_and_what_waits_for_room_goes_on() -> Result<()> {
    lab::test(|| {
        let mut store = Store::new(1024, "thin")?;
        let second = Disk::new(2048)?;
        let disk = store.vdi("480MiB", "disk")?;
        store.agent.write(&disk, 0, &[1; 4096])?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        let snapshot = store.agent.ok(&["vdi", "snapshot", &disk, "--name", "snapshot"])?;
        let mut guest = Client::connect(&store.attach(&disk)?)?;
        ensure!(guest.write(4096, &[2; 4096], 0)? == 0 && guest.ask(FLUSH, 0, 0, 0)? == 0);
        store.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        let mut last = serde_json::Value::Null;
        wait_until("the merge has no room", || {
            last = store.agent.json(&["coalesce", "status", &store.sr])?["srs"][0].clone();
            Ok(last["reason"]["code"] == "no_space")
        })
        .with_context(|| last.to_string())?;
        let before = store.number("physical_size")?;
        ensure!(store.grow(&[])? == 0 && store.number("physical_size")? == before, "nothing has grown");
        store.disk.resize(1536)?;
        ensure!(store.grow(&[])? == 512 << 20, "{}", store.agent.log());
        ensure!(store.number("physical_size")? == before + (512 << 20));
        store.settle()?;
        ensure!(store.record(&disk)?["depth"] == 1, "the merge was told: {}", store.record(&disk)?);

        // What a device holds is named, and left alone.
        let node = text(&second.path());
        run("mkfs.ext4", &["-q", &node])?;
        let said = store.refused(&["sr", "grow", &store.sr, "--devices", &node], "sr_not_empty", 4)?;
        ensure!(said.contains("ext4") && said.contains(&node), "{said}");
        run("fsck.ext4", &["-n", "-f", &node])?;
        run("wipefs", &["-q", "-a", &node])?;
        run("vgcreate", &["-qq", "theirs", &node])?;
        let said = store.refused(&["sr", "grow", &store.sr, "--devices", &node], "sr_not_empty", 4)?;
        ensure!(said.contains("theirs"), "{said}");
        run("vgremove", &["-qq", "theirs"])?;
        let said = store.refused(&["sr", "grow", &store.sr, "--devices", &node], "sr_not_empty", 4)?;
        ensure!(said.contains("physical volume"), "{said}");
        run("pvremove", &["-qq", &node])?;
        store.refused(&["sr", "grow", &store.sr, "--devices", "/dev/no-such"], "sr_unavailable", 3)?;
        store.has_devices(&[&store.disk])?;

        ensure!(store.grow(&[&second])? > 2000 << 20);
        store.has_devices(&[&store.disk, &second])?;
        ensure!(store.grow(&[&second, &store.disk])? == 0, "they are there");
        store.has_devices(&[&store.disk, &second])?;
        ensure!(
            store.catalog()?.0 > 100,
            "the catalog has its part of the larger group: {:?}",
            store.catalog()?
        );
        ensure!(store.catalog()?.1 > 90, "and uses it: {:?}", store.catalog()?);
        // On both devices.
        let large = store.vdi("2GiB", "large")?;
        let mut other = Client::connect(&store.attach(&large)?)?;
        ensure!(other.write((2 << 30) - 4096, &[3; 4096], 0)? == 0 && other.ask(FLUSH, 0, 0, 0)? == 0);
        ensure!(guest.read(0, 8192)? == Ok([[1; 4096], [2; 4096]].concat()));
        for (client, vdi) in [(guest, &disk), (other, &large)] {
            client.disconnect()?;
            store.agent.ok(&["vdi", "detach", vdi])?;
        }
        store.agent.ok(&["sr", "detach", &store.sr])?;
        store.agent.ok(&["sr", "attach", &store.sr])?;
        ensure!(store.agent.read(&large, (2 << 30) - 4096, 4096)? == [3; 4096]);
        store.clean()
    })
}

#[test]
fn a_growth_that_was_cut_short_is_repeated() -> Result<()> {
    lab::test(|| {
        let store = Store::mortal(512)?;
        let (second, third) = (Disk::new(512)?, Disk::new(512)?);
        let disk = store.vdi("16MiB", "disk")?;
        store.agent.write(&disk, 0, &[1; 4096])?;
        // Up to the commit of lvm2 a second device is added, from there on a third, too.
        let devices = [&second, &third].map(|disk| text(&disk.path()));
        for at in GROWTHS {
            let is_before = ["grow.journaled", "group.added", "group.extended"].contains(at);
            let added = if is_before { devices[0].clone() } else { devices.join(",") };
            store.agent.arm(at)?;
            let said = store.agent.catena(&["sr", "grow", &store.sr, "--devices", &added])?;
            ensure!(said.code != 0, "{at}: {said:?}");
            store.agent.await_death(at)?;
            store.agent.wait_attached(&store.sr)?;
            let sizes = store.number("physical_size")? >> 20;
            let wanted = match *at {
                "grow.journaled" | "group.added" => 400..520,
                "group.extended" => 900..1030,
                _ => 1300..1540,
            };
            ensure!(wanted.contains(&sizes), "{at}: {sizes} MiB");
        }
        // Nobody has written down that they are there.
        ensure!(store.grow(&[&second, &third])? == 0, "they were there");
        store.has_devices(&[&store.disk, &second, &third])?;
        ensure!(store.agent.read(&disk, 0, 4096)? == [1; 4096]);
        let jobs = store.agent.json(&["job", "list"])?;
        let grows = jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["kind"] == "grow");
        let states: Vec<String> = grows.map(|job| job["state"].to_string()).collect();
        ensure!(
            states.iter().filter(|state| state.contains("failed")).count() == GROWTHS.len() - 1,
            "{states:?}"
        );
        store.clean()
    })
}
