//! Writes at any byte.

use super::{SECTORS, chain_of, layers, model, read_all};
use crate::testing::{Model, assert_same, disk_of};
use crate::{Error, Layer, LayerMut, write};
use catena_blockio::sim::SimWorld;
use catena_types::{GuestOffset, SECTOR_BYTES};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_not_written_reads_as_before(
        models in prop::collection::vec(model(), 1..4),
        writes in prop::collection::vec(
            (0..SECTORS * SECTOR_BYTES, prop_oneof![0u64..2000, 0u64..3_000_000], any::<bool>()), 1..8),
    ) {
        let models: Vec<&Model> = models.iter().collect();
        let mut expected = disk_of(&models);
        let mut all = layers(&SimWorld::new(), &models);
        let below: Vec<_> = all.split_off(1);
        let mut leaf = all.remove(0);
        let chain = (!below.is_empty()).then(|| chain_of(&below.iter().collect::<Vec<_>>(), 1 << 20));
        for (number, (start, length, aligned)) in writes.into_iter().enumerate() {
            let unit = if aligned { SECTOR_BYTES } else { 1 };
            let start = usize::try_from(start / unit * unit).unwrap().min(expected.len());
            let length = usize::try_from(length / unit * unit).unwrap().min(expected.len() - start);
            let data = vec![0x40 + u8::try_from(number).unwrap(); length];
            write(&mut leaf, chain.as_ref(), GuestOffset(start as u64), &data).unwrap();
            expected[start..start + length].copy_from_slice(&data);
        }
        leaf.flush().unwrap();
        let mut whole = vec![&leaf];
        whole.extend(&below);
        assert_same(&read_all(&whole), &expected, "after the writes");
    }
}

#[test]
fn nothing_is_written_past_the_end() {
    let mut leaf = layers(&SimWorld::new(), &[&Model::new(10, &[])]).remove(0);
    assert!(matches!(write(&mut leaf, None, GuestOffset(5119), &[1; 2]), Err(Error::OutOfRange(_))));
    assert!(matches!(write(&mut leaf, None, GuestOffset(u64::MAX), &[1; 2]), Err(Error::OutOfRange(_))));
    assert_eq!(leaf.next_block(catena_types::BlockIndex(0)), None);
}
