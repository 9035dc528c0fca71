//! A client's stream becomes a new image.
//!
//! ```text
//!              placed (a file, a device)             flowing (a pipe, a socket)
//!  raw         hole by hole                          as it comes, the disk's size is what came
//!  fixed VHD   a chain of one, read ahead            as raw; the last 512 bytes, held back, turn out to be a footer
//!  other VHD   a chain of one, read ahead            head first, then the blocks in the order of the stream
//! ```
//! What the stream is is found out from its content where the client does not say. Either all of it comes in or the import
//! fails; the keeper removes what a failed one has written.

use crate::copying;
use crate::formats::{END_BYTES, Found, HEAD_BYTES, recognise};
use crate::inflow::Inflow;
use crate::intake::Intake;
use crate::open::Descriptors;
use crate::streams::Incoming;
use crate::supervisor::Supervisor;
use crate::trouble::{from_chain, from_stream, from_vhd, stream_error, trouble};
use catena_blockio::Container;
use catena_chain::{Chain, Error, Layer, Piece};
use catena_control::{Answer, Answered, ImportFormat, ImportSource, Trouble, TroubleKind};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset, GuestOffset, ImageId, SectorSet};
use catena_vhd::{
    DiskKind, Image, Mode, StreamHead, StreamMap, StreamPlace, read_stream_end, read_stream_head,
};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

/// Bytes moved at once.
const CHUNK: Bytes = Bytes(BLOCK_BYTES);

/// A stream becomes a new image, in the descriptor after the stream's.
pub(crate) fn import(
    format: ImportFormat,
    id: ImageId,
    created: i64,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let incoming = Incoming::of(fds.take()?)?;
    let mut new_image = |size| Intake::new(id, created, size, fds);
    let virtual_size = match incoming {
        Incoming::Placed(container, mut file) => {
            let size = if is_vhd(format, look_at(&*container, format)?)? {
                from_image(container, &mut new_image, supervisor)
            } else {
                from_file(&*container, &file, &mut new_image, supervisor)
            }?;
            // As if all of it had been read: a shell may read on.
            file.seek(SeekFrom::End(0)).map_err(from_stream("passing over the stream"))?;
            Ok(size)
        }
        Incoming::Flowing(file) => {
            let mut flow = Inflow::new(file);
            let found = match format {
                ImportFormat::Raw => Found::Raw,
                ImportFormat::Auto | ImportFormat::Vhd => recognise(ahead(&mut flow, supervisor)?, &[]),
            };
            if found == Found::Vhd {
                from_vhd_flow(&mut flow, &mut new_image, supervisor)
            } else {
                is_vhd(format, found)?;
                from_raw_flow(&mut flow, format, &mut new_image, supervisor)
            }
        }
    }?;
    supervisor.all_done();
    Ok(Answer::Imported { source: ImportSource { virtual_size } })
}

/// What a stream of a known length holds.
fn look_at(container: &dyn Container, format: ImportFormat) -> Result<Found, Trouble> {
    if format == ImportFormat::Raw {
        return Ok(Found::Raw);
    }
    let size = container.size().map_err(from_stream("asking for the stream's size"))?;
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        container.read_at(&mut bytes, FileOffset(at)).map_err(from_stream("reading from the stream"))?;
        Ok(bytes)
    };
    let head = read(0, HEAD_BYTES.min(usize::try_from(size.0).unwrap_or(HEAD_BYTES)))?;
    let end = match size.0.checked_sub(END_BYTES as u64) {
        Some(at) => read(at, END_BYTES)?,
        None => head.clone(),
    };
    Ok(recognise(&head, &end))
}

/// The beginning of a flow, which stays in it.
fn ahead<'a>(flow: &'a mut Inflow, supervisor: &mut Supervisor<'_>) -> Result<&'a [u8], Trouble> {
    flow.peek(HEAD_BYTES, supervisor).map_err(|error| from_chain(&error))
}

/// Whether to read a VHD, from what was asked for and what was found. What is neither VHD nor raw is refused by its name.
fn is_vhd(format: ImportFormat, found: Found) -> Result<bool, Trouble> {
    match (format, found) {
        (ImportFormat::Raw, _) => Ok(false),
        (_, Found::Other(name)) => {
            let message = match format {
                ImportFormat::Vhd => format!("the stream is no VHD: it is {name}"),
                ImportFormat::Auto | ImportFormat::Raw => {
                    format!("the stream is {name}, which is not imported")
                }
            };
            Err(trouble(TroubleKind::Unsupported, message))
        }
        (ImportFormat::Vhd, _) | (_, Found::Vhd) => Ok(true),
        (ImportFormat::Auto, Found::Raw) => Ok(false),
    }
}

