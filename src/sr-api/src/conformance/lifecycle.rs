//! Rules about making, finding, looking at and taking down an SR.

use super::{Bench, Fixture, assert_kept, assert_refused, fresh, identity, those};
use crate::{Access, Error, Probe, Store};
use catena_types::Bytes;

pub(super) fn run(bench: &dyn Bench) {
    probe_tells_the_cases_apart_and_changes_nothing(bench);
    create_makes_an_sr_where_nothing_is(bench);
    create_refuses_what_holds_anything(bench);
    adopt_takes_images_as_they_are(bench);
    adopt_refuses_a_place_without_images(bench);
    look_reads_and_changes_nothing(bench);
    look_works_beside_the_owner(bench);
    the_marker_check_notices_another_storage(bench);
    destroy_leaves_what_is_not_ours(bench);
}

fn probe_tells_the_cases_apart_and_changes_nothing(bench: &dyn Bench) {
    for fixture in those(bench, [Fixture::Absent, Fixture::Empty, Fixture::Foreign, Fixture::Images]) {
        let place = bench.place(fixture);
        let before = place.contents();
        let probe = bench.plugin().probe(place.location()).expect("probe");
        let right = match (&probe, fixture) {
            (Probe::Empty, Fixture::Absent | Fixture::Empty) => true,
            (Probe::Foreign(what), Fixture::Foreign) => !what.is_empty(),
            (Probe::Images(names), Fixture::Images) => names.len() >= 2,
            _ => false,
        };
        assert!(right, "probe of a place that is {fixture:?} found {probe:?}");
        assert_eq!(place.contents(), before, "probe changed a place that is {fixture:?}");
    }
    let (place, identity, store) = fresh(bench);
    for store in [Some(store), None] {
        let before = place.contents();
        let probe = bench.plugin().probe(place.location()).expect("probe of an SR");
        assert_eq!(probe, Probe::Ours(identity.clone()), "probe of an SR (open: {})", store.is_some());
        assert_eq!(place.contents(), before, "probe changed an SR");
    }
}

fn create_makes_an_sr_where_nothing_is(bench: &dyn Bench) {
    for fixture in those(bench, [Fixture::Absent, Fixture::Empty]) {
        let place = bench.place(fixture);
        let identity = identity();
        let store = bench.plugin().create(place.location(), &identity).expect("create");
        assert_eq!(store.list().expect("list"), [], "a new SR has no container");
        assert!(store.catalog_dir().is_dir(), "the catalog's directory is there when create returns");
        store.check_marker().expect("the marker of a new SR");
        drop(store);
        let again = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false);
        again.expect("open what was created").check_marker().expect("the marker of an opened SR");
    }
}

fn create_refuses_what_holds_anything(bench: &dyn Bench) {
    for fixture in those(bench, [Fixture::Foreign, Fixture::Images]) {
        let place = bench.place(fixture);
        let before = place.contents();
        assert_refused!(bench.plugin().create(place.location(), &identity()), Error::Foreign(_), "create");
        assert_eq!(place.contents(), before, "create changed a place that is {fixture:?}");
    }
    let (place, first, store) = fresh(bench);
    for store in [Some(store), None] {
        let before = place.contents();
        let what = format!("create over an SR (open: {})", store.is_some());
        assert_refused!(bench.plugin().create(place.location(), &identity()), Error::Exists(_), &what);
        assert_refused!(bench.plugin().create(place.location(), &first), Error::Exists(_), &what);
        assert_refused!(bench.plugin().adopt(place.location(), &identity()), Error::Exists(_), "adopt an SR");
        assert_eq!(place.contents(), before, "{what}: changed it");
    }
}

fn adopt_takes_images_as_they_are(bench: &dyn Bench) {
    let place = bench.place(Fixture::Images);
    let Ok(Probe::Images(images)) = bench.plugin().probe(place.location()) else {
        panic!("probe must find images");
    };
    let before = place.contents();
    let identity = identity();
    let store = bench.plugin().adopt(place.location(), &identity).expect("adopt");
    store.check_marker().expect("the marker of an adopted SR");
    let listed: Vec<String> = store.list().expect("list").into_iter().map(|info| info.name).collect();
    for image in &images {
        assert!(listed.contains(image), "the adopted image '{image}' is a container");
        drop(store.activate(image, Access::ReadOnly).expect("activate an adopted image"));
    }
    drop(store);
    assert_eq!(bench.plugin().probe(place.location()).expect("probe"), Probe::Ours(identity.clone()));
    let store = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false).expect("open");
    store.destroy().expect("destroy an adopted SR");
    assert_eq!(place.contents(), before, "adopting and giving up left a trace");
}

