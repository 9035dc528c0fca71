//! Requests that move a disk's bytes between an image and a descriptor of the client: import, export, read, write.
//!
//! The stream is a regular file or a block device: it is read and written at positions, so that holes stay holes both ways.

use crate::crash;
use crate::open::{Caching, Descriptors};
use crate::supervisor::Supervisor;
use crate::trouble::{from_chain, from_io, from_vhd, stream_error, trouble};
use catena_blockio::{Container, open_container};
use catena_chain::{Chain, Layer, Piece, stream, write as write_layer};
use catena_control::{
    Answer, Answered, ExportFormat, Handed, ImportFormat, ImportSource, Trouble, TroubleKind,
};
use catena_types::{BLOCK_BYTES, Bytes, FileOffset, GuestOffset, ImageId, VHD_MAX_SIZE};
use catena_vhd::{CreateSpec, Image, Mode, vhd_timestamp};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Bytes moved at once.
const CHUNK: Bytes = Bytes(BLOCK_BYTES);

/// A range of a disk goes to a stream, of any kind, from its present position on.
pub(crate) fn read(chain: &[Handed], offset: u64, length: Bytes, fds: &mut Descriptors) -> Answered {
    let mut out = File::from(fds.take()?);
    let chain = fds.chain(chain, Caching::Buffered)?;
    let range = checked_range(&chain, offset, length)?;
    let mut buffer = vec![0; usize::try_from(CHUNK.0.min(length.0)).unwrap_or_default()];
    let mut at = range.start;
    while at < range.end {
        let part = buffer.len().min(usize::try_from(range.end.0 - at.0).unwrap_or(usize::MAX));
        chain.read(at, &mut buffer[..part]).map_err(|error| from_chain(&error))?;
        out.write_all(&buffer[..part]).map_err(from_io("writing to the stream"))?;
        at.0 += part as u64;
    }
    Ok(Answer::Moved { bytes: length })
}

/// A range of a disk comes from a stream, of any kind, from its present position on. Durable when this returns.
pub(crate) fn write(chain: &[Handed], offset: u64, length: Bytes, fds: &mut Descriptors) -> Answered {
    let mut input = File::from(fds.take()?);
    let (leaf, below) =
        chain.split_first().ok_or_else(|| trouble(TroubleKind::Internal, "a chain without images"))?;
    let mut leaf = fds.image(leaf, Mode::ReadWrite, Caching::Buffered)?;
    let below = if below.is_empty() { None } else { Some(fds.chain(below, Caching::Buffered)?) };
    let end = offset.checked_add(length.0).filter(|end| *end <= leaf.virtual_size().0);
    let end = end.ok_or_else(|| out_of_range(offset, length, leaf.virtual_size()))?;
    let mut buffer = vec![0; usize::try_from(CHUNK.0.min(length.0)).unwrap_or_default()];
    let mut at = offset;
    while at < end {
        let part = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        input.read_exact(&mut buffer[..part]).map_err(from_io("reading from the stream"))?;
        let written = write_layer(&mut leaf, below.as_ref(), GuestOffset(at), &buffer[..part]);
        written.map_err(|error| from_chain(&error))?;
        at += part as u64;
    }
    crash::WRITE_UNFLUSHED.pass();
    leaf.close().map_err(|error| from_vhd(&error))?;
    Ok(Answer::Moved { bytes: length })
}

/// A stream becomes a new image.
pub(crate) fn import(
    format: ImportFormat,
    id: ImageId,
    created: i64,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let source = Source::open(fds.take()?, format)?;
    let virtual_size = source.size()?;
    let container = fds.container(Caching::Direct)?;
    let spec = CreateSpec {
        id,
        virtual_size,
        parent: None,
        table_size: None,
        fixed: false,
        hidden: false,
        timestamp: vhd_timestamp(created),
    };
    catena_vhd::create(&*container, &spec).map_err(|error| from_vhd(&error))?;
    let mut image = Image::open(container, Mode::ReadWrite).map_err(|error| from_vhd(&error))?;
    source.fill(&mut image, supervisor).map_err(|error| from_chain(&error))?;
    let virtual_size = image.virtual_size();
    image.close().map_err(|error| from_vhd(&error))?;
    Ok(Answer::Imported { source: ImportSource { virtual_size } })
}

