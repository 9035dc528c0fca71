//! Opening: footers, header, block table, batmap. Nothing is written, and nothing is allocated that the container's size
//! does not justify.
//!
//! The parent that the image names is not looked at: parents are the catalog's business (D5).

use crate::bat::Bat;
use crate::batmap::{self, Batmap};
use crate::bitmaps::Bitmaps;
use crate::error::{Error, Result};
use crate::footer::{DiskKind, FOOTER_BYTES, Footer, RawFooter};
use crate::header::{HEADER_BYTES, Header};
use crate::image::{FooterState, Image, Mode, Session, Writer};
use crate::layout::{Layout, Slot};
use crate::space::{End, Space};
use catena_blockio::{Container, Sizing};
use catena_types::{BlockIndex, Bytes, FileOffset, SECTOR_BYTES};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

/// The largest disk that is opened: past it sector numbers of 32 bits do not reach.
pub(crate) const MAX_SIZE: u64 = 2 << 40;
/// The longest block table that is accepted, enough for 4 TiB.
pub(crate) const MAX_ENTRIES: u32 = 2 << 20;

/// What the footers of a container say.
#[derive(Debug)]
pub(crate) struct Footers {
    pub(crate) footer: Footer,
    pub(crate) state: FooterState,
    /// Where the footer at the end is, if it is there.
    pub(crate) end_at: Option<FileOffset>,
}

/// Reads the footers: the last 512 bytes, the 511 bytes that Virtual PC once wrote, the copy at offset 0. Of two that differ the one at
/// the end of a file counts. At the end of a device there may be an old one of this very image, from a time when the device ended
/// there before: here the copy counts. Either way a change takes effect with one write of one sector, since both are never
/// written at once ([`footers`](crate::footers)).
pub(crate) fn read_footers(container: &dyn Container, size: Bytes) -> Result<Footers> {
    if size.0 < FOOTER_BYTES - 1 {
        return Err(Error::damaged("footer_cookie", FileOffset(0), "the container is too small for a VHD"));
    }
    let copy = read_footer(container, FileOffset(0), 512)?;
    let mut end = None;
    for (len, applies) in [(512, size.0 >= FOOTER_BYTES), (511, (size.0 + 1).is_multiple_of(SECTOR_BYTES))] {
        if end.is_none() && applies {
            let at = FileOffset(size.0 - len as u64);
            end = read_footer(container, at, len)?.map(|raw| (raw, at));
        }
    }
    let on_device = container.sizing() == Sizing::Explicit;
    let (raw, at) = match (&end, &copy) {
        (Some((end, _)), Some(copy)) if on_device && !is_fixed(end) => (copy, FileOffset(0)),
        (Some((raw, at)), _) => (raw, *at),
        (None, Some(raw)) => (raw, FileOffset(0)),
        (None, None) => {
            let at = FileOffset(size.0.saturating_sub(FOOTER_BYTES));
            return Err(Error::damaged(
                "footer_cookie",
                at,
                "no VHD footer, neither at the end nor at the beginning",
            ));
        }
    };
    let footer = Footer::parse(raw, at)?;
    let state = match (&end, &copy) {
        _ if footer.kind == DiskKind::Fixed => FooterState::Both,
        (None, _) => FooterState::EndMissing,
        (_, None) => FooterState::CopyDamaged,
        (Some((end, _)), Some(copy)) if end != copy => FooterState::Differ,
        _ => FooterState::Both,
    };
    Ok(Footers { footer, state, end_at: end.map(|(_, at)| at) })
}

/// Whether it is the footer of a fixed disk, which has no copy: at offset 0 are the first bytes of the disk, whatever they look like.
fn is_fixed(raw: &RawFooter) -> bool {
    Footer::parse(raw, FileOffset(0)).is_ok_and(|footer| footer.kind == DiskKind::Fixed)
}

/// The footer at `at`, `None` if there is no sound one.
fn read_footer(container: &dyn Container, at: FileOffset, len: usize) -> Result<Option<RawFooter>> {
    let mut raw = [0; 512];
    container.read_at(&mut raw[..len], at).map_err(Error::io("reading the footer"))?;
    Ok(Footer::sound(&raw, at).is_ok().then_some(raw))
}

/// Reads and validates the header of an image with blocks.
pub(crate) fn read_header(container: &dyn Container, footer: &Footer, size: Bytes) -> Result<Header> {
    if footer.header_at.0.saturating_add(HEADER_BYTES) > size.0 {
        return Err(Error::damaged("footer_data_offset", footer.header_at, "the header lies past the end"));
    }
    let mut raw = [0; 1024];
    container.read_at(&mut raw, footer.header_at).map_err(Error::io("reading the header"))?;
    Header::parse(&raw, footer.header_at)
}

