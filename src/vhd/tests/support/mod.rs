//! What the tests of this crate share: the golden images, a container in memory, reading a chain the naive way.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at what it did not expect")]

pub mod model;

use catena_blockio::{Container, Sizing};
use catena_chain::{Layer, LayerMut};
use catena_types::{BLOCK_BYTES, BlockIndex, Bytes, FileOffset, ImageId, SECTOR_BYTES, SectorSet};
use catena_vhd::{CheckOptions, CreateSpec, Image, Mode, ParentSpec, Problem};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

pub const MIB: u64 = 1 << 20;
pub const PARENT: ImageId = ImageId::from_bytes([9; 16]);

/// A file of the golden archive, which is unpacked once for each test program, into files without names: nothing is left behind.
pub fn golden(name: &str) -> Vec<u8> {
    static FILES: OnceLock<BTreeMap<PathBuf, File>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/xenserver-vhd.tar.zst");
        let packed = File::open(&archive).unwrap_or_else(|e| panic!("{}: {e}", archive.display()));
        let mut archive = tar::Archive::new(zstd::Decoder::new(packed).unwrap());
        let unpacked = archive.entries().unwrap().map(|entry| {
            let (mut entry, mut file) = (entry.unwrap(), tempfile::tempfile().unwrap());
            io::copy(&mut entry, &mut file).unwrap();
            let path = entry.path().unwrap();
            (path.strip_prefix(".").unwrap_or(&path).to_owned(), file)
        });
        unpacked.collect()
    });
    let file = files.get(Path::new(name)).unwrap_or_else(|| panic!("there is no golden {name}"));
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A golden image in memory.
pub fn golden_image(name: &str) -> Arc<Memory> {
    let sizing = if name.ends_with("lv.img") { Sizing::Explicit } else { Sizing::Automatic };
    Arc::new(Memory::from_bytes(&golden(name), sizing))
}

type Pages = BTreeMap<u64, Box<[u8; 4096]>>;

/// A container in memory, sparse in pages of 4 KiB.
pub struct Memory {
    state: Mutex<(u64, Pages)>,
    sizing: Sizing,
}

impl Memory {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), sizing: Sizing::Automatic })
    }

    pub fn device(size: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((size, BTreeMap::new())), sizing: Sizing::Explicit })
    }

    pub fn from_bytes(bytes: &[u8], sizing: Sizing) -> Self {
        let new = Self { state: Mutex::new((bytes.len() as u64, BTreeMap::new())), sizing };
        for (number, page) in bytes.chunks(4096).enumerate() {
            if page != &[0; 4096][..page.len()] {
                new.write_at(page, FileOffset(number as u64 * 4096)).unwrap();
            }
        }
        new
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.read_at(&mut buf, FileOffset(at)).unwrap();
        buf
    }

    pub fn all(&self) -> Vec<u8> {
        let len = self.state.lock().unwrap().0;
        self.bytes(0, usize::try_from(len).unwrap())
    }

    pub fn copy(&self) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(self.state.lock().unwrap().clone()), sizing: self.sizing })
    }
}

fn each_page(at: u64, len: usize, mut apply: impl FnMut(u64, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let position = at + done as u64;
        let inside = usize::try_from(position % 4096).unwrap();
        let part = (4096 - inside).min(len - done);
        apply(position / 4096, inside, done, part);
        done += part;
    }
}

