//! Chains of images with random content, and what they hold.

use super::rig::{image, make};
use catena_blockio::Container;
use catena_blockio::sim::{Rng, SimDisk, SimWorld};
use catena_chain::{Chain, Layer, write};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, GuestOffset};
use catena_vhd::Mode;
use std::sync::Arc;

/// Blocks of a disk.
pub(super) const BLOCKS: u64 = 3;
pub(super) const SIZE: u64 = BLOCKS * BLOCK_BYTES;

/// So many images, root first, with random writes in each; durable.
pub(super) fn chain(
    world: &Arc<SimWorld>,
    rng: &mut Rng,
    count: usize,
    leaf_is_empty: bool,
) -> Vec<Arc<SimDisk>> {
    let disks: Vec<_> = (0..count).map(|_| SimDisk::automatic(world)).collect();
    for (n, disk) in disks.iter().enumerate() {
        make(disk, n, n.checked_sub(1), Bytes(SIZE));
        let container: Arc<dyn Container> = disk.clone();
        let mut image = image(&container, Mode::ReadWrite);
        let writes = if leaf_is_empty && n + 1 == count { 0 } else { 4 };
        for _ in 0..writes {
            let sector = rng.below(SIZE / 512 - 300);
            let fill = u8::try_from(rng.below(255)).unwrap() + 1;
            let bytes = vec![fill; usize::try_from(512 * (1 + rng.below(299))).unwrap()];
            write(&mut image, None, GuestOffset(sector * 512), &bytes).unwrap();
        }
        image.close().unwrap();
    }
    disks
}

/// What images (root first) read as.
pub(super) fn content(disks: &[Arc<SimDisk>]) -> Vec<u8> {
    let open = |disk: &Arc<SimDisk>| {
        let container: Arc<dyn Container> = disk.clone();
        Arc::new(image(&container, Mode::ReadOnly)) as Arc<dyn Layer>
    };
    let chain = Chain::new(disks.iter().rev().map(open).collect()).unwrap();
    let mut bytes = vec![0; usize::try_from(chain.virtual_size().0).unwrap()];
    chain.read(GuestOffset(0), &mut bytes).unwrap();
    bytes
}

/// Which sectors these images own.
pub(super) fn owned(disks: &[Arc<SimDisk>]) -> Vec<bool> {
    let mut owned = vec![false; usize::try_from(SIZE / 512).unwrap()];
    for disk in disks {
        let container: Arc<dyn Container> = disk.clone();
        let image = image(&container, Mode::ReadOnly);
        for block in 0..u32::try_from(BLOCKS).unwrap() {
            for run in image.ownership(BlockIndex(block)).unwrap().to_set().runs() {
                let start = usize::try_from(block).unwrap() * 4096;
                owned[start + run.start..start + run.end].fill(true);
            }
        }
    }
    owned
}
