//! Disks in use whose process hangs, whose storage fails, whose host is started anew.

use crate::client::{self, Client};
use crate::harness::nbd;
use crate::harness::{peer, socket_of, wait_for_end, wait_until};
use crate::{SIZE, Scene, kill_and_wait};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::thread::JoinHandle;

#[test]
fn a_datapath_that_hangs_is_waited_for_and_not_for_ever() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let datapath = scene.datapath()?;
    kill(datapath, Signal::SIGSTOP)?;
    client.begin("write -P 2 1M 1M")?;
    let refused = scene.agent.call("VDI.snapshot", &json!({"vdi": scene.disk, "name_label": "s"}))?;
    let refused = refused.err().context("a snapshot of a disk whose process does not answer")?;
    ensure!(refused["data"]["retry"] == true && refused["data"]["name"] == "vdi_unavailable", "{refused}");
    ensure!(scene.agent.call("VDI.list", &json!({"sr": scene.sr}))?.is_ok(), "lists wait for nobody");
    kill(datapath, Signal::SIGCONT)?;
    client.end()?;
    let mut snapshot = Value::Null;
    wait_until("a snapshot can be taken again", || {
        let taken = scene.agent.call("VDI.snapshot", &json!({"vdi": scene.disk, "name_label": "s"}))?;
        snapshot = taken.as_ref().map_or(Value::Null, |made| made["vdis"][0].clone());
        Ok(taken.is_ok())
    })?;
    client.run("write -P 3 2M 1M")?;
    ensure!(scene.datapath()? == datapath, "it was replaced, though it lives");
    client.close()?;
    scene.detach()?;
    let bytes = scene.agent.read(snapshot.as_str().context("a snapshot")?, 0, 3 << 20)?;
    let expected = [vec![1; 1 << 20], vec![2; 1 << 20], vec![0; 1 << 20]].concat();
    ensure!(bytes == expected, "the snapshot holds something else");
    scene.clean()
}

/// A detach of the scene's disk by somebody else; it has reached the keeper.
fn begin_detach(scene: &Scene) -> Result<JoinHandle<Result<Value>>> {
    let (socket, disk) = (scene.agent.socket(), scene.disk.clone());
    let detach = std::thread::spawn(move || client::call_at(&socket, "VDI.detach", &json!({"vdi": disk})));
    // To the size that it has: before the detach that changes nothing.
    let resize = json!({"vdi": scene.disk, "virtual_size": SIZE});
    wait_until("the disk is being detached", || {
        let refused = scene.agent.call("VDI.resize", &resize)?.err();
        Ok(refused.is_some_and(|error| error["data"]["message"] == "the disk is being detached"))
    })?;
    Ok(detach)
}

fn end_detach(detach: JoinHandle<Result<Value>>) -> Result<()> {
    let detached = detach.join().map_err(|_| anyhow::anyhow!("the thread that detaches"))??;
    ensure!(detached["error"].is_null(), "{detached}");
    Ok(())
}

/// A process that stands still is waited for by those alone who want something of its disk.
#[test]
fn a_disk_that_hangs_holds_up_no_other() -> Result<()> {
    let scene = Scene::set()?;
    let other =
        scene.agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", "32MiB", "--name", "other"])?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let datapath = scene.datapath()?;
    kill(datapath, Signal::SIGSTOP)?;
    // The process is told to stop and cannot hear it. Whatever comes now is answered before that wait is over.
    let detach = begin_detach(&scene)?;
    for round in 0..3 {
        ensure!(scene.agent.call("VDI.list", &json!({"sr": scene.sr}))?.is_ok(), "round {round}");
        scene.agent.ok(&["sr", "show", &scene.sr])?;
        scene.agent.ok(&["vdi", "attach", &other])?;
        scene.agent.ok(&["vdi", "set", &scene.disk, &format!("name_description={round}")])?;
        scene.agent.ok(&["vdi", "snapshot", &other, "--name", &round.to_string()])?;
        scene.agent.ok(&["vdi", "detach", &other])?;
    }
    scene.refused(&["vdi", "snapshot", &scene.disk], "vdi_unavailable", 4)?;
    scene.refused(&["vdi", "attach", &scene.disk], "vdi_in_use", 4)?;
    ensure!(scene.record(&scene.disk)?["attached"] == "rw", "it was detached before its process had ended");
    ensure!(!detach.is_finished(), "all that was answered after the detach, which waits");
    // It lives on: the detach comes to its end, and so does what it has acknowledged.
    kill(datapath, Signal::SIGCONT)?;
    end_detach(detach)?;
    drop(client);
    ensure!(scene.agent.served().is_empty(), "a datapath is left");
    ensure!(scene.events("vdi.datapath_died")? == 0, "another one was started for nothing");
    ensure!(scene.agent.read(&scene.disk, 0, 1 << 20)?.iter().all(|byte| *byte == 1));
    scene.clean()
}