/// Derives where the metadata lie, and checks that the tables lie inside the container.
pub(crate) fn layout_of(
    container: &dyn Container,
    footer: &Footer,
    header: &Header,
    size: Bytes,
) -> Result<Layout> {
    if footer.size.0 > MAX_SIZE || header.entries > MAX_ENTRIES {
        return Err(Error::Unsupported(format!("a VHD of {}", footer.size)));
    }
    let mut layout = Layout {
        header_at: footer.header_at,
        table_at: header.table_at,
        entries: header.entries,
        batmap: false,
        locators_end: 0,
    };
    if footer.size.blocks() > header.entries {
        return Err(Error::damaged(
            "table_short",
            header.table_at,
            "the block table is too short for the disk",
        ));
    }
    if header.table_at.0.saturating_add(4 * u64::from(header.entries)) > size.0 {
        return Err(Error::damaged("table_outside", header.table_at, "the block table lies past the end"));
    }
    layout.batmap = batmap::is_present(container, footer, layout.batmap_header_at())?;
    if !footer.is_foreign() {
        layout = layout.with_locators(&header.locators);
    }
    Ok(layout)
}

impl Image {
    /// Opens an image. Its parent is not looked at.
    ///
    /// # Errors
    /// `Damaged` names the check that failed; `Unsupported` is a kind of image that is not handled, or, for writing, one that
    /// only its own program may write.
    pub fn open(container: Arc<dyn Container>, mode: Mode) -> Result<Self> {
        let size = container.size().map_err(Error::io("asking for the size of the container"))?;
        let footers = read_footers(&*container, size)?;
        Self::open_with(container, mode, size, footers)
    }

    /// The same for a container of `size` whose footers were read.
    pub(crate) fn open_with(
        container: Arc<dyn Container>,
        mode: Mode,
        size: Bytes,
        footers: Footers,
    ) -> Result<Self> {
        let footer = footers.footer;
        if mode == Mode::ReadWrite {
            refuse_writing(&footer)?;
        }
        let data_end = footers.end_at.unwrap_or(FileOffset(size.0));
        let mut image = Self {
            data_end: AtomicU64::new(data_end.0),
            footers: footers.state,
            header: None,
            layout: Layout::new(0),
            bat: Bat::default(),
            batmap: Batmap::absent(),
            bitmaps: Mutex::new(match mode {
                Mode::ReadOnly | Mode::Recall => Bitmaps::of_reader(),
                Mode::ReadWrite => Bitmaps::of_writer(),
            }),
            writer: None,
            footer,
            container,
        };
        if image.footer.kind == DiskKind::Fixed {
            if image.footer.size.0 > data_end.0 {
                return Err(Error::damaged(
                    "fixed_short",
                    data_end,
                    "the fixed disk is longer than its container",
                ));
            }
            return Ok(image);
        }
        let header = read_header(&*image.container, &image.footer, size)?;
        image.layout = layout_of(&*image.container, &image.footer, &header, size)?;
        image.bat = match mode {
            Mode::Recall => Bat::unread(&image.layout, image.footer.size.blocks()),
            _ => Bat::load(&*image.container, &image.layout, image.footer.size.blocks())?,
        };
        image.batmap = Batmap::load(&*image.container, &image.layout, image.footer.size)?;
        image.header = Some(header);
        if mode == Mode::ReadWrite {
            image.writer = Some(image.new_writer(size, footers.end_at)?);
        }
        Ok(image)
    }

    /// Finds the free space. A contradiction in the block table makes the image unwritable.
    fn new_writer(&self, size: Bytes, end_at: Option<FileOffset>) -> Result<Writer> {
        let header_at = self.layout.header_at.0;
        if !header_at.is_multiple_of(SECTOR_BYTES) || !self.layout.table_at.0.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::damaged(
                "alignment",
                self.layout.table_at,
                "the metadata are not aligned to sectors",
            ));
        }
        let metadata_end = self.layout.headers_end_sector() * SECTOR_BYTES;
        let end = match self.container.sizing() {
            Sizing::Explicit => {
                End::Pinned(FileOffset((size.0 / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(FOOTER_BYTES)))
            }
            Sizing::Automatic => {
                let found = end_at.map_or(size.0, |at| at.0).next_multiple_of(SECTOR_BYTES);
                End::Moving(FileOffset(found.max(metadata_end)))
            }
        };
        if end.footer_at().0 < metadata_end {
            return Err(Error::damaged(
                "headers_over_footer",
                end.footer_at(),
                "the metadata reach over the footer",
            ));
        }
        let mut slots: Vec<Slot> = self.bat.used(BlockIndex(0)).map(|(_, slot)| slot).collect();
        slots.sort_unstable();
        Ok(Writer {
            session: Session::Clean,
            space: Space::of(&slots, self.layout.headers_end_sector(), end)?,
            soiled: match end {
                End::Moving(_) => FileOffset(size.0),
                End::Pinned(_) => FileOffset(u64::MAX),
            },
            footer_due: end_at != Some(end.footer_at())
                || self.footers == FooterState::Differ && end.is_pinned(),
            footer_next: None,
            footer_moves: None,
            dirty: BTreeMap::new(),
            under_way: None,
            plans: 0,
            frees_are_durable: false,
            returns_space: true,
        })
    }
}

fn refuse_writing(footer: &Footer) -> Result<()> {
    if footer.is_foreign() {
        let creator = String::from_utf8_lossy(&footer.creator).into_owned();
        return Err(Error::Unsupported(format!(
            "writing an image of another program ('{}')",
            creator.escape_default()
        )));
    }
    if footer.kind == DiskKind::Fixed {
        return Err(Error::Unsupported("writing a fixed VHD".into()));
    }
    Ok(())
}
