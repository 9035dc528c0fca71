//! What was acknowledged and is not yet on the image, in memory that outlives the process (D7, D8).
//!
//! A file of fixed size in memory (tmpfs), mapped. An entry says which sectors of a block were written and where; it is
//! stored after the data and before the reply, and cleared when a commit that covers it has ended. The word that makes an entry
//! count is stored last and cleared first, so the file is valid at any instant at which the process may be killed.
//!
//! ```text
//! 0     magic "CATENAPN", version, number of entries, disk (16 bytes), boot (16 bytes)
//! 4096  entries of 576 bytes: state (0 or 1), image (16 bytes), block | new << 32, place, 24 bytes of zeros, bitmap (512 bytes)
//! ```
//!
//! Words of 8 bytes, little-endian. A block may have two entries of an image: one that a commit is storing and one of what came
//! since. While a leaf merge is open there are entries of two images.

use catena_chain::Noted;
use catena_types::{BlockIndex, FileOffset, ImageId, SectorSet, VdiUuid};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks that can be noted at a time.
const ENTRIES: usize = 1024;
const HEADER_WORDS: usize = 512;
const ENTRY_WORDS: usize = 72;
const BITMAP_AT: usize = 8;
const WORDS: usize = HEADER_WORDS + ENTRIES * ENTRY_WORDS;
/// Size of the file, in bytes.
const FILE_BYTES: usize = WORDS * 8;
// The keeper makes the file.
const _: () = assert!(FILE_BYTES as u64 == catena_control::PENDING_BYTES);

