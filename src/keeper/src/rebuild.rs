//! A new tree for an SR of ours whose catalog is lost (D21): leaves and parents come from the images, names from their labels
//! and from the last copy of the catalog.
//!
//! Nothing is removed and no image is written. Every leaf becomes a disk, named by its label, else by the copy, else by its file;
//! what cannot be placed is an orphan. A merge may have been under way that nobody knows of any more, so a base copy
//! with one child counts as `mixed`: only its child reads right. Pure but for [`survey`].

use crate::adopt::{Adoption, Found, inspect};
use crate::labels;
use crate::operations::new_vdi;
use crate::worker::SmallWorker;
use catena_catalog::State;
use catena_control::ImageReport;
use catena_sr_api::{Labels, Store};
use catena_types::{
    Failure, ImageId, ImageRecord, ImageState, JobRecord, Severity, SrUuid, VdiKind, VdiRecord, VdiUuid,
};
use std::collections::{BTreeMap, BTreeSet};

/// Looks at every image of the SR and says what it becomes. Changes nothing.
pub(crate) fn survey(
    store: &dyn Store,
    small: &mut SmallWorker,
    sr: SrUuid,
    copy: Option<&State>,
) -> Result<Adoption, Failure> {
    let found = inspect(store, small, sr)?;
    let mut labels = BTreeMap::new();
    for Found { info, .. } in &found {
        match store.labels(&info.name) {
            Ok(some) => drop(labels.insert(info.name.clone(), some)),
            Err(error) => tracing::warn!(%sr, container = info.name, %error, "labels cannot be read"),
        }
    }
    Ok(rebuild(found, &labels, copy))
}

/// The rows that images, labels and a copy of the catalog become.
fn rebuild(found: Vec<Found>, labels: &BTreeMap<String, Labels>, copy: Option<&State>) -> Adoption {
    let mut tree = Tree::default();
    let mut known = BTreeSet::new();
    for one in found {
        let empty = one.report.as_ref().is_ok_and(|ImageReport { owns_blocks, .. }| !owns_blocks);
        let container = one.info.name.clone();
        let row = tree.adoption.row(one, &mut known);
        if empty {
            tree.empty.insert(row.id);
        }
        if let Some(vdi) = labels.get(&container).and_then(|labels| labels::read(labels, row.id)) {
            tree.told.insert(row.id, vdi);
        }
        if labels.get(&container).is_some_and(labels::is_unused) {
            tree.unused.insert(row.id);
        }
        tree.index.insert(row.id, tree.adoption.images.len());
        tree.adoption.images.push(row);
    }
    tree.show_what_is_labelled();
    tree.adoption.orphans();
    tree.void(copy);
    tree.by_labels();
    if let Some(copy) = copy {
        tree.by_copy(copy);
    }
    tree.by_files();
    tree.bases();
    tree.adoption
}

/// A tree in the making.
#[derive(Default)]
struct Tree {
    adoption: Adoption,
    /// Where in it an image is.
    index: BTreeMap<ImageId, usize>,
    /// What the images' labels say.
    told: BTreeMap<ImageId, VdiRecord>,
    /// Images whose labels say that they belong to no disk.
    unused: BTreeSet<ImageId>,
    /// Images without a block.
    empty: BTreeSet<ImageId>,
    /// Disks that have their place.
    placed: BTreeSet<VdiUuid>,
    /// Leaves that have their disk.
    taken: BTreeSet<ImageId>,
}

impl Tree {
    /// Images that others in the tree hang from.
    fn parents(&self) -> BTreeSet<ImageId> {
        let rows = self.adoption.images.iter().filter(|row| row.state != ImageState::Orphan);
        rows.filter_map(|row| row.parent).collect()
    }

    fn row(&self, id: ImageId) -> Option<&ImageRecord> {
        self.index.get(&id).and_then(|at| self.adoption.images.get(*at))
    }

