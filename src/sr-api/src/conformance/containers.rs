//! Rules about containers and figures.

use super::{Bench, assert_kept, assert_refused, fresh};
use crate::{Access, Error, Labels, Sizing, Store};
use catena_types::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: Bytes = Bytes(8 << 20);

pub(super) fn run(bench: &dyn Bench) {
    a_container_comes_and_goes(bench);
    containers_outlive_the_open_sr(bench);
    bad_names_are_refused(bench);
    access_is_as_asked_for(bench);
    impostors_are_no_containers(bench);
    sizes_follow_the_declared_sizing(bench);
    figures_grow_with_what_is_written(bench);
    labels_are_kept_beside_the_bytes(bench);
}

fn names(store: &dyn Store) -> Vec<String> {
    let mut names: Vec<String> = store.list().expect("list").into_iter().map(|info| info.name).collect();
    names.sort();
    names
}

fn open(store: &dyn Store, name: &str, access: Access) -> File {
    File::from(store.activate(name, access).expect("activate"))
}

fn a_container_comes_and_goes(bench: &dyn Bench) {
    let (_place, _, store) = fresh(bench);
    assert_refused!(store.info("a.vhd"), Error::Missing(_), "info of what is not there");
    for access in [Access::ReadOnly, Access::ReadWrite] {
        assert_refused!(store.activate("a.vhd", access), Error::Missing(_), "activate what is not there");
    }
    assert_eq!(names(&*store), [""; 0], "activate does not create");
    assert!(!store.remove("a.vhd").expect("remove what is not there"), "nothing was there to remove");

    store.create_container("a.vhd", SIZE).expect("create a container");
    store.create_container("b.vhd", SIZE).expect("create another");
    assert_eq!(names(&*store), ["a.vhd", "b.vhd"]);
    open(&*store, "a.vhd", Access::ReadWrite).write_all_at(b"kept", 0).expect("write");
    assert_refused!(store.create_container("a.vhd", SIZE), Error::Exists(_), "create it a second time");
    let mut start = [0; 4];
    open(&*store, "a.vhd", Access::ReadOnly).read_exact_at(&mut start, 0).expect("read");
    assert_eq!(&start, b"kept", "a refused create touched the container");
    for info in store.list().expect("list") {
        assert_eq!(store.info(&info.name).expect("info"), info, "list and info agree");
        assert!(info.modified > 0, "a time of change: {info:?}");
    }

    store.keep_active(&[]).expect("nothing is in use");
    assert!(store.remove("a.vhd").expect("remove"), "it was there");
    assert!(!store.remove("a.vhd").expect("remove again"), "it was not there any more");
    assert_eq!(names(&*store), ["b.vhd"]);
    store.create_container("a.vhd", SIZE).expect("the name is free again");

    store.create_containers(&[("c.vhd", SIZE), ("d.vhd", SIZE)]).expect("create several");
    assert_eq!(names(&*store), ["a.vhd", "b.vhd", "c.vhd", "d.vhd"]);
    assert_refused!(
        store.create_containers(&[("e.vhd", SIZE), ("d.vhd", SIZE)]),
        Error::Exists(_),
        "one name is taken"
    );
}

fn containers_outlive_the_open_sr(bench: &dyn Bench) {
    let (place, identity, store) = fresh(bench);
    for name in ["a.vhd", "b.vhd"] {
        store.create_container(name, SIZE).expect("create a container");
    }
    open(&*store, "b.vhd", Access::ReadWrite).write_all_at(b"kept", 4096).expect("write");
    assert!(store.remove("a.vhd").expect("remove"));
    drop(store);
    let store = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false).expect("open");
    assert_eq!(names(&*store), ["b.vhd"], "what was made and removed stays so");
    let mut bytes = [0; 4];
    open(&*store, "b.vhd", Access::ReadOnly).read_exact_at(&mut bytes, 4096).expect("read");
    assert_eq!(&bytes, b"kept");
}