/// Where an import comes from.
enum Source {
    Raw(Arc<dyn Container>, File),
    Image(Chain),
}

impl Source {
    fn open(fd: OwnedFd, format: ImportFormat) -> Result<Self, Trouble> {
        let file = File::from(fd.try_clone().map_err(from_io("opening the stream"))?);
        let container = seekable(fd)?;
        let vhd = match format {
            ImportFormat::Raw => false,
            ImportFormat::Vhd => true,
            ImportFormat::Auto => recognised(&*container)?,
        };
        if !vhd {
            return Ok(Self::Raw(container, file));
        }
        let image = Image::open(container, Mode::ReadOnly).map_err(|error| from_vhd(&error))?;
        if image.info().parent.is_some() {
            let message = "a differencing VHD is only a part of a disk: its parent is elsewhere";
            return Err(trouble(TroubleKind::Unsafe, message));
        }
        Chain::new(vec![Arc::new(image) as Arc<dyn Layer>])
            .map(Self::Image)
            .map_err(|error| from_chain(&error))
    }

    fn size(&self) -> Result<Bytes, Trouble> {
        let size = match self {
            Self::Raw(container, _) => container.size().map_err(from_io("asking for the stream's size"))?,
            Self::Image(chain) => chain.virtual_size(),
        };
        if size.0 == 0 || size > VHD_MAX_SIZE {
            let message = format!("a disk of {} bytes is out of range: 1 byte to 2040 GiB", size.0);
            return Err(trouble(TroubleKind::OutOfRange, message));
        }
        Ok(size)
    }

    fn fill(&self, image: &mut Image, supervisor: &mut Supervisor<'_>) -> Result<(), catena_chain::Error> {
        match self {
            Self::Image(chain) => {
                supervisor.total(chain.virtual_size());
                let whole = GuestOffset(0)..GuestOffset(chain.virtual_size().0);
                stream(chain, whole, CHUNK, |at, piece| take_in(image, at, piece, supervisor))
            }
            Self::Raw(container, file) => {
                let size = container.size().map_err(stream_error("asking for the stream's size"))?;
                supervisor.total(size);
                fill_raw(&**container, file, size, image, supervisor)
            }
        }
    }
}

/// Copies a raw file, hole by hole and chunk by chunk.
fn fill_raw(
    container: &dyn Container,
    file: &File,
    size: Bytes,
    image: &mut Image,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), catena_chain::Error> {
    let mut buffer = vec![0; usize::try_from(CHUNK.0).unwrap_or_default()];
    let mut at = 0;
    while at < size.0 {
        let data = next_data(file, at).unwrap_or(at).min(size.0) / CHUNK.0 * CHUNK.0;
        if data > at {
            supervisor.advance(Bytes(data - at))?;
            at = data;
        }
        let part = buffer.len().min(usize::try_from(size.0 - at).unwrap_or(usize::MAX));
        if part == 0 {
            break;
        }
        container
            .read_at(&mut buffer[..part], FileOffset(at))
            .map_err(stream_error("reading from the stream"))?;
        take_in(image, GuestOffset(at), Piece::Data(&buffer[..part]), supervisor)?;
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
        Err(nix::errno::Errno::ENXIO) => file.metadata().ok().map(|metadata| metadata.len()),
        Err(_) => None,
    }
}

