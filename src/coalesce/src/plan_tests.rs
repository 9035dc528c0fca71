//! The plan on small trees, and its safety on random ones.

use super::*;
use crate::candidates::Candidates;
use crate::space::space_of;
use catena_types::{Format, VdiRecord};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default)]
struct World {
    images: BTreeMap<ImageId, Arc<ImageRecord>>,
    vdis: BTreeMap<VdiUuid, Arc<VdiRecord>>,
}

const fn id(n: u8) -> ImageId {
    ImageId::from_bytes([n; 16])
}

impl Tree for World {
    fn image(&self, id: ImageId) -> Option<&Arc<ImageRecord>> {
        self.images.get(&id)
    }

    fn children(&self, id: ImageId) -> impl Iterator<Item = ImageId> {
        let read = |image: &&Arc<ImageRecord>| image.state != ImageState::Garbage;
        self.images.values().filter(read).filter(move |image| image.parent == Some(id)).map(|image| image.id)
    }

    fn vdi(&self, id: ImageId) -> Option<&Arc<VdiRecord>> {
        self.vdis.values().find(|vdi| vdi.image == id)
    }

    fn images(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.images.values()
    }

    fn count(&self) -> usize {
        self.images.len()
    }
}

impl World {
    fn with_image(mut self, n: u8, parent: Option<u8>, allocated: u64) -> Self {
        let record = ImageRecord {
            id: id(n),
            parent: parent.map(id),
            format: Format::Vhd,
            container: format!("{n}.vhd"),
            virtual_size: Bytes(2 << 20),
            allocated: Bytes(allocated),
            state: ImageState::Ok,
            hidden: true,
            foreign: false,
        };
        self.images.insert(id(n), Arc::new(record));
        self
    }

    fn with_vdi(mut self, n: u8, kind: VdiKind) -> Self {
        let record = VdiRecord {
            uuid: VdiUuid::from_bytes([n; 16]),
            image: id(n),
            name_label: String::new(),
            name_description: String::new(),
            kind,
            snapshot_of: None,
            created: "2024-01-01T00:00:00Z".parse().unwrap(),
            other_config: BTreeMap::new(),
        };
        self.vdis.insert(record.uuid, Arc::new(record));
        self
    }

    fn change(mut self, n: u8, change: impl Fn(&mut ImageRecord)) -> Self {
        change(Arc::make_mut(self.images.get_mut(&id(n)).unwrap()));
        self
    }

    fn plan(&self, moment: &Moment) -> Plan {
        plan(self, moment)
    }

    fn can_shorten(&self, leaf: u8) -> bool {
        can_shorten(self, id(leaf))
    }
}

fn roomy() -> Moment {
    Moment { free: Bytes(u64::MAX), ..Moment::default() }
}

const fn leaf_merge(n: u8, into: u8) -> Task {
    Task::LeafMerge { vdi: VdiUuid::from_bytes([n; 16]), from: id(n), into: id(into) }
}

/// 1 <- 2 <- 3 (disk)
fn line() -> World {
    World::default()
        .with_image(1, None, 10)
        .with_image(2, Some(1), 20)
        .with_image(3, Some(2), 5)
        .with_vdi(3, VdiKind::Disk)
}

#[test]
fn a_line_of_base_copies_is_merged_cheapest_first() {
    assert_eq!(line().plan(&roomy()).ready, [leaf_merge(3, 2), Task::Merge { from: id(2), into: id(1) }]);
}

#[test]
fn snapshots_and_shared_bases_stay() {
    let snapshot =
        World::default().with_image(1, None, 9).with_image(2, Some(1), 9).with_vdi(2, VdiKind::Snapshot);
    assert_eq!(snapshot.plan(&roomy()), Plan::default());
    let shared = line().with_image(4, Some(1), 9).with_vdi(4, VdiKind::Disk);
    assert_eq!(shared.plan(&roomy()).ready, [leaf_merge(3, 2)]);
    assert!(!shared.can_shorten(4));
    assert!(shared.can_shorten(3));
}

#[test]
fn what_nothing_needs_is_removed_first_children_before_parents() {
    let world = line().with_image(7, None, 0).with_image(8, Some(7), 0);
    assert_eq!(world.plan(&roomy()).ready[0], Task::Remove { image: id(8) });
    assert!(!world.plan(&roomy()).ready.contains(&Task::Remove { image: id(7) }));
}

#[test]
fn orphans_are_never_touched() {
    let world = World::default().with_image(1, None, 0).change(1, |image| image.state = ImageState::Orphan);
    assert_eq!(world.plan(&roomy()), Plan::default());
}