const MAGIC: u64 = u64::from_le_bytes(*b"CATENAPN");
/// Version 1 in the lower half, the number of entries in the upper.
const FORM: u64 = 1 | (ENTRIES as u64) << 32;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PendingError {
    /// The system refused.
    #[error("the file of pending writes cannot be used: {0}")]
    System(#[from] nix::Error),
    /// It is another's, or of another time, or contradicts itself: nobody knows what was acknowledged.
    #[error("the file of pending writes is not valid: {0}")]
    NotValid(&'static str),
}

/// The file.
pub(crate) struct Pending {
    words: Mapping,
    /// A writer of this disk has died in this boot.
    taken_over: bool,
    free: Vec<usize>,
    /// Of each image that is written.
    books: Vec<Book>,
}

/// What is noted of one image.
struct Book {
    image: ImageId,
    /// What was noted since the last commit began.
    current: Vec<usize>,
    by_block: HashMap<BlockIndex, usize>,
    /// What the commit under way is storing.
    leaving: Vec<usize>,
}

impl Book {
    fn of(image: ImageId) -> Self {
        Self { image, current: Vec::new(), by_block: HashMap::new(), leaving: Vec::new() }
    }
}

impl Pending {
    /// Takes the file for the disk of which these images are written: an empty one, or what a writer left that died in this boot,
    /// which is then returned, for each of the images.
    pub(crate) fn open(
        file: impl AsFd,
        vdi: VdiUuid,
        boot: [u8; 16],
        images: &[ImageId],
    ) -> Result<(Self, Vec<Vec<Noted>>), PendingError> {
        let size = nix::sys::stat::fstat(file.as_fd())?.st_size;
        let full = i64::try_from(FILE_BYTES).unwrap_or(i64::MAX);
        if size != 0 && size != full {
            return Err(PendingError::NotValid("of another size"));
        }
        // All of it now: a store into a page for which there is no memory would kill the process.
        fallocate(file.as_fd(), FallocateFlags::empty(), 0, full)?;
        let words = Mapping::new(file)?;
        let books = images.iter().copied().map(Book::of).collect();
        let mut pending = Self { words, taken_over: false, free: Vec::new(), books };
        pending.taken_over = pending.take_header(vdi, boot)?;
        let noted = pending.take_entries()?;
        Ok((pending, noted))
    }

    /// Whether a writer that died in this boot left the file behind.
    pub(super) const fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    fn take_header(&self, vdi: VdiUuid, boot: [u8; 16]) -> Result<bool, PendingError> {
        let expected: Vec<u64> =
            [FORM].into_iter().chain(words_of(&vdi.to_bytes())).chain(words_of(&boot)).collect();
        match self.load(0) {
            // Empty, or its maker was killed before anything could be noted.
            0 => {
                for (index, word) in expected.iter().enumerate() {
                    self.store(1 + index, *word);
                }
                self.store(0, MAGIC);
                Ok(false)
            }
            MAGIC if (1..).zip(&expected).all(|(index, word)| self.load(index) == *word) => Ok(true),
            MAGIC => Err(PendingError::NotValid("of another disk, boot or version")),
            _ => Err(PendingError::NotValid("something else")),
        }
    }

    /// Finds the entries, and what they say together, image by image.
    fn take_entries(&mut self) -> Result<Vec<Vec<Noted>>, PendingError> {
        let mut noted: Vec<BTreeMap<BlockIndex, Noted>> = vec![BTreeMap::new(); self.books.len()];
        for index in 0..ENTRIES {
            if self.load(word_of(index)) == 0 {
                self.free.push(index);
                continue;
            }
            let (image, found) = self.entry(index);
            let Some((book, noted)) =
                self.books.iter_mut().zip(&mut noted).find(|(book, _)| book.image == image)
            else {
                return Err(PendingError::NotValid("it names an image that is not to be written"));
            };
            book.current.push(index);
            book.by_block.insert(found.block, index);
            let Some(known) = noted.get_mut(&found.block) else {
                noted.insert(found.block, found);
                continue;
            };
            if known.place != found.place {
                return Err(PendingError::NotValid("a block has two places"));
            }
            known.sectors = known.sectors.union(&found.sectors);
            known.new |= found.new;
        }
        Ok(noted.into_iter().map(|of_image| of_image.into_values().collect()).collect())
    }

    fn entry(&self, index: usize) -> (ImageId, Noted) {
        let at = word_of(index);
        let mut image = [0; 16];
        image[..8].copy_from_slice(&self.load(at + 1).to_le_bytes());
        image[8..].copy_from_slice(&self.load(at + 2).to_le_bytes());
        let named = self.load(at + 3).to_le_bytes();
        let mut bitmap = [0; 512];
        for (word, bytes) in bitmap.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.load(at + BITMAP_AT + word).to_le_bytes());
        }
        let noted = Noted {
            block: BlockIndex(u32::from_le_bytes([named[0], named[1], named[2], named[3]])),
            place: FileOffset(self.load(at + 4)),
            new: named[4] != 0,
            sectors: SectorSet::from_bitmap(&bitmap),
        };
        (ImageId::from_bytes(image), noted)
    }

    fn book(&self, image: ImageId) -> Option<&Book> {
        self.books.iter().find(|book| book.image == image)
    }

    fn book_mut(&mut self, image: ImageId) -> Option<&mut Book> {
        self.books.iter_mut().find(|book| book.image == image)
    }

    /// Whether [`note`](Self::note) would find room for the block.
    pub(super) fn has_room(&self, image: ImageId, block: BlockIndex) -> bool {
        self.notes(image, block) || !self.free.is_empty()
    }

    /// Notes sectors whose data are written; false if there is no room. A block that is noted keeps its place until a commit has
    /// ended.
    pub(super) fn note(&mut self, image: ImageId, noted: &Noted) -> bool {
        let Some(book) = self.book(image) else { return false };
        let (index, fresh) = match book.by_block.get(&noted.block) {
            Some(&index) => (index, false),
            None => match self.free.pop() {
                Some(index) => (index, true),
                None => return false,
            },
        };
        let at = word_of(index) + BITMAP_AT;
        // Each word is true by itself: the data are there.
        for (word, bits) in words_of(&noted.sectors.to_bitmap()).enumerate() {
            let old = if fresh { 0 } else { self.load(at + word) };
            if fresh || old | bits != old {
                self.store(at + word, old | bits);
            }
        }
        if fresh {
            self.put_name(index, image, noted);
            if let Some(book) = self.book_mut(image) {
                book.current.push(index);
                book.by_block.insert(noted.block, index);
            }
        }
        true
    }

    fn put_name(&self, index: usize, image: ImageId, noted: &Noted) {
        let at = word_of(index);
        for (word, value) in (1..).zip(words_of(&image.to_bytes())) {
            self.store(at + word, value);
        }
        self.store(at + 3, u64::from(noted.block.0) | u64::from(noted.new) << 32);
        self.store(at + 4, noted.place.0);
        // Last: from here on it counts.
        self.store(at, 1);
    }

    /// How many blocks of the image are noted for its next commit.
    pub(super) fn noted(&self, image: ImageId) -> usize {
        self.book(image).map_or(0, |book| book.current.len())
    }

    /// Which.
    pub(super) fn blocks(&self, image: ImageId) -> Vec<BlockIndex> {
        self.book(image).map(|book| book.by_block.keys().copied().collect()).unwrap_or_default()
    }

    /// Whether something of the block is noted for the image's next commit.
    pub(super) fn notes(&self, image: ImageId, block: BlockIndex) -> bool {
        self.book(image).is_some_and(|book| book.by_block.contains_key(&block))
    }

    /// A commit begins that covers all that is noted of the image.
    pub(super) fn begin_commit(&mut self, image: ImageId) {
        if let Some(book) = self.book_mut(image) {
            book.leaving.append(&mut book.current);
            book.by_block.clear();
        }
    }

    /// It has ended well.
    pub(super) fn end_commit(&mut self, image: ImageId) {
        let leaving = self.book_mut(image).map(|book| std::mem::take(&mut book.leaving));
        for index in leaving.unwrap_or_default() {
            self.words[word_of(index)].store(0, Ordering::Release);
            self.free.push(index);
        }
    }

    /// This image is written too from now on.
    pub(super) fn add(&mut self, image: ImageId) {
        self.books.push(Book::of(image));
    }

    /// It is not written any more. Nothing of it is noted.
    pub(super) fn remove(&mut self, image: ImageId) {
        let is_clean = |book: &Book| book.current.is_empty() && book.leaving.is_empty();
        debug_assert!(self.book(image).is_none_or(is_clean));
        self.books.retain(|book| book.image != image);
    }

    fn load(&self, word: usize) -> u64 {
        u64::from_le(self.words[word].load(Ordering::Acquire))
    }

    /// In the order of the calls: a kill leaves all the earlier ones.
    fn store(&self, word: usize, value: u64) {
        self.words[word].store(value.to_le(), Ordering::Release);
        #[cfg(test)]
        tests::stored(self);
    }
}