fn adopt_refuses_a_place_without_images(bench: &dyn Bench) {
    for fixture in those(bench, [Fixture::Absent, Fixture::Empty, Fixture::Foreign]) {
        let place = bench.place(fixture);
        let before = place.contents();
        assert_refused!(
            bench.plugin().adopt(place.location(), &identity()),
            Error::Unavailable(_) | Error::Foreign(_),
            "adopt a place without images"
        );
        assert_eq!(place.contents(), before, "a refused adopt changed a place that is {fixture:?}");
    }
}

fn look_reads_and_changes_nothing(bench: &dyn Bench) {
    let place = bench.place(Fixture::Images);
    let before = place.contents();
    let store = bench.plugin().look(place.location()).expect("look at images");
    let list = store.list().expect("list while looking");
    assert!(list.len() >= 2, "looking lists the images");
    let name = list[0].name.as_str();
    assert_eq!(store.info(name).expect("info while looking"), list[0]);
    store.stat().expect("stat while looking");
    drop(store.activate(name, Access::ReadOnly).expect("activate read-only while looking"));
    refused_while_looking(store.activate(name, Access::ReadWrite), "activate read-write");
    refused_while_looking(store.create_container("new.vhd", Bytes(4096)), "create a container");
    refused_while_looking(store.remove(name), "remove a container");
    refused_while_looking(store.destroy(), "destroy");
    assert_eq!(place.contents(), before, "looking changed something");

    for fixture in those(bench, [Fixture::Absent]) {
        let absent = bench.place(fixture);
        assert_refused!(bench.plugin().look(absent.location()), Error::Unavailable(_), "look at nothing");
    }
}

fn refused_while_looking<T>(result: Result<T, Error>, what: &str) {
    assert_refused!(result, Error::Unsupported(_), &format!("{what} while looking"));
}

fn look_works_beside_the_owner(bench: &dyn Bench) {
    let (place, identity, store) = fresh(bench);
    store.create_container("a.vhd", Bytes(4096)).expect("create a container");
    let before = place.contents();
    let seen = bench.plugin().look(place.location()).expect("look at an open SR");
    let sizes = |store: &dyn Store| -> Vec<_> {
        store.list().expect("list").into_iter().map(|info| (info.name, info.length)).collect()
    };
    assert_eq!(sizes(&*seen), sizes(&*store), "both see the same");
    assert_eq!(place.contents(), before, "looking changed something");
    drop(store);
    let again = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false);
    again.expect("who looks does not hold the SR");
}

fn the_marker_check_notices_another_storage(bench: &dyn Bench) {
    let (place, identity, store) = fresh(bench);
    store.check_marker().expect("the marker before");
    place.replace_storage();
    assert!(store.check_marker().is_err(), "the storage was replaced, and the marker check did not notice");
    drop(store);
    assert_refused!(
        bench.plugin().open(place.location(), identity.uuid, &identity.owner, true),
        Error::Unavailable(_),
        "open at a location without a marker"
    );
}

fn destroy_leaves_what_is_not_ours(bench: &dyn Bench) {
    let place = bench.place(Fixture::Empty);
    let empty = place.contents();
    let identity = identity();
    let store = bench.plugin().create(place.location(), &identity).expect("create");
    let impostors = place.plant_impostors();
    let catalog = store.catalog_dir().join("catalog.db");
    std::fs::write(&catalog, "a catalog").expect("write the catalog's file");
    let own: Vec<String> = place.contents().into_keys().filter(|name| name.ends_with("catalog.db")).collect();
    store.destroy().expect("destroy");
    let after = place.contents();
    assert!(!catalog.exists(), "destroy left the catalog");
    assert!(own.iter().all(|name| !after.contains_key(name)), "destroy left the catalog");
    for name in &impostors {
        assert!(after.keys().any(|key| key.ends_with(name.as_str())), "destroy removed '{name}'");
    }
    assert_kept(&empty, place.as_ref(), "destroy");
    let probe = bench.plugin().probe(place.location()).expect("probe after destroy");
    assert!(!matches!(probe, Probe::Ours(_)), "there still is an SR after destroy: {probe:?}");
    assert_refused!(
        bench.plugin().open(place.location(), identity.uuid, &identity.owner, false),
        Error::Unavailable(_),
        "open after destroy"
    );
}
