//! What a directory is, and whose: probing it, SRs of other hosts, and directories that are refused. A refusal changes nothing.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, Said, golden_file, sha256, text};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A file system in memory, unmounted when dropped.
struct Memory(TempDir);

impl Memory {
    fn new(kind: &str, options: Option<&str>) -> Result<Self> {
        let directory = TempDir::new()?;
        mount(Some(kind), directory.path(), Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mounting {kind}: tests run as root"))?;
        Ok(Self(directory))
    }

    fn place(&self) -> Result<PathBuf> {
        let place = self.0.path().join("xen");
        fs::create_dir(&place)?;
        golden_file("special/v3.vhd", &place.join("v3.vhd"))?;
        Ok(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

/// An agent on another host, as far as anybody can tell.
fn on_host(name: &str) -> Result<Agent> {
    let mut agent = Agent::stopped()?;
    fs::create_dir_all(agent.path("etc/catena"))?;
    fs::write(agent.path("etc/catena/catenad.toml"), format!("host_id = '{name}'\n"))?;
    agent.launch(None)?;
    Ok(agent)
}

fn introduce(agent: &Agent, place: &str, more: &[&str]) -> Result<Said> {
    let mut words = vec!["sr", "introduce", "--type", "file", "--location", place];
    words.extend(more);
    agent.catena(&words)
}

fn probe(agent: &Agent, place: &Path) -> Result<Value> {
    agent.json(&["sr", "probe", "--type", "file", "--location", &text(place)])
}

/// Names and checksums of all files in a directory and below, directories too.
fn fingerprints(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(fingerprints(&path)?);
            found.insert(text(&path), String::new());
        } else {
            found.insert(text(&path), sha256(&path)?);
        }
    }
    Ok(found)
}

#[test]
fn an_sr_of_another_host_is_refused_and_taken_over_on_request() -> Result<()> {
    let mut here = on_host("here")?;
    let place = here.path("sr");
    let location = text(&place);
    let sr = here.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &location])?;
    let disk = here.ok(&["vdi", "create", "--sr", &sr, "--size", "2MiB", "--name", "disk"])?;
    here.write(&disk, 0, b"kept")?;
    let there = on_host("there")?;

    // While it is open nobody gets it, not even with a word.
    for more in [&[][..], &["--take-over"]] {
        let said = introduce(&there, &location, more)?;
        ensure!(said.code == 4 && said.err.contains("hint: "), "{said:?}");
    }
    here.stop()?;
    let before = fingerprints(&place)?;
    let said = introduce(&there, &location, &[])?;
    ensure!(said.code == 4 && said.err.contains("here") && said.err.contains("--take-over"), "{said:?}");
    let refused = there.call("SR.introduce", &json!({"type": "file", "location": location}))?;
    ensure!(refused.as_ref().err().is_some_and(|error| error["code"] == 16), "{refused:?}");
    ensure!(fingerprints(&place)? == before, "a refusal changes nothing");
    ensure!(there.json(&["sr", "list"])?["srs"] == json!([]));

    let said = introduce(&there, &location, &["--take-over"])?;
    ensure!(said.code == 0 && said.out.trim() == sr, "{said:?}");
    ensure!(there.read(&disk, 0, 4)? == b"kept");
    ensure!(fs::read_to_string(place.join(".catena/sr.toml"))?.contains("host = \"there\""));
    there.ok(&["sr", "detach", &sr])?;

    // Its old host finds it gone, and takes it back.
    here.launch(None)?;
    let said = here.catena(&["sr", "attach", &sr])?;
    ensure!(said.code == 4 && said.err.contains("--take-over"), "{said:?}");
    ensure!(here.json(&["sr", "show", &sr])?["state"] == "failed");
    here.ok(&["sr", "attach", &sr, "--take-over"])?;
    ensure!(here.read(&disk, 0, 4)? == b"kept");
    let said = there.catena(&["sr", "attach", &sr])?;
    ensure!(said.code == 4, "{said:?}");
    here.stop()
}

#[test]
fn a_host_that_was_started_again_gets_its_srs_and_says_so() -> Result<()> {
    let mut agent = Agent::start()?;
    let place = agent.path("sr");
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &text(&place)])?;
    agent.stop()?;
    let marker = place.join(".catena/sr.toml");
    let written = fs::read_to_string(&marker)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(written.contains(boot.trim()), "{written}");
    fs::write(&marker, written.replace(boot.trim(), "an earlier boot"))?;
    agent.launch(None)?;
    agent.ok(&["sr", "attach", &sr])?;
    ensure!(fs::read_to_string(&marker)? == written);
    agent.stop()
}

