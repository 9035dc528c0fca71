//! A volume group as XenServer leaves it is looked at, refused while something is in the way, and taken over where it is.

use crate::harness::lab::{self, Disk, run};
use crate::harness::nbd::Client;
use crate::harness::theirs::RawChain;
use crate::harness::{Agent, sha256, socket_of, text, wait_until};
use crate::{active, as_owner, changes, problems, refused};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SR: &str = "7a3bd6f0-1111-4222-8333-444455556666";
const ROOT: &str = "0b1d9c44-0000-4000-8000-00000000000a";
const BASE: &str = "0b1d9c44-0000-4000-8000-00000000000b";
const LEAF: &str = "0b1d9c44-0000-4000-8000-00000000000c";
const LONE: &str = "0b1d9c44-0000-4000-8000-00000000000d";
const MIB: u64 = 1 << 20;

/// The group, on a disk of the lab.
struct Theirs {
    disk: Disk,
    group: String,
    chain: RawChain,
}

impl Theirs {
    fn new(folder: &Path) -> Result<Self> {
        let disk = Disk::new(1024)?;
        let group = format!("VG_XenStorage-{SR}");
        run("vgcreate", &["-qq", &group, &text(&disk.path())])?;
        let chain = RawChain::new(folder, &format!("LV-{ROOT}"))?;
        let theirs = Self { disk, group, chain };
        theirs.raw(&format!("LV-{ROOT}"), &fs::read(&theirs.chain.root)?, 48)?;
        theirs.vhd(BASE, &theirs.chain.base, 24)?;
        theirs.vhd(LEAF, &theirs.chain.leaf, 56)?;
        theirs.raw(&format!("LV-{LONE}"), &vec![7; 8 << 20], 8)?;
        theirs.raw("MGT", &names(), 4)?;
        theirs.raw(&format!("inflate_{LEAF}_8388608"), b"", 4)?;
        theirs.raw(&format!("{LEAF}.cbtlog"), b"", 4)?;
        Ok(theirs)
    }

    fn node(&self, volume: &str) -> PathBuf {
        let double = |name: &str| name.replace('-', "--");
        Path::new("/dev/mapper").join(format!("{}-{}", double(&self.group), double(volume)))
    }

    /// A volume that begins with these bytes, not active.
    fn raw(&self, name: &str, bytes: &[u8], mib: u64) -> Result<()> {
        self.volume(name, mib, |file| Ok(file.write_all_at(bytes, 0)?))
    }

    /// One with an image, whose footer is at its end.
    fn vhd(&self, uuid: &str, image: &Path, mib: u64) -> Result<()> {
        let bytes = fs::read(image)?;
        let (body, footer) = bytes.split_at(bytes.len() - 512);
        self.volume(&format!("VHD-{uuid}"), mib, |file| {
            file.write_all_at(body, 0)?;
            Ok(file.write_all_at(footer, mib * MIB - 512)?)
        })
    }

    fn volume(&self, name: &str, mib: u64, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        let size = format!("{mib}m");
        run("lvcreate", &["-qq", "--yes", "-Wn", "-Zn", "-ay", "-L", &size, "-n", name, &self.group])?;
        let file = File::options().write(true).open(self.node(name))?;
        fill(&file)?;
        file.sync_all()?;
        drop(file);
        run("lvchange", &["-qq", "-an", &format!("{}/{name}", self.group)]).map(drop)
    }

    /// SHA-256 of a volume that the agent may have active.
    fn hash(&self, volume: &str) -> Result<String> {
        let path = format!("{}/{volume}", self.group);
        as_owner(&self.group, "lvchange", &["-ay", &path])?;
        let hash = sha256(&self.node(volume))?;
        as_owner(&self.group, "lvchange", &["-an", &path])?;
        Ok(hash)
    }
}