    /// Whether it is a leaf of the tree without a disk.
    fn is_free_leaf(&self, id: ImageId, parents: &BTreeSet<ImageId>) -> bool {
        !parents.contains(&id)
            && !self.taken.contains(&id)
            && self.row(id).is_some_and(|row| row.state == ImageState::Ok && !row.foreign)
    }

    fn name(&self, id: ImageId) -> String {
        self.row(id).map_or_else(|| id.to_string(), |row| row.container.clone())
    }

    fn orphan(&mut self, id: ImageId, severity: Severity, why: &str) {
        let name = self.name(id);
        self.adoption.find(severity, &name, format!("{why}: kept as an orphan"));
        for row in self.adoption.images.iter_mut().filter(|row| row.id == id) {
            row.state = ImageState::Orphan;
            // Its chain goes on without it, so what it reads from there may change.
            row.parent = None;
        }
    }

    /// A leaf that carries a disk's label is no base copy, whatever its hidden flag says: that comes last.
    fn show_what_is_labelled(&mut self) {
        let parents = self.parents();
        for row in &mut self.adoption.images {
            row.hidden &= parents.contains(&row.id) || !self.told.contains_key(&row.id);
        }
    }

    /// What its label or the copy says to belong to no disk: it stays that way unless it has got a disk's label since the copy.
    fn void(&mut self, copy: Option<&State>) {
        let jobs = copy.iter().flat_map(|copy| copy.jobs.values());
        let unfinished = jobs.filter(|job| !job.committed && !job.state.is_over());
        let made: BTreeSet<ImageId> = unfinished.flat_map(|job| made_by(job)).collect();
        let garbage = |id: &ImageId| {
            let state = copy.and_then(|copy| copy.images.get(id)).map(|row| row.state);
            made.contains(id) || matches!(state, Some(ImageState::Garbage | ImageState::Orphan))
        };
        let garbage: BTreeSet<ImageId> = self
            .adoption
            .images
            .iter()
            .map(|row| row.id)
            .filter(|id| self.unused.contains(id) || garbage(id))
            .collect();
        let parents = self.parents();
        for id in garbage {
            if !self.told.contains_key(&id) && self.is_free_leaf(id, &parents) {
                self.orphan(id, Severity::Info, "belonged to no disk");
            }
        }
    }

    /// Disks whose leaf is labelled. A leaf is labelled before the base below it loses its label, so the leaf is right.
    fn by_labels(&mut self) {
        let parents = self.parents();
        let told = self.told.values().cloned();
        let (leaves, others): (Vec<_>, Vec<_>) = told.partition(|vdi| self.is_free_leaf(vdi.image, &parents));
        for vdi in leaves {
            if self.placed.contains(&vdi.uuid) {
                let name = self.name(vdi.image);
                let text = format!("says that it is the disk {}, as another image does", vdi.uuid);
                self.adoption.find(Severity::Warning, &name, text);
            } else {
                self.place(vdi);
            }
        }
        for vdi in others {
            if parents.contains(&vdi.image) && !self.placed.contains(&vdi.uuid) {
                self.label_on_a_parent(vdi);
            }
        }
    }

    /// A base copy that carries the label of a disk which no leaf carries.
    fn label_on_a_parent(&mut self, vdi: VdiRecord) {
        let children: Vec<ImageId> = self
            .adoption
            .images
            .iter()
            .filter(|row| row.parent == Some(vdi.image) && row.state == ImageState::Ok)
            .map(|row| row.id)
            .collect();
        let parents = self.parents();
        let free = |id: &ImageId| self.is_free_leaf(*id, &parents) && !self.told.contains_key(id);
        // It reads as its parent does, so it is the disk's leaf or as good as that.
        if let Some(child) = children.iter().copied().find(|id| free(id) && self.empty.contains(id)) {
            return self.place(VdiRecord { image: child, ..vdi });
        }
        let hidden = self.row(vdi.image).is_none_or(|row| row.hidden);
        if !hidden && children.iter().all(free) {
            // A merged disk's image is shown after its last child was taken from it: what hangs there is left over.
            for child in children {
                self.orphan(child, Severity::Warning, "nothing says whose it is, and its parent is a disk");
            }
            return self.place(vdi);
        }
        let text = format!(
            "carries the label of the disk {} ('{}'), and others hang from it",
            vdi.uuid, vdi.name_label
        );
        let name = self.name(vdi.image);
        self.adoption.find(Severity::Error, &name, text);
    }

