//! What is peculiar to containers that are files, and to locations that are paths.

use super::bench::{DirectoryPlace, closed_sr, host, identity};
use crate::FilePlugin;
use catena_sr_api::conformance::{Fixture, Place};
use catena_sr_api::{Access, Error, Plugin, Probe};
use catena_types::Bytes;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn only_the_owner_may_enter_what_we_make() {
    let place = DirectoryPlace::new(Fixture::Absent);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    store.create_container("a.vhd", Bytes(0)).unwrap();
    assert_eq!(mode(place.location()), 0o700);
    assert_eq!(mode(place.home("")), 0o700);
    assert_eq!(mode(place.home("sr.toml")), 0o600);
    assert_eq!(mode(place.location().join("a.vhd")), 0o600);
    assert_eq!(store.catalog_dir(), place.location().join(".catena"));
}

#[test]
fn descriptors_close_on_exec_and_block() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    store.create_container("a.vhd", Bytes(0)).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let file = store.activate("a.vhd", access).unwrap();
        let flags = FdFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }
}

#[test]
fn containers_are_of_the_directory_that_was_opened() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    place.replace_storage();
    store.create_container("a.vhd", Bytes(0)).unwrap();
    assert!(!place.location().join("a.vhd").exists(), "made in the directory that took the place");
    assert_eq!(store.list().unwrap().len(), 1);
    fs::remove_dir(place.location()).unwrap();
    assert!(matches!(store.check_marker(), Err(Error::Unavailable(_))));
}

#[test]
fn the_marker_check_notices_a_take_over_and_a_lost_marker() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let identity = identity();
    let store = FilePlugin.create(place.location(), &identity).unwrap();
    let marker = fs::read_to_string(place.home("sr.toml")).unwrap();
    fs::write(place.home("sr.toml"), marker.replace("host-a", "host-b")).unwrap();
    assert!(matches!(store.check_marker(), Err(Error::InUse(message)) if message.contains("host-b")));
    let other = marker.replace(&identity.uuid.to_string(), &super::bench::identity().uuid.to_string());
    fs::write(place.home("sr.toml"), other).unwrap();
    assert!(matches!(store.check_marker(), Err(Error::Unavailable(_))));
    fs::remove_file(place.home("sr.toml")).unwrap();
    assert!(matches!(store.check_marker(), Err(Error::Unavailable(_))));
}

#[test]
fn the_marker_check_notices_a_copy_of_the_sr() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    let marker = fs::read(place.home("sr.toml")).unwrap();
    place.replace_storage();
    fs::create_dir(place.home("")).unwrap();
    fs::write(place.home("sr.toml"), marker).unwrap();
    assert!(matches!(store.check_marker(), Err(Error::Unavailable(_))));
}

#[test]
fn metadata_counts_as_used() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    let before = store.stat().unwrap().used;
    let reserve = fs::File::create(place.home("reserve")).unwrap();
    nix::fcntl::fallocate(&reserve, nix::fcntl::FallocateFlags::empty(), 0, 1 << 20).unwrap();
    let used = store.stat().unwrap().used;
    assert!(used.0 >= before.0 + (1 << 20), "{before:?}, {used:?}");
    assert_eq!(FilePlugin.look(place.location()).unwrap().stat().unwrap().used, used);
}

#[test]
fn foreign_files_and_odd_names_do_not_disturb_a_listing() {
    use std::os::unix::ffi::OsStrExt;
    let (place, identity) = closed_sr();
    for name in [&b"notes.txt"[..], b".hidden.vhd", b"\xff.vhd", b"a b\n.vhd"] {
        fs::write(place.location().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let store = FilePlugin.open(place.location(), identity.uuid, &identity.owner, false).unwrap();
    let names: Vec<_> = store.list().unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["a b\n.vhd", "notes.txt"]);
}

#[test]
fn a_name_as_long_as_the_system_allows_is_taken() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    let name = "x".repeat(255);
    store.create_container(&name, Bytes(0)).unwrap();
    assert_eq!(store.info(&name).unwrap().length, Bytes(0));
    assert!(store.remove(&name).unwrap());
}

