//! Requests about images as such: inspect, create, mark, re-parent.

use crate::crash;
use crate::open::{Caching, Descriptors};
use crate::raw::Raw;
use crate::trouble::{from_io, from_vhd, trouble};
use catena_chain::Layer;
use catena_control::{Answer, Answered, CreateImage, Handed, ImageReport, Parent, Trouble, TroubleKind};
use catena_types::{Bytes, FileOffset, Format, HeaderPatch, ImageId, PatchWrite};
use catena_vhd::{
    ContainerSizes, CreateSpec, FooterState, Image, Mode, ParentSpec, apply_patch, is_stale, table_size_on,
    vhd_timestamp,
};

/// What are these files?
pub(crate) fn inspect(formats: &[Format], fds: &mut Descriptors) -> Answered {
    let mut reports = Vec::with_capacity(formats.len());
    for format in formats {
        reports.push(fds.container(Caching::Buffered).and_then(|container| match format {
            Format::Vhd => {
                let image = Image::open(container, Mode::ReadOnly).map_err(|error| from_vhd(&error))?;
                Ok(report(&image))
            }
            Format::Raw => Raw::open(container).map(|raw| report_of_raw(&raw)),
        }));
    }
    Ok(Answer::Reports { reports })
}

fn report_of_raw(raw: &Raw) -> ImageReport {
    ImageReport {
        id: ImageId::NONE,
        format: Format::Raw,
        parent: None,
        parent_names: Vec::new(),
        virtual_size: raw.virtual_size(),
        hidden: false,
        foreign: true,
        owns_blocks: true,
        needs: raw.virtual_size(),
        remarks: Vec::new(),
    }
}

fn report(image: &Image) -> ImageReport {
    let info = image.info();
    let remark = match info.footers {
        FooterState::Both => None,
        FooterState::EndMissing => {
            Some("the footer at the end is missing; the copy at the beginning is used")
        }
        FooterState::CopyDamaged => Some("the copy of the footer at the beginning is damaged"),
        FooterState::Differ => Some("the two footers differ; that of the last change is used"),
    };
    let names = info.parent.iter().flat_map(|parent| std::iter::once(&parent.name).chain(&parent.locators));
    ImageReport {
        id: info.id,
        format: Format::Vhd,
        parent_names: names.cloned().collect(),
        parent: info.parent.as_ref().map(|parent| parent.id),
        virtual_size: info.virtual_size,
        hidden: info.hidden,
        foreign: info.foreign,
        owns_blocks: info.allocated_blocks > 0,
        needs: info.physical_end,
        remarks: remark.map(str::to_owned).into_iter().collect(),
    }
}

/// Writes new images; each is durable when this returns.
pub(crate) fn create(images: &[CreateImage], fds: &mut Descriptors) -> Answered {
    for image in images {
        if image.format != Format::Vhd {
            return Err(trouble(TroubleKind::Unsupported, "a raw disk is only read"));
        }
        let container = fds.container(Caching::Buffered)?;
        let spec = CreateSpec {
            id: image.id,
            virtual_size: image.virtual_size,
            parent: image.parent.as_ref().map(parent_spec),
            table_size: table_size_on(&*container),
            fixed: false,
            hidden: false,
            timestamp: vhd_timestamp(image.created),
        };
        catena_vhd::create(&*container, &spec).map_err(|error| from_vhd(&error))?;
        crash::CREATED.pass();
    }
    Ok(Answer::Done)
}

pub(crate) fn parent_spec(parent: &Parent) -> ParentSpec {
    ParentSpec { id: parent.id, name: parent.container.clone(), timestamp: vhd_timestamp(parent.modified) }
}

/// Marks an image hidden or visible.
pub(crate) fn set_hidden(handed: &Handed, hidden: bool, fds: &mut Descriptors) -> Answered {
    let mut image = fds.image(handed, Mode::ReadWrite, Caching::Buffered)?;
    image.set_hidden(hidden).map_err(|error| from_vhd(&error))?;
    crash::HIDDEN_SET.pass();
    image.close().map_err(|error| from_vhd(&error))?;
    Ok(Answer::Done)
}

/// Makes an image's virtual disk larger; durable when this returns. It may have that size already.
pub(crate) fn grow(handed: &Handed, size: Bytes, fds: &mut Descriptors) -> Answered {
    let mut image = fds.image(handed, Mode::ReadWrite, Caching::Buffered)?;
    image.grow(size).map_err(|error| from_vhd(&error))?;
    crash::GROWN.pass();
    image.close().map_err(|error| from_vhd(&error))?;
    Ok(Answer::Done)
}

/// How large must a container of explicit size be?
pub(crate) fn sizes(format: Format, virtual_size: Bytes) -> Answer {
    match format {
        Format::Vhd => {
            let ContainerSizes { empty, full } = ContainerSizes::of(virtual_size);
            Answer::Sizes { empty, full }
        }
        Format::Raw => Answer::Sizes { empty: virtual_size, full: virtual_size },
    }
}

/// Brings an image to its container's size; durable when this returns.
pub(crate) fn fit(handed: &Handed, before: Bytes, size: Bytes, fds: &mut Descriptors) -> Answered {
    let mut image = fds.image_to_fit(handed, before)?;
    image.fit(size).map_err(|error| from_vhd(&error))?;
    crash::FITTED.pass();
    image.close().map_err(|error| from_vhd(&error))?;
    Ok(Answer::Done)
}

/// Which bytes make these headers name these parents?
pub(crate) fn plan_reparent(images: &[(Handed, Parent)], fds: &mut Descriptors) -> Answered {
    let mut patches = Vec::with_capacity(images.len());
    for (handed, parent) in images {
        let image = fds.image(handed, Mode::ReadOnly, Caching::Buffered)?;
        let writes = image.plan_reparent(&parent_spec(parent)).map_err(|error| from_vhd(&error))?;
        let writes = writes.into_iter().map(|(at, bytes)| PatchWrite { at, hex: to_hex(&bytes) }).collect();
        patches.push(HeaderPatch { image: handed.id, writes });
    }
    Ok(Answer::Patches { patches })
}

/// Writes planned bytes over headers, which may be torn. A plan that was made before the image got another block table is not
/// carried out: it would put the old one back.
pub(crate) fn apply_patches(patches: &[HeaderPatch], fds: &mut Descriptors) -> Answered {
    let mut stale = Vec::new();
    for patch in patches {
        let container = fds.container(Caching::Buffered)?;
        let writes = patch
            .writes
            .iter()
            .map(|write| from_hex(&write.hex).map(|bytes| (write.at, bytes)))
            .collect::<Result<Vec<(FileOffset, Vec<u8>)>, Trouble>>()?;
        if is_stale(&*container, &writes).map_err(|error| from_vhd(&error))? {
            stale.push(patch.image);
            continue;
        }
        if let [first, .., _] = writes.as_slice() {
            container.write_at(&first.1, first.0).map_err(from_io("writing a header"))?;
            crash::PATCH_HALF.pass();
        }
        apply_patch(&*container, &writes).map_err(|error| from_vhd(&error))?;
    }
    Ok(Answer::Patched { stale })
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

pub(crate) fn from_hex(text: &str) -> Result<Vec<u8>, Trouble> {
    let bad = || trouble(TroubleKind::Internal, "a header patch is not hexadecimal");
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(bad)?;
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_survive_as_digits() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert!(from_hex("0").is_err() && from_hex("0g").is_err());
    }
}
