//! From the descriptors of a request to open images, verified to be those that the keeper means.

use crate::raw::Raw;
use crate::trouble::{from_io, from_vhd, trouble};
use catena_blockio::{Container, open_container};
use catena_chain::{Chain, Layer};
use catena_control::{Handed, Trouble, TroubleKind};
use catena_types::{Bytes, Format};
use catena_vhd::{Image, Mode};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Buffered, or past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Small requests: the page cache helps.
    Buffered,
    /// Bulk: the cache would only be flooded.
    Direct,
}

/// The descriptors of a request, taken in order.
pub(crate) struct Descriptors(VecDeque<OwnedFd>);

impl Descriptors {
    /// As they came.
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into())
    }

    /// The next one.
    pub(crate) fn take(&mut self) -> Result<OwnedFd, Trouble> {
        self.0
            .pop_front()
            .ok_or_else(|| trouble(TroubleKind::Internal, "a descriptor is missing in a request"))
    }

    /// The next one, as a container.
    pub(crate) fn container(&mut self, caching: Caching) -> Result<Arc<dyn Container>, Trouble> {
        let fd = self.take()?;
        open_container(fd, caching == Caching::Direct).map_err(from_io("opening a container"))
    }

    /// The next one, as the image it is said to be.
    pub(crate) fn image(&mut self, handed: &Handed, mode: Mode, caching: Caching) -> Result<Image, Trouble> {
        open_image(self.container(caching)?, handed, mode)
    }

    /// The next one, as the image it is said to be, in a container whose size was changed or is to be.
    pub(crate) fn image_to_fit(&mut self, handed: &Handed, before: Bytes) -> Result<Image, Trouble> {
        let container = self.container(Caching::Buffered)?;
        only_vhd(handed)?;
        let image = Image::open_to_fit(container, before);
        verified(image, handed, Mode::ReadWrite)
    }

    /// The next ones, as layers to be read, topmost first.
    pub(crate) fn layers(
        &mut self,
        chain: &[Handed],
        caching: Caching,
    ) -> Result<Vec<Arc<dyn Layer>>, Trouble> {
        chain.iter().map(|handed| self.layer(handed, caching)).collect()
    }

    fn layer(&mut self, handed: &Handed, caching: Caching) -> Result<Arc<dyn Layer>, Trouble> {
        Ok(match handed.format {
            Format::Vhd => Arc::new(self.image(handed, Mode::ReadOnly, caching)?),
            Format::Raw => Arc::new(open_raw(self.container(caching)?, handed)?),
        })
    }

    /// The next ones, as the disk that they make together.
    pub(crate) fn chain(&mut self, chain: &[Handed], caching: Caching) -> Result<Chain, Trouble> {
        Chain::new(self.layers(chain, caching)?).map_err(|error| crate::trouble::from_chain(&error))
    }
}

/// The image that a container is said to hold.
pub(crate) fn open_image(
    container: Arc<dyn Container>,
    handed: &Handed,
    mode: Mode,
) -> Result<Image, Trouble> {
    only_vhd(handed)?;
    verified(Image::open(container, mode), handed, mode)
}

/// The raw disk that a container is said to be.
pub(crate) fn open_raw(container: Arc<dyn Container>, handed: &Handed) -> Result<Raw, Trouble> {
    Raw::open(container).map_err(|trouble| of_image(handed, trouble))
}

/// Refuses what has no format of its own where an image's metadata are needed.
fn only_vhd(handed: &Handed) -> Result<(), Trouble> {
    match handed.format {
        Format::Vhd => Ok(()),
        Format::Raw => Err(of_image(handed, trouble(TroubleKind::Unsupported, "a raw disk is only read"))),
    }
}

fn verified(opened: Result<Image, catena_vhd::Error>, handed: &Handed, mode: Mode) -> Result<Image, Trouble> {
    let image = opened.map_err(|error| of_image(handed, from_vhd(&error)))?;
    let id = image.id();
    if id != handed.id && !(handed.any && mode != Mode::ReadWrite) {
        let message = format!("a container holds image {id}, not {}", handed.id);
        return Err(trouble(TroubleKind::WrongImage, message));
    }
    Ok(image)
}

/// The trouble with an image of a chain, which must say which one it is.
fn of_image(handed: &Handed, mut trouble: Trouble) -> Trouble {
    trouble.message = format!("image {}: {}", handed.id, trouble.message);
    trouble
}