/// Writes a piece into a new image; zeros are what it holds anyway.
fn take_in(
    image: &mut Image,
    at: GuestOffset,
    piece: Piece<'_>,
    supervisor: &mut Supervisor<'_>,
) -> Result<(), catena_chain::Error> {
    let length = match piece {
        Piece::Zero(length) => length,
        Piece::Data(bytes) => {
            if bytes.iter().any(|byte| *byte != 0) {
                write_layer(image, None, at, bytes)?;
                crash::IMPORTING.pass();
            }
            Bytes(bytes.len() as u64)
        }
    };
    supervisor.advance(length)
}

/// A disk is written to a stream.
pub(crate) fn export(
    chain: &[Handed],
    format: ExportFormat,
    fds: &mut Descriptors,
    supervisor: &mut Supervisor<'_>,
) -> Answered {
    let out = seekable(fds.take()?)?;
    let chain = fds.chain(chain, Caching::Direct)?;
    let size = chain.virtual_size();
    supervisor.total(size);
    let whole = GuestOffset(0)..GuestOffset(size.0);
    match format {
        ExportFormat::Raw => {
            out.set_size(size).map_err(from_io("sizing the stream"))?;
            let copied = stream(&chain, whole, CHUNK, |at, piece| match piece {
                Piece::Zero(length) => supervisor.advance(length),
                Piece::Data(bytes) => {
                    out.write_at(bytes, FileOffset(at.0)).map_err(stream_error("writing to the stream"))?;
                    supervisor.advance(Bytes(bytes.len() as u64))
                }
            });
            copied.map_err(|error| from_chain(&error))?;
            out.flush().map_err(from_io("writing to the stream"))?;
        }
        ExportFormat::Vhd => {
            let timestamp = vhd_timestamp(now());
            let spec = CreateSpec {
                id: ImageId::random(),
                virtual_size: size,
                parent: None,
                table_size: None,
                fixed: false,
                hidden: false,
                timestamp,
            };
            catena_vhd::create(&*out, &spec).map_err(|error| from_vhd(&error))?;
            let mut image = Image::open(out, Mode::ReadWrite).map_err(|error| from_vhd(&error))?;
            let copied = stream(&chain, whole, CHUNK, |at, piece| take_in(&mut image, at, piece, supervisor));
            copied.map_err(|error| from_chain(&error))?;
            image.close().map_err(|error| from_vhd(&error))?;
        }
    }
    Ok(Answer::Moved { bytes: size })
}

/// The stream as a container; pipes and sockets cannot be one.
fn seekable(fd: OwnedFd) -> Result<Arc<dyn Container>, Trouble> {
    tracing::debug!(fd = fd.as_raw_fd(), "a stream was handed over");
    open_container(fd, false).map_err(|error| {
        let message = format!("the stream must be a regular file or a block device: {error}");
        trouble(TroubleKind::Unsupported, message)
    })
}

/// Whether a stream holds a VHD: a footer at its end, or the copy of one at its beginning.
fn recognised(container: &dyn Container) -> Result<bool, Trouble> {
    let size = container.size().map_err(from_io("asking for the stream's size"))?;
    let places = [Some(0), size.0.checked_sub(512), size.0.checked_sub(511)];
    for at in places.into_iter().flatten() {
        let mut cookie = [0; 8];
        container.read_at(&mut cookie, FileOffset(at)).map_err(from_io("reading from the stream"))?;
        if &cookie == b"conectix" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn checked_range(chain: &Chain, offset: u64, length: Bytes) -> Result<std::ops::Range<GuestOffset>, Trouble> {
    let size = chain.virtual_size();
    let end = offset.checked_add(length.0).filter(|end| *end <= size.0);
    let end = end.ok_or_else(|| out_of_range(offset, length, size))?;
    Ok(GuestOffset(offset)..GuestOffset(end))
}

fn out_of_range(offset: u64, length: Bytes, size: Bytes) -> Trouble {
    let message = format!("{} bytes at {offset} lie outside a disk of {} bytes", length.0, size.0);
    trouble(TroubleKind::OutOfRange, message)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or_default()
}
