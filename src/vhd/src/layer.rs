//! The image as a layer of a chain: the traits of `catena-chain`, each method one line to the module that does it.

use crate::footer::DiskKind;
use crate::image::Image;
use catena_blockio::Container;
use catena_chain::{Error, Extent, Layer, LayerMut, Ownership};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, SectorSet};

impl Layer for Image {
    fn virtual_size(&self) -> Bytes {
        self.footer.size
    }

    fn ownership(&self, block: BlockIndex) -> Result<Ownership, Error> {
        if self.footer.kind == DiskKind::Fixed {
            let inside = block.start().0 < self.footer.size.0;
            return Ok(if inside { Ownership::Everything } else { Ownership::Nothing });
        }
        if let Some(dirty) = self.dirty(block) {
            return Ok(Ownership::from_set(dirty.owned()));
        }
        let found = self.bat.look_up(&*self.container, block).map_err(|error| error.of_block(block))?;
        let Some(slot) = found else { return Ok(Ownership::Nothing) };
        let read = self.check_slot(slot).and_then(|()| self.stored_bits(block, slot));
        let whole = read.and_then(|bits| self.check_cut(block, slot, &bits).map(|()| bits));
        whole.map(Ownership::from_set).map_err(|error| error.of_block(block))
    }

    fn locate(&self, block: BlockIndex) -> Option<Extent> {
        let (at, present) = if self.footer.kind == DiskKind::Fixed {
            (FileOffset(block.start().0), BLOCK_BYTES)
        } else {
            let at = self.slot(block)?.data_at();
            // The last block of another program's file may be cut short. A writer's blocks are whole.
            let present =
                if self.writer.is_some() { BLOCK_BYTES } else { self.data_end().0.saturating_sub(at.0) };
            (at, present / 512 * 512)
        };
        let len = self.block_len(block).min(present);
        (len > 0 || self.footer.kind != DiskKind::Fixed)
            .then(|| Extent { at, len: u32::try_from(len).unwrap_or(0) })
    }

    fn next_block(&self, from: BlockIndex) -> Option<BlockIndex> {
        if self.footer.kind == DiskKind::Fixed {
            return (from.start().0 < self.footer.size.0).then_some(from);
        }
        let stored = self.bat.used(from).next().map(|(block, _)| block);
        let stored = [stored, self.bat.next_unknown(from)].into_iter().flatten().min();
        let dirty = self.writer.as_ref().and_then(|writer| writer.dirty.range(from..).next());
        match (stored, dirty.map(|(&block, _)| block)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn container(&self) -> &dyn Container {
        &*self.container
    }
}

impl LayerMut for Image {
    fn expect(&mut self, new_blocks: usize) -> Result<(), Error> {
        Ok(self.extend_for(new_blocks)?)
    }

    fn place(&mut self, block: BlockIndex) -> Result<FileOffset, Error> {
        self.place_now(block).map_err(|error| error.of_block(block))
    }

    fn wrote(&mut self, block: BlockIndex, sectors: &SectorSet) -> Result<(), Error> {
        self.note_written(block, sectors).map_err(|error| error.of_block(block))
    }

    fn commit(&mut self) -> Result<(), Error> {
        Ok(self.commit_pointers()?)
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(self.flush_all()?)
    }

    fn give_up(&mut self, sectors: &[(BlockIndex, SectorSet)]) -> Result<(), Error> {
        Ok(self.give_up_sectors(sectors)?)
    }
}
