//! `sr check --repair` and `sr trim` on the real programs: what is damaged is found, mended where nothing is lost, and what was
//! written over is kept; unused space comes back and no content changes.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, golden_file, peer, qemu_img};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;

/// An agent with an SR whose merges wait for a word, and the directory of that.
fn quiet() -> Result<(Agent, PathBuf)> {
    let agent = Agent::start()?;
    let directory = agent.path("sr");
    let place = directory.to_string_lossy().into_owned();
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &place])?;
    agent.ok(&["coalesce", "pause", "disks"])?;
    Ok((agent, directory))
}

/// A disk of 8 MiB whose first blocks hold bytes of `fill`, but for their beginning.
fn disk(agent: &Agent, name: &str, fill: u8) -> Result<String> {
    let uuid = agent.ok(&["vdi", "create", "--sr", "disks", "--size", "8MiB", "--name", name])?;
    for block in 0..3 {
        agent.write(&uuid, block * 2 * MIB + 4096, &vec![fill; (2 << 20) - 4096])?;
    }
    Ok(uuid)
}

/// The container of a VDI's image.
fn container(agent: &Agent, directory: &Path, vdi: &str) -> Result<PathBuf> {
    let record = agent.json(&["vdi", "show", vdi])?;
    Ok(directory.join(record["container"].as_str().context("container")?))
}

/// The exit code and the document of a check.
fn check(agent: &Agent, options: &[&str]) -> Result<(i32, Value)> {
    let said = agent.catena(&[&["--json", "sr", "check", "disks"], options].concat())?;
    let document = serde_json::from_str(&said.out).with_context(|| format!("the check said {said:?}"))?;
    Ok((said.code, document))
}