fn bad_names_are_refused(bench: &dyn Bench) {
    let (place, _, store) = fresh(bench);
    let long = "x".repeat(256);
    let before = place.contents();
    for name in ["", ".", "..", ".hidden", ".catena", "a/b", "/a", "../a", "a/", "a\0b", &long] {
        let what = format!("the name {name:?}");
        assert_refused!(store.create_container(name, SIZE), Error::Unsupported(_), &what);
        assert_refused!(store.remove(name), Error::Unsupported(_), &what);
        assert_refused!(store.info(name), Error::Unsupported(_), &what);
        assert_refused!(store.activate(name, Access::ReadOnly), Error::Unsupported(_), &what);
        assert_refused!(store.activate(name, Access::ReadWrite), Error::Unsupported(_), &what);
        assert_refused!(store.activate_all(&[(name, Access::ReadOnly)]), Error::Unsupported(_), &what);
        assert_refused!(store.remove_all(&[name]), Error::Unsupported(_), &what);
        assert_refused!(store.grow(name, SIZE), Error::Unsupported(_), &what);
        assert_refused!(store.shrink(name, SIZE), Error::Unsupported(_), &what);
    }
    assert_eq!(place.contents(), before, "a refused name changed something");
}

fn access_is_as_asked_for(bench: &dyn Bench) {
    let (_place, _, store) = fresh(bench);
    store.create_container("a.vhd", SIZE).expect("create a container");
    let writer = open(&*store, "a.vhd", Access::ReadWrite);
    writer.write_all_at(b"written", 512).expect("write through a read-write descriptor");
    let reader = open(&*store, "a.vhd", Access::ReadOnly);
    assert!(reader.write_all_at(b"x", 0).is_err(), "a read-only descriptor wrote");
    let mut bytes = [0; 7];
    reader.read_exact_at(&mut bytes, 512).expect("read through a read-only descriptor");
    assert_eq!(&bytes, b"written", "both descriptors are of the same container");
    drop((reader, writer));
    store.keep_active(&[]).expect("nothing is in use");
    drop(open(&*store, "a.vhd", Access::ReadOnly));
    drop(open(&*store, "a.vhd", Access::ReadWrite));
    store.keep_active(&[("a.vhd", Access::ReadOnly)]).expect("it is only read");
    let mut bytes = [0; 7];
    open(&*store, "a.vhd", Access::ReadOnly).read_exact_at(&mut bytes, 512).expect("read what is kept");
    assert_eq!(&bytes, b"written");

    store.create_container("b.vhd", SIZE).expect("create another");
    let wanted = [("b.vhd", Access::ReadOnly), ("a.vhd", Access::ReadWrite)];
    let files: Vec<File> =
        store.activate_all(&wanted).expect("activate several").into_iter().map(File::from).collect();
    assert_eq!(files.len(), 2);
    assert!(files[0].write_all_at(b"x", 0).is_err(), "a read-only descriptor wrote");
    files[1].write_all_at(b"again", 512).expect("write through the second descriptor");
    let all = [("b.vhd", Access::ReadOnly), ("c.vhd", Access::ReadOnly)];
    assert_refused!(store.activate_all(&all), Error::Missing(_), "one of several is not there");
    drop(files);
    store.keep_active(&[]).expect("nothing is in use");
    store.remove_all(&["a.vhd", "c.vhd", "b.vhd"]).expect("remove several, one of which is not there");
    assert_eq!(names(&*store), [""; 0]);
}

fn impostors_are_no_containers(bench: &dyn Bench) {
    let (place, _, store) = fresh(bench);
    store.create_container("real.vhd", SIZE).expect("create a container");
    let impostors = place.plant_impostors();
    assert!(!impostors.is_empty(), "the bench plants something");
    let before = place.contents();
    assert_eq!(names(&*store), ["real.vhd"], "of what lies about, only containers are listed");
    for name in &impostors {
        assert_refused!(store.info(name), Error::Missing(_), &format!("info of the impostor '{name}'"));
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let what = format!("activate the impostor '{name}' ({access:?})");
            assert_refused!(store.activate(name, access), Error::Missing(_), &what);
        }
        let what = format!("create a container in place of '{name}'");
        assert_refused!(store.create_container(name, SIZE), Error::Exists(_), &what);
        assert!(!store.remove(name).expect("remove an impostor"), "'{name}' is no container to remove");
    }
    assert_kept(&before, place.as_ref(), "what is no container");
}

