//! What lost SRs become, on small ones.

use super::*;
use catena_catalog::{Change, Meta};
use catena_sr_api::ContainerInfo;
use catena_types::{Bytes, Format};
use jiff::Timestamp;

const fn id(n: u8) -> ImageId {
    ImageId::from_bytes([n; 16])
}

const fn uuid(n: u8) -> VdiUuid {
    VdiUuid::from_bytes([n; 16])
}

fn image(n: u8, parent: Option<u8>, hidden: bool) -> Found {
    let name = format!("{n}.vhd");
    let report = ImageReport {
        id: id(n),
        format: Format::Vhd,
        parent: parent.map(id),
        parent_names: Vec::new(),
        virtual_size: Bytes(2 << 20),
        hidden,
        foreign: false,
        owns_blocks: true,
        needs: Bytes(0),
        remarks: Vec::new(),
    };
    let info = ContainerInfo { name, length: Bytes(4096), allocated: Bytes(4096), modified: 0 };
    Found { info, disk: n.to_string(), report: Ok(report) }
}

fn empty(n: u8, parent: u8) -> Found {
    let mut found = image(n, Some(parent), false);
    found.report.as_mut().unwrap().owns_blocks = false;
    found
}

/// Labels of images: image and disk.
fn labels(pairs: &[(u8, u8)]) -> BTreeMap<String, Labels> {
    let of = |n: u8, vdi: u8| labels::of(&new_vdi(uuid(vdi), id(n), format!("disk {vdi}"), VdiKind::Disk));
    pairs.iter().map(|&(n, vdi)| (format!("{n}.vhd"), of(n, vdi))).collect()
}

/// A copy with these images (and parents) and these disks.
fn copy(images: &[(u8, Option<u8>, ImageState)], disks: &[(u8, u8)]) -> State {
    let meta = Meta {
        sr: SrUuid::random(),
        name_label: String::new(),
        name_description: String::new(),
        created: Timestamp::now(),
        coalesce_paused: false,
        paused_until: None,
        other: BTreeMap::new(),
    };
    let row = |&(n, parent, state): &(u8, Option<u8>, ImageState)| ImageRecord {
        id: id(n),
        parent: parent.map(id),
        format: Format::Vhd,
        container: format!("{n}.vhd"),
        virtual_size: Bytes(2 << 20),
        allocated: Bytes(0),
        state,
        hidden: false,
        foreign: false,
    };
    let mut changes: Vec<Change> = images.iter().map(row).map(Change::PutImage).collect();
    changes.extend(
        disks
            .iter()
            .map(|&(n, vdi)| Change::PutVdi(new_vdi(uuid(vdi), id(n), format!("disk {vdi}"), VdiKind::Disk))),
    );
    State::preview(meta, &changes)
}

/// Images and their disks.
fn disks(adoption: &Adoption) -> BTreeMap<ImageId, VdiUuid> {
    adoption.vdis.iter().map(|vdi| (vdi.image, vdi.uuid)).collect()
}

fn state(adoption: &Adoption, n: u8) -> ImageState {
    adoption.images.iter().find(|row| row.id == id(n)).unwrap().state
}

/// A catalog takes the rows.
fn accepted(adoption: &Adoption) {
    let changes: Vec<Change> = adoption.changes().collect();
    let home = tempfile::tempdir().unwrap();
    let meta = (*copy(&[], &[]).meta).clone();
    catena_catalog::Catalog::create(home.path(), meta).unwrap().commit(changes).unwrap();
}

#[test]
fn labels_name_the_disks() {
    let found = vec![image(1, None, true), image(2, Some(1), false), image(3, Some(1), false)];
    let adoption = rebuild(found, &labels(&[(2, 20), (3, 30)]), None);
    assert_eq!(disks(&adoption), BTreeMap::from([(id(2), uuid(20)), (id(3), uuid(30))]));
    assert_eq!(state(&adoption, 1), ImageState::Ok, "no merge goes into what has two children");
    assert!(adoption.findings.is_empty(), "{:?}", adoption.findings);
    accepted(&adoption);
}

#[test]
fn a_base_with_one_child_may_be_mixed() {
    let adoption = rebuild(vec![image(1, None, true), image(2, Some(1), false)], &labels(&[(2, 20)]), None);
    assert_eq!(state(&adoption, 1), ImageState::Mixed);
    accepted(&adoption);
}

