//! The conformance suite of `catena-sr-api` on real volume groups, in the lab.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "../../../tests/harness/lab.rs"]
mod lab;

use anyhow::{Context, Result};
use catena_sr_api::conformance::{self, Bench, Contents, Fixture, Place};
use catena_sr_api::{Access, Error, HostIdentity, Labels, Plugin, Probe, SrIdentity, Store};
use catena_sr_lvm::{LvmPlugin, commands_run};
use catena_types::{Bytes, SrUuid};
use lab::{Disk, run};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The size of a place, in MiB.
const SIZE: u64 = 1024;
/// With this an administrator's commands work on the group of an SR.
const OWN: &str = "global{system_id_source=\"lvmlocal\"} local{system_id=\"catena-host-a\"}";

/// Disks that are used again, since the lab has few.
#[derive(Default)]
struct LvmBench {
    plugin: LvmPlugin,
    free: Rc<RefCell<Vec<Disk>>>,
}

struct OnDisk {
    disk: Option<Disk>,
    path: PathBuf,
    free: Rc<RefCell<Vec<Disk>>>,
}

impl LvmBench {
    fn new() -> Result<Self> {
        let bench = Self::default();
        bench.plugin.prepare(&lab::inside().context("in the lab")?);
        Ok(bench)
    }

    fn on_disk(&self) -> Result<OnDisk> {
        let disk = self.free.borrow_mut().pop().map_or_else(|| Disk::new(SIZE), Ok)?;
        let path = disk.path();
        wipe(&path)?;
        Ok(OnDisk { disk: Some(disk), path, free: Rc::clone(&self.free) })
    }
}

impl Bench for LvmBench {
    fn plugin(&self) -> &dyn Plugin {
        &self.plugin
    }

    fn has(&self, fixture: Fixture) -> bool {
        fixture != Fixture::Absent
    }

    fn finds_anywhere(&self) -> bool {
        true
    }

    fn place(&self, fixture: Fixture) -> Box<dyn Place> {
        let place = self.on_disk().unwrap();
        let device = place.path.to_str().unwrap();
        match fixture {
            Fixture::Absent | Fixture::Empty => {}
            Fixture::Foreign => drop(run("mkfs.ext4", &["-q", device, "64m"]).unwrap()),
            Fixture::Images => {
                let group = format!("VG_XenStorage-{}", SrUuid::random());
                run("vgcreate", &["-qq", &group, device]).unwrap();
                for name in ["VHD-1", "VHD-2", "MGT"] {
                    let arguments = ["-qq", "--yes", "-an", "-Wn", "-Zn", "-L", "8m", "-n", name, &group];
                    run("lvcreate", &arguments).unwrap();
                }
            }
        }
        Box::new(place)
    }
}

impl Place for OnDisk {
    fn location(&self) -> &Path {
        &self.path
    }

    fn contents(&self) -> Contents {
        let filter = format!(r#"devices{{filter=["a|^{}$|","r|.*|"]}}"#, self.path.display());
        let report = |command: &str, columns: &str| -> Vec<(String, String)> {
            let common = ["--foreign", "--noheadings", "--config", &filter, "-o", columns];
            let said = run(command, &common).unwrap();
            let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
            let words = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
            words.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
        };
        let mut contents = Contents::new();
        contents.extend(report("vgs", "vg_name,vg_tags,vg_systemid,vg_size,vg_free"));
        contents.extend(report("lvs", "lv_name,lv_size,lv_tags,lv_time,lv_layout"));
        if let Ok(said) = run("blkid", &["-p", self.path.to_str().unwrap()]) {
            contents.insert("signature".to_owned(), said);
        }
        contents
    }

    fn plant_impostors(&self) -> Vec<String> {
        let contents = self.contents();
        let group = contents.keys().find(|name| name.starts_with("catena-")).unwrap();
        let arguments = ["-qq", "--yes", "--config", OWN, "--type", "error", "-l", "1", "-n", "vhd-1", group];
        run("lvcreate", &arguments).unwrap();
        vec!["vhd-1".to_owned()]
    }

    fn replace_storage(&self) {
        let disk = File::options().write(true).open(&self.path).unwrap();
        disk.write_all_at(&vec![0; 4 << 20], 0).unwrap();
        disk.sync_all().unwrap();
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        if let Err(error) = wipe(&self.path) {
            println!("{error:#}");
        }
        self.free.borrow_mut().extend(self.disk.take());
    }
}

/// Takes down what lies on a disk, and what it holds.
fn wipe(path: &Path) -> Result<()> {
    let disk = path.file_name().and_then(|name| name.to_str()).context("a name")?;
    let device = fs::canonicalize(path)?;
    for line in run("dmsetup", &["ls"])?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name.is_empty() || name.starts_with("lab-") || name == "No" {
            continue;
        }
        let below = run("dmsetup", &["deps", "-o", "devname", name])?;
        if below.contains(&format!("({disk})")) {
            run("dmsetup", &["remove", "--force", name])?;
        }
    }
    let file = File::options().write(true).open(device)?;
    file.write_all_at(&vec![0; 4 << 20], 0)?;
    Ok(file.sync_all()?)
}

