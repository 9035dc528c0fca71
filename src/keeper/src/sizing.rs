//! Containers of explicit size: which size an image is to have, and the steps that give it that.
//!
//! | image | `thin` | `thick` | `dynamic` |
//! |---|---|---|---|
//! | leaf of a VDI that is attached read-write | full | full | grows as it fills |
//! | leaf of another disk | what it needs | full | what it needs |
//! | leaf of a snapshot, base copy | what it needs | what it needs | what it needs |
//!
//! *Full* can take every block of the disk. What grows as it fills is the matter of `demand`. To make a container larger has two steps, and an image whose container grew without its
//! footer has one only at its beginning: a job's row names it before ([`catena_types::Resized`]), and recovery brings it to the size
//! that it finds. To make it smaller can be interrupted anywhere: the footer moves down first, and both are right until the cut.
//!
//! Nothing here needs the owner: it is called by that (`volumes`) and by the threads of long jobs, each with a worker of its own.

use crate::failures::from_trouble;
use crate::hands::ready;
use crate::images::unexpected;
use catena_control::{Answer, Answered, Request};
use catena_sr_api::{Access, Store};
use catena_types::{Allocation, Bytes, CrashPoint, Failure, ImageRecord};
use std::os::fd::OwnedFd;

/// The row names the container that is to grow.
pub(crate) const JOURNALED: CrashPoint = CrashPoint("inflate.journaled");
/// The container has grown, its image does not know.
pub(crate) const GROWN: CrashPoint = CrashPoint("inflate.grown");
/// The image has its new size, the row says that it may not.
pub(crate) const INFLATED: CrashPoint = CrashPoint("inflate.fitted");
/// The footer stands where the container will end.
const FITTED: CrashPoint = CrashPoint("deflate.fitted");
/// The container is cut, its row says otherwise.
const CUT: CrashPoint = CrashPoint("deflate.cut");

/// All of them.
pub(crate) const POINTS: &[CrashPoint] = &[JOURNALED, GROWN, INFLATED, FITTED, CUT];

/// Calls a worker.
pub(crate) type Call<'a> = dyn FnMut(&Request, Vec<OwnedFd>) -> Answered + 'a;

/// What an image is in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has no VDI.
    Base,
    /// The leaf of a disk.
    Disk,
    /// The leaf of a snapshot.
    Snapshot,
}

/// How large its container is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// For every block of the disk.
    Full,
    /// For what it holds.
    Fitted,
    /// For what it holds and a chunk more, which grows as it fills.
    Roomy,
}

/// The size that an image is to have; `written` is whether a guest writes it.
pub(crate) const fn target(role: Role, written: bool, allocation: Allocation) -> Target {
    match (role, allocation) {
        (Role::Disk, Allocation::Thick) => Target::Full,
        (Role::Disk | Role::Snapshot, Allocation::Dynamic) if written => Target::Roomy,
        (Role::Disk | Role::Snapshot, _) if written => Target::Full,
        _ => Target::Fitted,
    }
}

/// How large containers for a disk of some size are, as the storage rounds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// That of an image without blocks.
    pub(crate) empty: Bytes,
    /// That of one that can take all.
    pub(crate) full: Bytes,
}

impl Sizes {
    /// Those for images like this one.
    pub(crate) fn of(store: &dyn Store, image: &ImageRecord, call: &mut Call<'_>) -> Result<Self, Failure> {
        let request = Request::Sizes { format: image.format, virtual_size: image.virtual_size };
        match call(&request, Vec::new()).map_err(|trouble| from_trouble(&trouble))? {
            Answer::Sizes { empty, full } => Ok(Self { empty: store.round(empty), full: store.round(full) }),
            _ => Err(unexpected()),
        }
    }

    /// The one that is meant for an image without blocks, where containers grow by such a chunk.
    pub(crate) fn get(self, target: Target, chunk: Bytes) -> Bytes {
        match target {
            Target::Full => self.full,
            Target::Fitted => self.empty,
            Target::Roomy => Bytes(self.empty.0.saturating_add(chunk.0)).min(self.full),
        }
    }
}

/// Makes an image's container at least as large, and brings the image to that size. Nobody else writes it. The row that names it is
/// written.
pub(crate) fn grow_to(
    store: &dyn Store,
    image: &ImageRecord,
    to: Bytes,
    call: &mut Call<'_>,
) -> Result<(), Failure> {
    let before = length(store, image)?;
    if before < to {
        store.grow(&image.container, to)?;
        GROWN.pass();
        settle(store, image, before, call)?;
    }
    Ok(())
}

/// Brings an image to the size of its container, which may have grown since it had `before` bytes.
pub(crate) fn settle(
    store: &dyn Store,
    image: &ImageRecord,
    before: Bytes,
    call: &mut Call<'_>,
) -> Result<(), Failure> {
    let size = length(store, image)?;
    if size == before { Ok(()) } else { fit(store, image, before, size, call) }
}

/// The size that the image's container can be cut to.
pub(crate) fn needed(store: &dyn Store, image: &ImageRecord, call: &mut Call<'_>) -> Result<Bytes, Failure> {
    let fd = store.activate(&image.container, Access::ReadOnly)?;
    let answer = call(&Request::Inspect { formats: vec![image.format] }, vec![fd]);
    match answer.map_err(|trouble| from_trouble(&trouble))? {
        Answer::Reports { reports } => match reports.into_iter().next() {
            Some(Ok(report)) => Ok(store.round(report.needs)),
            Some(Err(trouble)) => Err(from_trouble(&trouble)),
            None => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

/// Cuts an image's container to what the image needs. Nobody else writes it; who reads it does not notice.
pub(crate) fn deflate(store: &dyn Store, image: &ImageRecord, call: &mut Call<'_>) -> Result<(), Failure> {
    let (now, needed) = (length(store, image)?, needed(store, image, call)?);
    if needed >= now {
        return Ok(());
    }
    // The footer stands where the container will end, durably, before the container is cut there.
    fit(store, image, now, needed, call)?;
    FITTED.pass();
    store.shrink(&image.container, needed)?;
    CUT.pass();
    Ok(())
}

fn fit(
    store: &dyn Store,
    image: &ImageRecord,
    before: Bytes,
    size: Bytes,
    call: &mut Call<'_>,
) -> Result<(), Failure> {
    let one = ready(store, image, Access::ReadWrite)?;
    let request = Request::Fit { image: one.handed, before, size };
    call(&request, vec![one.fd]).map(drop).map_err(|trouble| from_trouble(&trouble))
}

/// What the image's container has now.
pub(crate) fn length(store: &dyn Store, image: &ImageRecord) -> Result<Bytes, Failure> {
    Ok(store.info(&image.container)?.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_guest_may_write_is_full_unless_disks_are_thick() {
        use {Role::*, Target::*};
        for (role, written, thin, thick, dynamic) in [
            (Disk, true, Full, Full, Roomy),
            (Disk, false, Fitted, Full, Fitted),
            (Snapshot, true, Full, Full, Roomy),
            (Snapshot, false, Fitted, Fitted, Fitted),
            (Base, false, Fitted, Fitted, Fitted),
            // One whose VDI has another leaf by now: its process has not let go of it yet, and does not write it any more.
            (Base, true, Fitted, Fitted, Fitted),
        ] {
            assert_eq!(target(role, written, Allocation::Dynamic), dynamic, "{role:?} {written}");
            assert_eq!(target(role, written, Allocation::Thin), thin, "{role:?} {written}");
            assert_eq!(target(role, written, Allocation::Thick), thick, "{role:?} {written}");
        }
    }
}