fn file(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Whether some finding of the list is about this rule and is of that severity.
fn finds(findings: &Value, severity: &str, rule: &str) -> bool {
    findings.as_array().into_iter().flatten().any(|finding| {
        finding["severity"] == severity
            && finding["problem"].as_str().is_some_and(|text| text.starts_with(rule))
    })
}

#[test]
fn a_crashed_image_of_the_vendor_is_mended() -> Result<()> {
    let agent = Agent::start()?;
    let mut content = Vec::new();
    for name in ["qcrash", "qrepaired"] {
        let directory = agent.path(name);
        fs::create_dir(&directory)?;
        golden_file(&format!("special/{name}.vhd"), &directory.join(format!("{name}.vhd")))?;
        let place = directory.to_string_lossy().into_owned();
        agent.ok(&["sr", "introduce", "--type", "file", "--location", &place, "--name", name])?;
    }
    let before = fs::read(agent.path("qcrash/qcrash.vhd"))?;
    // A reader that wants the footer at the end, and one that reads its copy.
    let (crashed, repaired) = (agent.path("qcrash/qcrash.vhd"), agent.path("qrepaired/qrepaired.vhd"));
    let (crashed, repaired) = (crashed.to_string_lossy(), repaired.to_string_lossy());
    ensure!(peer("libvhdi-utils", "vhdiinfo", &[&crashed]).is_err(), "it is not damaged");
    let checked: Value = serde_json::from_str(&agent.ok(&["--json", "sr", "check", "qcrash"])?)?;
    ensure!(finds(&checked["findings"], "warning", "footer_end"), "{checked}");
    let plan = agent.catena(&["sr", "check", "qcrash", "--repair"])?;
    ensure!(plan.code == 0 && plan.out.contains("--repair: it is written again from its copy"), "{plan:?}");
    ensure!(plan.err.contains("nothing was changed"), "{plan:?}");
    ensure!(fs::read(agent.path("qcrash/qcrash.vhd"))? == before, "a plan has changed the image");

    let report = agent.json(&["sr", "check", "qcrash", "--repair", "--yes"])?;
    ensure!(report["clean"] == true && report["findings"] == serde_json::json!([]), "{report}");
    ensure!(finds(&report["findings_before"], "warning", "footer_end"), "{report}");
    ensure!(report["repaired"][0]["object"] == "qcrash.vhd", "{report}");
    for name in ["qcrash", "qrepaired"] {
        content.push(agent.hash(
            agent.json(&["vdi", "list", "--sr", name])?["vdis"][0]["uuid"].as_str().context("uuid")?,
        )?);
    }
    peer("libvhdi-utils", "vhdiinfo", &[&crashed])?;
    qemu_img(&["compare", "-f", "vpc", "-F", "vpc", &crashed, &repaired])?;
    ensure!(content[0] == content[1], "the mended image holds something else than the vendor's repair of it");
    let job = agent.json(&["job", "list"])?;
    ensure!(job["jobs"].as_array().into_iter().flatten().any(|job| job["kind"] == "repair"), "{job}");
    Ok(())
}

#[test]
fn a_damaged_chain_is_mended_and_can_be_undone() -> Result<()> {
    let (agent, directory) = quiet()?;
    let vdi = disk(&agent, "web", 7)?;
    agent.ok(&["vdi", "snapshot", &vdi])?;
    agent.write(&vdi, 1 << 20, &vec![9; 300_000])?;
    let content = agent.read(&vdi, 0, 8 * MIB)?;
    let leaf = container(&agent, &directory, &vdi)?;
    let tree = agent.json(&["vdi", "tree", "disks"])?;
    let base = directory.join(tree["roots"][0]["container"].as_str().context("container")?);
    // The header of the leaf, the flag and checksum of the base copy's last footer, and the copy of the leaf's footer.
    file(&leaf)?.write_all_at(&[0xff; 700], 700)?;
    file(&leaf)?.write_all_at(&[0; 512], 0)?;
    let end = fs::metadata(&base)?.len();
    file(&base)?.write_all_at(&[1; 100], end - 450)?;
    let damaged = fs::read(&leaf)?;

    let (code, found) = check(&agent, &[])?;
    ensure!(code == 7 && found["clean"] == false, "{found}");
    ensure!(finds(&found["findings"], "error", "header_checksum"), "{found}");
    ensure!(finds(&found["findings"], "warning", "footer_end"), "{found}");
    let (code, plan) = check(&agent, &["--repair"])?;
    ensure!(code == 7 && plan["findings"] == found["findings"], "{plan}");
    ensure!(fs::read(&leaf)? == damaged, "a plan has changed the image");

    let (code, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(code == 0 && report["clean"] == true && report["findings"] == serde_json::json!([]), "{report}");
    ensure!(agent.read(&vdi, 0, 8 * MIB)? == content, "the disk holds something else");
    let (_, again) = check(&agent, &["--repair", "--yes"])?;
    ensure!(again["repaired"] == serde_json::json!([]), "nothing is left to be mended: {again}");

    let name = leaf.file_name().context("name")?.to_string_lossy().into_owned();
    let repaired = report["repaired"].as_array().context("repaired")?;
    let one = repaired.iter().find(|one| one["object"] == *name).context("the leaf was mended")?;
    let saved = PathBuf::from(one["saved"].as_str().context("saved")?);
    let index: Value = serde_json::from_slice(&fs::read(saved.with_extension("json"))?)?;
    let bytes = fs::read(&saved)?;
    for range in index["ranges"].as_array().context("ranges")? {
        let number = |field: &str| range[field].as_u64().context("a number");
        let from = usize::try_from(number("from")?)?;
        let length = usize::try_from(number("length")?)?;
        file(&leaf)?.write_all_at(&bytes[from..from + length], number("at")?)?;
    }
    file(&leaf)?.set_len(index["length"].as_u64().context("length")?)?;
    ensure!(fs::read(&leaf)? == damaged, "what was saved does not undo the repair");
    agent.ok(&["sr", "check", "disks", "--repair", "--yes"])?;
    agent.ok(&["vdi", "destroy", "--yes", &vdi])?;
    Ok(())
}

#[test]
fn the_catalog_decides_about_parent_and_flag() -> Result<()> {
    let (agent, directory) = quiet()?;
    let disks = [disk(&agent, "one", 1)?, disk(&agent, "two", 2)?];
    for vdi in &disks {
        agent.ok(&["vdi", "snapshot", vdi])?;
        agent.write(vdi, MIB, &vec![8; 100_000])?;
    }
    let contents = [agent.read(&disks[0], 0, 8 * MIB)?, agent.read(&disks[1], 0, 8 * MIB)?];
    let leaves = [container(&agent, &directory, &disks[0])?, container(&agent, &directory, &disks[1])?];
    // The first leaf gets all that the second says of its parent: the header, and the locators between tables and blocks.
    let other = fs::read(&leaves[1])?;
    file(&leaves[0])?.write_all_at(&other[512..1536], 512)?;
    file(&leaves[0])?.write_all_at(&other[3072..7680], 3072)?;
    hide(&leaves[1])?;

    let (code, found) = check(&agent, &[])?;
    ensure!(code == 7 && finds(&found["findings"], "error", "parent_id"), "{found}");
    ensure!(finds(&found["findings"], "warning", "its header names another parent"), "{found}");
    ensure!(finds(&found["findings"], "info", "its hidden flag is true"), "{found}");
    let (code, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(code == 0 && report["findings"] == serde_json::json!([]), "{report}");
    for (vdi, content) in disks.iter().zip(contents) {
        ensure!(agent.read(vdi, 0, 8 * MIB)? == content, "{vdi} holds something else");
    }
    Ok(())
}

/// Sets the hidden flag in both footers, and adapts their checksums: the complement of a sum that grows by one.
fn hide(image: &Path) -> Result<()> {
    let end = fs::metadata(image)?.len();
    for at in [0, end - 512] {
        let mut sum = [0; 4];
        file(image)?.read_exact_at(&mut sum, at + 64)?;
        file(image)?.write_all_at(&(u32::from_be_bytes(sum) - 1).to_be_bytes(), at + 64)?;
        file(image)?.write_all_at(&[1], at + 85)?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_mended_blocks_its_chain_only() -> Result<()> {
    let (agent, directory) = quiet()?;
    let (good, bad) = (disk(&agent, "good", 1)?, disk(&agent, "bad", 2)?);
    let content = agent.read(&good, 0, 8 * MIB)?;
    let path = container(&agent, &directory, &bad)?;
    // Two blocks in one place: nobody knows whose data they are.
    let mut entry = [0; 4];
    file(&path)?.read_exact_at(&mut entry, 1536)?;
    let mut other = [0; 4];
    file(&path)?.read_exact_at(&mut other, 1540)?;
    file(&path)?.write_all_at(&entry, 1540)?;
    let damaged = fs::read(&path)?;

    let (code, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(code == 7 && finds(&report["findings"], "error", "block_overlap"), "{report}");
    ensure!(report["repaired"] == serde_json::json!([]), "{report}");
    ensure!(fs::read(&path)? == damaged, "an image that cannot be mended was written");
    let refused = agent.catena(&["vdi", "snapshot", &bad])?;
    ensure!(refused.code == 4 && refused.err.contains("corrupt"), "{refused:?}");
    ensure!(agent.read(&good, 0, 8 * MIB)? == content, "the other disk");
    agent.ok(&["vdi", "snapshot", &good])?;

    // Mended by hand, it is in order again with the next repair.
    file(&path)?.write_all_at(&other, 1540)?;
    let (code, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(code == 0 && report["clean"] == true, "{report}");
    agent.ok(&["vdi", "snapshot", &bad]).map(drop)
}

#[test]
fn images_of_others_and_orphans_are_not_touched() -> Result<()> {
    let agent = Agent::start()?;
    let directory = agent.path("sr");
    fs::create_dir(&directory)?;
    golden_file("special/qemu-data.vhd", &directory.join("qemu.vhd"))?;
    golden_file("special/c1.vhd", &directory.join("orphan.vhd"))?;
    for name in ["qemu.vhd", "orphan.vhd"] {
        // Their last footers.
        let path = directory.join(name);
        let end = fs::metadata(&path)?.len();
        file(&path)?.write_all_at(&[0; 512], end - 512)?;
    }
    let place = directory.to_string_lossy().into_owned();
    agent.ok(&["sr", "introduce", "--type", "file", "--location", &place, "--name", "disks"])?;
    let before = [fs::read(directory.join("qemu.vhd"))?, fs::read(directory.join("orphan.vhd"))?];
    let (_, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(report["repaired"] == serde_json::json!([]), "{report}");
    agent.ok(&["sr", "trim", "disks"])?;
    let after = [fs::read(directory.join("qemu.vhd"))?, fs::read(directory.join("orphan.vhd"))?];
    ensure!(before == after, "an image of another program or an orphan was written");
    Ok(())
}

#[test]
fn unused_space_comes_back() -> Result<()> {
    let (agent, directory) = quiet()?;
    let vdi = disk(&agent, "web", 5)?;
    let mut content = agent.read(&vdi, 0, 8 * MIB)?;
    let path = container(&agent, &directory, &vdi)?;
    // Block 1 loses its place, as a process that was killed while it gave the block up leaves it; its space is still taken.
    file(&path)?.write_all_at(&[0xff; 4], 1540)?;
    content[2 << 20..4 << 20].fill(0);
    ensure!(check(&agent, &[])?.0 == 0, "that is no damage");
    let before = fs::metadata(&path)?.blocks() * 512;
    let report = agent.json(&["sr", "trim", "disks"])?;
    let freed = report["freed"].as_u64().context("freed")?;
    ensure!(freed > 2 * MIB - 65536 && report["images"] == 1, "{report}");
    ensure!(fs::metadata(&path)?.blocks() * 512 + freed == before, "{report}");
    ensure!(agent.read(&vdi, 0, 8 * MIB)? == content, "a trim has changed the disk");
    ensure!(check(&agent, &[])?.0 == 0);
    let again = agent.json(&["sr", "trim", "disks"])?;
    ensure!(again["freed"] == 0, "{again}");
    let job = agent.json(&["job", "list"])?;
    ensure!(job["jobs"].as_array().into_iter().flatten().any(|job| job["kind"] == "trim"), "{job}");
    Ok(())
}

#[test]
fn an_sr_that_was_repaired_can_be_destroyed() -> Result<()> {
    let (agent, directory) = quiet()?;
    let vdi = disk(&agent, "web", 5)?;
    file(&container(&agent, &directory, &vdi)?)?.write_all_at(&[0; 512], 0)?;
    let (_, report) = check(&agent, &["--repair", "--yes"])?;
    ensure!(report["repaired"].as_array().is_some_and(|list| list.len() == 1), "{report}");
    ensure!(directory.join(".catena/repair").is_dir(), "nothing was saved");
    agent.ok(&["vdi", "destroy", "--yes", &vdi])?;
    agent.ok(&["sr", "destroy", "--yes", "disks"])?;
    ensure!(!directory.join(".catena").exists(), "something is left");
    Ok(())
}

#[test]
fn a_person_is_asked_before_anything_is_mended() -> Result<()> {
    let (agent, directory) = quiet()?;
    let vdi = disk(&agent, "web", 5)?;
    let path = container(&agent, &directory, &vdi)?;
    file(&path)?.write_all_at(&[0; 512], 0)?;
    let damaged = fs::read(&path)?;
    let (code, screen) = on_terminal(&agent, "sr check disks --repair", "n\n")?;
    ensure!(code == 7 && screen.contains("repair 1 of 1 findings? [y/N]"), "{screen}");
    ensure!(screen.contains("nothing was changed") && fs::read(&path)? == damaged, "{screen}");
    let (code, screen) = on_terminal(&agent, "sr check disks --repair", "y\n")?;
    ensure!(code == 0 && screen.contains("REPAIRED") && fs::read(&path)? != damaged, "{screen}");
    let (code, screen) = on_terminal(&agent, "sr check disks --repair", "")?;
    ensure!(code == 0 && !screen.contains("[y/N]"), "there is nothing to be asked: {screen}");
    Ok(())
}

/// What `catena ARGUMENTS` shows on a terminal (`script` makes it) to a person who types this, and its exit code.
fn on_terminal(agent: &Agent, arguments: &str, typed: &str) -> Result<(i32, String)> {
    let line = format!("{} --root {} {arguments}", env!("CARGO_BIN_EXE_catena"), agent.path("").display());
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("script cannot be run: install the Debian package bsdutils")?;
    child.stdin.as_mut().context("stdin")?.write_all(typed.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok((output.status.code().context("a signal")?, String::from_utf8_lossy(&output.stdout).into_owned()))
}