#[test]
fn a_crash_in_a_snapshot_or_merge_is_seen_from_either_side() {
    // A snapshot: the new leaf is labelled, the base below still is, and is not hidden yet.
    let snapshot = vec![image(1, None, false), empty(2, 1), empty(3, 1)];
    let adoption = rebuild(snapshot, &labels(&[(1, 20), (2, 20), (3, 30)]), None);
    assert_eq!(disks(&adoption), BTreeMap::from([(id(2), uuid(20)), (id(3), uuid(30))]));
    accepted(&adoption);
    // A merged leaf that owns nothing any more: it is as good as its parent.
    let merged = vec![image(1, None, false), empty(2, 1)];
    let adoption = rebuild(merged, &labels(&[(1, 20)]), None);
    assert_eq!(disks(&adoption), BTreeMap::from([(id(2), uuid(20))]));
    accepted(&adoption);
    // Labelled and still hidden: the flag comes last.
    let adoption = rebuild(vec![image(1, None, true)], &labels(&[(1, 20)]), None);
    assert_eq!(disks(&adoption), BTreeMap::from([(id(1), uuid(20))]));
    accepted(&adoption);
    // Something left over hangs from a disk that was written to since.
    let leftover = vec![image(1, None, false), image(2, Some(1), false)];
    let adoption = rebuild(leftover, &labels(&[(1, 20)]), None);
    assert_eq!(disks(&adoption), BTreeMap::from([(id(1), uuid(20))]));
    assert_eq!(state(&adoption, 2), ImageState::Orphan);
    accepted(&adoption);
}

#[test]
fn contradictions_lose_nothing() {
    // The base is hidden, so writes went to a child, and nothing says to which: both are kept as disks of their own.
    let found = vec![image(1, None, true), image(2, Some(1), false), image(3, Some(1), false)];
    let adoption = rebuild(found, &labels(&[(1, 20)]), None);
    assert_eq!(adoption.vdis.len(), 2);
    assert!(adoption.findings.iter().any(|finding| finding.severity == Severity::Error));
    accepted(&adoption);
    let adoption =
        rebuild(vec![image(1, None, false), image(2, None, false)], &labels(&[(1, 20), (2, 20)]), None);
    assert_eq!(adoption.vdis.len(), 2);
    assert!(disks(&adoption).values().any(|disk| *disk == uuid(20)));
    accepted(&adoption);
}

#[test]
fn what_cannot_be_placed_is_an_orphan() {
    let mut foreign = image(7, None, false);
    foreign.report.as_mut().unwrap().foreign = true;
    let found = vec![
        image(1, None, true),
        image(2, Some(99), false),
        foreign,
        image(4, None, false),
        image(5, Some(4), true),
    ];
    let adoption = rebuild(found, &labels(&[(4, 40)]), None);
    for n in [1, 2, 5, 7] {
        assert_eq!(state(&adoption, n), ImageState::Orphan, "{n}");
    }
    assert_eq!(disks(&adoption), BTreeMap::from([(id(4), uuid(40))]));
    accepted(&adoption);
}

#[test]
fn the_copy_names_what_has_no_label() {
    let old = copy(
        &[
            (1, None, ImageState::Ok),
            (2, Some(1), ImageState::Ok),
            (3, Some(1), ImageState::Ok),
            (4, None, ImageState::Garbage),
            (5, None, ImageState::Ok),
            (9, None, ImageState::Ok),
            (10, Some(9), ImageState::Ok),
        ],
        &[(2, 20), (3, 30), (5, 50), (10, 100)],
    );
    // Since the copy: of 2 and 3 one was merged into 1 and the other is gone, 10 was merged into 9, 8 was made, and 5 has become
    // a base copy.
    let found = vec![
        image(1, None, false),
        image(4, None, false),
        image(5, None, true),
        image(6, Some(5), false),
        image(8, None, false),
        image(9, None, false),
    ];
    let adoption = rebuild(found, &labels(&[(8, 80)]), Some(&old));
    let disks = disks(&adoption);
    assert_eq!((disks.len(), disks[&id(8)], disks[&id(9)]), (4, uuid(80), uuid(100)));
    assert!(![uuid(20), uuid(30)].contains(&disks[&id(1)]), "whose it is cannot be known");
    assert_eq!(state(&adoption, 4), ImageState::Orphan);
    assert!(adoption.vdis.iter().any(|vdi| vdi.image == id(6) && vdi.name_label == "6"));
    assert_eq!(adoption.findings.iter().filter(|finding| finding.problem.contains("not found")).count(), 3);
    accepted(&adoption);
}
