//! Every order of messages, deaths and troubles of a snapshot of disks in use, on the functions with which keeper and datapath
//! decide: [`catena_control::Holding`], [`catena_control::Pause`], [`catena_control::found`]. Whoever drives them drops the
//! rules (D19, D20) one by one, and each time a snapshot is torn, changes, or loses something; with all rules nothing does, and
//! everything comes to rest.
//!
//! A guest writes to the disks in turn, each write begun when the one before is answered: so a snapshot that has a write and
//! not the one before it is of no instant. A power cut needs no step of its own: what the catalog has made a base must be
//! stored at any moment. (The barrier behind its last pointers comes a moment later, before anybody is told of the snapshot,
//! and is tried on the simulated disk.) The two explorations have about 251,000 and 95,000 states.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../../../../tests/harness/explore.rs"]
mod explore;
mod keeper;
mod process;
mod world;

use explore::Explored;
use world::{Bounds, Dropped, State};

/// Two disks: what belongs to the set.
const SET: Bounds = Bounds { disks: 2, writes: 2, attempts: 1, ends: 1, troubles: 1 };
/// One disk and two attempts: what belongs to what has gone before.
const AGAIN: Bounds = Bounds { disks: 1, writes: 2, attempts: 2, ends: 1, troubles: 2 };

/// The same, longer.
fn bounds() -> Vec<Bounds> {
    if std::env::var_os("CATENA_NIGHTLY").is_none() {
        return vec![SET, AGAIN];
    }
    vec![
        Bounds { ends: 2, troubles: 2, ..SET },
        Bounds { attempts: 2, ..SET },
        Bounds { writes: 3, ends: 2, ..AGAIN },
    ]
}

/// Gives how many states there are, or the way to a fault, or to a state from which nothing comes to rest any more. That is
/// asked only with all rules: who drops one may stop at anything.
fn explore(bounds: Bounds, dropped: Dropped) -> Result<usize, String> {
    let next = |state: &State| {
        let steps = state.next(dropped).into_iter();
        let steps =
            steps.map(|(step, next)| (step, next.and_then(|next| next.fault().map_or(Ok(next), Err))));
        steps.collect()
    };
    let Explored { states, restless } = explore::explore(State::new(bounds), next, State::is_at_rest)?;
    match restless.filter(|_| dropped == Dropped::None) {
        Some(way) => Err(format!("nothing comes to rest any more: {way}")),
        None => Ok(states),
    }
}

#[test]
fn a_snapshot_is_of_one_instant_whoever_dies() {
    for bounds in bounds() {
        let states = explore(bounds, Dropped::None).unwrap_or_else(|fault| panic!("{fault}"));
        println!("{bounds:?}: {states} states");
        assert!(states > 10_000, "only {states} states");
    }
}

#[test]
fn without_any_one_rule_a_snapshot_is_spoilt() {
    for (dropped, bounds) in [
        (Dropped::Drain, SET),
        (Dropped::Flush, SET),
        (Dropped::OwnCommit, Bounds { writes: 3, attempts: 1, ..AGAIN }),
        (Dropped::OnlyTheKeeper, SET),
        (Dropped::Everybody, SET),
        (Dropped::SameProcess, SET),
        (Dropped::Decided, SET),
        (Dropped::NoSuccessor, Bounds { troubles: 2, ..SET }),
        (Dropped::AskTheCatalog, SET),
        (Dropped::EndStrays, SET),
    ] {
        let fault = explore(bounds, dropped).expect_err(&format!("{dropped:?} is not needed"));
        println!("{dropped:?}: {fault}");
    }
}