/// What XenServer has in `MGT`.
fn names() -> Vec<u8> {
    let sector = |text: &str| format!("{text:<512}");
    let disk = |uuid: &str, name: &str| {
        let first = format!("<vdi><name_label>{name}</name_label><name_description></name_description>");
        sector(&first) + &sector(&format!("<uuid>{uuid}</uuid><deleted>0</deleted></vdi>"))
    };
    let disks = disk(LEAF, "web &amp; mail") + &disk(LONE, "database");
    let length = 2048 + disks.len();
    (sector(&format!("XSSM:{length:<10}:1:2")) + &sector("") + &sector("") + &sector("") + &disks)
        .into_bytes()
}

#[test]
fn a_group_of_xenserver_is_taken_over() -> Result<()> {
    lab::test(|| {
        let mut agent = Agent::start()?;
        let theirs = Theirs::new(&agent.path("golden"))?;
        let (group, device) = (&theirs.group, text(&theirs.disk.path()));
        let introduce = ["sr", "introduce", "--type", "lvm", "--devices", &device];
        let dry_run = || agent.json(&[&introduce[..], &["--dry-run"]].concat());
        in_the_way(&agent, &theirs, &introduce)?;

        let before = changes(group)?;
        let plan = dry_run()?;
        ensure!(problems(&plan)?.iter().all(|(_, severity, _)| severity != "error"), "{plan}");
        for object in [format!("inflate_{LEAF}_8388608"), format!("{LEAF}.cbtlog"), format!("LV-{LONE}")] {
            ensure!(problems(&plan)?.iter().any(|(found, ..)| *found == object), "{object}: {plan}");
        }
        ensure!(changes(group)? == before && active(group)?.is_empty(), "a dry run changes nothing");

        // D1: a keeper that dies over it leaves an SR without rows, which the same command completes.
        agent.stop()?;
        agent.launch(Some("introduce.made"))?;
        let cut = agent.catena(&introduce)?;
        ensure!(cut.code != 0 && agent.log().contains("introduce.made"), "{cut:?}");
        agent.kill()?;
        agent.launch(None)?;
        let sr = agent.ok(&introduce)?;
        let unchanged = |volume: &str, hash: &str| Ok::<_, anyhow::Error>(theirs.hash(volume)? == hash);
        let (leaf, lone) = (agent.json(&["vdi", "show", LEAF])?, agent.json(&["vdi", "show", LONE])?);
        ensure!(leaf["name_label"] == "web & mail" && lone["name_label"] == "database", "{leaf} {lone}");
        ensure!(agent.hash(LEAF)? == theirs.chain.leaf_hash, "the leaf reads as before");
        let lone_hash = agent.hash(LONE)?;
        wait_until("volumes are let go", || Ok(active(group)? == ["catalog"]))?;
        ensure!(unchanged(&format!("LV-{LONE}"), &lone_hash)?, "and the lone disk");

        let written = written_and_merged(&agent, &sr)?;
        agent.write(LONE, 4096, b"above")?;
        ensure!(unchanged(&format!("LV-{ROOT}"), &theirs.chain.root_hash)?, "the root is never written");
        ensure!(unchanged(&format!("LV-{LONE}"), &lone_hash)?, "nor is the lone disk");
        agent.is_clean(&sr)?;
        // It is ours now, and attached.
        refused(&agent, &introduce, 4)?;

        agent.ok(&["sr", "detach", &sr])?;
        ensure!(active(group)?.is_empty(), "nothing of a detached SR is active");
        agent.ok(&["sr", "attach", &sr])?;
        ensure!(agent.hash(LEAF)? == written && agent.read(LONE, 4096, 6)? == b"above\x07");
        let volumes = run("lvs", &["--foreign", "--noheadings", "-o", "lv_name", group])?;
        for kept in ["MGT", "inflate_", ".cbtlog"] {
            ensure!(volumes.contains(kept), "{kept}: {volumes}");
        }
        Ok(())
    })
}