/// One that never comes back is killed in the end, and another one stores what it has acknowledged (D8).
#[test]
fn a_detach_ends_also_where_the_process_hangs_for_ever() -> Result<()> {
    let mut scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let datapath = scene.datapath()?;
    kill(datapath, Signal::SIGSTOP)?;
    // Also a keeper that has never spoken to it is not held up by it, and takes it up when it answers.
    scene.agent.kill()?;
    scene.agent.launch(None)?;
    wait_until("the SR is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    scene.refused(&["vdi", "snapshot", &scene.disk], "vdi_unavailable", 4)?;
    kill(datapath, Signal::SIGCONT)?;
    wait_until("it is taken up", || Ok(scene.agent.catena(&["vdi", "snapshot", &scene.disk])?.code == 0))?;
    client.run("write -P 2 1M 64k")?;
    kill(datapath, Signal::SIGSTOP)?;
    scene.agent.kill()?;
    scene.agent.launch(None)?;
    wait_until("the SR is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    let detached = scene.agent.call("VDI.detach", &json!({"vdi": scene.disk}))?;
    ensure!(detached.is_ok(), "{detached:?}");
    wait_for_end(&[datapath])?;
    drop(client);
    ensure!(scene.agent.served().is_empty(), "a datapath is left");
    ensure!(scene.events("vdi.datapath_hangs")? == 1, "nobody was told");
    let bytes = scene.agent.read(&scene.disk, 0, (1 << 20) + 65536)?;
    ensure!(bytes == [vec![1; 1 << 20], vec![2; 65536]].concat(), "what was acknowledged is not there");
    scene.clean()
}

#[test]
fn a_process_that_dies_when_it_is_told_to_stop_is_followed_by_another() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    let datapath = scene.datapath()?;
    kill(datapath, Signal::SIGSTOP)?;
    let detach = begin_detach(&scene)?;
    scene.refused(&["vdi", "snapshot", &scene.disk], "vdi_unavailable", 4)?;
    kill_and_wait(datapath)?;
    end_detach(detach)?;
    drop(client);
    ensure!(scene.agent.served().is_empty(), "a datapath is left");
    ensure!(scene.events("vdi.datapath_hangs")? == 0, "it has died");
    ensure!(
        scene.agent.read(&scene.disk, 0, 1 << 20)?.iter().all(|byte| *byte == 1),
        "what was acknowledged"
    );
    scene.clean()
}

/// What the host was started anew under is attached no more, and nothing of it is left.
#[test]
fn attachments_end_with_the_boot_of_the_host() -> Result<()> {
    const OTHER_BOOT: &str = r#"
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1])
assert catalog.execute("UPDATE attachment SET boot = ?", ("another boot",)).rowcount == 2
catalog.commit()
catalog.close()
"#;
    let mut scene = Scene::set()?;
    let other =
        scene.agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", "32MiB", "--name", "other"])?;
    let uri = scene.attach()?;
    scene.agent.ok(&["vdi", "attach", "--read-only", &other])?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 1M")?;
    client.close()?;
    let served = scene.agent.served();
    scene.agent.kill()?;
    for pid in served {
        kill_and_wait(pid)?;
    }
    // Its memory went with the host; of the other disk the directory is left, as if it had come back.
    let directories = scene.agent.path("run/catena/vdi");
    fs::remove_dir_all(directories.join(&scene.disk))?;
    let catalog = scene.agent.path("sr/.catena/catalog.db").to_string_lossy().into_owned();
    peer("python3", "/usr/bin/python3", &["-c", OTHER_BOOT, &catalog])?;
    scene.agent.launch(None)?;
    wait_until("the SR is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    for vdi in [&scene.disk, &other] {
        ensure!(scene.record(vdi)?["attached"].is_null(), "still attached");
        ensure!(!directories.join(vdi).exists(), "its directory is left");
    }
    ensure!(scene.events("vdi.detached")? == 2, "nobody was told");
    ensure!(scene.agent.served().is_empty(), "somebody serves it");
    ensure!(scene.agent.read(&scene.disk, 0, 1 << 20)?.iter().all(|byte| *byte == 1), "what was flushed");
    scene.attach()?;
    scene.detach()?;
    scene.clean()
}

