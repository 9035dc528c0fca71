//! An SR of ours that has lost its catalog gets a new one from its images and the tags of their volumes, on this host and on another.

use crate::harness::lab::{self, Disk, run};
use crate::harness::{Agent, text};
use crate::{active, as_owner, changes, problems, refused};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// What must be as before: of each disk some of its record and the checksum of what it reads.
type Disks = BTreeMap<String, (Vec<Value>, String)>;

fn disks(agent: &Agent) -> Result<Disks> {
    let list = agent.json(&["vdi", "list"])?;
    let mut disks = Disks::new();
    for vdi in list["vdis"].as_array().context("disks")? {
        let fields = ["name_label", "is_a_snapshot", "snapshot_of", "virtual_size", "image"];
        let uuid = vdi["uuid"].as_str().context("a uuid")?.to_owned();
        let hash = agent.hash(&uuid)?;
        disks.insert(uuid, (fields.map(|name| vdi[name].clone()).into(), hash));
    }
    Ok(disks)
}

#[test]
fn a_lost_catalog_is_made_anew() -> Result<()> {
    lab::test(|| {
        let disk = Disk::new(1024)?;
        let device = text(&disk.path());
        let mut agent = Agent::start()?;
        let sr = agent.ok(&["sr", "create", "--type", "lvm", "--name", "store", "--devices", &device])?;
        let group = format!("catena-{sr}");
        let web =
            agent.ok(&["vdi", "create", "--sr", &sr, "--size", "16MiB", "--name", "web \"\u{fc}\", one"])?;
        agent.write(&web, 0, &[1; 9000])?;
        agent.ok(&["vdi", "snapshot", &web, "--name", "before"])?;
        agent.write(&web, 4 << 20, &[2; 70_000])?;
        agent.ok(&["vdi", "create", "--sr", &sr, "--size", "8MiB", "--name", "empty"])?;
        let wanted = disks(&agent)?;
        agent.ok(&["sr", "detach", &sr])?;

        // Its file system is no file system any more.
        let catalog = format!("{group}/catalog");
        as_owner(&group, "lvchange", &["-ay", &catalog])?;
        let node = format!("/dev/mapper/{}-catalog", group.replace('-', "--"));
        let file = File::options().write(true).open(&node)?;
        file.write_all_at(&vec![0; 1 << 20], 0)?;
        file.sync_all()?;
        drop(file);
        as_owner(&group, "lvchange", &["-an", &catalog])?;
        let said = refused(&agent, &["sr", "attach", &sr], 7)?;
        ensure!(said.contains("sr introduce"), "the way out is named: {said}");
        let before = changes(&group)?;
        let introduce = ["sr", "introduce", "--type", "lvm", "--devices", &device];
        let plan = agent.json(&[&introduce[..], &["--dry-run"]].concat())?;
        ensure!(problems(&plan)?.iter().any(|(object, ..)| object == "catalog"), "{plan}");
        ensure!(changes(&group)? == before && active(&group)?.is_empty(), "a dry run changes nothing");
        agent.ok(&introduce)?;
        ensure!(disks(&agent)? == wanted, "all disks are back: {}", agent.log());
        agent.is_clean(&sr)?;
        agent.ok(&["sr", "detach", &sr])?;
        let volumes = || run("lvs", &["--foreign", "--noheadings", "-o", "lv_name", &group]);
        ensure!(volumes()?.contains("catalog-lost-1") && active(&group)?.is_empty(), "{}", volumes()?);
        agent.stop()?;

        // The volume is gone, and the host too.
        as_owner(&group, "lvremove", &["-f", &catalog])?;
        let mut other = Agent::stopped()?;
        fs::create_dir_all(other.path("etc/catena"))?;
        fs::write(other.path("etc/catena/catenad.toml"), "host_id = 'other'\n")?;
        other.launch(None)?;
        let before = changes(&group)?;
        refused(&other, &introduce, 4)?;
        ensure!(changes(&group)? == before, "a refusal changes nothing");
        other.ok(&[&introduce[..], &["--take-over"]].concat())?;
        ensure!(disks(&other)? == wanted, "all disks are there: {}", other.log());
        compared(&other, &sr, &group, &web)?;
        other.is_clean(&sr)?;
        other.stop()
    })
}

/// A scan and a check say which volumes the catalog does not know, and which are gone.
fn compared(agent: &Agent, sr: &str, group: &str, vdi: &str) -> Result<()> {
    as_owner(group, "lvcreate", &["-Wn", "-Zn", "-an", "-l", "1", "-n", "vhd-strange", group])?;
    let volume = agent.json(&["vdi", "show", vdi])?["container"].as_str().context("a container")?.to_owned();
    let hash = agent.hash(vdi)?;
    let path = format!("{group}/{volume}");
    agent.ok(&["coalesce", "pause", sr])?;
    as_owner(group, "lvrename", &[&path, &format!("{group}/elsewhere")])?;
    let scan = agent.json(&["sr", "scan", sr])?;
    let foreign = scan["foreign"].as_array().context("foreign volumes")?;
    let named = |name: &str| foreign.iter().any(|one| one == name);
    ensure!(named("vhd-strange") && named("elsewhere") && named("catalog-lost-1"), "{scan}");
    let report: Value = serde_json::from_str(&agent.catena(&["--json", "sr", "check", sr])?.out)?;
    let gone = |(object, severity, _): &(String, String, String)| *object == volume && severity == "error";
    ensure!(report["clean"] == false && problems(&report)?.iter().any(gone), "{report}");
    as_owner(group, "lvrename", &[&format!("{group}/elsewhere"), &path])?;
    agent.ok(&["sr", "scan", sr])?;
    ensure!(agent.hash(vdi)? == hash, "it is back");
    as_owner(group, "lvremove", &["-f", &format!("{group}/vhd-strange")])?;
    let repaired = agent.json(&["sr", "check", sr, "--repair"])?;
    ensure!(repaired["clean"] == true && agent.hash(vdi)? == hash, "{repaired}");
    Ok(())
}
