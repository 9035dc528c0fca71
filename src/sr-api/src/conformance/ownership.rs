//! Rules about who may open an SR.

use super::{Bench, Fixture, assert_refused, fresh, host, identity, refused, those};
use crate::{Error, HostIdentity, Probe};
use catena_types::SrUuid;

pub(super) fn run(bench: &dyn Bench) {
    one_open_at_a_time(bench);
    only_the_sr_that_is_meant_opens(bench);
    another_hosts_sr_needs_a_take_over(bench);
    a_new_boot_of_the_owner_just_opens(bench);
    capabilities_are_of_the_storage(bench);
}

fn one_open_at_a_time(bench: &dyn Bench) {
    let (place, identity, mut store) = fresh(bench);
    if store.capabilities().shared {
        return;
    }
    let open = |take_over| bench.plugin().open(place.location(), identity.uuid, &identity.owner, take_over);
    for round in ["created", "opened"] {
        let before = place.contents();
        for take_over in [false, true] {
            let what = format!("second open of an SR that was {round} (take over: {take_over})");
            let error = refused(open(take_over), &what);
            assert!(matches!(error, Error::InUse(_)), "{what}: refused for the wrong reason: {error:?}");
        }
        assert_eq!(place.contents(), before, "a refused open changed something");
        store.check_marker().expect("the first open after the second was refused");
        drop(store);
        store = open(false).expect("open after the first was dropped");
    }
}

fn only_the_sr_that_is_meant_opens(bench: &dyn Bench) {
    let (place, identity, store) = fresh(bench);
    drop(store);
    let before = place.contents();
    for take_over in [false, true] {
        assert_refused!(
            bench.plugin().open(place.location(), SrUuid::random(), &identity.owner, take_over),
            Error::Unavailable(_),
            "open with another uuid"
        );
    }
    assert_eq!(place.contents(), before, "a refused open changed something");
    let uuid = if bench.finds_anywhere() { SrUuid::random() } else { identity.uuid };
    for fixture in those(bench, [Fixture::Absent, Fixture::Empty, Fixture::Foreign, Fixture::Images]) {
        let place = bench.place(fixture);
        let before = place.contents();
        assert_refused!(
            bench.plugin().open(place.location(), uuid, &identity.owner, true),
            Error::Unavailable(_),
            &format!("open where no SR is ({fixture:?})")
        );
        assert_eq!(place.contents(), before, "a refused open changed a place that is {fixture:?}");
    }
}

fn another_hosts_sr_needs_a_take_over(bench: &dyn Bench) {
    let (place, mut identity, store) = fresh(bench);
    if store.capabilities().shared {
        return;
    }
    drop(store);
    let open =
        |by: &HostIdentity, take_over| bench.plugin().open(place.location(), identity.uuid, by, take_over);
    let (first, second) = (identity.owner.clone(), host("host-b"));
    for (owner, other) in [(&first, &second), (&second, &first)] {
        let before = place.contents();
        let error = refused(open(other, false), "open of another host's SR");
        assert!(
            matches!(error, Error::InUse(_)),
            "another host's SR: refused for the wrong reason: {error:?}"
        );
        assert!(error.to_string().contains(&owner.host), "the message does not name the owner: {error}");
        assert_eq!(place.contents(), before, "a refused open changed something");
        open(other, true).expect("take over").check_marker().expect("the marker after a take-over");
        drop(open(other, false).expect("the new owner opens it without a take-over"));
    }
    open(&second, true).expect("take over");
    identity.owner = second;
    let probe = bench.plugin().probe(place.location()).expect("probe");
    assert_eq!(probe, Probe::Ours(identity), "a take-over rewrites the owner and nothing else");
}

fn a_new_boot_of_the_owner_just_opens(bench: &dyn Bench) {
    let (place, mut identity, store) = fresh(bench);
    drop(store);
    identity.owner.boot = "boot-2".to_owned();
    let open = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false);
    drop(open.expect("open by the same host in another boot"));
    let probe = bench.plugin().probe(place.location()).expect("probe");
    assert_eq!(probe, Probe::Ours(identity), "the marker names the present boot");
}

fn capabilities_are_of_the_storage(bench: &dyn Bench) {
    let place = bench.place(Fixture::Empty);
    let identity = identity();
    let store = bench.plugin().create(place.location(), &identity).expect("create");
    let capabilities = store.capabilities();
    assert_eq!(store.capabilities(), capabilities, "capabilities change while the SR is open");
    drop(store);
    let store = bench.plugin().open(place.location(), identity.uuid, &identity.owner, false).expect("open");
    assert_eq!(store.capabilities(), capabilities, "capabilities differ between create and open");
    let looked = bench.plugin().look(place.location()).expect("look").capabilities();
    assert_eq!(looked.sizing, capabilities.sizing, "the sizing seen when looking");
    assert!(!looked.clone_range && !looked.punch, "who only looks can neither clone nor punch: {looked:?}");
}
