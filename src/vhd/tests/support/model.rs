//! A model of what an image may hold: for each sector the values that a crash may bring to light. `None` is "not owned".

use super::{errors, put};
use catena_blockio::Container;
use catena_blockio::sim::find_stale;
use catena_chain::{Layer, LayerMut};
use catena_types::{BlockIndex, Bytes, FileOffset, SectorSet};
use catena_vhd::{CheckOptions, DiskKind, FooterState, Image, Mode};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// One thing that a user of an image does.
#[derive(Debug, Clone)]
pub enum Step {
    Write(u32, Range<usize>, u8),
    /// Owns the whole block, writing its first sectors only.
    Fill(u32, u8),
    Commit,
    Flush,
    GiveUp(Vec<(u32, Range<usize>)>),
    KeepSpace,
    Seal,
    Hide(bool),
    Grow(u64),
}

/// A value that stands for any: an owned sector whose data nobody wrote.
const ANY: u16 = 256;

/// The sectors that `Fill` writes; of the others it only says that they are owned.
const FILLED: Range<usize> = 0..4;

/// How many values each sector had at some time.
pub type Mark = BTreeMap<(u32, usize), usize>;

/// What may be found.
#[derive(Debug, Clone, Default)]
pub struct Model {
    sectors: BTreeMap<(u32, usize), Vec<Option<u16>>>,
    filled: BTreeSet<u32>,
    hidden: Vec<bool>,
    sizes: Vec<u64>,
}

impl Model {
    pub fn new(size: u64) -> Self {
        Self { hidden: vec![false], sizes: vec![size], ..Self::default() }
    }

    /// Sectors are about to be written: either value may be found.
    pub fn writes(&mut self, block: u32, sectors: Range<usize>, fill: u8) {
        self.add(block, sectors, Some(u16::from(fill)));
    }

    /// Sectors are about to be given up.
    pub fn gives_up(&mut self, block: u32, sectors: &Range<usize>) {
        let known = self.sectors.range((block, sectors.start)..(block, sectors.end));
        let known: Vec<usize> = known.map(|((_, sector), _)| *sector).collect();
        known.into_iter().for_each(|sector| self.add(block, sector..sector + 1, None));
    }

    /// How many values each sector has had so far.
    pub fn mark(&self) -> Mark {
        self.sectors.iter().map(|(&sector, values)| (sector, values.len())).collect()
    }

    /// Of the values up to the mark only the last can be found from here on.
    pub fn settle_until(&mut self, mark: &Mark) {
        for (sector, count) in mark {
            self.sectors.entry(*sector).and_modify(|values| drop(values.drain(..count - 1)));
        }
    }

    fn add(&mut self, block: u32, sectors: Range<usize>, value: Option<u16>) {
        let unknown = if self.filled.contains(&block) { vec![None, Some(ANY)] } else { vec![None] };
        for sector in sectors {
            self.sectors.entry((block, sector)).or_insert_with(|| unknown.clone()).push(value);
        }
    }

    /// Only the last value of each sector can be found from here on.
    fn settle(&mut self) {
        for values in self.sectors.values_mut() {
            values.drain(..values.len() - 1);
        }
    }

    /// Does a step to the image; the model knows of it before it begins.
    pub fn run(&mut self, image: &mut Image, step: &Step) -> Result<(), catena_chain::Error> {
        match step {
            Step::Write(block, sectors, fill) => {
                self.add(*block, sectors.clone(), Some(u16::from(*fill)));
                put(image, *block, sectors.clone(), *fill)
            }
            Step::Fill(block, fill) => {
                self.filled.insert(*block);
                for (_, values) in self.sectors.range_mut((*block, FILLED.end)..(*block + 1, 0)) {
                    values.push(Some(ANY));
                }
                self.add(*block, FILLED, Some(u16::from(*fill)));
                put(image, *block, FILLED, *fill)?;
                image.wrote(BlockIndex(*block), &SectorSet::full())
            }
            Step::Commit => image.commit(),
            Step::Flush => image.flush().map(|()| self.settle()),
            Step::GiveUp(list) => {
                let list: Vec<_> =
                    list.iter().map(|(block, range)| (BlockIndex(*block), range.clone())).collect();
                list.iter().for_each(|(block, range)| self.gives_up(block.0, range));
                let sets: Vec<_> =
                    list.iter().map(|(block, range)| (*block, SectorSet::of(range.clone()))).collect();
                image.give_up(&sets)?;
                for (block, range) in &list {
                    for (_, values) in
                        self.sectors.iter_mut().filter(|((b, s), _)| *b == block.0 && range.contains(s))
                    {
                        values.drain(..values.len() - 1);
                    }
                }
                Ok(())
            }
            Step::KeepSpace => Ok(image.keep_space()?),
            Step::Seal => Ok(image.seal().map(|()| self.settle())?),
            Step::Hide(hidden) => {
                self.hidden.push(*hidden);
                image.set_hidden(*hidden)?;
                self.hidden.drain(..self.hidden.len() - 1);
                Ok(())
            }
            Step::Grow(mib) => {
                self.sizes.push(mib << 20);
                image.grow(Bytes(mib << 20))?;
                self.settle();
                self.sizes.drain(..self.sizes.len() - 1);
                Ok(())
            }
        }
    }

