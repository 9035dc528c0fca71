//! Random commits against a model: what is accepted, what is refused, and what is there after every way of reopening.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use catena_catalog::{Catalog, Change, Error, Meta};
use catena_types::{
    AttachMode, AttachmentRecord, Bytes, Effects, ErrorName, Failure, FileOffset, HeaderPatch, ImageId,
    ImageRecord, ImageState, JobRecord, JobState, Made, PatchWrite, Step, VdiKind, VdiRecord, VdiUuid, Work,
};
use common::{attachment, event, image, image_id, job, meta, vdi, vdi_id};
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use tempfile::TempDir;

/// What the catalog should hold, in the plainest form.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    meta: Meta,
    images: BTreeMap<ImageId, ImageRecord>,
    vdis: BTreeMap<VdiUuid, VdiRecord>,
    attachments: BTreeMap<VdiUuid, AttachmentRecord>,
    jobs: BTreeMap<u64, JobRecord>,
    events: Vec<String>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::PutImage(image) => drop(self.images.insert(image.id, image)),
            Change::RemoveImage(id) => drop(self.images.remove(&id)),
            Change::PutVdi(vdi) => drop(self.vdis.insert(vdi.uuid, vdi)),
            Change::RemoveVdi(id) => drop(self.vdis.remove(&id)),
            Change::PutAttachment(row) => drop(self.attachments.insert(row.vdi, row)),
            Change::RemoveAttachment(vdi) => drop(self.attachments.remove(&vdi)),
            Change::PutJob(job) => drop(self.jobs.insert(job.id, job)),
            Change::RemoveJob(id) => drop(self.jobs.remove(&id)),
            Change::PutMeta(meta) => self.meta = meta,
            Change::Event(event) => self.events.push(event.message),
        }
    }

    /// The invariants over everything, without any index.
    fn is_valid(&self) -> bool {
        let read = |image: &&ImageRecord| image.state != ImageState::Garbage;
        let has_child = |id| self.images.values().filter(read).any(|image| image.parent == Some(id));
        let users = |id| self.vdis.values().filter(|vdi| vdi.image == id).count();
        let vdis = self.vdis.values().all(|vdi| {
            self.images.contains_key(&vdi.image) && !has_child(vdi.image) && users(vdi.image) == 1
        });
        let used = |image: &ImageRecord| matches!(image.state, ImageState::Ok | ImageState::Mixed);
        let parents = self.images.values().all(|image| match image.parent {
            Some(parent) if !self.images.contains_key(&parent) => !used(image),
            _ => !self.falls_through_to_itself(image),
        });
        vdis && parents && self.attachments.keys().all(|vdi| self.vdis.contains_key(vdi))
    }

    fn falls_through_to_itself(&self, image: &ImageRecord) -> bool {
        let mut at = image.parent;
        for _ in 0..=self.images.len() {
            match at {
                None => return false,
                Some(id) => at = self.images.get(&id).and_then(|image| image.parent),
            }
        }
        true
    }
}

fn assert_equal(catalog: &Catalog, model: &Model) {
    let state = catalog.state();
    assert_eq!(*state.meta, model.meta);
    assert!(state.images.values().map(|image| &**image).eq(model.images.values()));
    assert!(state.vdis.values().map(|vdi| &**vdi).eq(model.vdis.values()));
    assert!(state.attachments.values().map(|row| &**row).eq(model.attachments.values()));
    assert!(state.jobs.values().map(|job| &**job).eq(model.jobs.values()));
    let events = catalog.events(None, None, usize::MAX).unwrap();
    assert!(events.iter().map(|event| &event.message).eq(&model.events));
    assert!(events.iter().map(|event| event.id).eq(1..=state.last_event));
}

