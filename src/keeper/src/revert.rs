//! `VDI.revert`: a disk goes back to what one of its snapshots holds. A clone of the snapshot takes over the disk's identity with
//! one commit; what the disk held since then is garbage. The snapshot stays, and can be reverted to again; one that is attached is
//! taken as it is now. The disk itself must not be attached: nobody's disk becomes another under his hands.

use crate::dispatch::params;
use crate::failures::bad_request;
use crate::images::new_image;
use crate::lookup::{no_such_vdi, vdi_uuid};
use crate::owner::{Call, Given, Owner};
use crate::sizing::{self, Role};
use catena_catalog::Change;
use catena_rpc::VdiRevertParams;
use catena_types::{AttachMode, Failure, Severity, VdiKind, VdiRecord, Work};
use serde_json::json;

impl Owner {
    /// `VDI.revert`. The disk's own chain is not looked at: going back is a way out of a damaged one.
    pub(crate) fn vdi_revert(&mut self, call: &Call) -> Result<Given, Failure> {
        let asked: VdiRevertParams = params(&call.request)?;
        let uuid = vdi_uuid(&asked.vdi)?;
        let disk = self.catalog.state().vdis.get(&uuid).ok_or_else(|| no_such_vdi(&asked.vdi))?;
        let disk = (**disk).clone();
        let (snapshot, leaf) = self.disk(&asked.snapshot)?;
        refuse_others(&disk, &snapshot)?;
        self.refuse_attached(uuid, &[AttachMode::ReadOnly, AttachMode::ReadWrite]).map_err(|failure| {
            // Whoever has the disk open has a file system in its memory that is not that of the snapshot.
            let way = "`catena vdi detach` ends it; `catena vdi clone` of the snapshot makes a new disk of it beside this one";
            failure.hint(way).object("snapshot", snapshot.uuid)
        })?;
        let given_up = self.image(disk.image)?.clone();
        let bare = self.is_bare_disk(&snapshot, &leaf)?;
        if !bare && let Some(again) = self.room_above(&snapshot, &leaf, false)? {
            return Ok(again);
        }
        let base = if bare { leaf.parent } else { Some(leaf.id) };
        let mut job = self.new_job(Work::Revert { vdi: uuid, snapshot: snapshot.uuid }, asked.request_id);
        let mut images = vec![new_image(base, leaf.virtual_size)];
        if !bare {
            images.push(new_image(base, leaf.virtual_size));
        }
        let target = sizing::target(Role::Disk, false, self.allocation());
        self.size_new(&mut images[0], target)?;
        if let [first, own] = images.as_mut_slice() {
            let others = first.allocated;
            self.size_leaves(&mut [(&snapshot, own)], &[&leaf], others)?;
        }
        let mut vdis = vec![VdiRecord { image: images[0].id, ..disk }];
        vdis.extend(images.get(1).map(|own| VdiRecord { image: own.id, ..snapshot.clone() }));
        self.make(&mut job, &mut images, &vdis)?;
        let mut changes = self.discarded(&given_up);
        changes.extend(vdis.into_iter().map(Change::PutVdi));
        let leaves: Vec<_> = images.get(1).map(|own| (snapshot.uuid, own.clone())).into_iter().collect();
        changes.extend(images.into_iter().map(Change::PutImage));
        let text = format!("disk put back to its snapshot {}", snapshot.uuid);
        changes.push(self.event(Severity::Info, "vdi.reverted", Some(uuid), Some(&job), text));
        if bare {
            self.conclude(job, changes, Vec::new(), json!({}))
        } else {
            self.become_bases(job, vec![(snapshot, leaf)], changes, json!({}), &leaves)
        }
    }
}

fn refuse_others(disk: &VdiRecord, snapshot: &VdiRecord) -> Result<(), Failure> {
    if disk.kind == VdiKind::Disk
        && snapshot.kind == VdiKind::Snapshot
        && snapshot.snapshot_of == Some(disk.uuid)
    {
        return Ok(());
    }
    let message = format!("'{}' is not a snapshot of the disk '{}'", snapshot.name_label, disk.name_label);
    Err(bad_request(message)
        .hint("`catena vdi list --json` says of which disk each snapshot is")
        .object("vdi", disk.uuid)
        .object("snapshot", snapshot.uuid))
}