#[test]
fn the_order_is_begun_then_urgent_then_deep_then_cheap() {
    let mut world = line().with_image(11, None, 1).with_image(12, Some(11), 1).with_vdi(12, VdiKind::Disk);
    for n in 21..=40 {
        world = world.with_image(n, (n > 21).then(|| n - 1), 100);
    }
    let world = world.with_vdi(40, VdiKind::Snapshot);
    let first = |moment: &Moment| world.plan(moment).ready[0].image();
    assert!((22..40).any(|n| first(&roomy()) == id(n)), "the deep chain comes first");
    let urgent = Moment { urgent: BTreeSet::from([id(12)]), ..roomy() };
    assert_eq!(first(&urgent), id(12));
    let begun = Moment { begun: BTreeSet::from([id(2)]), ..urgent };
    assert_eq!(first(&begun), id(2));
}

#[test]
fn every_hold_has_its_reason() {
    let held = |world: &World, moment: &Moment| {
        let plan = world.plan(moment);
        plan.held.iter().find(|held| held.task.image() == id(2)).map(|held| held.hold)
    };
    let lease = Moment { leased: BTreeSet::from([id(1)]), ..roomy() };
    assert_eq!(held(&line(), &lease), Some(Hold::Lease));
    let backoff = Moment { backed_off: BTreeSet::from([id(2)]), ..roomy() };
    assert_eq!(held(&line(), &backoff), Some(Hold::Backoff));
    assert_eq!(held(&line(), &Moment { free: Bytes(15), ..roomy() }), Some(Hold::NoSpace(Bytes(5))));
    assert_eq!(held(&line(), &Moment { free: Bytes(0), reflink: true, ..roomy() }), None);
    assert_eq!(held(&line().change(1, |image| image.foreign = true), &roomy()), Some(Hold::Foreign));
    let damaged = line().change(1, |image| image.state = ImageState::Corrupt);
    assert_eq!(held(&damaged, &roomy()), Some(Hold::Damaged));
    assert!(!World::default().with_image(1, None, 0).with_vdi(1, VdiKind::Disk).can_shorten(1));
}

#[test]
fn beside_an_attached_disk_only_merges_run_that_move_nothing_it_has_open() {
    let attached = Moment { attached: BTreeSet::from([VdiUuid::from_bytes([3; 16])]), ..roomy() };
    let holds = |world: &World| {
        let held = world.plan(&attached).held;
        held.iter().map(|held| (held.task.image(), held.hold)).collect::<BTreeMap<_, _>>()
    };
    // 1 - 2 - 3, of which 3 is the disk's leaf, which its process alone writes: 2 goes into 1 all the same.
    assert_eq!(holds(&line()), BTreeMap::from([(id(3), Hold::Attached)]));
    // A process that writes merges the leaf itself, and shares no blocks.
    let live = Moment {
        live: attached.attached.clone(),
        attached: attached.attached.clone(),
        reflink: true,
        ..roomy()
    };
    assert_eq!(line().plan(&live).ready, [leaf_merge(3, 2), Task::Merge { from: id(2), into: id(1) }]);
    let full = Moment { free: Bytes(4), ..live };
    let missing = Held { task: leaf_merge(3, 2), hold: Hold::NoSpace(Bytes(1)) };
    assert_eq!(line().plan(&full).held, [missing]);
    let grown = line().change(2, |image| image.virtual_size = Bytes(4 << 20));
    assert_eq!(holds(&grown), BTreeMap::from([(id(2), Hold::Attached), (id(3), Hold::Attached)]));
    let merge = Task::Merge { from: id(2), into: id(1) };
    assert!(is_read(&line(), &attached, merge) && !is_read(&line(), &roomy(), merge));
    let lease = Moment { leased: BTreeSet::from([id(1)]), ..roomy() };
    assert!(is_read(&line(), &lease, merge));
}

/// A forest by its parents' places, with VDIs on some of its leaves.
fn forest(parents: &[prop::sample::Index], vdis: &[u8]) -> World {
    let mut world = World::default();
    for (n, index) in parents.iter().enumerate() {
        let n = u8::try_from(n).unwrap();
        let parent = index.index(usize::from(n) + 1);
        let parent = (parent > 0).then(|| u8::try_from(parent - 1).unwrap());
        world = world.with_image(n, parent, 1 << (n % 8));
    }
    let leaves: Vec<u8> = (0..u8::try_from(parents.len()).unwrap())
        .filter(|n| !world.images.values().any(|image| image.parent == Some(id(*n))))
        .collect();
    for (leaf, choice) in leaves.iter().zip(vdis) {
        match choice {
            0 => {}
            1 => world = world.with_vdi(*leaf, VdiKind::Snapshot),
            _ => world = world.with_vdi(*leaf, VdiKind::Disk),
        }
    }
    world
}

/// The bytes of all images, when everything that can be removed is.
fn left_after_removals(mut world: World) -> u64 {
    while let Some(Task::Remove { image }) = plan(&world, &roomy()).ready.first() {
        world.images.remove(image);
    }
    world.images.values().map(|image| image.allocated.0).sum()
}