#[test]
fn a_location_is_an_absolute_path_of_a_directory_itself() {
    let (place, identity) = closed_sr();
    let around = place.location().parent().unwrap();
    let link = around.join("link");
    symlink(place.location(), &link).unwrap();
    let open = |path: &Path| FilePlugin.open(path, identity.uuid, &identity.owner, false);
    assert!(matches!(open(Path::new("sr")), Err(Error::Unsupported(_))), "relative");
    assert!(matches!(open(Path::new("/")), Err(Error::Unsupported(_))), "the root");
    assert!(matches!(open(&around.join("x/..")), Err(Error::Unsupported(_))), "ends in dots");
    assert!(matches!(open(&link), Err(Error::Unavailable(_))), "a link");
    assert!(matches!(open(&around.join("outside")), Err(Error::Unavailable(_))), "a file");
    assert!(matches!(open(&around.join("outside/sr")), Err(Error::Unavailable(_))), "below a file");
    assert!(matches!(FilePlugin.probe(&link).unwrap(), Probe::Foreign(_)));
    assert!(matches!(FilePlugin.create(&link, &identity), Err(Error::Foreign(_))));
    let far = around.join("absent/sr");
    assert!(
        matches!(FilePlugin.create(&far, &identity), Err(Error::Unavailable(_))),
        "two levels are not made"
    );
    assert!(matches!(FilePlugin.probe(&far), Err(Error::Unavailable(_))));
}

#[test]
fn links_above_the_location_are_resolved_once() {
    let (place, identity) = closed_sr();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    symlink(place.location().parent().unwrap(), &link).unwrap();
    let store = FilePlugin.open(&link.join("sr"), identity.uuid, &identity.owner, false).unwrap();
    fs::remove_file(&link).unwrap();
    assert_eq!(store.catalog_dir(), place.home("").components().as_path());
    store.check_marker().unwrap();
}

#[test]
fn refusals_say_what_is_in_the_way() {
    let place = DirectoryPlace::new(Fixture::Images);
    let message = FilePlugin.create(place.location(), &identity()).err().unwrap().to_string();
    assert!(message.contains("\"Two.VHD\", \"one.vhd\""), "{message}");
    let (place, identity) = closed_sr();
    let message = FilePlugin.create(place.location(), &identity).err().unwrap().to_string();
    assert!(message.contains(&identity.uuid.to_string()), "{message}");
}

#[test]
fn destroy_refuses_a_home_with_a_foreign_file() {
    let (place, identity) = closed_sr();
    fs::write(place.home("letters"), "somebody's").unwrap();
    let before = place.contents();
    let store = FilePlugin.open(place.location(), identity.uuid, &identity.owner, false).unwrap();
    assert!(matches!(store.destroy(), Err(Error::Foreign(message)) if message.contains("letters")));
    assert_eq!(place.contents(), before);
}

#[test]
fn a_lost_lock_file_is_made_again() {
    let (place, identity) = closed_sr();
    fs::remove_file(place.home("lock")).unwrap();
    let open = || FilePlugin.open(place.location(), identity.uuid, &host("host-a"), false);
    let store = open().unwrap();
    assert!(matches!(open(), Err(Error::InUse(_))));
    drop(store);
    open().unwrap();
}

#[test]
fn declared_abilities_are_those_of_the_file_system() {
    let place = DirectoryPlace::new(Fixture::Empty);
    let store = FilePlugin.create(place.location(), &identity()).unwrap();
    let declared = store.capabilities();
    store.create_container("a.vhd", Bytes(0)).unwrap();
    let file = fs::File::from(store.activate("a.vhd", Access::ReadWrite).unwrap());
    std::io::Write::write_all(&mut &file, &[1; 1 << 20]).unwrap();
    let flags =
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punched = nix::fcntl::fallocate(&file, flags, 0, 1 << 20).is_ok();
    assert_eq!(declared.punch, punched);
    let cloned = std::process::Command::new("cp")
        .arg("--reflink=always")
        .args([place.location().join("a.vhd"), place.location().join("b.vhd")])
        .output()
        .unwrap();
    assert_eq!(declared.clone_range, cloned.status.success());
    assert!(!place.home("try-from").exists() && !place.home("try-to").exists(), "scratch files are left");
}
