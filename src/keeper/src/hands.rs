//! Handing images to workers: activation, the writer's lock, and the order that a request's descriptors have.
//!
//! D11: one writer per open image. The lock is an open-file-description lock on the very description that the worker
//! gets; the keeper drops its own copy as soon as it is sent. So the lock is free only when the worker's last request has
//! landed, also if the worker was killed, and a successor that gets the lock cannot be overtaken by its predecessor.

use catena_control::Handed;
use catena_sr_api::{Access, Store};
use catena_types::{ErrorName, Failure, ImageRecord, ImageState};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a predecessor may take to land its last request.
const PATIENCE: Duration = Duration::from_secs(30);

/// An image ready to be sent: what it is, and its descriptor.
#[derive(Debug)]
pub(crate) struct Ready {
    /// For the request.
    pub(crate) handed: Handed,
    /// For the packet.
    pub(crate) fd: OwnedFd,
}

/// Activates an image; for writing also locks it.
pub(crate) fn ready(store: &dyn Store, image: &ImageRecord, access: Access) -> Result<Ready, Failure> {
    let fd = activate(store, image, access)?;
    if access == Access::ReadWrite {
        lock(&fd, &image.container, libc::F_WRLCK)?;
    }
    Ok(Ready { handed: hand(image), fd })
}

/// A chain for reading, leaf first, its leaf for writing if `leaf` says so.
pub(crate) fn ready_chain(
    store: &dyn Store,
    chain: &[std::sync::Arc<ImageRecord>],
    leaf: Access,
) -> Result<(Vec<Handed>, Vec<OwnedFd>), Failure> {
    let access = |n| if n == 0 { leaf } else { Access::ReadOnly };
    let wanted: Vec<(&str, Access)> =
        chain.iter().enumerate().map(|(n, image)| (image.container.as_str(), access(n))).collect();
    let fds = match store.activate_all(&wanted) {
        Ok(fds) => fds,
        // One by one, so that the failure names its image.
        Err(_) => chain
            .iter()
            .enumerate()
            .map(|(n, image)| activate(store, image, access(n)))
            .collect::<Result<_, _>>()?,
    };
    if let (Some(image), Some(fd)) = (chain.first(), fds.first()) {
        match leaf {
            Access::ReadWrite => lock(fd, &image.container, libc::F_WRLCK)?,
            Access::ReadOnly => settle(store, image)?,
        }
    }
    Ok((chain.iter().map(|image| hand(image)).collect(), fds))
}

/// What a request says of an image.
fn hand(image: &ImageRecord) -> Handed {
    Handed { id: image.id, format: image.format, any: image.state == ImageState::Orphan }
}

fn activate(store: &dyn Store, image: &ImageRecord, access: Access) -> Result<OwnedFd, Failure> {
    store
        .activate(&image.container, access)
        .map_err(|error| Failure::from(error).object("image", image.id).object("container", &image.container))
}

/// Locks a container that is written without being an image yet.
pub(crate) fn ready_new(store: &dyn Store, container: &str) -> Result<OwnedFd, Failure> {
    let fd = store.activate(container, Access::ReadWrite)?;
    lock(&fd, container, libc::F_WRLCK)?;
    Ok(fd)
}

/// Waits until nobody writes to a leaf any more: a writer that outlived its keeper may still be landing its last request, and
/// who reads before that may see what a later reader does not.
fn settle(store: &dyn Store, image: &ImageRecord) -> Result<(), Failure> {
    // The lock ends with this description, before the image is read through another one.
    lock(&store.activate(&image.container, Access::ReadOnly)?, &image.container, libc::F_RDLCK)
}

/// Takes a lock, waiting for a predecessor that was killed to land its last request.
fn lock(fd: &OwnedFd, container: &str, kind: libc::c_int) -> Result<(), Failure> {
    let whole = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let message = format!("{container} is still being written by another process");
                return Err(Failure::new(ErrorName::VdiInUse, message).hint("try again in a moment").retry());
            }
            Err(error) => {
                return Err(Failure::new(
                    ErrorName::IoError,
                    format!("{container} cannot be locked: {error}"),
                ));
            }
        }
    }
}