#[test]
fn deleting_frees_what_nobody_else_reads_and_then_what_a_merge_frees() {
    // 1 <- 2 <- 3 (disk), 1 <- 2 <- 4 (snapshot)
    let world = line().with_image(4, Some(2), 7).with_vdi(4, VdiKind::Snapshot);
    let snapshot = space_of(&world, id(4));
    assert_eq!((snapshot.depth, snapshot.own, snapshot.shared), (3, Bytes(7), Bytes(30)));
    assert_eq!((snapshot.reclaimable, snapshot.reclaimable_after_coalesce), (Bytes(7), Bytes(7 + 5)));
    let disk = space_of(&world, id(3));
    let nothing_more = "a snapshot's leaf is not merged";
    assert_eq!((disk.reclaimable, disk.reclaimable_after_coalesce), (Bytes(5), Bytes(5)), "{nothing_more}");
    let alone = space_of(&line(), id(3));
    assert_eq!((alone.own, alone.shared, alone.reclaimable), (Bytes(35), Bytes(0), Bytes(35)));
    assert_eq!(reclaimable(&line()), Bytes(5 + 10), "the smaller of each pair");
}

proptest! {
    /// What a VDI is said to free is what removals free once it is gone.
    #[test]
    fn reclaimable_is_what_removals_free(parents in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
                                         vdis in prop::collection::vec(0u8..4, 40)) {
        let world = || forest(&parents, &vdis);
        let before = left_after_removals(world());
        for vdi in world().vdis.values() {
            let space = space_of(&world(), vdi.image);
            let chain: u64 = world().chain(vdi.image).iter().map(|image| image.allocated.0).sum();
            prop_assert_eq!(space.own.0 + space.shared.0, chain);
            let mut without = world();
            without.vdis.remove(&vdi.uuid);
            // Images that nobody reads are no longer in the way when they have been removed.
            let mut clean = world();
            while let Some(Task::Remove { image }) = plan(&clean, &roomy()).ready.first() {
                clean.images.remove(image);
            }
            prop_assert_eq!(space_of(&clean, vdi.image).reclaimable.0, before - left_after_removals(without));
        }
    }

    /// On any forest: nothing that has a VDI or a child is removed, nothing is merged into an image that somebody else reads.
    #[test]
    fn plans_are_safe(parents in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
                      vdis in prop::collection::vec(0u8..4, 40)) {
        let world = forest(&parents, &vdis);
        for task in plan(&world, &roomy()).ready {
            match task {
                Task::Remove { image } => {
                    prop_assert!(world.children(image).next().is_none() && world.vdi(image).is_none());
                }
                Task::Merge { from, into } => {
                    prop_assert!(world.children(into).eq([from]));
                    prop_assert!(world.vdi(from).is_none() && world.vdi(into).is_none());
                }
                Task::LeafMerge { vdi, from, into } => {
                    prop_assert!(world.children(into).eq([from]));
                    prop_assert!(world.children(from).next().is_none() && world.vdi(into).is_none());
                    prop_assert_eq!(world.vdi(from).map(|row| (row.uuid, row.kind)), Some((vdi, VdiKind::Disk)));
                }
            }
        }
    }

    /// Whatever changes, what is kept from one plan to the next leads to the plan of the whole tree.
    #[test]
    fn candidates_miss_nothing(steps in prop::collection::vec((0u8..6, 0u8..12, 0u8..12), 1..120)) {
        let mut world = World::default();
        let mut candidates = Candidates::of(&world);
        for (what, n, other) in steps {
            let mut touched = vec![id(n)];
            touched.extend(world.image(id(n)).and_then(|image| image.parent));
            // Parents come before their children, so that there is no cycle.
            let parent = (other < n).then_some(other);
            touched.extend(parent.map(id));
            let at = VdiUuid::from_bytes([n; 16]);
            world = match what {
                0 => world.with_image(n, parent, 1),
                1 if world.images.contains_key(&id(n)) => world.with_vdi(n, VdiKind::Disk),
                2 if world.images.contains_key(&id(n)) => world.with_vdi(n, VdiKind::Snapshot),
                3 if world.images.contains_key(&id(n)) => world.change(n, |image| {
                    image.state = if other < 6 { ImageState::Garbage } else { ImageState::Ok };
                }),
                4 => { world.vdis.remove(&at); world }
                _ => { world.vdis.remove(&at); world.images.remove(&id(n)); world }
            };
            touched.into_iter().for_each(|image| candidates.touched(&world, image));
            // Not planned after each change: what is touched in between adds up.
            if other % 3 == 0 {
                prop_assert_eq!(candidates.plan(&world, &roomy()), plan(&world, &roomy()));
            }
        }
        prop_assert_eq!(candidates.plan(&world, &roomy()), plan(&world, &roomy()));
    }
}