    /// Disks that the copy knows and no label names. Of one that was merged since, the image below is the leaf, unless another may
    /// have become that too.
    fn by_copy(&mut self, copy: &State) {
        let parents = self.parents();
        let mut claims: BTreeMap<ImageId, Vec<VdiRecord>> = BTreeMap::new();
        for vdi in copy.vdis.values() {
            if self.placed.contains(&vdi.uuid) {
                continue;
            }
            let there = copy.chain(vdi.image).map(|image| image.id).find(|id| self.row(*id).is_some());
            match there.filter(|id| self.is_free_leaf(*id, &parents) && !self.told.contains_key(id)) {
                Some(id) => claims.entry(id).or_default().push((**vdi).clone()),
                None => self.not_found(vdi, "its image is gone, or a base copy now"),
            }
        }
        for (id, vdis) in claims {
            let own = vdis.iter().find(|vdi| vdi.image == id).cloned();
            let heir = own.or_else(|| vdis.first().filter(|_| vdis.len() == 1).cloned());
            for vdi in vdis.iter().filter(|vdi| heir.as_ref().is_none_or(|heir| heir.uuid != vdi.uuid)) {
                self.not_found(vdi, "its image is gone, and what is below it may be another's");
            }
            if let Some(vdi) = heir {
                self.place(VdiRecord { image: id, ..vdi });
            }
        }
    }

    fn not_found(&mut self, vdi: &VdiRecord, why: &str) {
        let text = format!("the disk '{}' of the copy was not found: {why}", vdi.name_label);
        self.adoption.find(Severity::Warning, &vdi.uuid.to_string(), text);
    }

    /// Leaves of which nothing says whose they are.
    fn by_files(&mut self) {
        let parents = self.parents();
        for row in self.adoption.images.clone() {
            if row.foreign && row.state == ImageState::Ok && !parents.contains(&row.id) {
                self.orphan(row.id, Severity::Warning, "written by another program");
            } else if self.is_free_leaf(row.id, &parents) {
                let name = self.adoption.disk_name(&row.container);
                let named = name.parse().ok().filter(|uuid| !self.placed.contains(uuid));
                let uuid = named.unwrap_or_else(VdiUuid::random);
                let text = format!(
                    "nothing says whose it is: becomes the disk {uuid}; it may be one that was deleted"
                );
                self.adoption.find(Severity::Warning, &row.container, text);
                self.place(new_vdi(uuid, row.id, name, VdiKind::Disk));
            }
        }
    }

    /// What hangs between is a base copy; one with a single child may be the target of a merge that was begun.
    fn bases(&mut self) {
        let mut children: BTreeMap<ImageId, usize> = BTreeMap::new();
        for row in self.adoption.images.iter().filter(|row| row.state != ImageState::Orphan) {
            if let Some(parent) = row.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        for row in self.adoption.images.iter_mut().filter(|row| row.state == ImageState::Ok) {
            let children = children.get(&row.id).copied().unwrap_or(0);
            row.hidden = children > 0;
            if children == 1 && !row.foreign {
                row.state = ImageState::Mixed;
            }
        }
        // The catalog has no child of a disk's leaf, not even one that nobody reads.
        let taken = &self.taken;
        for row in self.adoption.images.iter_mut().filter(|row| row.state == ImageState::Orphan) {
            if row.parent.is_some_and(|parent| taken.contains(&parent)) {
                row.parent = None;
            }
        }
    }

    fn place(&mut self, vdi: VdiRecord) {
        self.placed.insert(vdi.uuid);
        self.taken.insert(vdi.image);
        self.adoption.vdis.push(vdi);
    }
}

fn made_by(job: &JobRecord) -> impl Iterator<Item = ImageId> {
    job.effects.makes.iter().map(|made| made.image)
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
