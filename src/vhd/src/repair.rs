//! Mending metadata without losing data: the plan of it, and carrying the plan out.
//!
//! A plan only reads. What it proposes is written in stages with a barrier after each, ordered so that a crash anywhere leaves
//! an image which the next plan mends: never is the last sound footer overwritten. Only the header has no second copy; its new
//! bytes stand apart, for the caller to keep in a journal first (D5). Every sector that some block owns reads as before;
//! what cannot be mended so (a block whose data are not there, two blocks in one place, both footers gone) is refused.
//! Called by the workers, for `sr check --repair`.

use crate::bat::Bat;
use crate::batmap::{Batmap, Stored};
use crate::create::ParentSpec;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, FOOTER_BYTES, Footer};
use crate::image::FooterState;
use crate::layout::{Layout, SECTOR, Slot};
use crate::open::{Footers, layout_of, read_footers};
use crate::repair_header::{MendedHeader, mend_header};
use crate::reparent::Patch;
use catena_blockio::{Container, Sizing};
use catena_types::{BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES, SectorSet};
use std::collections::BTreeSet;

/// What the catalog says of the image; what it does not know is left as it is.
#[derive(Debug, Clone, Default)]
pub struct RepairOptions {
    /// The parent that a differencing image must name.
    pub parent: Option<ParentSpec>,
    /// Whether the image is a base copy.
    pub hidden: Option<bool>,
    /// Look at the bitmaps of all blocks that the batmap names: a read for each.
    pub deep: bool,
}

/// One thing that a plan mends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// The rule that is broken, as [`Problem`](crate::Problem) names it.
    pub check: &'static str,
    /// What is done about it.
    pub what: &'static str,
}

/// How an image is to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The image that was found; a caller who expected another one must not carry the plan out.
    pub id: ImageId,
    /// What is mended; empty if there is nothing to do.
    pub fixes: Vec<Fix>,
    /// The new bytes of header and locators, which the caller journals and writes with [`apply_patch`](crate::apply_patch), last.
    pub header: Patch,
    /// All other writes, with a barrier after each stage.
    stages: Vec<Patch>,
}

impl Repair {
    /// The ranges that will be written over, to be saved before.
    pub fn touched(&self) -> impl Iterator<Item = (FileOffset, usize)> + '_ {
        let writes = self.stages.iter().flatten().chain(&self.header);
        writes.map(|(at, bytes)| (*at, bytes.len()))
    }

    /// Carries out everything but the header.
    ///
    /// # Errors
    /// Those of the storage. A new plan then goes on from what is there.
    pub fn apply(&self, container: &dyn Container) -> Result<()> {
        for stage in &self.stages {
            for (at, bytes) in stage {
                container.write_at(bytes, *at).map_err(Error::io("repairing an image"))?;
            }
            container.flush().map_err(Error::io("waiting for a repair to be durable"))?;
        }
        Ok(())
    }
}

/// Plans how to mend an image. Reads only.
///
/// # Errors
/// `Damaged` says what cannot be mended, `Unsupported` that the image is none that may be written.
pub fn plan_repair(container: &dyn Container, options: &RepairOptions) -> Result<Repair> {
    let size = container.size().map_err(Error::io("asking for the size of the container"))?;
    let footers = read_footers(container, size)?;
    if footers.footer.is_foreign() {
        return Err(Error::Unsupported("repairing an image of another program".into()));
    }
    if footers.footer.kind == DiskKind::Fixed {
        return Err(Error::Unsupported("repairing a fixed disk".into()));
    }
    let MendedHeader { header, patch, mut fixes } =
        mend_header(container, &footers.footer, size, options.parent.as_ref())?;
    let layout = layout_of(container, &footers.footer, &header, size)?;
    let mut planner = Planner { container, layout, size, footers, fixes: Vec::new(), stages: Vec::new() };
    let mut bat = Bat::load(container, &planner.layout, planner.footers.footer.size.blocks())?;
    let batmap = Batmap::load(container, &planner.layout, planner.footers.footer.size)?;
    let needed = planner.mend_blocks(&mut bat, &batmap)?;
    let place = planner.footer_place(needed)?;
    planner.mend_footers(place, options.hidden)?;
    let check = wrong_batmap(&batmap, &bat);
    if options.deep || check.is_some() {
        planner.fill_bitmaps(&batmap, &bat)?;
    }
    if let Some(check) = check {
        planner.clear_batmap(check, &batmap);
    }
    planner.stages.push(bat.dirty_sectors());
    planner.clear_old_footer(place);
    planner.stages.retain(|stage| !stage.is_empty());
    fixes.append(&mut planner.fixes);
    Ok(Repair { id: planner.footers.footer.id, fixes, header: patch, stages: planner.stages })
}

struct Planner<'a> {
    container: &'a dyn Container,
    layout: Layout,
    size: Bytes,
    footers: Footers,
    fixes: Vec<Fix>,
    stages: Vec<Patch>,
}