#[test]
fn the_lifecycle_is_that_of_every_back_end() -> Result<()> {
    lab::test(|| {
        conformance::lifecycle(&LvmBench::new()?);
        Ok(())
    })
}

#[test]
fn ownership_is_that_of_every_back_end() -> Result<()> {
    lab::test(|| {
        conformance::ownership(&LvmBench::new()?);
        Ok(())
    })
}

#[test]
fn containers_are_those_of_every_back_end() -> Result<()> {
    lab::test(|| {
        conformance::containers(&LvmBench::new()?);
        Ok(())
    })
}

fn identity() -> SrIdentity {
    let owner = HostIdentity { host: "host-a".to_owned(), boot: "b".to_owned() };
    SrIdentity { uuid: SrUuid::random(), name_label: "lab".to_owned(), owner }
}

/// Commands that something takes.
fn cost<T>(doing: impl FnOnce() -> Result<T, Error>) -> Result<(u64, T)> {
    let before = commands_run();
    let done = doing()?;
    Ok((commands_run() - before, done))
}

#[test]
fn commands_are_few() -> Result<()> {
    lab::test(|| {
        let bench = LvmBench::new()?;
        let place = bench.on_disk()?;
        let (identity, size) = (identity(), Bytes(8 << 20));
        let store = bench.plugin.create(&place.path, &identity)?;
        let names: Vec<String> = (0..30).map(|n| format!("vhd-{n}")).collect();
        let made: Vec<(&str, Bytes)> = names.iter().map(|name| (name.as_str(), size)).collect();
        assert_eq!(cost(|| store.create_containers(&made[..2]))?.0, 2);
        store.create_containers(&made[2..])?;
        assert_eq!(cost(|| store.keep_active(&[]))?.0, 1, "all at once");
        assert_eq!(cost(|| store.keep_active(&[]))?.0, 0);
        let mut chain: Vec<(&str, Access)> =
            names.iter().map(|name| (name.as_str(), Access::ReadOnly)).collect();
        chain[0].1 = Access::ReadWrite;
        let (count, fds) = cost(|| store.activate_all(&chain))?;
        assert_eq!((count, fds.len()), (1, 30), "a chain of 30");
        assert_eq!(cost(|| store.activate_all(&chain))?.0, 0);
        assert_eq!(cost(|| store.activate(&names[5], Access::ReadWrite))?.0, 1, "one that was only read");
        assert_eq!(cost(|| store.keep_active(&chain))?.0, 1, "and is again");
        let (count, ()) = cost(|| {
            store.list()?;
            store.info(&names[3])?;
            store.space()?;
            store.stat().map(drop)
        })?;
        assert_eq!(count, 0, "questions are answered from memory");
        assert_eq!(cost(|| store.grow(&names[1], Bytes(12 << 20)))?.0, 1);
        assert_eq!(store.info(&names[1])?.length, Bytes(12 << 20));
        assert_eq!(File::from(store.activate(&names[1], Access::ReadOnly)?).write_at(b"x", 0).ok(), None);
        assert_eq!(store.keep_active(&chain[..1])?.len(), 29, "what is open is told");
        assert!(run("dmsetup", &["ls"])?.contains("vhd--7"), "what is open stays");
        drop(fds);
        assert!(store.keep_active(&chain[..1])?.is_empty());
        let active = run("dmsetup", &["ls"])?;
        assert!(!active.contains("vhd--7") && active.contains("vhd--0"), "{active}");
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(cost(|| store.remove_all(&all))?.0, 1);
        assert_eq!(store.list()?, []);
        Ok(())
    })
}

