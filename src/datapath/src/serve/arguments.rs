//! What `catena-datapath serve` is told on its command line, and the descriptors that it is given with it.
//!
//! Descriptors come as numbers, so that a keeper or a test can start the process with nothing but `exec`. Each is looked at
//! before anything is made of it: a number that names something else is an error, never a guess. Used by the start of the
//! process only.

use anyhow::{Context, Result, bail, ensure};
use catena_blockio::engine::Kind;
use catena_blockio::lock_exclusive;
use catena_control::Handed;
use catena_types::{Format, ImageId, VdiUuid};
use clap::{Args, ValueEnum};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::str::FromStr;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The disk that is served.
    #[arg(long, value_name = "UUID")]
    pub(crate) vdi: VdiUuid,
    /// The listening socket for NBD clients.
    #[arg(long, value_name = "FD")]
    nbd: RawFd,
    /// The listening socket for the keeper (sequenced packets).
    #[arg(long, value_name = "FD")]
    control: RawFd,
    /// The file that keeps what is acknowledged and not yet on the image.
    #[arg(long, value_name = "FD")]
    pending: RawFd,
    /// An image of the chain, leaf first; FORMAT is `vhd`, `vhd:any` for an adopted image whose own id may be another,
    /// or `raw` for a disk that is only read.
    #[arg(long = "image", value_name = "FD:ID:FORMAT", required = true)]
    images: Vec<ImageArgument>,
    /// A leaf merge into this image, the second of the chain, is open: it is written too, and the merge goes on.
    #[arg(long, value_name = "ID", conflicts_with = "read_only")]
    pub(crate) moving_into: Option<ImageId>,
    /// Refuse writes; the leaf may be open for reading only.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How I/O is done.
    #[arg(long, value_name = "auto|io_uring|threads", default_value = "auto")]
    pub(crate) engine: Kind,
    /// What becomes of a write for which the storage has no room.
    #[arg(long, value_enum, default_value_t = OnFull::Wait)]
    pub(crate) on_full: OnFull,
}

/// What becomes of a write for which the storage has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFull {
    /// It waits until there is room.
    Wait,
    /// The client is told.
    Error,
}

/// `FD:ID:FORMAT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ImageArgument {
    fd: RawFd,
    handed: Handed,
}

impl FromStr for ImageArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(|| format!("'{text}' is not FD:ID:FORMAT"));
        let fd = part()?.parse().map_err(|_| format!("'{text}' does not begin with a number"))?;
        let id: ImageId = part()?.parse().map_err(|error: catena_types::IdError| error.to_string())?;
        let (format, any) = match part()? {
            "vhd" => (Format::Vhd, false),
            "vhd:any" => (Format::Vhd, true),
            "raw" => (Format::Raw, false),
            other => return Err(format!("'{other}' is not a format that is known")),
        };
        Ok(Self { fd, handed: Handed { id, format, any } })
    }
}

/// What came with the process, looked at and owned.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Where NBD clients come in.
    pub(crate) nbd: UnixListener,
    /// Where the keeper comes in. Its connections carry packets, whatever the type says.
    pub(crate) control: UnixListener,
    /// Acknowledged and not stored.
    pub(crate) pending: OwnedFd,
    /// The chain, leaf first.
    pub(crate) images: Vec<(Handed, OwnedFd)>,
    /// The image into which a merge is open, without the right to write: what is left of it when that ends otherwise.
    pub(crate) reader: Option<OwnedFd>,
}

impl Arguments {
    /// Takes over the descriptors that are named. Called once, by the only thread.
    pub(crate) fn inherit(&self) -> Result<Inherited> {
        let images = self.images.iter().map(|image| image.fd);
        let numbers: Vec<RawFd> = [self.nbd, self.control, self.pending].into_iter().chain(images).collect();
        let mut distinct = BTreeSet::new();
        for number in &numbers {
            ensure!(*number > 2, "descriptor {number} is not one of those that can be handed over");
            ensure!(distinct.insert(number), "descriptor {number} is named twice");
        }
        let nbd = listener(take(self.nbd)?, SockType::Stream).context("the socket for clients")?;
        let control = listener(take(self.control)?, SockType::SeqPacket).context("the control socket")?;
        let pending = take(self.pending)?;
        ensure_file(pending.as_fd(), true).context("the file of pending writes")?;
        let mut opened = Vec::with_capacity(self.images.len());
        let mut reader = None;
        for (depth, image) in self.images.iter().enumerate() {
            let fd = take(image.fd)?;
            let into = self.moving_into == Some(image.handed.id);
            ensure!(!into || depth == 1, "image {} is not the one below the leaf", image.handed.id);
            let written = into || (depth == 0 && !self.read_only);
            ensure_file(fd.as_fd(), written).with_context(|| format!("image {}", image.handed.id))?;
            // D11: the keeper has locked this very description, and then this changes nothing; where it has not, whoever
            // else writes there is found out before the first byte is read.
            let alone = !written || lock_exclusive(&fd).context("an image cannot be locked")?;
            ensure!(alone, "image {} is still being written by another process", image.handed.id);
            if into {
                // Now, while we may: whoever serves has no right to open anything.
                let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                reader = Some(file.with_context(|| format!("image {}", image.handed.id))?.into());
            }
            opened.push((image.handed.clone(), fd));
        }
        ensure!(
            self.moving_into.is_none() || reader.is_some(),
            "the image into which a merge is open is none of the chain"
        );
        Ok(Inherited { nbd, control, pending, images: opened, reader })
    }
}

/// Makes an inherited number ours; nothing that we might start gets it.
fn take(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: only borrowed for the call below, which is harmless for whatever the number is.
    let unknown = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(unknown, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .with_context(|| format!("descriptor {number} is not open"))?;
    // SAFETY: it is open, as the call above has shown, it was inherited for us alone, and no number is taken twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn listener(fd: OwnedFd, kind: SockType) -> Result<UnixListener> {
    let number = fd.as_raw_fd();
    let found = getsockopt(&fd, sockopt::SockType).context("it is not a socket")?;
    ensure!(found == kind, "it is a socket of type {found:?}, not {kind:?}");
    let family = getsockname::<UnixAddr>(number).map(|address| address.family());
    ensure!(family == Ok(Some(AddressFamily::Unix)), "it is not a local socket");
    ensure!(getsockopt(&fd, sockopt::AcceptConn)?, "it does not listen");
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn ensure_file(fd: BorrowedFd<'_>, writable: bool) -> Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    match flags & OFlag::O_ACCMODE {
        OFlag::O_RDWR => {}
        OFlag::O_RDONLY if !writable => {}
        _ if writable => bail!("it is not open for reading and writing"),
        _ => bail!("it is not open for reading"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_number_an_id_and_a_format() {
        let id = ImageId::random();
        let image: ImageArgument = format!("7:{id}:vhd").parse().unwrap();
        assert_eq!((image.fd, image.handed.id, image.handed.any), (7, id, false));
        assert!(format!("7:{id}:vhd:any").parse::<ImageArgument>().unwrap().handed.any);
        for wrong in
            ["", "7", "7:x:vhd", &format!("x:{id}:vhd"), &format!("7:{id}"), &format!("7:{id}:qcow9")]
        {
            assert!(wrong.parse::<ImageArgument>().is_err(), "{wrong}");
        }
    }
}