impl Planner<'_> {
    fn fix(&mut self, check: &'static str, what: &'static str) {
        self.fixes.push(Fix { check, what });
    }

    /// The byte after which no block can have data.
    fn limit(&self) -> u64 {
        match self.container.sizing() {
            Sizing::Explicit => (self.size.0 / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(FOOTER_BYTES),
            Sizing::Automatic => self.footers.end_at.map_or(self.size.0, |at| at.0),
        }
    }

    /// Takes away the places of blocks that are in the way of others and own nothing, and returns the end of the rest. A block that
    /// was cut off by the end of a file is kept if all that it owns is there.
    fn mend_blocks(&mut self, bat: &mut Bat, batmap: &Batmap) -> Result<u64> {
        for block in self.in_conflict(bat) {
            let Some(slot) = bat.get(block) else { continue };
            if self.owned(block, slot, batmap)?.is_some_and(|owned| owned.is_empty()) {
                bat.set(block, None);
                let check = if slot.end().0 > self.limit() { "block_over_footer" } else { "block_overlap" };
                self.fix(check, "a block that owns nothing loses its place");
            }
        }
        let mut end = self.layout.headers_end_sector();
        let mut slots: Vec<(Slot, BlockIndex)> =
            bat.used(BlockIndex(0)).map(|(block, slot)| (slot, block)).collect();
        slots.sort_unstable();
        for (slot, block) in slots {
            if u64::from(slot.0) < end {
                let detail = format!("block {} lies over what is before it", block.0);
                return Err(Error::damaged("block_overlap", slot.bitmap_at(), detail));
            }
            if slot.end().0 > self.limit() {
                self.keep_cut_block(block, slot, batmap)?;
            }
            end = slot.end_sector();
        }
        Ok(end * SECTOR_BYTES)
    }

    /// Blocks over the metadata, over each other, or over the end.
    fn in_conflict(&self, bat: &Bat) -> BTreeSet<BlockIndex> {
        let mut slots: Vec<(Slot, BlockIndex)> =
            bat.used(BlockIndex(0)).map(|(block, slot)| (slot, block)).collect();
        slots.sort_unstable();
        let outside = |slot: &Slot| slot.end().0 > self.limit();
        let mut found: BTreeSet<BlockIndex> =
            slots.iter().filter(|(slot, _)| outside(slot)).map(|(_, block)| *block).collect();
        for pair in slots.windows(2) {
            if u64::from(pair[1].0.0) < pair[0].0.end_sector() {
                found.extend([pair[0].1, pair[1].1]);
            }
        }
        found
    }

    /// What a block owns; `None` where its bitmap is not in a place of its own.
    fn owned(&self, block: BlockIndex, slot: Slot, batmap: &Batmap) -> Result<Option<SectorSet>> {
        if batmap.contains(block) {
            return Ok(Some(SectorSet::full()));
        }
        let at = slot.bitmap_at();
        if u64::from(slot.0) < self.layout.headers_end_sector() || at.0 + SECTOR_BYTES > self.limit() {
            return Ok(None);
        }
        let mut raw = [0; SECTOR];
        self.container.read_at(&mut raw, at).map_err(Error::io("reading a bitmap"))?;
        Ok(Some(SectorSet::from_bitmap(&raw)))
    }

    /// Accepts a block that reaches over the end of a file, if the footer can be moved behind it without loss.
    fn keep_cut_block(&mut self, block: BlockIndex, slot: Slot, batmap: &Batmap) -> Result<()> {
        let owned = self.owned(block, slot, batmap)?;
        let last = owned.and_then(|owned| owned.runs().map(|run| run.end as u64).max());
        let there = last.is_some_and(|end| slot.data_at().0 + end * SECTOR_BYTES <= self.limit());
        if self.container.sizing() == Sizing::Explicit || !there {
            let detail = format!("data of block {} lie past the end", block.0);
            return Err(Error::damaged("block_over_footer", slot.bitmap_at(), detail));
        }
        self.fix("block_over_footer", "the footer is moved behind the last block");
        Ok(())
    }

    /// Where the footer at the end belongs, if the data end at `needed`. Nothing that a block may have written is given up: where it
    /// is missing, it is put behind all there is.
    fn footer_place(&self, needed: u64) -> Result<FileOffset> {
        let (size, limit) = (self.size.0, self.limit());
        Ok(FileOffset(match (self.container.sizing(), self.footers.end_at) {
            (Sizing::Explicit, _) if limit < needed => {
                let detail = "the metadata reach over the footer";
                return Err(Error::damaged("headers_over_footer", FileOffset(limit), detail));
            }
            (Sizing::Explicit, _) => limit,
            (Sizing::Automatic, Some(at)) => at.0.max(needed),
            // The last sector, if it is whole and no block's, is where a damaged footer lies.
            (Sizing::Automatic, None)
                if size.is_multiple_of(SECTOR_BYTES) && size >= needed + FOOTER_BYTES =>
            {
                size - FOOTER_BYTES
            }
            (Sizing::Automatic, None) => needed.max(size.next_multiple_of(SECTOR_BYTES)),
        }))
    }

    /// Makes both footers there, equal, in order and as the catalog says.
    fn mend_footers(&mut self, place: FileOffset, hidden: Option<bool>) -> Result<()> {
        let before = self.footers.footer.clone();
        let mut wanted = before.normalised();
        for (check, wrong) in before.differs_from(&wanted) {
            if wrong {
                self.fix(check, "the field is set to what it must be");
            }
        }
        if hidden.is_some_and(|hidden| hidden != before.hidden) {
            wanted.hidden = !before.hidden;
            self.fix("hidden", "the hidden flag is set as the catalog says");
        }
        match self.footers.state {
            FooterState::Both => {}
            FooterState::EndMissing => self.fix("footer_end", "it is written again from its copy"),
            FooterState::CopyDamaged => {
                self.fix("footer_copy", "it is written again from the one at the end");
            }
            FooterState::Differ => self.fix("footers_differ", "the copy is made equal to the one at the end"),
        }
        if self.footers.end_at.is_some_and(|at| at < place) && place.0 <= self.layout.tables_end() {
            self.fix("tables_outside", "the footer is moved behind the tables");
        }
        let raw = wanted.encode();
        let copy = (FileOffset(0), self.read_sector(FileOffset(0))? != raw);
        let end = (place, self.footers.end_at != Some(place) || self.read_sector(place)? != raw);
        // The one that is missing comes first: until it is durable the other is the only one. Otherwise the copy does, since
        // the one at the end counts.
        let order = if self.footers.state == FooterState::EndMissing { [end, copy] } else { [copy, end] };
        let due = order.into_iter().filter(|(_, due)| *due);
        self.stages.extend(due.map(|(at, _)| vec![(at, raw.to_vec())]));
        Ok(())
    }

    fn read_sector(&self, at: FileOffset) -> Result<[u8; SECTOR]> {
        let mut raw = [0; SECTOR];
        self.container.read_at(&mut raw, at).map_err(Error::io("reading a sector of the metadata"))?;
        Ok(raw)
    }

    /// Gives a block that the batmap names the full bitmap that it must have, since all readers take it for one that owns all its
    /// sectors. Durable before the batmap is cleared, here or by the next writer.
    fn fill_bitmaps(&mut self, batmap: &Batmap, bat: &Bat) -> Result<()> {
        const FULL: [u8; SECTOR] = [0xff; SECTOR];
        let mut stage = Patch::new();
        for slot in batmap.marked().filter_map(|block| bat.get(block)) {
            if self.read_sector(slot.bitmap_at())? != FULL {
                stage.push((slot.bitmap_at(), FULL.to_vec()));
            }
        }
        if !stage.is_empty() {
            self.fix("batmap_stale", "the bitmap is filled, as the batmap has it and every reader takes it");
        }
        self.stages.push(stage);
        Ok(())
    }

    /// Clears a batmap: it is only a hint, and the next time the image is sealed it is written anew (D4).
    fn clear_batmap(&mut self, check: &'static str, batmap: &Batmap) {
        self.fix(check, "it is cleared; it fills again as the disk is used");
        self.stages.push(vec![(self.layout.batmap_header_at(), batmap.to_clear_bytes())]);
    }

    /// A footer that was moved leaves its bytes where now a block or the batmap is, which must read as zero.
    fn clear_old_footer(&mut self, place: FileOffset) {
        if self.container.sizing() == Sizing::Automatic
            && let Some(old) = self.footers.end_at.filter(|&at| at < place)
        {
            let len = usize::try_from(place.0 - old.0).unwrap_or(SECTOR).min(SECTOR);
            self.stages.push(vec![(old, vec![0; len])]);
        }
    }
}

/// The rule that the batmap breaks, if it does.
fn wrong_batmap(batmap: &Batmap, bat: &Bat) -> Option<&'static str> {
    match batmap.stored() {
        Stored::Unusable(Batmap::BAD_CHECKSUM) => Some("batmap_checksum"),
        Stored::Unusable(_) => Some("batmap"),
        _ => batmap.marked().any(|block| bat.get(block).is_none()).then_some("batmap_unallocated"),
    }
}

impl Footer {
    /// Which rules the footer breaks that `normal` keeps.
    fn differs_from(&self, normal: &Self) -> [(&'static str, bool); 3] {
        let (is, must) = (self.fields(), normal.fields());
        [
            ("footer_features", is.features != must.features),
            ("footer_geometry", is.geometry != must.geometry),
            ("footer_flags", (is.saved_state, is.hidden) != (must.saved_state, must.hidden)),
        ]
    }
}
