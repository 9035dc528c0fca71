//! Tests that need whole layers: each compares with a plain table of sectors.

mod live;
mod live_merge;
mod merging;
mod reading;
mod writing;

use crate::testing::{Model, Put, TestLayer};
use crate::{Chain, Layer};
use catena_blockio::sim::{SimDisk, SimWorld};
use catena_types::{BLOCK_SECTORS, Bytes, GuestOffset};
use proptest::prelude::*;
use std::sync::Arc;

/// Sectors of the disks in these tests: two blocks and a bit.
const SECTORS: u64 = 2 * BLOCK_SECTORS as u64 + 21;

/// Where and how much a write puts: pages and odd sectors, short and long, all over the disk.
fn puts() -> impl Strategy<Value = Vec<Put>> {
    let length = prop_oneof![3 => 1u64..40, 1 => 40u64..3000, 1 => Just(2 * BLOCK_SECTORS as u64)];
    let put = (0..SECTORS, length, any::<bool>(), 1u8..255).prop_map(|(start, length, pages, tag)| {
        let start = if pages { start / 8 * 8 } else { start };
        let length = if pages { length.next_multiple_of(8) } else { length };
        Put { sectors: start..(start + length).min(SECTORS), tag }
    });
    prop::collection::vec(put, 0..6)
}

/// Single pages all over the disk: what a fragmented child looks like.
fn scattered() -> impl Strategy<Value = Vec<Put>> {
    prop::collection::vec((0..SECTORS / 8, 1u8..255), 80..160).prop_map(|pages| {
        pages.into_iter().map(|(page, tag)| Put { sectors: page * 8..page * 8 + 8, tag }).collect()
    })
}

/// A layer of full size, or a smaller one (that may own sectors past its own end).
fn model() -> impl Strategy<Value = Model> {
    let size = prop_oneof![3 => Just(SECTORS), 1 => 1..SECTORS];
    (size, prop_oneof![4 => puts(), 1 => scattered()]).prop_map(|(size, puts)| Model::new(size, &puts))
}

fn full_size() -> impl Strategy<Value = Model> {
    prop_oneof![4 => puts(), 1 => scattered()].prop_map(|puts| Model::new(SECTORS, &puts))
}

/// The layers of these models on disks of one machine, in the same order.
fn layers(world: &Arc<SimWorld>, models: &[&Model]) -> Vec<TestLayer> {
    models.iter().map(|model| model.layer(SimDisk::automatic(world))).collect()
}

fn chain_of(layers: &[&TestLayer], budget: u64) -> Chain {
    let layers = layers.iter().map(|&layer| Arc::new(layer.clone()) as Arc<dyn Layer>).collect();
    Chain::with_budget(layers, Bytes(budget)).unwrap()
}

/// All that a chain of these shows.
fn read_all(layers: &[&TestLayer]) -> Vec<u8> {
    let chain = chain_of(layers, 1 << 20);
    let mut bytes = vec![1; usize::try_from(chain.virtual_size().0).unwrap()];
    chain.read(GuestOffset(0), &mut bytes).unwrap();
    bytes
}