/// What was acknowledged and nobody knows any more is not made up: the disk is served again only when it was detached (D8).
#[test]
fn a_disk_whose_record_is_lost_can_only_be_detached() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -f -P 1 0 1M")?;
    client.run("write -P 2 1M 64k")?;
    let directory = scene.agent.path("run/catena/vdi").join(&scene.disk);
    fs::remove_file(directory.join("pending"))?;
    kill_and_wait(scene.datapath()?)?;
    wait_until("somebody is told", || Ok(scene.events("vdi.unserved")? == 1))?;
    ensure!(scene.agent.served().is_empty(), "it is served without its record");
    let refused = scene.agent.call("VDI.snapshot", &json!({"vdi": scene.disk}))?;
    let refused = refused.err().context("a snapshot of what nobody knows")?;
    ensure!(refused["data"]["hint"].as_str().is_some_and(|hint| hint.contains("detach")), "{refused}");
    drop(client);
    scene.detach()?;
    ensure!(scene.events("vdi.record_lost")? == 1, "nobody was told of the loss");
    ensure!(!directory.exists(), "its directory is left");
    ensure!(scene.agent.read(&scene.disk, 0, 1 << 20)?.iter().all(|byte| *byte == 1), "what was flushed");
    scene.clean()?;
    scene.attach()?;
    scene.detach()
}

/// A file that nobody may write, whoever has it open, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn make(file: PathBuf) -> Result<Self> {
        peer("e2fsprogs", "chattr", &["+i", &file.to_string_lossy()])?;
        Ok(Self(file))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        if let Err(error) = peer("e2fsprogs", "chattr", &["-i", &self.0.to_string_lossy()]) {
            eprintln!("{} cannot be removed: {error:#}", self.0.display());
        }
    }
}

/// What a merge has emptied stays until every process that read it has said that it does not any more (D15).
#[test]
fn an_image_is_kept_for_a_process_that_may_still_read_it() -> Result<()> {
    let scene = Scene::set()?;
    scene.agent.ok(&["coalesce", "pause", &scene.sr])?;
    scene.agent.write(&scene.disk, 0, &[1; 65536])?;
    let first = scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "first"])?;
    scene.agent.write(&scene.disk, 1 << 20, &[2; 65536])?;
    let base =
        scene.agent.path("sr").join(scene.record(&scene.disk)?["container"].as_str().context("its name")?);
    scene.agent.ok(&["vdi", "snapshot", &scene.disk, "--name", "second"])?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    let datapath = scene.datapath()?;
    kill(datapath, Signal::SIGSTOP)?;
    scene.agent.ok(&["vdi", "destroy", &first])?;
    scene.agent.ok(&["coalesce", "resume", &scene.sr])?;
    wait_until("the base copies are merged", || Ok(scene.events("merge.done")? == 1))?;
    wait_until("the worker has nothing to do", || {
        let status = scene.agent.json(&["coalesce", "status", &scene.sr])?;
        Ok(status["srs"][0]["state"] != "running")
    })?;
    ensure!(base.exists(), "it was removed under a process that may read it");
    kill(datapath, Signal::SIGCONT)?;
    client.run("read -P 1 0 64k")?;
    client.run("read -P 2 1M 64k")?;
    wait_until("it is removed", || Ok(!base.exists()))?;
    client.run("read -P 2 1M 64k")?;
    ensure!(scene.datapath()? == datapath, "it was replaced, though it lives");
    client.close()?;
    scene.detach()?;
    scene.agent.run_merges(&scene.sr)?;
    scene.clean()
}

/// A process that answers at the door of another disk is not taken for that disk's.
#[test]
fn a_process_of_another_disk_is_left_alone() -> Result<()> {
    let mut scene = Scene::set()?;
    let other =
        scene.agent.ok(&["vdi", "create", "--sr", &scene.sr, "--size", "32MiB", "--name", "other"])?;
    scene.attach()?;
    scene.agent.ok(&["vdi", "attach", &other])?;
    let served = scene.agent.served();
    let directories = scene.agent.path("run/catena/vdi");
    let doors = [&scene.disk, &other].map(|vdi| directories.join(vdi).join("control.sock"));
    let swap = || -> Result<()> {
        fs::rename(&doors[0], directories.join("aside"))?;
        fs::rename(&doors[1], &doors[0])?;
        Ok(fs::rename(directories.join("aside"), &doors[1])?)
    };
    swap()?;
    scene.agent.kill()?;
    scene.agent.launch(None)?;
    wait_until("the SR is back", || Ok(scene.record(&scene.disk).is_ok()))?;
    let refused = scene.agent.call("VDI.snapshot", &json!({"vdi": scene.disk}))?;
    ensure!(refused.is_err(), "it was told to another disk's process: {refused:?}");
    wait_until("somebody is told", || Ok(scene.events("vdi.unserved")? == 2))?;
    swap()?;
    for vdi in [&scene.disk, &other] {
        wait_until("it is taken up", || Ok(scene.agent.catena(&["vdi", "snapshot", vdi])?.code == 0))?;
    }
    let now = scene.agent.served();
    ensure!(served.iter().all(|pid| now.contains(pid)) && now.len() == 2, "{served:?}, then {now:?}");
    scene.agent.ok(&["vdi", "detach", &other])?;
    scene.detach()?;
    scene.clean()
}