fn sizes_follow_the_declared_sizing(bench: &dyn Bench) {
    let (_place, _, store) = fresh(bench);
    store.create_container("a.vhd", SIZE).expect("create a container");
    let length = || store.info("a.vhd").expect("info").length;
    let twice = Bytes(2 * SIZE.0);
    let made = length();
    match store.capabilities().sizing {
        Sizing::Automatic => {
            assert_eq!(made, Bytes(0), "a container that sizes itself is made empty");
            store.grow("a.vhd", twice).expect("grow");
            assert_eq!(length(), made, "there is nothing to grow");
            open(&*store, "a.vhd", Access::ReadWrite)
                .write_all_at(b"end", SIZE.0)
                .expect("write past the end");
            assert_eq!(length(), Bytes(SIZE.0 + 3), "it grows when written");
            store.shrink("a.vhd", Bytes(0)).expect("shrink");
            assert_eq!(length(), Bytes(SIZE.0 + 3), "there is nothing to shrink");
        }
        Sizing::Explicit => {
            assert!(made >= SIZE, "made at least as large as asked for");
            store.grow("a.vhd", twice).expect("grow");
            assert!(length() >= twice, "grown at least to what was asked for");
            store.shrink("a.vhd", SIZE).expect("shrink");
            assert_eq!(length(), made, "shrunk to what it was");
        }
    }
}

fn figures_grow_with_what_is_written(bench: &dyn Bench) {
    let (_place, _, store) = fresh(bench);
    let before = store.stat().expect("stat");
    assert!(before.total > Bytes(0), "a size: {before:?}");
    assert!(before.allocatable <= before.total && before.used <= before.total, "plausible: {before:?}");
    assert!(before.allocatable >= SIZE, "room for what is written next: {before:?}");
    store.create_container("a.vhd", SIZE).expect("create a container");
    let file = open(&*store, "a.vhd", Access::ReadWrite);
    file.write_all_at(&noise(), 0).expect("write");
    file.sync_all().expect("sync");
    let after = store.stat().expect("stat");
    assert!(after.used.0 >= before.used.0 + SIZE.0, "used grows by what was written: {before:?}, {after:?}");
    let info = store.info("a.vhd").expect("info");
    assert!(info.allocated >= SIZE && info.length >= SIZE, "so does the container: {info:?}");
    drop(file);
    assert!(store.remove("a.vhd").expect("remove"));
    let freed = store.stat().expect("stat");
    assert!(freed.used.0 + SIZE.0 <= after.used.0, "used shrinks by what was removed: {after:?}, {freed:?}");
}

/// Bytes that no storage can compress or leave out.
fn noise() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = (0..SIZE.0 / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// A storage without a place for labels says so and gives none.
fn labels_are_kept_beside_the_bytes(bench: &dyn Bench) {
    let (place, identity, store) = fresh(bench);
    store.create_container("a.vhd", SIZE).expect("create a container");
    open(&*store, "a.vhd", Access::ReadWrite).write_all_at(b"kept", 0).expect("write");
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    assert_eq!(store.labels("a.vhd").expect("labels of a new container"), Labels::new());
    let first = labels(&[("vdi", "1"), ("label", "a \"name\" \u{fc}\n"), ("empty", "")]);
    let seen =
        |store: &dyn Store| store.info("a.vhd").map(|info| (info.length, info.modified)).expect("info");
    let before = seen(&*store);
    match store.set_labels("a.vhd", &first) {
        Err(Error::Unsupported(_)) => {
            assert_eq!(store.labels("a.vhd").expect("labels"), Labels::new(), "no place for labels");
            return;
        }
        other => other.expect("set labels"),
    }
    assert_eq!(store.labels("a.vhd").expect("labels"), first);
    assert_eq!(seen(&*store), before, "labels changed the container");
    let second = labels(&[("vdi", "2")]);
    store.set_labels("a.vhd", &second).expect("set other labels");
    assert_eq!(store.labels("a.vhd").expect("labels"), second, "what is not written again goes");
    assert_refused!(store.set_labels("b.vhd", &second), Error::Missing(_), "label what is not there");
    assert_refused!(store.labels("b.vhd"), Error::Missing(_), "labels of what is not there");
    drop(store);
    let plugin = bench.plugin();
    let looked = plugin.look(place.location()).expect("look");
    assert_eq!(looked.labels("a.vhd").expect("labels"), second, "labels outlive the open SR");
    assert_refused!(
        looked.set_labels("a.vhd", &first),
        Error::Unsupported(_),
        "label what is only looked at"
    );
    drop(looked);
    let store = plugin.open(place.location(), identity.uuid, &identity.owner, false).expect("open");
    store.set_labels("a.vhd", &Labels::new()).expect("remove all labels");
    assert_eq!(store.labels("a.vhd").expect("labels"), Labels::new());
}
