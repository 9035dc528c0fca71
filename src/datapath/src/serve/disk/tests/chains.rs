//! Chains of images with random content, and what they hold.

use super::rig::{image, make};
use catena_blockio::Container;
use catena_blockio::sim::{Rng, SimDisk, SimWorld, find_stale};
use catena_chain::{Chain, Layer, write};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, GuestOffset};
use catena_vhd::Mode;
use std::sync::Arc;

/// Blocks of a disk.
pub(super) const BLOCKS: u64 = 3;
pub(super) const SIZE: u64 = BLOCKS * BLOCK_BYTES;

/// What images are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Files,
    /// Devices on which others have left their bytes, with room for every block.
    Devices,
    /// The same; but a new leaf has no room for any, and asks for it.
    SmallDevices,
}

impl On {
    /// For an image of a chain that is there.
    fn disk(self, world: &Arc<SimWorld>) -> Arc<SimDisk> {
        match self {
            Self::Files => SimDisk::automatic(world),
            Self::Devices | Self::SmallDevices => SimDisk::used(world, device_for(BLOCKS)),
        }
    }

    /// For a new leaf.
    pub(super) fn leaf(self, world: &Arc<SimWorld>) -> Arc<SimDisk> {
        if self == Self::SmallDevices { SimDisk::used(world, device_for(0)) } else { self.disk(world) }
    }
}

/// The size of a device that has room for so many blocks: metadata, blocks with their bitmaps and gaps, footer; and a little that is
/// of no use.
pub(super) const fn device_for(blocks: u64) -> Bytes {
    Bytes(8192 + blocks * (4104 << 9) + 1024)
}

/// So many images in files, root first, with random writes in each; durable.
pub(super) fn chain(
    world: &Arc<SimWorld>,
    rng: &mut Rng,
    count: usize,
    leaf_is_empty: bool,
) -> Vec<Arc<SimDisk>> {
    chain_on(On::Files, world, rng, count, leaf_is_empty)
}

/// The same on that.
pub(super) fn chain_on(
    on: On,
    world: &Arc<SimWorld>,
    rng: &mut Rng,
    count: usize,
    leaf_is_empty: bool,
) -> Vec<Arc<SimDisk>> {
    let disks: Vec<_> = (0..count).map(|_| on.disk(world)).collect();
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

/// Who ignores the bitmaps of the root, as other programs do, finds nothing there that others have left on its device.
pub(super) fn shows_nothing_stale(disks: &[Arc<SimDisk>], what: &str) {
    let container: Arc<dyn Container> = disks[0].clone();
    let root = image(&container, Mode::ReadOnly);
    let mut data = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
    for block in (0..u32::try_from(BLOCKS).unwrap()).map(BlockIndex) {
        let Some(extent) = root.locate(block) else { continue };
        disks[0].read_at(&mut data, extent.at).unwrap();
        assert_eq!(find_stale(&data), None, "{what}: block {} of the root", block.0);
    }
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