/// A disk that cannot be served for a time: it is tried again and again, somebody is told once, and it is served in the end.
#[test]
fn a_disk_that_cannot_be_served_is_tried_again() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let mut client = Client::connect(&uri)?;
    client.run("write -P 1 0 64k")?;
    let container = scene.record(&scene.disk)?["container"].as_str().context("a container")?.to_owned();
    let first = scene.datapath()?;
    let broken = Immutable::make(scene.agent.path("sr").join(container))?;
    kill_and_wait(first)?;
    wait_until("somebody is told", || Ok(scene.events("vdi.unserved")? == 1))?;
    let refused = scene.agent.call("VDI.detach", &json!({"vdi": scene.disk}))?;
    ensure!(refused.is_err(), "what was acknowledged is not on the disk (D8): {refused:?}");
    ensure!(scene.record(&scene.disk)?["attached"] == "rw");
    drop(broken);
    client.run("read -P 1 0 64k")?;
    client.run("write -P 2 1M 64k")?;
    ensure!(scene.events("vdi.unserved")? == 1 && scene.events("vdi.datapath_died")? == 1);
    client.close()?;
    scene.detach()?;
    ensure!(scene.agent.read(&scene.disk, 0, 65536)?.iter().all(|byte| *byte == 1));
    scene.clean()
}

#[test]
fn a_disk_whose_storage_failed_is_served_again_when_it_works() -> Result<()> {
    let scene = Scene::set()?;
    let uri = scene.attach()?;
    let socket = socket_of(&uri)?;
    let mut client = nbd::Client::connect(&socket)?;
    ensure!(client.write(0, &[1; 4096], 0)? == 0 && client.ask(nbd::FLUSH, 0, 0, 0)? == 0);
    let first = scene.datapath()?;
    let container = scene.record(&scene.disk)?["container"].as_str().context("a container")?.to_owned();
    // In a block that has its place: only what names the sector is missing on the disk.
    ensure!(client.write(8192, &[2; 4096], 0)? == 0);
    let broken = Immutable::make(scene.agent.path("sr").join(container))?;
    ensure!(client.ask(nbd::FLUSH, 0, 0, 0)? == 5, "a flush of what cannot be stored");
    ensure!(client.write(8192, &[3; 4096], 0)? == 5, "nothing is written any more");
    ensure!(client.read(0, 4096)?.is_ok_and(|bytes| bytes == [1; 4096]), "reads go on");
    wait_until("it is told", || Ok(scene.events("vdi.storage_failed")? == 1))?;
    let failed = scene.record(&scene.disk)?["serving"]["failed"].clone();
    ensure!(failed.as_str().is_some_and(|why| why.contains("storing what was written")), "{failed}");
    let refused = scene.agent.call("VDI.snapshot", &json!({"vdi": scene.disk}))?;
    ensure!(refused.is_err(), "a snapshot of what cannot be made durable: {refused:?}");
    // It is tried, in vain.
    wait_until("the storage is tried", || Ok(scene.agent.log().contains("still fails")))?;
    ensure!(
        scene.datapath()? == first && scene.events("vdi.storage_works")? == 0,
        "it was replaced for nothing"
    );

    drop(broken);
    wait_until("another one serves the disk", || {
        let mut client = nbd::Client::connect(&socket);
        Ok(client.as_mut().is_ok_and(|client| matches!(client.write(16384, &[4; 4096], 0), Ok(0))))
    })?;
    ensure!(scene.events("vdi.storage_works")? == 1 && scene.events("vdi.storage_failed")? == 1);
    ensure!(scene.datapath()? != first);
    wait_until("all is well", || Ok(scene.record(&scene.disk)?["serving"]["pid"].is_u64()))?;
    ensure!(scene.record(&scene.disk)?["serving"]["failed"].is_null());
    scene.detach()?;
    let bytes = scene.agent.read(&scene.disk, 0, 20480)?;
    let expected = [1, 0, 2, 0, 4].map(|byte| vec![byte; 4096]).concat();
    ensure!(bytes == expected, "what was acknowledged");
    scene.clean()
}