#[test]
fn a_probe_says_what_is_there_and_changes_nothing() -> Result<()> {
    let agent = on_host("here")?;
    let ours = agent.path("ours");
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &text(&ours)])?;
    agent.ok(&["vdi", "create", "--sr", &sr, "--size", "2MiB", "--name", "disk"])?;
    let (xen, empty, foreign) = (agent.path("xen"), agent.path("empty"), agent.path("foreign"));
    for place in [&xen, &empty, &foreign] {
        fs::create_dir(place)?;
    }
    golden_file("special/v3.vhd", &xen.join("v3.vhd"))?;
    fs::write(foreign.join("letter.txt"), "Dear ...")?;

    let found = probe(&agent, &ours)?;
    ensure!(found["found"] == "sr" && found["uuid"] == sr.as_str() && found["known"] == true, "{found}");
    ensure!(found["name_label"] == "store" && found["owner"]["this_host"] == true, "{found}");
    agent.ok(&["sr", "detach", &sr])?;
    let before = [&ours, &xen, &empty, &foreign].map(|place| fingerprints(place).unwrap_or_default());
    let elsewhere = on_host("there")?;
    let found = probe(&elsewhere, &ours)?;
    ensure!(found["found"] == "sr" && found["known"] == false, "{found}");
    ensure!(found["owner"]["host"] == "here" && found["owner"]["this_host"] == false, "{found}");
    let plain = elsewhere.ok(&["sr", "probe", "--type", "file", "--location", &text(&ours)])?;
    ensure!(plain.contains(&sr) && plain.contains("here"), "{plain}");
    let found = probe(&elsewhere, &xen)?;
    ensure!(found["found"] == "images" && found["images"] == json!(["v3.vhd"]), "{found}");
    for place in [&empty, &elsewhere.path("absent")] {
        ensure!(probe(&elsewhere, place)?["found"] == "empty");
    }
    let found = probe(&elsewhere, &foreign)?;
    let words = found["text"].as_str().context("text")?;
    ensure!(found["found"] == "foreign" && words.contains("letter.txt"), "{found}");
    let after = [&ours, &xen, &empty, &foreign].map(|place| fingerprints(place).unwrap_or_default());
    ensure!(before == after && !elsewhere.path("absent").exists());
    Ok(())
}

#[test]
fn a_refused_introduction_leaves_the_directory_as_it_was() -> Result<()> {
    let agent = Agent::start()?;
    // Too small for a catalog.
    let memory = Memory::new("tmpfs", Some("size=32k"))?;
    let place = memory.place()?;
    let before = fingerprints(&place)?;
    let said = introduce(&agent, &text(&place), &[])?;
    ensure!(said.code == 5, "{said:?}");
    ensure!(fingerprints(&place)? == before, "{:?}", fingerprints(&place)?);
    ensure!(agent.json(&["sr", "list"])?["srs"] == json!([]));
    // A name that is not ours in the way.
    let taken = agent.path("taken");
    fs::create_dir(&taken)?;
    golden_file("special/v3.vhd", &taken.join("v3.vhd"))?;
    fs::write(taken.join(".catena"), "a file")?;
    let before = fingerprints(&taken)?;
    let said = introduce(&agent, &text(&taken), &[])?;
    ensure!(said.code != 0, "{said:?}");
    ensure!(fingerprints(&taken)? == before);
    Ok(())
}

#[test]
fn an_sr_is_known_at_one_location() -> Result<()> {
    let agent = Agent::start()?;
    let (one, two) = (agent.path("one"), agent.path("two"));
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &text(&one)])?;
    agent.ok(&["sr", "detach", &sr])?;
    fs::create_dir_all(two.join(".catena"))?;
    for entry in fs::read_dir(one.join(".catena"))? {
        let entry = entry?;
        fs::copy(entry.path(), two.join(".catena").join(entry.file_name()))?;
    }
    let before = fingerprints(&two)?;
    for more in [&[][..], &["--dry-run"]] {
        let said = introduce(&agent, &text(&two), more)?;
        ensure!(said.code == 4 && said.err.contains(&sr), "{said:?}");
    }
    ensure!(fingerprints(&two)? == before, "a refusal changes nothing");
    Ok(())
}

#[test]
fn where_there_is_no_place_for_labels_everything_else_works() -> Result<()> {
    let agent = Agent::start()?;
    let memory = Memory::new("ramfs", None)?;
    let place = memory.place()?;
    let said = introduce(&agent, &text(&place), &[])?;
    ensure!(said.code == 0, "{said:?}");
    let vdis = agent.json(&["vdi", "list"])?;
    let disk = vdis["vdis"][0]["uuid"].as_str().context("a disk")?;
    ensure!(agent.read(disk, 0, 4)? == [0; 4]);
    agent.ok(&["vdi", "set", disk, "name_label=named"])?;
    ensure!(agent.log().matches("kept in the catalog only").count() == 1, "{}", agent.log());
    Ok(())
}
