//! What the container of a VDI's leaf says of the VDI: uuid, name, kind, of which disk it is a snapshot. The catalog is what
//! counts; labels are there for other tools, and to make a new catalog when it is lost (`rebuild`).
//!
//! They follow every commit in one place: a leaf that gets a VDI is labelled just before the commit, since a label takes space
//! that the commit records, and one that has lost its VDI loses its labels after it, or is marked as unused if it is no base copy.
//! So at any instant a VDI is named by its leaf of before, by that of after, or by both, and who reads that prefers the child;
//! only a disk that is being deleted is named no more a moment before the commit. A crash in between is answered when the SR is
//! opened again. No operation fails because of a label.

use crate::owner::Owner;
use catena_catalog::{Change, State};
use catena_sr_api::{Error, Labels};
use catena_types::{ImageId, ImageRecord, ImageState, VdiKind, VdiRecord, VdiUuid};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Images whose labels a commit concerns.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    /// They have got the labels of what is to be committed.
    pub(crate) taken: BTreeSet<ImageId>,
    /// With the commit they lose their VDI.
    pub(crate) left: BTreeSet<ImageId>,
}

/// The label of an image that belongs to no disk, and what it says.
const STATE: &str = "state";
const UNUSED: &str = "unused";

/// What is written of a VDI.
pub(crate) fn of(vdi: &VdiRecord) -> Labels {
    let kind = match vdi.kind {
        VdiKind::Disk => "disk",
        VdiKind::Snapshot => "snapshot",
    };
    let mut pairs = vec![
        ("vdi", vdi.uuid.to_string()),
        ("label", vdi.name_label.clone()),
        ("kind", kind.to_owned()),
        ("created", vdi.created.to_string()),
    ];
    pairs.extend(vdi.snapshot_of.map(|disk| ("snapshot_of", disk.to_string())));
    if !vdi.name_description.is_empty() {
        pairs.push(("description", vdi.name_description.clone()));
    }
    if !vdi.other_config.is_empty()
        && let Ok(text) = serde_json::to_string(&vdi.other_config)
    {
        pairs.push(("other_config", text));
    }
    pairs.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

/// The VDI that labels speak of, on this image; none if they do not say which. What else is missing or makes no sense is left
/// empty: whoever had the right to write the file may have written anything.
pub(crate) fn read(labels: &Labels, image: ImageId) -> Option<VdiRecord> {
    Some(described(labels, labels.get("vdi")?.parse().ok()?, image))
}

/// What labels say of this VDI.
pub(crate) fn described(labels: &Labels, uuid: VdiUuid, image: ImageId) -> VdiRecord {
    let text = |name: &str| labels.get(name).cloned().unwrap_or_default();
    VdiRecord {
        uuid,
        image,
        name_label: text("label"),
        name_description: text("description"),
        kind: if text("kind") == "snapshot" { VdiKind::Snapshot } else { VdiKind::Disk },
        snapshot_of: labels.get("snapshot_of").and_then(|disk| disk.parse().ok()),
        created: text("created").parse().unwrap_or_else(|_| Timestamp::now()),
        other_config: serde_json::from_str(&text("other_config")).unwrap_or_default(),
    }
}

/// Whether labels say that the image belongs to no disk: its disk was deleted or merged into another image.
pub(crate) fn is_unused(labels: &Labels) -> bool {
    labels.get(STATE).is_some_and(|state| state == UNUSED)
}

impl Owner {
    /// Labels the leaves of the VDIs that are about to be committed, and adds to the changes what the leaves take then.
    pub(crate) fn label(&mut self, changes: &mut Vec<Change>) -> Labelled {
        let before = self.catalog.state().clone();
        let mut labelled = Labelled::default();
        let mut leaves = Vec::new();
        for change in &*changes {
            let (uuid, after) = match change {
                Change::PutVdi(vdi) => (vdi.uuid, Some(vdi)),
                Change::RemoveVdi(uuid) => (*uuid, None),
                _ => continue,
            };
            let old = before.vdis.get(&uuid);
            if let (Some(old), None) = (old, after)
                && becomes_garbage(changes, old.image)
            {
                leaves.push((old.image, unused()));
            } else if let Some(old) = old
                && after.is_none_or(|after| after.image != old.image)
            {
                labelled.left.insert(old.image);
            }
            if let Some(after) = after
                && old.is_none_or(|old| **old != *after)
            {
                leaves.push((after.image, of(after)));
            }
        }
        if leaves.is_empty() {
            return labelled;
        }
        let mut rows: BTreeMap<ImageId, &mut ImageRecord> = BTreeMap::new();
        for change in &mut *changes {
            if let Change::PutImage(row) = change {
                rows.insert(row.id, row);
            }
        }
        let mut grown = Vec::new();
        for (id, labels) in leaves {
            let known = before.images.get(&id).map(|row| (**row).clone());
            let Some(row) = rows.get(&id).map(|row| (**row).clone()).or(known) else { continue };
            if !self.write_labels(&row, &labels) {
                continue;
            }
            labelled.taken.insert(id);
            let after = self.measured(&row);
            match rows.get_mut(&id) {
                Some(row) => **row = after,
                None if after != row => grown.push(Change::PutImage(after)),
                None => {}
            }
        }
        changes.extend(grown);
        labelled
    }

    /// Makes the labels of these images those that the catalog implies.
    pub(crate) fn relabel(&mut self, images: &BTreeSet<ImageId>) {
        let state = self.catalog.state().clone();
        for row in images.iter().filter_map(|id| state.images.get(id)) {
            self.write_labels(row, &implied(&state, row.id));
        }
    }

    /// The same for all images, where they differ.
    pub(crate) fn relabel_all(&mut self) {
        let state = self.catalog.state().clone();
        for row in state.images.values() {
            let labels = implied(&state, row.id);
            match self.store.labels(&row.container) {
                Ok(found) if found != labels => {
                    self.write_labels(row, &labels);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(container = row.container, %error, "labels cannot be read"),
            }
        }
    }

    /// Writes labels where there is a place for them; whether it was done. An image of another program is left as it is.
    fn write_labels(&mut self, row: &ImageRecord, labels: &Labels) -> bool {
        if row.foreign || self.no_labels {
            return false;
        }
        match self.store.set_labels(&row.container, labels) {
            Ok(()) => return true,
            Err(Error::Unsupported(why)) => {
                tracing::info!(sr = %self.sr.uuid, why, "names of disks are kept in the catalog only");
                self.no_labels = true;
            }
            Err(Error::Missing(_)) => {}
            Err(error) => {
                tracing::warn!(sr = %self.sr.uuid, container = row.container, %error, "a container was not labelled");
            }
        }
        false
    }
}

/// The labels of an image: those of its VDI; that it belongs to none and never will again; or none.
fn implied(state: &State, image: ImageId) -> Labels {
    if let Some(vdi) = state.vdi_of(image) {
        return of(vdi);
    }
    match state.images.get(&image).map(|row| row.state) {
        Some(ImageState::Garbage | ImageState::Orphan) => unused(),
        _ => Labels::new(),
    }
}

/// The labels of an image that belongs to no disk.
fn unused() -> Labels {
    Labels::from([(STATE.to_owned(), UNUSED.to_owned())])
}

fn becomes_garbage(changes: &[Change], id: ImageId) -> bool {
    let garbage = |row: &ImageRecord| row.id == id && row.state == ImageState::Garbage;
    changes.iter().any(|change| matches!(change, Change::PutImage(row) if garbage(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::new_vdi;

    #[test]
    fn what_is_written_is_read_back() {
        let image = ImageId::random();
        let plain = new_vdi(VdiUuid::random(), image, "web \"01\"\n".to_owned(), VdiKind::Disk);
        let full = VdiRecord {
            kind: VdiKind::Snapshot,
            snapshot_of: Some(plain.uuid),
            name_description: "before the upgrade".to_owned(),
            other_config: BTreeMap::from([("a".to_owned(), "ü".to_owned())]),
            ..new_vdi(VdiUuid::random(), image, String::new(), VdiKind::Disk)
        };
        for vdi in [plain, full] {
            assert_eq!(read(&of(&vdi), image), Some(vdi));
        }
    }

    #[test]
    fn labels_that_make_no_sense_name_no_disk() {
        let image = ImageId::random();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        assert_eq!(read(&labels(&[("label", "x")]), image), None);
        assert_eq!(read(&labels(&[("vdi", "x")]), image), None);
        let uuid = VdiUuid::random();
        let odd =
            [("vdi", uuid.to_string()), ("created", "then".to_owned()), ("other_config", "[".to_owned())];
        let odd: Labels = odd.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        let vdi = read(&odd, image).unwrap();
        assert!(vdi.uuid == uuid && vdi.other_config.is_empty() && vdi.kind == VdiKind::Disk);
    }
}
