//! Writing a stream from front to back, wherever it goes: zeros are left out where the target has holes.
//!
//! A flowing target is written in portions that do not block once it is ready, so that a stop of the job is heard while the
//! reader on its other side stands still.

use crate::streams::Outgoing;
use crate::supervisor::Supervisor;
use crate::trouble::stream_error;
use catena_blockio::Container;
use catena_chain::Error;
use catena_types::{Bytes, FileOffset};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

/// A pipe that is ready takes so many bytes at once (`PIPE_BUF`).
const PIPE_PORTION: usize = 4096;
/// What anything else is given at once.
const PORTION: usize = 256 << 10;
/// Zeros shorter than this are written like data.
const GRANULE: usize = 64 << 10;
static ZEROS: [u8; GRANULE] = [0; GRANULE];

/// How a flowing target is written.
enum Flow {
    Pipe,
    Socket,
    Other,
}

enum Target {
    File(Arc<dyn Container>, File),
    Device(Arc<dyn Container>, File),
    Flowing(File, Flow),
}

/// A stream on its way out.
pub(crate) struct Outflow {
    target: Target,
    /// Bytes written or left out so far: the position.
    at: u64,
    patience: Option<Duration>,
}

/// Whether all of them are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(GRANULE).all(|part| part == &ZEROS[..part.len()])
}

/// The parts of `bytes`, which lie at `at`, that are worth storing, with their positions: runs of 64 KiB that hold something.
pub(crate) fn worth_storing(at: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut end = 0;
    while end < bytes.len() {
        let border = GRANULE - usize::try_from((at + end as u64) % GRANULE as u64).unwrap_or(0);
        let next = (end + border).min(bytes.len());
        if is_zero(&bytes[end..next]) {
            if start < end {
                found.push((at + start as u64, &bytes[start..end]));
            }
            start = next;
        }
        end = next;
    }
    if start < end {
        found.push((at + start as u64, &bytes[start..end]));
    }
    found
}

impl Outflow {
    /// To this target. A reader that takes nothing for `patience` counts as gone.
    pub(crate) fn new(target: Outgoing, patience: Option<Duration>) -> io::Result<Self> {
        let target = match target {
            Outgoing::NewFile(container, file) => Target::File(container, file),
            Outgoing::Device(container, file) => Target::Device(container, file),
            Outgoing::Flowing(file) => {
                let kind = file.metadata()?.file_type();
                let flow = match kind {
                    _ if kind.is_fifo() => Flow::Pipe,
                    _ if kind.is_socket() => Flow::Socket,
                    _ => Flow::Other,
                };
                Target::Flowing(file, flow)
            }
        };
        Ok(Self { target, at: 0, patience })
    }

    /// Whether anything can be left out and written later.
    pub(crate) const fn is_new_file(&self) -> bool {
        matches!(self.target, Target::File(..))
    }

    /// How large a target of fixed size is.
    pub(crate) fn room(&self) -> io::Result<Option<Bytes>> {
        match &self.target {
            Target::Device(container, _) => container.size().map(Some),
            Target::File(..) | Target::Flowing(..) => Ok(None),
        }
    }

    /// Writes what comes next.
    pub(crate) fn data(&mut self, bytes: &[u8], supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        match &mut self.target {
            Target::File(container, _) => {
                for (at, part) in worth_storing(self.at, bytes) {
                    container.write_at(part, FileOffset(at)).map_err(writing())?;
                }
            }
            Target::Device(container, _) => {
                container.write_at(bytes, FileOffset(self.at)).map_err(writing())?;
            }
            Target::Flowing(file, flow) => flow.write(file, bytes, supervisor, self.patience)?,
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros, or leaves a hole where what is not written reads as zero.
    pub(crate) fn zeros(&mut self, length: u64, supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        match &mut self.target {
            Target::File(..) => {}
            Target::Device(container, _) => {
                container.punch(FileOffset(self.at), Bytes(length)).map_err(writing())?;
            }
            Target::Flowing(file, flow) => {
                let mut left = length;
                while left > 0 {
                    let part = usize::try_from(left).unwrap_or(GRANULE).min(GRANULE);
                    flow.write(file, &ZEROS[..part], supervisor, self.patience)?;
                    left -= part as u64;
                }
            }
        }
        self.at += length;
        Ok(())
    }

    /// Leaves room at the beginning of a new file, for [`fill_in`](Self::fill_in).
    pub(crate) const fn leave_room(&mut self, length: u64) {
        self.at += length;
    }

    /// Writes the beginning of a new file, when all else is written.
    pub(crate) fn fill_in(&mut self, head: &[u8]) -> Result<(), Error> {
        match &self.target {
            Target::File(container, _) => container.write_at(head, FileOffset(0)).map_err(writing()),
            Target::Device(..) | Target::Flowing(..) => {
                Err(writing()(io::Error::other("only a new file can be gone back in")))
            }
        }
    }

    /// All is written: what is left out at the end of a file is part of it too, files and devices are durable, and whoever shares
    /// the descriptor writes on behind it.
    pub(crate) fn end(self) -> Result<(), Error> {
        let (container, mut file) = match self.target {
            Target::File(container, file) => {
                container.set_size(Bytes(self.at)).map_err(writing())?;
                (container, file)
            }
            Target::Device(container, file) => (container, file),
            Target::Flowing(..) => return Ok(()),
        };
        container.flush().map_err(writing())?;
        file.seek(SeekFrom::Start(self.at)).map_err(writing())?;
        Ok(())
    }
}

impl Flow {
    fn write(
        &self,
        file: &mut File,
        mut bytes: &[u8],
        supervisor: &mut Supervisor<'_>,
        patience: Option<Duration>,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            supervisor.ready(file.as_fd(), PollFlags::POLLOUT, patience)?;
            let written = match self {
                Self::Pipe => file.write(&bytes[..bytes.len().min(PIPE_PORTION)]),
                Self::Socket => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let part = &bytes[..bytes.len().min(PORTION)];
                    send(file.as_raw_fd(), part, flags).map_err(Errno::into)
                }
                Self::Other => file.write(&bytes[..bytes.len().min(PORTION)]),
            };
            match written {
                Ok(0) => return Err(writing()(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes = &bytes[count..],
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(writing()(error)),
            }
        }
        Ok(())
    }
}

fn writing() -> impl FnOnce(io::Error) -> Error {
    stream_error("writing to the stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_holds_something_is_stored() {
        let mut bytes = vec![0; 5 * GRANULE];
        assert!(worth_storing(0, &bytes).is_empty() && worth_storing(0, &[]).is_empty());
        bytes[GRANULE] = 1;
        bytes[3 * GRANULE - 1] = 1;
        bytes[5 * GRANULE - 1] = 1;
        let found: Vec<_> = worth_storing(0, &bytes).iter().map(|(at, part)| (*at, part.len())).collect();
        let granule = GRANULE as u64;
        assert_eq!(found, [(granule, 2 * GRANULE), (4 * granule, GRANULE)]);
        // Granules are those of the target, not of the piece.
        let found: Vec<_> = worth_storing(512, &bytes).iter().map(|(at, part)| (*at, part.len())).collect();
        assert_eq!(found, [(granule, GRANULE), (3 * granule, GRANULE), (5 * granule, 512)]);
    }
}
