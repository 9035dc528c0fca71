//! The owner's lock between processes: this test program starts itself as the other one.

use super::bench::{closed_sr, host};
use crate::FilePlugin;
use catena_sr_api::{Error, Plugin};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

const LOCATION: &str = "CATENA_TEST_HOLD_LOCATION";
const UUID: &str = "CATENA_TEST_HOLD_UUID";
const HELD: &str = "the SR is held";

/// The other process: opens the SR and holds it until its input ends. In a plain run of the tests, where nobody has named an SR
/// to hold, there is nothing for it to do.
#[test]
fn hold_the_sr_that_the_environment_names() {
    let Some(location) = std::env::var_os(LOCATION) else { return };
    let uuid = std::env::var(UUID).unwrap().parse().unwrap();
    let store = FilePlugin.open(location.as_ref(), uuid, &host("host-a"), false).unwrap();
    println!("\n{HELD}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(store);
}

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_sr_held_by_another_process_is_in_use_until_that_dies() {
    let (place, identity) = closed_sr();
    let open = |take_over| FilePlugin.open(place.location(), identity.uuid, &identity.owner, take_over);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::other_process::hold_the_sr_that_the_environment_names", "--nocapture"])
        .env(LOCATION, place.location())
        .env(UUID, identity.uuid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut holder = Holder(child);
    let output = BufReader::new(holder.0.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == HELD), "the other process ended early");

    for take_over in [false, true] {
        let error = open(take_over).err().unwrap();
        assert!(matches!(error, Error::InUse(_)), "{error:?}");
        assert!(error.to_string().contains("host-a"), "{error}");
    }
    assert!(matches!(FilePlugin.create(place.location(), &identity), Err(Error::Exists(_))));
    FilePlugin.look(place.location()).unwrap();

    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    open(false).unwrap();
}