fn states() -> impl Strategy<Value = ImageState> {
    use ImageState::{Corrupt, Garbage, Missing, Mixed, Ok, Orphan};
    prop_oneof![6 => Just(Ok), 1 => Just(Mixed), 3 => Just(Garbage), 1 => Just(Orphan), 1 => Just(Corrupt), 1 => Just(Missing)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z'\"\\\\%é\u{1F600}\n]{1,12}"]
}

fn times() -> impl Strategy<Value = Timestamp> {
    (0i64..4_000_000_000, 0i32..1_000_000_000)
        .prop_map(|(second, nano)| Timestamp::new(second, nano).unwrap())
}

fn jobs() -> impl Strategy<Value = JobRecord> {
    (1u64..12, text(), times(), 0u64..1 << 62, any::<bool>(), prop::option::of(text())).prop_map(
        |(id, phase, time, bytes, flag, request_id)| JobRecord {
            work: if flag {
                Work::Merge { from: image_id(1), into: image_id(2), cursor: bytes }
            } else {
                Work::Scan
            },
            state: if flag { JobState::Failed } else { JobState::Queued },
            committed: flag,
            effects: Effects {
                sizes: Vec::new(),
                makes: vec![Made { image: image_id(3), container: phase.clone() }],
                steps: vec![Step::Reparent {
                    images: vec![image_id(4)],
                    patches: vec![HeaderPatch {
                        image: image_id(4),
                        writes: vec![PatchWrite { at: FileOffset(bytes), hex: "00ff".into() }],
                    }],
                }],
            },
            bytes_done: Bytes(bytes),
            error: flag
                .then(|| Failure::new(ErrorName::NoSpace, phase.clone()).object("bytes_missing", bytes)),
            retry_at: flag.then_some(time),
            answer: flag.then(|| serde_json::json!({ "uuid": phase, "n": [1, null] })),
            request_id,
            updated: time,
            phase,
            ..job(id)
        },
    )
}

fn metas() -> impl Strategy<Value = Meta> {
    (text(), any::<bool>(), prop::option::of(times()), prop::collection::btree_map(text(), text(), 0..3))
        .prop_map(|(name_label, coalesce_paused, paused_until, other)| Meta {
            name_label,
            coalesce_paused,
            paused_until,
            other,
            ..meta()
        })
}

fn images() -> impl Strategy<Value = ImageRecord> {
    (0u32..8, prop::option::of(0u32..8), states(), text(), any::<bool>(), 0u64..1 << 63).prop_map(
        |(number, parent, state, container, flag, size)| ImageRecord {
            state,
            container,
            hidden: flag,
            foreign: !flag,
            virtual_size: Bytes(size),
            ..image(number, parent)
        },
    )
}

fn vdis() -> impl Strategy<Value = VdiRecord> {
    (0u32..5, 0u32..8, text(), times(), prop::option::of(0u32..5)).prop_map(
        |(number, of, name_label, created, snapshot_of)| VdiRecord {
            name_label,
            created,
            kind: if snapshot_of.is_some() { VdiKind::Snapshot } else { VdiKind::Disk },
            snapshot_of: snapshot_of.map(vdi_id),
            ..vdi(number, of)
        },
    )
}

fn attachments() -> impl Strategy<Value = AttachmentRecord> {
    (0u32..5, any::<bool>(), 1u32.., text(), times()).prop_map(|(number, writes, count, boot, since)| {
        let mode = if writes { AttachMode::ReadWrite } else { AttachMode::ReadOnly };
        AttachmentRecord { mode, count, boot, since, ..attachment(number) }
    })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        5 => images().prop_map(Change::PutImage),
        3 => (0u32..8).prop_map(|number| Change::RemoveImage(image_id(number))),
        5 => vdis().prop_map(Change::PutVdi),
        2 => (0u32..5).prop_map(|number| Change::RemoveVdi(vdi_id(number))),
        3 => attachments().prop_map(Change::PutAttachment),
        2 => (0u32..5).prop_map(|number| Change::RemoveAttachment(vdi_id(number))),
        2 => jobs().prop_map(Change::PutJob),
        1 => (1u64..12).prop_map(Change::RemoveJob),
        1 => metas().prop_map(Change::PutMeta),
        2 => (0i64..9, text()).prop_map(|(second, message)| Change::Event(event(second, &message))),
    ];
    prop::collection::vec(change, 1..4)
}

/// What happens after a commit.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Close,
    Die,
    Idle,
}

fn thens() -> impl Strategy<Value = Then> {
    prop_oneof![12 => Just(Then::Nothing), 1 => Just(Then::Close), 1 => Just(Then::Die), 1 => Just(Then::Idle)]
}

fn run(steps: Vec<(Vec<Change>, Then)>) {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let mut catalog = Catalog::create(dir.path(), meta()).unwrap();
    let mut model = Model {
        meta: meta(),
        images: BTreeMap::new(),
        vdis: BTreeMap::new(),
        attachments: BTreeMap::new(),
        jobs: BTreeMap::new(),
        events: Vec::new(),
    };
    let mut last_job = 0;
    for (changes, then) in steps {
        let mut next = model.clone();
        changes.iter().for_each(|change| next.apply(change));
        let numbers = changes.iter().filter_map(|change| match change {
            Change::PutJob(job) => Some(job.id),
            _ => None,
        });
        let highest = numbers.max().unwrap_or(0);
        match catalog.commit(changes) {
            Ok(ids) => {
                assert!(next.is_valid(), "accepted what breaks an invariant");
                assert_eq!(ids.len(), next.events.len() - model.events.len());
                last_job = last_job.max(highest);
                model = next;
            }
            Err(Error::Violation(violation)) => assert!(!next.is_valid(), "refused: {violation}"),
            Err(error) => panic!("{error}"),
        }
        match then {
            Then::Nothing => {}
            Then::Idle => catalog.make_room(100_000).unwrap(),
            Then::Close => {
                catalog.close().unwrap();
                catalog = Catalog::open(dir.path()).unwrap();
                assert_eq!(catalog.next_job_id(), last_job + 1);
            }
            Then::Die => {
                drop(catalog);
                catalog = Catalog::open(dir.path()).unwrap();
                assert_eq!(catalog.next_job_id(), last_job + 1);
            }
        }
        assert_equal(&catalog, &model);
    }
    drop(catalog);
    assert_equal(&Catalog::open(dir.path()).unwrap(), &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_model(steps in prop::collection::vec((changes(), thens()), 1..60)) {
        run(steps);
    }
}