#[test]
fn figures_in_memory_are_those_of_the_group() -> Result<()> {
    lab::test(|| {
        let bench = LvmBench::new()?;
        let place = bench.on_disk()?;
        let identity = identity();
        let store = bench.plugin.create(&place.path, &identity)?;
        let mib = |n: u64| Bytes(n << 20);
        assert_eq!(store.round(Bytes(1)), mib(4));
        assert_eq!(store.round(mib(8)), mib(8));
        store.create_containers(&[("vhd-a", mib(5)), ("vhd-b", mib(100))])?;
        store.grow("vhd-a", mib(13))?;
        store.shrink("vhd-b", mib(50))?;
        store.shrink("vhd-a", mib(100))?;
        store.grow("vhd-b", mib(1))?;
        assert!(store.remove("vhd-a")? && !store.remove("catalog")?);
        assert!(matches!(store.create_container("catalog", mib(1)), Err(Error::Exists(_))));
        let free = store.space()?.allocatable;
        let refused = store.create_container("vhd-c", Bytes(free.0 + 1)).unwrap_err();
        assert!(matches!(refused, Error::NoSpace(_)), "{refused}");
        store.create_container("vhd-c", free)?;
        assert!(matches!(store.grow("vhd-b", mib(53)), Err(Error::NoSpace(_))));
        store.set_labels("vhd-b", &Labels::from([("vdi".to_owned(), "1".to_owned())]))?;
        let figures = |store: &dyn Store| -> Result<_> {
            let sizes = store.list()?.into_iter().map(|info| (info.name, (info.length, info.allocated)));
            Ok((sizes.collect::<BTreeMap<String, (Bytes, Bytes)>>(), store.stat()?))
        };
        let before = figures(&*store)?;
        store.check_marker()?;
        assert_eq!(figures(&*store)?, before, "what is reported is what was reckoned");
        drop(store);
        let store = bench.plugin.open(&place.path, identity.uuid, &identity.owner, false)?;
        assert_eq!(figures(&*store)?, before);
        assert_eq!(store.labels("vhd-b")?["vdi"], "1", "labels are written before the SR is closed");
        let sizes = [("vhd-b", mib(52)), ("vhd-c", free)].map(|(name, size)| (name.to_owned(), (size, size)));
        assert_eq!(before.0, BTreeMap::from(sizes));
        Ok(())
    })
}

#[test]
fn what_an_administrator_makes_meanwhile_is_not_discarded() -> Result<()> {
    lab::test(|| {
        let bench = LvmBench::new()?;
        let place = bench.on_disk()?;
        let identity = identity();
        let store = bench.plugin.create(&place.path, &identity)?;
        let group = format!("catena-{}", identity.uuid);
        let node = format!("/dev/{group}/theirs");
        let data = vec![7; 1 << 20];
        let (mut made, mut asked) = (None, 0);
        store.discard_free(&mut |done, _| {
            asked += 1;
            if done > Bytes(0) && made.is_none() {
                // Where nothing was discarded yet: at the end of the device.
                let last = format!("{}:200-219", place.path.display());
                let arguments =
                    ["-qq", "--yes", "--config", OWN, "-Wn", "-L", "64m", "-n", "theirs", &group, &last];
                let file = run("lvcreate", &arguments)
                    .and_then(|_| Ok(File::options().read(true).write(true).open(&node)?));
                made = Some(file.and_then(|file| {
                    file.write_all_at(&data, 1 << 20)?;
                    file.sync_all()?;
                    Ok(file)
                }));
            }
            true
        })?;
        assert!(asked > 3, "in {asked} pieces");
        drop(made.context("it has begun")??);
        let read = run(
            "sh",
            &["-c", &format!("dd if={node} bs=1M skip=1 count=1 iflag=direct status=none | md5sum")],
        )?;
        let expected = run("sh", &["-c", "head -c 1048576 /dev/zero | tr '\\000' '\\007' | md5sum"])?;
        assert_eq!(read, expected);
        Ok(())
    })
}

#[test]
fn an_sr_is_found_wherever_its_device_is() -> Result<()> {
    lab::test(|| {
        let bench = LvmBench::new()?;
        let (place, other) = (bench.on_disk()?, bench.on_disk()?);
        let identity = identity();
        bench.plugin.create(&place.path, &identity)?.create_container("vhd-a", Bytes(1))?;
        for location in [other.path.as_path(), Path::new("/dev/no-such-device")] {
            let store = bench.plugin.open(location, identity.uuid, &identity.owner, false)?;
            assert_eq!(store.list()?.len(), 1, "{}", location.display());
        }
        Ok(())
    })
}

#[test]
fn what_a_crash_left_of_a_creation_is_replaced() -> Result<()> {
    lab::test(|| {
        let bench = LvmBench::new()?;
        let place = bench.on_disk()?;
        let identity = identity();
        let device = place.path.to_str().context("a path")?;
        let (group, tag) = (format!("catena-{}", identity.uuid), format!("catena.sr={}", identity.uuid));
        run("vgcreate", &["-qq", "--addtag", &tag, &group, device])?;
        run("lvcreate", &["-qq", "--yes", "-Wn", "-L", "32m", "-n", "catalog", &group])?;
        assert_eq!(bench.plugin.probe(&place.path)?, Probe::Empty);
        let store = bench.plugin.create(&place.path, &identity)?;
        store.create_container("vhd-a", Bytes(1))?;
        drop(store);
        assert_eq!(bench.plugin.probe(&place.path)?, Probe::Ours(identity));
        Ok(())
    })
}