const fn word_of(entry: usize) -> usize {
    HEADER_WORDS + entry * ENTRY_WORDS
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|eight| {
        let mut word = [0; 8];
        word.copy_from_slice(eight);
        u64::from_le_bytes(word)
    })
}

/// The file in memory. It is a file of tmpfs of which all pages exist, so no access faults.
struct Mapping(NonNull<c_void>);

// SAFETY: the memory is reached through atomics only, and is unmapped when the one owner is dropped.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: impl AsFd) -> nix::Result<Self> {
        let length = NonZeroUsize::new(FILE_BYTES).ok_or(nix::Error::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }.map(Self)
    }
}

impl Deref for Mapping {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, is `WORDS` words long, and lives as long as `self`; every value is valid.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), WORDS) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the whole of a mapping that `new` made, and nothing borrows it any more. Nothing is to be done about
        // an error: the process's end unmaps it too.
        let _ = unsafe { munmap(self.0, FILE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fs::File;

    thread_local! {
        /// The words of the file after each store, while a test asks for them.
        static STEPS: RefCell<Option<Vec<Vec<u64>>>> = const { RefCell::new(None) };
    }

    pub(super) fn stored(pending: &Pending) {
        STEPS.with_borrow_mut(|steps| {
            if let Some(steps) = steps {
                steps.push(pending.words.iter().map(|word| word.load(Ordering::Relaxed)).collect());
            }
        });
    }

    fn steps_of(work: impl FnOnce()) -> Vec<Vec<u64>> {
        STEPS.set(Some(Vec::new()));
        work();
        STEPS.take().unwrap()
    }

    const VDI: VdiUuid = VdiUuid::from_bytes([7; 16]);
    const IMAGE: ImageId = ImageId::from_bytes([8; 16]);

    fn open(file: &File) -> Result<(Pending, Vec<Noted>), PendingError> {
        let (pending, mut noted) = Pending::open(file, VDI, [9; 16], &[IMAGE])?;
        Ok((pending, noted.remove(0)))
    }

    fn noted(block: u32, place: u64, new: bool, sectors: std::ops::Range<usize>) -> Noted {
        Noted { block: BlockIndex(block), place: FileOffset(place), new, sectors: SectorSet::of(sectors) }
    }

    /// What a successor would find, had the process been killed with these words.
    fn successor(words: &[u64]) -> Vec<Noted> {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        open(&file).unwrap().1
    }

    #[test]
    fn what_is_noted_is_found_until_a_commit_that_covers_it_has_ended() {
        let file = tempfile::tempfile().unwrap();
        let (mut pending, found) = open(&file).unwrap();
        assert!(found.is_empty());
        assert!(pending.note(IMAGE, &noted(3, 4096, true, 0..8)));
        assert!(pending.note(IMAGE, &noted(3, 4096, true, 100..900)));
        assert!(pending.note(IMAGE, &noted(1, 8192, false, 5..6)));
        assert_eq!(pending.noted(IMAGE), 2);
        pending.begin_commit(IMAGE);
        assert!(pending.note(IMAGE, &noted(3, 4096, true, 8..9)));
        let (_, found) = open(&file).unwrap();
        let mut sectors = SectorSet::of(0..9);
        sectors.insert(100..900);
        assert_eq!(found, [noted(1, 8192, false, 5..6), Noted { sectors, ..noted(3, 4096, true, 0..1) }]);
        pending.end_commit(IMAGE);
        let (mut pending, found) = open(&file).unwrap();
        assert_eq!(found, [noted(3, 4096, true, 8..9)]);
        pending.begin_commit(IMAGE);
        pending.end_commit(IMAGE);
        assert!(open(&file).unwrap().1.is_empty());
    }

    #[test]
    fn a_kill_at_any_store_leaves_what_was_acknowledged_and_nothing_that_was_not_written() {
        let file = tempfile::tempfile().unwrap();
        let writes =
            [noted(3, 4096, true, 0..8), noted(9, 9 << 20, true, 7..700), noted(3, 4096, true, 64..4096)];
        // Of the second round, over entries that were used before.
        for round in 0..2 {
            let (mut pending, found) = open(&file).unwrap();
            assert!(found.is_empty(), "{round}");
            let mut known: BTreeMap<u32, SectorSet> = BTreeMap::new();
            for write in &writes {
                let steps = steps_of(|| assert!(pending.note(IMAGE, write)));
                let before = known.clone();
                let of_block = known.entry(write.block.0).or_default();
                *of_block = of_block.union(&write.sectors);
                assert!(!steps.is_empty());
                for (step, words) in steps.iter().enumerate() {
                    let found = successor(words);
                    for (block, sectors) in &before {
                        let entry = found.iter().find(|noted| noted.block.0 == *block).unwrap();
                        assert!(
                            sectors.minus(&entry.sectors).is_empty(),
                            "step {step} lost a sector of {block}"
                        );
                    }
                    for entry in &found {
                        assert!(
                            entry.sectors.minus(&known[&entry.block.0]).is_empty(),
                            "step {step}: not written"
                        );
                        assert_eq!(
                            entry.place,
                            writes.iter().find(|w| w.block == entry.block).unwrap().place
                        );
                    }
                }
                let last = successor(steps.last().unwrap());
                assert_eq!(
                    last.iter()
                        .map(|noted| (noted.block.0, noted.sectors.clone()))
                        .collect::<BTreeMap<_, _>>(),
                    known
                );
            }
            pending.begin_commit(IMAGE);
            pending.end_commit(IMAGE);
        }
    }

    #[test]
    fn a_full_file_says_so_and_has_room_again_after_a_commit() {
        let file = tempfile::tempfile().unwrap();
        let (mut pending, _) = open(&file).unwrap();
        for block in 0..u32::try_from(ENTRIES).unwrap() {
            assert!(pending.note(IMAGE, &noted(block, 0, true, 0..1)));
        }
        assert!(!pending.has_room(IMAGE, BlockIndex(5000)) && pending.has_room(IMAGE, BlockIndex(3)));
        assert!(!pending.note(IMAGE, &noted(5000, 0, true, 0..1)));
        assert!(pending.note(IMAGE, &noted(3, 0, true, 9..10)), "a noted block needs no more room");
        pending.begin_commit(IMAGE);
        assert!(
            !pending.note(IMAGE, &noted(3, 0, true, 9..10)),
            "what a commit stores is not changed under it"
        );
        pending.end_commit(IMAGE);
        assert!(pending.note(IMAGE, &noted(5000, 0, true, 0..1)));
    }

    #[test]
    fn a_file_of_another_disk_boot_image_or_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let (mut pending, _) = open(&file).unwrap();
        assert!(Pending::open(&file, VdiUuid::from_bytes([1; 16]), [9; 16], &[IMAGE]).is_err());
        assert!(Pending::open(&file, VDI, [1; 16], &[IMAGE]).is_err());
        assert!(
            Pending::open(&file, VDI, [9; 16], &[ImageId::from_bytes([1; 16])]).is_ok(),
            "nothing is noted"
        );
        assert!(pending.note(IMAGE, &noted(3, 0, true, 9..10)));
        assert!(Pending::open(&file, VDI, [9; 16], &[ImageId::from_bytes([1; 16])]).is_err());
        file.set_len(4096).unwrap();
        assert!(open(&file).is_err());
        let other = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&other, b"something", 0).unwrap();
        other.set_len(FILE_BYTES as u64).unwrap();
        assert!(open(&other).is_err());
    }
}
