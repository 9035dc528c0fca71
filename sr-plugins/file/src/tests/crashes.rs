//! What a crash in the middle of making, changing or removing an SR leaves, and what is made of it.

use super::bench::{DirectoryPlace, closed_sr, identity};
use crate::FilePlugin;
use catena_sr_api::conformance::{Fixture, Place};
use catena_sr_api::{Error, Plugin, Probe};
use std::fs;

#[test]
fn leftovers_of_a_create_are_no_sr_and_are_taken_over() {
    // Each is a moment at which create, or destroy, may have stopped.
    let moments: [&[&str]; 6] = [
        &[],
        &["lock"],
        &["lock", "sr.toml.new"],
        &["lock", "try-from", "try-to"],
        &["lock", "reserve"],
        &["lock", "catalog.db", "catalog.db-wal", "catalog.db.new", "catalog.bak", "reserve"],
    ];
    for leftovers in moments {
        let place = DirectoryPlace::new(Fixture::Empty);
        fs::create_dir(place.home("")).unwrap();
        for name in leftovers {
            fs::write(place.home(name), "left").unwrap();
        }
        assert_eq!(FilePlugin.probe(place.location()).unwrap(), Probe::Empty, "{leftovers:?}");
        let identity = identity();
        let opened = FilePlugin.open(place.location(), identity.uuid, &identity.owner, true);
        assert!(matches!(opened, Err(Error::Unavailable(_))), "{leftovers:?}");

        drop(FilePlugin.create(place.location(), &identity).unwrap());
        let mut names: Vec<_> =
            fs::read_dir(place.home("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["lock", "sr.toml"], "{leftovers:?}: nothing else is in a new SR");
        drop(FilePlugin.open(place.location(), identity.uuid, &identity.owner, false).unwrap());
    }
}

#[test]
fn a_home_with_anything_else_in_it_is_foreign() {
    let place = DirectoryPlace::new(Fixture::Empty);
    fs::create_dir(place.home("")).unwrap();
    fs::write(place.home("letters"), "somebody's").unwrap();
    let before = place.contents();
    assert!(
        matches!(FilePlugin.probe(place.location()).unwrap(), Probe::Foreign(what) if what.contains("letters"))
    );
    assert!(matches!(FilePlugin.create(place.location(), &identity()), Err(Error::Foreign(_))));
    assert_eq!(place.contents(), before);
}

#[test]
fn a_catalog_that_lost_its_marker_is_kept_where_images_are() {
    let (place, identity) = closed_sr();
    fs::write(place.home("catalog.db"), "what the images are").unwrap();
    fs::write(place.location().join("a.vhd"), "an image").unwrap();
    fs::remove_file(place.home("sr.toml")).unwrap();
    let before = place.contents();
    assert!(matches!(FilePlugin.adopt(place.location(), &identity), Err(Error::Foreign(_))));
    assert!(matches!(FilePlugin.create(place.location(), &identity), Err(Error::Foreign(_))));
    assert_eq!(place.contents(), before);
}

#[test]
fn an_adoption_that_was_cut_short_can_be_repeated() {
    let place = DirectoryPlace::new(Fixture::Images);
    fs::create_dir(place.home("")).unwrap();
    fs::write(place.home("lock"), "").unwrap();
    assert!(matches!(FilePlugin.probe(place.location()).unwrap(), Probe::Images(names) if names.len() == 2));
    drop(FilePlugin.adopt(place.location(), &identity()).unwrap());
}

#[test]
fn a_marker_that_cannot_be_read_is_neither_an_sr_nor_room_for_one() {
    for damage in ["", "layout = 1\nuuid = \"", "layout = 99\n", "\u{fffd}\u{0}"] {
        let (place, identity) = closed_sr();
        fs::write(place.home("sr.toml"), damage).unwrap();
        let before = place.contents();
        assert!(
            matches!(FilePlugin.probe(place.location()).unwrap(), Probe::Foreign(what) if what.contains("sr.toml"))
        );
        let opened = FilePlugin.open(place.location(), identity.uuid, &identity.owner, true);
        assert!(matches!(opened, Err(Error::Unavailable(_))), "{damage:?}");
        assert!(
            matches!(FilePlugin.create(place.location(), &identity), Err(Error::Foreign(_))),
            "{damage:?}"
        );
        assert_eq!(place.contents(), before, "{damage:?}");
    }
}

#[test]
fn a_marker_that_is_no_file_is_not_read() {
    for kind in ["directory", "link", "pipe"] {
        let (place, _) = closed_sr();
        let marker = place.home("sr.toml");
        let copy = place.location().join("copy.vhd");
        fs::rename(&marker, &copy).unwrap();
        match kind {
            "directory" => fs::create_dir(&marker).unwrap(),
            "link" => std::os::unix::fs::symlink("../copy.vhd", &marker).unwrap(),
            _ => nix::unistd::mkfifo(&marker, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
        let probe = FilePlugin.probe(place.location()).unwrap();
        assert!(matches!(probe, Probe::Foreign(_)), "{kind}: {probe:?}");
    }
}

#[test]
fn a_half_written_new_marker_beside_the_old_one_does_not_matter() {
    let (place, mut identity) = closed_sr();
    fs::write(place.home("sr.toml.new"), "layout = ").unwrap();
    assert_eq!(FilePlugin.probe(place.location()).unwrap(), Probe::Ours(identity.clone()));
    identity.owner.boot = "boot-2".to_owned();
    drop(FilePlugin.open(place.location(), identity.uuid, &identity.owner, false).unwrap());
    assert_eq!(FilePlugin.probe(place.location()).unwrap(), Probe::Ours(identity));
    assert!(!place.home("sr.toml.new").exists());
}