type NewImage<'a> = dyn FnMut(Option<Bytes>) -> Result<Intake, Trouble> + 'a;

/// A VHD that can be read anywhere.
fn from_image(
    container: Arc<dyn Container>,
    new_image: &mut NewImage<'_>,
    supervisor: &mut Supervisor<'_>,
) -> Result<Bytes, Trouble> {
    let image = Image::open(container, Mode::ReadOnly).map_err(|error| from_vhd(&error))?;
    if let Some(parent) = image.info().parent {
        return Err(has_parent(parent.id, &parent.name));
    }
    let chain = Chain::new(vec![Arc::new(image) as Arc<dyn Layer>]).map_err(|error| from_chain(&error))?;
    copying::fill(&chain, new_image(Some(chain.virtual_size()))?, supervisor)
}

/// Raw bytes that can be read anywhere.
fn from_file(
    container: &dyn Container,
    file: &File,
    new_image: &mut NewImage<'_>,
    supervisor: &mut Supervisor<'_>,
) -> Result<Bytes, Trouble> {
    let size = container.size().map_err(from_stream("asking for the stream's size"))?;
    let mut intake = new_image(Some(size))?;
    supervisor.total(size);
    fill_raw(container, file, size, &mut intake, supervisor).map_err(|error| from_chain(&error))?;
    intake.close(size)
}

/// Copies a raw file, hole by hole and chunk by chunk.
fn fill_raw(
    container: &dyn Container,
    file: &File,
    size: Bytes,
    intake: &mut Intake,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), Error> {
    let mut buffer = vec![0; length(CHUNK.0)];
    let mut at = 0;
    while at < size.0 {
        // What the file has no holes for may begin within a chunk.
        let data = match next_data(file, at).unwrap_or(at) {
            data if data >= size.0 => size.0,
            data => at.max(data / CHUNK.0 * CHUNK.0),
        };
        if data > at {
            intake.take(GuestOffset(at), Piece::Zero(Bytes(data - at)), supervisor)?;
            at = data;
            continue;
        }
        let part = buffer.len().min(length(size.0 - at));
        container
            .read_at(&mut buffer[..part], FileOffset(at))
            .map_err(stream_error("reading from the stream"))?;
        intake.take(GuestOffset(at), Piece::Data(&buffer[..part]), supervisor)?;
        at += part as u64;
    }
    Ok(())
}

