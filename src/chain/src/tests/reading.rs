//! Reads, extents and streams of chains.

use super::{SECTORS, chain_of, layers, model};
use crate::testing::{Model, Put, TestLayer, content, disk_of, shown};
use crate::units::SECTOR;
use crate::{Chain, Error, Extent, Layer, Ownership, Piece, stream};
use catena_blockio::Container;
use catena_blockio::sim::{Errno, Fault, SimWorld};
use catena_types::{BLOCK_SECTORS, BlockIndex, Bytes, GuestOffset, SECTOR_BYTES};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The owner of every sector, as the map has it.
fn owners(chain: &Chain) -> Vec<Option<usize>> {
    let whole = GuestOffset(0)..GuestOffset(chain.virtual_size().0);
    let spans: Vec<_> = chain.extents(whole).unwrap().map(Result::unwrap).collect();
    assert!(spans.windows(2).all(|pair| pair[0].owner != pair[1].owner), "spans are maximal");
    spans
        .iter()
        .flat_map(|span| (0..span.len.0 / SECTOR_BYTES).map(|_| span.owner.map(crate::Slot::index)))
        .collect()
}

/// All of a range as a stream gives it; checks the order and that zeros are not owned.
fn streamed(chain: &Chain, range: std::ops::Range<u64>, chunk: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut last_was_zero = false;
    stream(chain, GuestOffset(range.start)..GuestOffset(range.end), Bytes(chunk), |at, piece| {
        assert_eq!(at.0, range.start + bytes.len() as u64);
        match piece {
            Piece::Zero(length) => {
                assert!(!last_was_zero, "neighbouring zeros are one piece");
                let mut spans = chain.extents(at..GuestOffset(at.0 + length.0)).unwrap();
                assert!(spans.all(|span| span.unwrap().owner.is_none()));
                bytes.resize(bytes.len() + usize::try_from(length.0).unwrap(), 0);
            }
            Piece::Data(data) => {
                assert!(data.len() as u64 <= chunk && at.0 / chunk == (at.0 + data.len() as u64 - 1) / chunk);
                bytes.extend_from_slice(data);
            }
        }
        last_was_zero = matches!(piece, Piece::Zero(_));
        Ok(())
    })
    .unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn a_chain_shows_the_topmost_owner_of_every_sector(
        models in prop_oneof![3 => prop::collection::vec(model(), 1..6), 1 => prop::collection::vec(model(), 30..=30)],
        ranges in prop::collection::vec((0..SECTORS * SECTOR_BYTES, 0u64..200_000), 10),
        chunk in prop::sample::select(vec![4096u64, 65_536, 1 << 20]),
    ) {
        let models: Vec<&Model> = models.iter().collect();
        let all = layers(&SimWorld::new(), &models);
        let expected = disk_of(&models);
        let by_walk: Vec<_> = (0..models[0].sectors).map(|at| shown(&models, at).map(|(index, _)| index)).collect();
        // The second budget holds one or two mixed blocks, so that nearly every look evicts another.
        for budget in [64 << 20, 9000] {
            let chain = chain_of(&all.iter().collect::<Vec<_>>(), budget);
            for &(start, length) in &ranges {
                let start = start.min(expected.len() as u64);
                let end = (start + length).min(expected.len() as u64);
                let mut read = vec![0xee; usize::try_from(end - start).unwrap()];
                chain.read(GuestOffset(start), &mut read).unwrap();
                let (from, to) = (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
                prop_assert!(read == expected[from..to], "bytes {start}..{end}");
                prop_assert!(streamed(&chain, start..end, chunk) == expected[from..to], "stream {start}..{end}");
            }
            prop_assert_eq!(&owners(&chain), &by_walk);
            chain.invalidate_all();
            prop_assert_eq!(&owners(&chain), &by_walk);
        }
    }
}

fn model_of(sectors: u64, puts: &[(std::ops::Range<u64>, u8)]) -> Model {
    let puts: Vec<Put> =
        puts.iter().map(|(sectors, tag)| Put { sectors: sectors.clone(), tag: *tag }).collect();
    Model::new(sectors, &puts)
}

#[test]
fn a_small_parent_hides_the_grandparent_past_its_end() {
    let (child, parent, grandparent) =
        (model_of(4000, &[]), model_of(1000, &[(900..1100, 2)]), model_of(4000, &[(0..4000, 3)]));
    let all = layers(&SimWorld::new(), &[&child, &parent, &grandparent]);
    let chain = chain_of(&[&all[0], &all[1], &all[2]], 1 << 20);
    let mut read = vec![0xee; 4000 * SECTOR];
    chain.read(GuestOffset(0), &mut read).unwrap();
    for (sector, tag) in [(899, 3), (900, 2), (999, 2), (1000, 0), (1099, 0), (1100, 0), (3999, 0)] {
        assert_eq!(read[sector * SECTOR..][..SECTOR], content(tag, sector as u64), "sector {sector}");
    }
}

#[test]
fn what_lies_past_the_end_of_the_leaf_cannot_be_read() {
    let all = layers(&SimWorld::new(), &[&model_of(10, &[]), &model_of(100, &[(0..100, 1)])]);
    let chain = chain_of(&[&all[0], &all[1]], 1 << 20);
    assert_eq!(chain.virtual_size(), Bytes(5120));
    assert!(matches!(chain.read(GuestOffset(5119), &mut [0; 2]), Err(Error::OutOfRange(_))));
    assert!(matches!(chain.read(GuestOffset(u64::MAX), &mut [0; 2]), Err(Error::OutOfRange(_))));
    assert!(chain.extents(GuestOffset(0)..GuestOffset(5121)).is_err());
    chain.read(GuestOffset(5120), &mut []).unwrap();
    assert!(matches!(Chain::new(Vec::new()), Err(Error::OutOfRange(_))));
}

#[test]
fn sectors_past_a_short_extent_read_as_zero() {
    let mut all =
        layers(&SimWorld::new(), &[&model_of(8192, &[(0..8192, 1)]), &model_of(8192, &[(0..8192, 2)])]);
    all[0].short.insert(BlockIndex(0), 1024);
    let chain = chain_of(&[&all[0], &all[1]], 1 << 20);
    let mut read = vec![0xee; 8192 * SECTOR];
    chain.read(GuestOffset(0), &mut read).unwrap();
    for (sector, tag) in [(0, 1), (1, 1), (2, 0), (4095, 0), (4096, 1), (8191, 1)] {
        assert_eq!(read[sector * SECTOR..][..SECTOR], content(tag, sector as u64), "sector {sector}");
    }
}

#[test]
fn neighbouring_sectors_are_read_in_one_request() {
    let world = SimWorld::new();
    // The parent's sectors around the child's one are apart, the rest of the block is one piece.
    let all = layers(
        &world,
        &[&model_of(4096, &[(100..101, 1)]), &model_of(4096, &[(0..2000, 2), (2000..4096, 3)])],
    );
    let chain = chain_of(&[&all[0], &all[1]], 1 << 20);
    let before = world.counts();
    chain.read(GuestOffset(0), &mut vec![0; 4096 * SECTOR]).unwrap();
    assert_eq!(world.counts().reads - before.reads, 3);
}

/// A layer that can be made to own nothing, behind the back of the chain it is in.
struct Emptied(TestLayer, AtomicBool);

impl Layer for Emptied {
    fn virtual_size(&self) -> Bytes {
        self.0.virtual_size()
    }

    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error> {
        if self.1.load(Ordering::Relaxed) { Ok(Ownership::Nothing) } else { self.0.ownership(block) }
    }

    fn locate(&self, block: BlockIndex) -> Option<Extent> {
        self.0.locate(block)
    }

    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.0.next_block(from)
    }

    fn container(&self) -> &dyn Container {
        self.0.container()
    }
}

