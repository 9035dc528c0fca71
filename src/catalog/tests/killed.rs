//! A process killed at any moment: what it acknowledged is there. The child is this program again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use catena_catalog::{CRASH_POINTS, Catalog, Change};
use common::{disk, event, meta};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const HOME: &str = "CATENA_CATALOG_TEST_HOME";

/// The directory to work in, for a child.
fn role() -> Option<PathBuf> {
    std::env::var_os(HOME).map(PathBuf::from)
}

fn child(test: &str, home: &Path, crash_at: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(HOME, home)
        .env("CATENA_CRASH_AT", crash_at)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Commits for ever, telling each acknowledgement.
fn commit_for_ever(home: &Path) {
    let mut catalog = Catalog::open(home).unwrap();
    let mut out = std::io::stdout();
    for number in catalog.state().last_event.. {
        let mut changes = disk(u32::try_from(number).unwrap()).to_vec();
        changes.push(Change::Event(event(0, "acknowledged")));
        let ids = catalog.commit(changes).unwrap();
        if number % 7 == 0 {
            catalog.idle().unwrap();
        }
        writeln!(out, "\nacknowledged {}", ids[0]).unwrap();
    }
}

#[test]
fn kill_keeps_every_acknowledged_commit() {
    if let Some(home) = role() {
        return commit_for_ever(&home);
    }
    let home = TempDir::new().unwrap();
    Catalog::create(home.path(), meta()).unwrap().close().unwrap();
    for (round, lines) in [1, 5, 12, 3, 20].into_iter().enumerate() {
        let mut child = child("kill_keeps_every_acknowledged_commit", home.path(), "");
        let out = BufReader::new(child.stdout.take().unwrap());
        let told =
            out.lines().filter_map(|line| line.ok()?.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        let acknowledged = told.take(lines).last();
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = acknowledged.unwrap();
        let catalog = Catalog::open(home.path()).unwrap();
        let state = catalog.state();
        assert!(state.last_event >= acknowledged, "round {round}");
        assert_eq!(state.vdis.len() as u64, state.last_event, "a commit is whole");
        assert_eq!(state.images.len() as u64, state.last_event, "a commit is whole");
    }
}

#[test]
fn dying_inside_a_replacement_leaves_one_catalog() {
    if let Some(home) = role() {
        catena_types::arm_crash_points();
        drop(Catalog::open(&home));
        return;
    }
    for point in CRASH_POINTS {
        let home = TempDir::new().unwrap();
        let mut catalog = Catalog::create(home.path(), meta()).unwrap();
        catalog.commit(disk(1).to_vec()).unwrap();
        catalog.idle().unwrap();
        // This one is in the WAL alone.
        catalog.commit(disk(2).to_vec()).unwrap();
        let state = catalog.state().clone();
        drop(catalog);
        let status =
            child("dying_inside_a_replacement_leaves_one_catalog", home.path(), point.0).wait().unwrap();
        assert!(!status.success(), "{} was not passed", point.0);
        // The point may be passed a second time, by the one who finishes.
        child("dying_inside_a_replacement_leaves_one_catalog", home.path(), point.0).wait().unwrap();
        let mut catalog = Catalog::open(home.path()).unwrap();
        assert_eq!(*catalog.state(), state, "{}", point.0);
        catalog.commit(disk(3).to_vec()).unwrap();
        let state = catalog.state().clone();
        drop(catalog);
        assert_eq!(*Catalog::open(home.path()).unwrap().state(), state, "{}", point.0);
        for leftover in ["catalog.db.new", "catalog.next"] {
            assert!(!fs::exists(home.path().join(leftover)).unwrap(), "{leftover} after {}", point.0);
        }
    }
}