/// The first byte at or after `at` that is no hole; the end of the file if there is none; `None` where the file cannot say.
fn next_data(file: &File, at: u64) -> Option<u64> {
    use nix::unistd::{Whence, lseek};
    let from = i64::try_from(at).ok()?;
    match lseek(file, from, Whence::SeekData) {
        Ok(position) => u64::try_from(position).ok(),
        Err(nix::errno::Errno::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

/// Raw bytes of unknown number, or a fixed VHD, which is the same with a footer behind.
fn from_raw_flow(
    flow: &mut Inflow,
    format: ImportFormat,
    new_image: &mut NewImage<'_>,
    supervisor: &mut Supervisor<'_>,
) -> Result<Bytes, Trouble> {
    let mut intake = new_image(None)?;
    let mut buffer = vec![0; length(CHUNK.0)];
    loop {
        let at = GuestOffset(flow.at());
        let part = flow.body(&mut buffer, supervisor).map_err(|error| from_chain(&error))?;
        if part == 0 {
            break;
        }
        let taken = intake.take(at, Piece::Data(&buffer[..part]), supervisor);
        taken.map_err(|error| from_chain(&error))?;
    }
    let (at, tail) = (flow.at(), flow.tail());
    let end = match format {
        ImportFormat::Raw => None,
        ImportFormat::Auto | ImportFormat::Vhd => end_of(at, tail)?,
    };
    match end {
        Some(end) => {
            let (before, told) = (end.at.0, end.virtual_size);
            if told.0 != before || end.kind != DiskKind::Fixed {
                let message = format!(
                    "the VHD's footer tells of {} bytes of disk, and {before} came before it",
                    told.0
                );
                return Err(trouble(TroubleKind::Damaged, message));
            }
            let rest = Piece::Data(&tail[..length(before - at)]);
            let taken = intake.take(GuestOffset(at), rest, supervisor);
            taken.map_err(|error| from_chain(&error))?;
            intake.close(told)
        }
        None if format == ImportFormat::Vhd => Err(trouble(
            TroubleKind::Damaged,
            "the stream is no VHD: there is no footer, neither at its beginning nor at its end",
        )),
        None => {
            let taken = intake.take(GuestOffset(at), Piece::Data(tail), supervisor);
            taken.map_err(|error| from_chain(&error))?;
            intake.close(Bytes(at + tail.len() as u64))
        }
    }
}

fn end_of(at: u64, tail: &[u8]) -> Result<Option<catena_vhd::StreamEnd>, Trouble> {
    read_stream_end(tail, Bytes(at + tail.len() as u64)).map_err(|error| from_vhd(&error))
}

/// A dynamic VHD, whose blocks come in any order.
fn from_vhd_flow(
    flow: &mut Inflow,
    new_image: &mut NewImage<'_>,
    supervisor: &mut Supervisor<'_>,
) -> Result<Bytes, Trouble> {
    let map = read_head(flow, supervisor)?;
    if let Some((id, name)) = &map.parent {
        return Err(has_parent(*id, name));
    }
    let mut intake = new_image(Some(map.virtual_size))?;
    supervisor.total(Bytes(map.places.len() as u64 * BLOCK_BYTES));
    let mut data = vec![0; length(BLOCK_BYTES)];
    for (number, place) in map.places.iter().enumerate() {
        let came = take_block(flow, place, &mut data, supervisor).map_err(|error| from_chain(&error))?;
        // Some programs cut the last block short; what is not there is zero.
        let whole = came == data.len() || (came > 0 && number + 1 == map.places.len());
        if !whole {
            return Err(cut_off(flow));
        }
        let inside = &data[..place.data_len(map.virtual_size)];
        let taken = intake.take(place.block.start(), Piece::Data(inside), supervisor);
        taken.map_err(|error| from_chain(&error))?;
    }
    flow.skip(u64::MAX, supervisor).map_err(|error| from_chain(&error))?;
    match end_of(flow.at(), flow.tail())? {
        Some(end) if end.virtual_size == map.virtual_size && end.kind == DiskKind::Dynamic => {
            intake.close(map.virtual_size)
        }
        Some(_) => Err(trouble(TroubleKind::Damaged, "the VHD's two footers contradict each other")),
        None => Err(cut_off(flow)),
    }
}

/// Looks at the beginning until all that it tells is known; it stays in the flow.
fn read_head(flow: &mut Inflow, supervisor: &mut Supervisor<'_>) -> Result<StreamMap, Trouble> {
    let mut needed = 0;
    loop {
        let there = flow.peek(needed, supervisor).map_err(|error| from_chain(&error))?;
        let short = there.len() < needed;
        match read_stream_head(there).map_err(|error| from_vhd(&error))? {
            StreamHead::Known(map) => return Ok(map),
            StreamHead::Needs(_) if short => return Err(cut_off(flow)),
            StreamHead::Needs(more) => needed = more,
        }
    }
}

/// Reads the block at `place`, zeros where its bitmap has none; returns how many bytes of it came.
fn take_block(
    flow: &mut Inflow,
    place: &StreamPlace,
    data: &mut [u8],
    supervisor: &mut Supervisor<'_>,
) -> Result<usize, Error> {
    flow.skip(place.bitmap_at.0.saturating_sub(flow.at()), supervisor)?;
    let mut bitmap = [0; 512];
    if flow.at() != place.bitmap_at.0 || flow.body(&mut bitmap, supervisor)? < bitmap.len() {
        return Ok(0);
    }
    let came = flow.body(data, supervisor)?;
    data[came..].fill(0);
    let there = SectorSet::from_bitmap(&bitmap);
    if !there.is_full() {
        for (sector, bytes) in data.chunks_exact_mut(bitmap.len()).enumerate() {
            if !there.contains(sector) {
                bytes.fill(0);
            }
        }
    }
    Ok(came)
}

fn has_parent(id: ImageId, name: &str) -> Trouble {
    let message = format!(
        "a differencing VHD is only a part of a disk: the rest is in its parent '{}' ({id})",
        name.escape_debug()
    );
    trouble(TroubleKind::Unsafe, message)
}

fn cut_off(flow: &Inflow) -> Trouble {
    let came = flow.at() + flow.tail().len() as u64;
    trouble(TroubleKind::Damaged, format!("the VHD is cut off: the stream ends after {came} bytes"))
}

/// As a length in memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod growing;
#[cfg(test)]
mod tests;
