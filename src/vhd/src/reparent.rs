//! Naming another parent: the new bytes of the locators and of the header, and writing them.
//!
//! The header is two sectors long and has no second copy. So (D5) a plan is made first and kept in a journal; applying it
//! can be repeated, by a process that does not open the image, because its header may be torn by then.

use crate::create::{ParentSpec, check_name, too_long};
use crate::error::{Error, Result};
use crate::footer::DiskKind;
use crate::header::Header;
use crate::image::Image;
use crate::layout::Layout;
use crate::locator::{LOCATORS, WRITTEN};
use catena_blockio::Container;
use catena_chain::{Plan, Step};
use catena_types::FileOffset;

/// Bytes to be written to a container, in order.
pub type Patch = Vec<(FileOffset, Vec<u8>)>;

impl Image {
    /// The writes that make the image name another parent. Each locator is rewritten where it is; one that the new name does
    /// not fit into is dropped, but one always stays.
    ///
    /// # Errors
    /// `Unsupported` for an image without parent or of another program, `OutOfRange` for a name that does not fit.
    pub fn plan_reparent(&self, parent: &ParentSpec) -> Result<Patch> {
        let Some(header) = self.header.as_ref().filter(|_| self.footer.kind == DiskKind::Differencing) else {
            return Err(Error::Unsupported("naming a parent in an image that has none".into()));
        };
        if self.footer.is_foreign() {
            return Err(Error::Unsupported("naming a parent in an image of another program".into()));
        }
        repointed(header, &self.layout, parent)
    }

    /// Applies a plan to this image, which is open for writing, and takes it over.
    ///
    /// # Errors
    /// Those of the storage: the header may then be torn, and the plan must be applied again.
    pub fn reparent(&mut self, patch: &Patch) -> Result<()> {
        let header = self.patched(patch)?;
        apply_patch(&*self.container, patch)?;
        self.header = Some(header);
        Ok(())
    }

    /// The same as a plan, for an image that is in use.
    pub(crate) fn plan_patch(&mut self, patch: &[(FileOffset, Vec<u8>)]) -> Result<Plan> {
        self.header = Some(self.patched(patch)?);
        let mut plan = Plan::default();
        patch.iter().for_each(|(at, bytes)| plan.write(*at, bytes.clone()));
        plan.push(Step::Barrier);
        Ok(plan)
    }

    /// The header that a patch of this image makes.
    fn patched(&mut self, patch: &[(FileOffset, Vec<u8>)]) -> Result<Header> {
        self.writer()?;
        let at = self.layout.header_at;
        let raw = patch.iter().find(|(offset, bytes)| *offset == at && bytes.len() == 1024);
        let Some(raw) = raw.and_then(|(_, bytes)| bytes.first_chunk()) else {
            return Err(Error::OutOfRange("the plan does not belong to this image".into()));
        };
        let header = Header::parse(raw, at)?;
        if (header.table_at, header.entries) != (self.layout.table_at, self.layout.entries) {
            return Err(Error::OutOfRange("the plan was made for another state of the image".into()));
        }
        Ok(header)
    }
}

/// The writes that make a header name another parent, in the places that its locators have.
pub(crate) fn repointed(header: &Header, layout: &Layout, parent: &ParentSpec) -> Result<Patch> {
    check_name(&parent.name)?;
    let mut patch = Patch::new();
    let mut locators = [None; LOCATORS];
    let mut places = locators.iter_mut();
    for old in header.locators.iter().flatten().filter(|old| WRITTEN.contains(&old.platform)) {
        let mut text = old.platform.text(&parent.name);
        let (Ok(space), Ok(len)) = (usize::try_from(old.space), u32::try_from(text.len())) else {
            continue;
        };
        if text.len() <= space && locator_is_safe(layout, old.at, old.space) {
            text.resize(space, 0);
            patch.push((old.at, text));
            let mut new = *old;
            new.len = len;
            places.next().map(|place| place.insert(new));
        }
    }
    if patch.is_empty() {
        return Err(too_long(&parent.name));
    }
    let new = header.with_parent(parent.id, parent.timestamp, &parent.name, locators)?;
    patch.push((layout.header_at, new.raw().to_vec()));
    Ok(patch)
}

/// Whether a locator's space lies between the tables and the blocks, where nothing else is.
fn locator_is_safe(layout: &Layout, at: FileOffset, space: u64) -> bool {
    let end = at.0.saturating_add(space);
    let free = at.0 >= layout.header_at.0 + crate::header::HEADER_BYTES
        && (end <= layout.table_at.0 || at.0 >= layout.tables_end())
        && end <= layout.headers_end();
    free && space <= MAX_LOCATOR_SPACE
}

/// The largest space of a locator that is rewritten.
const MAX_LOCATOR_SPACE: u64 = 16 << 10;

/// Whether the image has got another block table since the plan was made: its header must not be put back, and a new plan is needed.
/// A header that is torn is the one that this plan, or an older one, was being written over: it has changed in no other way.
///
/// # Errors
/// Those of the storage.
pub fn is_stale(container: &dyn Container, patch: &[(FileOffset, Vec<u8>)]) -> Result<bool> {
    let planned = patch.iter().find_map(|(at, bytes)| Some((*at, bytes.as_slice().try_into().ok()?)));
    let Some((at, planned)) = planned else { return Ok(false) };
    let mut raw = [0; 1024];
    container.read_at(&mut raw, at).map_err(Error::io("reading the header"))?;
    let table =
        |raw: &[u8; 1024]| Header::parse(raw, at).ok().map(|header| (header.table_at, header.entries));
    Ok(table(&raw).is_some_and(|now| table(planned).is_some_and(|then| now != then)))
}

/// Writes a plan and waits until it is durable. The image is not opened: its header may be torn.
///
/// # Errors
/// Those of the storage; may be repeated. One that [is stale](is_stale) must not be applied.
pub fn apply_patch(container: &dyn Container, patch: &[(FileOffset, Vec<u8>)]) -> Result<()> {
    for (at, bytes) in patch {
        container.write_at(bytes, *at).map_err(Error::io("naming another parent"))?;
    }
    container.flush().map_err(Error::io("waiting for the new parent's name to be durable"))
}
