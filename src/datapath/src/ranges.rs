//! Requests that move a range of a disk between an image and a descriptor of the client, at once: read and write.
//!
//! They are answered while the keeper waits, so a stream that stands still ends them.

use crate::crash;
use crate::inflow::Inflow;
use crate::open::{Caching, Descriptors};
use crate::outflow::Outflow;
use crate::streams::Outgoing;
use crate::supervisor::Supervisor;
use crate::trouble::{from_chain, from_io, from_vhd, trouble};
use catena_chain::{Chain, Layer, write as write_layer};
use catena_control::{Answer, Answered, Handed, Trouble, TroubleKind};
use catena_types::{BLOCK_BYTES, Bytes, GuestOffset};
use catena_vhd::{Image, Mode};
use std::fs::File;
use std::ops::Range;
use std::time::Duration;

/// Bytes moved at once.
const CHUNK: u64 = BLOCK_BYTES;
/// How long a stream may stand still.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
/// What comes through a pipe is taken in whole before the first byte is written, if it is not more than this.
const HELD: u64 = 64 << 20;

/// A range of a disk goes to a stream, of any kind, from its present position on.
pub(crate) fn read(
    chain: &[Handed],
    offset: u64,
    length: Bytes,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let out = Outgoing::Flowing(File::from(fds.take()?));
    let chain = fds.chain(chain, Caching::Buffered)?;
    let range = checked_range(offset, length, chain.virtual_size())?;
    let mut out = Outflow::new(out, PATIENCE).map_err(from_io("looking at the stream"))?;
    copy_out(&chain, range, &mut out, supervisor).map_err(|error| from_chain(&error))?;
    Ok(Answer::Moved { bytes: length })
}

fn copy_out(
    chain: &Chain,
    range: Range<u64>,
    out: &mut Outflow,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), catena_chain::Error> {
    let mut buffer = vec![0; usize::try_from(CHUNK.min(range.end - range.start)).unwrap_or_default()];
    let mut at = range.start;
    while at < range.end {
        let part = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        chain.read(GuestOffset(at), &mut buffer[..part])?;
        out.data(&buffer[..part], supervisor)?;
        at += part as u64;
    }
    Ok(())
}

/// A range of a disk comes from a stream, of any kind, from its present position on. Durable when this returns.
///
/// A stream that is known to be too short is refused before anything is written: a file by its size, anything else by taking it
/// in first. Of a pipe with more than 64 MiB to bring, what came is written when the rest does not come.
pub(crate) fn write(
    chain: &[Handed],
    offset: u64,
    length: Bytes,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let file = File::from(fds.take()?);
    let (leaf, below) =
        chain.split_first().ok_or_else(|| trouble(TroubleKind::Internal, "a chain without images"))?;
    let mut leaf = fds.image(leaf, Mode::ReadWrite, Caching::Buffered)?;
    let below = if below.is_empty() { None } else { Some(fds.chain(below, Caching::Buffered)?) };
    let range = checked_range(offset, length, leaf.virtual_size())?;
    let there = left_in(&file)?;
    let mut input = Inflow::part(file, length.0, PATIENCE);
    let there = match there {
        None if length.0 <= HELD => {
            let whole = usize::try_from(length.0).unwrap_or(usize::MAX);
            Some(input.peek(whole, supervisor).map_err(|error| from_chain(&error))?.len() as u64)
        }
        known => known,
    };
    if let Some(there) = there.filter(|there| *there < length.0) {
        return Err(too_short(there, length, "nothing was written"));
    }
    let came = copy_in(&mut leaf, below.as_ref(), range, &mut input, supervisor);
    let came = came.map_err(|error| from_chain(&error))?;
    crash::WRITE_UNFLUSHED.pass();
    leaf.close().map_err(|error| from_vhd(&error))?;
    if came < length.0 {
        return Err(too_short(came, length, "what came was written"));
    }
    Ok(Answer::Moved { bytes: length })
}

/// Returns how many bytes came.
fn copy_in(
    leaf: &mut Image,
    below: Option<&Chain>,
    range: Range<u64>,
    input: &mut Inflow,
    supervisor: &mut Supervisor<'_>,
) -> Result<u64, catena_chain::Error> {
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(CHUNK.min(range.end - at)).unwrap_or_default();
        let came = input.next(wanted, supervisor)?;
        if came.is_empty() {
            break;
        }
        write_layer(leaf, below, GuestOffset(at), came)?;
        at += came.len() as u64;
    }
    Ok(at - range.start)
}

/// How many bytes a regular file has from its position on; `None` of what has no size.
fn left_in(file: &File) -> Result<Option<u64>, Trouble> {
    let metadata = file.metadata().map_err(from_io("looking at the stream"))?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let position = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur).unwrap_or_default();
    Ok(Some(metadata.len().saturating_sub(u64::try_from(position).unwrap_or_default())))
}

fn too_short(came: u64, length: Bytes, then: &str) -> Trouble {
    let message = format!("the stream has {came} bytes, not {}: {then}", length.0);
    trouble(TroubleKind::OutOfRange, message)
}

fn checked_range(offset: u64, length: Bytes, size: Bytes) -> Result<Range<u64>, Trouble> {
    let end = offset.checked_add(length.0).filter(|end| *end <= size.0);
    end.map(|end| offset..end).ok_or_else(|| {
        let message = format!("{} bytes at {offset} lie outside a disk of {} bytes", length.0, size.0);
        trouble(TroubleKind::OutOfRange, message)
    })
}
