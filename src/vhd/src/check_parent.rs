//! The rules about the parent that an image names: header, locators, and the parent as it is.

use crate::check::{CLOCK_SLACK, CheckOptions, Findings};
use crate::error::{Error, Result};
use crate::footer::{DiskKind, Footer};
use crate::header::Header;
use crate::layout::Layout;
use crate::locator::Locator;
use catena_blockio::Container;
use catena_types::ImageId;

/// Checks what the image says about its parent.
pub(crate) fn check_parent(
    container: &dyn Container,
    header: &Header,
    footer: &Footer,
    layout: &Layout,
    options: &CheckOptions,
    found: &mut Findings,
) -> Result<()> {
    let at = layout.header_at;
    if footer.kind != DiskKind::Differencing {
        let none = header.parent == ImageId::from_bytes([0; 16]) && header.parent_timestamp == 0;
        if !none || !header.parent_name().is_empty() || header.locators.iter().any(Option::is_some) {
            found.error("header_parent", at, "a disk without parent names one");
        }
        return Ok(());
    }
    if let Some((id, size)) = options.parent {
        if id != header.parent {
            found.error("parent_id", at, format!("the image belongs to {}, not to {id}", header.parent));
        }
        if size > footer.size {
            found.warning("parent_size", at, format!("the disk is smaller than its parent ({size})"));
        }
    }
    if options.now.is_some_and(|now| header.parent_timestamp > now.saturating_add(CLOCK_SLACK)) {
        found.warning("parent_timestamp", at, "the parent was changed in the future");
    }
    let name = header.parent_name();
    if name.is_empty() || name.contains(char::REPLACEMENT_CHARACTER) {
        found.error("parent_name", at, "the parent's name cannot be read");
    }
    let mut usable = 0;
    let locators: Vec<&Locator> = header.locators.iter().flatten().collect();
    for (number, locator) in locators.iter().enumerate() {
        if locators[..number].iter().any(|other| other.platform == locator.platform) {
            found.error("locator_unique", at, format!("two locators of kind {:?}", locator.platform));
        }
        usable += usize::from(check_locator(container, locator, &name, layout, found)?);
    }
    if usable == 0 {
        found.error("locator_missing", at, "no locator can be read");
    }
    Ok(())
}

/// Checks one locator; true if it can be used to find the parent.
fn check_locator(
    container: &dyn Container,
    locator: &Locator,
    name: &str,
    layout: &Layout,
    found: &mut Findings,
) -> Result<bool> {
    let size = container.size().map_err(Error::io("asking for the size of the container"))?;
    let over_tables = locator.at < layout.batmap_header_at() && locator.end() > layout.table_at.0;
    let outside = locator.at < layout.header_at || locator.end() > size.0;
    let Some(len) = locator.readable().filter(|_| !outside && !over_tables) else {
        found.error("locator_place", locator.at, "a locator has no text, or lies outside its place");
        return Ok(false);
    };
    let mut text = vec![0; len];
    container.read_at(&mut text, locator.at).map_err(Error::io("reading a locator"))?;
    let Some(path) = locator.platform.decode(&text) else {
        found.warning("locator_text", locator.at, "a locator's text cannot be read");
        return Ok(false);
    };
    if path.rsplit('/').next() != Some(name) {
        // An interrupted change of the parent leaves this until it is applied again from the journal (D5).
        found.warning("locator_name", locator.at, format!("the locator says '{path}', the header '{name}'"));
    }
    Ok(true)
}
