//! A disk is written to a client's stream.
//!
//! Raw and fixed VHDs are the disk from front to back. Of a dynamic VHD the block table comes before the blocks: a pipe gets
//! every block of which a layer owns something, a new file only those that hold something, its table being written last. The
//! file is nobody's before the client keeps it, so no order of writes matters here.

use crate::open::{Caching, Descriptors};
use crate::outflow::{Outflow, is_zero};
use crate::streams::{Outgoing, now};
use crate::supervisor::Supervisor;
use crate::trouble::{from_chain, from_io, from_vhd, trouble};
use catena_chain::{Chain, Error, Piece, owned_blocks, stream};
use catena_control::{Answer, Answered, ExportFormat, Handed, Trouble, TroubleKind};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, GuestOffset, ImageId};
use catena_vhd::{Portable, fixed_footer, vhd_timestamp};

/// Bytes moved at once.
const CHUNK: Bytes = Bytes(BLOCK_BYTES);
/// Fixed VHDs have a multiple of this, as Azure asks for.
const MIB: u64 = 1 << 20;

/// A disk goes to a stream.
pub(crate) fn export(
    chain: &[Handed],
    format: ExportFormat,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let out = Outgoing::of(fds.take()?)?;
    let mut out = Outflow::new(out, None).map_err(from_io("looking at the stream"))?;
    let chain = fds.chain(chain, Caching::Direct)?;
    let size = chain.virtual_size();
    if let Some(room) = out.room().map_err(from_io("asking for the size of the device"))? {
        check_device(format, size, room)?;
    }
    supervisor.total(size);
    match format {
        ExportFormat::Raw => {
            write_raw(&chain, &mut out, supervisor).map_err(|error| from_chain(&error))?;
        }
        ExportFormat::VhdFixed => {
            let whole = size.round_up(MIB);
            let footer = fixed_footer(ImageId::random(), whole, vhd_timestamp(now()));
            let footer = footer.map_err(|error| from_vhd(&error))?;
            write_fixed(&chain, whole, &footer, &mut out, supervisor).map_err(|error| from_chain(&error))?;
        }
        ExportFormat::Vhd => {
            let vhd = Portable::new(ImageId::random(), size, vhd_timestamp(now()));
            let vhd = vhd.map_err(|error| from_vhd(&error))?;
            write_dynamic(&chain, &vhd, &mut out, supervisor)?;
        }
    }
    out.end().map_err(|error| from_chain(&error))?;
    Ok(Answer::Moved { bytes: size })
}

/// A device takes the bytes of a disk and nothing else: what ends with a footer must end where its container does.
fn check_device(format: ExportFormat, size: Bytes, room: Bytes) -> Result<(), Trouble> {
    if format != ExportFormat::Raw {
        let message = "a block device takes the format raw only; a VHD goes to a file or a pipe";
        return Err(trouble(TroubleKind::Unsupported, message));
    }
    if room < size {
        let message = format!("a disk of {} bytes does not fit on a device of {}", size.0, room.0);
        return Err(trouble(TroubleKind::OutOfRange, message));
    }
    Ok(())
}

fn write_raw(chain: &Chain, out: &mut Outflow, supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
    let whole = GuestOffset(0)..GuestOffset(chain.virtual_size().0);
    stream(chain, whole, CHUNK, |_, piece| match piece {
        Piece::Data(bytes) => {
            out.data(bytes, supervisor)?;
            supervisor.advance(Bytes(bytes.len() as u64))
        }
        Piece::Zero(mut left) => {
            // In parts, so that it is seen how far they are: to a pipe they take as long as anything.
            while left.0 > 0 {
                let part = left.min(CHUNK);
                out.zeros(part.0, supervisor)?;
                supervisor.advance(part)?;
                left.0 -= part.0;
            }
            Ok(())
        }
    })
}

fn write_fixed(
    chain: &Chain,
    whole: Bytes,
    footer: &[u8],
    out: &mut Outflow,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), Error> {
    write_raw(chain, out, supervisor)?;
    out.zeros(whole.0 - chain.virtual_size().0, supervisor)?;
    out.data(footer, supervisor)
}

fn write_dynamic(
    chain: &Chain,
    vhd: &Portable,
    out: &mut Outflow,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), Trouble> {
    let planned = if out.is_new_file() {
        out.leave_room(vhd.head_len());
        None
    } else {
        let blocks = owned_blocks(chain).map_err(|error| from_chain(&error))?;
        let head = vhd.head(&blocks).map_err(|error| from_vhd(&error))?;
        out.data(&head, supervisor).map_err(|error| from_chain(&error))?;
        Some(blocks)
    };
    let mut blocks = Blocks { vhd, written: Vec::new(), filled: 0 };
    let whole = GuestOffset(0)..GuestOffset(chain.virtual_size().0);
    let written = stream(chain, whole, CHUNK, |at, piece| match piece {
        Piece::Zero(length) => supervisor.advance(length),
        Piece::Data(bytes) => {
            if planned.is_some() || !is_zero(bytes) {
                blocks.put(at, bytes, out, supervisor)?;
            }
            supervisor.advance(Bytes(bytes.len() as u64))
        }
    });
    let ended = written.and_then(|()| blocks.end(out, supervisor));
    ended.map_err(|error| from_chain(&error))?;
    match planned {
        Some(planned) if planned != blocks.written => {
            Err(trouble(TroubleKind::Internal, "the disk changed while it was exported"))
        }
        Some(_) => Ok(()),
        None => {
            let head = vhd.head(&blocks.written).map_err(|error| from_vhd(&error))?;
            out.fill_in(&head).map_err(|error| from_chain(&error))
        }
    }
}

/// The blocks of a dynamic VHD, one after another.
struct Blocks<'a> {
    vhd: &'a Portable,
    /// Those begun so far, in order; the last one is being filled.
    written: Vec<BlockIndex>,
    /// Bytes of the last one that are there.
    filled: u64,
}

impl Blocks<'_> {
    /// Writes what a disk holds at `at`, all of it in one block and behind whatever was written before.
    fn put(
        &mut self,
        at: GuestOffset,
        bytes: &[u8],
        out: &mut Outflow,
        supervisor: &mut Supervisor<'_>,
    ) -> Result<(), Error> {
        let (block, inside) = at.split();
        if self.written.last() != Some(&block) {
            self.fill_up(BLOCK_BYTES, out, supervisor)?;
            out.data(&self.vhd.lead(self.written.len()), supervisor)?;
            self.written.push(block);
            self.filled = 0;
        }
        self.fill_up(inside, out, supervisor)?;
        self.filled += bytes.len() as u64;
        out.data(bytes, supervisor)
    }

    /// Puts zeros up to there into the last block, if there is one.
    fn fill_up(&mut self, to: u64, out: &mut Outflow, supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        if !self.written.is_empty() {
            out.zeros(to.saturating_sub(self.filled), supervisor)?;
            self.filled = self.filled.max(to);
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Outflow, supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        self.fill_up(BLOCK_BYTES, out, supervisor)?;
        out.data(self.vhd.footer(), supervisor)
    }
}
