//! What directories become, on small ones.

use super::*;
use catena_control::TroubleKind;

const fn id(n: u8) -> ImageId {
    ImageId::from_bytes([n; 16])
}

fn info(name: &str) -> ContainerInfo {
    ContainerInfo { name: name.to_owned(), length: Bytes(4096), allocated: Bytes(4096), modified: 0 }
}

fn image(name: &str, n: u8, parent: Option<u8>, hidden: bool) -> Found {
    let report = ImageReport {
        id: id(n),
        parent: parent.map(id),
        parent_names: Vec::new(),
        virtual_size: Bytes(2 << 20),
        hidden,
        foreign: false,
        owns_blocks: true,
        needs: Bytes(0),
        remarks: Vec::new(),
    };
    (info(name), Ok(report))
}

fn state_of(adoption: &Adoption, name: &str) -> ImageState {
    adoption.images.iter().find(|row| row.container == name).unwrap().state
}

#[test]
fn a_chain_becomes_base_copies_and_one_disk() {
    let uuid = "0b1d9c44-0000-4000-8000-000000000001";
    let leaf = format!("{uuid}.vhd");
    let adoption = adoption(vec![
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
    foreign.1.as_mut().unwrap().foreign = true;
    let adoption = adoption(vec![image("a.vhd", 1, None, false), image("b.vhd", 2, Some(1), false), foreign]);
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
    let broken =
        (info("x.vhd"), Err(Trouble { kind: TroubleKind::Damaged, message: "no footer".to_owned() }));
    let adoption = adoption(vec![
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