/// The leaf is attached, written, gets a snapshot that goes again, and all that may be merged is; what it reads then.
fn written_and_merged(agent: &Agent, sr: &str) -> Result<String> {
    let mut client = Client::connect(&socket_of(&agent.ok(&["vdi", "attach", LEAF])?)?)?;
    ensure!(client.write(5 * MIB, &[9; 8192], 0)? == 0, "a write");
    agent.ok(&["vdi", "snapshot", LEAF, "--name", "before"])?;
    ensure!(client.write(7 * MIB, &[8; 8192], 0)? == 0, "a write above the snapshot");
    client.disconnect()?;
    agent.ok(&["vdi", "detach", LEAF])?;
    let written = agent.hash(LEAF)?;
    ensure!(agent.read(LEAF, 5 * MIB, 1)? == [9] && agent.read(LEAF, 7 * MIB, 1)? == [8]);
    agent.ok(&["vdi", "destroy", "before", "--yes"])?;
    agent.ok(&["coalesce", "resume", sr])?;
    agent.run_merges(sr)?;
    ensure!(agent.hash(LEAF)? == written, "the same after the merges");
    ensure!(agent.depth(LEAF)? == 2, "all is merged but the raw root: {}", agent.json(&["vdi", "tree", sr])?);
    Ok(written)
}

/// What stands in the way is said by a dry run and refused, and nothing has changed then.
fn in_the_way(agent: &Agent, theirs: &Theirs, introduce: &[&str]) -> Result<()> {
    let (group, devices) = (theirs.group.as_str(), introduce);
    let told = |words: &str| -> Result<()> {
        let before = photo(group)?;
        let plan: Value = agent.json(&[devices, &["--dry-run"]].concat())?;
        let errors = problems(&plan)?;
        let said = |(_, severity, problem): &(String, String, String)| {
            severity == "error" && problem.contains(words)
        };
        ensure!(errors.iter().any(said), "{words}: {plan}");
        let refusal = agent.catena(devices)?;
        ensure!(refusal.code != 0 && refusal.err.contains(words), "{words}: {refusal:?}");
        ensure!(photo(group)? == before, "{words}: something has changed: {before} {}", photo(group)?);
        Ok(())
    };
    let leaf = format!("{group}/VHD-{LEAF}");
    run("lvchange", &["-qq", "-ay", &leaf])?;
    let open = File::open(theirs.node(&format!("VHD-{LEAF}")))?;
    told("somebody has open")?;
    drop(open);
    run("lvchange", &["-qq", "-an", &leaf])?;
    let other = "global{system_id_source=\"lvmlocal\"} local{system_id=\"other\"}";
    run("vgchange", &["-qq", "--yes", "--config", other, "--systemid", "other", group])?;
    told("belongs to the host other")?;
    run("vgchange", &["-qq", "--yes", "--config", other, "--systemid", "", group])?;
    let filler = format!("{group}/filler");
    run("lvcreate", &["-qq", "--yes", "-Wn", "-Zn", "-an", "-l", "100%FREE", "-n", "filler", group])?;
    run("lvreduce", &["-qq", "--yes", "-f", "-l", "-8", &filler])?;
    told("are missing")?;
    // Now for the catalog, but not for the empty image on the raw disk.
    run("lvreduce", &["-qq", "--yes", "-f", "-l", "-5", &filler])?;
    told("missing")?;
    run("lvremove", &["-qq", "--yes", "-f", &filler])?;
    ensure!(active(group)?.is_empty(), "nothing that was looked at stays active");
    Ok(())
}

/// What a refused introduction leaves as it was.
fn photo(group: &str) -> Result<String> {
    let of = |command, columns| run(command, &["--foreign", "--noheadings", "-o", columns, group]);
    Ok(of("vgs", "vg_systemid,vg_tags,vg_free_count")? + &of("lvs", "lv_name,lv_size,lv_tags")?)
}
