//! Writes labels of containers behind the back of who sets them: a tag costs a command, and nobody waits for a label.
//!
//! Several changes of one label within a moment cost one command. What is not written when the process dies is written when the
//! SR is opened again, since the keeper compares. Used by `store`.

use crate::lvm2::Volumes;
use crate::report::Active;
use crate::shared::Shared;
use crate::tags::PREFIX;
use catena_sr_api::Error;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long labels rest before they are written, so that what follows at once is not written twice.
const REST: Duration = Duration::from_millis(500);

/// The thread; it ends, after the last label, when this is dropped.
#[derive(Debug)]
pub(crate) struct Labeller {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Labeller {
    /// Begins to write what is set.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let theirs = Arc::clone(shared);
        Self { shared: Arc::clone(shared), thread: Some(thread::spawn(move || run(&theirs))) }
    }
}

impl Drop for Labeller {
    fn drop(&mut self) {
        self.shared.known().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    loop {
        let idle = shared.changed.wait_while(shared.known(), |known| known.meant.is_empty() && !known.ending);
        let known = idle.unwrap_or_else(PoisonError::into_inner);
        let rested = shared.changed.wait_timeout_while(known, REST, |known| !known.ending);
        let (known, _) = rested.unwrap_or_else(PoisonError::into_inner);
        let ending = known.ending;
        drop(known);
        while write_one(shared) {}
        if ending {
            return;
        }
    }
}

/// Writes the labels of one container; `false` if there is none to write.
fn write_one(shared: &Shared) -> bool {
    let Some((name, tags)) =
        shared.known().meant.first_key_value().map(|(name, tags)| (name.clone(), tags.clone()))
    else {
        return false;
    };
    if let Err(error) = write(shared, &name, &tags) {
        tracing::warn!(container = name, %error, "a container was not labelled");
    }
    let mut known = shared.known();
    if known.meant.get(&name) == Some(&tags) {
        known.meant.remove(&name);
    }
    true
}

fn write(shared: &Shared, name: &str, tags: &BTreeSet<String>) -> Result<(), Error> {
    shared.alone(|lvm| {
        let (group, present, read_only) = {
            let known = shared.known();
            // It may be gone.
            let Some(volume) = known.group.container(name) else { return Ok(()) };
            (known.group.name.clone(), volume.tags.clone(), volume.active == Active::ReadOnly)
        };
        let old: BTreeSet<String> =
            present.iter().filter(|tag| tag.starts_with(PREFIX) && !tags.contains(*tag)).cloned().collect();
        let new: BTreeSet<String> = tags.difference(&present).cloned().collect();
        if old.is_empty() && new.is_empty() {
            return Ok(());
        }
        let names = [name];
        lvm.tag(
            Volumes { group: &group, names: &names, read_only: if read_only { &names } else { &[] } },
            &new,
            &old,
        )?;
        if let Some(volume) = shared.known().group.container_mut(name) {
            volume.tags.retain(|tag| !old.contains(tag));
            volume.tags.extend(new);
        }
        Ok(())
    })
}
