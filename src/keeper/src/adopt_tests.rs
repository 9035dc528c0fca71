//! What directories become, on small ones.

use super::*;
use catena_control::TroubleKind;

const fn id(n: u8) -> ImageId {
    ImageId::from_bytes([n; 16])
}

fn info(name: &str) -> ContainerInfo {
    ContainerInfo { name: name.to_owned(), length: Bytes(4096), allocated: Bytes(4096), modified: 0 }
}

fn found(name: &str, report: Result<ImageReport, Trouble>) -> Found {
    let disk = name.trim_end_matches(".vhd").to_owned();
    Found { info: info(name), disk, report }
}

fn image(name: &str, n: u8, parent: Option<u8>, hidden: bool) -> Found {
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
    found(name, Ok(report))
}

fn adopted(found: Vec<Found>) -> Adoption {
    adoption(found, &BTreeMap::new())
}

fn state_of(adoption: &Adoption, name: &str) -> ImageState {
    adoption.images.iter().find(|row| row.container == name).unwrap().state
}

#[test]
fn a_chain_becomes_base_copies_and_one_disk() {
    let uuid = "0b1d9c44-0000-4000-8000-000000000001";
    let leaf = format!("{uuid}.vhd");
    let adoption = adopted(vec![
        image("a.vhd", 1, None, true),
        image("b.vhd", 2, Some(1), true),
        image(&leaf, 3, Some(2), false),
    ]);
    assert!(adoption.findings.is_empty() && adoption.leaves.is_empty());
    assert_eq!(adoption.vdis.len(), 1);
    assert_eq!(adoption.vdis[0].uuid.to_string(), uuid);
    assert_eq!((adoption.vdis[0].image, adoption.vdis[0].name_label.as_str()), (id(3), uuid));
}

#[test]
fn a_visible_parent_and_a_foreign_disk_get_an_empty_leaf() {
    let mut foreign = image("qemu.vhd", 9, None, false);
    foreign.report.as_mut().unwrap().foreign = true;
    let adoption = adopted(vec![image("a.vhd", 1, None, false), image("b.vhd", 2, Some(1), false), foreign]);
    assert_eq!(adoption.vdis.len(), 3);
    assert_eq!(
        adoption.leaves.iter().map(|leaf| leaf.parent).collect::<Vec<_>>(),
        [Some(id(1)), Some(id(9))]
    );
    let disk = adoption.vdis.iter().find(|vdi| vdi.name_label == "a").unwrap();
    assert_eq!(disk.image, adoption.leaves[0].id);
    assert!(adoption.findings.iter().all(|finding| finding.severity == Severity::Info));
}

#[test]
fn what_belongs_to_no_disk_is_kept_as_an_orphan() {
    let broken = found("x.vhd", Err(Trouble { kind: TroubleKind::Damaged, message: "no footer".to_owned() }));
    let adoption = adopted(vec![
        image("hidden.vhd", 1, None, true),
        image("lost.vhd", 2, Some(77), true),
        image("child.vhd", 3, Some(2), false),
        image("one.vhd", 4, None, false),
        image("two.vhd", 4, None, false),
        image("loop.vhd", 5, Some(6), false),
        image("pool.vhd", 6, Some(5), false),
        broken,
    ]);
    for name in ["hidden.vhd", "lost.vhd", "child.vhd", "two.vhd", "loop.vhd", "pool.vhd", "x.vhd"] {
        assert_eq!(state_of(&adoption, name), ImageState::Orphan, "{name}");
    }
    assert_eq!(state_of(&adoption, "one.vhd"), ImageState::Ok);
    assert_eq!(adoption.vdis.len(), 1);
    let ids: BTreeSet<ImageId> = adoption.images.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), adoption.images.len(), "every row has an id of its own");
}

/// A raw disk of another manager, whose name says that it is the `n`-th.
fn raw(n: u8) -> Found {
    let mut raw = image(&format!("LV-{n}"), 0, None, false);
    let report = raw.report.as_mut().unwrap();
    (report.id, report.format, report.foreign) = (ImageId::NONE, Format::Raw, true);
    raw
}

/// An image whose header names its parent, and has no id of it.
fn of_named(name: &str, n: u8, parent: &str) -> Found {
    let mut found = image(name, n, Some(0), false);
    found.report.as_mut().unwrap().parent_names = vec!["else".to_owned(), parent.to_owned()];
    found
}

#[test]
fn raw_disks_are_found_by_the_names_that_their_children_have_of_them() {
    let mut found = vec![
        raw(1),
        raw(2),
        of_named("a.vhd", 11, "./LV-1"),
        of_named("b.vhd", 12, "/dev/mapper/VG_XenStorage--7-LV--1"),
        of_named("c.vhd", 13, "LV-3"),
        of_named("d.vhd", 14, "XLV-1"),
    ];
    name_raw_disks(&mut found, |name| {
        let number = name.strip_prefix("LV-")?.parse().ok()?;
        Some(RawDisk { id: id(number), hidden: number == 1 })
    });
    let adoption = adopted(found);
    let parent = |n| adoption.images.iter().find(|row| row.id == id(n)).unwrap().parent;
    assert_eq!((parent(11), parent(12)), (Some(id(1)), Some(id(1))));
    for name in ["c.vhd", "d.vhd"] {
        assert_eq!(state_of(&adoption, name), ImageState::Orphan, "{name} has no parent");
    }
    let root = adoption.images.iter().find(|row| row.id == id(1)).unwrap();
    assert!(root.format == Format::Raw && root.foreign && root.hidden && root.state == ImageState::Ok);
    // A raw disk of its own is never written to either.
    assert_eq!(adoption.leaves.iter().map(|leaf| leaf.parent).collect::<Vec<_>>(), [Some(id(2))]);
    assert_eq!(adoption.vdis.len(), 3);
}
