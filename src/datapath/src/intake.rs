//! The image that an import fills: sparse, of a size that may become known only at the end.
//!
//! It is nobody's disk before the import's commit, and a failed import removes it, so nothing here needs to survive a crash; the
//! commits on the way only keep the memory for new blocks bounded.

use crate::crash;
use crate::open::{Caching, Descriptors};
use crate::outflow::worth_storing;
use crate::supervisor::Supervisor;
use crate::trouble::{from_vhd, trouble};
use catena_chain::{Error, Layer, LayerMut, Piece, write as write_layer};
use catena_control::{Trouble, TroubleKind};
use catena_types::{Bytes, GuestOffset, ImageId, VHD_MAX_SIZE};
use catena_vhd::{CreateSpec, Image, Mode, table_size_on, vhd_timestamp};

/// How large a disk is taken to be whose size is not known. One that turns out larger has its table moved, at each doubling.
const GUESS: Bytes = Bytes(64 << 30);
/// After so many pieces (of at most 2 MiB) the pointers to them are written.
const PIECES: usize = 1024;

/// A new image on its way in.
pub(crate) struct Intake {
    image: Image,
    /// Pieces written since the last commit.
    pending: usize,
}

impl Intake {
    /// A new image in the next descriptor, for a disk of `size`, or of a size that [`close`](Self::close) will tell.
    pub(crate) fn new(
        id: ImageId,
        created: i64,
        size: Option<Bytes>,
        fds: &mut Descriptors,
    ) -> Result<Self, Trouble> {
        size.map_or(Ok(()), check_size)?;
        let container = fds.container(Caching::Direct)?;
        let spec = CreateSpec {
            id,
            virtual_size: size.unwrap_or(GUESS),
            parent: None,
            table_size: table_size_on(&*container),
            fixed: false,
            hidden: false,
            timestamp: vhd_timestamp(created),
        };
        catena_vhd::create(&*container, &spec).map_err(|error| from_vhd(&error))?;
        let image = Image::open(container, Mode::ReadWrite).map_err(|error| from_vhd(&error))?;
        Ok(Self { image, pending: 0 })
    }

    /// Takes in a piece, if it is more than zeros: they are what the image holds anyway.
    pub(crate) fn take(
        &mut self,
        at: GuestOffset,
        piece: Piece<'_>,
        supervisor: &mut Supervisor<'_>,
    ) -> Result<(), Error> {
        let length = match piece {
            Piece::Zero(length) => length,
            Piece::Data(bytes) => Bytes(bytes.len() as u64),
        };
        // Zeros too, or /dev/zero would never be enough.
        let end = Bytes(at.0.saturating_add(length.0));
        if end > VHD_MAX_SIZE {
            return Err(Error::OutOfRange(too_large(end)));
        }
        if let Piece::Data(bytes) = piece {
            for (at, part) in worth_storing(at.0, bytes) {
                self.reach(at + part.len() as u64)?;
                self.write(GuestOffset(at), part, supervisor)?;
                self.pending += 1;
                crash::IMPORTING.pass();
            }
        }
        if self.pending >= PIECES {
            self.image.commit()?;
            self.pending = 0;
        }
        supervisor.advance(length)
    }

    /// Writes; a container of explicit size that is too small is made larger.
    fn write(&mut self, at: GuestOffset, part: &[u8], supervisor: &mut Supervisor<'_>) -> Result<(), Error> {
        loop {
            let written = write_layer(&mut self.image, None, at, part);
            let is_full = matches!(&written, Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC));
            match self.image.wanted_for_a_block()? {
                Some(wanted) if is_full => self.image.fit(supervisor.enlarged(wanted)?)?,
                _ => return written,
            }
        }
    }

    /// Makes the disk reach to `end`, which a disk can.
    fn reach(&mut self, end: u64) -> Result<(), Error> {
        if end <= self.image.virtual_size().0 {
            return Ok(());
        }
        let size = Bytes(end.next_power_of_two()).min(VHD_MAX_SIZE);
        Ok(self.image.grow(size)?)
    }

    /// All has come: the disk has `size`, rounded up to 2 MiB, and is durable. Returns its size.
    pub(crate) fn close(mut self, size: Bytes) -> Result<Bytes, Trouble> {
        check_size(size)?;
        let rounded = size.round_up(catena_types::BLOCK_BYTES);
        let sized = if rounded < self.image.virtual_size() {
            self.image.shrink(rounded)
        } else {
            self.image.grow(rounded)
        };
        sized.map_err(|error| from_vhd(&error))?;
        let size = self.image.virtual_size();
        self.image.close().map_err(|error| from_vhd(&error))?;
        Ok(size)
    }
}

fn check_size(size: Bytes) -> Result<(), Trouble> {
    if size.0 == 0 {
        return Err(trouble(TroubleKind::OutOfRange, "the stream is empty: a disk has at least one byte"));
    }
    if size > VHD_MAX_SIZE {
        return Err(trouble(TroubleKind::OutOfRange, too_large(size)));
    }
    Ok(())
}

fn too_large(size: Bytes) -> String {
    format!("a disk of {} bytes is out of range: the largest has 2040 GiB", size.0)
}
