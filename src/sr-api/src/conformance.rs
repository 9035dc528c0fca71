//! The suite that every back end passes.
//!
//! A plugin's tests write a [`Bench`] and call [`run`]; a rule that does not hold panics and says which. Rules are named
//! after what they demand, one function each: `lifecycle` (probe, create, adopt, look, destroy), `ownership` (who may
//! open) and `containers`. Nothing but tests calls this module.
#![expect(clippy::expect_used, clippy::panic, reason = "test support: a panic is how a rule reports")]

mod containers;
mod lifecycle;
mod ownership;

use crate::{Error, HostIdentity, Plugin, SrIdentity, Store};
use catena_types::SrUuid;
use std::collections::BTreeMap;
use std::path::Path;

/// What a place holds when the suite gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixture {
    /// Not even the location; `create` makes it.
    Absent,
    /// The location, and nothing in it.
    Empty,
    /// Something that is neither an SR nor images.
    Foreign,
    /// At least two images of another manager, and something foreign beside them.
    Images,
}

/// What a plugin's tests provide.
pub trait Bench {
    /// The plugin under test.
    fn plugin(&self) -> &dyn Plugin;

    /// Whether there are such places. A device that is absent, for one, is no place to create an SR at.
    fn has(&self, _fixture: Fixture) -> bool {
        true
    }

    /// Whether an SR is found wherever its storage is by now, whatever the location says: devices change their names.
    fn finds_anywhere(&self) -> bool {
        false
    }

    /// A fresh place. It is taken down when dropped.
    fn place(&self, fixture: Fixture) -> Box<dyn Place>;
}

/// Where a rule is tried.
pub trait Place {
    /// The location to give to the plugin.
    fn location(&self) -> &Path;

    /// Everything at the place and around it, the SR's own metadata included: names, and for each a text that differs when
    /// the thing differs.
    fn contents(&self) -> Contents;

    /// Puts things into an SR that a back end could mistake for containers but must not: symbolic links (one to a file outside
    /// the location), directories, special files. Returns their names, all of them valid as names of containers.
    fn plant_impostors(&self) -> Vec<String>;

    /// Takes the storage away under an open SR and puts an empty one in its place.
    fn replace_storage(&self);
}

/// What is at a place, by name.
pub type Contents = BTreeMap<String, String>;

/// Tries every rule. Panics at the first that does not hold.
pub fn run(bench: &dyn Bench) {
    lifecycle(bench);
    ownership(bench);
    containers(bench);
}

/// Tries the rules about making, finding, looking at and taking down an SR.
pub fn lifecycle(bench: &dyn Bench) {
    lifecycle::run(bench);
}

/// Tries the rules about who may open an SR.
pub fn ownership(bench: &dyn Bench) {
    ownership::run(bench);
}

/// Tries the rules about containers and figures.
pub fn containers(bench: &dyn Bench) {
    containers::run(bench);
}

/// Those of the fixtures that the plugin has.
fn those(bench: &dyn Bench, fixtures: impl IntoIterator<Item = Fixture>) -> Vec<Fixture> {
    fixtures.into_iter().filter(|fixture| bench.has(*fixture)).collect()
}

/// A place with an SR of [`identity`] and the open SR.
fn fresh(bench: &dyn Bench) -> (Box<dyn Place>, SrIdentity, Box<dyn Store>) {
    let place = bench.place(Fixture::Empty);
    let identity = identity();
    let store = bench.plugin().create(place.location(), &identity).expect("create at an empty location");
    (place, identity, store)
}

fn identity() -> SrIdentity {
    SrIdentity {
        uuid: SrUuid::random(),
        name_label: "conformance \"suite\" \u{fc}".to_owned(),
        owner: host("host-a"),
    }
}

fn host(name: &str) -> HostIdentity {
    HostIdentity { host: name.to_owned(), boot: "boot-1".to_owned() }
}

/// The error of what must fail.
fn refused<T>(result: Result<T, Error>, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what}: must be refused"),
        Err(error) => error,
    }
}

/// Asserts that the result is an error that matches the pattern.
macro_rules! assert_refused {
    ($result:expr, $pattern:pat, $what:expr) => {{
        let error = $crate::conformance::refused($result, $what);
        assert!(matches!(error, $pattern), "{}: refused for the wrong reason: {error:?}", $what);
    }};
}
use assert_refused;

/// Asserts that all that was there before is there unchanged; what came in addition does not matter.
fn assert_kept(before: &Contents, place: &dyn Place, what: &str) {
    let after = place.contents();
    for (name, description) in before {
        assert_eq!(after.get(name), Some(description), "{what}: '{name}' was changed or removed");
    }
}