#[test]
fn an_invalidated_block_is_looked_at_again() {
    let mut all =
        layers(&SimWorld::new(), &[&model_of(8192, &[(0..8192, 1)]), &model_of(8192, &[(0..8192, 2)])]);
    let leaf = Arc::new(Emptied(all.remove(0), AtomicBool::new(false)));
    let chain = Chain::new(vec![Arc::clone(&leaf) as Arc<dyn Layer>, Arc::new(all.remove(0))]).unwrap();
    let both = |first, second| [vec![Some(first); BLOCK_SECTORS], vec![Some(second); BLOCK_SECTORS]].concat();
    assert_eq!(owners(&chain), both(0, 0));
    leaf.1.store(true, Ordering::Relaxed);
    chain.invalidate(BlockIndex(1));
    assert_eq!(owners(&chain), both(0, 1));
    chain.invalidate_all();
    assert_eq!(owners(&chain), both(1, 1));
}

#[test]
fn the_first_error_ends_a_stream() {
    let world = SimWorld::new();
    let all = layers(&world, &[&model_of(SECTORS, &[(0..SECTORS, 1)])]);
    let chain = chain_of(&[&all[0]], 1 << 20);
    let whole = GuestOffset(0)..GuestOffset(SECTORS * SECTOR_BYTES);
    let mut calls = 0;
    let refused = stream(&chain, whole.clone(), Bytes(65_536), |_, _| {
        calls += 1;
        if calls == 3 { Err(Error::Stopped) } else { Ok(()) }
    });
    assert!(matches!(refused, Err(Error::Stopped)) && calls == 3);
    world.fail(Fault::nth(world.calls() + 20, Errno::EIO));
    let failed = stream(&chain, whole, Bytes(65_536), |_, _| Ok(()));
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
}
