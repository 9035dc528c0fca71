//! What a merge needs is known before it begins: the parent's file ends exactly there afterwards, and a device of that size takes
//! everything in, where a smaller one refuses.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use catena_blockio::Container;
use catena_chain::{Error, Layer, LayerMut, copy};
use catena_types::{Bytes, GuestOffset};
use catena_vhd::{CreateSpec, Image, Mode, create};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{Memory, child_spec, put, read_block, spec};

/// Goes on to the end.
struct Unwatched;

impl catena_chain::Progress for Unwatched {
    fn planned(&mut self, _: Bytes) {}

    fn allowance(&mut self) -> Bytes {
        Bytes(u64::MAX)
    }

    fn go_on(&mut self, _: Bytes) -> bool {
        true
    }

    fn checkpoint(&mut self, _: GuestOffset, _: Bytes) -> Result<(), Error> {
        Ok(())
    }
}

/// An image with these blocks.
fn image_on(disk: &Arc<Memory>, spec: &CreateSpec, blocks: &BTreeSet<u32>, fill: u8) -> Image {
    create(&**disk, spec).unwrap();
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    for block in blocks {
        put(&mut image, *block, 3..9, fill).unwrap();
    }
    image.commit().unwrap();
    image.close().unwrap();
    Image::open(disk.clone(), Mode::ReadWrite).unwrap()
}

fn merge(from: &Image, mut into: Image) -> Result<(), Error> {
    if into.virtual_size() < from.virtual_size() {
        into.grow(from.virtual_size())?;
    }
    copy(from, &mut into, GuestOffset(0), &mut Unwatched)?;
    Ok(into.close()?)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_merge_needs_what_was_said(
        below in prop::collection::btree_set(0_u32..20, 0..12),
        above in prop::collection::btree_set(0_u32..30, 0..12),
        sizes in prop::sample::select(&[(40, 60), (60, 60), (40, 4000), (40, 40_000)][..]),
        long_table in any::<bool>(),
    ) {
        let table_size = long_table.then_some(Bytes(2040 << 30));
        let parent = CreateSpec { id: support::PARENT, table_size, ..spec(sizes.0) };
        let child = image_on(&Memory::new(), &child_spec(sizes.1), &above, 2);

        let file = Memory::new();
        let into = image_on(&file, &parent, &below, 1);
        let needed = into.room_for(&child);
        merge(&child, into).unwrap();
        prop_assert_eq!(file.size().unwrap(), needed);

        let exact = Memory::device(needed.0);
        let into = image_on(&exact, &parent, &below, 1);
        prop_assert_eq!(into.room_for(&child), needed);
        let content = |chain: &[&Image]| (0..20).map(|block| read_block(chain, block)).collect::<Vec<_>>();
        let before = content(&[&child, &into]);
        merge(&child, into).unwrap();
        let merged = Image::open(exact.clone(), Mode::ReadOnly).unwrap();
        prop_assert!(content(&[&merged]) == before);
        prop_assert!(support::errors(&*exact).is_empty());

        let now = Image::open(file, Mode::ReadOnly).unwrap().info().physical_end;
        prop_assert_eq!(now, needed);
        let short = Memory::device(needed.0 - 512);
        if !above.is_subset(&below) {
            let into = image_on(&short, &parent, &below, 1);
            let refused = merge(&child, into).unwrap_err();
            prop_assert_eq!(refused.raw_os_error(), Some(28), "a sector less is refused: {}", refused);
        }
    }
}