impl Container for Memory {
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        buf.fill(0);
        let state = self.state.lock().unwrap();
        each_page(at.0, buf.len(), |page, inside, done, part| {
            if let Some(page) = state.1.get(&page) {
                buf[done..done + part].copy_from_slice(&page[inside..inside + part]);
            }
        });
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let end = at.0 + buf.len() as u64;
        if end > state.0 {
            if self.sizing == Sizing::Explicit {
                return Err(io::Error::from_raw_os_error(28));
            }
            state.0 = end;
        }
        each_page(at.0, buf.len(), |page, inside, done, part| {
            let page = state.1.entry(page).or_insert_with(|| Box::new([0; 4096]));
            page[inside..inside + part].copy_from_slice(&buf[done..done + part]);
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.state.lock().unwrap().0))
    }

    fn set_size(&self, size: Bytes) -> io::Result<()> {
        let old = self.state.lock().unwrap().0;
        if size.0 < old {
            self.punch(FileOffset(size.0), Bytes(old - size.0))?;
        }
        self.state.lock().unwrap().0 = size.0;
        Ok(())
    }

    fn punch(&self, at: FileOffset, len: Bytes) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let end = (at.0 + len.0).min(state.0);
        let len = usize::try_from(end.saturating_sub(at.0)).unwrap();
        each_page(at.0, len, |page, inside, _, part| {
            if let Some(page) = state.1.get_mut(&page) {
                page[inside..inside + part].fill(0);
            }
        });
        Ok(())
    }

    fn clone_range(&self, _: FileOffset, _: &dyn Container, _: FileOffset, _: Bytes) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.state.lock().unwrap().1.len() as u64 * 4096))
    }

    fn sizing(&self) -> Sizing {
        self.sizing
    }

    fn alignment(&self) -> usize {
        1
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A disk without parent.
pub fn spec(mib: u64) -> CreateSpec {
    CreateSpec {
        id: ImageId::from_bytes([7; 16]),
        virtual_size: Bytes(mib * MIB),
        parent: None,
        table_size: None,
        fixed: false,
        hidden: false,
        timestamp: 1,
    }
}

/// A disk with a parent.
pub fn child_spec(mib: u64) -> CreateSpec {
    CreateSpec { parent: Some(parent("base.vhd")), ..spec(mib) }
}

pub fn parent(name: &str) -> ParentSpec {
    ParentSpec { id: PARENT, name: name.to_owned(), timestamp: 2 }
}

/// Creates and opens.
pub fn fresh(spec: &CreateSpec) -> (Arc<Memory>, Image) {
    let disk = Memory::new();
    catena_vhd::create(&*disk, spec).unwrap();
    let image = Image::open(disk.clone(), Mode::ReadWrite).unwrap();
    (disk, image)
}

/// Writes sectors of `fill` and notes them; the caller commits.
pub fn put(
    image: &mut Image,
    block: u32,
    sectors: std::ops::Range<usize>,
    fill: u8,
) -> Result<(), catena_chain::Error> {
    let at = image.place(BlockIndex(block))?;
    let data = vec![fill; sectors.len() * 512];
    let at = FileOffset(at.0 + sectors.start as u64 * SECTOR_BYTES);
    image.container().write_at(&data, at).map_err(catena_chain::Error::io("writing data"))?;
    image.wrote(BlockIndex(block), &SectorSet::of(sectors))
}

/// The content of one block of a chain, leaf first, read from the top down.
pub fn read_block(chain: &[&Image], block: u32) -> Vec<u8> {
    let block = BlockIndex(block);
    let mut data = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
    let mut missing = SectorSet::full();
    for layer in chain {
        let owned = layer.ownership(block).unwrap().to_set().intersection(&missing);
        missing = missing.minus(&owned);
        let Some(extent) = layer.locate(block) else { continue };
        for run in owned.runs() {
            let end = (run.end * 512).min(extent.len as usize);
            if run.start * 512 < end {
                let at = FileOffset(extent.at.0 + run.start as u64 * 512);
                layer.container().read_at(&mut data[run.start * 512..end], at).unwrap();
            }
        }
    }
    data
}

/// The content of a whole chain.
pub fn read_disk(chain: &[&Image]) -> Vec<u8> {
    let size = chain[0].virtual_size();
    let mut data = Vec::new();
    (0..size.blocks()).for_each(|block| data.extend_from_slice(&read_block(chain, block)));
    data.truncate(usize::try_from(size.0).unwrap());
    data
}

/// The errors that `check` finds, warnings left out.
pub fn errors(container: &dyn Container) -> Vec<Problem> {
    let mut problems = catena_vhd::check(container, &CheckOptions::default()).unwrap();
    problems.retain(|problem| problem.severity == catena_types::Severity::Error);
    problems
}