    /// The image that survived passes its checks and holds what it may hold.
    pub fn verify(&self, disk: &Arc<dyn Container>, context: &str) {
        let deep = CheckOptions { deep: true, ..CheckOptions::default() };
        let mut problems = catena_vhd::check(&**disk, &deep).unwrap();
        problems.retain(|problem| problem.severity == catena_types::Severity::Error);
        assert_eq!(problems, [], "{context}");
        let image = Image::open(disk.clone(), Mode::ReadOnly).unwrap_or_else(|e| panic!("{context}: {e}"));
        self.verify_image(&image, context);
        no_stale(&image, context);
        assert!(self.hidden.contains(&image.info().hidden), "{context}");
        assert!(self.sizes.contains(&image.info().virtual_size.0), "{context}");
    }

    /// What an open image says is among what may be.
    pub fn verify_image(&self, image: &Image, context: &str) {
        let blocks: BTreeSet<u32> = self.sectors.keys().map(|(block, _)| *block).collect();
        let mut next = image.next_block(BlockIndex(0));
        while let Some(block) = next {
            assert!(blocks.contains(&block.0), "{context}: block {} appeared", block.0);
            next = image.next_block(block.next());
        }
        for block in blocks {
            self.verify_block(image, block, context);
        }
    }

    fn verify_block(&self, image: &Image, block: u32, context: &str) {
        let owned = image.ownership(BlockIndex(block)).unwrap_or_else(|e| panic!("{context}: {e}")).to_set();
        let mut rest = owned.clone();
        for ((_, sector), allowed) in self.sectors.range((block, 0)..(block + 1, 0)) {
            rest.remove(*sector..*sector + 1);
            if owned.contains(*sector) && allowed.contains(&Some(ANY)) {
                continue;
            }
            let found = owned.contains(*sector).then(|| {
                let extent = image.locate(BlockIndex(block)).unwrap();
                let mut data = [0; 512];
                let at = FileOffset(extent.at.0 + *sector as u64 * 512);
                image.container().read_at(&mut data, at).unwrap();
                assert_eq!(data, [data[0]; 512], "{context}: torn within a sector");
                u16::from(data[0])
            });
            assert!(
                allowed.contains(&found),
                "{context}: block {block} sector {sector} holds {found:?}, may be {allowed:?}"
            );
        }
        assert!(
            rest.is_empty() || self.filled.contains(&block),
            "{context}: block {block} owns what nobody wrote"
        );
    }

    /// What the last values are, without any crash.
    pub fn settled(mut self) -> Self {
        self.settle();
        self
    }
}

/// Who ignores the bitmaps of a disk without a parent finds nothing that others have left on a device.
fn no_stale(image: &Image, context: &str) {
    if image.info().kind != DiskKind::Dynamic {
        return;
    }
    let mut next = image.next_block(BlockIndex(0));
    let mut data = vec![0; 2 << 20];
    while let Some(block) = next {
        image.container().read_at(&mut data, image.locate(block).unwrap().at).unwrap();
        assert_eq!(find_stale(&data), None, "{context}: block {} shows what others have left", block.0);
        next = image.next_block(block.next());
    }
}

/// A survivor must be usable: it can be written again, which disturbs nothing.
pub fn use_again(model: &Model, disk: &Arc<dyn Container>, context: &str) {
    let mut model = model.clone();
    let mut image = Image::open(disk.clone(), Mode::ReadWrite).unwrap_or_else(|e| panic!("{context}: {e}"));
    for (block, fill) in [(0, 0xa0), (1, 0xa1), (3, 0xa3)] {
        model.run(&mut image, &Step::Write(block, 100..103, fill)).unwrap();
    }
    image.close().unwrap();
    model.verify(disk, context);
    assert_eq!(errors(&**disk), [], "{context}");
    let footers = Image::open(disk.clone(), Mode::ReadOnly).unwrap().info().footers;
    assert!(matches!(footers, FooterState::Both | FooterState::Differ), "{context}");
}
