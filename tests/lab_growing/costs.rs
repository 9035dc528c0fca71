//! Commands of lvm2, each of which takes a good part of a second: how many an operation costs, with all that it leaves to be done
//! behind its answer. Counted by who stands in front of lvm2's program.

use crate::harness::lab::{self, run};
use crate::harness::{nightly, text, wait_until};
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The program that all commands are links to.
const PROGRAM: &str = "/usr/sbin/lvm";
/// Images of the longest chain: as many as there may be, one less for the snapshot that is taken.
const LONGEST: usize = 29;

/// Who writes every command down; in the mounts of this test alone.
struct Scribe(PathBuf);

impl Scribe {
    fn place(store: &Store) -> Result<Self> {
        let [real, wrapper, log] = ["lvm.real", "lvm", "commands"].map(|name| store.agent.path(name));
        fs::copy(PROGRAM, &real)?;
        fs::write(&log, "")?;
        let [program, written] = [&real, &log].map(|path| text(path));
        let lines = format!(
            "#!/bin/bash\nset -eu\necho \"${{0##*/}} $*\" >>{written}\nexec -a \"$0\" {program} \"$@\"\n"
        );
        fs::write(&wrapper, lines)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        run("mount", &["--bind", &text(&wrapper), PROGRAM])?;
        Ok(Self(log))
    }

    /// The commands of an operation until `settled`, those that only write labels aside: what they do, and how many labelled.
    fn of(
        &self,
        operation: impl FnOnce() -> Result<()>,
        settled: impl FnMut() -> Result<bool>,
    ) -> Result<(Vec<String>, usize)> {
        fs::write(&self.0, "")?;
        operation()?;
        wait_until("all is done that the operation has left", settled)?;
        let text = fs::read_to_string(&self.0)?;
        // Those of the test are not named `lvm`, but what they do.
        let ours = text.lines().filter_map(|line| line.strip_prefix("lvm "));
        let (labels, others): (Vec<&str>, Vec<&str>) =
            ours.partition(|line| line.contains("lvchange") && line.contains("tag "));
        Ok((others.into_iter().map(brief).collect(), labels.len()))
    }
}

/// A command without its configuration.
fn brief(line: &str) -> String {
    let (command, rest) = line.split_once(" --config ").unwrap_or((line, ""));
    let read_only = if rest.contains("read_only_volume_list") { " [ro]" } else { "" };
    format!("{command}{} {read_only}", rest.rsplit_once('}').map_or("", |(_, words)| words))
}

/// Whether nobody has anything left to do: so many volumes of images are active, so many of them for writing, and no label is to be
/// taken from an image that has lost its disk.
fn is_settled(store: &Store, active: usize, written: usize) -> Result<bool> {
    let columns = "lv_name,lv_tags,lv_active,lv_permissions";
    let form = ["--foreign", "--reportformat", "json", "-o", columns, &store.group()];
    let document: Value = serde_json::from_str(&run("lvs", &form)?)?;
    let rows = document["report"][0]["lv"].as_array().context("volumes")?;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or("").to_owned();
    let images: Vec<&Value> = rows.iter().filter(|row| text(row, "lv_name").starts_with("vhd-")).collect();
    let tags: Vec<String> = images
        .iter()
        .flat_map(|row| text(row, "lv_tags").split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let named: Vec<&String> = tags.iter().filter(|tag| tag.starts_with("catena.vdi=")).collect();
    let is_active: Vec<&Value> = images.into_iter().filter(|row| row["lv_active"] == "active").collect();
    let writable = is_active.iter().filter(|row| row["lv_permissions"] == "writeable").count();
    Ok(is_active.len() == active
        && writable == written
        && named.len() == named.iter().collect::<BTreeSet<_>>().len()
        && !tags.iter().any(|tag| tag.starts_with("catena.state=")))
}

#[test]
fn operations_take_few_commands() -> Result<()> {
    lab::test(|| {
        let store = Store::new(2048, "thin")?;
        let disk = store.vdi("64MiB", "disk")?;
        store.agent.ok(&["coalesce", "pause", &store.sr])?;
        let depth = if nightly() { LONGEST } else { 6 };
        for number in 1..depth {
            store.agent.ok(&["vdi", "snapshot", &disk, "--name", &number.to_string()])?;
        }
        let other = store.vdi("64MiB", "other")?;
        wait_until("the labels are written", || is_settled(&store, 0, 0))?;
        let scribe = Scribe::place(&store)?;
        let mut wrong = Vec::new();
        // How many commands are allowed, and how many more for labels; the words; and what is active then, and written.
        let mut at_most = |limits: (usize, usize),
                           words: &[&str],
                           active: usize,
                           written: usize|
         -> Result<()> {
            let operation = || store.agent.ok(words).map(drop);
            let (commands, labels) = scribe.of(operation, || is_settled(&store, active, written))?;
            let said =
                format!("{words:?}: {} and {labels} for labels\n  {}", commands.len(), commands.join("\n  "));
            println!("{said}");
            if commands.len() > limits.0 || labels > limits.1 {
                wrong.push(said);
            }
            Ok(())
        };
        at_most((4, 0), &["vdi", "attach", &disk], depth, 1)?;
        at_most((4, 1), &["vdi", "snapshot", &disk, "--name", "live"], depth + 1, 1)?;
        at_most((3, 0), &["vdi", "detach", &disk], 0, 0)?;
        at_most((1, 0), &["vdi", "attach", &disk, "--read-only"], depth + 1, 0)?;
        at_most((1, 0), &["vdi", "detach", &disk], 0, 0)?;
        at_most((0, 0), &["sr", "stat", &store.sr], 0, 0)?;
        at_most((0, 0), &["vdi", "list"], 0, 0)?;
        at_most((4, 1), &["vdi", "snapshot", &other, "--name", "still"], 0, 0)?;
        at_most((2, 0), &["vdi", "create", "--sr", &store.sr, "--size", "64MiB", "--name", "new"], 0, 0)?;
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        run("umount", &[PROGRAM])?;
        store.agent.ok(&["coalesce", "resume", &store.sr])?;
        store.clean()
    })
}
