//! Every order of the steps of a leaf merge with a guest's writes and flushes, deaths of the process, and the end of the merge
//! at any instant, with a power cut after each: on the functions with which it is decided where a write goes, what a window
//! copies and what the leaf gives up ([`deciding`](super::super::deciding)), and on the real locks. The rules are dropped one
//! by one, and each time something is lost, is copied for ever, or goes wrong otherwise.
//!
//! One block; two of its sectors, which share a sector of the bitmap, are written. A value is the number of the write that made
//! it. About 230,000 states; 2,100,000 in the nightly form. What is noted of each image, its commits and its barriers are as in
//! the real image, whose own orders are gone through in `catena-vhd`.

#[path = "../../../../../../../tests/harness/explore.rs"]
mod explore;
mod images;
mod merge;
mod world;

use explore::Explored;
use world::{Bounds, Dropped, State};

/// Goes through all states. Gives how many there are, or the shortest way to a fault, or to where nothing comes to an end any
/// more.
fn explore(first: State, dropped: Dropped) -> Result<usize, String> {
    let next = |state: &State| {
        let steps = state.next(dropped).into_iter();
        let steps =
            steps.map(|(step, next)| (step, next.and_then(|next| next.fault().map_or(Ok(next), Err))));
        steps.collect()
    };
    let Explored { states, restless } = explore::explore(first, next, State::is_at_rest)?;
    restless.map_or(Ok(states), |way| Err(format!("without an end: {way}")))
}

/// So far in all tests, with one thing or the other.
const SHORT: Bounds = Bounds { writes: 2, flushes: 0, deaths: 0, ends: 0, merges: 1 };

/// What the leaf owns at first, and how far it is gone.
fn variants() -> Vec<([bool; 2], Bounds)> {
    if std::env::var_os("CATENA_NIGHTLY").is_none() {
        return vec![
            ([true, false], Bounds { flushes: 1, ..SHORT }),
            ([true, false], Bounds { deaths: 1, ..SHORT }),
            ([true, false], Bounds { ends: 1, ..SHORT }),
            ([true, true], SHORT),
            ([true, false], Bounds { writes: 1, flushes: 1, deaths: 1, ends: 1, merges: 1 }),
        ];
    }
    vec![
        ([true, false], Bounds { flushes: 1, deaths: 1, ends: 1, ..SHORT }),
        ([true, true], Bounds { deaths: 1, ends: 1, ..SHORT }),
        ([true, false], Bounds { writes: 3, ends: 1, merges: 2, ..SHORT }),
    ]
}

#[test]
fn a_leaf_merge_loses_nothing_in_any_order() {
    for (owned, bounds) in variants() {
        let states =
            explore(State::new(owned, bounds), Dropped::None).unwrap_or_else(|fault| panic!("{fault}"));
        println!("{owned:?} {bounds:?}: {states} states");
        assert!(states > 1_000, "only {states} states");
    }
}

#[test]
fn without_any_one_rule_of_a_leaf_merge_something_is_lost() {
    for dropped in Dropped::ALL {
        let faults =
            variants().into_iter().map(|(owned, bounds)| explore(State::new(owned, bounds), dropped));
        let fault = faults.filter_map(Result::err).next();
        println!("{dropped:?}: {}", fault.unwrap_or_else(|| panic!("{dropped:?} is not needed")));
    }
}
